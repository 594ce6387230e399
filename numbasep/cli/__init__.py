"""The command line ``numbasep``: exit codes, interrupts, and errors as one line."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

INSTALL = "pip install 'numbasep[images]'"

FAILED = 2
INTERRUPTED = 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 where all went well, 2 for an error, which is one line on stderr, 128 + n for signal n.
    """
    stdout = sys.stdout
    if hasattr(stdout, "reconfigure"):
        # File names may hold what the terminal's encoding does not.
        stdout.reconfigure(errors="backslashreplace")
    # Ended or interrupted, a command removes the file that it was writing.
    previous = signal.signal(signal.SIGTERM, _end)
    try:
        from numbasep.cli import arguments as parser

        code = parser.run(sys.argv[1:] if arguments is None else arguments)
        stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Who reads has seen enough; Python would flush once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        print(f"numbasep: {' '.join(_message(error).split())}", file=sys.stderr)
        return FAILED
    finally:
        signal.signal(signal.SIGTERM, previous)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _message(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{(error.name or '').partition('.')[0]} is not installed; {INSTALL}"
    if isinstance(error, OSError) and error.strerror:
        name = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return f"{name}{error.strerror}"
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}"
    if hasattr(error, "format_message"):  # of the arguments' parser
        return str(error.format_message())
    if isinstance(error, (ValueError, TypeError)):
        return str(error)
    return f"{type(error).__name__}: {error}"

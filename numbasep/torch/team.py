"""torch's own threads, for the operators.

After an operation of torch its threads wait for the next one with their processors taken, for some
milliseconds; other threads would get in only now and then.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

import torch

from numbasep.cpu.pool import Team

_forked = False


def _fork() -> None:
    """A child has none of the threads, and GNU's library would wait for them."""
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fork)


@cache
def _found() -> Team | None:
    """Return torch's threads where they are those of GNU's OpenMP, or of one that is called so."""
    try:
        # What it is linked with is found through it.
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        parallel, number = (
            ctypes.cast(getattr(library, name), ctypes.c_void_p).value
            for name in ("GOMP_parallel", "omp_get_thread_num")
        )
    except (OSError, AttributeError):
        return None
    if parallel is None or number is None:
        return None
    return Team(parallel, number, torch.get_num_threads)


def team() -> Team | None:
    """Return torch's threads, None where there is no use of them."""
    return None if _forked else _found()

"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse, before any work is done, an output that could not be written at its end."""
    folder = path.parent
    if not folder.is_dir():
        raise ValueError(f"{path}: there is no folder {str(folder)!r} to write it into")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{path}: the folder {str(folder)!r} is not writable")
    if not os.path.lexists(path):
        return
    if path.is_dir() or not (path.is_symlink() or path.is_file()):
        raise ValueError(f"{path}: is not a regular file; name another output")
    if not overwrite:
        kind = "is a symbolic link" if path.is_symlink() else "exists"
        raise ValueError(f"{path}: {kind}; add --overwrite to replace it")


@contextlib.contextmanager
def whole(path: Path, overwrite: bool) -> Iterator[BinaryIO]:
    """Open a file that takes its name when the block ends, or that is removed if it fails.

    A symbolic link is replaced itself, not what it points to. A file that is replaced leaves its
    permissions to the new one.
    """
    check_output(path, overwrite)
    temporary = path.parent / f".numbasep-{secrets.token_hex(8)}.tmp"
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            if path.is_file() and not path.is_symlink():
                os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
            os.replace(temporary, path)
        else:
            _name(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _name(temporary: Path, path: Path) -> None:
    """Give a file a name that is still free."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise ValueError(f"{path}: exists by now; add --overwrite to replace it") from None
        # A file system without hard links.
        check_output(path, overwrite=False)
        os.replace(temporary, path)

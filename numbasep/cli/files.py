"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

# A picture of more pixels than this may be a small file made to fill the memory.
MAX_PIXELS = 1 << 28


def check_place(path: Path) -> None:
    """Refuse an output whose folder is missing or not writable."""
    folder = path.parent
    if not folder.is_dir():
        raise ValueError(f"{path}: there is no folder {str(folder)!r} to write it into")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{path}: the folder {str(folder)!r} is not writable")


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse, before any work is done, an output that could not be written at its end."""
    check_place(path)
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


def check_folder(path: Path, overwrite: bool, ours: Callable[[Path], bool]) -> None:
    """Refuse an output folder that could not be put in place; only ``ours`` are replaced."""
    check_place(path)
    if not os.path.lexists(path):
        return
    if not overwrite:
        kind = "is a symbolic link" if path.is_symlink() else "exists"
        raise ValueError(f"{path}: {kind}; add --overwrite to replace it")
    if not path.is_symlink() and not (path.is_dir() and ours(path)):
        raise ValueError(f"{path}: is no Zarr store, and is not replaced by one; name another")


@contextlib.contextmanager
def whole_folder(path: Path, overwrite: bool, ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Make a folder that takes its name when the block ends, or that is removed if it fails.

    A symbolic link is replaced itself, not what it points to.
    """
    check_folder(path, overwrite, ours)
    temporary = path.parent / f".numbasep-{secrets.token_hex(8)}.tmp"
    old = path.parent / f".numbasep-{secrets.token_hex(8)}.tmp"
    temporary.mkdir()
    try:
        yield temporary
        check_folder(path, overwrite, ours)
        if os.path.lexists(path):
            os.rename(path, old)
        try:
            os.rename(temporary, path)
        except BaseException:
            if os.path.lexists(old):
                os.rename(old, path)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.is_symlink():
            old.unlink()
        elif os.path.lexists(path):
            shutil.rmtree(old, ignore_errors=True)

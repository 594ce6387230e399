"""Numba's decorators with a cache of compiled code on disk that survives what happens to files.

Numba keeps an index that says which numbered file holds which dtypes, and processes rewrite it
without a lock: two that fill an empty cache at once can name one file for two dtypes, and a third
then runs the code of the wrong one. A damaged file raises, or crashes where it is machine code; and
where no folder is writable the decorators raise on import. Here each key has a file of its own name
that appears whole (``os.replace``) and is used only if its checksum holds; what cannot be read is
compiled, what cannot be written is not kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.core import sigutils
from numba.core.caching import FunctionCache, IndexDataCacheFile, NullCache
from numba.core.ccallback import CFunc
from numba.core.runtime import rtsys

DIGEST = 32  # bytes of a SHA-256

# What compiled code is made of: a function calls those of other files too, of which Numba's stamp,
# that of the function's own file, knows nothing.
_FOLDER = Path(__file__).parent
STAMP = hashlib.sha256(
    b"".join(
        path.read_bytes()
        for path in (_FOLDER.with_name("boundary.py"), *sorted(_FOLDER.glob("*.py")))
    )
).hexdigest()


class _Files(IndexDataCacheFile):  # type: ignore[misc]  # Numba's classes have no types
    """A file for each key: the checksum, then the pickled code."""

    def __init__(self, folder: str, base: str) -> None:
        super().__init__(folder, base, STAMP)
        self.base = Path(folder) / base

    def path(self, key: Any) -> Path:
        known = repr((numba.__version__, STAMP, key)).encode()
        return self.base.with_name(f"{self.base.name}.{hashlib.sha256(known).hexdigest()[:32]}.nbc")

    def load(self, key: Any) -> Any:
        try:
            data = self.path(key).read_bytes()
        except OSError:
            return None
        digest, code = data[:DIGEST], data[DIGEST:]
        return pickle.loads(code) if hashlib.sha256(code).digest() == digest else None

    def save(self, key: Any, data: Any) -> None:
        code = self._dump(data)
        with self._open_for_write(str(self.path(key))) as file:
            file.write(hashlib.sha256(code).digest() + code)


class _Cache(FunctionCache):  # type: ignore[misc]  # as above
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = _Files(self._cache_path, self._impl.filename_base)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        # Numba's own first reads in all that it could compile, for half of a process's first call;
        # code that is compiled already needs the runtime only, and to compile reads the rest in.
        rtsys.initialize(target_context)
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)

    def save_overload(self, sig: Any, data: Any) -> None:
        # A full disk, or a folder that went away.
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)


def _cache(function: Callable[..., Any]) -> Any:
    try:
        return _Cache(function)
    except RuntimeError:
        # Numba's word for no writable folder: not the package's, not the user's.
        _say_once()
        return NullCache()


_said = False


def _say_once() -> None:
    global _said
    if not _said:
        _said = True
        warnings.warn(
            "numbasep: no folder for compiled code is writable, so each process compiles anew "
            "(some seconds); set NUMBA_CACHE_DIR to a writable folder",
            RuntimeWarning,
            stacklevel=2,
        )


def _constant(cell: Any) -> str:
    if isinstance(cell, np.ndarray) and cell.size == 0:  # a tag: ``simd.tag``, ``number_tag``
        return f"{cell.dtype.str}{cell.ndim}"
    if cell is None or isinstance(cell, bool | int | str):
        return repr(cell)
    raise TypeError(f"compiled code closes over {cell!r}, which its key and its name cannot hold")


def _named(function: Callable[..., Any]) -> None:
    """Name what a function closes over in its name.

    Numba's symbols are made of a function's name, the types of its arguments and a number, which
    each process counts from one. Of two functions with one symbol, from the cache, all calls would
    run the one that was read first.
    """
    constants = [_constant(cell.cell_contents) for cell in function.__closure__ or ()]
    if constants:
        digest = hashlib.sha256("\0".join(constants).encode()).hexdigest()[:16]
        function.__qualname__ += f"_{digest}"


def cfunc(signature: str) -> Callable[[Callable[..., Any]], Any]:
    """``numba.cfunc(signature, cache=True)``."""

    def compiled(function: Callable[..., Any]) -> Any:
        _named(function)
        made = CFunc(function, sigutils.normalize_signature(signature), {}, {})
        made._cache = _cache(function)  # type: ignore[attr-defined]  # as Numba's decorator does
        made.compile()
        return made

    return compiled


def njit(signature: str) -> Callable[[Callable[..., Any]], Any]:
    """``numba.njit(signature, nogil=True, cache=True)``."""

    def compiled(function: Callable[..., Any]) -> Any:
        _named(function)
        made = numba.njit(nogil=True)(function)
        made._cache = _cache(function)
        made.compile(signature)
        made.disable_compile()
        return made

    return compiled

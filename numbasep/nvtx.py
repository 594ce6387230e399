"""Named ranges for NVIDIA's profilers, around each public call; nothing without the nvtx package.

With the nvtx package installed (``pip install nvtx``), ``nsys profile`` shows the ranges in the
domain "numbasep", on the host too. Without it, or with no profiler attached, a range does nothing.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

try:
    import nvtx as _nvtx
except ImportError:
    _nvtx = None

_NOTHING: AbstractContextManager[Any] = nullcontext()


@cache
def range(name: str) -> AbstractContextManager[Any]:
    """Return a context manager that marks its block for a profiler as ``name``.

    One object per name serves every call and thread: it holds no state between enter and exit.
    """
    if _nvtx is None:
        return _NOTHING
    marked: AbstractContextManager[Any] = _nvtx.annotate(name, domain="numbasep")
    return marked

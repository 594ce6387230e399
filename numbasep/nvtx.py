"""Named ranges for NVIDIA's profilers, around each public call; nothing without the nvtx package.

With the nvtx package installed (``pip install nvtx``), ``nsys profile`` shows the ranges in the
domain "numbasep", on the host too. Without it, or with no profiler attached, a range does nothing.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import TracebackType
from typing import Any

try:
    import nvtx as _nvtx
except ImportError:
    _domain: Any = None
else:
    _domain = _nvtx.get_domain("numbasep")

_NOTHING: AbstractContextManager[None] = nullcontext()


class _Range:
    """Pushes and pops a range; holds no state of its own, so one object serves every thread."""

    __slots__ = ("_attributes",)

    def __init__(self, name: str) -> None:
        self._attributes = _domain.get_event_attributes(message=name)

    def __enter__(self) -> None:
        _domain.push_range(self._attributes)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _domain.pop_range()


@cache
def range(name: str) -> AbstractContextManager[None]:
    """Return a context manager that marks its block for a profiler as ``name``."""
    return _NOTHING if _domain is None else _Range(name)

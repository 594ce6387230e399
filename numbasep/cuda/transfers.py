"""Page-locked host memory, device memory, streams, events and copies that do not wait.

In Numba's simulator the same calls are done at once, on host memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbasep.cuda import launch
from numbasep.cuda.launch import SIMULATOR, cuda

Array = NDArray[Any]

if not SIMULATOR:
    from numba.cuda.cudadrv import driver as _driver


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the device."""

    address: int
    size: int
    owner: Any


def free() -> float:
    """Return the bytes of the device's memory that are free."""
    context = cuda.current_context()
    if not SIMULATOR:
        # What Numba has not given back yet counts as free.
        context.deallocations.clear()
    found: float = context.get_memory_info().free
    return found


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says so of the driver; Numba's and cuda.core's have no common class.

    Python's own MemoryError is of the host.
    """
    return "OUT_OF_MEMORY" in str(error)


def pinned(size: int) -> Array:
    """Return page-locked bytes of the host."""
    made: Array = cuda.pinned_array(size, np.uint8)
    return made


def memory(size: int) -> Memory:
    """Return fresh bytes on the device."""
    owner = launch.allocate((size,), "uint8", (1,), 0)
    return Memory(launch.view(owner).address, size, owner)


def stream() -> Any:
    """Return a fresh stream."""
    return cuda.stream()


def adopted(handle: int) -> Any:
    """Return the caller's stream."""
    return launch._numba_stream(handle)


def event() -> Any:
    """Return a fresh event; one that was never recorded has occurred."""
    return cuda.event() if SIMULATOR else cuda.event(timing=False)


def record(event: Any, stream: Any) -> None:
    """Let an event occur when a stream has done its work so far."""
    event.record(stream)


def wait(stream: Any, event: Any) -> None:
    """Let a stream's later work wait for an event as it was last recorded."""
    event.wait(stream)


def synchronize(event: Any) -> None:
    """Let the host wait for an event."""
    event.synchronize()


def finish(stream: Any) -> None:
    """Let the host wait for all of a stream's work."""
    stream.synchronize()


def to_device(target: Memory, source: Array, stream: Any) -> None:
    """Start a copy of page-locked bytes to the device."""
    if SIMULATOR:
        _bytes(target)[: source.size] = source
    else:
        _driver.host_to_device(target.owner, source, source.size, stream)


def to_host(target: Array, source: Memory, stream: Any) -> None:
    """Start a copy of bytes on the device to page-locked ones."""
    if SIMULATOR:
        target[:] = _bytes(source)[: target.size]
    else:
        _driver.device_to_host(target, source.owner, target.size, stream)


def _bytes(memory: Memory) -> Array:
    found: Array = memory.owner._ary
    return found


def start(stream: Any, work: Callable[[int], None]) -> None:
    """Launch kernels on a stream: ``work`` takes its handle."""
    work(0 if SIMULATOR else launch.stream_handle(stream))

"""Threads that share the work of one call through an atomic counter.

The calling thread starts at once; the others, woken by a queue, take items from the same counter.
A thread that wakes late finds fewer items or none, and nobody waits for it: the call is over when
all items are. Kernels release the interpreter's lock and call nothing of Python, so that any number
of callers can be at work; each thread has its own scratch memory.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A kernel takes its arguments, a counter (taken, finished) and the address of its scratch memory.
Kernel = Callable[..., None]

# A thread keeps scratch memory up to this size between calls.
KEPT_BYTES = 4 << 20
ALIGNMENT = 64

_local = threading.local()
_lock = threading.Lock()
_queues: list[SimpleQueue[Any]] = []


def _forget() -> None:
    """A child process has none of its parent's threads."""
    global _lock, _queues
    _lock = threading.Lock()
    _queues = []


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _scratch(size: int) -> tuple[int, NDArray[np.uint8]]:
    """Return the aligned address of this thread's scratch memory, and its owner."""
    kept: NDArray[np.uint8] | None = getattr(_local, "memory", None)
    if kept is None or kept.size < size + ALIGNMENT:
        kept = np.empty(size + ALIGNMENT, np.uint8)
        if size <= KEPT_BYTES:
            _local.memory = kept
    return -(-kept.ctypes.data // ALIGNMENT) * ALIGNMENT, kept


def _work(queue: SimpleQueue[Any]) -> None:
    while True:
        kernel, arguments, counter, items, size, owners = queue.get()
        if counter[0] < items:
            address, memory = _scratch(size)
            kernel(*arguments, counter, items, address)
            del memory
        del kernel, arguments, counter, owners


def _workers(count: int) -> list[SimpleQueue[Any]]:
    """Return the queues of ``count`` threads, started where they are not there yet."""
    if len(_queues) < count:
        with _lock:
            while len(_queues) < count:
                queue: SimpleQueue[Any] = SimpleQueue()
                threading.Thread(
                    target=_work, args=(queue,), name=f"numbasep-{len(_queues)}", daemon=True
                ).start()
                _queues.append(queue)
    return _queues[:count]


def run(
    kernel: Kernel,
    arguments: tuple[Any, ...],
    items: int,
    scratch: int,
    threads: int,
    owners: object,
) -> None:
    """Run a kernel until ``items`` work items are finished, on up to ``threads`` threads.

    scratch: bytes of scratch memory for each thread. owners: of the memory that the arguments
    address, which has to outlive the last thread.
    """
    counter = np.zeros(2, np.int64)
    for queue in _workers(min(threads, items) - 1):
        queue.put((kernel, arguments, counter, items, scratch, owners))
    address, memory = _scratch(scratch)
    kernel(*arguments, counter, items, address)
    del memory

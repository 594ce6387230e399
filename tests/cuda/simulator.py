"""A scheduler for Numba's CUDA simulator: fast, and finds missing barriers.

Stock: one system thread per CUDA thread, polled, in order. Here: one greenlet each, resumed in a
shuffled order between barriers, on shared memory that is filled with NaN (or 0x55) anew for each
block. A kernel that misses a barrier reads poison or stale data in some order; one whose threads
wait at different barriers, or return before one, is refused.
"""

from __future__ import annotations

import contextvars
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from greenlet import getcurrent, greenlet

POISON = 0xFF


class Thread(greenlet):
    """One CUDA thread of the block that runs."""

    def __init__(self, run: Callable[[], None], block: Block, index: tuple[int, int, int]) -> None:
        super().__init__(run)
        # NumPy keeps its error state in the context, and new greenlets start with none.
        self.gr_context = contextvars.copy_context()
        self.blockIdx = block.api.Dim3(*block.index)
        self.threadIdx = block.api.Dim3(*index)
        width, height, _ = block.shape
        self.thread_id = index[0] + width * (index[1] + height * index[2])
        self.block = block
        self.waits: Any = None

    def _wait(self, barrier: Any) -> None:
        self.waits = barrier
        self.parent.switch()

    def syncthreads(self) -> None:
        self._wait("block")

    def syncwarp(self) -> None:
        self._wait(self.thread_id // 32)

    def exchange(self, value: Any) -> dict[int, Any]:
        """Return what each lane of the warp passed, by lane."""
        lanes = self.block.lanes.setdefault(self.thread_id // 32, {})
        lanes[self.thread_id % 32] = value
        self.syncwarp()
        found = dict(lanes)
        self.syncwarp()
        return found

    def vote(self, value: Any) -> list[Any]:
        """Return what each thread of the block passed."""
        self.block.votes[self.thread_id] = value
        self.syncthreads()
        found = list(self.block.votes.values())
        self.syncthreads()
        return found

    def syncthreads_count(self, value: Any) -> int:
        return sum(map(bool, self.vote(value)))

    def syncthreads_and(self, value: Any) -> int:
        return int(all(self.vote(value)))

    def syncthreads_or(self, value: Any) -> int:
        return int(any(self.vote(value)))


class Block:
    """Runs the threads of one block; stands for the simulator's BlockManager."""

    api: Any
    order = random.Random(0)

    def __init__(self, function: Any, grid: Any, shape: tuple[int, int, int], debug: bool) -> None:
        self.function = function
        self.shape = shape
        self.votes: dict[int, Any] = {}
        self.lanes: dict[int, dict[int, Any]] = {}
        self.index = (0, 0, 0)

    def run(self, index: tuple[int, int, int], *args: Any) -> None:
        self.index = index
        threads = [
            Thread(lambda: self.function(*args), self, (x, y, z))
            for z in range(self.shape[2])
            for y in range(self.shape[1])
            for x in range(self.shape[0])
        ]
        alive = threads
        while alive:
            ready = [thread for thread in alive if thread.waits is None]
            self.order.shuffle(ready)
            for thread in ready:
                thread.switch()
            alive = [thread for thread in alive if not thread.dead]
            if alive:
                self._release(threads, alive)

    def _release(self, threads: list[Thread], alive: list[Thread]) -> None:
        """Let threads go on whose barrier is complete."""
        if all(thread.waits == "block" for thread in alive):
            if len(alive) != len(threads):
                raise RuntimeError(
                    f"syncthreads() is reached by {len(alive)} of {len(threads)} threads"
                )
            for thread in alive:
                thread.waits = None
            return
        released = False
        for warp in {thread.waits for thread in alive} - {"block"}:
            members = [thread for thread in threads if thread.thread_id // 32 == warp]
            if all(not thread.dead and thread.waits == warp for thread in members):
                released = True
                for thread in members:
                    thread.waits = None
        if not released:
            waits = sorted({str(thread.waits) for thread in alive})
            raise RuntimeError(f"threads of one block wait at different barriers: {waits}")


def _shared_array(self: Any, shape: Any, dtype: Any, alignment: int | None = None) -> Any:
    """Shared memory per block and per call site, poisoned when the block starts."""
    import sys

    from numba.cuda import types
    from numba.cuda.np import numpy_support

    kind = np.dtype(numpy_support.as_dtype(dtype) if isinstance(dtype, types.Type) else dtype)
    block = getcurrent().block
    if self.__dict__.get("_block") is not block:
        self._block = block
        self._allocations.clear()
    frame = sys._getframe(1)
    key = "dynamic" if shape == 0 else (frame.f_code, frame.f_lasti)
    if key not in self._allocations:
        size = self._dynshared_size if shape == 0 else int(np.prod(shape)) * kind.itemsize
        self._allocations[key] = np.full(size, POISON, np.uint8)
    memory = self._allocations[key]
    found = memory[: memory.size // kind.itemsize * kind.itemsize].view(kind)
    return found if shape == 0 else found.reshape(shape)


def _shuffle(pick: Callable[[int, int], int]) -> Callable[..., Any]:
    def shuffle(self: Any, mask: int, value: Any, by: int) -> Any:
        thread = getcurrent()
        lanes = thread.exchange(value)
        return lanes.get(pick(thread.thread_id % 32, by), value)

    return shuffle


def install(seed: int = 0) -> None:
    """Put the scheduler in the place of the simulator's own. Needs NUMBA_ENABLE_CUDASIM=1."""
    from numba.cuda.simulator import kernel, kernelapi

    Block.api = kernelapi
    Block.order = random.Random(seed)
    kernel.BlockManager = Block
    kernelapi.threading = SimpleNamespace(current_thread=getcurrent, Lock=kernelapi.threading.Lock)
    kernelapi.FakeCUDAShared.array = _shared_array
    module = kernelapi.FakeCUDAModule
    module.syncwarp = lambda self, mask=0xFFFFFFFF: getcurrent().syncwarp()
    module.shfl_sync = _shuffle(lambda lane, source: source)
    module.shfl_up_sync = _shuffle(lambda lane, by: lane - by)
    module.shfl_down_sync = _shuffle(lambda lane, by: lane + by)
    module.shfl_xor_sync = _shuffle(lambda lane, by: lane ^ by)

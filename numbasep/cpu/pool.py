"""Threads that share the work of one call.

The calling thread starts at once, and takes the queue (``queues``) of a thread that comes late or
never; nobody waits for it. All of it runs without the interpreter's
lock, so that any number of callers can be at work; each thread has its own scratch memory.

To wake a thread can take longer than to filter a small image, so a thread that ran out of work
watches its mailbox for a while before it sleeps:

    asleep -> ready -> claimed (by a caller) -> posted -> running -> ready -> ... -> asleep

A caller takes a post back that was not picked up when all items are done, and waits for those who
run: a mailbox never points to the memory of a call that is over.

Where a caller comes from a library whose own threads wait for more work on the same processors, its
work goes to those (``Team``).
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from queue import SimpleQueue
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from numbasep.cpu import atomics, compiled, queues

Array = NDArray[Any]

# A thread keeps scratch memory up to this size between calls, and what steps leave to each other.
KEPT_BYTES, BETWEEN_BYTES = 4 << 20, 16 << 20
ALIGNMENT = 64

# How often a thread without work looks for more before it sleeps: some 100 us.
SPINS = 4000

# A mailbox: its state, a job (function, numbers, the items queued, the thread's own, bytes of
# scratch memory), and how many jobs its thread has finished.
STATE, FUNCTION, NUMBERS, QUEUED, OWN, SCRATCH, FINISHED = range(7)
ASLEEP, READY, CLAIMED, POSTED, RUNNING = range(5)
CACHE_LINE = 8  # int64
GROW = 1

_local = threading.local()
_lock = threading.Lock()
_workers: list[_Worker] = []


def _forget() -> None:
    """A child process has none of its parent's threads."""
    global _lock, _workers
    _lock = threading.Lock()
    _workers = []


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@compiled.njit("int64(int64, int64, int64)")
def _serve(box: int, scratch: int, size: int) -> int:
    """Do what is posted until nothing came for a while; GROW asks for more scratch memory."""
    atomics.publish(box + 8 * STATE, READY)
    spins = 0
    while True:
        if atomics.peek(box + 8 * STATE) == POSTED:
            if atomics.exchange(box + 8 * STATE, POSTED, RUNNING) == POSTED:
                if atomics.peek(box + 8 * SCRATCH) > size:
                    return GROW
                atomics.call4(
                    atomics.peek(box + 8 * FUNCTION),
                    atomics.peek(box + 8 * NUMBERS),
                    atomics.peek(box + 8 * QUEUED),
                    atomics.peek(box + 8 * OWN),
                    scratch,
                )
                atomics.take(box + 8 * FINISHED)
                atomics.publish(box + 8 * STATE, READY)
            spins = 0
        elif spins < SPINS:
            atomics.pause()
            spins += 1
        elif atomics.exchange(box + 8 * STATE, READY, ASLEEP) == READY:
            return 0


# Where NumPy's object of an array holds the address of its elements: after the header of objects.
HELD = object.__basicsize__


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _find(numbers: int, head: int) -> None:
    """Write where a job's arrays are to the places of its numbers for that; see ``jobs``."""
    if head > 0:
        for k in range(1 + atomics.peek(numbers), head, 3):
            at = numbers + 8 * k
            array = atomics.peek(numbers + 8 + 8 * atomics.peek(at + 8))
            found = atomics.peek(array + HELD) + atomics.peek(at + 16)
            atomics.poke(numbers + 8 * (head + atomics.peek(at)), found)


@compiled.njit("void(int64, int64)")
def _find_now(numbers: int, head: int) -> None:
    """``_find``, for Python: before threads get the numbers that do not come through ``_lead``."""
    _find(numbers, head)


@compiled.njit("void(int64, int64, int64, int64, int64)")
def _join(function: int, numbers: int, queued: int, own: int, scratch: int) -> None:
    """Take part in a job."""
    atomics.call4(function, numbers, queued, own, scratch)


@compiled.njit("void(int64, int64, int64, int64, int64, int64, int64, int64, int64)")
def _lead(
    boxes: int, helpers: int, function: int, whole: int, head: int, queued: int, items: int,
    size: int, scratch: int,
) -> None:  # fmt: skip
    """Post a job to threads that are ready, do it with them, and see it finished."""
    _find(whole, head)
    numbers, posted = whole + 8 * head, 0
    finished = np.empty(64, np.int64)
    for k in range(min(helpers, 64)):
        box = boxes + 8 * CACHE_LINE * k
        if atomics.exchange(box + 8 * STATE, READY, CLAIMED) == READY:
            atomics.poke(box + 8 * FUNCTION, function)
            atomics.poke(box + 8 * NUMBERS, numbers)
            atomics.poke(box + 8 * QUEUED, queued)
            atomics.poke(box + 8 * OWN, k + 1)
            atomics.poke(box + 8 * SCRATCH, size)
            finished[k] = atomics.peek(box + 8 * FINISHED)
            posted |= 1 << k
            atomics.publish(box + 8 * STATE, POSTED)
    atomics.call4(function, numbers, queued, 0, scratch)
    queues.await_done(queued, items, True)
    for k in range(min(helpers, 64)):
        if posted >> k & 1:
            box = boxes + 8 * CACHE_LINE * k
            if atomics.exchange(box + 8 * STATE, POSTED, READY) != POSTED:
                while atomics.peek(box + 8 * FINISHED) == finished[k]:
                    atomics.pause()


def address(array: Array) -> int:
    """Return where an array's elements are.

    To ask ``__array_interface__`` for it takes as long as to filter a small image.
    """
    return ctypes.c_void_p.from_address(id(array) + HELD).value or 0


@compiled.njit("int64(int64)")
def _done(queued: int) -> int:
    """Return how many items of a job are done."""
    return int(queues.all_done(queued))


@compiled.njit("void(int64, int64)")
def _abandon(queued: int, items: int) -> None:
    """Take all items that are left, those of the last step first; wait for what others are at."""
    steps = atomics.peek(queued + 8)
    for k in range(steps):
        table = queues.table_of(queued, steps - 1 - k)
        while queues.take(table, 0) != queues.NOTHING:
            queues.finish(table, 0)
    queues.await_done(queued, items, True)


# Of all threads, side by side, so that one address names them.
MOST_WORKERS = 64
_boxes = np.zeros((MOST_WORKERS, CACHE_LINE), np.int64)
_BOXES = address(_boxes)


NOWHERE = -1


@cache
def _finder() -> Callable[[], int]:
    """Return what tells the caller's processor, where threads can be told where to run."""
    if not (hasattr(os, "sched_setaffinity") and hasattr(ctypes.CDLL(None), "sched_getcpu")):
        return lambda: NOWHERE

    @compiled.njit("int64()")
    def processor() -> int:
        return int(atomics.processor())

    found: Callable[[], int] = processor
    return found


class _Worker:
    """A thread that takes part in jobs: from its mailbox while awake; it is rung for to wake up."""

    def __init__(self, number: int) -> None:
        self.box, self.own = _boxes[number], number + 1
        self.box[STATE] = ASLEEP
        self.bell: SimpleQueue[None] = SimpleQueue()
        self.job: tuple[Any, ...] | None = None
        self.avoided = NOWHERE
        self.thread = threading.Thread(target=self._work, name=f"numbasep-{number}", daemon=True)
        self.thread.start()

    def keep_off(self, processor: int) -> None:
        """Let the thread run wherever the caller may, but on the caller's processor.

        Linux wakes a thread there where the others seem taken, as those of a virtual machine do
        when they are idle, and it would wait until the caller has done all.
        """
        with suppress(OSError):
            others = os.sched_getaffinity(0) - {processor}
            if others:
                os.sched_setaffinity(self.thread.native_id or 0, others)
        self.avoided = processor

    def wake(self, job: tuple[Any, ...]) -> None:
        """Send a job to a thread that sleeps; one that is long in coming finds the last only."""
        self.job = job
        if self.bell.empty():
            self.bell.put(None)

    def _work(self) -> None:
        box = self.box
        where = address(box)
        scratch, memory = _scratch(0)
        while True:
            # A thread that gets no memory leaves its part to the others.
            if _serve(where, scratch, memory.size - ALIGNMENT) == GROW:
                with suppress(MemoryError):
                    scratch, memory = _scratch(int(box[SCRATCH]))
                    _join(box[FUNCTION], box[NUMBERS], box[QUEUED], box[OWN], scratch)
                box[FINISHED] += 1
            else:
                self.bell.get()
                job, self.job = self.job, None
                if job is None:
                    continue
                function, numbers, queued, items, size, head, owners = job
                if _done(address(queued)) < items:
                    with suppress(MemoryError):
                        scratch, memory = _scratch(size)
                        found = address(numbers) + 8 * head
                        _join(function, found, address(queued), self.own, scratch)
                del job, numbers, queued, owners


def _scratch(size: int) -> tuple[int, Array]:
    """Return the aligned address of this thread's scratch memory, and its owner."""
    kept: tuple[int, Array] | None = getattr(_local, "memory", None)
    if kept is None or kept[1].size < size + ALIGNMENT:
        memory = np.empty(size + ALIGNMENT, np.uint8)
        kept = -(-address(memory) // ALIGNMENT) * ALIGNMENT, memory
        if size <= KEPT_BYTES:
            _local.memory = kept
    return kept


def between(size: int) -> Array:
    """Return ``size`` bytes or more for what one step leaves to the next.

    This thread's next call gets the same: new memory can take as long to be written for the first
    time as a layer takes.
    """
    kept: Array | None = getattr(_local, "between", None)
    if kept is None or kept.size < size:
        kept = np.empty(size, np.uint8)
        if size <= BETWEEN_BYTES:
            _local.between = kept
    return kept


def _helpers(count: int) -> list[_Worker]:
    """Return ``count`` workers, started where they are not there yet; fewer if none can start."""
    if len(_workers) < count:
        # In a thread that Ctrl-C does not reach: one that was started and is not in the list would
        # share its mailbox with the next.
        starter = threading.Thread(target=_start, args=(count,), name="numbasep-start")
        with suppress(RuntimeError):
            starter.start()
            starter.join()
    return _workers[:count]


def _start(count: int) -> None:
    with _lock, suppress(RuntimeError):
        while len(_workers) < count:
            _workers.append(_Worker(len(_workers)))


@dataclass(frozen=True)
class Team:
    """The threads of an OpenMP library.

    parallel: address of its ``GOMP_parallel``, which has all of them call a function. number:
    address of its ``omp_get_thread_num``. threads: returns how many they are.
    """

    parallel: int
    number: int
    threads: Callable[[], int]


@contextmanager
def among(team: Team | None) -> Iterator[None]:
    """Do the work of the caller's calls in a team's threads; None: in this module's."""
    before = getattr(_local, "team", None)
    _local.team = team
    try:
        yield
    finally:
        _local.team = before


# Of what a team's threads are told: the job, a scratch memory after the other, how to ask for a
# thread's number.
(T_FUNCTION, T_NUMBERS, T_QUEUED, T_SCRATCH, T_SIZE, T_NUMBER) = range(6)


@cache
def _member() -> Any:
    """Return ``void (job)``: what each thread of a team does."""

    @compiled.cfunc("void(int64)")
    def member(job: int) -> None:
        own = atomics.ask(atomics.peek(job + 8 * T_NUMBER))
        atomics.call4(
            atomics.peek(job + 8 * T_FUNCTION),
            atomics.peek(job + 8 * T_NUMBERS),
            atomics.peek(job + 8 * T_QUEUED),
            own,
            atomics.peek(job + 8 * T_SCRATCH) + own * atomics.peek(job + 8 * T_SIZE),
        )

    return member


def _run_among(
    team: Team, threads: int, function: int, numbers: Array, items: tuple[int, ...], size: int,
    head: int,
) -> None:  # fmt: skip
    """Run a kernel in a team's threads."""
    queued = queues.template(items, threads).copy()
    size = -(-size // ALIGNMENT) * ALIGNMENT
    scratch, memory = _scratch(threads * size)
    whole = address(numbers)
    _find_now(whole, head)
    job = np.array(
        [function, whole + 8 * head, address(queued), scratch, size, team.number], np.int64
    )
    _join(team.parallel, _member().address, address(job), threads, 0)
    del memory


def run(
    function: int,
    numbers: Array,
    items: tuple[int, ...],
    scratch: int,
    threads: int,
    owners: object,
    head: int = 0,
) -> None:
    """Run a kernel until its work items are finished, on up to ``threads`` threads.

    function: address of ``void (numbers, queued, own, scratch)``, which takes items
        (``queues.take``) until there are none, and counts each (``queues.finish``).
    items: how many, of each step.
    scratch: bytes of scratch memory for each thread.
    owners: of the memory that the numbers address; a thread that wakes late keeps them alive.
    head: how many numbers before the kernel's tell where these say what is; see ``jobs``.
    """
    total = sum(items)
    helpers = min(threads, max(items), MOST_WORKERS + 1) - 1
    team = getattr(_local, "team", None)
    if team is not None and helpers > 0:
        # All of them or none: a smaller team ends the threads that it has no use for.
        count = team.threads()
        if count > 1:
            _run_among(team, count, function, numbers, items, scratch, head)
            return
        helpers = 0
    queued, whole = queues.template(items, helpers + 1).copy(), address(numbers)
    try:
        here = _finder()() if helpers > 0 else NOWHERE
        for worker in _helpers(helpers):
            if worker.avoided != here:
                worker.keep_off(here)
            if worker.box[STATE] == ASLEEP:
                _find_now(whole, head)
                worker.wake((function, numbers, queued, total, scratch, head, owners))
        aligned, memory = _scratch(scratch)
        _lead(_BOXES, helpers, function, whole, head, address(queued), total, scratch, aligned)
        del memory
    except BaseException:
        # Ctrl-C, no memory: nobody may write to the result once the caller has it back.
        _abandon(address(queued), total)
        raise

"""The items of a job, queued for its threads: each begins with a queue of its own.

A queue is a run of neighbouring items. A thread whose queue is empty goes on with those of others.
So threads rarely write to the same cache line, which takes as long as hundreds of multiply-adds
where they have no cache in common: neither the counters of queues nor neighbouring results; and of
the same arrays the next call finds in a thread's cache what this one left there.

    |threads, steps|   |next end done|   |next end done| ...

A job of several steps has such a table for each, one after the other.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from numbasep.cpu import atomics

Array = NDArray[Any]

# Bytes of a queue: two cache lines, which are fetched together.
QUEUE = 128
NEXT, END, DONE = 0, 8, 16
NOTHING = -1


@lru_cache(maxsize=1024)
def template(items: tuple[int, ...], threads: int) -> Array:
    """Return the tables of a job that nobody has begun, for calls to copy.

    items: of each step. Queues stand in the middle of their bytes: apart from what else lies around
    a table.
    """
    tables = np.zeros((len(items), threads + 1, QUEUE // 8), np.int64)
    tables[:, 0, 0], tables[:, 0, 1] = threads, len(items)
    for table, count in zip(tables, items, strict=True):
        queues = table.reshape(-1)[QUEUE // 16 : -QUEUE // 16].reshape(threads, QUEUE // 8)
        bounds = np.arange(threads + 1) * count // threads
        queues[:, NEXT // 8], queues[:, END // 8] = bounds[:-1], bounds[1:]
    return tables


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def table_of(queued: int, step: int) -> int:
    """Return the address of the table of a step of a job."""
    return int(queued + step * (atomics.peek(queued) + 1) * QUEUE)


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def queue_of(queued: int, number: int) -> int:
    """Return the address of a queue."""
    return queued + QUEUE // 2 + number * QUEUE


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def take(queued: int, number: int) -> int:
    """Return the next item for the thread of a queue, NOTHING where all are taken."""
    threads = atomics.peek(queued)
    for k in range(threads):
        other = number + k
        queue = queue_of(queued, other if other < threads else other - threads)
        end = atomics.peek(queue + END)
        if atomics.peek(queue + NEXT) < end:
            item = atomics.take(queue + NEXT)
            if item < end:
                return int(item)
    return NOTHING


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def finish(queued: int, number: int) -> None:
    """Count an item as done by the thread of a queue."""
    done = queue_of(queued, number) + DONE
    # Only its thread writes it.
    atomics.publish(done, atomics.peek(done) + 1)


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def done(queued: int) -> int:
    """Return how many items of a table are done."""
    count = 0
    for k in range(atomics.peek(queued)):
        count += atomics.peek(queue_of(queued, k) + DONE)
    return count


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def all_done(queued: int) -> int:
    """Return how many items of all steps of a job are done."""
    count = 0
    for step in range(atomics.peek(queued + 8)):
        count += done(table_of(queued, step))
    return count


# How often a thread looks whether others are done before it lets them have its processor, for which
# they may be waiting: some 100 us.
PATIENCE = 4000


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def await_done(queued: int, items: int, whole: bool) -> None:
    """Wait until so many items are done: of a table, or of the whole job whose first it is."""
    looks = 0
    while (all_done(queued) if whole else done(queued)) < items:
        looks += 1
        if looks < PATIENCE:
            atomics.pause()
        else:
            atomics.give_way()

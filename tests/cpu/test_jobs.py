"""Jobs of several steps: their order, what is between them, and where their arrays are."""

from __future__ import annotations

import time
from typing import Any

import numba
import numpy as np
import pytest

from numbasep.cpu import atomics, jobs, pool, queues, simd
from numbasep.cpu.channels import Prepared

ITEMS = 60


@numba.cfunc("void(int64, int64, int64, int64)")
def mark(numbers: int, queued: int, own: int, scratch: int) -> None:
    """Some 10 us an item; then its place in the first array is one more."""
    q = simd.as_pointer(numbers)
    while True:
        item = queues.take(queued, own)
        if item == queues.NOTHING:
            break
        for _ in range(300):
            atomics.pause()
        atomics.take(q[0] + 8 * item)
        queues.finish(queued, own)


@numba.cfunc("void(int64, int64, int64, int64)")
def total(numbers: int, queued: int, own: int, scratch: int) -> None:
    """Each item: the second array's place is the sum of the first array."""
    q = simd.as_pointer(numbers)
    while True:
        item = queues.take(queued, own)
        if item == queues.NOTHING:
            break
        whole = 0
        for k in range(q[2]):
            whole += atomics.peek(q[0] + 8 * k)
        atomics.poke(q[1] + 8 * item, whole)
        queues.finish(queued, own)


def step(function: Any, *names: str, threads: int = 3) -> jobs.Step:
    numbers = np.array([0] * len(names) + [ITEMS], np.int64)
    return jobs.step(Prepared(numbers, ITEMS, 0, threads, ()), function.address, *names)


@pytest.mark.parametrize("asleep", [False, True])
def test_a_step_begins_when_the_last_is_done(asleep: bool) -> None:
    """Threads that are asleep find the addresses too, which the caller's code looks up later."""
    job = jobs.job(
        ("out", "marks"),
        [step(mark, "marks"), step(total, "marks", "sums"), step(total, "sums", "out")],
        {"unused": 1, "sums": 8 * ITEMS},
    )
    for turn in range(1, 30):
        if asleep:
            time.sleep(0.02)
        marks, out = np.full(ITEMS, turn, np.int64), np.zeros(ITEMS, np.int64)
        job.run(out, marks)
        assert (marks == turn + 1).all()
        assert (out == ITEMS * ITEMS * (turn + 1)).all()


def test_one_array_for_several_places() -> None:
    marks = np.zeros(ITEMS, np.int64)
    jobs.job(("marks",), [step(mark, "marks"), step(mark, "marks", threads=1)]).run(marks)
    assert (marks == 2).all()


def test_an_interrupted_job_of_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that wait for a step to be done end when the caller takes all that is left."""

    def interrupted(*arguments: Any) -> None:
        time.sleep(0.001)
        raise KeyboardInterrupt

    job = jobs.job(("marks", "more"), [step(mark, "marks"), step(mark, "more")])
    for _ in range(20):
        marks, more = np.zeros(ITEMS, np.int64), np.zeros(ITEMS, np.int64)
        time.sleep(0.02)  # the threads go to sleep
        with monkeypatch.context() as patch:
            patch.setattr(pool, "_lead", interrupted)
            with pytest.raises(KeyboardInterrupt):
                job.run(marks, more)
        left = marks.copy(), more.copy()
        time.sleep(0.005)
        assert (marks == left[0]).all()
        assert (more == left[1]).all()
        job.run(marks, more)
        assert (marks == left[0] + 1).all()
        assert (more == left[1] + 1).all()

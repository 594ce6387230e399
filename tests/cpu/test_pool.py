"""The pool of threads: many callers at once, and children of fork."""

from __future__ import annotations

import os
import threading
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import pytest

from numbasep.cpu import atomics, pool, queues
from numbasep.cpu.separable import run_separable
from numbasep.plan.cpu_tiles import CpuTile
from numbasep.plan.geometry import Axis, SpatialPlan

AXIS = Axis(size=300, out=300, taps=9, origin=-4)
PLAN = SpatialPlan(1, 1, AXIS, AXIS, 1, False, 0, 0, "float32", "float32", "float32")
TAPS = np.linspace(0.1, 0.9, 9, dtype=np.float32)[None]


def filtered(image: Any, threads: int) -> bytes:
    out = np.full(image.shape, np.nan, np.float32)
    run_separable(PLAN, image, out, TAPS, TAPS, tile=CpuTile(128, 16, threads))
    return out.tobytes()


def images(count: int) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.random((1, 300, 300, 1), dtype=np.float32) for _ in range(count)]


def test_eight_callers_at_once_get_what_each_gets_alone() -> None:
    inputs = images(8) * 25
    alone = [filtered(image, 1) for image in inputs[:8]] * 25
    with ThreadPoolExecutor(8) as callers:
        assert list(callers.map(lambda image: filtered(image, 3), inputs)) == alone


@numba.cfunc("void(int64, int64, int64, int64)")
def slow_work(numbers: int, queued: int, own: int, scratch: int) -> None:
    """Some 100 us an item, then a mark."""
    while True:
        item = queues.take(queued, own)
        if item == queues.NOTHING:
            break
        for _ in range(3000):
            atomics.pause()
        atomics.take(numbers + 8 * item)
        queues.finish(queued, own)


def test_an_interrupted_call_writes_nothing_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after the job went to sleeping threads, before the caller takes part."""

    def interrupted(*arguments: Any) -> None:
        time.sleep(0.002)
        raise KeyboardInterrupt

    begun = 0
    for _ in range(20):
        marks = np.zeros(400, np.int64)
        time.sleep(0.02)  # the threads go to sleep
        with monkeypatch.context() as patch:
            patch.setattr(pool, "_lead", interrupted)
            with pytest.raises(KeyboardInterrupt):
                pool.run(slow_work.address, marks, (400,), 0, 3, marks)
        left = marks.copy()
        time.sleep(0.01)
        assert (marks == left).all()
        begun += 0 < left.sum() < 400
        pool.run(slow_work.address, marks, (400,), 0, 3, marks)
        assert (marks == left + 1).all()
    assert begun > 0


def test_interrupted_while_threads_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread too many would share a mailbox with another."""
    (image,) = images(1)
    expected = filtered(image, 1)
    monkeypatch.setattr(pool, "_workers", [])
    monkeypatch.setattr(pool, "_boxes", np.zeros_like(pool._boxes))
    join = threading.Thread.join

    def interrupted(thread: threading.Thread) -> None:
        if thread.name == "numbasep-start":
            raise KeyboardInterrupt
        join(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            filtered(image, 3)
    assert filtered(image, 3) == expected
    assert [worker.box.ctypes.data for worker in pool._workers] == [
        box.ctypes.data for box in pool._boxes[:2]
    ]


def test_no_thread_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    (image,) = images(1)
    expected = filtered(image, 1)
    monkeypatch.setattr(pool, "_workers", [])
    monkeypatch.setattr(pool, "_boxes", np.zeros_like(pool._boxes))

    def none(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    assert filtered(image, 3) == expected


def test_a_thread_without_memory_leaves_the_work_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    (image,) = images(1)
    expected = filtered(image, 1)
    scratch, caller, refused = pool._scratch, threading.get_ident(), []

    def short(size: int) -> Any:
        if threading.get_ident() != caller and size > 0:
            refused.append(size)
            raise MemoryError
        return scratch(size)

    monkeypatch.setattr(pool, "_workers", [])
    monkeypatch.setattr(pool, "_boxes", np.zeros_like(pool._boxes))
    monkeypatch.setattr(pool, "_scratch", short)
    while len(refused) < 10:
        assert filtered(image, 3) == expected


def test_a_thread_without_a_processor_keeps_the_last_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine: the memory of all the calls since would be kept with theirs."""
    (image,) = images(1)
    expected = filtered(image, 1)
    go_on = threading.Event()
    work = pool._Worker._work

    def starved(worker: pool._Worker) -> None:
        go_on.wait()
        work(worker)

    monkeypatch.setattr(pool, "_workers", [])
    monkeypatch.setattr(pool, "_boxes", np.zeros_like(pool._boxes))
    monkeypatch.setattr(pool._Worker, "_work", starved)
    jobs = []
    for _ in range(10):
        assert filtered(image, 2) == expected
        (worker,) = pool._workers
        jobs.append(weakref.ref(worker.job[2]))  # the counter
        assert worker.bell.qsize() == 1
    assert [job() is not None for job in jobs] == [False] * 9 + [True]
    go_on.set()
    while worker.job is not None or jobs[-1]() is not None:
        time.sleep(0.001)
    assert filtered(image, 2) == expected


def test_a_forked_child_starts_threads_of_its_own() -> None:
    (image,) = images(1)
    expected = filtered(image, 3)
    with warnings.catch_warnings():
        # Python 3.12 warns of what is tested here: fork beside threads.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os._exit(0 if filtered(image, 3) == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_threads_keep_off_the_callers_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are told once, and again when the caller has moved."""
    if not hasattr(os, "sched_setaffinity"):
        return
    allowed = os.sched_getaffinity(0)
    masks: list[tuple[int, set[int]]] = []
    (image,) = images(1)
    filtered(image, 2)
    worker = pool._workers[0]
    assert os.sched_getaffinity(worker.thread.native_id) < allowed or len(allowed) == 1
    worker.avoided = pool.NOWHERE
    monkeypatch.setattr(os, "sched_setaffinity", lambda *mask: masks.append(mask))
    for here in (min(allowed), min(allowed), max(allowed)):
        monkeypatch.setattr(pool, "_finder", lambda here=here: lambda: here)
        filtered(image, 2)
    if len(allowed) > 1:
        assert masks == [
            (worker.thread.native_id, allowed - {here}) for here in (min(allowed), max(allowed))
        ]
    worker.avoided = pool.NOWHERE

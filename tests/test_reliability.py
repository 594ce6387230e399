"""What must not break the package: threads, forks, signals, long runs, large arrays."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from numpy.typing import NDArray

import numbasep
from numbasep.cpu import pool
from tests import oracle
from tests.conftest import examples

Array = NDArray[Any]
Call = Callable[[], Array]


def calls(seed: int) -> list[Call]:
    """Calls of all functions, of many shapes, dtypes and options; each is deterministic."""
    rng = np.random.default_rng(seed)

    def image(*shape: int, dtype: str = "float32") -> Array:
        if np.dtype(dtype).kind in "iu":
            return rng.integers(0, 100, shape).astype(dtype)
        return rng.standard_normal(shape).astype(dtype)

    made: list[Call] = []
    for size, taps, dtype, boundary in (
        ((40, 50), 3, "float32", "fill"),
        ((300, 200), 9, "float32", "wrap"),
        ((1, 700), 31, "float64", "symm"),
        ((64, 64, 3), 5, "uint8", "nearest"),
        ((3, 33, 65), 7, "float64", "mirror"),
    ):
        x, k = image(*size, dtype=dtype), (image(taps), image(taps))
        axes = (0, 1) if size[-1] == 3 else (-2, -1)
        made.append(
            lambda x=x, k=k, boundary=boundary, axes=axes: numbasep.separable_conv2d(
                x, k, boundary=boundary, axes=axes
            )
        )
    dense, x = image(4, 4), image(90, 91)
    made.append(lambda x=x: numbasep.separable_conv2d(x, dense, stride=2))
    for n, c, size, layout in ((1, 8, 40, "NCHW"), (2, 24, 17, "NHWC")):
        x = image(n, c, size, size) if layout == "NCHW" else image(n, size, size, c)
        weight, matrix = image(c, 1, 3, 3), image(c + 5, c)
        bias = image(c)
        made += [
            lambda x=x, w=weight, b=bias, layout=layout: numbasep.depthwise_conv2d(
                x, w, b, padding=1, layout=layout, activation="relu"
            ),
            lambda x=x, m=matrix, layout=layout: numbasep.pointwise_conv2d(x, m, layout=layout),
            lambda x=x, w=weight, m=matrix, layout=layout: numbasep.depthwise_separable_conv2d(
                x, w, m, stride=2, padding="same", layout=layout
            ),
        ]
    return made


def bits(call: Call) -> bytes:
    return np.ascontiguousarray(call()).tobytes()


def expected(made: list[Call]) -> list[bytes]:
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        return [bits(call) for call in made]
    finally:
        numba.set_num_threads(before)


def test_eight_threads_of_different_calls_get_the_bits_of_one() -> None:
    made = calls(0)
    alone = expected(made)
    start = threading.Barrier(8)

    def work(number: int) -> int:
        order = np.random.default_rng(number)
        start.wait()
        right = 0
        for k in order.integers(0, len(made), 60):
            right += bits(made[k]) == alone[k]
        return right

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(8))) == [60] * 8


class SharedState(RuleBasedStateMachine):
    """Calls in any order on the caches of plans, taps and threads' memory that all share."""

    @initialize(seed=st.integers(0, 3))
    def begin(self, seed: int) -> None:
        self.made = calls(seed)
        self.alone = expected(self.made)
        self.buffers: dict[int, Array] = {}

    @rule(k=st.integers(0, 11))
    def call(self, k: int) -> None:
        assert bits(self.made[k]) == self.alone[k]

    @rule(threads=st.integers(1, numba.config.NUMBA_NUM_THREADS))
    def threads(self, threads: int) -> None:
        numba.set_num_threads(threads)

    @rule(
        height=st.integers(1, 40),
        width=st.integers(1, 40),
        length=st.integers(1, 9),
        boundary=st.sampled_from(("fill", "wrap", "symm", "nearest", "mirror")),
        stride=st.integers(1, 3),
        dtype=st.sampled_from(("float32", "float64", "uint8")),
    )
    def convolve_into_a_kept_buffer(
        self, height: int, width: int, length: int, boundary: str, stride: int, dtype: str
    ) -> None:
        """The kernel is a box: sums of neighbours, whatever the options."""
        rng = np.random.default_rng(height * width)
        x = rng.integers(0, 50, (height, width)).astype(dtype)
        box = np.ones(length, int)
        result = "int32" if dtype == "uint8" else dtype
        shape = -(-height // stride), -(-width // stride)
        out = self.buffers.setdefault(hash((shape, result)), np.full(shape, 77, result))
        got = numbasep.separable_conv2d(x, (box, box), boundary=boundary, stride=stride, out=out)
        assert got is out
        assert np.array_equal(out, oracle.convolve2d(
            x.astype(np.int64), np.ones((length, length), np.int64), boundary=boundary,
            fillvalue=0, stride=(stride, stride),
        ))  # fmt: skip

    @rule(value=st.integers(-3, 3), channels=st.integers(1, 20), layout=st.booleans())
    def mix_channels(self, value: int, channels: int, layout: bool) -> None:
        x = np.full((1, channels, 6, 7), value, np.float32)
        image = np.moveaxis(x, 1, -1).copy() if layout else x
        y = numbasep.depthwise_separable_conv2d(
            image, np.ones((channels, 1, 3, 3)), np.ones((2, channels)),
            layout="NHWC" if layout else "NCHW",
        )  # fmt: skip
        assert (y == 9 * value * channels).all()

    @rule(argument=st.sampled_from(("mode", "boundary", "stride", "dtype")))
    def refused(self, argument: str) -> None:
        with pytest.raises((TypeError, ValueError), match=argument):
            numbasep.separable_conv2d(
                np.ones((4, 4), np.float32), (np.ones(3), np.ones(3)), **{argument: "no"}
            )

    @rule()
    def interrupted(self) -> None:
        def stop(*arguments: Any) -> None:
            raise KeyboardInterrupt

        lead = pool._lead
        pool._lead = stop
        try:
            with pytest.raises(KeyboardInterrupt):
                self.made[1]()
        finally:
            pool._lead = lead

    def teardown(self) -> None:
        numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)


TestSharedState = SharedState.TestCase
TestSharedState.settings = settings(max_examples=examples("cpu") // 10, stateful_step_count=20)


def forked(work: Callable[[], bool]) -> bool:
    """Return whether a forked child found all well."""
    with warnings.catch_warnings():
        # Python 3.12 warns of what is tested here: fork beside threads.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_forked_children_and_theirs() -> None:
    """In a process of its own: libraries that other tests import refuse to be forked."""
    work = "from tests.test_reliability import fork_and_fork; fork_and_fork()"
    subprocess.run([sys.executable, "-W", "error", "-c", work], check=True, timeout=300)


def fork_and_fork() -> None:
    """After the threads have run, in the child too; while other threads are at work."""
    made = calls(1)
    alone = expected(made)

    def right() -> bool:
        return [bits(call) for call in made] == alone

    assert right()
    assert forked(lambda: right() and forked(right) and right())
    stop = threading.Event()

    def keep_on() -> bool:
        well = True
        while not stop.is_set():
            well = right() and well
        return well

    with ThreadPoolExecutor(2) as threads:
        others = [threads.submit(keep_on) for _ in range(2)]
        children = [forked(right) for _ in range(3)]
        stop.set()
        assert all(children)
        assert all(other.result() for other in others)
    assert right()


def test_spawned_workers() -> None:
    made = calls(2)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as workers:
        assert list(workers.map(spawned, [2, 2])) == [[bits(call) for call in made]] * 2


def spawned(seed: int) -> list[bytes]:
    return [bits(call) for call in calls(seed)]


def test_ctrl_c_during_calls_leaves_the_next_right() -> None:
    """A signal every few milliseconds, in whatever the main thread is at."""
    made = calls(3)
    alone = expected(made)
    assert [bits(call) for call in made] == alone
    random = np.random.default_rng(5)
    interrupted = finished = 0

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGALRM, interrupt)
    # An interrupt in one of these hooks, of which hypothesis has one, is reported and not raised.
    hooks = gc.callbacks[:]
    gc.callbacks.clear()
    try:
        while interrupted < 300 or finished < 300:
            for call, right in zip(made, alone, strict=True):
                out = None
                try:
                    try:
                        signal.setitimer(signal.ITIMER_REAL, 1e-6 + 3e-3 * random.random() ** 3)
                        out = call()
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    interrupted += 1
                else:
                    finished += 1
                    assert np.ascontiguousarray(out).tobytes() == right
    finally:
        signal.signal(signal.SIGALRM, handler)
        gc.callbacks[:] = hooks
    assert [bits(call) for call in made] == alone


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_is_flat_over_fifteen_thousand_calls() -> None:
    # In a process of its own: what other tests left behind moves while these calls run.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as workers:
        # 200 bytes a call; a kept plan, its taps and their keys take some thousand.
        assert workers.submit(growth).result() < 1_000_000


def growth() -> int:
    """Bytes that 5,000 calls leave: twelve in turn, and ones that never come again.

    The least of three times: a thread's scratch memory comes once, a leak comes each time.
    """
    made = calls(4)
    rng = np.random.default_rng(4)

    def new() -> None:
        x = np.ones(rng.integers(1, 60, 2), np.float32)
        numbasep.separable_conv2d(x, (rng.random(3), rng.random(5)), stride=int(rng.integers(1, 4)))

    for k in range(2000):  # fills the caches, of 1,024 entries at most
        made[k % len(made)]()
        new()
    taken = []
    for _ in range(3):
        before = resident()
        for k in range(5_000):
            made[k % len(made)]() if k % 10 else new()
        taken.append(resident() - before)
    return min(taken)


# Zeros that are never written take no memory; only results do, of at most 2 GiB.


def test_separable_past_2_to_the_31_elements() -> None:
    x = np.zeros((2**15 + 3, 2**16 + 5), np.uint8)
    assert x.size > 2**31
    rng = np.random.default_rng(6)
    x[-6:] = rng.integers(0, 256, (6, x.shape[1]))
    columns, rows = np.array([1, 2, 3, 2, 1]) / 9, np.array([1, 1, 2]) / 4
    out = np.full(x.shape, 77, np.uint8)
    numbasep.separable_conv2d(x, (columns, rows), boundary="nearest", out=out)
    far = numbasep.separable_conv2d(x[-12:], (columns, rows), boundary="nearest", dtype="uint8")
    np.testing.assert_array_equal(out[-8:], far[-8:])
    assert far[-8:].any(axis=1).all()
    assert not out[:-8].any()
    # The same taps by hand, at the last row.
    exact = oracle.convolve2d(
        x[-8:].astype(float), np.outer(columns, rows), boundary="nearest", fillvalue=0
    )[-1]
    assert (abs(out[-1] - exact) <= 0.5 + 1e-3).all()  # float32 sums of 15 values below 256


def test_depthwise_past_2_to_the_31_elements() -> None:
    x = np.zeros((1, 8, 2**14 + 3, 2**14), np.int8)
    assert x.size > 2**31
    rng = np.random.default_rng(7)
    x[0, -1, -4:] = rng.integers(-128, 128, (4, x.shape[-1]))
    weight = rng.integers(-128, 128, (8, 1, 3, 3)).astype(np.int8)
    y = numbasep.depthwise_conv2d(x, weight, stride=4, padding=1)
    assert y.shape == (1, 8, 2**12 + 1, 2**12)
    # The last row of results is about image row 2**14; of the padding, the left column.
    first = y.shape[2] * 4 - 4 - 1
    window = np.zeros((3, x.shape[-1] + 2), int)
    window[:, 1:-1] = x[0, -1, first : first + 3].astype(int)
    expected = sum(
        window[i, j : j + x.shape[-1] : 4] * int(weight[-1, 0, i, j])
        for i in range(3) for j in range(3)
    )  # fmt: skip
    np.testing.assert_array_equal(y[0, -1, -1], expected)
    assert expected.any()
    assert not y[0, :-1].any()
    assert not y[0, -1, :-2].any()

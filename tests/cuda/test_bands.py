"""Host images in bands give the bits of the whole, whatever the streams' order and the memory."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from numbasep import explain, separable_conv2d
from numbasep.cuda import bands, launch, transfers
from numbasep.cuda.separable import run_direct
from numbasep.plan import bands as planner
from numbasep.plan.bands import Bands
from numbasep.plan.geometry import Axis, SpatialPlan
from tests.by_hand import axes, correlate
from tests.conftest import examples
from tests.test_spatial import of

Array = NDArray[Any]


class Ordered:
    """Streams whose work is done late, in any order that events allow.

    Work is done when the host waits for it, and some of it at random before: what reads memory that
    another overwrites meanwhile, or writes what is still read, gives wrong results in some order.

    log: what the host asked for, in turn. drop: the name of a wait that is left out.
    """

    def __init__(self, seed: int, drop: str = "") -> None:
        self.random = random.Random(seed)
        self.streams: list[Stream] = []
        self.log: list[tuple[str, str, int]] = []
        self.drop = drop

    def stream(self) -> Stream:
        self.streams.append(Stream(("copy in", "compute", "copy out")[len(self.streams) % 3]))
        return self.streams[-1]

    def event(self) -> Event:
        return Event()

    def record(self, event: Event, stream: Stream) -> None:
        event.asked += 1
        event.name, event.of = stream.name, stream.count
        stream.count += 1
        stream.work.append(("record", event, event.asked))

    def wait(self, stream: Stream, event: Event) -> None:
        if self.drop != f"{stream.name} waits for {event.name}":
            stream.work.append(("wait", event, event.asked))

    def synchronize(self, event: Event) -> None:
        if not event.asked or self.drop == f"host waits for {event.name}":
            return
        self.log.append(("wait", event.name, event.of))
        while event.done < event.asked:
            self.step()
        while self.random.random() < 0.3 and self.step():
            pass

    def finish(self, stream: Stream) -> None:
        while stream.work:
            assert self.step()

    def step(self) -> bool:
        """Do one piece of work that may be done; return whether there was one."""
        ready = [s for s in self.streams if s.work and s.ready]
        if not ready:
            return False
        kind, event, more = self.random.choice(ready).work.popleft()
        if kind == "do":
            more()
        elif kind == "record":
            event.done = more
        return True

    def add(self, stream: Stream, work: Callable[[], None]) -> None:
        self.log.append(("start", stream.name, stream.count))
        stream.work.append(("do", None, work))

    def to_device(self, target: Any, source: Array, stream: Stream) -> None:
        self.add(stream, lambda: copy_in(target, source))

    def to_host(self, target: Array, source: Any, stream: Stream) -> None:
        self.add(stream, lambda: copy_out(target, source))

    def start(self, stream: Stream, work: Callable[[int], None]) -> None:
        self.add(stream, lambda: work(0))

    def memory(self, size: int) -> Any:
        made = memory(size)
        if launch.SIMULATOR:
            made.owner._ary[:] = 0xFF
        return made

    def pinned(self, size: int) -> Array:
        made = pinned(size)
        made[:] = 0xFF
        return made

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Put these streams in the place of the device's, and forget kept ones."""
        kept = "stream event record wait synchronize finish to_device to_host start memory pinned"
        with pytest.MonkeyPatch.context() as patch:
            for name in kept.split():
                patch.setattr(transfers, name, getattr(self, name))
            patch.setattr(bands, "_lines", SimpleNamespace(of={}))
            try:
                yield
            finally:
                assert not any(stream.work for stream in self.streams)


class Stream:
    def __init__(self, name: str) -> None:
        self.name, self.count = name, 0
        self.work: deque[tuple[str, Any, Any]] = deque()

    @property
    def ready(self) -> bool:
        kind, event, ticket = self.work[0]
        return kind != "wait" or event.done >= ticket


class Event:
    """name, of: the stream on which it was last recorded, and that stream's how-many-th band."""

    def __init__(self) -> None:
        self.asked = self.done = 0
        self.name, self.of = "", -1


memory, pinned = transfers.memory, transfers.pinned
copy_in_now, copy_out_now = transfers.to_device, transfers.to_host


def copy_in(target: Any, source: Array) -> None:
    copy_in_now(target, source, 0)


def copy_out(target: Array, source: Any) -> None:
    copy_out_now(target, source, 0)


def elements(view: Any, dtype: str) -> Array:
    return np.ndarray(view.shape, of(dtype), view.owner._ary, 0, view.strides)


def by_hand(kernel: Array) -> Any:
    """A launcher: sums by hand in the simulator, whose kernels take long; else the real one."""

    def work(plan: SpatialPlan, image: Any, out: Any, stream: Any) -> None:
        if launch.SIMULATOR and isinstance(image, launch.View):
            with np.errstate(all="ignore"):
                found = correlate(plan, elements(image, plan.storage), kernel).real
                elements(out, plan.output)[...] = found.astype(of(plan.output))
        else:
            run_direct(plan, image, out, kernel.astype(plan.compute), stream)

    return work


@st.composite
def plans(draw: Any) -> SpatialPlan:
    storage, compute, output = draw(
        st.sampled_from(
            (
                ("float32", "float32", "float32"),
                ("uint8", "float32", "int32"),
                ("float64", "float64", "float32"),
                ("bfloat16", "float32", "bfloat16"),
                ("int16", "int64", "int64"),
            )
        )
    )
    boundary = draw(st.integers(0, 4))
    return SpatialPlan(
        planes=draw(st.integers(1, 3)),
        channels=draw(st.integers(1, 2)),
        y=draw(axes(12, taps=5)),
        x=draw(axes(4, taps=3)),
        rank=0,
        direct=True,
        boundary=boundary,
        fillvalue=2 if boundary == 0 else 0,
        storage=storage,
        compute=compute,
        output=output,
    )


def arrays_of(plan: SpatialPlan, lead: tuple[int, ...], seed: int) -> tuple[Array, Array, Array]:
    """An image with strides of all kinds, a result, and a kernel."""
    rng = np.random.default_rng(seed)
    shape = (*lead, plan.planes, plan.y.size, plan.x.size, plan.channels)
    image = rng.integers(0, 4, [2 * size for size in shape]).astype(of(plan.storage))
    steps = [slice(None, None, int(rng.choice((2, -2)))) for _ in shape]
    result = np.full(
        (*lead, plan.planes, plan.y.out, plan.x.out, plan.channels), 77, of(plan.output)
    )
    kernel = rng.integers(-1, 3, (plan.y.taps, plan.x.taps)).astype(float)
    return image[tuple(steps)], result, kernel


def expected_of(plan: SpatialPlan, image: Array, kernel: Array) -> Array:
    flat = image.reshape(-1, *image.shape[-4:])
    found = np.stack([correlate(plan, one, kernel).real for one in flat])
    return found.reshape(*image.shape[:-3], *found.shape[-3:]).astype(of(plan.output))


@settings(max_examples=examples("cuda"))
@given(
    plan=plans(),
    planes=st.integers(1, 3),
    rows=st.integers(1, 7),
    slots=st.integers(1, 2),
    lead=st.sampled_from(((), (2,))),
    seed=st.integers(0, 2**16),
)
def test_bands_give_the_whole_in_every_order(
    plan: SpatialPlan, planes: int, rows: int, slots: int, lead: tuple[int, ...], seed: int
) -> None:
    image, result, kernel = arrays_of(plan, lead, seed)
    cut = Bands(planes, plan.y.out if planes > 1 else min(rows, plan.y.out), slots)
    with Ordered(seed).installed():
        bands.run(planner.whole(plan), image, result, by_hand(kernel), None, cut)
    np.testing.assert_array_equal(result, expected_of(plan, image, kernel))


PLAN = SpatialPlan(
    1, 1, Axis(12, 12, 3, origin=-1), Axis(3, 3, 1), 0, True, 1, 0, "float32", "float32", "float32"
)
SIX = Bands(1, 2, 2)


def banded(order: Ordered, cut: Bands | None = SIX, launcher: Any = None) -> tuple[Array, Array]:
    """Return a result in six bands, and the expected one."""
    image, result, kernel = arrays_of(PLAN, (), 1)
    with order.installed():
        bands.run(planner.whole(PLAN), image, result, launcher or by_hand(kernel), None, cut)
    return result, expected_of(PLAN, image, kernel)


@pytest.mark.parametrize(
    "drop",
    [
        "host waits for copy in",
        "host waits for copy out",
        "copy in waits for compute",
        "compute waits for copy in",
        "compute waits for copy out",
        "copy out waits for compute",
    ],
)
def test_no_wait_can_be_left_out(drop: str) -> None:
    """Each is needed, and the orders tried above would show that it is missing."""
    assert any(not np.array_equal(*banded(Ordered(seed, drop))) for seed in range(60))


def test_copies_overlap_computing() -> None:
    order = Ordered(0)
    banded(order)
    at = {entry: i for i, entry in enumerate(order.log)}
    for i in range(6):
        # The next image is on its way, and its computing too, before the host waits for this one.
        for stream in ("copy in", "compute") if i < 5 else ():
            assert at["start", stream, i + 1] < at["wait", "copy out", i]
        assert at["start", "copy in", i] < at["start", "compute", i] < at["start", "copy out", i]
    waits = [name for kind, name, _ in order.log if kind == "wait"]
    assert "compute" not in waits


class Limited(Ordered):
    """A device that refuses an allocation: one that is the ``number``-th, or all above a size."""

    def __init__(self, number: int = -1, most: float = float("inf")) -> None:
        super().__init__(0)
        self.number, self.most, self.asked, self.refused = number, most, 0, 0

    def check(self, size: int) -> None:
        self.asked += 1
        if self.asked - 1 == self.number or size > self.most:
            self.refused += 1
            raise RuntimeError("[2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY")

    def memory(self, size: int) -> Any:
        self.check(size)
        return super().memory(size)

    def pinned(self, size: int) -> Array:
        self.check(size)
        return super().pinned(size)

    def start(self, stream: Stream, work: Callable[[int], None]) -> None:
        self.check(0)
        super().start(stream, work)


def test_any_allocation_may_fail() -> None:
    counted = Limited()
    banded(counted)
    assert counted.asked == 8 + 6
    for number in range(counted.asked):
        with pytest.warns(RuntimeWarning, match="2 rows of the result at a time") as caught:
            result, expected = banded(Limited(number))
        assert len(caught) == 1
        np.testing.assert_array_equal(result, expected)


def test_bands_shrink_until_they_fit() -> None:
    one_row = max(planner.sizes(planner.whole(PLAN), 1, 1))
    order = Limited(most=one_row)
    with pytest.warns(RuntimeWarning, match="computed 1 row at a time") as caught:
        result, expected = banded(order, Bands(1, 12))
    assert len(caught) == 1
    assert order.refused == 4
    np.testing.assert_array_equal(result, expected)
    with pytest.raises(MemoryError, match=r"x: an image of 12 x 3 .* 48 bytes .* backend='cpu'"):
        banded(Limited(most=one_row - 1))


def test_the_whole_may_not_fit() -> None:
    image, result, kernel = arrays_of(PLAN, (), 1)

    def work(plan: SpatialPlan, source: Any, target: Any, stream: Any) -> None:
        if plan.y.out == 12:
            raise RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory")
        by_hand(kernel)(plan, source, target, stream)

    with Ordered(0).installed(), pytest.warns(RuntimeWarning, match="12 rows .* computed 6 rows"):
        bands.run(planner.whole(PLAN), image, result, work, None, None)
    np.testing.assert_array_equal(result, expected_of(PLAN, image, kernel))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("number", [0, 3, 5])
def test_a_call_that_fails_leaves_nothing_running(error: type[BaseException], number: int) -> None:
    class Failing(Ordered):
        def start(self, stream: Stream, work: Callable[[int], None]) -> None:
            if stream.count == number:
                raise error("stop")
            super().start(stream, work)

    # ``installed`` looks for what is left to do.
    with pytest.raises(error, match="stop"):
        banded(Failing(0))
    np.testing.assert_array_equal(*banded(Ordered(0)))


def test_pinned_memory_is_kept_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    order, made = Ordered(0), []
    image, result, kernel = arrays_of(PLAN, (), 1)
    with order.installed():
        fresh = transfers.pinned
        monkeypatch.setattr(transfers, "pinned", lambda size: made.append(size) or fresh(size))
        for _ in range(3):
            bands.run(planner.whole(PLAN), image, result, by_hand(kernel), None, SIX)
        assert len(made) == 4
        assert len(order.streams) == 3
        (line,) = bands._lines.of.values()
        assert sum(memory.size for memory in line.pinned) == sum(made)
        monkeypatch.setattr(bands, "KEPT", made[0])
        bands.run(planner.whole(PLAN), image, result, by_hand(kernel), None, SIX)
        assert sum(memory.size for memory in line.pinned) <= made[0]
        monkeypatch.undo()


@contextmanager
def cut_into(size: int) -> Iterator[None]:
    """Let every host array on the device be large, and bands be of a few bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "LARGE", 0)
        patch.setattr(planner, "BAND", size)
        patch.setattr(planner, "LEAST_GAIN", 0)
        yield


def arranged(values: Array, memory: str) -> Array:
    if memory == "sliced":
        larger = np.zeros([2 * size for size in values.shape], values.dtype)
        larger[tuple(slice(None, None, 2) for _ in values.shape)] = values
        return larger[tuple(slice(None, None, 2) for _ in values.shape)]
    if memory == "fortran":
        return np.asfortranarray(values)
    if memory == "swapped":
        return values.astype(values.dtype.newbyteorder())
    return values


@settings(max_examples=max(examples("cuda") // 3, 10))
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 5)),
    dtype=st.sampled_from(("float32", "uint8", "float16", "complex64", "bfloat16")),
    memory=st.sampled_from(("plain", "sliced", "fortran", "swapped")),
    place=st.sampled_from(("none", "plain", "sliced", "overlapping")),
    mode=st.sampled_from(("same", "full", "valid")),
    boundary=st.sampled_from(("fill", "wrap", "symm", "nearest", "mirror")),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    axes=st.sampled_from(((-2, -1), (0, 1))),
    taps=st.integers(1, 4),
    size=st.sampled_from((150, 400)),
    seed=st.integers(0, 99),
)
def test_calls_have_the_bits_of_the_whole(
    shape: tuple[int, ...], dtype: str, memory: str, place: str, mode: str, boundary: str,
    stride: int, dilation: int, axes: tuple[int, int], taps: int, size: int, seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    values = (rng.random(shape) * 9).astype(of(dtype))
    if memory == "swapped" and dtype == "bfloat16":
        memory = "plain"
    x = arranged(values, memory)
    kernel = rng.random(taps), rng.random(3)
    if mode == "valid":
        # One that fits, whatever the axes.
        kernel, dilation = (rng.random(1), rng.random(1)), 1
    fillvalue = 3 if boundary == "fill" and mode != "valid" else 0
    options: dict[str, Any] = {
        "mode": mode, "boundary": boundary, "fillvalue": fillvalue, "stride": stride,
        "dilation": dilation, "axes": axes, "backend": "cuda",
    }  # fmt: skip
    whole = separable_conv2d(x, kernel, **options)
    if place == "overlapping" and (whole.shape, whole.dtype) == (x.shape, x.dtype):
        out = x = x.copy()
    elif place == "none":
        out = None
    else:
        out = arranged(np.zeros_like(whole), "sliced" if place == "sliced" else "plain")
    with cut_into(size):
        found = separable_conv2d(x, kernel, out=out, **options)
    assert out is None or found is out
    assert found.dtype == whole.dtype
    np.testing.assert_array_equal(
        np.ascontiguousarray(found).view(np.uint8), np.ascontiguousarray(whole).view(np.uint8)
    )


def test_bits_of_the_streaming_and_tile_kernels() -> None:
    """Rows that these kernels share between outputs are other ones in a band."""
    rng = np.random.default_rng(0)
    x = rng.random((40, 37), np.float32)
    for kernel in ((rng.random(9), rng.random(5)), rng.random((3, 3))):
        options = {"boundary": "mirror", "backend": "cuda"}
        whole = separable_conv2d(x, kernel, **options)
        with cut_into(4000):
            found = separable_conv2d(x, kernel, **options)
        assert found.tobytes() == whole.tobytes()


def test_explain_names_the_bands() -> None:
    said = explain(separable_conv2d, (20_000, 20_000), ([1.0, 2.0], [1.0]), backend="cuda")
    assert any("bands" in note and "rows" in note for note in said.notes)
    said = explain(separable_conv2d, (100, 1000, 1000), ([1.0], [1.0]), backend="cuda")
    assert any("bands" in note and "planes" in note for note in said.notes)
    said = explain(separable_conv2d, (200, 200), ([1.0], [1.0]), backend="cuda")
    assert not any("bands" in note for note in said.notes)


def test_images_larger_than_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands take no more than what is free, and nothing has to be tried first."""
    x = np.random.default_rng(0).integers(0, 255, (2, 60, 20, 3), np.uint8)
    options: dict[str, Any] = {"boundary": "wrap", "axes": (1, 2), "backend": "cuda"}
    whole = separable_conv2d(x, ([1, 2, 1], [1, 2]), **options)
    free, taken = 6_000, []

    def counted(size: int) -> Any:
        taken.append(size)
        return memory(size)

    monkeypatch.setattr(planner, "LARGE", 0)
    monkeypatch.setattr(transfers, "free", lambda: free)
    monkeypatch.setattr(transfers, "memory", counted)
    found = separable_conv2d(x, ([1, 2, 1], [1, 2]), **options)
    assert found.tobytes() == whole.tobytes()
    assert free // 3 < sum(taken) <= free < x.nbytes + whole.nbytes

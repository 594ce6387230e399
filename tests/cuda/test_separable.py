"""The spatial CUDA kernels against sums by hand: exact on integers, equal bits for every tile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from numbasep.cuda import launch
from numbasep.cuda.separable import run_direct, run_separable
from numbasep.plan.cuda_tiles import (
    SIZES,
    CudaTile,
    general,
    stream,
    stream_shape,
    tile,
    tile_shape,
)
from numbasep.plan.geometry import Axis, SpatialPlan
from tests.by_hand import axes, correlate
from tests.conftest import examples

Array = NDArray[Any]

REAL = [
    ("float32", "float32", "float32"),
    ("float16", "float32", "float16"),
    ("bfloat16", "float32", "bfloat16"),
    ("uint8", "float32", "uint8"),
    ("int16", "float32", "int32"),
    ("float64", "float64", "float64"),
    ("int8", "float64", "float32"),
    ("uint16", "int64", "int32"),
    ("int64", "int64", "int64"),
]
COMPLEX = [
    ("complex64", "complex64", "complex64"),
    ("float32", "complex128", "complex64"),
]


def of(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


class Placed:
    """A view of host memory whose whole memory is copied to the device, and back."""

    def __init__(self, memory: Array, view: Array) -> None:
        self.memory, self.host = memory, view
        if launch.SIMULATOR:
            self.array: Any = view
            return
        self.device = launch.to_device(memory)
        offset = view.ctypes.data - memory.ctypes.data
        self.__cuda_array_interface__ = {
            "data": (self.device.__cuda_array_interface__["data"][0] + offset, False),
            "shape": view.shape,
            "strides": view.strides,
            "typestr": f"|V{view.itemsize}",
            "version": 3,
        }
        self.array = self

    def fetch(self) -> Array:
        if not launch.SIMULATOR:
            launch.to_host(self.device, self.memory)
        return self.memory


def spaced(values: Array, gap: int, poison: Any) -> tuple[Array, Array]:
    """Return memory and a view of it that holds values, with ``gap`` poisoned elements a row."""
    planes, height, width, channels = values.shape
    memory = np.full((planes, height, width * channels + gap), poison).astype(values.dtype)
    view = memory[:, :, gap // 2 : gap // 2 + width * channels].reshape(values.shape)
    assert np.shares_memory(view, memory)
    view[...] = values
    return memory, view


def run(plan: SpatialPlan, image: Array, taps: list[Array], tile: CudaTile | None, gap: int) -> Any:
    """Return the result of a tile; its rows lie apart and nothing between them may change."""
    memory, view = spaced(image, gap, 99)
    result = np.full((plan.planes, plan.y.out, plan.x.out, plan.channels), 77).astype(
        of(plan.output)
    )
    out = Placed(*spaced(result, gap, 77))
    # Rows from the last to the first: a negative stride.
    source = Placed(memory, view[:, ::-1])
    if plan.direct:
        run_direct(plan, source.array, out.array, taps[0], tile=tile)
    else:
        run_separable(plan, source.array, out.array, taps[0], taps[1], tile=tile)
    found = out.fetch()
    inner = plan.x.out * plan.channels
    between = np.delete(found, np.s_[gap // 2 : gap // 2 + inner], axis=2)
    assert np.all(between == between.dtype.type(77))
    return found[:, :, gap // 2 : gap // 2 + inner].reshape(result.shape)


@st.composite
def plans(draw: Any, kinds: list[tuple[str, str, str]], **limits: int) -> SpatialPlan:
    y, x = draw(axes(5, **limits)), draw(axes(10, **limits))
    boundary = draw(st.integers(0, 4))
    return SpatialPlan(
        planes=draw(st.sampled_from((1, 1, 2))),
        channels=draw(st.sampled_from((1, 1, 1, 2, 3))),
        y=y,
        x=x,
        rank=draw(st.sampled_from((1, 1, 1, 0, 2, 3))),
        direct=False,
        boundary=boundary,
        fillvalue=2 if boundary == 0 else 0,
        **dict(zip(("storage", "compute", "output"), draw(st.sampled_from(kinds)), strict=True)),
    )


def check(plan: SpatialPlan, tile: CudaTile, others: list[CudaTile | None], seed: int) -> None:
    """Compare a tile with sums by hand on integers, and with other tiles on any numbers."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 4, (plan.planes, plan.y.size, plan.x.size, plan.channels))
    image = image.astype(of(plan.storage))
    sizes = [(plan.y.taps, plan.x.taps)]
    if not plan.direct:
        sizes = [(plan.rank, plan.y.taps), (plan.rank, plan.x.taps)]
    taps = [rng.integers(-1, 3, size).astype(plan.compute) for size in sizes]
    kernel = taps[0] if plan.direct else taps[0].T @ taps[1]
    expected = correlate(plan, image[:, ::-1], kernel)
    expected = expected if plan.output in ("complex64", "complex128") else expected.real
    if plan.output == "uint8":
        expected = np.clip(expected, 0, 255)
    gap = int(rng.integers(0, 3)) * 8 // of(plan.storage).itemsize
    assert np.array_equal(run(plan, image, taps, tile, gap), expected.astype(of(plan.output)))
    if seed % 2 and plan.compute != "int64":
        # Inexact sums: only the same order gives the same bits.
        if plan.storage.startswith(("float", "complex", "bfloat")):
            image = (image * 0.3).astype(image.dtype)
        taps = [tap + np.array(1 / 7, plan.compute) for tap in taps]
        found = run(plan, image, taps, tile, gap).tobytes()
        for other in others:
            assert run(plan, image, taps, other, 0).tobytes() == found


@settings(max_examples=examples("cuda"))
@given(data=st.data(), plan=plans(REAL + COMPLEX), seed=st.integers(0, 99))
def test_general_equals_sums_by_hand_for_every_tile(
    data: Any, plan: SpatialPlan, seed: int
) -> None:
    width, height, channels = (data.draw(st.integers(1, most)) for most in (7, 4, 2))
    tile = general(plan, width, height, channels, data.draw(st.sampled_from((16, 100, 1000))))
    check(plan, tile, [None], seed)


@settings(max_examples=examples("cuda"))
@given(plan=plans(REAL + COMPLEX), threads=st.integers(1, 40), seed=st.integers(0, 99))
def test_direct_equals_sums_by_hand_for_every_tile(
    plan: SpatialPlan, threads: int, seed: int
) -> None:
    plan = replace(plan, rank=0, direct=True)
    check(plan, CudaTile("direct", threads, 1, threads), [None], seed)


@settings(max_examples=examples("cuda"))
@given(
    data=st.data(),
    plan=plans(REAL, stride=1, dilation=2, taps=7),
    seed=st.integers(0, 99),
)
def test_stream_equals_sums_by_hand_for_every_tile(data: Any, plan: SpatialPlan, seed: int) -> None:
    plan = replace(plan, rank=max(plan.rank, 1))
    vector = 16 // SIZES[plan.compute]
    columns = data.draw(st.sampled_from([c for c in (1, 2, 4) if c <= vector]))
    steps = data.draw(st.sampled_from([s for s in (1, 2, 4) if s >= vector // columns]))
    # Narrow strips: one vector wide, and a few more.
    least = vector // columns * stream_shape(plan, columns, steps).loads
    threads = 4 * (-(-least // 4) + data.draw(st.integers(0, 1)))
    shape = stream_shape(plan, columns, steps, threads)
    tile = stream(plan, shape, data.draw(st.integers(1, 6)))
    check(plan, tile, [data.draw(st.sampled_from((None, general(plan))))], seed)


@settings(max_examples=examples("cuda"))
@given(
    data=st.data(),
    plan=plans(REAL, stride=1, dilation=2, taps=7),
    seed=st.integers(0, 99),
)
def test_tile_equals_sums_by_hand_for_every_tile(data: Any, plan: SpatialPlan, seed: int) -> None:
    plan = replace(plan, rank=max(plan.rank, 1))
    run, threads = data.draw(st.sampled_from(((2, 8), (2, 16), (4, 16))))
    height = run * data.draw(st.integers(1, 2))
    unit = run * plan.x.dilation * plan.channels
    wide = data.draw(st.integers(1, 2)) * unit + (plan.x.taps - 1) * plan.x.dilation * plan.channels
    found = tile(plan, tile_shape(plan, wide | 1, run, threads), height)
    if found is None:  # More outputs than threads: one run a thread.
        found = tile(plan, tile_shape(plan, wide | 1, run, 32), run)
    assert found is not None
    check(plan, found, [data.draw(st.sampled_from((None, general(plan))))], seed)


@pytest.mark.parametrize("taps", range(14, 50, 9))
@pytest.mark.parametrize("boundary", range(5))
def test_tile_with_long_taps(taps: int, boundary: int) -> None:
    y, x = Axis(3, 2, taps, origin=-taps // 2), Axis(4, 3, 63 - taps, origin=-20)
    kinds = REAL[taps % len(REAL)]
    plan = SpatialPlan(1, 1, y, x, 2, False, boundary, 2 * (boundary == 0), *kinds)
    found = tile(plan, tile_shape(plan, 2 * taps + 70 | 1, 4, 8), 4)
    assert found is not None
    check(plan, found, [general(plan)], taps)

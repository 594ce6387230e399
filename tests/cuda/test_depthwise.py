"""The CUDA depthwise kernels with tiles so small that every case makes many blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from numbasep.cuda import launch
from numbasep.cuda.depthwise import run_depthwise
from numbasep.plan import channelwise as planner
from numbasep.plan import cuda_depthwise as tiles
from numbasep.plan.channelwise import DepthwisePlan
from tests.conftest import examples

Array = NDArray[Any]

PAD = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@dataclass
class Case:
    """One launch in NCHW terms: integers, so that every sum is exact."""

    x: Array
    columns: Array
    rows: Array
    bias: Array
    plan: DepthwisePlan
    sides: tuple[int, int, int, int]
    mode: str

    @property
    def weight(self) -> Array:
        if self.plan.rank:
            return np.einsum("fri,frj->fij", self.columns, self.rows)
        return self.rows

    def reference(self) -> Array:
        top, bottom, left, right = self.sides
        padded = np.pad(
            self.x.astype(np.int64), ((0, 0), (0, 0), (top, bottom), (left, right)), PAD[self.mode]
        )  # type: ignore[call-overload]
        y, x, m = self.plan.y, self.plan.x, self.plan.multiplier
        total = np.zeros((self.plan.batch, self.plan.filters, y.out, x.out), np.int64)
        padded = np.repeat(padded, m, axis=1)
        weight = self.weight.astype(np.int64)
        for ky in range(y.taps):
            for kx in range(x.taps):
                part = padded[:, :, ky * y.dilation :, kx * x.dilation :]
                part = part[:, :, : y.out * y.stride : y.stride, : x.out * x.stride : x.stride]
                total += weight[:, ky, kx, None, None] * part[:, :, : y.out, : x.out]
        return total + self.bias[:, None, None]

    def run(self, tile: Any = None) -> Array:
        """The result in NCHW; what is not written stays poison."""
        plan = self.plan
        compute = plan.compute
        image = self.x if plan.layout == "NCHW" else np.moveaxis(self.x, 1, -1)
        shape = (plan.batch, plan.filters, plan.y.out, plan.x.out)
        if plan.layout == "NHWC":
            shape = shape[0], *shape[2:], shape[1]
        poison = np.full(shape, 77 if compute == "int32" else np.nan).astype(plan.output)
        device, place = launch.to_device(np.ascontiguousarray(image)), launch.to_device(poison)
        columns, rows = self.columns.astype(compute), self.rows.astype(compute)
        weight = (columns, rows) if plan.rank else rows
        run_depthwise(plan, device, weight, self.bias.astype(compute), place, tile=tile)
        result = np.empty_like(poison)
        launch.to_host(place, result)
        return result if plan.layout == "NCHW" else np.moveaxis(result, -1, 1)


@st.composite
def cases(
    draw: Callable[..., Any], *, low_rank: bool = False, most: int = 5, layout: str = ""
) -> Case:
    layout = layout or draw(st.sampled_from(planner.LAYOUTS))
    dtype = draw(st.sampled_from(("float32", "float32", "float16", "float64", "int8")))
    taps = draw(st.integers(1, most)), draw(st.integers(1, most))
    dilation = draw(st.sampled_from(((1, 1), (1, 1), (2, 2), (1, 2), (3, 1))))
    stride = draw(st.sampled_from(((1, 1), (1, 1), (2, 2), (1, 2), (3, 1), (1, 9))))
    mode = draw(st.sampled_from(tuple(PAD)))
    sides = tuple(draw(st.integers(0, 3)) for _ in range(4))
    size = [
        draw(st.integers(max(1, (k - 1) * d + 1 - a - b), max(13, (k - 1) * d + 1)))
        for k, d, a, b in zip(taps, dilation, sides[::2], sides[1::2], strict=True)
    ]
    channels, multiplier = draw(st.integers(1, 5)), draw(st.sampled_from((1, 1, 2)))
    batch, rank = draw(st.integers(1, 2)), draw(st.integers(1, 3)) if low_rank else 0
    filters = channels * multiplier
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (batch, channels, *size)
    seen = shape if layout == "NCHW" else (batch, *size, channels)
    plan = planner.depthwise(
        seen, dtype, filters, taps, rank, stride=stride, padding=sides, dilation=dilation,
        padding_mode=mode, layout=layout,
    )  # fmt: skip
    form = (filters, max(rank, 1))
    return Case(
        rng.integers(-3, 4, shape).astype(dtype),
        rng.integers(-2, 3, (*form, taps[0])),
        rng.integers(-2, 3, (*form, taps[1]) if rank else (filters, *taps)),
        rng.integers(-2, 3, filters),
        plan,
        sides,
        mode,
    )


@st.composite
def blocks(draw: Callable[..., Any]) -> dict[str, int]:
    """Limits of a tile of the tile kernel."""
    return {
        "width": draw(st.sampled_from((4, 8, 16))),
        "height": draw(st.sampled_from((1, 2, 4, 8))),
        "channels": draw(st.integers(1, 4)),
        "threads": draw(st.sampled_from((1, 6, 32, 64))),
        "budget": draw(st.sampled_from((4, 100, 400, 4000, 40000))),
    }


@settings(max_examples=examples("cuda"))
@given(case=cases(), limits=blocks())
def test_tiles_are_exact(case: Case, limits: dict[str, int]) -> None:
    assert np.array_equal(case.run(tiles.tile(case.plan, **limits)), case.reference())


@settings(max_examples=examples("cuda"))
@given(case=cases(low_rank=True), limits=blocks())
def test_low_rank_is_exact(case: Case, limits: dict[str, int]) -> None:
    assert np.array_equal(case.run(tiles.tile(case.plan, **limits)), case.reference())


@settings(max_examples=examples("cuda"))
@given(
    case=cases(layout="NCHW", most=7),
    height=st.integers(1, 5),
    threads=st.sampled_from((32, 64)),
    vector=st.sampled_from((0, 1, 2, 4, 8)),
)
def test_rows_are_exact(case: Case, height: int, threads: int, vector: int) -> None:
    tile = tiles.rows(case.plan, height=height, threads=threads, vector=vector)
    if tile is None:
        tile = tiles.choose(case.plan, (16, 16))
    assert np.array_equal(case.run(tile), case.reference())


@settings(max_examples=examples("cuda"))
@given(
    case=cases(layout="NHWC", most=7),
    height=st.integers(1, 5),
    lanes=st.integers(1, 3),
    threads=st.sampled_from((32, 64)),
    side=st.sampled_from((1, 2)),
)
def test_pixels_are_exact(case: Case, height: int, lanes: int, threads: int, side: int) -> None:
    tile = tiles.pixels(case.plan, height=height, lanes=lanes, threads=threads, side=side)
    if tile is None:
        tile = tiles.choose(case.plan, (16, 16))
    assert np.array_equal(case.run(tile), case.reference())

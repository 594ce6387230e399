"""The CUDA depthwise kernels with tiles so small that every case makes many blocks."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
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
    sides = tuple(draw(st.integers(0, 2)) for _ in range(4))
    size = [
        draw(st.integers(max(1, (k - 1) * d + 1 - a - b), max(7, (k - 1) * d + 1)))
        for k, d, a, b in zip(taps, dilation, sides[::2], sides[1::2], strict=True)
    ]
    channels, multiplier = draw(st.integers(1, 3)), draw(st.sampled_from((1, 1, 2)))
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
    case=cases(layout="NCHW", most=6),
    height=st.integers(1, 4),
    threads=st.sampled_from((32, 64)),
    vector=st.sampled_from((0, 1, 2, 4, 8)),
)
def test_rows_are_exact(case: Case, height: int, threads: int, vector: int) -> None:
    tile = tiles.rows(case.plan, height=height, threads=threads, vector=vector)
    assume(tile is not None)
    assert np.array_equal(case.run(tile), case.reference())


@settings(max_examples=examples("cuda"))
@given(
    case=cases(layout="NHWC", most=6),
    height=st.integers(1, 4),
    lanes=st.integers(1, 3),
    threads=st.sampled_from((32, 64)),
    side=st.sampled_from((1, 2)),
    vector=st.sampled_from((0, 1, 2, 4, 8)),
)
def test_pixels_are_exact(
    case: Case, height: int, lanes: int, threads: int, side: int, vector: int
) -> None:
    tile = tiles.pixels(
        case.plan, height=height, lanes=lanes, threads=threads, side=side, vector=vector
    )
    assume(tile is not None)
    assert np.array_equal(case.run(tile), case.reference())


def rounded(plan: DepthwisePlan, tile: Any) -> bytes:
    """The result of a plan on noise, NCHW."""
    rng = np.random.default_rng(1)
    kind = ml_dtypes.bfloat16 if plan.storage == "bfloat16" else plan.storage
    x = rng.standard_normal((plan.batch, plan.channels, plan.y.size, plan.x.size)).astype(kind)
    shape = (plan.batch, plan.filters, plan.y.out, plan.x.out)
    weight: Any = rng.standard_normal((plan.filters, plan.y.taps, plan.x.taps)).astype(plan.compute)
    if plan.rank:
        weight = (
            rng.standard_normal((plan.filters, plan.rank, plan.y.taps)).astype(plan.compute),
            rng.standard_normal((plan.filters, plan.rank, plan.x.taps)).astype(plan.compute),
        )
    bias = rng.standard_normal(plan.filters).astype(plan.compute)
    if plan.layout == "NHWC":
        x, shape = np.ascontiguousarray(np.moveaxis(x, 1, -1)), (shape[0], *shape[2:], shape[1])
    place = launch.empty(shape, kind)
    run_depthwise(plan, launch.to_device(x), weight, bias, place, tile=tile)
    result = np.empty(shape, kind)
    launch.to_host(place, result)
    return (result if plan.layout == "NCHW" else np.moveaxis(result, -1, 1)).tobytes()


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("taps", "rank", "options"),
    [
        ((3, 3), 0, {"padding": 1, "activation": "silu"}),
        ((5, 4), 0, {"padding": 3, "stride": 2, "padding_mode": "circular"}),
        ((3, 2), 0, {"padding": 2, "dilation": 2, "activation": "gelu"}),
        ((4, 3), 2, {"padding": 1, "activation": "hardswish"}),
    ],
)
def test_bits_do_not_depend_on_tiles_nor_layouts(
    storage: str, taps: tuple[int, int], rank: int, options: dict[str, Any]
) -> None:
    n, c, h, w = 2, 3, 9, 8
    results = set()
    for layout in planner.LAYOUTS:
        shape = (n, c, h, w) if layout == "NCHW" else (n, h, w, c)
        plan = planner.depthwise(shape, storage, c, taps, rank, layout=layout, **options)
        some = [
            tiles.tile(plan, width=4, height=1, channels=1),
            tiles.tile(plan, width=8, height=8, channels=2, threads=32, budget=300),
            tiles.rows(plan, height=2, threads=32, vector=1),
            tiles.rows(plan, height=5, threads=32, vector=4),
            tiles.rows(plan, (4, 4), threads=64),
            tiles.pixels(plan, height=2, threads=32, lanes=1, side=1),
            tiles.pixels(plan, (2, 8), height=3, threads=32, lanes=2, side=2),
            tiles.pixels(plan, height=4, threads=32, lanes=1, side=2, vector=2),
        ]
        results |= {rounded(plan, tile) for tile in (None, *filter(None, some))}
        assert rank or len([tile for tile in some if tile]) > 3
    assert len(results) == 1


def layers() -> list[dict[str, Any]]:
    with (Path(__file__).parents[1] / "layers.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("row", layers(), ids=lambda row: row["name"])
@pytest.mark.parametrize("layout", planner.LAYOUTS)
def test_layers_of_known_networks(row: dict[str, Any], layout: str) -> None:
    taps, stride, pad, dilation = (int(row[key]) for key in ("k", "stride", "pad", "dilation"))
    # Rows as odd or even as the layer's.
    size = min(int(row["W"]), 8 - int(row["W"]) % 2 if taps < 9 else 6)
    channels = 3
    shape = (1, channels, size, size) if layout == "NCHW" else (1, size, size, channels)
    plan = planner.depthwise(
        shape, "float32", channels, (taps, taps), 0, stride=stride, padding=pad,
        dilation=dilation, layout=layout,
    )  # fmt: skip
    rng = np.random.default_rng(2)
    case = Case(
        rng.integers(-3, 4, (1, channels, size, size)).astype(np.float32),
        np.zeros(1, np.int64),
        rng.integers(-2, 3, (channels, taps, taps)),
        rng.integers(-2, 3, channels),
        plan,
        (pad,) * 4,
        "zeros",
    )
    assert np.array_equal(case.run(), case.reference())


def test_large_kernels_share_rows_among_outputs() -> None:
    plan = planner.depthwise((1, 2, 14, 11), "float32", 2, (11, 13), 0, padding=(5, 6))
    rng = np.random.default_rng(3)
    case = Case(
        rng.integers(-3, 4, (1, 2, 14, 11)).astype(np.float32),
        np.zeros(1, np.int64),
        rng.integers(-2, 3, (2, 11, 13)),
        rng.integers(-2, 3, 2),
        plan,
        (5, 5, 6, 6),
        "zeros",
    )
    for budget in (1200, 2000, 20000):
        tile = tiles.tile(plan, height=8, budget=budget)
        assert tile.rows == 4
        assert np.array_equal(case.run(tile), case.reference())


def test_axes_beyond_32_bits() -> None:
    options: dict[str, Any] = {"padding": 1}
    for layout in planner.LAYOUTS:
        # A row of more than 2**31 bytes: offsets are 64-bit in the tile kernel only.
        shape = (1, 2, 3, 2**29) if layout == "NCHW" else (1, 3, 2**29, 2)
        plan = planner.depthwise(shape, "float32", 2, (3, 3), 0, layout=layout, **options)
        assert isinstance(tiles.choose(plan, (16, 16)), tiles.Tile)
        shape = (1, 1, 3, 2**31) if layout == "NCHW" else (1, 3, 2**31, 1)
        plan = planner.depthwise(shape, "int8", 1, (3, 3), 0, layout=layout, **options)
        with pytest.raises(ValueError, match="split x"):
            tiles.choose(plan, (16, 16))

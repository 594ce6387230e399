"""The fused CUDA kernel itself, with tiles so small that small arrays take many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import signal

from numbasep.cpu import fused as cpu
from numbasep.cuda import launch
from numbasep.cuda.fused import run_fused
from numbasep.plan import channelwise as planner
from numbasep.plan.channelwise import LAYOUTS, PADDING_MODES, FusedPlan
from numbasep.plan.cuda_fused import (
    HALVES,
    SHARED,
    FusedShape,
    FusedTile,
    arrange,
    choose,
    multiply_of,
)
from tests import oracle
from tests.conftest import examples

Array = NDArray[Any]

PAD = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
# Storage, the dtype of the pointwise weights, tf32.
KINDS = (
    ("float32", "float32", False), ("float64", "float64", False), ("float16", "float32", False),
    ("float32", "float32", True), ("float16", "float16", False), ("bfloat16", "bfloat16", False),
)  # fmt: skip


def of(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def wide(values: Array) -> Array:
    return values.astype(np.float64)


@dataclass
class Case:
    """One call: its plan, and arrays in the plan's layout, some elements after aligned places."""

    plan: FusedPlan
    options: dict[str, Any]
    image: Array
    taps: Array
    matrix: Array
    biases: tuple[Array, Array]
    offsets: tuple[int, int]

    def tile(self, **more: Any) -> FusedTile:
        """A tile of one warp, but for ``more``."""
        first, second = self.plan.depthwise, self.plan.pointwise
        multiply = multiply_of(first, second)
        few = more.pop("few", True)
        window = (first.y.taps, first.x.taps, first.y.stride, first.y.dilation, first.x.dilation)
        shape: dict[str, Any] = {
            "multiply": multiply, "planar": first.layout == "NCHW", "warps_m": 1, "warps_n": 1,
            "groups_m": 1, "groups_n": 1, "words": 2 if multiply == "fma" else 8, "rows": 2,
            "unit": 1 if planner.ITEMSIZE[first.storage] >= 4 else 0,
            "multiplier": first.multiplier,
        }  # fmt: skip
        if few:
            names = ("taps_y", "taps_x", "stride_y", "dilation_y", "dilation_x")
            shape.update(zip(names, window, strict=True))
        whole: dict[str, Any] = {"width": 4, "height": 4, "resident": False, "grid": 2}
        for key, value in more.items():
            (whole if key in whole else shape)[key] = value
        return FusedTile(FusedShape(**shape), **whole)

    def run(self, tile: FusedTile) -> Array:
        """Run into poisoned memory with margins that stay."""
        second = self.plan.pointwise
        before, ahead = self.offsets
        flat = np.zeros(before + self.image.size, self.image.dtype)
        flat[before:] = self.image.reshape(-1)
        shape = (second.batch, second.outputs, second.pixels)
        if second.layout == "NHWC":
            shape = shape[0], shape[2], shape[1]
        poison = np.full(ahead + int(np.prod(shape)) + 8, 99, of(second.output))
        image, out = launch.to_device(flat), launch.to_device(poison)
        run_fused(
            self.plan,
            image[before:],
            self.taps,
            self.biases[0],
            self.matrix,
            self.biases[1],
            out[ahead : len(poison) - 8],
            tile=tile,
        )
        launch.to_host(out, poison)
        assert (poison[:ahead] == 99).all()
        assert (poison[-8:] == 99).all()
        return poison[ahead:-8].reshape(shape)

    def on_cpu(self) -> Array:
        """The CPU's result, whose bits those of float32 are without transcendental activations."""
        second = self.plan.pointwise
        shape = (second.batch, second.outputs, second.pixels)
        out = np.empty(
            shape if second.layout == "NCHW" else (shape[0], *shape[:0:-1]), of(second.output)
        )
        cpu.run_fused(
            self.plan, self.image, self.taps, self.biases[0], self.matrix, self.biases[1], out
        )
        return out

    def middle(self, *, absolute: bool = False) -> Array:
        """The depthwise sums with bias in float64, (batch, filters, pixels)."""
        first = self.plan.depthwise
        image = self.image if first.layout == "NCHW" else np.moveaxis(self.image, -1, 1)
        image, taps, bias = wide(image), wide(self.taps), wide(self.biases[0])
        if absolute:
            image, taps, bias = abs(image), abs(taps), abs(bias)
        top, bottom, left, right = self.options["padding"]
        mode: Any = PAD[self.options["padding_mode"]]
        padded = np.pad(image, ((0, 0), (0, 0), (top, bottom), (left, right)), mode=mode)
        kernels = [oracle.dilate(one, self.options["dilation"]) for one in taps]
        sy, sx = self.options["stride"]
        sums = [
            [
                signal.correlate2d(one[f // first.multiplier], kernel, "valid")[::sy, ::sx]
                for f, kernel in enumerate(kernels)
            ]
            for one in padded
        ]
        return (np.array(sums) + bias[:, None, None]).reshape(first.batch, first.filters, -1)

    def mixed(self, middle: Array, *, absolute: bool = False) -> Array:
        """The pointwise sums of an intermediate with bias, in the plan's layout."""
        matrix, bias = wide(self.matrix), wide(self.biases[1])
        if absolute:
            matrix, bias = abs(matrix), abs(bias)
        result: Array = np.einsum("oc,ncp->nop", matrix, middle) + bias[:, None]
        return result if self.plan.pointwise.layout == "NCHW" else result.transpose(0, 2, 1)


@st.composite
def cases(draw: Callable[..., Any], *, whole: bool) -> Case:
    storage, weights, tf32 = draw(st.sampled_from(KINDS))
    layout = draw(st.sampled_from(LAYOUTS))
    kh, kw = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    dilation = draw(st.sampled_from(((1, 1), (1, 1), (2, 1), (1, 2))))
    stride = draw(st.sampled_from(((1, 1), (1, 1), (2, 2), (1, 2), (2, 1))))
    sides = tuple(draw(st.integers(0, 2)) for _ in range(4))
    least = [
        max(1, (k - 1) * d + 1 - sides[2 * axis] - sides[2 * axis + 1])
        for axis, (k, d) in enumerate(zip((kh, kw), dilation, strict=True))
    ]
    h, w = (draw(st.integers(low, max(low, 6))) for low in least)
    if draw(st.booleans()):
        w += -w % 4
    channels = draw(st.sampled_from((1, 2, 3, 5) if not tf32 else (1, 3, 9)))
    multiplier = draw(st.sampled_from((1, 1, 1, 2)))
    outputs = draw(st.sampled_from((1, 4, 8, 13, 17, 33)))
    batch = draw(st.sampled_from((1, 1, 2)))
    filters = channels * multiplier
    options: dict[str, Any] = {
        "stride": stride,
        "padding": sides,
        "dilation": dilation,
        "padding_mode": draw(st.sampled_from(tuple(PADDING_MODES))),
    }
    shape = (batch, channels, h, w) if layout == "NCHW" else (batch, h, w, channels)
    activation = draw(st.sampled_from((None, "relu6")))
    first = planner.depthwise(
        shape, storage, filters, (kh, kw), 0, layout=layout, activation=activation, **options
    )
    size = (filters, first.y.out, first.x.out)
    size = size if layout == "NCHW" else (*size[1:], filters)
    second = planner.pointwise(
        (batch, *size), storage, (outputs, filters), weights, layout=layout,
        activation=activation, precision="tf32" if tf32 else None,
    )  # fmt: skip
    plan = planner.separable(first, second, True, "cuda")
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def values(size: tuple[int, ...], kept: str, dtype: str) -> Array:
        drawn = rng.integers(-2, 3, size) if whole else rng.standard_normal(size)
        return drawn.astype(of(kept)).astype(of(dtype))

    compute = first.compute
    offset = draw(st.sampled_from((0, 0, 1)))
    return Case(
        plan,
        options,
        values(shape, storage, storage),
        values((filters, kh, kw), compute, compute),
        values((outputs, filters), weights, compute),
        (values((filters,), compute, compute), values((outputs,), compute, compute)),
        (offset, draw(st.sampled_from((0, 0, 1)))),
    )


@st.composite
def tiles(draw: Callable[..., Any], case: Case) -> FusedTile:
    """A small tile of any form."""
    first = case.plan.depthwise
    planar = first.layout == "NCHW"
    fma = multiply_of(first, case.plan.pointwise) == "fma"
    # Those of one warp have at least so many pixels.
    width, height, rows = draw(
        st.sampled_from(((4, 4, 2), (8, 2, 1), (4, 2, 2), (8, 2, 2), (4, 4, 4)))
    )
    more: dict[str, Any] = {"width": width, "height": height, "rows": rows}
    if draw(st.integers(0, 3)) == 0:
        side = draw(st.sampled_from(("warps_m", "warps_n", "groups_m", "groups_n")))
        more[side] = 2
    if fma:
        more["words"] = draw(st.sampled_from((1, 2, 4)))
    size = planner.ITEMSIZE[first.storage]
    units = [1] if size >= 4 else [0]
    if planar:
        units += [
            unit
            for unit in (2, 4)
            if unit * size <= 16 and first.x.size % unit == 0 and width * first.x.stride % unit == 0
        ]
    more["unit"] = draw(st.sampled_from(units))
    more["resident"] = draw(st.booleans())
    more["grid"] = draw(st.integers(1, 3))
    more["few"] = draw(st.booleans())
    return case.tile(**more)


def exact(case: Case, result: Array) -> None:
    """Integers: the intermediate, at most 9 * 4 + 2, is exact in every operand's dtype."""
    middle = case.middle()
    activated = case.plan.depthwise.activation == "relu6"
    reference = case.mixed(np.clip(middle, 0, 6) if activated else middle)
    if activated:
        reference = np.clip(reference, 0, 6)
    # Rounded once, where it is not exact in 16 bits.
    expected = reference.astype(np.float32).astype(of(case.plan.pointwise.output))
    assert np.array_equal(wide(result), wide(expected))


def same_bits(case: Case, result: Array, other: FusedTile) -> None:
    """Those of the CPU; of another tile where the simulator's twin rounds twice, in float64."""
    single = case.plan.depthwise.compute == "float32"
    expected = case.on_cpu() if single else case.run(other)
    assert result.tobytes() == expected.tobytes()


def within_bound(case: Case, result: Array, multiply: str) -> None:
    """One rounding of the intermediate, and for tf32 of the weights, into the operands' dtype."""
    plan = case.plan
    u = oracle.ROUNDOFF["float16" if multiply == "tf32" else multiply]
    smallest = {"tf32": 2.0**-137, "float16": 2.0**-25, "bfloat16": 2.0**-134}[multiply]
    middle, sums = case.middle(), case.middle(absolute=True)
    taps = plan.depthwise.y.taps * plan.depthwise.x.taps
    error = oracle.gamma(taps + 1, "float32") * sums
    error = error + u * (abs(middle) + error) + smallest
    if plan.depthwise.activation == "relu6":
        middle = np.clip(middle, 0, 6)
    reference = case.mixed(middle)
    reach = case.mixed(abs(middle) + error, absolute=True)
    bias = case.mixed(np.zeros_like(middle), absolute=True)
    # Hardware adds the products of a fragment cut, not rounded: three units for each channel of
    # whole fragments (see test_pointwise).
    n = 3 * (plan.pointwise.channels + -plan.pointwise.channels % 32) + 1
    allowed = oracle.gamma(n, "float32") * reach + (case.mixed(error, absolute=True) - bias)
    if multiply == "tf32":
        allowed = allowed + u * reach
    if plan.pointwise.activation == "relu6":
        reference = np.clip(reference, 0, 6)
    output = plan.pointwise.output
    if output in HALVES:
        allowed = allowed + oracle.ROUNDOFF[output] * (abs(reference) + allowed) + smallest
    assert (abs(wide(result) - reference) <= allowed).all()


@settings(max_examples=examples("cuda"))
@given(data=st.data(), whole=st.booleans())
def test_any_tile(data: st.DataObject, whole: bool) -> None:
    case = data.draw(cases(whole=whole))
    result = case.run(data.draw(tiles(case)))
    multiply = multiply_of(case.plan.depthwise, case.plan.pointwise)
    if whole:
        exact(case, result)
    elif multiply == "fma":
        same_bits(case, result, data.draw(tiles(case)))
    else:
        within_bound(case, result, multiply)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(7, 7), (14, 14), (56, 56), (512, 512)])
@pytest.mark.parametrize(("storage", "k"), [("float32", 3), ("float16", 5), ("float64", 31)])
def test_chosen_tiles_fit(layout: str, size: tuple[int, int], storage: str, k: int) -> None:
    h, w = size
    for channels, outputs, stride in ((32, 64, 1), (144, 24, 2), (960, 320, 1)):
        shape = (4, channels, h, w) if layout == "NCHW" else (4, h, w, channels)
        first = planner.depthwise(
            shape, storage, channels, (k, k), 0, padding=k // 2, stride=stride, layout=layout
        )
        middle = (channels, first.y.out, first.x.out)
        middle = middle if layout == "NCHW" else (*middle[1:], channels)
        second = planner.pointwise(
            (4, *middle), storage, (outputs, channels), storage, layout=layout
        )
        plan = planner.separable(first, second, None, "cuda")
        assert plan.why
        if plan.fused:
            tile = choose(plan.depthwise, plan.pointwise)
            assert tile is not None
            assert arrange(plan.depthwise, plan.pointwise, tile).shared <= SHARED
            assert plan.tile == tile.width * tile.height
        narrow = storage in HALVES and plan.fused
        assert plan.pointwise.storage == (storage if narrow or not plan.fused else first.compute)


def test_what_is_not_fused_says_why() -> None:
    shape = (1, 8, 64, 64)
    for rank, k, dilation, reason in ((2, 3, 1, "low-rank"), (0, 31, 40, "no room")):
        first = planner.depthwise(
            shape, "float32", 8, (k, k), rank, padding=k * dilation, dilation=dilation
        )
        second = planner.pointwise((1, 8, first.y.out, first.x.out), "float32", (8, 8), "float32")
        plan = planner.separable(first, second, True, "cuda")
        assert not plan.fused
        assert plan.depthwise == first
        assert "asked for, but" in plan.why
        assert reason in plan.why


def test_a_tile_that_its_kernel_does_not_cover_is_refused() -> None:
    first = planner.depthwise((1, 2, 8, 8), "float32", 2, (3, 3), 0, padding=1)
    second = planner.pointwise((1, 2, 8, 8), "float32", (4, 2), "float32")
    plan = planner.separable(first, second, True, "cuda")
    zeros = np.zeros(4, np.float32)
    case = Case(
        plan, {}, np.zeros((1, 2, 8, 8), np.float32), np.zeros((2, 3, 3), np.float32),
        np.zeros((4, 2), np.float32), (zeros[:2], zeros), (0, 0),
    )  # fmt: skip
    with pytest.raises(ValueError, match="does not cover"):
        case.run(replace(case.tile(), height=16))

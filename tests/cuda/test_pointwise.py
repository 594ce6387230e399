"""The pointwise CUDA kernels themselves, with tiles so small that small arrays take many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from numbasep.cpu import pointwise as cpu
from numbasep.cuda import launch
from numbasep.cuda.launch import VERSION, Kernel, cuda, types
from numbasep.cuda.pieces import locator
from numbasep.cuda.pointwise import run_pointwise
from numbasep.plan import channelwise as planner
from numbasep.plan.channelwise import LAYOUTS, PointwisePlan
from numbasep.plan.cuda_pointwise import FmaTile, MmaTile, Spread, candidates, choose, operand
from tests import oracle
from tests.conftest import examples

Array = NDArray[Any]

STORED = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
OPERANDS = ("tf32", "float16", "bfloat16")


def of(name: str) -> np.dtype[Any]:
    return np.dtype(STORED.get(name, name))


class Case:
    """Arrays of one call in the layout of its plan, in NumPy's dtypes."""

    def __init__(
        self, plan: PointwisePlan, seed: int, *, whole: bool, offsets: tuple[int, int] = (0, 0)
    ) -> None:
        rng = np.random.default_rng(seed)
        self.plan = plan
        self.offsets = offsets

        def values(*shape: int) -> Array:
            if plan.storage == "int8":
                return rng.integers(-128, 128, shape).astype(np.int8)
            if whole:
                return rng.integers(-8, 9, shape).astype(of(plan.storage))
            return rng.standard_normal(shape).astype(of(plan.storage))

        size = plan.channels, plan.pixels
        self.image = values(plan.batch, *(size if plan.layout == "NCHW" else size[::-1]))
        self.weight = values(plan.outputs, plan.channels).astype(plan.compute)
        self.bias = values(plan.outputs).astype(plan.compute)

    def shape(self) -> tuple[int, int, int]:
        plan = self.plan
        size = plan.outputs, plan.pixels
        return plan.batch, *(size if plan.layout == "NCHW" else size[::-1])

    def run(self, tile: Any) -> Array:
        """Run on arrays that start some elements after an aligned address, in poisoned memory."""
        before, ahead = self.offsets
        flat = np.zeros(before + self.image.size, self.image.dtype)
        flat[before:] = self.image.reshape(-1)
        kind = of(self.plan.output)
        shape = self.shape()
        poison = np.full(ahead + int(np.prod(shape)) + 8, 99, kind)
        image, out = launch.to_device(flat), launch.to_device(poison)
        run_pointwise(
            self.plan,
            image[before:],
            self.weight,
            self.bias,
            out[ahead : len(poison) - 8],
            tile=tile,
        )
        launch.to_host(out, poison)
        assert (poison[:ahead] == 99).all()
        assert (poison[-8:] == 99).all()
        return poison[ahead:-8].reshape(shape)

    def sums(self, *, absolute: bool = False) -> Array:
        """The sums with bias in float64."""
        image, weight, bias = (
            array.astype(np.float64) for array in (self.image, self.weight, self.bias)
        )
        if absolute:
            image, weight, bias = abs(image), abs(weight), abs(bias)
        if self.plan.layout == "NCHW":
            return np.einsum("oc,ncp->nop", weight, image) + bias[:, None]
        return np.einsum("oc,npc->npo", weight, image) + bias


def planned(
    storage: str, size: tuple[int, int, int, int], layout: str, activation: str | None = None,
    *, weights: str | None = None, tf32: bool = False,
) -> PointwisePlan:  # fmt: skip
    batch, pixels, channels, outputs = size
    shape = (batch, channels, 1, pixels) if layout == "NCHW" else (batch, 1, pixels, channels)
    return planner.pointwise(
        shape,
        storage,
        (outputs, channels),
        storage if weights is None else weights,
        layout=layout,
        activation=activation,
        precision="tf32" if tf32 else None,
    )


@st.composite
def sizes(draw: Callable[..., Any]) -> tuple[int, int, int, int]:
    """Batch, pixels, channels and outputs, ragged or whole vectors."""
    step = draw(st.sampled_from((1, 1, 2, 4, 8)))
    extents = [draw(st.integers(1, most // step)) * step for most in (11, 20, 20)]
    return draw(st.integers(1, 2)), extents[0], extents[1], extents[2]


def aligned(plan: PointwisePlan) -> tuple[int, int]:
    """By how much rows of image and out are aligned, up to 16 bytes."""
    planar = plan.layout == "NCHW"
    lengths = (plan.pixels, plan.pixels) if planar else (plan.channels, plan.outputs)
    steps = [
        length * planner.ITEMSIZE[name]
        for length, name in zip(lengths, (plan.storage, plan.output), strict=True)
    ]
    return min(steps[0] & -steps[0], 16), min(steps[1] & -steps[1], 16)


def fma_tile(plan: PointwisePlan, form: int) -> FmaTile:
    vector = 16 // planner.ITEMSIZE[plan.compute]
    groups, lanes, warps, depth = (
        ((1, 1), (4, 2), (1, 1), 8),
        ((2, 1), (1, 4), (2, 1), 8),
        ((1, 2), (4, 1), (1, 2), 4),
        ((2, 2), (2, 4), (1, 1), 8),
    )[form]
    image, out = aligned(plan)
    return FmaTile(
        plan.layout == "NCHW", vector, groups, lanes, warps, depth,
        image >= vector * planner.ITEMSIZE[plan.storage],
        out >= vector * planner.ITEMSIZE[plan.output],
    )  # fmt: skip


def mma_tile(plan: PointwisePlan, form: int) -> MmaTile:
    name = operand(plan)
    assert name is not None
    k = 8 if name == "tf32" else 16
    fragments, warps, depth, stages = (
        ((1, 1), (1, 1), k, 2),
        ((1, 2), (1, 1), 2 * k, 3),
        ((1, 1), (1, 2), k, 4),
        ((2, 4), (1, 1), k, 2),
        ((1, 2), (2, 1), 2 * k, 2),
    )[form]
    image, out = aligned(plan)
    size = planner.ITEMSIZE[plan.storage]
    return MmaTile(
        plan.layout == "NCHW", name, fragments, warps, depth, stages,
        image if image >= 4 else size, out if out >= 4 else size,
    )  # fmt: skip


@settings(max_examples=examples("cuda"))
@given(
    storage=st.sampled_from(("float32", "float64", "int8", "float16", "bfloat16")),
    size=sizes(),
    layout=st.sampled_from(LAYOUTS),
    activation=st.sampled_from((None, "relu6")),
    forms=st.lists(st.integers(0, 3), min_size=2, max_size=2, unique=True),
    whole=st.booleans(),
)
def test_multiply_adds(
    storage: str,
    size: tuple[int, int, int, int],
    layout: str,
    activation: str | None,
    forms: list[int],
    whole: bool,
) -> None:
    plan = planned(
        storage, size, layout, activation, weights=None if storage == "int8" else "float32"
    )
    case = Case(plan, 1, whole=whole)
    result = case.run(fma_tile(plan, forms[0]))
    if whole or storage == "int8":
        reference = case.sums()
        if activation is not None:
            reference = np.clip(reference, 0, 6)
        assert np.array_equal(result, reference.astype(result.dtype))
        return
    # The bits are those of any other tile, and of the CPU.
    assert result.tobytes() == case.run(fma_tile(plan, forms[1])).tobytes()
    if storage != "float64":
        # The simulator rounds multiply-adds of float64 twice.
        expected = np.empty_like(result)
        cpu.run_pointwise(plan, case.image, case.weight, case.bias, expected)
        assert result.tobytes() == expected.tobytes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_integers_wrap_around(layout: str) -> None:
    plan = planned("int8", (2, 3, 5, 9), layout)
    case = Case(plan, 2, whole=True)
    case.bias[::2] = 2**31 - 1
    case.bias[1::2] = -(2**31)
    reference = case.sums().astype(np.int64)
    assert (abs(reference) > 2**31).any()
    assert np.array_equal(case.run(fma_tile(plan, 0)), reference.astype(np.int32))


def hardware_bound(plan: PointwisePlan, depth: int, sums: Array) -> Array:
    """How far sums of tensor cores may be off.

    Products are exact. They are added to the sum by four or more at once (Fasi, Higham, Mikaitis
    and Pranesh, Numerical behavior of NVIDIA tensor cores, PeerJ CS 2021): each addend is cut to
    the last place of the largest and so is the result, 2**-23 of the sum of absolute values for
    each of four products, the sum before and the result; so 1.5 * 2**-23 or 3 u a channel, those
    that fill the tile included, and one rounding for the bias. Before, each factor was rounded to
    tf32.
    """
    channels = plan.channels + -plan.channels % depth
    factors = 2 * 2.0**-11 + 2.0**-22 if plan.tf32 else 0.0
    return factors * sums + oracle.gamma(3 * channels + 1, "float32") * sums * (1 + factors)


@settings(max_examples=examples("cuda"))
@given(
    name=st.sampled_from(OPERANDS),
    size=sizes(),
    layout=st.sampled_from(LAYOUTS),
    activation=st.sampled_from((None, "relu6")),
    form=st.integers(0, 4),
    whole=st.booleans(),
)
def test_tensor_cores(
    name: str,
    size: tuple[int, int, int, int],
    layout: str,
    activation: str | None,
    form: int,
    whole: bool,
) -> None:
    storage = "float32" if name == "tf32" else name
    plan = planned(storage, size, layout, activation, tf32=name == "tf32")
    case = Case(plan, 4, whole=whole)
    if storage != "float32":
        # Exact in the operand type, as the plan says.
        case.weight = case.weight.astype(of(storage)).astype(np.float32)
    tile = mma_tile(plan, form)
    result = case.run(tile)
    reference = case.sums()
    if activation is not None:
        reference = np.clip(reference, 0, 6)
    if whole:
        assert np.array_equal(result, reference.astype(result.dtype))
        return
    error = hardware_bound(plan, tile.depth, case.sums(absolute=True))
    if storage != "float32":
        smallest = {"float16": 2.0**-25, "bfloat16": 2.0**-134}[storage]
        error = error + oracle.ROUNDOFF[storage] * (abs(reference) + error) + smallest
    assert (abs(result.astype(np.float64) - reference) <= error).all()


PATHS = (
    ("float32", "float32", False),
    ("float32", "float32", True),
    ("float16", "float32", False),
    ("float16", "float16", False),
    ("bfloat16", "bfloat16", False),
)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_at_its_pixel(
    path: tuple[str, str, bool], layout: str, value: float
) -> None:
    """Padding of tiles multiplies nothing: 0 * inf would be NaN."""
    storage, weights, tf32 = path
    plan = planned(storage, (2, 11, 9, 7), layout, "relu", weights=weights, tf32=tf32)
    case = Case(plan, 5, whole=True)
    for image, channel, pixel in ((1, 8, 10), (0, 0, 4)):
        case.image[(image, channel, pixel) if layout == "NCHW" else (image, pixel, channel)] = value
    case.weight[...] = 1
    tile = fma_tile(plan, 0) if operand(plan) is None else mma_tile(plan, 1)
    result = case.run(tile).astype(np.float64)
    if layout == "NHWC":
        result = result.transpose(0, 2, 1)
    expected = np.zeros((2, 7, 11), bool)
    expected[1, :, 10] = expected[0, :, 4] = True
    assert np.array_equal(np.isfinite(result), ~expected)
    assert np.array_equal(np.isnan(result), expected & np.isnan(value))


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("offsets", [(0, 0), (2, 4), (1, 0), (0, 3)])
def test_arrays_of_any_alignment(
    path: tuple[str, str, bool], layout: str, offsets: tuple[int, int]
) -> None:
    storage, weights, tf32 = path
    plan = planned(storage, (1, 16, 8, 16), layout, weights=weights, tf32=tf32)
    case = Case(plan, 6, whole=True, offsets=offsets)
    assert np.array_equal(case.run(None), case.sums())


@given(
    path=st.sampled_from((*PATHS, ("float64", "float64", False), ("int8", "int8", False))),
    size=st.tuples(*[st.integers(1, most) for most in (300, 10**6, 4000, 4000)]),
    layout=st.sampled_from(LAYOUTS),
    image=st.integers(0, 4),
    out=st.integers(0, 4),
)
def test_chosen_tiles_suit_the_kernels(
    path: tuple[str, str, bool], size: Any, layout: str, image: int, out: int
) -> None:
    storage, weights, tf32 = path
    plan = planned(storage, size, layout, weights=weights, tf32=tf32)
    if 2**image < planner.ITEMSIZE[storage] or 2**out < planner.ITEMSIZE[plan.output]:
        return
    tile = choose(plan, 2**image, 2**out)
    tile.check()
    assert isinstance(tile, MmaTile) == (tf32 or (weights == storage and "16" in storage))
    assert isinstance(choose(plan, 2**image, 2**out, tensor_cores=False), FmaTile)
    if isinstance(tile, MmaTile):
        # What every device from compute capability 8.0 on grants to a block.
        assert tile.shared <= 99 << 10
    else:
        assert tile.shared(planner.ITEMSIZE[plan.compute]) <= launch.SHARED_DEFAULT
    assert tile.threads <= 256


@pytest.mark.parametrize(("path", "layout"), [(PATHS[0], "NCHW"), (PATHS[3], "NHWC")])
def test_each_tile_that_may_be_chosen(path: tuple[str, str, bool], layout: str) -> None:
    storage, weights, tf32 = path
    plan = planned(storage, (2, 20, 24, 24), layout, weights=weights, tf32=tf32)
    case = Case(plan, 7, whole=True)
    for tile in candidates(plan, *aligned(plan)):
        assert np.array_equal(case.run(tile), case.sums()), tile


def test_tiles_that_cannot_be_shared_are_refused() -> None:
    plan = planned("float16", (1, 16, 16, 16), "NCHW")
    tile = mma_tile(plan, 1)
    for wrong in (replace(tile, depth=24), replace(tile, fragments=(1, 3))):
        with pytest.raises(ValueError, match="MmaTile"):
            wrong.check()
    with pytest.raises(ValueError, match="MmaTile"):
        replace(tile, depth=64).check()
    with pytest.raises(ValueError, match="Spread"):
        Spread(True, 24, 8, 1, 32).check()


@lru_cache
def places_kernel(spread: Spread) -> Kernel:
    locate, bases = locator(spread, 2), spread.bases
    version = VERSION

    def kernel(out: Any, first: int, pixels: int, plane: int, channels: int) -> None:
        places = cuda.local.array(bases, types.int64)
        limits = cuda.local.array(bases, types.int32)
        t = cuda.threadIdx.x if version >= 0 else 0
        locate(t, first, pixels, plane, channels, places, limits)
        out[2 * t] = places[0]
        out[2 * t + 1] = limits[0]

    return Kernel(kernel, [types.CPointer(types.int64), *[types.int64] * 3, types.int32], 32)


@pytest.mark.parametrize("planar", [True, False])
def test_places_past_two_to_the_31(planar: bool) -> None:
    first, plane, channels = 2**33 + 64, 2**32, 1000
    pixels = first + 20
    out = launch.to_device(np.zeros((32, 2), np.int64))
    sizes = [np.int64(first), np.int64(pixels), np.int64(plane), np.int32(channels)]
    kernel = places_kernel(Spread(planar, 64, 8, 4, 32))
    kernel.launch(1, 32, 0, None, [launch.view(out).pointer("int64"), *sizes])
    result = np.empty((32, 2), np.int64)
    launch.to_host(out, result)
    for t, (place, limit) in enumerate(result.tolist()):
        if planar:
            pixel, channel = 4 * (t % 16), t // 16
            expected = (2 * channels + channel) * plane + 64 + pixel
            assert limit == (channels if pixel < 20 else 0)
        else:
            pixel, channel = t // 2, 4 * (t % 2)
            expected = (first + pixel) * channels + channel
            assert limit == 20 - pixel
        assert place == 2 * expected


def test_arrays_are_kept_on_the_device_by_content() -> None:
    def first(array: Array, count: int) -> Array:
        return array[:count].copy()

    array = np.arange(3000, dtype=np.float32)
    kept = launch.upload(array, None)
    assert launch.upload(array.copy(), None) is kept
    short = launch.upload(array, None, (first, 10))
    assert short.shape == (10,)
    assert launch.upload(array, None, (first, 10)) is short
    # Each single change is noticed, wherever it is.
    for place in range(12):
        changed = array.copy()
        changed[place] = np.nan
        other = np.empty_like(array)
        launch.to_host(launch.upload(changed, None), other)
        assert np.array_equal(other, changed, equal_nan=True)

"""The pointwise CUDA kernels themselves, with tiles so small that small arrays take many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from numbasep.cuda import launch
from numbasep.cuda.pointwise import run_pointwise
from numbasep.plan import channelwise as planner
from numbasep.plan.channelwise import LAYOUTS, PointwisePlan
from numbasep.plan.cuda_pointwise import FmaTile, MmaTile, operand
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
def sizes(draw: Callable[..., Any], pixels: int = 20) -> tuple[int, int, int, int]:
    """Batch, pixels, channels and outputs, ragged or whole vectors."""
    step = draw(st.sampled_from((1, 1, 4, 8)))
    extents = [draw(st.integers(1, most // step)) * step for most in (pixels, 24, 24)]
    return draw(st.integers(1, 3)), extents[0], extents[1], extents[2]


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
        ((1, 1), (4, 2), (1, 1), 2 * vector),
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
        image if image >= 4 else size, out == 16,
    )  # fmt: skip


@settings(max_examples=examples("cuda"))
@given(
    storage=st.sampled_from(("float32", "float64", "int8", "float16", "bfloat16")),
    size=sizes(),
    layout=st.sampled_from(LAYOUTS),
    form=st.integers(0, 3),
)
def test_multiply_adds_are_exact_on_integers(
    storage: str, size: tuple[int, int, int, int], layout: str, form: int
) -> None:
    plan = planned(storage, size, layout, weights="float32" if storage != "int8" else None)
    case = Case(plan, 1, whole=True)
    result = case.run(fma_tile(plan, form))
    assert np.array_equal(result, case.sums().astype(result.dtype))


@settings(max_examples=examples("cuda"))
@given(
    name=st.sampled_from(OPERANDS),
    size=sizes(),
    layout=st.sampled_from(LAYOUTS),
    form=st.integers(0, 4),
)
def test_tensor_cores_are_exact_on_integers(
    name: str, size: tuple[int, int, int, int], layout: str, form: int
) -> None:
    storage = "float32" if name == "tf32" else name
    plan = planned(storage, size, layout, tf32=name == "tf32")
    case = Case(plan, 2, whole=True)
    result = case.run(mma_tile(plan, form))
    assert np.array_equal(result, case.sums().astype(result.dtype))

"""Plans of the gradients of the channelwise convolutions: arithmetic on shapes.

What each backend implements, arrays as in ``plan.channelwise``:

``numbasep.<backend>.depthwise_gradient``:
``run_input_gradient(plan: DepthwisePlan, grad, weight, out)``: plan of the convolution, ``grad`` of
its result's shape, ``out`` of its image's; ``weight`` (filters, kh, kw) of the compute dtype.
``run_weight_gradient(plan: DepthwisePlan, image | None, grad, out)``: ``out`` (filters, kh, kw);
without an image, of one that is all ones.

``numbasep.<backend>.pointwise_gradient``:
``run_weight_gradient(plan: PointwisePlan, image, grad, out)``: ``out`` (outputs, channels).

Sums go by fused multiply-adds in the compute dtype, in an order that shapes alone decide, and are
rounded once into the storage dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import gcd

from numbasep import boundary as boundaries
from numbasep.plan.channelwise import DepthwisePlan, PointwisePlan
from numbasep.plan.geometry import Axis

# Activations whose slope is known from their result; of the others the sum is computed again.
BY_RESULT = ("relu", "relu6")

# Partial sums of a reduction over all pixels, in all: work for many threads, and few to add up.
PARTS = 64


@dataclass(frozen=True, slots=True)
class Phase:
    """Elements of the (padded) image whose gradients read the same taps.

    ``gradient[first + j * step] = sum_t taps[t] * grad[axis's index of (j, t)]`` for j < axis.out:
    a correlation of ``grad`` with stride 1. No taps: the gradient is zero.
    """

    first: int
    step: int
    axis: Axis
    taps: tuple[int, ...]


def reach(axis: Axis, boundary: int) -> tuple[int, int]:
    """Return the padded image's first element and the one after its last.

    With zeros outside the image, only the image.
    """
    if boundary == boundaries.FILL:
        return 0, axis.size
    last = (axis.out - 1) * axis.stride + axis.origin + axis.extent
    return min(axis.origin, 0), max(last, axis.size)


@lru_cache(maxsize=1024)
def phases(axis: Axis, low: int, high: int) -> tuple[Phase, ...]:
    """Return the phases of the gradient of elements ``low`` to ``high`` of an image.

    ``out[o]`` reads element ``o * stride + origin + k * dilation``: element i gets from tap k if
    i - origin - k * dilation is a multiple of the stride, so that every ``stride``th has its taps.
    """
    stride, dilation = axis.stride, axis.dilation
    step, apart = stride // gcd(stride, dilation), dilation // gcd(stride, dilation)
    found = []
    for first in range(low, min(low + stride, high)):
        count = -(-(high - first) // stride)
        above = first - axis.origin
        start = next(
            (k for k in range(min(step, axis.taps)) if (above - k * dilation) % stride == 0), None
        )
        if start is None:
            found.append(Phase(first, stride, Axis(axis.out, count, 0), ()))
            continue
        taps = tuple(range(start, axis.taps, step))
        near = (above - start * dilation) // stride
        origin = near - (len(taps) - 1) * apart
        found.append(
            Phase(first, stride, Axis(axis.out, count, len(taps), 1, apart, origin), taps[::-1])
        )
    return tuple(found)


@lru_cache(maxsize=1024)
def folds(axis: Axis, boundary: int) -> tuple[tuple[int, ...], ...]:
    """Return, for each element of the image, the places in the padded image that copy it."""
    low, high = reach(axis, boundary)
    found: list[list[int]] = [[] for _ in range(axis.size)]
    for i in range(low, high):
        found[boundaries.map_index(i, axis.size, boundary)].append(i - low)
    return tuple(map(tuple, found))


def slices(units: int, groups: int) -> int:
    """Return how many partial sums ``units`` of work make, beside ``groups`` that are separate."""
    return max(1, min(units, -(-PARTS // groups)))


def padded(plan: DepthwisePlan) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return ``reach`` of both axes."""
    return reach(plan.y, plan.boundary), reach(plan.x, plan.boundary)


@dataclass(frozen=True, slots=True)
class SumTile:
    """A block of the CUDA weight gradient: ``threads`` threads, ``lanes`` of them side by side
    along the filters, take ``1 / slices`` of all pixels. ``threads // lanes`` is a power of two.
    """

    threads: int
    lanes: int
    slices: int


@dataclass(frozen=True, slots=True)
class MatrixTile:
    """A block of the CUDA pointwise weight gradient: ``rows`` outputs by ``columns`` channels, both
    multiples of 4, ``depth`` pixels at a time, of ``1 / slices`` of all pixels."""

    rows: int
    columns: int
    depth: int
    slices: int

    @property
    def threads(self) -> int:
        return self.rows * self.columns // 16


# Blocks of a reduction on CUDA that keep every multiprocessor busy, and pixels that are worth one.
BLOCKS, FEWEST_PIXELS = 1024, 512
# Taps whose sums a thread holds.
TAPS = 9


def _power(value: int) -> int:
    """Return the least power of two that is no less."""
    return 1 << max(value - 1, 0).bit_length()


def sum_tile(plan: DepthwisePlan) -> SumTile:
    """Return what a block of the CUDA depthwise weight gradient computes."""
    pixels = plan.batch * plan.y.out * plan.x.out
    lanes = 1 if plan.layout == "NCHW" else min(32, _power(plan.filters))
    threads = max(32, min(128, _power(pixels * lanes)))
    blocks = -(-plan.filters // lanes) * -(-plan.y.taps * plan.x.taps // TAPS)
    most = max(1, pixels * lanes // FEWEST_PIXELS)
    return SumTile(threads, lanes, max(1, min(most, -(-BLOCKS // blocks))))


def matrix_tile(plan: PointwisePlan) -> MatrixTile:
    """Return what a block of the CUDA pointwise weight gradient computes."""
    side = 64 if max(plan.outputs, plan.channels) > 16 else 16
    blocks = -(-plan.outputs // side) * -(-plan.channels // side)
    most = max(1, plan.batch * plan.pixels // FEWEST_PIXELS)
    return MatrixTile(side, side, 16, max(1, min(most, -(-BLOCKS // blocks))))

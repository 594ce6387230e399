"""Host images on a device, in bands: how high, and which rows of the image each one reads.

A plane is one image: of a spatial call with its channels, of a channelwise call one of the batch. A
band is a stretch of output rows of one plane, or whole planes, together with the image rows that it
reads. Where those all lie in the band, no boundary is met in it; rows beyond the image are added
where the boundary puts other rows there, and left to the kernels where the band's own first or
last row, or the fill value, stands there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from numbasep.boundary import FILL, NEAREST, map_index
from numbasep.plan.channelwise import DepthwisePlan, FusedPlan, PointwisePlan
from numbasep.plan.geometry import Axis, SpatialPlan

Plan = SpatialPlan | DepthwisePlan | PointwisePlan | FusedPlan

# Bytes of an image and its result from which copies are worth being overlapped, and of one band:
# long enough for a copy to take many times what its start does.
LARGE = 64 << 20
BAND = 16 << 20

# Of the free memory, what bands may take: other work on the device needs some too.
SHARE = 0.8

# Rows that a band computes for each one that it reads beyond them, where memory allows.
LEAST_GAIN = 8


@dataclass(frozen=True, slots=True)
class Whole:
    """A call as it is cut.

    planes, y, columns: images, their rows, and how many columns they have.
    row, result, middle: bytes of one row of a plane's image, result, and intermediate result that
        the launches take from the device by themselves.
    axis: of the rows, in arrays of four dimensions whose first is that of the planes.
    """

    plan: Plan
    planes: int
    y: Axis
    columns: int
    boundary: int
    row: int
    result: int
    middle: int
    axis: int

    def part(self, planes: int, y: Axis) -> Plan:
        """Return the plan for some planes, and for rows of theirs."""
        plan = self.plan
        if isinstance(plan, SpatialPlan):
            return replace(plan, planes=planes, y=y)
        if isinstance(plan, DepthwisePlan):
            return replace(plan, batch=planes, y=y)
        if isinstance(plan, PointwisePlan):
            return replace(plan, batch=planes, pixels=y.out * self.columns)
        first = replace(plan.depthwise, batch=planes, y=y)
        second = replace(plan.pointwise, batch=planes, pixels=y.out * first.x.out)
        return replace(plan, depthwise=first, pointwise=second)


@lru_cache(maxsize=256)
def whole(plan: Plan, rows: int = 1) -> Whole:
    """Return how a call is cut. rows: of the images of a pointwise call, whose plan has pixels."""
    if isinstance(plan, SpatialPlan):
        return _whole(plan, plan.planes, plan.y, plan.x.size, plan.boundary, 1,
                      (plan.x.size * plan.channels, plan.storage),
                      (plan.x.out * plan.channels, plan.output))  # fmt: skip
    if isinstance(plan, PointwisePlan):
        columns = plan.pixels // rows
        return _whole(plan, plan.batch, Axis(rows, rows, 1), columns, FILL, _rows_of(plan.layout),
                      (columns * plan.channels, plan.storage),
                      (columns * plan.outputs, plan.output))  # fmt: skip
    first = plan if isinstance(plan, DepthwisePlan) else plan.depthwise
    result, middle = (first.x.out * first.filters, first.output), (0, first.output)
    if isinstance(plan, FusedPlan):
        if not plan.fused:
            middle = result
        result = first.x.out * plan.pointwise.outputs, plan.pointwise.output
    return _whole(plan, first.batch, first.y, first.x.size, first.boundary, _rows_of(first.layout),
                  (first.x.size * first.channels, first.storage), result, middle)  # fmt: skip


def _whole(
    plan: Plan, planes: int, y: Axis, columns: int, boundary: int, axis: int,
    *elements: tuple[int, str],
) -> Whole:  # fmt: skip
    """elements: how many, and of which dtype, a row of the image, result and intermediate has."""
    sizes = [count * _itemsize(dtype) for count, dtype in elements]
    return Whole(plan, planes, y, columns, boundary, sizes[0], sizes[1], sum(sizes[2:]), axis)


def _rows_of(layout: str) -> int:
    return 2 if layout == "NCHW" else 1


@dataclass(frozen=True, slots=True)
class Bands:
    """How a call is cut: at most so many planes, or rows of one plane, at a time.

    slots: bands that are under way at once, each with memory of its own.
    """

    planes: int
    rows: int
    slots: int = 2

    def __str__(self) -> str:
        if self.planes > 1:
            return f"{self.planes:,} planes"
        return "1 row" if self.rows == 1 else f"{self.rows:,} rows"


@dataclass(frozen=True, slots=True)
class Band:
    """Output rows ``begin`` to ``end`` of planes ``first`` to ``last``.

    pieces: the image rows that are put one after another to make the band's image.
    y: the rows of that. problem: what computes the band from it.
    """

    first: int
    last: int
    begin: int
    end: int
    pieces: tuple[range, ...]
    y: Axis
    problem: Plan


def window(axis: Axis, begin: int, end: int, boundary: int) -> tuple[tuple[range, ...], Axis]:
    """Return the image rows that outputs ``begin`` to ``end`` read, and the axis on them alone."""
    start, stop = axis.span(begin, end)
    if boundary in (FILL, NEAREST):
        low = min(max(start, 0), axis.size - 1)
        high = max(min(stop, axis.size), low + 1)
        pieces: tuple[range, ...] = (range(low, high),)
    elif start >= 0 and stop <= axis.size:
        low, pieces = start, (range(start, stop),)
    elif stop - start >= axis.size:
        # The band would repeat rows: the image itself is smaller, and has its boundary.
        low, pieces = 0, (range(axis.size),)
    else:
        low, pieces = start, _runs([map_index(i, axis.size, boundary) for i in range(start, stop)])
    size = sum(map(len, pieces))
    return pieces, replace(axis, size=size, out=end - begin, origin=start - low)


def _runs(indices: list[int]) -> tuple[range, ...]:
    """Return indices, of which neighbours differ by at most 1 or start anew, as ranges."""
    steps = np.diff(indices)
    runs: list[range] = []
    first = 0
    while first < len(indices):
        step = int(steps[first]) if first < len(steps) and abs(steps[first]) == 1 else 1
        last = first
        while last < len(steps) and steps[last] == step:
            last += 1
        runs.append(range(indices[first], indices[last] + step, step))
        first = last + 1
    return tuple(runs)


def image_rows(axis: Axis, rows: int) -> int:
    """Return the most image rows that a band of output rows reads."""
    return min((rows - 1) * axis.stride + axis.extent, axis.size)


def sizes(problem: Whole, planes: int, rows: int) -> tuple[int, int]:
    """Return the bytes of the image and of the result of a band."""
    taken = image_rows(problem.y, rows)
    return planes * taken * problem.row, planes * rows * problem.result


def needed(problem: Whole, planes: int, rows: int) -> int:
    """Return the bytes that a band takes on the device."""
    return sum(sizes(problem, planes, rows)) + planes * rows * problem.middle


def _itemsize(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def large(problem: Whole) -> bool:
    """Return whether a call is large enough to be cut."""
    return needed(problem, problem.planes, problem.y.out) >= LARGE


def choose(problem: Whole, free: float, band: int | None = None) -> Bands:
    """Return how a large call is cut.

    free: bytes of the device's memory. band: bytes of one band, in place of ``BAND``.
    """
    most = SHARE * free / 2
    wanted = min(BAND if band is None else band, most)
    plane = needed(problem, 1, problem.y.out)
    if plane <= wanted:
        return _even(problem, int(wanted // plane), problem.y.out)
    halo = max(problem.y.extent - problem.y.stride, 0)
    rows = _fitting(problem, wanted)
    enough = -(-LEAST_GAIN * halo // problem.y.stride)
    if rows < enough:
        rows = max(rows, min(enough, _fitting(problem, most)))
    return _even(problem, 1, rows)


def _fitting(problem: Whole, size: float) -> int:
    """Return how many output rows fit in a number of bytes, at least 1."""
    low, high = 1, problem.y.out
    while low < high:
        middle = (low + high + 1) // 2
        if needed(problem, 1, middle) <= size:
            low = middle
        else:
            high = middle - 1
    return low


def _even(problem: Whole, planes: int, rows: int) -> Bands:
    """Return bands of nearly the same size, as few as with those given."""
    planes, rows = (
        -(-whole // -(-whole // min(part, whole)))
        for part, whole in ((planes, problem.planes), (rows, problem.y.out))
    )
    return Bands(planes, rows)


def smaller(problem: Whole, bands: Bands | None) -> Bands | None:
    """Return the next smaller bands, None below one row at a time. Without bands: of the whole."""
    if bands is None:
        bands = Bands(problem.planes, problem.y.out)
    if bands.planes > 1:
        return replace(bands, planes=bands.planes // 2)
    if bands.rows > 1:
        return replace(bands, rows=-(-bands.rows // 2))
    return replace(bands, slots=1) if bands.slots > 1 else None


@lru_cache(maxsize=64)
def _cut(problem: Whole, rows: int) -> tuple[Band, ...]:
    """Return the bands of one plane."""
    found = []
    for begin in range(0, problem.y.out, rows):
        end = min(begin + rows, problem.y.out)
        pieces, axis = window(problem.y, begin, end, problem.boundary)
        found.append(Band(0, 1, begin, end, pieces, axis, problem.part(1, axis)))
    return tuple(found)


def cut(problem: Whole, bands: Bands) -> Iterator[Band]:
    """Yield the bands of a call, in turn."""
    for first in range(0, problem.planes, bands.planes):
        last = min(first + bands.planes, problem.planes)
        for band in _cut(problem, bands.rows):
            part = problem.part(last - first, band.y)
            yield replace(band, first=first, last=last, problem=part)


def notes(problem: Whole) -> list[str]:
    """Return what is to be said of how host arrays go through a device."""
    if not large(problem):
        return []
    chosen = choose(problem, math.inf)
    count = -(-problem.planes // chosen.planes) * -(-problem.y.out // chosen.rows)
    return [
        f"x goes through the device in {count:,} bands of {chosen}; smaller ones where memory is "
        "short"
    ]

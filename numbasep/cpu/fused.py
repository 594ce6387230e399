"""Depthwise and pointwise convolution in one pass on the CPU: the intermediate stays in L2.

A thread takes a band of output rows, filters it for all channels into a panel of its own, and mixes
the panel's channels into the result:

    image (all channels of a band) ---> panel (in L2) ---> result (all output channels of a band)

Each half is the code of ``depthwise`` or ``pointwise``: the bits are those of the two calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numba
import numpy as np
from numba import njit
from numpy.typing import NDArray

from numbasep.cpu import (
    atomics,
    channels,
    compiled,
    depthwise,
    jobs,
    pixels,
    planes,
    pointwise,
    pointwise_tiles,
    queues,
    simd,
    turning,
)  # fmt: skip
from numbasep.cpu.channels import ACTIVATED, Prepared, finisher, rounded
from numbasep.cpu.jobs import Job
from numbasep.plan import cpu_tiles
from numbasep.plan.channelwise import FusedPlan

Array = NDArray[Any]

# Places of the numbers that describe both: where in the scratch memory the panel is, and what the
# product needs; bytes between the panel's planes; the activation of the first. Then come the
# numbers of each.
PANEL, MIXING, PITCH, ACTIVATE = range(4)
FIRST = 4
SECOND = FIRST + channels.NUMBERS

# Planes that are filtered by one call, and activated after it.
TOGETHER = 8


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def work(numbers: int, queued: int, own: int, scratch: int) -> None:
    """Take bands of output rows until there are none."""
    s = simd.as_pointer(numbers)
    p = simd.as_pointer(numbers + 8 * FIRST)
    q = simd.as_pointer(numbers + 8 * SECOND)
    panel, pitch = scratch + s[PANEL], s[PITCH]
    filters, wide = p[channels.C] * p[channels.M], p[channels.WIDE]
    columns, rows_out = p[channels.OW], p[channels.OH]
    size = p[channels.H] * p[channels.W] * p[channels.SIZE]
    bands, narrow, outputs = p[channels.BANDS], q[pointwise.NARROW], q[pointwise.COUT]
    while True:
        item = queues.take(queued, own)
        if item == queues.NOTHING:
            break
        band, n = item % bands, item // bands
        y0 = band * p[channels.BAND]
        rows = min(rows_out - y0, p[channels.BAND])
        count = rows * columns
        image = p[channels.IMAGE] + n * p[channels.C] * size
        if p[channels.PLANAR]:
            if not planes.windowed(p, rows):
                planes.clear_band(p, scratch, rows)
            for c in range(0, p[channels.C], TOGETHER):
                some = min(TOGETHER, p[channels.C] - c)
                to = panel + c * p[channels.M] * pitch
                planes.plane_bands(p, scratch, image, c, some, y0, rows, to, pitch, columns * wide)
                if s[ACTIVATE] != 0:
                    for f in range(some * p[channels.M]):
                        atomics.call3(s[ACTIVATE], to + f * pitch, to + f * pitch, count)
            out = q[pointwise.OUT] + (n * outputs * rows_out + y0) * columns * narrow
            pointwise.mix_planes(q, scratch + s[MIXING], panel, out, count, 0, outputs)
        else:
            for f in range(0, filters, p[channels.GROUP]):
                pixels.pixel_band(
                    p, scratch, image, f, min(p[channels.GROUP], filters - f), y0, rows,
                    panel + f * wide, columns * filters * wide,
                )  # fmt: skip
            if s[ACTIVATE] != 0:
                atomics.call3(s[ACTIVATE], panel, panel, count * filters)
            out = q[pointwise.OUT] + (n * rows_out + y0) * columns * outputs * narrow
            weights = q[pointwise.WEIGHT]
            pointwise.mix_pixels(q, scratch + s[MIXING], panel, weights, out, count, 0, outputs)
        queues.finish(queued, own)


@cache
def driver() -> Any:
    """Return ``void (numbers, queued, own, scratch)``, the kernel for ``pool.run``."""

    @compiled.cfunc("void(int64, int64, int64, int64)")
    def driver(numbers: int, queued: int, own: int, scratch: int) -> None:
        work(numbers, queued, own, scratch)

    return driver


@dataclass(frozen=True, slots=True)
class Tile:
    """A work item: ``band`` output rows of all channels."""

    band: int
    threads: int

    def __str__(self) -> str:
        return f"{self.band} rows of all channels, {self.threads} threads"


@lru_cache(maxsize=1024)
def choose(plan: FusedPlan, threads: int) -> Tile:
    """Return the tile for a plan."""
    first = plan.depthwise
    wide = np.dtype(first.compute).itemsize
    room, each = cpu_tiles.L2_BYTES, 2
    if first.layout == "NCHW":
        # Whole planes are read at the speed of memory; parts of many planes are not, which costs
        # more than a panel that leaves L2, and than an uneven end.
        room, each = (4 * room, 2) if first.batch >= 2 * threads else (2 * room, 1)
    band = max(1, room // (first.filters * first.x.out * wide))
    total = first.batch * first.y.out
    share = -(-total // (each * threads))
    band = min(band, max(share, planes.ROWS), first.y.out)
    bands, least = -(-first.y.out // band), depthwise.least_rows(first)
    # The last band has the fewest rows; with too few it would be packed.
    while bands > 1 and first.y.out - (bands - 1) * -(-first.y.out // bands) < least:
        bands -= 1
    return Tile(-(-first.y.out // bands), threads)


@lru_cache(maxsize=512)
def prepare(plan: FusedPlan, tile: Tile) -> Prepared:
    """Return what calls of a plan share."""
    first, second = plan.depthwise, plan.pointwise
    wide = np.dtype(first.compute).itemsize
    count = tile.band * first.x.out
    planar = first.layout == "NCHW"
    # Whole blocks are read beyond the last pixel; an odd number of lines between rows.
    pitch = (-(-count * wide // 64) | 1) * 64
    group = 1 if planar else depthwise.pixel_group(first)
    one = depthwise.prepare(
        first, depthwise.Tile(tile.band, group, tile.threads), first.filters * wide
    )
    two = pointwise.prepare(
        second, pointwise_tiles.Tile(count, second.outputs, tile.threads), pitch if planar else 0
    )
    # A vector is read beyond the last pixel.
    panel = first.filters * (pitch if planar else count * wide) + 4 * simd.VECTOR
    activation = ACTIVATED.get(first.activation, 0)
    start = rounded(one.scratch, 64)
    mixing = rounded(start + panel, 64)
    activate = finisher(first.compute, first.compute, activation).address if activation else 0
    numbers = np.concatenate([[start, mixing, pitch, activate], one.numbers, two.numbers])
    bands = -(-first.y.out // tile.band)
    items = first.batch * bands
    return Prepared(numbers, items, mixing + two.scratch, tile.threads, (one, two))


# The arrays of a job, in turn.
ARRAYS = "image", "out", "columns", "rows", "first_bias", "weight", "second_bias"


def job(plan: FusedPlan, tile: Tile) -> Job:
    """Return what to do with ``ARRAYS`` in one pass."""
    planar, second = plan.depthwise.layout == "NCHW", plan.pointwise
    mixes = "image", "out", "weight" if planar else "turned", "second_bias"
    places = (*enumerate(ARRAYS[: channels.PER_CALL], FIRST), *enumerate(mixes, SECOND))
    both = jobs.Step(prepare(plan, tile), driver().address, places)
    if planar:
        return jobs.job(ARRAYS, [both])
    turn, size = turning.step(second.outputs, second.channels, second.compute, tile.threads)
    return jobs.job(ARRAYS, [turn, both], {"turned": size})


def apart(plan: FusedPlan, threads: int) -> Job:
    """Return what to do with ``ARRAYS``, one convolution after the other."""
    first, second = plan.depthwise, plan.pointwise
    filter_all = depthwise.step(first, depthwise.choose(first, threads))
    mix_all, more = pointwise.steps(second, pointwise_tiles.choose(second, threads))
    size = first.batch * first.filters * first.y.out * first.x.out * simd.itemsize(first.output)
    steps = [
        *jobs.renamed([filter_all], out="between", bias="first_bias"),
        *jobs.renamed(mix_all, image="between", bias="second_bias"),
    ]
    return jobs.job(ARRAYS, steps, {"between": size, **more})


@lru_cache(maxsize=512)
def chosen(plan: FusedPlan, threads: int) -> Job:
    """Return what to do with ``ARRAYS``."""
    return job(plan, choose(plan, threads)) if plan.fused else apart(plan, threads)


def run_fused(
    plan: FusedPlan,
    image: Array,
    depthwise_weight: Any,
    depthwise_bias: Array,
    pointwise_weight: Array,
    pointwise_bias: Array,
    out: Array,
    tile: Tile | None = None,
) -> None:
    """Write both convolutions of ``image`` into ``out``; see ``plan.channelwise``."""
    made = chosen(plan, numba.get_num_threads()) if tile is None else job(plan, tile)
    made.run(
        image, out, *depthwise.factors_of(plan.depthwise, depthwise_weight), depthwise_bias,
        pointwise_weight, pointwise_bias,
    )  # fmt: skip


def repeated(plan: FusedPlan) -> Callable[[], Job]:
    """Return what returns the job of a plan, which takes ``ARRAYS``, C-contiguous."""
    return jobs.repeated(lambda threads: chosen(plan, threads))

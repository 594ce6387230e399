"""Depthwise correlation on the CPU: what a thread takes at a time, and all that it is told.

Planes (NCHW) are filtered by ``planes``, pixels (NHWC) by ``pixels``.
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

from numbasep import boundary as boundaries
from numbasep.cpu import atomics, blocks, compiled, jobs, pixels, planes, queues, simd, windows
from numbasep.cpu.channels import (
    ACTIVATED,
    BAND,
    BANDS,
    FINISH,
    GROUP,
    GROUPS,
    IMAGE,
    NARROW,
    NUMBERS,
    OH,
    OUT,
    OW,
    PER_CALL,
    PLANAR,
    RESULT_AT,
    SIZE,
    WIDE,
    C,
    H,
    M,
    Prepared,
    W,
    bounds_of,
    finisher,
    packer,
    rounded,
)  # fmt: skip
from numbasep.cpu.jobs import Job
from numbasep.cpu.pool import address
from numbasep.plan import cpu_tiles
from numbasep.plan.channelwise import DepthwisePlan

Array = NDArray[Any]


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def work(numbers: int, queued: int, own: int, scratch: int) -> None:
    """Take bands of groups of channels until there are none."""
    p = simd.as_pointer(numbers)
    filters = p[C] * p[M]
    size = p[H] * p[W] * p[SIZE]
    while True:
        item = queues.take(queued, own)
        if item == queues.NOTHING:
            break
        band, rest = item % p[BANDS], item // p[BANDS]
        group, n = rest % p[GROUPS], rest // p[GROUPS]
        y0 = band * p[BAND]
        rows = min(p[OH] - y0, p[BAND])
        first = group * p[GROUP]
        if p[PLANAR]:
            plane = p[OH] * p[OW] * p[NARROW]
            if not planes.windowed(p, rows):
                planes.clear_band(p, scratch, rows)
            image, count = p[IMAGE] + n * p[C] * size, min(p[GROUP], p[C] - first)
            out = p[OUT] + (n * p[C] + first) * p[M] * plane + y0 * p[OW] * p[NARROW]
            if p[FINISH] == 0:
                planes.plane_bands(
                    p, scratch, image, first, count, y0, rows, out, plane, p[OW] * p[WIDE]
                )
            else:
                result, length = scratch + p[RESULT_AT], rows * p[OW]
                for c in range(first, first + count):
                    planes.plane_bands(
                        p, scratch, image, c, 1, y0, rows, result, length * p[WIDE],
                        p[OW] * p[WIDE],
                    )  # fmt: skip
                    for m in range(p[M]):
                        atomics.call3(
                            p[FINISH], result + m * length * p[WIDE], out + m * plane, length
                        )
                    out += p[M] * plane
        else:
            base = p[IMAGE] + n * p[C] * size
            count = min(p[GROUP], filters - first)
            out = p[OUT] + (((n * p[OH] + y0) * p[OW]) * filters + first) * p[NARROW]
            if p[FINISH] == 0:
                pitch = p[OW] * filters * p[WIDE]
                pixels.pixel_band(p, scratch, base, first, count, y0, rows, out, pitch)
            else:
                result, pixel = scratch + p[RESULT_AT], p[GROUP] * p[WIDE]
                pixels.pixel_band(p, scratch, base, first, count, y0, rows, result, p[OW] * pixel)
                for i in range(rows * p[OW]):
                    atomics.call3(
                        p[FINISH], result + i * pixel, out + i * filters * p[NARROW], count
                    )
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
    """A work item: ``band`` output rows of ``group`` channels (NHWC: filters)."""

    band: int
    group: int
    threads: int

    def __str__(self) -> str:
        return f"{self.band} rows of {self.group} channels, {self.threads} threads"


def row_bytes(plan: DepthwisePlan, group: int) -> tuple[int, int]:
    """Return the bytes of a packed row, and of one remainder of the stride in it (of a pixel)."""
    wide = np.dtype(plan.compute).itemsize
    span = (plan.x.out - 1) * plan.x.stride + plan.x.extent
    # The whole image row is packed, also what no output reads.
    span = max(span, plan.x.size + max(-plan.x.origin, 0))
    if plan.layout == "NHWC":
        return rounded(span * group * wide) + 64, group * wide
    # Whole vectors are written and read beyond the last element.
    phase = rounded(-(-span // plan.x.stride) * wide) + 4 * simd.VECTOR
    return rounded(plan.x.stride * phase + 4 * simd.VECTOR), phase


def least_rows(plan: DepthwisePlan) -> int:
    """Return from how many rows on a band of planes is read where it is; 0 for none."""
    x, y, lanes = plan.x, plan.y, blocks.lanes_of(plan.compute)
    if not (
        plan.layout == "NCHW"
        and plan.storage == plan.compute
        and plan.boundary == boundaries.FILL
        and specialised(plan)
        and x.stride == y.stride
        and (x.stride == 1 or x.dilation == y.dilation == 1)
    ):
        return 0
    # Outputs of a narrow row are written over by those of the next where there are no masks.
    if not simd.MASKS and x.out < lanes and (y.dilation > 1 or x.out < lanes // 2):
        return 0
    left = x.out % (windows.VECTORS * lanes)
    return y.dilation * (windows.TALL if 0 < left <= lanes else windows.ROWS)


def in_place(plan: DepthwisePlan) -> bool:
    """Whether the blocks read pixels where they are in the image."""
    return plan.storage == plan.compute and plan.multiplier == 1 and plan.rank == 0


def pixel_group(plan: DepthwisePlan) -> int:
    """Return how many filters of pixels to take at a time."""
    unit = pixels.VECTORS * blocks.lanes_of(plan.compute)
    if not in_place(plan):
        return min(2 * unit, plan.filters)
    # Their taps stay in L1 beside the pixels; groups are as even as whole blocks allow.
    wide = np.dtype(plan.compute).itemsize
    most = max(cpu_tiles.TAP_BYTES // (plan.y.taps * plan.x.taps * wide), unit)
    return min(rounded(-(-plan.filters // -(-plan.filters // most)), unit), plan.filters)


@lru_cache(maxsize=1024)
def choose(plan: DepthwisePlan, threads: int) -> Tile:
    """Return the tile for a plan."""
    wide = np.dtype(plan.compute).itemsize
    taps = plan.rank * (plan.y.taps + plan.x.taps) if plan.rank else plan.y.taps * plan.x.taps
    outputs = plan.y.out * plan.x.out
    if plan.batch * plan.filters * outputs * max(taps, 8) < cpu_tiles.ALONE:
        threads = 1
    if plan.layout == "NCHW":
        if least_rows(plan):
            # Planes that are read where they are need no bands but to be enough for all threads.
            unit, bands = windows.ROWS, -(-8 * threads // (plan.batch * plan.channels))
        else:
            pitch, _ = row_bytes(plan, 1)
            fits = (cpu_tiles.L1_BYTES // pitch - plan.y.extent) // plan.y.stride + 1
            unit = planes.ROWS
            bands = -(-plan.y.out // min(max(fits, 2 * unit), plan.y.out))
        band = min(rounded(-(-plan.y.out // bands), unit), plan.y.out)
        group = max(1, 60_000 // (band * plan.x.out * taps * plan.multiplier))
        most = -(-plan.batch * plan.channels * bands // (4 * threads))
        return Tile(band, min(group, max(most, 1), plan.channels), threads)
    group = pixel_group(plan)
    if in_place(plan):
        rows = max(1, cpu_tiles.L2_BYTES // (plan.x.size * group * wide))
    else:
        pitch, _ = row_bytes(plan, group)
        rows = max(1, (cpu_tiles.L2_BYTES // pitch - plan.y.extent) // plan.y.stride + 1)
    share = -(-plan.batch * plan.y.out * -(-plan.filters // group) // (4 * threads))
    return Tile(max(1, min(rows, max(share, planes.ROWS), plan.y.out)), group, threads)


# Taps of the phases of 3 x 3 and 5 x 5 kernels with a stride of two: of their input gradients.
PHASES = ((1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 2))


def specialised(plan: DepthwisePlan) -> int:
    """Return the number of the blocks for this kernel; 0 for those of any kernel."""
    kh, kw = plan.y.taps, plan.x.taps
    square = kh == kw and kh in (3, 5, 7)
    phase = (kh, kw) in PHASES and plan.y.stride == plan.x.stride == 1
    if plan.rank or plan.compute == "float64" or not (square or phase):
        return 0
    if plan.layout == "NHWC":
        if plan.x.dilation % plan.x.stride == 0:
            return 10 * kw + 1
        return 10 * kw + 2 if plan.x.dilation == 1 and plan.x.stride == 2 else 0
    if plan.y.dilation % plan.y.stride == 0:
        return 100 * kh + 10 * kw + 1
    return 100 * kh + 10 * kw + 2 if plan.y.dilation == 1 and plan.y.stride == 2 else 0


@lru_cache(maxsize=512)
def prepare(plan: DepthwisePlan, tile: Tile, out_pixel: int = 0) -> Prepared:
    """Return what calls of a plan share.

    out_pixel: bytes between pixels of the result where a caller of ``pixel_band`` has its own
    place for them; else the plan's.
    """
    wide = np.dtype(plan.compute).itemsize
    narrow = simd.itemsize(plan.output)
    planar = plan.layout == "NCHW"
    x, y = plan.x, plan.y
    group, pitch, filters = tile.group, 0, plan.filters
    pitch, phase = row_bytes(plan, group)
    number, least = specialised(plan), least_rows(plan)
    far = windows.FAR if simd.PERMUTES and x.extent > blocks.lanes_of(plan.compute) else 0
    axis = y if planar else x
    # Outputs this many apart need the same image rows (NHWC: pixels).
    apart = axis.dilation // axis.stride if axis.dilation % axis.stride == 0 and number else 1
    shared = apart if planar and number and not least else 0
    if planar and not plan.rank and y.taps >= planes.ROWS and y.dilation % y.stride == 0:
        shared = y.dilation // y.stride
    finishing = plan.output != plan.compute or plan.activation in ACTIVATED
    if not out_pixel:
        out_pixel = (group if finishing else filters) * wide
    bounds = bounds_of(plan.compute, plan.activation), bounds_of(plan.compute, "none")
    taps = np.arange(x.taps) * x.dilation
    places = taps % x.stride * phase + taps // x.stride * wide if planar else taps * phase
    across_image = taps * plan.channels * wide
    offsets = [
        np.ascontiguousarray(a, np.int64) for a in (places, np.zeros(1), across_image, 8 * taps)
    ]
    geometry = np.zeros((4, blocks.GEOMETRY), np.int64)
    span = (x.out - 1) * x.stride + x.extent
    terms = plan.rank
    rows_pitch = terms * pitch if terms else y.stride * pitch
    low_taps = (pitch, terms) if planar else (8, terms)
    taps_of = low_taps if terms else (y.dilation * (pitch if planar else 8), y.taps)
    pixel = phase if not planar else 0
    if planar:
        length = pitch // wide if x.stride > 1 else span
        # Whole vectors are written: no more than what is there.
        geometry[0, :7] = (
            rows_pitch, taps_of[0], address(offsets[0]), taps_of[1], x.taps, x.out,
            address(bounds[0]),
        )  # fmt: skip
        geometry[1, :7] = (
            y.stride * pitch, y.dilation * pitch, address(offsets[1]), y.taps, 1, length,
            address(bounds[1]),
        )  # fmt: skip
    else:
        length, tap_pitch = span, rounded(group * wide)
        across = apart * x.stride
        geometry[0] = (
            0, taps_of[0], address(offsets[0]), taps_of[1], x.taps, 0, address(bounds[0]),
            across * pixel, tap_pitch, apart * out_pixel,
        )  # fmt: skip
        geometry[1] = (
            0, 8 * y.dilation, address(offsets[1]), y.taps, 1, 0, address(bounds[1]), pixel,
            tap_pitch, pixel,
        )  # fmt: skip
        geometry[2:] = geometry[0]
        geometry[2:, blocks.OFFSETS] = address(offsets[2]), address(offsets[3])
        geometry[2:, blocks.X_STEP] = across * plan.channels * wide, 8 * across
        geometry[3, blocks.TAP_STEP] = 8 * y.dilation * span
    direct = not planar and in_place(plan)
    low = high = x.out
    if direct:
        low = min(max(-(x.origin // x.stride), 0), x.out)
        high = (x.size - x.extent - x.origin) // x.stride + 1
        high = min(max(high, low), x.out)
        # Edges of less than a block take as long as a block nearly.
        if high - low < 8 * pixels.PIXELS or x.taps > 3:
            low = high = x.out
    left = max(-x.origin, 0)
    pads = []
    if planar:

        def place(q: int) -> int:
            return q % x.stride * phase + q // x.stride * wide

        for q in (*range(left), *range(left + x.size, span)):
            m = boundaries.map_index(q - left, x.size, plan.boundary)
            pads.append((place(q), -1 if m < 0 else place(left + m)))
    pad_table = np.array(pads or [(0, 0)], np.int64)
    row_of_zeros = x.size * plan.channels if direct else x.size + 64 if least else 0
    zeros = np.zeros(max(row_of_zeros, filters, 64), plan.compute)
    window = np.array(
        [
            x.size * wide, y.size, x.size, y.origin, x.origin, y.dilation, x.dilation, x.out,
            y.stride, address(zeros), address(bounds[0]),
        ],
        np.int64,
    )  # fmt: skip
    bands = -(-y.out // tile.band)
    tap_count = terms * (y.taps + x.taps) if terms else y.taps * x.taps
    needed = (tile.band - 1) * y.stride + y.extent
    sizes = [
        0 if direct else needed * pitch + 4 * simd.VECTOR,
        (tile.band if planar else 1) * max(terms, 1) * pitch + 4 * simd.VECTOR if terms else 0,
        tile.band * x.out * wide * (plan.multiplier if planar else group) if finishing else 0,
        8 * (needed * (1 + span * direct) + terms),
        0 if planar else tap_count * rounded(group * wide),
    ]
    starts = np.cumsum([0, *map(rounded, sizes)]).tolist()
    units = plan.channels if planar else filters
    groups = -(-units // group)
    # A band of few rows is rare where others are read in place.
    general = 0 if least else number
    compiled = (planes.planes_of if planar else pixels.pixels_of)(plan.compute, general)
    numbers = np.zeros(NUMBERS, np.int64)
    numbers[PER_CALL:] = (
        plan.channels, plan.multiplier, y.size, x.size, y.out, x.out, simd.itemsize(plan.storage),
        wide, narrow, y.taps, x.taps, terms, y.origin, x.origin, y.stride, x.stride, y.dilation,
        plan.boundary, group, groups, tile.band, bands, pitch, phase, address(pad_table),
        len(pads), address(zeros), packer(plan.storage, plan.compute).address, compiled.address,
        finisher(plan.compute, plan.output, ACTIVATED.get(plan.activation, 0)).address
        if finishing
        else 0,
        *(address(one) for one in geometry[:3]), low, high, x.extent, length, *starts[:5], planar,
        shared,
        planes.plane_packer(plan.storage, plan.compute).address if planar else 0,
        apart,
        span,
        pixels.pointed_of(plan.compute, number).address if direct else 0,
        address(geometry[3]),
        0 if planar else pixels.arranger(plan.compute).address,
        address(window),
        windows.windows_of(plan.compute, number + far).address if least else 0,
        least,
    )  # fmt: skip
    return Prepared(
        numbers,
        plan.batch * groups * bands,
        starts[-1] + 4 * simd.VECTOR,
        tile.threads,
        (bounds, offsets, geometry, pad_table, zeros, window),
    )


# The arrays of a job, in turn.
ARRAYS = "image", "out", "columns", "rows", "bias"


def step(plan: DepthwisePlan, tile: Tile) -> jobs.Step:
    """Return a plan's step of a job, with ``ARRAYS``."""
    return jobs.step(prepare(plan, tile), driver().address, *ARRAYS)


def job(plan: DepthwisePlan, tile: Tile) -> Job:
    """Return what to do with ``ARRAYS``."""
    return jobs.job(ARRAYS, [step(plan, tile)])


@lru_cache(maxsize=512)
def chosen(plan: DepthwisePlan, threads: int) -> Job:
    """Return ``job`` of the tile for a plan."""
    return job(plan, choose(plan, threads))


def factors_of(plan: DepthwisePlan, weight: Any) -> tuple[Array, Array]:
    """Return the taps of the column pass and those of the row pass: all of them, without rank."""
    return weight if plan.rank else (weight, weight)


def run_depthwise(
    plan: DepthwisePlan,
    image: Array,
    weight: Any,
    bias: Array,
    out: Array,
    tile: Tile | None = None,
) -> None:
    """Write the depthwise correlation of ``image`` into ``out``; see ``plan.channelwise``."""
    made = chosen(plan, numba.get_num_threads()) if tile is None else job(plan, tile)
    made.run(image, out, *factors_of(plan, weight), bias)


def repeated(plan: DepthwisePlan) -> Callable[[], Job]:
    """Return what returns the job of a plan, which takes ``ARRAYS``, C-contiguous."""
    return jobs.repeated(lambda threads: chosen(plan, threads))

"""Gradients of the depthwise convolution on the CPU.

To the input: a depthwise correlation of the gradient with flipped taps, one for each phase of the
stride, which are interleaved; with a padding that copies, of the padded image, which is folded. To
the weight: threads take slices of the batch and the rows, and add up products in vectors for each
tap; the partial sums of slices and lanes are added at the end.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

import numba
import numpy as np
from numba import njit
from numpy.typing import NDArray

from numbasep import boundary as boundaries
from numbasep.cpu import (
    atomics,
    blocks,
    channel_sums,
    compiled,
    depthwise,
    interleave,
    pool,
    products,
    queues,
    simd,
)
from numbasep.cpu.channels import (
    BAND,
    BANDS,
    BOUNDARY,
    DY,
    IMAGE,
    KH,
    OH,
    OW,
    OX,
    OY,
    SIZE,
    SY,
    C,
    H,
    Prepared,
    W,
    rounded,
)  # fmt: skip
from numbasep.cpu.depthwise import Tile, row_bytes
from numbasep.cpu.passes import map_index
from numbasep.cpu.planes import clear_band, pack_band
from numbasep.cpu.pool import address
from numbasep.cpu.products import BLOCK
from numbasep.plan import cpu_tiles
from numbasep.plan import gradients as planner
from numbasep.plan.channelwise import DepthwisePlan
from numbasep.plan.gradients import Phase

Array = NDArray[Any]

rows_full = products.make_rows(masked=False)
rows_edge = products.make_rows(masked=True)
pixels_full = products.make_pixels(masked=False)
pixels_edge = products.make_pixels(masked=True)

# Output rows of a unit of work in pixels, and channels of a group.
PIXEL_ROWS, PIXEL_CHANNELS = 4, 128

# Places of the numbers that describe a weight gradient: those of the correlation, addresses; then
# filters of a channel, channels of a group, groups, units, slices, taps in whole blocks; bytes from
# one output to the next in what is multiplied; the pixels of a row that taps read; where a thread
# has the sums of planes' filters, vectors of columns.
(
    CORRELATION, GRAD, SUMS, FILL, OFFSETS,
    M, GROUP, GROUPS, UNITS, SLICES, TAPS, STEP_Y, STEP_X, SPAN, VECTORS_AT,
) = range(15)  # fmt: skip


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def plane_work(
    numbers: int, queued: int, own: int, scratch: int, storage: Any, compute: Any
) -> None:
    """Take slices of groups of channels until there are none; NCHW."""
    q = simd.as_pointer(numbers)
    p = simd.as_pointer(q[CORRELATION])
    lanes = blocks.vector_lanes(compute)
    vector, size = lanes * simd.size_of(compute), simd.size_of(storage)
    full, filters, g_row = p[OW] // lanes, p[C] * q[M], p[OW] * size
    while True:
        item = queues.take(queued, own)
        if item == queues.NOTHING:
            break
        group, part = item % q[GROUPS], item // q[GROUPS]
        first, last = group * q[GROUP], min((group + 1) * q[GROUP], p[C])
        sums, count = scratch + q[VECTORS_AT], (last - first) * q[M] * q[TAPS]
        numba.carray(simd.as_pointer(sums), count * vector // 8)[:] = 0
        for unit in range(part * q[UNITS] // q[SLICES], (part + 1) * q[UNITS] // q[SLICES]):
            band, n = unit % p[BANDS], unit // p[BANDS]
            y0 = band * p[BAND]
            rows = min(p[OH] - y0, p[BAND])
            clear_band(p, scratch, rows)
            for c in range(first, last):
                needed = (rows - 1) * p[SY] + (p[KH] - 1) * p[DY] + 1
                base = p[IMAGE] + (n * p[C] + c) * p[H] * p[W] * p[SIZE]
                pack_band(p, base, y0 * p[SY] + p[OY], needed, scratch)
                for f in range(c * q[M], (c + 1) * q[M]):
                    grad = q[GRAD] + ((n * filters + f) * p[OH] + y0) * g_row
                    acc = sums + (f - first * q[M]) * q[TAPS] * vector
                    for tap in range(0, q[TAPS], BLOCK):
                        to, offsets = acc + tap * vector, q[OFFSETS] + 8 * tap
                        if full > 0:
                            rows_full(
                                to, vector, grad, g_row, scratch, q[STEP_Y], q[STEP_X], offsets,
                                rows, full, storage, compute,
                            )  # fmt: skip
                        if p[OW] > full * lanes:
                            rows_edge(
                                to, vector, grad + full * lanes * size, g_row,
                                scratch + full * q[STEP_X], q[STEP_Y], q[STEP_X], offsets, rows,
                                p[OW] - full * lanes, storage, compute,
                            )  # fmt: skip
        to = q[SUMS] + (part * filters + first * q[M]) * q[TAPS] * simd.size_of(compute)
        for k in range(count):
            products.total(sums + k * vector, 1, to + k * simd.size_of(compute), compute)
        queues.finish(queued, own)


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def pixel_work(
    numbers: int, queued: int, own: int, scratch: int, storage: Any, compute: Any
) -> None:
    """Take slices of groups of channels until there are none; NHWC."""
    q = simd.as_pointer(numbers)
    p = simd.as_pointer(q[CORRELATION])
    lanes = blocks.vector_lanes(compute)
    wide, size = simd.size_of(compute), simd.size_of(storage)
    pixel, span = p[C] * size, q[SPAN]
    bands = (p[OH] + PIXEL_ROWS - 1) // PIXEL_ROWS
    while True:
        item = queues.take(queued, own)
        if item == queues.NOTHING:
            break
        group, part = item % q[GROUPS], item // q[GROUPS]
        first = group * q[GROUP]
        last = min(first + q[GROUP], p[C])
        for unit in range(part * q[UNITS] // q[SLICES], (part + 1) * q[UNITS] // q[SLICES]):
            band, n = unit % bands, unit // bands
            y0 = band * PIXEL_ROWS
            rows = min(p[OH] - y0, PIXEL_ROWS)
            needed = (rows - 1) * p[SY] + (p[KH] - 1) * p[DY] + 1
            for j in range(needed):
                y = map_index(y0 * p[SY] + p[OY] + j, p[H], p[BOUNDARY])
                for i in range(span):
                    x = map_index(i + p[OX], p[W], p[BOUNDARY]) if y >= 0 else -1
                    where = q[FILL] if x < 0 else p[IMAGE] + ((n * p[H] + y) * p[W] + x) * pixel
                    atomics.poke(scratch + 8 * (j * span + i), where)
            for y in range(rows):
                line = q[GRAD] + (n * p[OH] + y0 + y) * p[OW] * pixel
                for tap in range(0, q[TAPS], BLOCK):
                    offsets = q[OFFSETS] + 8 * tap
                    acc = q[SUMS] + (part * q[TAPS] + tap) * p[C] * wide
                    for c in range(first, last, lanes):
                        at = c * size
                        if c + lanes <= last:
                            pixels_full(
                                acc + c * wide, p[C] * wide, line + at, pixel,
                                scratch + y * q[STEP_Y], q[STEP_X], offsets, at, p[OW], lanes,
                                storage, compute,
                            )  # fmt: skip
                        else:
                            pixels_edge(
                                acc + c * wide, p[C] * wide, line + at, pixel,
                                scratch + y * q[STEP_Y], q[STEP_X], offsets, at, p[OW], last - c,
                                storage, compute,
                            )  # fmt: skip
        queues.finish(queued, own)


@cache
def driver(planar: bool, storage: str, compute: str) -> Any:
    """Return ``void (numbers, queued, own, scratch)``, the kernel for ``pool.run``."""
    stored, computed = simd.tag(storage), simd.tag(compute)

    # Not one function that closes over another: nothing would find it in the cache.
    if planar:

        @compiled.cfunc("void(int64, int64, int64, int64)")
        def driver(numbers: int, queued: int, own: int, scratch: int) -> None:
            plane_work(numbers, queued, own, scratch, stored, computed)

    else:

        @compiled.cfunc("void(int64, int64, int64, int64)")
        def driver(numbers: int, queued: int, own: int, scratch: int) -> None:
            pixel_work(numbers, queued, own, scratch, stored, computed)

    return driver


@lru_cache(maxsize=512)
def prepare(plan: DepthwisePlan) -> tuple[Prepared, Prepared]:
    """Return what calls of a plan share: of the correlation, and of its weight gradient."""
    planar = plan.layout == "NCHW"
    alone = replace(plan, multiplier=1, output=plan.compute)
    band = depthwise.choose(alone, 1).band
    one = depthwise.prepare(alone, Tile(band, 1, 1))
    wide = np.dtype(plan.compute).itemsize
    y, x = plan.y, plan.x
    span = (x.out - 1) * x.stride + x.extent
    across, down = np.arange(x.taps) * x.dilation, np.arange(y.taps) * y.dilation
    if planar:
        pitch, phase = row_bytes(alone, 1)
        shifts = across % x.stride * phase + across // x.stride * wide
        steps = y.stride * pitch, wide * blocks.lanes_of(plan.compute)
        group = max(1, min(8, plan.channels // 32, 1024 // (y.taps * x.taps * plan.multiplier)))
        units, scratch = plan.batch * -(-y.out // band), one.scratch
        fill = np.empty(0)
    else:
        pitch, shifts = 8 * span, 8 * across
        steps = y.stride * pitch, 8 * x.stride
        group = min(plan.channels, PIXEL_CHANNELS)
        units = plan.batch * -(-y.out // PIXEL_ROWS)
        scratch = ((PIXEL_ROWS - 1) * y.stride + y.extent) * pitch
        fill = np.zeros(plan.channels, plan.storage)
    offsets = (down[:, None] * pitch + shifts).astype(np.int64).ravel()
    # Whole blocks: the last tap once more.
    offsets = np.pad(offsets, (0, -len(offsets) % BLOCK), "edge")
    groups = -(-plan.channels // group)
    slices = planner.slices(units, groups)
    numbers = np.zeros(VECTORS_AT + 1, np.int64)
    scratch = rounded(scratch + 64)
    numbers[FILL:] = (
        address(fill), address(offsets), plan.multiplier, group, groups, units, slices,
        len(offsets), *steps, span, scratch,
    )  # fmt: skip
    if planar:
        scratch += group * plan.multiplier * len(offsets) * simd.VECTOR
    return one, Prepared(numbers, groups * slices, scratch, 1, (fill, offsets))


def run_weight_gradient(plan: DepthwisePlan, image: Array | None, grad: Array, out: Array) -> None:
    """Write the gradient to the weight into ``out``; see ``plan.gradients``."""
    if grad.size == 0:
        out[...] = 0
        return
    if image is None:
        channel_sums.run(plan, grad, out)
        return
    if plan.layout == "NHWC" and plan.multiplier > 1:
        # Vectors of filters would need channels repeated.
        image, grad = (np.ascontiguousarray(np.moveaxis(one, -1, 1)) for one in (image, grad))
        plan = replace(plan, layout="NCHW")
    one, made = prepare(plan)
    planar = plan.layout == "NCHW"
    taps, slices = int(made.numbers[TAPS]), int(made.numbers[SLICES])
    shape = (plan.filters, taps) if planar else (taps, plan.channels)
    sums = (np.empty if planar else np.zeros)((slices, *shape), plan.compute)
    correlation = one.numbers.copy()
    correlation[IMAGE] = address(image)
    numbers = made.numbers.copy()
    numbers[:FILL] = address(correlation), address(grad), address(sums)
    threads = numba.get_num_threads()
    if grad.size * taps < cpu_tiles.ALONE:
        threads = 1
    pool.run(
        driver(planar, plan.storage, plan.compute).address, numbers, (made.items,), made.scratch,
        threads, (image, grad, sums, correlation, numbers, one, made),
    )  # fmt: skip
    total = sums[0] if slices == 1 else sums.sum(0)
    total = (total if planar else total.T)[:, : plan.y.taps * plan.x.taps]
    np.copyto(out, total.reshape(out.shape), casting="unsafe")


def run_input_gradient(plan: DepthwisePlan, grad: Array, weight: Array, out: Array) -> None:
    """Write the gradient to the input into ``out``; see ``plan.gradients``."""
    (top, bottom), (left, right) = planner.padded(plan)
    down, across = planner.phases(plan.y, top, bottom), planner.phases(plan.x, left, right)
    # Filters of a channel, what padding copied, and phases come together before the rounding.
    if plan.boundary == boundaries.FILL and len(down) == len(across) == plan.multiplier == 1:
        _correlate(plan, down[0], across[0], grad, weight, out, plan.output)
        return
    planar = plan.layout == "NCHW"
    if plan.boundary == boundaries.FILL and plan.multiplier == 1:
        _by_phases(plan, down, across, grad, weight, out)
        return
    height, width = bottom - top, right - left

    def fresh(channels: int, rows: int, columns: int) -> Array:
        size = (channels, rows, columns) if planar else (rows, columns, channels)
        return np.empty((plan.batch, *size), plan.compute)

    whole = fresh(plan.channels, height, width)
    for one in down:
        for two in across:
            part = fresh(plan.filters, one.axis.out, two.axis.out)
            _correlate(plan, one, two, grad, weight, part, plan.compute)
            rows = slice(one.first - top, None, one.step)
            columns = slice(two.first - left, None, two.step)
            if planar:
                whole[:, :, rows, columns] = _filters_added(part, plan.multiplier, 1)
            else:
                whole[:, rows, columns] = _filters_added(part, plan.multiplier, 3)
    if plan.boundary != boundaries.FILL:
        for axis, places in ((plan.y, 2 if planar else 1), (plan.x, 3 if planar else 2)):
            whole = _folded(whole, places, planner.folds(axis, plan.boundary))
    np.copyto(out, whole, casting="unsafe")


# Bytes of all phases of some images: they stay in a cache until they are interleaved.
PHASES = 4 << 20


def _by_phases(
    plan: DepthwisePlan,
    down: tuple[Phase, ...],
    across: tuple[Phase, ...],
    grad: Array,
    weight: Array,
    out: Array,
) -> None:
    """Write the gradient of a convolution with a stride: some images at a time, phase by phase."""
    wide = np.dtype(plan.compute).itemsize
    images = min(max(1, PHASES // (out[0].size * wide)), plan.batch)
    shapes = [
        (images, plan.channels, one.axis.out, two.axis.out)
        if plan.layout == "NCHW"
        else (images, one.axis.out, two.axis.out, plan.channels)
        for one in down
        for two in across
    ]
    ends = np.cumsum([math.prod(shape) for shape in shapes]).tolist()
    memory = pool.between(ends[-1] * wide)[: ends[-1] * wide].view(plan.compute)
    parts = [
        memory[end - math.prod(shape) : end].reshape(shape)
        for end, shape in zip(ends, shapes, strict=True)
    ]
    for start in range(0, plan.batch, images):
        count = min(images, plan.batch - start)
        some = replace(plan, batch=count)
        given, made = grad[start : start + count], [one[:count] for one in parts]
        for place, part in enumerate(made):
            one, two = down[place // len(across)], across[place % len(across)]
            _correlate(some, one, two, given, weight, part, plan.compute)
        interleave.run(
            made, out[start : start + count], len(down), len(across), plan.layout, plan.compute,
            plan.output,
        )  # fmt: skip


def _filters_added(part: Array, multiplier: int, axis: int) -> Array:
    """Return the sum over the filters of each channel, ascending."""
    if multiplier == 1:
        return part
    shape = part.shape
    each = part.reshape(*shape[:axis], shape[axis] // multiplier, multiplier, *shape[axis + 1 :])
    each = np.moveaxis(each, axis + 1, 0)
    total: Array = each[0].copy()
    for one in each[1:]:
        total += one
    return total


def _folded(whole: Array, axis: int, places: tuple[tuple[int, ...], ...]) -> Array:
    """Return the gradient of an image from that of its padded one, along an axis."""
    whole = np.moveaxis(whole, axis, 0)
    result = np.zeros((len(places), *whole.shape[1:]), whole.dtype)
    for turn in range(max(map(len, places))):
        chosen = [i for i, one in enumerate(places) if len(one) > turn]
        result[chosen] += whole[[places[i][turn] for i in chosen]]
    return np.moveaxis(result, 0, axis)


def _correlate(
    plan: DepthwisePlan,
    down: Phase,
    across: Phase,
    grad: Array,
    weight: Array,
    out: Array,
    output: str,
) -> None:
    """Write the gradient of one phase, for each filter."""
    y, x = down.axis, across.axis
    # Of the gradient, what comes before all taps is left out.
    cut = max(y.origin, 0), max(x.origin, 0)
    if not (y.taps and x.taps) or cut[0] >= y.size or cut[1] >= x.size:
        out[...] = 0
        return
    planar = plan.layout == "NCHW"
    if any(cut):
        spatial = slice(cut[0], None), slice(cut[1], None)
        grad = np.ascontiguousarray(grad[(..., *spatial) if planar else (slice(None), *spatial)])
        y = replace(y, size=y.size - cut[0], origin=y.origin - cut[0])
        x = replace(x, size=x.size - cut[1], origin=x.origin - cut[1])
    taps = np.ascontiguousarray(weight[:, down.taps][:, :, across.taps])
    depthwise.run_depthwise(
        replace(
            plan, channels=plan.filters, multiplier=1, y=y, x=x, boundary=boundaries.FILL,
            output=output,
        ),
        grad, taps, np.zeros(plan.filters, plan.compute), out,
    )  # fmt: skip

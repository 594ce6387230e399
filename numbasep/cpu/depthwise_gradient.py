"""Gradients of the depthwise convolution on the CPU.

To the input: a depthwise correlation of the gradient with flipped taps, one for each phase of the
stride, which are interleaved; with a padding that copies, of the padded image, which is folded. To
the weight: threads take slices of the batch and the rows, and add up products in vectors for each
tap; the partial sums of slices and lanes are added at the end.
"""

from __future__ import annotations

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
    combine,
    compiled,
    depthwise,
    interleave,
    jobs,
    picks,
    products,
    queues,
    simd,
)  # fmt: skip
from numbasep.cpu.channels import (
    BAND,
    BANDS,
    BIAS,
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
from numbasep.cpu.combine import clear
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

# Places of the numbers that describe a weight gradient: addresses; then filters of a channel,
# channels of a group, groups, units, slices, taps in whole blocks; bytes from one output to the
# next in what is multiplied; the pixels of a row that taps read; where a thread has the sums of
# planes' filters, vectors of columns. Then come the numbers of the correlation.
(
    GRAD, SUMS, FILL, OFFSETS,
    M, GROUP, GROUPS, UNITS, SLICES, TAPS, STEP_Y, STEP_X, SPAN, VECTORS_AT, CORRELATION,
) = range(15)  # fmt: skip


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def plane_work(
    numbers: int, queued: int, own: int, scratch: int, storage: Any, compute: Any
) -> None:
    """Take slices of groups of channels until there are none; NCHW."""
    q = simd.as_pointer(numbers)
    p = simd.as_pointer(numbers + 8 * CORRELATION)
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
    p = simd.as_pointer(numbers + 8 * CORRELATION)
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
        for tap in range(q[TAPS]):
            to = q[SUMS] + ((part * q[TAPS] + tap) * p[C] + first) * wide
            clear(to, (last - first) * wide)
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


def weight_steps(plan: DepthwisePlan, threads: int) -> tuple[list[jobs.Step], dict[str, int]]:
    """Return the steps of a job that write the gradient to the weight into ``out``.

    Pixels (NHWC) have one filter for each channel.
    """
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
    taps, count = y.taps * x.taps, len(offsets)
    if plan.batch * plan.filters * y.out * x.out * count < cpu_tiles.ALONE:
        threads = 1
    scratch = rounded(scratch + 64)
    numbers = np.zeros(CORRELATION, np.int64)
    numbers[FILL:] = (
        address(fill), address(offsets), plan.multiplier, group, groups, units, slices, count,
        *steps, span, scratch,
    )  # fmt: skip
    if planar:
        scratch += group * plan.multiplier * count * simd.VECTOR
    made = Prepared(
        np.concatenate([numbers, one.numbers]), groups * slices, scratch, threads,
        (fill, offsets, one),
    )  # fmt: skip
    function = driver(planar, plan.storage, plan.compute).address

    def step(sums: str) -> jobs.Step:
        places = (GRAD, "grad"), (SUMS, sums), (CORRELATION + IMAGE, "image")
        return jobs.Step(made, function, places)

    whole = planar and count == taps
    if whole and slices == 1 and plan.storage == plan.compute:
        return [step("out")], {}
    size = slices * plan.filters * count * wide
    shape: tuple[Any, ...] = plan.filters, taps, count, (taps, 1)
    if whole:
        shape = 1, plan.filters * taps, plan.filters * taps, (0, 1)
    elif not planar:
        shape = taps, plan.channels, plan.channels, (1, taps)
    # The sums of a slice may have more rows than are added up: whole blocks of taps.
    pitch = plan.filters * count
    added = combine.step(
        "tap sums", "out", plan.compute, plan.storage, threads, slices, pitch, *shape
    )
    return [step("tap sums"), added], {"tap sums": size}


@lru_cache(maxsize=512)
def weight_job(plan: DepthwisePlan, threads: int) -> jobs.Job:
    """Return what to do with ``image``, ``grad`` and ``out``."""
    return jobs.job(("image", "grad", "out"), *weight_steps(plan, threads))


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
    weight_job(plan, numba.get_num_threads()).run(image, grad, out)


# Bytes of all phases of a stride that are kept until they are interleaved: they stay in a cache.
PHASES = 4 << 20


def input_steps(plan: DepthwisePlan, threads: int) -> tuple[list[jobs.Step], dict[str, int]] | None:
    """Return the steps of a job that write the gradient to the input into ``out``.

    None where other code does that: several filters of a channel, padding that copies, a gradient
    whose first elements belong to no element of the image.
    """
    (top, bottom), (left, right) = planner.padded(plan)
    down, across = planner.phases(plan.y, top, bottom), planner.phases(plan.x, left, right)
    pairs = [(one, two) for one in down for two in across]
    if plan.boundary != boundaries.FILL or plan.multiplier != 1:
        return None
    for one, two in pairs:
        y, x = one.axis, two.axis
        if not (y.taps and x.taps) or y.origin > 0 or x.origin > 0:
            return None
    wide = np.dtype(plan.compute).itemsize
    alone = len(pairs) == 1
    output = plan.output if alone else plan.compute
    found: list[jobs.Step] = []
    between: dict[str, int] = {}
    names = []
    for k, (one, two) in enumerate(pairs):
        y, x = one.axis, two.axis
        taps, part = f"taps {k}", "out" if alone else f"phase {k}"
        chosen = [i * plan.x.taps + j for i in one.taps for j in two.taps]
        row = plan.y.taps * plan.x.taps
        found.append(picks.step("weight", taps, plan.compute, threads, plan.filters, row, chosen))
        between[taps] = plan.filters * len(chosen) * wide
        phase = replace(plan, y=y, x=x, output=output)
        one_phase = depthwise.step(phase, depthwise.choose(phase, threads))
        one_phase = jobs.with_zeros(one_phase, BIAS, plan.filters, plan.compute)
        found += jobs.renamed([one_phase], image="grad", columns=taps, rows=taps, out=part)
        if not alone:
            between[part] = plan.batch * plan.channels * y.out * x.out * wide
            names.append(part)
    if not alone:
        size = (plan.channels, bottom, right)
        shape = (plan.batch, *(size if plan.layout == "NCHW" else (*size[1:], size[0])))
        found.append(
            interleave.step(
                names, "out", shape, len(down), len(across), plan.layout, plan.compute, plan.output,
                threads,
            )
        )  # fmt: skip
    return found, between


@lru_cache(maxsize=512)
def input_job(plan: DepthwisePlan, threads: int) -> jobs.Job | None:
    """Return what to do with ``grad``, ``weight`` and ``out``, where ``input_steps`` knows it."""
    found = input_steps(plan, threads)
    return None if found is None else jobs.job(("grad", "weight", "out"), *found)


def run_input_gradient(plan: DepthwisePlan, grad: Array, weight: Array, out: Array) -> None:
    """Write the gradient to the input into ``out``; see ``plan.gradients``."""
    images = plan.batch
    if plan.y.stride * plan.x.stride > 1 and out.size:
        images = min(max(1, PHASES // (out[0].size * np.dtype(plan.compute).itemsize)), images)
    for start in range(0, plan.batch, images):
        count = min(images, plan.batch - start)
        made = input_job(replace(plan, batch=count), numba.get_num_threads())
        if made is None:
            break
        made.run(grad[start : start + count], weight, out[start : start + count])
    else:
        return
    (top, bottom), (left, right) = planner.padded(plan)
    down, across = planner.phases(plan.y, top, bottom), planner.phases(plan.x, left, right)
    planar = plan.layout == "NCHW"
    height, width = bottom - top, right - left

    def fresh(channels: int, rows: int, columns: int) -> Array:
        size = (channels, rows, columns) if planar else (rows, columns, channels)
        return np.empty((plan.batch, *size), plan.compute)

    whole = fresh(plan.channels, height, width)
    for one in down:
        for two in across:
            part = fresh(plan.filters, one.axis.out, two.axis.out)
            _correlate(plan, one, two, grad, weight, part)
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
) -> None:
    """Write the gradient of one phase, for each filter, in the compute dtype."""
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
            output=plan.compute,
        ),
        grad, taps, np.zeros(plan.filters, plan.compute), out,
    )  # fmt: skip

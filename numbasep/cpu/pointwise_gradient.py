"""The weight gradient of the pointwise convolution on the CPU.

``out[o][c] = sum_p grad[p][o] * image[p][c]``. A work item takes a slice of the pixels and some of
the outputs. A chunk at a time, it packs both factors into panels, some channels of all pixels, so
that what a product reads of them is in a row:

    image  panels of VECTORS vectors    |p0 c0 .. c15|p1 c0 .. c15| ...
    grad   panels of SHARE outputs      |p0 o0 .. o47|p1 o0 .. o47| ...

and adds the products of all panels to the slice's sums. Those of slices are added at the end.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numba
import numpy as np
from numba import njit
from numpy.typing import NDArray

from numbasep.cpu import (
    atomics,
    blocks,
    combine,
    compiled,
    jobs,
    pointwise,
    queues,
    simd,
    transposes,
)  # fmt: skip
from numbasep.cpu.channels import Prepared, bounds_of, move_row
from numbasep.cpu.combine import add_row, clear
from numbasep.cpu.passes import move
from numbasep.cpu.pool import address
from numbasep.plan import cpu_tiles
from numbasep.plan import gradients as planner
from numbasep.plan.channelwise import PointwisePlan

Array = NDArray[Any]

# Outputs of a panel; pixels of a chunk, and of a slice at least.
SHARE, CHUNK = 8 * pointwise.ROWS, 256
# Elements of the sums of all slices, and items, enough for many threads.
SUMMED, ITEMS = 1 << 18, 16

# Places of the numbers that describe a product: addresses of the factors, sums, zeros, geometry and
# slices' first pixels; channels, outputs, panels of outputs in an item, groups of them; elements
# of an image's panel; pixels of an image; bytes of an element; places in the scratch memory.
(
    GRAD, IMAGE, SUMS, ZEROS, GEOMETRY, STARTS, MIX,
    C, COUT, SHARES, GROUPS, PANEL, PLANE, SIZE, PLANAR, LEFT_AT, RESULT_AT, COPY_AT,
) = range(18)  # fmt: skip


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def pack_plane(src: int, dst: int, pixels: int, n: int, pitch: int, row: int, compute: Any) -> None:
    """Write n planes' pixels as pixels' channels: bytes between planes, and between pixels."""
    lanes, wide = blocks.vector_lanes(compute), simd.size_of(compute)
    c = 0
    while pixels >= lanes and c + lanes <= n:
        p = 0
        while p < pixels:
            # The last pixels once more.
            p = min(p, pixels - lanes)
            transposes.transpose(
                src + c * pitch + p * wide, pitch, dst + p * row + c * wide, row, compute
            )
            p += lanes
        c += lanes
    while c < n:
        for p in range(pixels):
            move(src + c * pitch + p * wide, dst + p * row + c * wide, wide)
        c += 1


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def pack(
    q: Array, src: int, channels: int, first: int, last: int, block: int, start: int, count: int,
    dst: int, storage: Any, compute: Any, spec: Any,
) -> None:  # fmt: skip
    """Pack channels first to last of ``count`` pixels into panels of ``block``."""
    wide = simd.size_of(compute)
    row = block * wide
    for c in range(first, last, block):
        n = min(block, last - c)
        if q[PLANAR]:
            p = 0
            while p < count:
                image, at = (start + p) // q[PLANE], (start + p) % q[PLANE]
                some = min(q[PLANE] - at, count - p)
                plane = src + ((image * channels + c) * q[PLANE] + at) * wide
                pack_plane(plane, dst + p * row, some, n, q[PLANE] * wide, row, compute)
                p += some
        else:
            for p in range(count):
                pixel = src + ((start + p) * channels + c) * q[SIZE]
                move_row(pixel, dst + p * row, n, storage, compute, compute, spec)
        dst += count * row


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def work(
    numbers: int, queued: int, own: int, scratch: int, storage: Any, compute: Any, spec: Any
) -> None:
    """Take slices of groups of outputs until there are none."""
    q = simd.as_pointer(numbers)
    wide = simd.size_of(compute)
    panel, tile, geometry = q[PANEL], scratch + q[RESULT_AT], scratch + q[COPY_AT]
    for k in range(pointwise.GEOMETRY_SIZE):
        atomics.poke(geometry + 8 * k, atomics.peek(q[GEOMETRY] + 8 * k))
    while True:
        item = queues.take(queued, own)
        if item == queues.NOTHING:
            break
        group, part = item % q[GROUPS], item // q[GROUPS]
        first = group * q[SHARES] * SHARE
        last = min(first + q[SHARES] * SHARE, q[COUT])
        sums, end = q[SUMS] + part * q[COUT] * q[C] * wide, atomics.peek(q[STARTS] + 8 * part + 8)
        clear(sums + first * q[C] * wide, (last - first) * q[C] * wide)
        for start in range(atomics.peek(q[STARTS] + 8 * part), end, CHUNK):
            count = min(CHUNK, end - start)
            atomics.poke(geometry + 8 * pointwise.COUNT, count)
            left = scratch + q[LEFT_AT]
            pack(q, q[IMAGE], q[C], 0, q[C], panel, start, count, scratch, storage, compute, spec)
            pack(
                q, q[GRAD], q[COUT], first, last, SHARE, start, count, left, storage, compute, spec
            )
            for o in range(first, last, SHARE):
                rows = min(SHARE, last - o)
                for c in range(0, q[C], panel):
                    n = min(panel, q[C] - c)
                    atomics.call8(
                        q[MIX], geometry, left, scratch + c * count * wide, pointwise.LOOSE, tile,
                        q[ZEROS], rows, n,
                    )  # fmt: skip
                    to = sums + (o * q[C] + c) * wide
                    for r in range(rows):
                        add_row(to + r * q[C] * wide, tile + r * panel * wide, n, compute)
                left += count * SHARE * wide
        queues.finish(queued, own)


@cache
def driver(storage: str, compute: str) -> Any:
    """Return ``void (numbers, queued, own, scratch)``, the kernel for ``pool.run``."""
    stored, computed, spec = simd.tag(storage), simd.tag(compute), blocks.number_tag(0)

    @compiled.cfunc("void(int64, int64, int64, int64)")
    def driver(numbers: int, queued: int, own: int, scratch: int) -> None:
        work(numbers, queued, own, scratch, stored, computed, spec)

    return driver


def steps(plan: PointwisePlan, threads: int) -> tuple[list[jobs.Step], dict[str, int]]:
    """Return the steps of a job that write the gradient to the weight into ``out``.

    Planes (NCHW) are of the compute dtype.
    """
    wide, planar = np.dtype(plan.compute).itemsize, plan.layout == "NCHW"
    storage = plan.compute if planar else plan.storage
    pixels, shares = plan.batch * plan.pixels, -(-plan.outputs // SHARE)
    slices = max(1, min(pixels // CHUNK, SUMMED // (plan.outputs * plan.channels), planner.PARTS))
    if pixels * plan.outputs * plan.channels < 2 * cpu_tiles.ALONE:
        threads = 1
    # The bits do not depend on groups: an output's sums are its own.
    together = -(-shares // -(-ITEMS // slices))
    groups = -(-shares // together)
    starts = np.arange(slices + 1, dtype=np.int64) * pixels // slices
    bounds = bounds_of(plan.compute, "none")
    panel = pointwise.VECTORS * blocks.lanes_of(plan.compute)
    geometry = np.array(
        [wide, SHARE * wide, panel * wide, panel * wide, 0, address(bounds), 0], np.int64
    )
    zeros = np.zeros(panel, plan.compute)
    left_at = -(-plan.channels // panel) * panel * CHUNK * wide
    result_at = left_at + together * SHARE * CHUNK * wide
    copy_at = result_at + SHARE * panel * wide
    numbers = np.zeros(COPY_AT + 1, np.int64)
    numbers[ZEROS:] = (
        address(zeros), address(geometry), address(starts),
        pointwise.mixer(plan.compute, 2).address, plan.channels, plan.outputs, together, groups,
        panel, plan.pixels, simd.itemsize(storage), planar, left_at, result_at, copy_at,
    )  # fmt: skip
    owners = bounds, geometry, zeros, starts
    made = Prepared(numbers, groups * slices, copy_at + 64, threads, owners)
    function = driver(storage, plan.compute).address
    if slices == 1 and plan.storage == plan.compute:
        return [jobs.step(made, function, "grad", "image", "out")], {}
    count = plan.outputs * plan.channels
    added = combine.step(
        "matrix sums",
        "out",
        plan.compute,
        plan.storage,
        threads,
        slices,
        count,
        1,
        count,
        count,
        (0, 1),
    )
    parts = jobs.step(made, function, "grad", "image", "matrix sums")
    return [parts, added], {"matrix sums": slices * count * wide}


@lru_cache(maxsize=512)
def job(plan: PointwisePlan, threads: int) -> jobs.Job:
    """Return what to do with ``image``, ``grad`` and ``out``."""
    return jobs.job(("image", "grad", "out"), *steps(plan, threads))


def run_weight_gradient(plan: PointwisePlan, image: Array, grad: Array, out: Array) -> None:
    """Write the gradient to the weight into ``out``; see ``plan.gradients``."""
    if grad.size == 0:
        out[...] = 0
        return
    if plan.layout == "NCHW":
        image, grad = (np.ascontiguousarray(one, plan.compute) for one in (image, grad))
    job(plan, numba.get_num_threads()).run(image, grad, out)

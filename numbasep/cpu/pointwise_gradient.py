"""The weight gradient of the pointwise convolution on the CPU.

``out[o][c] = sum_p grad[p][o] * image[p][c]``. Both are packed into panels, some channels of all
pixels, so that what a product reads of them is in a row:

    image  panels of VECTORS vectors    |p0 c0 .. c15|p1 c0 .. c15| ...
    grad   panels of SHARE outputs      |p0 o0 .. o47|p1 o0 .. o47| ...

A work item is the product of a slice of one panel of the gradient, pixels ascending, with those of
the image; the partial sums of slices are added in pairs.
"""

from __future__ import annotations

import zlib
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import njit
from numpy.typing import NDArray

from numbasep.cpu import atomics, blocks, compiled, pointwise, pool, products, simd
from numbasep.cpu.depthwise import Prepared, bounds_of, move_row
from numbasep.cpu.pool import address
from numbasep.cpu.separable import move
from numbasep.plan import cpu_tiles
from numbasep.plan import gradients as planner
from numbasep.plan.channelwise import PointwisePlan

Array = NDArray[Any]

VERSION = zlib.crc32(
    Path(str(products.__file__)).read_bytes() + Path(__file__).read_bytes(), pointwise.VERSION
)

# Rows of the result in a work item, and the fewest pixels of a slice.
SHARE, LEAST = 8 * pointwise.ROWS, 256
# Pixels that are packed at a time where they are neighbours (NHWC).
CHUNK = 512

# Places of the numbers that describe a product: addresses of what is packed, and of the slices'
# geometry and first pixels; channels, outputs, shares, elements of an image's panel, pixels.
GRAD, IMAGE, SUMS, ZEROS, GEOMETRY, STARTS, MIX, C, COUT, SHARES, PANEL, PIXELS, WIDE = range(13)

# Places of the numbers that describe a packing: addresses; channels, pixels of an image, images;
# elements of a panel, panels; bytes of an element.
SRC, DST, CHANNELS, PLANE, BATCH, BLOCK, PANELS, SIZE = range(8)


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def pack_planes(numbers: int, taken: int, items: int, compute: Any) -> None:
    """Pack a panel's channels of one image, until there are none; NCHW."""
    q = simd.as_pointer(numbers)
    lanes, wide = blocks.vector_lanes(compute), simd.size_of(compute)
    pixels, row = q[PLANE], q[BLOCK] * wide
    while True:
        item = atomics.take(taken)
        if item >= items:
            break
        panel, n = item % q[PANELS], item // q[PANELS]
        first = panel * q[BLOCK]
        count, c = min(q[BLOCK], q[CHANNELS] - first), 0
        src = q[SRC] + (n * q[CHANNELS] + first) * pixels * wide
        dst = q[DST] + (panel * q[BATCH] + n) * pixels * row
        while pixels >= lanes and c + lanes <= count:
            p = 0
            while p < pixels:
                # The last pixels once more.
                p = min(p, pixels - lanes)
                blocks.transpose(
                    src + (c * pixels + p) * wide, pixels * wide, dst + p * row + c * wide, row,
                    compute,
                )  # fmt: skip
                p += lanes
            c += lanes
        while c < count:
            for p in range(pixels):
                move(src + (c * pixels + p) * wide, dst + p * row + c * wide, wide)
            c += 1
        atomics.take(taken + 8)


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def pack_pixels(
    numbers: int, taken: int, items: int, storage: Any, compute: Any, spec: Any
) -> None:
    """Pack a panel's channels of some pixels, until there are none; NHWC."""
    q = simd.as_pointer(numbers)
    row, pixels = q[BLOCK] * simd.size_of(compute), q[BATCH] * q[PLANE]
    while True:
        item = atomics.take(taken)
        if item >= items:
            break
        panel, chunk = item % q[PANELS], item // q[PANELS]
        first = panel * q[BLOCK]
        count = min(q[BLOCK], q[CHANNELS] - first)
        for p in range(chunk * CHUNK, min((chunk + 1) * CHUNK, pixels)):
            src = q[SRC] + (p * q[CHANNELS] + first) * q[SIZE]
            move_row(
                src, q[DST] + (panel * pixels + p) * row, count, storage, compute, compute, spec
            )
        atomics.take(taken + 8)


@cache
def panels_packer(planar: bool, storage: str, compute: str, version: int = VERSION) -> Any:
    """Return ``void (numbers, counter, items, scratch)``, the kernel for ``pool.run``."""
    stored, computed, spec = simd.tag(storage), simd.tag(compute), blocks.number_tag(0)

    if planar:

        @compiled.cfunc("void(int64, int64, int64, int64)")
        def planes(numbers: int, counter: int, items: int, scratch: int) -> None:
            if version:
                pack_planes(numbers, counter, items, computed)

        return planes

    @compiled.cfunc("void(int64, int64, int64, int64)")
    def pixels(numbers: int, counter: int, items: int, scratch: int) -> None:
        if version:
            pack_pixels(numbers, counter, items, stored, computed, spec)

    return pixels


def packed(plan: PointwisePlan, array: Array, block: int, threads: int) -> Array:
    """Return the panels of ``block`` channels of an image: (panels, all pixels, block)."""
    planar = plan.layout == "NCHW"
    channels = array.shape[1 if planar else 2]
    panels = -(-channels // block)
    if planar:
        array = np.ascontiguousarray(array, plan.compute)
        items = plan.batch * panels
    else:
        items = -(-plan.batch * plan.pixels // CHUNK) * panels
    made = np.empty((panels, plan.batch * plan.pixels, block), plan.compute)
    numbers = np.array(
        [
            address(array), address(made), channels, plan.pixels, plan.batch, block, panels,
            simd.itemsize(plan.storage),
        ],
        np.int64,
    )  # fmt: skip
    storage = plan.compute if planar else plan.storage
    pool.run(
        panels_packer(planar, storage, plan.compute).address, numbers, items, 64, threads,
        (array, made, numbers),
    )  # fmt: skip
    return made


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def work(numbers: int, taken: int, items: int) -> None:
    """Take slices of shares of the rows until there are none."""
    q = simd.as_pointer(numbers)
    wide = q[WIDE]
    while True:
        item = atomics.take(taken)
        if item >= items:
            break
        share, part = item % q[SHARES], item // q[SHARES]
        first, start = share * SHARE, atomics.peek(q[STARTS] + 8 * part)
        left = q[GRAD] + (share * q[PIXELS] + start) * SHARE * wide
        out = q[SUMS] + (part * q[COUT] + first) * q[C] * wide
        for c in range(0, q[C], q[PANEL]):
            atomics.call7(
                q[MIX], q[GEOMETRY] + 48 * part, left,
                q[IMAGE] + (c * q[PIXELS] + start * q[PANEL]) * wide, out + c * wide, q[ZEROS],
                min(SHARE, q[COUT] - first), min(q[PANEL], q[C] - c),
            )  # fmt: skip
        atomics.take(taken + 8)


@cache
def driver(version: int = VERSION) -> Any:
    """Return ``void (numbers, counter, items, scratch)``, the kernel for ``pool.run``."""

    @compiled.cfunc("void(int64, int64, int64, int64)")
    def driver(numbers: int, counter: int, items: int, scratch: int) -> None:
        if version:
            work(numbers, counter, items)

    return driver


@lru_cache(maxsize=512)
def prepare(plan: PointwisePlan) -> tuple[Prepared, int]:
    """Return what calls of a plan share, and the number of slices."""
    wide = np.dtype(plan.compute).itemsize
    pixels, shares = plan.batch * plan.pixels, -(-plan.outputs // SHARE)
    slices = planner.slices(-(-pixels // LEAST), shares)
    starts = np.arange(slices + 1, dtype=np.int64) * pixels // slices
    bounds = bounds_of(plan.compute, "none")
    geometry = np.zeros((slices, 6), np.int64)
    panel = pointwise.VECTORS * blocks.lanes_of(plan.compute)
    geometry[:] = wide, SHARE * wide, panel * wide, plan.channels * wide, 0, address(bounds)
    geometry[:, pointwise.COUNT] = np.diff(starts)
    zeros = np.zeros(panel, plan.compute)
    numbers = np.zeros(WIDE + 1, np.int64)
    numbers[ZEROS:] = (
        address(zeros), address(geometry), address(starts),
        pointwise.mixer(plan.compute, 2).address, plan.channels, plan.outputs, shares, panel,
        pixels, wide,
    )  # fmt: skip
    return Prepared(numbers, shares * slices, 64, 1, (bounds, geometry, zeros, starts)), slices


def run_weight_gradient(plan: PointwisePlan, image: Array, grad: Array, out: Array) -> None:
    """Write the gradient to the weight into ``out``; see ``plan.gradients``."""
    if grad.size == 0:
        out[...] = 0
        return
    made, slices = prepare(plan)
    threads = numba.get_num_threads()
    if grad.size * plan.channels < 2 * cpu_tiles.ALONE:
        threads = 1
    panel = pointwise.VECTORS * blocks.lanes_of(plan.compute)
    image, grad = packed(plan, image, panel, threads), packed(plan, grad, SHARE, threads)
    sums = np.empty((slices, plan.outputs, plan.channels), plan.compute)
    numbers = made.numbers.copy()
    numbers[:ZEROS] = address(grad), address(image), address(sums)
    pool.run(
        driver().address, numbers, made.items, made.scratch, threads,
        (image, grad, sums, numbers, made),
    )  # fmt: skip
    np.copyto(out, products.added(sums, 0), casting="unsafe")

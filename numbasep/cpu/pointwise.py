"""Pointwise (1x1) convolution on the CPU: blocks of a matrix product, in the pool's threads.

A thread takes a tile of pixels, and for each block of rows by vectors of the result runs through
all channels with the sums in registers, so that channels are always summed in the same order:

    NCHW: rows are output channels (weights as they are), vectors are pixels (packed in L2)
    NHWC: rows are pixels (the image as it is), vectors are output channels (weights packed)
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import njit
from numpy.typing import NDArray

from numbasep.cpu import atomics, blocks, compiled, depthwise, pool, simd
from numbasep.cpu.depthwise import (
    ACTIVATED,
    Prepared,
    bounds_of,
    finisher,
    packer,
    rounded,
)
from numbasep.cpu.pool import address
from numbasep.cpu.separable import move
from numbasep.plan import cpu_tiles
from numbasep.plan.channelwise import PointwisePlan

Array = NDArray[Any]

VERSION = zlib.crc32(Path(__file__).read_bytes(), depthwise.VERSION)

# As many sums as registers hold beside a row of the right factor and one weight.
ROWS, VECTORS = (8, 3) if simd.REGISTERS == 32 else (6, 2)
mix_full = blocks.make_mix(ROWS, VECTORS, masked=False)
mix_edge3 = blocks.make_mix(ROWS, VECTORS, masked=True)
mix_edge2 = blocks.make_mix(ROWS, 2, masked=True)
mix_edge1 = blocks.make_mix(ROWS, 1, masked=True)
mix_row = blocks.make_mix(1, VECTORS, masked=True)

# The geometry of a product: bytes between rows and between channels of the left factor, between
# channels of the right one and between rows of the result; channels; address of the bounds.
A_ROW, A_STEP, B_STEP, C_ROW, COUNT, BOUNDS = range(6)

# Places of the numbers that describe a pointwise convolution.
(
    IMAGE, OUT, WEIGHT, BIAS,
    C, COUT, PIXELS, SIZE, WIDE, NARROW, TILE, TILES, SHARE, SHARES, PITCH, PANEL, PACK, MIX,
    FINISH, GEOMETRY, TO_SCRATCH, BLOCK, RESULT_AT, PLANAR,
) = range(24)  # fmt: skip
NUMBERS = 24
PER_CALL = 4


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def mix_block(
    g: int, a: int, b: int, c: int, bias: int, rows: int, n: int, compute: Any, spec: Any
) -> None:
    """A product of ``rows`` rows and n columns; the last block of rows takes some again."""
    lanes, wide = blocks.vector_lanes(compute), simd.size_of(compute)
    a_row, a_step = atomics.peek(g + 8 * A_ROW), atomics.peek(g + 8 * A_STEP)
    b_step, c_row = atomics.peek(g + 8 * B_STEP), atomics.peek(g + 8 * C_ROW)
    count, bounds = atomics.peek(g + 8 * COUNT), atomics.peek(g + 8 * BOUNDS)
    by_row = wide if blocks.number_of(spec) == 1 else 0
    by_column = wide - by_row
    r = 0
    while r < rows:
        if rows >= ROWS:
            r = min(r, rows - ROWS)
        left, to, shift = a + r * a_row, c + r * c_row, bias + r * by_row
        x = 0
        while x < n:
            at, more = x * wide, n - x
            right, dst, add = b + at, to + at, shift + x * by_column
            if rows < ROWS:
                mix_row(
                    left, a_row, a_step, right, b_step, count, dst, c_row, add, bounds, more,
                    compute, spec,
                )  # fmt: skip
                x += VECTORS * lanes
            elif more >= VECTORS * lanes:
                mix_full(
                    left, a_row, a_step, right, b_step, count, dst, c_row, add, bounds, more,
                    compute, spec,
                )  # fmt: skip
                x += VECTORS * lanes
            elif more > 2 * lanes:
                mix_edge3(
                    left, a_row, a_step, right, b_step, count, dst, c_row, add, bounds, more,
                    compute, spec,
                )  # fmt: skip
                x += VECTORS * lanes
            elif more > lanes:
                mix_edge2(
                    left, a_row, a_step, right, b_step, count, dst, c_row, add, bounds, more,
                    compute, spec,
                )  # fmt: skip
                x += 2 * lanes
            else:
                mix_edge1(
                    left, a_row, a_step, right, b_step, count, dst, c_row, add, bounds, more,
                    compute, spec,
                )  # fmt: skip
                x += lanes
        r += ROWS if rows >= ROWS else 1


@cache
def mixer(compute: str, bias: int, version: int = VERSION) -> Any:
    """Return ``void (g, a, b, c, bias, rows, n)``; bias 1 by row, 2 by column."""
    computed, spec = simd.tag(compute), blocks.number_tag(bias)

    @compiled.cfunc("void(" + ", ".join(["int64"] * 7) + ")")
    def mix(g: int, a: int, b: int, c: int, bias: int, rows: int, n: int) -> None:
        if version:
            mix_block(g, a, b, c, bias, rows, n, computed, spec)

    return mix


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def mix_planes(q: Array, scratch: int, panel: int, out: int, n: int, first: int, last: int) -> None:
    """Output channels first to last of n pixels, from a panel of all channels; NCHW."""
    wide, narrow = q[WIDE], q[NARROW]
    weight, row = q[WEIGHT] + first * q[C] * wide, q[PIXELS] * narrow
    if q[FINISH] == 0:
        atomics.call7(
            q[MIX], q[GEOMETRY], weight, panel, out + first * row, q[BIAS] + first * wide,
            last - first, n,
        )  # fmt: skip
        return
    result = scratch + q[RESULT_AT]
    for o in range(first, last, ROWS):
        rows = min(ROWS, last - o)
        atomics.call7(
            q[MIX], q[TO_SCRATCH], q[WEIGHT] + o * q[C] * wide, panel, result,
            q[BIAS] + o * wide, rows, n,
        )  # fmt: skip
        for r in range(rows):
            atomics.call3(q[FINISH], result + r * q[PITCH], out + (o + r) * row, n)


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def mix_pixels(
    q: Array, scratch: int, pixels: int, out: int, count: int, first: int, last: int
) -> None:
    """Output channels first to last of ``count`` pixels, from pixels of all channels; NHWC."""
    wide, narrow, block = q[WIDE], q[NARROW], q[BLOCK]
    for o in range(first, last, block):
        n = min(block, q[COUT] - o)
        weight, bias = q[WEIGHT] + o * q[C] * wide, q[BIAS] + o * wide
        if q[FINISH] == 0:
            atomics.call7(q[MIX], q[GEOMETRY], pixels, weight, out + o * narrow, bias, count, n)
            continue
        result = scratch + q[RESULT_AT]
        for i in range(0, count, ROWS):
            rows = min(ROWS, count - i)
            atomics.call7(
                q[MIX], q[TO_SCRATCH], pixels + i * q[C] * wide, weight, result, bias, rows, n
            )
            for r in range(rows):
                to = out + ((i + r) * q[COUT] + o) * narrow
                atomics.call3(q[FINISH], result + r * block * wide, to, n)


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def work(numbers: int, taken: int, items: int, scratch: int) -> None:
    """Take tiles of pixels, and shares of the output channels, until there are none."""
    q = simd.as_pointer(numbers)
    panel = scratch + q[PANEL]
    while True:
        item = atomics.take(taken)
        if item >= items:
            break
        share, rest = item % q[SHARES], item // q[SHARES]
        tile, image = rest % q[TILES], rest // q[TILES]
        first = share * q[SHARE]
        last = min(first + q[SHARE], q[COUT])
        start = tile * q[TILE]
        n = min(q[TILE], q[PIXELS] - start)
        if q[PLANAR]:
            for c in range(q[C]):
                src = q[IMAGE] + ((image * q[C] + c) * q[PIXELS] + start) * q[SIZE]
                atomics.call7(q[PACK], src, panel + c * q[PITCH], n, 1, 0, 0, 0)
            out = q[OUT] + (image * q[COUT] * q[PIXELS] + start) * q[NARROW]
            mix_planes(q, scratch, panel, out, n, first, last)
        else:
            src = q[IMAGE] + start * q[C] * q[SIZE]
            if q[PACK] != 0:
                atomics.call7(q[PACK], src, panel, n * q[C], 1, 0, 0, 0)
                src = panel
            mix_pixels(q, scratch, src, q[OUT] + start * q[COUT] * q[NARROW], n, first, last)
        atomics.take(taken + 8)


@cache
def driver(version: int = VERSION) -> Any:
    """Return ``void (numbers, counter, items, scratch)``, the kernel for ``pool.run``."""

    @compiled.cfunc("void(int64, int64, int64, int64)")
    def driver(numbers: int, counter: int, items: int, scratch: int) -> None:
        if version:
            work(numbers, counter, items, scratch)

    return driver


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def transpose_work(numbers: int, taken: int, items: int, compute: Any) -> None:
    """Pack blocks of output channels: for each channel the weights of a block are neighbours."""
    q = simd.as_pointer(numbers)
    weight, packed, outputs, channels, block = q[0], q[1], q[2], q[3], q[4]
    lanes, wide = blocks.vector_lanes(compute), simd.size_of(compute)
    pitch = channels * wide
    while True:
        item = atomics.take(taken)
        if item >= items:
            break
        first = item * block
        dst = packed + first * pitch
        rows, r = min(block, outputs - first), 0
        if channels >= lanes:
            while r + lanes <= rows:
                row, c = weight + (first + r) * pitch, 0
                while c < channels:
                    c = min(c, channels - lanes)
                    to = dst + (c * block + r) * wide
                    blocks.transpose(row + c * wide, pitch, to, block * wide, compute)
                    c += lanes
                r += lanes
        while r < rows:
            row = weight + (first + r) * pitch
            for c in range(channels):
                move(row + c * wide, dst + (c * block + r) * wide, wide)
            r += 1
        atomics.take(taken + 8)


@cache
def transposer(compute: str, version: int = VERSION) -> Any:
    """Return the kernel that packs weights for NHWC."""
    computed = simd.tag(compute)

    @compiled.cfunc("void(int64, int64, int64, int64)")
    def transpose(numbers: int, counter: int, items: int, scratch: int) -> None:
        if version:
            transpose_work(numbers, counter, items, computed)

    return transpose


def packed_weight(plan: PointwisePlan, weight: Array, threads: int) -> Array:
    """Return the weights as the blocks take them."""
    if plan.layout == "NCHW":
        return weight
    block = VECTORS * blocks.lanes_of(plan.compute)
    count = -(-plan.outputs // block)
    packed = np.empty((count, plan.channels, block), weight.dtype)
    if plan.outputs % block:
        packed[-1] = 0
    numbers = np.array(
        [address(weight), address(packed), plan.outputs, plan.channels, block], np.int64
    )
    pool.run(transposer(plan.compute).address, numbers, count, 0, threads, (weight, packed))
    return packed


@dataclass(frozen=True, slots=True)
class Tile:
    """A work item: ``pixels`` pixels of ``share`` output channels."""

    pixels: int
    share: int
    threads: int

    def __str__(self) -> str:
        return f"{self.share} outputs by {self.pixels} pixels, {self.threads} threads"


@lru_cache(maxsize=1024)
def choose(plan: PointwisePlan, threads: int) -> Tile:
    """Return the tile for a plan."""
    wide = np.dtype(plan.compute).itemsize
    lanes = blocks.lanes_of(plan.compute)
    if plan.batch * plan.pixels * plan.channels * plan.outputs < 2 * cpu_tiles.ALONE:
        threads = 1
    planar = plan.layout == "NCHW"
    step = lanes if planar else ROWS
    whole = plan.pixels if planar else plan.batch * plan.pixels
    images = plan.batch if planar else 1
    most = max(cpu_tiles.L2_BYTES // (plan.channels * wide) // (VECTORS * step), 1)
    most = min(most * VECTORS * step, 8 * VECTORS * lanes)
    count = -(-whole // most)
    if images * count < 4 * threads and threads > 1:
        count = min(max(count, 4 * threads // images), max(1, whole // (2 * VECTORS * step)))
    pixels = rounded(-(-whole // count), step)
    tiles = images * -(-whole // pixels)
    shares = 1 if tiles >= 2 * threads else -(-2 * threads // tiles)
    unit = ROWS if planar else VECTORS * lanes
    share = rounded(-(-plan.outputs // shares), unit)
    return Tile(pixels, share, threads)


@lru_cache(maxsize=512)
def prepare(plan: PointwisePlan, tile: Tile, pitch: int = 0) -> Prepared:
    """Return what calls of a plan share; pitch: bytes of a panel's rows where a caller has one."""
    wide, narrow = np.dtype(plan.compute).itemsize, simd.itemsize(plan.output)
    planar = plan.layout == "NCHW"
    block = VECTORS * blocks.lanes_of(plan.compute)
    finishing = plan.output != plan.compute or plan.activation in ACTIVATED
    # Whole blocks are read beyond the last pixel; an odd number of lines between rows.
    lines = -(-tile.pixels * wide // 64)
    pitch = pitch or (lines | 1) * 64
    bounds = bounds_of(plan.compute, plan.activation)
    row = plan.channels * wide
    geometry = np.zeros((2, 6), np.int64)
    if planar:
        geometry[0] = row, wide, pitch, plan.pixels * wide, plan.channels, address(bounds)
    else:
        geometry[0] = row, wide, block * wide, plan.outputs * wide, plan.channels, address(bounds)
    geometry[1] = geometry[0]
    geometry[1, C_ROW] = pitch if planar else block * wide
    whole = plan.pixels if planar else plan.batch * plan.pixels
    tiles, shares = -(-whole // tile.pixels), -(-plan.outputs // tile.share)
    packs = planar or plan.storage != plan.compute
    panel = (plan.channels * pitch if planar else tile.pixels * row) if packs else 0
    result = ROWS * (pitch if planar else block * wide) if finishing else 0
    # Whole blocks are read beyond the last pixel.
    panel += 4 * simd.VECTOR
    numbers = np.zeros(NUMBERS, np.int64)
    numbers[PER_CALL:] = (
        plan.channels, plan.outputs, whole, simd.itemsize(plan.storage), wide, narrow, tile.pixels,
        tiles, tile.share, shares, pitch, -(-result // 64) * 64,
        packer(plan.storage, plan.compute).address if packs else 0,
        mixer(plan.compute, 1 if planar else 2).address,
        finisher(plan.compute, plan.output, ACTIVATED.get(plan.activation, 0)).address
        if finishing
        else 0,
        *(address(one) for one in geometry), block, 0, planar,
    )  # fmt: skip
    items = (plan.batch if planar else 1) * tiles * shares
    scratch = -(-result // 64) * 64 + panel
    return Prepared(numbers, items, scratch, tile.threads, (bounds, geometry))


@lru_cache(maxsize=512)
def chosen(plan: PointwisePlan, threads: int) -> Prepared:
    """Return ``prepare`` of the tile for a plan."""
    return prepare(plan, choose(plan, threads))


def run_pointwise(
    plan: PointwisePlan,
    image: Array,
    weight: Array,
    bias: Array,
    out: Array,
    tile: Tile | None = None,
) -> None:
    """Write the pointwise convolution of ``image`` into ``out``; see ``plan.channelwise``."""
    made = chosen(plan, numba.get_num_threads()) if tile is None else prepare(plan, tile)
    packed = packed_weight(plan, weight, made.threads)
    numbers = made.numbers.copy()
    numbers[:PER_CALL] = [address(a) for a in (image, out, packed, bias)]
    owners = image, out, packed, bias, made
    pool.run(driver().address, numbers, made.items, made.scratch, made.threads, owners)

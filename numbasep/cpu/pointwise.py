"""Pointwise (1x1) convolution on the CPU: blocks of a matrix product, in the pool's threads.

A thread takes a tile of pixels, and for each block of rows by vectors of the result runs through
all channels with the sums in registers, so that channels are always summed in the same order:

    NCHW: rows are output channels (weights as they are), vectors are pixels (packed in L2)
    NHWC: rows are pixels (the image as it is), vectors are output channels (weights packed)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numba
import numpy as np
from numba import njit
from numpy.typing import NDArray

from numbasep.cpu import atomics, blocks, compiled, jobs, queues, simd, transposes, turning
from numbasep.cpu.channels import (
    ACTIVATED,
    Prepared,
    bounds_of,
    finisher,
    packer,
    rounded,
)
from numbasep.cpu.jobs import Job
from numbasep.cpu.passes import move
from numbasep.cpu.pointwise_tiles import Tile, choose, left_over
from numbasep.cpu.pool import address
from numbasep.cpu.turning import turner
from numbasep.plan.channelwise import PointwisePlan

Array = NDArray[Any]

ROWS, VECTORS = blocks.MIX_ROWS, blocks.MIX_VECTORS
mix_full = blocks.make_mix(ROWS, VECTORS)
mix_two = blocks.make_mix(ROWS, 2)
mix_one = blocks.make_mix(ROWS, 1)
mix_edge = blocks.make_mix(ROWS, VECTORS, masked=True)
mix_row = blocks.make_mix(1, VECTORS, masked=True)
columns_one = transposes.make_mix_columns(1)
columns_two = transposes.make_mix_columns(2)
columns_four = transposes.make_mix_columns(4)
copy = blocks.make_move(masked=False)

# The geometry of a product: bytes between rows and between channels of the left factor, between
# channels of the right one and between rows of the result; channels; address of the bounds; columns
# that are packed at a time, whole blocks; 0: none.
A_ROW, A_STEP, B_STEP, C_ROW, COUNT, BOUNDS, WIDTH = range(7)
GEOMETRY_SIZE = 7

# Where the right factor is packed, if it is not an address: it is read where it is, or it is in
# blocks already, one after the other.
LOOSE, IN_BLOCKS = 0, -1

# Columns that are packed at a time, and the most bytes of them: they stay in L2.
PACKED, PACKED_BYTES = 128, 96 << 10
# Rows of a product up to which its columns are read where they are, if they do not displace each
# other from the caches: their distance is no multiple of so many bytes. In vectors as long as a
# cache line they always are.
FEW, DISPLACED = (8 * ROWS, 2048) if simd.VECTOR < simd.LINE else (1 << 62, 1 << 62)

# Rows of a product that has to be finished, at a time.
ROUND = 8 * ROWS

# Places of the numbers that describe a pointwise convolution.
(
    IMAGE, OUT, WEIGHT, BIAS,
    C, COUT, PIXELS, SIZE, WIDE, NARROW, TILE, TILES, SHARE, SHARES, PITCH, PACKED_AT, PANEL, PACK,
    MIX, FINISH, GEOMETRY, TO_SCRATCH, BLOCK, PLANAR, TURN, IMAGES, LEFT, LEFT_AT, BESIDE,
    TOGETHER, UNIT,
) = range(31)  # fmt: skip
NUMBERS = 31
PER_CALL = 4


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def pack_block(
    src: int, step: int, dst: int, count: int, vectors: int, compute: Any, plain: Any
) -> None:
    """Copy ``vectors`` vectors of each of ``count`` rows into blocks, one after the other.

    Several blocks at a time: neighbours in memory are read together.
    """
    lanes = blocks.vector_lanes(compute)
    size = lanes * simd.size_of(compute)
    for k in range(count):
        row, v = src + k * step, 0
        to = dst + k * VECTORS * size
        while v + VECTORS <= vectors:
            for i in range(VECTORS):
                copy(row + i * size, to + i * size, lanes, compute, compute, compute, plain)
            row += VECTORS * size
            to += count * VECTORS * size
            v += VECTORS
        while v < vectors:
            # A last block of fewer vectors has no gaps either.
            at = dst + (v // VECTORS * count * VECTORS + k * (vectors % VECTORS)) * size
            copy(row, at + v % VECTORS * size, lanes, compute, compute, compute, plain)
            row += size
            v += 1


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def mix_last(
    a: int, a_row: int, b: int, b_step: int, count: int, c: int, c_row: int, bias: int,
    bounds: int, rows: int, n: int, compute: Any,
) -> None:  # fmt: skip
    """The last one, two or four columns of a product: in vectors of rows, not of columns.

    The elements that vectors of rows have for a channel come together in registers.
    """
    lanes, wide = blocks.vector_lanes(compute), simd.size_of(compute)
    r = 0
    while r < rows:
        at = min(r, rows - lanes)
        left, to, shift = a + at * a_row, c + at * c_row, bias + at * wide
        if n == 1:
            columns_one(left, a_row, b, b_step, count, to, c_row, shift, bounds, compute)
        elif n == 2:
            columns_two(left, a_row, b, b_step, count, to, c_row, shift, bounds, compute)
        else:
            columns_four(left, a_row, b, b_step, count, to, c_row, shift, bounds, compute)
        r += lanes


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def mix_block(
    g: int, a: int, b: int, packed: int, c: int, bias: int, rows: int, n: int, compute: Any,
    spec: Any, plain: Any,
) -> None:  # fmt: skip
    """A product of ``rows`` rows and n columns.

    A block of columns, packed with others, stays in L1 while all rows go by. The last block of
    rows takes some rows again, and so does the last of columns where they are neighbours in memory.
    """
    lanes, wide = blocks.vector_lanes(compute), simd.size_of(compute)
    block = VECTORS * lanes
    a_row, a_step = atomics.peek(g + 8 * A_ROW), atomics.peek(g + 8 * A_STEP)
    b_step, c_row = atomics.peek(g + 8 * B_STEP), atomics.peek(g + 8 * C_ROW)
    count, bounds = atomics.peek(g + 8 * COUNT), atomics.peek(g + 8 * BOUNDS)
    by_row = wide if blocks.number_of(spec) == 1 else 0
    by_column = wide - by_row
    width, start, end, x = atomics.peek(g + 8 * WIDTH), 0, 0, 0
    few = by_row != 0 and a_step == wide and rows >= lanes and count % lanes == 0
    while x < n:
        more = n - x
        if few and (more == 1 or more == 2 or more == 4):
            src, dst = b + x * wide, c + x * wide
            mix_last(a, a_row, src, b_step, count, dst, c_row, bias, bounds, rows, more, compute)
            break
        vectors = min(-(-more // lanes), VECTORS)
        right = b + x // block * b_step * count if packed == IN_BLOCKS else b + x * wide
        again = max(vectors * lanes - more, 0)
        whole = rows >= ROWS and (again == 0 or (packed != IN_BLOCKS and again <= x))
        if whole:
            x -= again
            right -= again * wide
        dst, add = c + x * wide, bias + x * by_column
        step = b_step
        if whole and packed > 0 and width > 0 and rows > ROWS:
            step = vectors * lanes * wide
            if x >= end or vectors < VECTORS or again > 0:
                start, end = x, x + vectors * lanes
                if again == 0:
                    end = x + max(min(width, more // block * block), vectors * lanes)
                pack_block(right, b_step, packed, count, (end - start) // lanes, compute, plain)
            right = packed + (x - start) * wide * count
        r = 0
        while r < rows:
            at = min(r, rows - ROWS) if rows >= ROWS else r
            left, to, shift = a + at * a_row, dst + at * c_row, add + at * by_row
            if rows < ROWS:
                mix_row(
                    left, a_row, a_step, right, step, count, to, c_row, shift, bounds, more,
                    compute, spec,
                )  # fmt: skip
                r += 1
                continue
            if not whole:
                mix_edge(
                    left, a_row, a_step, right, step, count, to, c_row, shift, bounds, more,
                    compute, spec,
                )  # fmt: skip
            elif vectors == VECTORS:
                mix_full(
                    left, a_row, a_step, right, step, count, to, c_row, shift, bounds, more,
                    compute, spec,
                )  # fmt: skip
            elif vectors == 1:
                mix_one(
                    left, a_row, a_step, right, step, count, to, c_row, shift, bounds, more,
                    compute, spec,
                )  # fmt: skip
            else:
                mix_two(
                    left, a_row, a_step, right, step, count, to, c_row, shift, bounds, more,
                    compute, spec,
                )  # fmt: skip
            r += ROWS
        x += vectors * lanes


@cache
def mixer(compute: str, bias: int) -> Any:
    """Return ``void (g, a, b, packed, c, bias, rows, n)``; bias 1 by row, 2 by column."""
    computed, spec, plain = simd.tag(compute), blocks.number_tag(bias), blocks.number_tag(0)

    @compiled.cfunc("void(" + ", ".join(["int64"] * 8) + ")")
    def mix(g: int, a: int, b: int, packed: int, c: int, bias: int, rows: int, n: int) -> None:
        mix_block(g, a, b, packed, c, bias, rows, n, computed, spec, plain)

    return mix


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def mix_planes(
    q: Array, scratch: int, planes: int, out: int, n: int, first: int, last: int
) -> None:
    """Output channels first to last of n pixels, from planes of all channels; NCHW."""
    wide, row, packed = q[WIDE], q[PIXELS] * q[NARROW], scratch + q[PACKED_AT]
    if q[FINISH] == 0:
        atomics.call8(
            q[MIX], q[GEOMETRY], q[WEIGHT] + first * q[C] * wide, planes, packed,
            out + first * row, q[BIAS] + first * wide, last - first, n,
        )  # fmt: skip
        return
    for o in range(first, last, ROUND):
        rows = min(ROUND, last - o)
        atomics.call8(
            q[MIX], q[TO_SCRATCH], q[WEIGHT] + o * q[C] * wide, planes, packed, scratch,
            q[BIAS] + o * wide, rows, n,
        )  # fmt: skip
        for r in range(rows):
            atomics.call3(q[FINISH], scratch + r * q[PITCH], out + (o + r) * row, n)


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def mix_left(q: Array, scratch: int, group: int, first: int, last: int) -> None:
    """Output channels first to last of the last pixels of a group of images, side by side; NCHW."""
    wide, left, lanes = q[WIDE], q[LEFT], simd.VECTOR // q[WIDE]
    start = group * q[TOGETHER]
    count = min(q[TOGETHER], q[IMAGES] - start)
    plane, panel, result = q[PIXELS] * wide, scratch + q[LEFT_AT], scratch
    whole = plane - left * wide
    for c in range(q[C]):
        for i in range(count):
            src = q[IMAGE] + ((start + i) * q[C] + c) * plane + whole
            to = panel + c * simd.VECTOR + i * left * wide
            for k in range(left):
                move(src + k * wide, to + k * wide, wide)
        for k in range(count * left, lanes):
            move(panel + c * simd.VECTOR, panel + c * simd.VECTOR + k * wide, wide)
    for o in range(first, last, ROUND):
        rows = min(ROUND, last - o)
        atomics.call8(
            q[MIX], q[BESIDE], q[WEIGHT] + o * q[C] * wide, panel, LOOSE, result,
            q[BIAS] + o * wide, rows, lanes,
        )  # fmt: skip
        for r in range(rows):
            for i in range(count):
                src = result + r * simd.VECTOR + i * left * wide
                to = q[OUT] + ((start + i) * q[COUT] + o + r) * plane + whole
                for k in range(left):
                    move(src + k * wide, to + k * wide, wide)


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def mix_pixels(
    q: Array, scratch: int, pixels: int, weights: int, out: int, count: int, first: int, last: int
) -> None:
    """Output channels first to last of ``count`` pixels, from pixels of all channels; NHWC.

    weights: of those outputs, in blocks.
    """
    wide, narrow, packed = q[WIDE], q[NARROW], IN_BLOCKS
    if q[FINISH] == 0:
        atomics.call8(
            q[MIX], q[GEOMETRY], pixels, weights, packed, out + first * narrow,
            q[BIAS] + first * wide, count, last - first,
        )  # fmt: skip
        return
    block = q[BLOCK]
    for o in range(first, last, block):
        n = min(block, last - o)
        for i in range(0, count, ROUND):
            rows = min(ROUND, count - i)
            atomics.call8(
                q[MIX], q[TO_SCRATCH], pixels + i * q[C] * wide,
                weights + (o - first) * q[C] * wide, packed, scratch, q[BIAS] + o * wide, rows, n,
            )  # fmt: skip
            for r in range(rows):
                to = out + ((i + r) * q[COUT] + o) * narrow
                atomics.call3(q[FINISH], scratch + r * block * wide, to, n)


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def work(numbers: int, queued: int, own: int, scratch: int) -> None:
    """Take tiles of pixels, and shares of the output channels, until there are none."""
    q = simd.as_pointer(numbers)
    panel, turned, held, held_share = scratch + q[PANEL], scratch + q[PACKED_AT], -1, -1
    while True:
        item = queues.take(queued, own)
        if item == queues.NOTHING:
            break
        if q[TURN] != 0:
            share, rest = item // q[TILES], item % q[TILES]
        else:
            share, rest = item % q[SHARES], item // q[SHARES]
        group, tile = rest // q[UNIT], rest % q[UNIT]
        tiles = min(q[TOGETHER], q[IMAGES] - group * q[TOGETHER]) * q[TILES]
        first = share * q[SHARE]
        last = min(first + q[SHARE], q[COUT])
        image = group * q[TOGETHER] + tile // q[TILES]
        start = tile % q[TILES] * q[TILE]
        n = min(q[TILE], q[PIXELS] - q[LEFT] - start)
        if tile == tiles:
            mix_left(q, scratch, group, first, last)
        elif q[PLANAR]:
            src = q[IMAGE] + (image * q[C] * q[PIXELS] + start) * q[SIZE]
            if q[PACK] != 0:
                if rest != held:
                    for c in range(q[C]):
                        row = src + c * q[PIXELS] * q[SIZE]
                        atomics.call7(q[PACK], row, panel + c * q[PITCH], n, 1, 0, 0, 0)
                src = panel
            out = q[OUT] + (image * q[COUT] * q[PIXELS] + start) * q[NARROW]
            mix_planes(q, scratch, src, out, n, first, last)
        else:
            src = q[IMAGE] + start * q[C] * q[SIZE]
            if q[PACK] != 0:
                if rest != held:
                    atomics.call7(q[PACK], src, panel, n * q[C], 1, 0, 0, 0)
                src = panel
            weights = q[WEIGHT] + first * q[C] * q[WIDE]
            if q[TURN] != 0:
                if share != held_share:
                    atomics.call5(q[TURN], weights, turned, last - first, q[C], q[BLOCK])
                weights, held_share = turned, share
            out = q[OUT] + start * q[COUT] * q[NARROW]
            mix_pixels(q, scratch, src, weights, out, n, first, last)
        held = rest
        queues.finish(queued, own)


@cache
def driver() -> Any:
    """Return ``void (numbers, queued, own, scratch)``, the kernel for ``pool.run``."""

    @compiled.cfunc("void(int64, int64, int64, int64)")
    def driver(numbers: int, queued: int, own: int, scratch: int) -> None:
        work(numbers, queued, own, scratch)

    return driver


@lru_cache(maxsize=512)
def prepare(plan: PointwisePlan, tile: Tile, pitch: int = 0) -> Prepared:
    """Return what calls of a plan share; pitch: bytes between planes where a caller has them."""
    wide, narrow = np.dtype(plan.compute).itemsize, simd.itemsize(plan.output)
    planar = plan.layout == "NCHW"
    block = VECTORS * blocks.lanes_of(plan.compute)
    finishing = plan.output != plan.compute or plan.activation in ACTIVATED
    packs = plan.storage != plan.compute
    # A caller who has the planes has them of one image.
    left, together = 0 if pitch else left_over(plan), 1
    if left:
        # Of a thread's own images: lines that two threads have in their caches are slow to write.
        together = min(simd.VECTOR // wide // left, max(-(-plan.batch // tile.threads), 2))
    whole = plan.pixels - left if planar else plan.batch * plan.pixels
    bounds = bounds_of(plan.compute, plan.activation)
    row = plan.channels * wide
    # An odd number of lines between rows.
    line = (-(-tile.pixels * wide // 64) | 1) * 64
    between = pitch or (line if packs else plan.pixels * wide)
    columns = block * max(1, min(PACKED // block, PACKED_BYTES // (block * row)))
    if tile.share <= FEW and between % DISPLACED:
        columns = 0
    geometry = np.zeros((3, GEOMETRY_SIZE), np.int64)
    geometry[0] = (
        row, wide, between if planar else block * wide,
        (plan.pixels if planar else plan.outputs) * wide, plan.channels, address(bounds), columns,
    )  # fmt: skip
    geometry[1] = geometry[0]
    geometry[1, C_ROW] = line if planar else block * wide
    geometry[2] = geometry[0]
    geometry[2, B_STEP] = geometry[2, C_ROW] = simd.VECTOR
    tiles, shares = -(-whole // tile.pixels), -(-plan.outputs // tile.share)
    # The parts of the scratch memory: what is to be finished, a packed block, converted pixels.
    result = ROUND * int(geometry[1, C_ROW]) if finishing else ROUND * simd.VECTOR if left else 0
    packed = columns * row if planar else rounded(tile.share, block) * row * tile.turns
    panel = (plan.channels * line if planar else tile.pixels * row) if packs else 0
    beside = plan.channels * simd.VECTOR if left else 0
    starts = np.cumsum([rounded(part, 64) for part in (result, packed, panel, beside)])
    numbers = np.zeros(NUMBERS, np.int64)
    numbers[PER_CALL:] = (
        plan.channels, plan.outputs, whole + left, simd.itemsize(plan.storage), wide, narrow,
        tile.pixels, tiles, tile.share, shares, line, starts[0], starts[1],
        packer(plan.storage, plan.compute).address if packs else 0,
        mixer(plan.compute, 1 if planar else 2).address,
        finisher(plan.compute, plan.output, ACTIVATED.get(plan.activation, 0)).address
        if finishing
        else 0,
        *(address(one) for one in geometry[:2]), block, planar,
        turner(plan.compute).address if tile.turns else 0,
        plan.batch if planar else 1, left, starts[2], address(geometry[2]),
        together, together * tiles + (left > 0),
    )  # fmt: skip
    images = plan.batch if planar else 1
    items = (images * tiles + (-(-images // together) if left else 0)) * shares
    # A vector is converted beyond the last pixel.
    scratch = int(starts[3]) + 4 * simd.VECTOR
    return Prepared(numbers, items, scratch, tile.threads, (bounds, geometry))


# The arrays of a job, in turn.
ARRAYS = "image", "out", "weight", "bias"


def steps(plan: PointwisePlan, tile: Tile) -> tuple[list[jobs.Step], dict[str, int]]:
    """Return a plan's steps of a job, with ``ARRAYS``, and what is between them."""
    mix = jobs.step(prepare(plan, tile), driver().address, *ARRAYS)
    if plan.layout == "NCHW" or tile.turns:
        return [mix], {}
    turn, size = turning.step(plan.outputs, plan.channels, plan.compute, tile.threads)
    return [turn, *jobs.renamed([mix], weight="turned")], {"turned": size}


def job(plan: PointwisePlan, tile: Tile) -> Job:
    """Return what to do with ``ARRAYS``."""
    return jobs.job(ARRAYS, *steps(plan, tile))


@lru_cache(maxsize=512)
def chosen(plan: PointwisePlan, threads: int) -> Job:
    """Return ``job`` of the tile for a plan."""
    return job(plan, choose(plan, threads))


def run_pointwise(
    plan: PointwisePlan,
    image: Array,
    weight: Array,
    bias: Array,
    out: Array,
    tile: Tile | None = None,
) -> None:
    """Write the pointwise convolution of ``image`` into ``out``; see ``plan.channelwise``."""
    made = chosen(plan, numba.get_num_threads()) if tile is None else job(plan, tile)
    made.run(image, out, weight, bias)


def repeated(plan: PointwisePlan) -> Callable[[], Job]:
    """Return what returns the job of a plan, which takes ``ARRAYS``, C-contiguous."""
    return jobs.repeated(lambda threads: chosen(plan, threads))

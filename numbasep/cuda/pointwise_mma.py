"""The pointwise kernel of tensor cores: products of tf32 or 16-bit numbers, summed in float32.

``out[o, p] = activation(bias[o] + sum_c weight[o, c] * image[c, p])``

Tiles of ``depth`` channels are copied to shared memory in the background, ``stages - 1`` ahead of
the one that is multiplied::

    shared memory, a stage            NCHW                         NHWC
    weights                           outputs x depth = A          outputs x depth = B transposed
    image                             depth x pixels = B           pixels x depth = A
    out (rows x columns) = A @ B      outputs x pixels             pixels x outputs

A warp computes ``fragments`` of 16 rows by 8 columns. Both operands come as 8 x 8 matrices, 16
bytes of a row for each lane, which change places in their rows so that 8 lie in different banks.
What NCHW has the other way round is transposed on the way to registers; tf32 numbers, which that
does not do, are loaded one by one. Results change places in shared memory, 16 rows at a time, to be
stored 16 bytes a lane.

These are the instructions of every device from compute capability 8.0 on. Hopper multiplies faster
by ``wgmma``, which matters where memory no longer binds: from some 256 channels and outputs on, in
16 bits.

The order of additions is the hardware's within 8 or 16 channels, ascending from one such group to
the next.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from numbasep.cuda.activations import epilogue
from numbasep.cuda.elements import raw_type
from numbasep.cuda.launch import VERSION, Kernel, cuda, device_function, types
from numbasep.cuda.pieces import locator
from numbasep.cuda.primitives import (
    advance,
    bits_to_float,
    commit_copies,
    copy_async,
    float_to_bits,
    i32,
    i64,
    load_bytes,
    load_matrices,
    load_vector,
    mma,
    store_bytes,
    store_vector,
    to_tf32,
    unroll,
    wait_copies,
)
from numbasep.plan.cuda_pointwise import OPERANDS, MmaTile


@lru_cache(maxsize=256)
def mma_kernel(tile: MmaTile, output: str, activation: str) -> Kernel:
    """Return the kernel of a tile, the dtype of image and out, and an activation."""
    pointer = types.CPointer(types.uint8)
    return Kernel(
        _mma(tile, output, activation),
        [*[pointer] * 4, *[types.int64] * 2, *[types.int32] * 3],
        tile.threads,
        tile.blocks,
    )


def _mma(tile: MmaTile, output: str, activation: str) -> Callable[..., None]:
    planar, depth, stages, stage_size = tile.planar, tile.depth, tile.stages, tile.stage
    size, k_size = OPERANDS[tile.operand]
    single = tile.operand == "tf32"
    fragments_down, fragments_across = tile.fragments
    warps_across = tile.warps[1]
    tile_outputs, tile_pixels, threads = tile.outputs, tile.pixels, tile.threads
    ahead, last_stage = stages - 1, (stages - 1) * stage_size

    # Elements of 16 bytes; where weights and image start in a stage, from row to row of both.
    wide = 16 // size
    image_pitch = tile.image_pitch
    image_at = tile_outputs * depth
    down_at, across_at = (0, image_at) if planar else (image_at, 0)
    across_pitch = image_pitch if planar else depth
    chunks = tile.chunks
    lines, last_chunk, wide_bits = 3 - (chunks.bit_length() - 1), chunks - 1, wide.bit_length() - 1
    k_steps = depth // k_size
    # Matrices across by twos, but for the tf32 numbers of a planar image.
    by_ones = planar and single
    twos = fragments_across > 1
    loads_across = fragments_across // 2 if twos else 1
    held_across = 2 * fragments_across
    held_down = 4 * fragments_down
    sums_count = 4 * fragments_down * fragments_across

    spread, weights = tile.image, tile.weights
    piece, pieces, bases = spread.piece, spread.count, spread.bases
    next_pixel, next_channel = spread.next_pixel, spread.next_channel
    image_all, image_total = spread.total >= threads, spread.total
    weights_all, weights_total = weights.total >= threads, weights.total
    weight_inner, weight_pieces, next_output = weights.inner, weights.count, weights.next_pixel
    copied = piece * size >= 4

    raw_in, raw_out = raw_type(output), raw_type(output)
    empty = np.dtype(str(raw_in)).type(0)
    locate = locator(spread, size)
    copy_weights = copy_async(16)
    copy_piece = copy_async(piece * size if copied else 4)
    wait, wait_all = wait_copies(max(stages - 2, 0)), wait_copies(0)
    load_one, load_bias = load_bytes(1, raw_in), load_bytes(1, types.float32)
    load_down = load_matrices(4, False)
    # Plain indices would be tested for being negative.
    load_single, store_one = load_vector(1, raw_in), store_vector(1, raw_in)
    load_across = load_matrices(4 if twos else 2, planar)
    step, finish = mma(tile.operand), epilogue(activation, "float32", output)

    @device_function
    def rounded(bits: Any) -> Any:
        return to_tf32(bits_to_float(bits)) if single else bits

    @device_function
    def placed(row: int, element: int) -> int:
        """Return where an element of a row of channels is: see ``MmaTile.chunks``."""
        chunk = (element >> wide_bits) ^ ((row >> lines) & last_chunk)
        return i32(row * depth + (chunk << wide_bits) + (element & (wide - 1)))

    # The results of 16 rows: whole vectors or single ones, as a lane finds them.
    result_pitch = tile.result_pitch
    vector = max(1, tile.store // size)
    across = 8 * fragments_across // vector
    spots = max(1, across // 32)
    rows_at_once = max(1, 32 // across)
    turns = max(1, 16 // rows_at_once) * spots
    busy = 16 * across
    # Vectors travel as words: LLVM halves those of eight 2-byte elements.
    words = tile.store >= 4
    unit = types.uint32 if words else raw_out
    per_unit, units = (4 // size, tile.store // 4) if words else (1, 1)
    store_pair, load_results = store_vector(2, raw_out), load_vector(units, unit)
    store_results = store_bytes(units, unit)
    version = VERSION

    def kernel(
        image: Any,
        out: Any,
        weight: Any,
        bias: Any,
        pixels: int,
        plane: int,
        channels: int,
        outputs: int,
        tiles: int,
    ) -> None:
        shared = cuda.shared.array(0, raw_in)
        t = i32(cuda.threadIdx.x)
        # A version below 0 never is; its place is in the key of Numba's cache.
        block = i64(cuda.blockIdx.x) if version >= 0 else pixels
        pixel_tile = i64(block // tiles)
        first_output = i32(i32(block - pixel_tile * tiles) * tile_outputs)
        first_pixel = i64(pixel_tile * tile_pixels)
        steps = i32(i32(channels + depth - 1) // depth)

        places = cuda.local.array(bases, types.int64)
        limits = cuda.local.array(bases, types.int32)
        channel, near = locate(t, first_pixel, pixels, plane, channels, places, limits)
        channel_size = i64(plane * size) if planar else i64(size)
        image_to = i64(image_at + channel * image_pitch + near)
        weight_o = i32(t // weight_inner)
        weight_k = i32(i32(t - weight_o * weight_inner) * wide)
        weights_to = i64(placed(weight_o, weight_k))
        weight_row = i64(steps * depth * size)
        weight_place = i64(i64(first_output + weight_o) * weight_row + weight_k * size)

        warp = i32(t // 32)
        lane = i32(t - warp * 32)
        warp_down = i32(warp // warps_across)
        row = i32(warp_down * (16 * fragments_down))
        column = i32(i32(warp - warp_down * warps_across) * (8 * fragments_across))
        g = i32(lane // 4)
        q = i32(lane - g * 4)
        # Where the rows of matrices start that this lane names.
        downs = cuda.local.array(k_steps, types.int64)
        acrosses = cuda.local.array(k_steps, types.int64)
        second = i32(lane // 16) if twos else i32(0)
        half = i32((lane // 8) % 2)
        for k in range(k_steps):
            unroll()
            downs[k] = i64(down_at + placed(row + lane % 16, (2 * k + lane // 16) * wide))
            if planar:
                first = i32(q if by_ones else lane % 8 + 8 * half)
                side = i32(column + (g if by_ones else 8 * second))
                acrosses[k] = i64(across_at + (k * k_size + first) * across_pitch + side)
            else:
                side = i32(column + lane % 8 + 8 * second)
                acrosses[k] = i64(across_at + placed(side, (2 * k + half) * wide))

        sums = cuda.local.array(sums_count, types.float32)
        for i in range(sums_count):
            unroll()
            sums[i] = np.float32(0)
        lefts = cuda.local.array(held_down, types.uint32)
        rights = cuda.local.array(held_across, types.uint32)
        # Stages where the next channels go, and of which the next ones are multiplied.
        to = i64(0)
        of = i64(0)
        left = i32(channels - channel)
        pixel_size = i64(channels) * size
        for s in range(i32(steps + ahead)):
            if s >= ahead:
                wait()
                cuda.syncthreads()
            if s < steps:
                if weights_all or t < weights_total:
                    for j in range(weight_pieces):
                        unroll()
                        copy_weights(
                            shared,
                            to + weights_to + j * next_output * depth,
                            advance(weight, weight_place + j * next_output * weight_row),
                            0,
                            True,
                        )
                weight_place += depth * size
                if image_all or t < image_total:
                    for j in range(pieces):
                        unroll()
                        if planar:
                            b = j % bases
                            k = (j // bases) * next_channel
                            there = i32(s * depth + channel) + k < limits[b]
                            source = advance(image, places[b] + k * channel_size)
                            at = to + image_to + (k * image_pitch + b * next_pixel)
                        else:
                            there = left > 0 and j * next_pixel < limits[0]
                            source = advance(image, places[0] + j * next_pixel * pixel_size)
                            at = to + i64(image_at + placed(near + j * next_pixel, channel))
                        if copied:
                            copy_piece(shared, at, source, 0, there)
                        else:
                            value = empty
                            if there:
                                found = load_one(source, 0)
                                value = found[0]
                            store_one(shared, at, (value,))
                left -= depth
                for b in range(bases):
                    unroll()
                    places[b] += depth * channel_size
                to = i64(to + stage_size) if to < last_stage else i64(0)
            commit_copies()
            if s >= ahead:
                for k in range(k_steps):
                    unroll()
                    for i in range(fragments_down):
                        unroll()
                        four = load_down(shared, of + downs[k] + i * 16 * depth)
                        for r in range(4):
                            unroll()
                            lefts[4 * i + r] = four[r] if planar else rounded(four[r])
                    if by_ones:
                        for j in range(fragments_across):
                            unroll()
                            at = of + acrosses[k] + 8 * j
                            rights[2 * j] = rounded(float_to_bits(load_single(shared, at)[0]))
                            rights[2 * j + 1] = rounded(
                                float_to_bits(load_single(shared, at + 4 * across_pitch)[0])
                            )
                    else:
                        for j in range(loads_across):
                            unroll()
                            if planar:
                                at = of + acrosses[k] + 16 * j
                            else:
                                at = of + acrosses[k] + 16 * j * depth
                            some = load_across(shared, at)
                            for r in range(4 if twos else 2):
                                unroll()
                                rights[4 * j + r] = some[r]
                    for i in range(fragments_down):
                        unroll()
                        a = lefts[4 * i], lefts[4 * i + 1], lefts[4 * i + 2], lefts[4 * i + 3]
                        for j in range(fragments_across):
                            unroll()
                            e = 4 * (i * fragments_across + j)
                            added = step(
                                a,
                                (rights[2 * j], rights[2 * j + 1]),
                                (sums[e], sums[e + 1], sums[e + 2], sums[e + 3]),
                            )
                            for r in range(4):
                                unroll()
                                sums[e + r] = added[r]
                of = i64(of + stage_size) if of < last_stage else i64(0)
        wait_all()
        cuda.syncthreads()

        results = cuda.shared.array(0, raw_out)
        mine = i64(warp * (16 * result_pitch))
        my_row = i32(lane // across)
        my_column = i32(i32(lane - my_row * across) * vector)
        gathered = cuda.shared.array(0, unit)
        mine_at = i64(i32(mine + my_row * result_pitch + my_column) // per_unit)
        # Where a lane's columns are in memory, in the first row.
        lines = cuda.local.array(spots, types.int64)
        ends = cuda.local.array(spots, types.int32)
        for b in range(spots):
            unroll()
            c = i32(column + my_column + 32 * b * vector)
            if planar:
                pixel = i64(first_pixel + i64(c))
                ends[b] = i32(outputs) if pixel < pixels else i32(0)
                lines[b] = i64(pixel + i64(pixel // plane) * plane * i64(outputs - 1))
            else:
                ends[b] = i32(1) if first_output + c < outputs else i32(0)
                lines[b] = i64(first_output + c)
        for i in range(fragments_down):
            unroll()
            first_row = i32(row + 16 * i)
            for j in range(fragments_across):
                unroll()
                e = 4 * (i * fragments_across + j)
                for h in range(2):
                    unroll()
                    if planar:
                        low = load_bias(bias, 4 * i64(first_output + first_row + g + 8 * h))[0]
                        high = low
                    else:
                        at = 4 * i64(first_output + column + 8 * j + 2 * q)
                        low = load_bias(bias, at)[0]
                        high = load_bias(bias, at + 4)[0]
                    store_pair(
                        results,
                        mine + i32(g * result_pitch + 2 * q) + (8 * h * result_pitch + 8 * j),
                        (finish(sums[e + 2 * h], low), finish(sums[e + 2 * h + 1], high)),
                    )
            cuda.syncwarp()
            if busy >= 32 or lane < busy:
                for s in range(turns):
                    unroll()
                    b = s % spots
                    skipped = (s // spots) * rows_at_once
                    down = i32(my_row + skipped)
                    found = load_results(
                        gathered, mine_at + (skipped * result_pitch + 32 * b * vector) // per_unit
                    )
                    if planar:
                        o = i32(first_output + first_row + down)
                        if o < ends[b]:
                            at = i64(lines[b] + i64(o) * plane)
                            store_results(advance(out, at * size), 0, found)
                    else:
                        pixel = i64(first_pixel + i64(first_row + down))
                        if ends[b] > 0 and pixel < pixels:
                            at = i64(lines[b] + pixel * outputs)
                            store_results(advance(out, at * size), 0, found)
            cuda.syncwarp()

    return kernel

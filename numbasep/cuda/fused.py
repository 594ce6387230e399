"""Depthwise and pointwise convolution in one CUDA launch: the intermediate stays in shared memory.

A block takes rectangles of output pixels, one after another, and in each the channels chunk by
chunk. Three stages work on different chunks at once, between the same two barriers::

    image      halo (2 buffers)     intermediate (2 chunks, or all)     sums in registers
    . . . . .  .---------------.    .---------------------.             .-------------.
    . . . . .->| chunk i + 2   | -> | chunk i + 1: pixels |  chunk i -> | outputs by  | -> out
    . . . . .  '---------------'    '---------------------'    x        | pixels      |
                                     weights of chunk i  -------'       '-------------'

Where the sums of all outputs fit in registers a chunk of the intermediate is used once; else all
chunks are kept and read again for each tile of outputs. The weights stay in shared memory where all
fit, else each chunk's are copied while the one before is multiplied.

The intermediate and the weights are words, one channel in each, or two of 16 bits: [word][pixel]
and [word][output]. Multiplied by fused multiply-adds, channels ascending, a lane has blocks of 4 by
4 sums; by tensor cores, whose fragments of tf32 and of 16-bit pairs are alike, blocks of 4 by 8.
What is contiguous in ``out`` is the side with the longer blocks (n), the other one is m: outputs
and pixels change places between NCHW and NHWC.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbasep.cuda import launch
from numbasep.cuda.activations import epilogue
from numbasep.cuda.elements import numba_type, raw_type, zero
from numbasep.cuda.fused_stages import (
    copying,
    filtering,
    multiplying,
    packer,
    staging,
    writing,
)
from numbasep.cuda.launch import VERSION, Kernel, cuda, types
from numbasep.cuda.primitives import (
    commit_copies,
    i32,
    i64,
    load_vector,
    store_vector,
    u32,
    unroll,
    wait_copies,
)
from numbasep.plan.channelwise import FusedPlan
from numbasep.plan.cuda_fused import (
    SIZES,
    Arrangement,
    FusedShape,
    FusedTile,
    arrange,
    choose,
    grid_of,
    placed,
    taps_held,
)

Array = NDArray[Any]


@lru_cache(maxsize=256)
def fused_kernel(
    shape: FusedShape, storage: str, compute: str, output: str, between: str, after: str
) -> Kernel:
    """Return the kernel of a shape, three dtypes and the two activations."""
    byte = types.CPointer(types.uint8)
    return Kernel(
        _fused(shape, storage, compute, output, between, after),
        [byte] * 5 + [types.int64] * 4 + [types.int32] * 41,
        shape.threads,
        shape.blocks,
    )


def _fused(
    shape: FusedShape, storage: str, compute: str, output: str, between: str, after: str
) -> Callable[..., None]:
    tensor = shape.multiply != "fma"
    element, raw = numba_type(compute), raw_type(storage)
    word = types.uint32 if tensor else element
    wide = element.bitwidth // 8
    word_size = word.bitwidth // 8
    per_copy = 16 // word_size
    nothing = zero(compute)
    no_word = np.uint32(0) if tensor else nothing
    planar, threads, multiplier = shape.planar, shape.threads, shape.multiplier
    unit = max(shape.unit, 1)
    words_in_chunk, pack, channels = shape.words, shape.pack, shape.channels
    rows, outputs = shape.rows, shape.outputs
    pixel_pitch, output_pitch = shape.pixel_pitch, shape.output_pitch
    pixel_block, output_block = words_in_chunk * pixel_pitch, words_in_chunk * output_pitch
    groups_m, groups_n, warps_n = shape.groups_m, shape.groups_n, shape.warps_n
    group_m, quads = (32, 2) if tensor else (16, 1)
    span_m, span_n = groups_m * group_m, groups_n * 32
    high, across = 4 * groups_m, 4 * quads * groups_n
    kept_sums, kept_results = high * across, pack * rows
    window_size, held_size = max(shape.taps_x, 1), taps_held(shape.taps_y * shape.taps_x)
    stage = staging(shape, storage)
    filtered = filtering(shape, storage, compute, between)
    pack_word = packer(shape.multiply, storage, compute)
    multiplied = multiplying(shape, compute)
    store_word = store_vector(1, word)
    load_bias, load_biases = load_vector(1, element), load_vector(4, element)
    finish, write = epilogue(after, compute, output), writing(output)
    copy_values = copying(wide, 1, threads)
    copy_words, wait = copying(16, per_copy, threads), wait_copies(0)
    version = VERSION

    def kernel(
        image: Any, taps: Any, weights: Any, biases: Any, out: Any,
        image_batch: int, image_plane: int, out_batch: int, out_plane: int,
        tiles: int, tiles_y: int, tiles_x: int,
        in_height: int, in_width: int, out_height: int, out_width: int,
        in_pitch: int, image_channels: int, filters: int, all_outputs: int,
        stride_y: int, stride_x: int, step_y: int, step_x: int, start_y: int, start_x: int,
        boundary: int,
        taps_y: int, taps_x: int, dilation_y: int, dilation_x: int,
        tile_height: int, tile_width: int, shift: int, halo_rows: int, units: int,
        row_pitch: int, channel_pitch: int, chunks: int, output_tiles: int, slots: int,
        taps_at: int, halo_at: int, middle_at: int, weights_at: int,
        resident: int, aligned: int, columns: int, column_groups: int, clear: int,
    ) -> None:  # fmt: skip
        halo = cuda.shared.array(0, raw)
        kernels = cuda.shared.array(0, element)
        words = cuda.shared.array(0, word)
        sums = cuda.local.array(kept_sums, element)
        results = cuda.local.array(kept_results, element)
        window = cuda.local.array(window_size, element)
        filter_taps = cuda.local.array(held_size, element)
        left_part, right_part = cuda.local.array(high, word), cuda.local.array(across, word)
        t = i32(cuda.threadIdx.x)
        lane, warp = i32(t & 31), i32(t >> 5)
        quantity = i32(i32(taps_y * taps_x + 4) // 4 * 4)
        tap_buffer = i32(channels * quantity)
        halo_buffer = i32(channels * channel_pitch)
        # What this thread loads: one place of the halo in each so-manieth channel, and more places.
        if planar:
            places = i32(min(i32(halo_rows * units), threads))
            channel_groups = i32(u32(threads) // u32(places))
            first_channel = i32(u32(t) // u32(places))
            position = i32(t - first_channel * places)
            if first_channel >= channel_groups:
                position = i32(halo_rows * units)
        else:
            places = i32(threads // channels)
            channel_groups = i32(channels)
            first_channel = i32(t % channels)
            position = i32(t // channels)
        halo_y = i32(u32(position) // u32(units))
        halo_x = i32(i32(position - halo_y * units) * unit)
        more_y = i32(u32(places) // u32(units))
        more_x = i32(i32(places - more_y * units) * unit)
        load_x, load_y, load_image = i32(0), i32(0), i32(0)
        # Where this thread filters: a column of some rows of some channels.
        filter_group = i32(u32(t) // u32(columns))
        filter_at = i32(t - filter_group * columns)
        strip = i32(u32(filter_at) // u32(tile_width))
        filter_x = i32(filter_at - strip * tile_width)
        window_at = i32(strip * rows * stride_y * row_pitch + filter_x * stride_x + shift)
        pixel_at = i32(middle_at + strip * rows * tile_width + filter_x)
        # Where this lane multiplies: the first m and n, as it loads and as it holds the sums.
        warp_m = i32(i32(warp // warps_n) * span_m)
        warp_n = i32(i32(warp % warps_n) * span_n)
        if tensor:
            # Column 2 q + e of a fragment is in the quad at 16 e + 4 q: full sectors are stored.
            quad = i32(16 * ((lane >> 2) & 1) + 4 * (lane >> 3))
            load_m, load_n = i32(warp_m + quad), i32(warp_n + quad)
            first_row = i32(lane & 3)
            sum_n = i32(warp_n + 4 * (lane & 3))
        else:
            load_m, load_n = i32(warp_m + 4 * (lane >> 3)), i32(warp_n + 4 * (lane & 7))
            first_row = i32(0)
            sum_n = load_n
        for i in range(kept_sums):
            unroll()
            sums[i] = nothing
        if clear != 0:
            # Pixels that no thread filters, so that no poison is multiplied.
            i = t
            while i < slots * pixel_block:
                store_word(words, i64(middle_at + i), (no_word,))
                i = i32(i + threads)
            cuda.syncthreads()

        # The stages: a chunk is loaded in one turn, filtered in the next one, and multiplied in the
        # one after. Of a tile's parts, which are tiles of outputs, only the first one is filtered.
        block, blocks = i32(cuda.blockIdx.x), i32(cuda.gridDim.x)
        # A version below 0 never is; its place is in the key of Numba's cache.
        load_tile = block if version >= 0 else tiles
        load_chunk = i32(0)
        next_tile, next_part, next_chunk = load_tile, i32(0), i32(0)
        tile, part, chunk = load_tile, i32(0), i32(0)
        filters_done, turn = i32(0), i32(0)
        copy_values(kernels, i32(0), biases, i64(0), i32(output_tiles * outputs), t)
        if resident != 0:
            copy_values(kernels, taps_at, taps, i64(0), i32(filters * quantity), t)
            count = i32(chunks * output_tiles * (output_block // per_copy))
            copy_words(words, weights_at, weights, i64(0), count, t)
        while tile < tiles:
            wait()
            cuda.syncthreads()
            filters_now = turn > 0 and next_part == 0 and next_tile < tiles
            if resident == 0 and turn > 0 and next_tile < tiles:
                source = i64(i64(next_part * chunks + next_chunk) * output_block) * word_size
                to = i32(weights_at + i32(turn & 1) * output_block)
                copy_words(words, to, weights, source, i32(output_block // per_copy), t)
            if (filters_now or turn == 0) and load_tile < tiles:
                if load_chunk == 0:
                    rest = i32(u32(load_tile) // u32(tiles_x))
                    load_image = i32(u32(rest) // u32(tiles_y))
                    load_x = i32(i32(load_tile - rest * tiles_x) * step_x + start_x)
                    load_y = i32(i32(rest - load_image * tiles_y) * step_y + start_y)
                f0 = i32(load_chunk * channels)
                load_buffer = i32(i32(filters_done + 1) & 1) if turn > 0 else i32(0)
                c0 = i32(f0 // multiplier)
                c1 = i32(min(i32(i32(f0 + channels - 1) // multiplier + 1), image_channels))
                stage(
                    halo, image,
                    i32(halo_at + load_buffer * halo_buffer),
                    i64(load_image * image_batch + c0 * image_plane), image_plane, i32(c1 - c0),
                    load_y, load_x,
                    in_height, in_width, in_pitch, boundary, halo_rows, i32(units * unit),
                    row_pitch, channel_pitch,
                    (first_channel, channel_groups, halo_y, halo_x, more_y, more_x),
                )  # fmt: skip
                if resident == 0:
                    to = i32(taps_at + load_buffer * tap_buffer)
                    source = i64(f0) * quantity * wide
                    count = i32(min(channels, i32(filters - f0)) * quantity)
                    copy_values(kernels, to, taps, source, count, t)
                load_chunk += 1
                if load_chunk == chunks:
                    load_chunk = i32(0)
                    load_tile += blocks
            commit_copies()
            slot, next_slot = i32(i32(filters_done + 1) & 1), i32(filters_done & 1)
            if slots == chunks:
                slot, next_slot = chunk, next_chunk
            if filters_now:
                f0 = i32(next_chunk * channels)
                c0 = i32(f0 // multiplier)
                at = i32(halo_at + i32(filters_done & 1) * halo_buffer + window_at)
                held = i32(f0 * quantity) if resident != 0 else i32((filters_done & 1) * tap_buffer)
                tap_at = i32(taps_at + held)
                to = i32(pixel_at + next_slot * pixel_block)
                if filter_group < column_groups:
                    k = filter_group
                    while k < words_in_chunk:
                        for half in range(pack):
                            unroll()
                            f = i32(k * pack + half)
                            if f0 + f < filters:
                                c = i32(i32(f0 + f) // multiplier - c0)
                                filtered(
                                    halo, kernels, i32(at + c * channel_pitch),
                                    i32(tap_at + f * quantity), row_pitch, results, half * rows,
                                    (
                                        i32(stride_y * row_pitch), i32(dilation_y * row_pitch),
                                        dilation_x, taps_y, taps_x,
                                    ),
                                    (window, filter_taps),
                                )  # fmt: skip
                            else:
                                for r in range(rows):
                                    unroll()
                                    results[half * rows + r] = nothing
                        for r in range(rows):
                            unroll()
                            done = pack_word(results[r], results[(pack - 1) * rows + r])
                            store_word(words, i64(to + k * pixel_pitch + r * tile_width), (done,))
                        k = i32(k + column_groups)
                filters_done += 1
            if turn > 1:
                pixel_words = i32(middle_at + slot * pixel_block)
                held = i32(part * chunks + chunk) if resident != 0 else i32((turn + 1) & 1)
                output_words = i32(weights_at + held * output_block)
                count = i32(min(words_in_chunk, (filters - chunk * channels + pack - 1) // pack))
                if planar:
                    multiplied(
                        sums, words,
                        i32(output_words + first_row * output_pitch + load_m),
                        i32(pixel_words + first_row * pixel_pitch + load_n),
                        count, (left_part, right_part),
                    )  # fmt: skip
                else:
                    multiplied(
                        sums, words,
                        i32(pixel_words + first_row * pixel_pitch + load_m),
                        i32(output_words + first_row * output_pitch + load_n),
                        count, (left_part, right_part),
                    )  # fmt: skip
                if chunk == chunks - 1:
                    rest = i32(u32(tile) // u32(tiles_x))
                    n = i32(u32(rest) // u32(tiles_y))
                    x0 = i32(i32(tile - rest * tiles_x) * tile_width)
                    y0 = i32(i32(rest - n * tiles_y) * tile_height)
                    o0 = i32(part * outputs)
                    start = i64(n * out_batch)
                    if planar:
                        for j in range(groups_n * quads):
                            unroll()
                            p = i32(sum_n + (j // quads) * 32 + j % quads * 16)
                            y = i32(u32(p) // u32(tile_width))
                            x = i32(x0 + i32(p - y * tile_width))
                            left = i32(out_width - x)
                            if y >= tile_height or y0 + y >= out_height:
                                left = i32(0)
                            place = i64(start + i64(y0 + y) * out_width + x)
                            for i in range(high):
                                unroll()
                                o = i32(o0 + load_m + (i // 4) * group_m + i % 4)
                                if o < all_outputs and left > 0:
                                    bias = load_bias(kernels, i64(o))[0]
                                    at = i * across + 4 * j
                                    write(
                                        out, place + o * out_plane,
                                        (
                                            finish(sums[at], bias), finish(sums[at + 1], bias),
                                            finish(sums[at + 2], bias), finish(sums[at + 3], bias),
                                        ),
                                        left, aligned,
                                    )  # fmt: skip
                    else:
                        for i in range(high):
                            unroll()
                            p = i32(load_m + (i // 4) * group_m + i % 4)
                            y = i32(u32(p) // u32(tile_width))
                            x = i32(x0 + i32(p - y * tile_width))
                            y_inside = y < tile_height and y0 + y < out_height
                            place = i64(start + (i64(y0 + y) * out_width + x) * all_outputs)
                            for j in range(groups_n * quads):
                                unroll()
                                o = i32(o0 + sum_n + (j // quads) * 32 + j % quads * 16)
                                left = i32(all_outputs - o)
                                if y_inside and x < out_width and left > 0:
                                    part_biases = load_biases(kernels, i64(o))
                                    at = i * across + 4 * j
                                    write(
                                        out, place + o,
                                        (
                                            finish(sums[at + 0], part_biases[0]),
                                            finish(sums[at + 1], part_biases[1]),
                                            finish(sums[at + 2], part_biases[2]),
                                            finish(sums[at + 3], part_biases[3]),
                                        ),
                                        left, aligned,
                                    )  # fmt: skip
                    for i in range(kept_sums):
                        unroll()
                        sums[i] = nothing
            if turn > 0:
                tile, part, chunk = next_tile, next_part, next_chunk
                next_chunk += 1
                if next_chunk == chunks:
                    next_chunk = i32(0)
                    next_part += 1
                    if next_part == output_tiles:
                        next_part = i32(0)
                        next_tile += blocks
            turn += 1

    return kernel


def run_fused(
    plan: FusedPlan,
    image: Any,
    depthwise_weight: Any,
    depthwise_bias: Array,
    pointwise_weight: Array,
    pointwise_bias: Array,
    out: Any,
    stream: Any = None,
    tile: FusedTile | None = None,
) -> None:
    """Write both convolutions of a device array into another; see ``plan.channelwise``.

    image, out: device arrays (bfloat16 as its bits too), C-contiguous.
    stream: of numba.cuda, cuda.core, CuPy or torch, or a handle; the default stream without.
    tile: what a block computes, in place of ``choose``'s, where fused. float32 and float64 results
        do not depend on it.
    """
    first, second = plan.depthwise, plan.pointwise
    if not plan.fused:
        _apart(
            plan, image, depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias, out,
            stream,
        )  # fmt: skip
        return
    source, target = launch.view(image), launch.view(out)
    tile = choose(first, second) if tile is None else tile
    assert tile is not None
    size, out_size = SIZES[first.storage], SIZES[second.output]
    tile = placed(first, tile, source.address)
    shape = tile.shape
    a = arrange(first, second, tile)
    down, across = grid_of(first, tile)
    tiles = first.batch * down * across
    planar = shape.planar
    row = first.x.out if planar else second.outputs
    aligned = target.address % (4 * out_size) == 0 and row % 4 == 0
    word, wide = a.word, SIZES[first.compute]
    columns = tile.width * tile.height // shape.rows
    count = first.y.taps * first.x.taps
    taps = np.zeros((first.filters, taps_held(count)), first.compute)
    taps[:, :count] = depthwise_weight.reshape(first.filters, count)
    taps[:, count] = depthwise_bias
    biases = np.zeros(a.output_tiles * shape.outputs, second.compute)
    biases[: second.outputs] = pointwise_bias
    fused_kernel(
        shape, first.storage, first.compute, second.output, first.activation, second.activation
    ).launch(
        min(tiles, tile.grid),
        shape.threads,
        a.shared,
        stream,
        (
            source.pointer("uint8"),
            launch.view(launch.upload(taps, stream)).pointer("uint8"),
            launch.view(
                launch.upload(_words(shape, a, pointwise_weight), stream)
            ).pointer("uint8"),
            launch.view(launch.upload(biases, stream)).pointer("uint8"),
            target.pointer("uint8"),
            *map(
                np.int64,
                (
                    first.channels * first.y.size * first.x.size,
                    first.y.size * first.x.size if planar else 1,
                    second.outputs * second.pixels,
                    second.pixels,
                ),
            ),
            *map(
                np.int32,
                (
                    tiles, down, across, first.y.size, first.x.size, first.y.out, first.x.out,
                    1 if planar else first.channels, first.channels, first.filters, second.outputs,
                    first.y.stride, first.x.stride, tile.height * first.y.stride,
                    tile.width * first.x.stride, first.y.origin, first.x.origin - a.shift,
                    first.boundary, first.y.taps, first.x.taps, first.y.dilation, first.x.dilation,
                    tile.height, tile.width, a.shift, a.rows, a.units, a.row_pitch,
                    a.channel_pitch, a.chunks, a.output_tiles, a.slots, a.taps_at // wide,
                    a.halo_at // size, a.middle_at // word, a.weights_at // word, tile.resident,
                    aligned, columns, min(shape.words, shape.threads // columns),
                    tile.width * tile.height < shape.pixels,
                ),
            ),
        ),
    )  # fmt: skip


def rounded_to_tf32(values: Array) -> Array:
    """Return float32 values rounded to tf32, halves away from zero; infinities and NaN stay."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(values), rounded, bits)


def _words(shape: FusedShape, a: Arrangement, weight: Array) -> Array:
    """Return the pointwise weights as the kernel's shared memory holds them."""
    outputs, channels = weight.shape
    padded = np.zeros((a.output_tiles * shape.outputs, a.chunks * shape.channels), weight.dtype)
    padded[:outputs, :channels] = weight
    if shape.multiply == "float16":
        padded = padded.astype(np.float16)
    elif shape.multiply == "bfloat16":
        # They are exact in 16 bits.
        padded = (padded.view(np.uint32) >> 16).astype(np.uint16)
    elif shape.multiply == "tf32":
        padded = rounded_to_tf32(padded)
    blocks = padded.reshape(a.output_tiles, shape.outputs, a.chunks, shape.words, shape.pack)
    size = a.output_tiles, a.chunks, shape.words, shape.output_pitch, shape.pack
    words = np.zeros(size, padded.dtype)
    words[..., : shape.outputs, :] = blocks.transpose(0, 2, 3, 1, 4)
    return words.reshape(-1)


def _apart(
    plan: FusedPlan,
    image: Any,
    depthwise_weight: Any,
    depthwise_bias: Array,
    pointwise_weight: Array,
    pointwise_bias: Array,
    out: Any,
    stream: Any,
) -> None:
    """Write both convolutions, one launch each."""
    from numbasep.cuda.depthwise import run_depthwise
    from numbasep.cuda.pointwise import run_pointwise

    first, second = plan.depthwise, plan.pointwise
    shape: tuple[int, ...] = (first.batch, first.filters, first.y.out, first.x.out)
    joined: tuple[int, ...] = (first.batch, first.filters, second.pixels)
    if first.layout == "NHWC":
        shape = (first.batch, first.y.out, first.x.out, first.filters)
        joined = (first.batch, second.pixels, first.filters)
    middle = launch.empty(shape, str(raw_type(first.output)), stream)
    run_depthwise(first, image, depthwise_weight, depthwise_bias, middle, stream=stream)
    run_pointwise(
        second, middle.reshape(joined), pointwise_weight, pointwise_bias, out, stream=stream
    )

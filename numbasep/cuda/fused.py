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

The intermediate and the weights are words, one channel in each, or two of 16 bits: ``[word][pixel]``
and ``[word][output]``. Multiplied by fused multiply-adds, channels ascending, a lane has blocks of 4
by 4 sums; by tensor cores, whose fragments of tf32 and of 16-bit pairs are alike, blocks of 4 by 8.
What is contiguous in ``out`` is the side with the longer blocks (n), the other one is m: outputs
and pixels change places between NCHW and NHWC.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbasep import boundary as boundaries
from numbasep.cuda import launch
from numbasep.cuda.activations import biased, epilogue
from numbasep.cuda.elements import (
    multiply_add,
    narrow,
    numba_type,
    raw_type,
    widen,
    zero,
)
from numbasep.cuda.launch import VERSION, Kernel, cuda, device_function, types
from numbasep.cuda.primitives import (
    commit_copies,
    copy_async,
    i32,
    i64,
    load_bytes,
    load_vector,
    mma,
    store_bytes,
    store_vector,
    to_tf32,
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
    taps_held,
    tiles_of,
)

Array = NDArray[Any]

map_index = device_function(boundaries.map_index)


def _staging(shape: FusedShape, storage: str) -> Any:
    """Return what copies the halo of a chunk's channels into shared memory, ``[channel][y][x]``.

    Of ``count`` channels from element ``start`` of the image, whose neighbours are ``plane``
    elements apart, the rows from ``y`` and columns from ``x``, to element ``at`` of ``halo``. The
    thread's ``place``: its first channel and how many are between its own, its first row and
    column, and how many rows and columns it goes on by.
    """
    raw = raw_type(storage)
    size, unit = raw.bitwidth // 8, max(shape.unit, 1)
    copied = shape.unit > 0
    copy = copy_async(size * unit) if copied else None
    load_one, store_raw = load_bytes(1, raw), store_vector(1, raw)
    nothing = np.uint16(0) if raw == types.uint16 else np.dtype(storage).type(0)

    def single(halo: Any, to: int, image: Any, at: int, present: bool) -> None:
        value = nothing
        if present:
            value = load_one(image, at)[0]
        store_raw(halo, to, (value,))

    single = device_function(single)
    place_of = device_function(
        (lambda y, x, width, pitch: i64(y) * width + x)
        if shape.planar
        else (lambda y, x, width, pitch: (i64(y) * width + x) * pitch)
    )
    put = copy if copied else single

    def stage(
        halo: Any, image: Any, at: int, start: int, plane: int, count: int, y: int, x: int,
        height: int, width: int, pitch: int, boundary: int, rows: int, columns: int,
        row_pitch: int, channel_pitch: int, place: Any,
    ) -> None:  # fmt: skip
        first, groups, row, column, more_rows, more_columns = place
        while row < rows:
            my = i32(map_index(i32(y + row), height, boundary))
            mx = i32(x + column)
            whole = True
            if unit == 1:
                mx = i32(map_index(mx, width, boundary))
            else:
                whole = mx >= 0 and mx + unit <= width
            to = i32(at + row * row_pitch + column)
            row = i32(row + more_rows)
            column = i32(column + more_columns)
            if column >= columns:
                column = i32(column - columns)
                row = i32(row + 1)
            if whole:
                source = i64(start + place_of(my, mx, width, pitch)) * size
                present = my >= 0 and mx >= 0
                k = first
                while k < count:
                    put(
                        halo, i64(to + k * channel_pitch), image,
                        i64(source + i64(k) * plane * size), present,
                    )  # fmt: skip
                    k = i32(k + groups)
            else:
                for j in range(unit):
                    near = i32(map_index(i32(mx + j), width, boundary))
                    source = i64(start + place_of(my, near, width, pitch)) * size
                    present = my >= 0 and near >= 0
                    k = first
                    while k < count:
                        single(
                            halo, i64(to + j + k * channel_pitch), image,
                            i64(source + i64(k) * plane * size), present,
                        )  # fmt: skip
                        k = i32(k + groups)

    return device_function(stage)


def _copying(size: int, elements: int, threads: int) -> Any:
    """Return what copies ``count`` times ``size`` bytes, that many elements of ``array``."""
    copy = copy_async(size)

    def copies(array: Any, at: int, pointer: Any, offset: int, count: int, t: int) -> None:
        i = i32(t)
        while i < count:
            copy(array, i64(at + elements * i), pointer, i64(offset + i64(i) * size), True)
            i = i32(i + threads)

    return device_function(copies)


@lru_cache
def _packer(multiply: str, storage: str, compute: str) -> Any:
    """Return ``pack(one, other) -> word`` of one or two channels' results."""
    if multiply == "fma":
        return device_function(lambda one, other: one)
    if multiply == "tf32":
        return device_function(lambda one, other: to_tf32(one))
    convert = narrow(compute, storage)
    return device_function(
        lambda one, other: u32(u32(convert(one)) | u32(u32(convert(other)) << u32(16)))
    )


def _filtering(shape: FusedShape, storage: str, compute: str, activation: str) -> Any:
    """Return what filters ``rows`` pixels below each other of one filter into ``results``.

    at: of the first pixel's window in ``halo``; tap_at: of the filter's taps, then its bias.
    """
    raw, element = raw_type(storage), numba_type(compute)
    load_raw, load_tap, load_taps = (
        load_vector(count, kind) for count, kind in ((1, raw), (1, element), (4, element))
    )
    quantity = taps_held(shape.taps_y * shape.taps_x)
    value_of, step, nothing = widen(storage, compute), multiply_add(compute), zero(compute)
    finish = biased(activation, compute)
    rows, taps_y, taps_x = shape.rows, shape.taps_y, shape.taps_x
    stride, dilation_y, dilation_x = shape.stride_y, shape.dilation_y, shape.dilation_x
    window_rows = (rows - 1) * stride + (taps_y - 1) * dilation_y + 1
    window_size = max(taps_x, 1)

    def few(
        halo: Any, taps: Any, at: int, tap_at: int, row_pitch: int, results: Any, first: int,
        strides: Any,
    ) -> None:  # fmt: skip
        window = cuda.local.array(window_size, element)
        held = cuda.local.array(quantity, element)
        for k in range(0, quantity, 4):
            unroll()
            part = load_taps(taps, i64(tap_at) + k)
            for j in range(4):
                unroll()
                held[k + j] = part[j]
        for r in range(rows):
            unroll()
            results[first + r] = nothing
        for j in range(window_rows):
            unroll()
            for k in range(taps_x):
                unroll()
                near = i64(i32(at + j * row_pitch)) + k * dilation_x
                window[k] = value_of(load_raw(halo, near)[0])
            for r in range(rows):
                unroll()
                for ky in range(taps_y):
                    unroll()
                    if r * stride + ky * dilation_y == j:
                        for k in range(taps_x):
                            unroll()
                            tap = held[ky * taps_x + k]
                            results[first + r] = step(results[first + r], tap, window[k])
        for r in range(rows):
            unroll()
            results[first + r] = finish(results[first + r], held[taps_y * taps_x])

    def many(
        halo: Any, taps: Any, at: int, tap_at: int, row_pitch: int, results: Any, first: int,
        strides: Any,
    ) -> None:  # fmt: skip
        pitch, down, across, high, wide = strides
        for r in range(rows):
            unroll()
            results[first + r] = nothing
        for ky in range(high):
            near = i32(at + ky * down)
            for _ in range(wide):
                tap = load_tap(taps, i64(tap_at))[0]
                for r in range(rows):
                    unroll()
                    value = value_of(load_raw(halo, i64(i32(near + r * pitch)))[0])
                    results[first + r] = step(results[first + r], tap, value)
                near = i32(near + across)
                tap_at = i32(tap_at + 1)
        bias = load_tap(taps, i64(tap_at))[0]
        for r in range(rows):
            unroll()
            results[first + r] = finish(results[first + r], bias)

    return device_function(few if taps_y else many)


def _multiplying(shape: FusedShape, compute: str) -> Any:
    """Return what adds one chunk's products to a lane's sums."""
    groups_m, groups_n = shape.groups_m, shape.groups_n
    m_pitch, n_pitch = shape.m_pitch, shape.n_pitch
    if shape.multiply == "fma":
        element = numba_type(compute)
        step = multiply_add(compute)
        load = load_vector(4, element)
        high, wide = 4 * groups_m, 4 * groups_n

        def product(sums: Any, words: Any, m_at: int, n_at: int) -> None:
            column = cuda.local.array(high, element)
            row = cuda.local.array(wide, element)
            for i in range(groups_m):
                unroll()
                part = load(words, m_at + 16 * i)
                for j in range(4):
                    unroll()
                    column[4 * i + j] = part[j]
            for i in range(groups_n):
                unroll()
                part = load(words, n_at + 32 * i)
                for j in range(4):
                    unroll()
                    row[4 * i + j] = part[j]
            for i in range(high):
                unroll()
                for j in range(wide):
                    unroll()
                    sums[i * wide + j] = step(sums[i * wide + j], column[i], row[j])

        product = device_function(product)

        def add(sums: Any, words: Any, m_at: int, n_at: int, count: int) -> None:
            m_next, n_next = i64(m_at), i64(n_at)
            left = i32(count)
            while left >= 4:
                product(sums, words, m_next, n_next)
                product(sums, words, m_next + m_pitch, n_next + n_pitch)
                product(sums, words, m_next + 2 * m_pitch, n_next + 2 * n_pitch)
                product(sums, words, m_next + 3 * m_pitch, n_next + 3 * n_pitch)
                m_next += 4 * m_pitch
                n_next += 4 * n_pitch
                left = i32(left - 4)
            while left > 0:
                product(sums, words, m_next, n_next)
                m_next += m_pitch
                n_next += n_pitch
                left = i32(left - 1)

        return device_function(add)
    multiply = mma(shape.multiply)
    load_words = load_vector(4, types.uint32)
    wide = 8 * groups_n
    fragments, shape_words = 8 * groups_n, shape.words

    def add_matrices(
        sums: Any, words: Any, m_at: int, n_at: int, count: int
    ) -> None:
        right = cuda.local.array(fragments, types.uint32)
        for k in range(0, shape_words, 8):
            unroll()
            if k < count:
                for j in range(groups_n):
                    unroll()
                    for half in range(2):
                        unroll()
                        part = load_words(words, i64(n_at) + ((k + 4 * half) * n_pitch + 32 * j))
                        for c in range(4):
                            unroll()
                            right[8 * j + 2 * c + half] = part[c]
                for i in range(groups_m):
                    unroll()
                    low = load_words(words, i64(m_at) + (k * m_pitch + 32 * i))
                    high = load_words(words, i64(m_at) + ((k + 4) * m_pitch + 32 * i))
                    for r in range(0, 4, 2):
                        unroll()
                        left = (low[r], low[r + 1], high[r], high[r + 1])
                        for j in range(groups_n):
                            unroll()
                            for c in range(4):
                                unroll()
                                # Column 2 q of a fragment is column 8 q + c, the next 8 q + 4 + c.
                                at = (4 * i + r) * wide + 8 * j + c
                                done = multiply(
                                    left,
                                    (right[8 * j + 2 * c], right[8 * j + 2 * c + 1]),
                                    (sums[at], sums[at + 4], sums[at + wide], sums[at + wide + 4]),
                                )
                                sums[at] = done[0]
                                sums[at + 4] = done[1]
                                sums[at + wide] = done[2]
                                sums[at + wide + 4] = done[3]

    return device_function(add_matrices)


def _writing(output: str) -> Any:
    """Return what stores the first ``count`` of four neighbours from an element of ``out``."""
    raw = raw_type(output)
    size = raw.bitwidth // 8
    store_four, store_one = store_bytes(4, raw), store_bytes(1, raw)

    def write(out: Any, at: int, values: Any, count: int, aligned: int) -> None:
        place = i64(at) * size
        if aligned != 0 and count >= 4:
            store_four(out, place, values)
        else:
            for j in range(4):
                unroll()
                if j < count:
                    store_one(out, place + j * size, (values[j],))

    return device_function(write)


@lru_cache(maxsize=256)
def fused_kernel(
    shape: FusedShape, storage: str, compute: str, output: str, between: str, after: str
) -> Kernel:
    """Return the kernel of a shape, three dtypes and the two activations."""
    byte = types.CPointer(types.uint8)
    return Kernel(
        _fused(shape, storage, compute, output, between, after),
        [byte] * 5
        + [types.int64] * 4
        + [types.int32] * 41,
        shape.threads,
        shape.blocks,
    )


def _fused(
    shape: FusedShape, storage: str, compute: str, output: str, between: str, after: str
) -> Callable[..., None]:
    tensor = shape.multiply != "fma"
    element, raw = numba_type(compute), raw_type(storage)
    word = types.uint32 if tensor else element
    size, wide = raw.bitwidth // 8, element.bitwidth // 8
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
    stage = _staging(shape, storage)
    filtered = _filtering(shape, storage, compute, between)
    pack_word = _packer(shape.multiply, storage, compute)
    multiplied = _multiplying(shape, compute)
    store_word, load_value = store_vector(1, word), load_vector(1, element)
    finish, write = epilogue(after, compute, output), _writing(output)
    copy_values = _copying(wide, 1, threads)
    copy_words, wait = _copying(16, per_copy, threads), wait_copies(0)
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
            load_m, load_n = i32(warp_m + 4 * (lane >> 2)), i32(warp_n + 4 * (lane >> 2))
            first_row = i32(lane & 3)
            sum_n = i32(warp_n + 8 * (lane & 3))
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
                    i64(load_image * image_batch + c0 * image_plane), image_plane, i32(c1 - c0), load_y, load_x,
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
                        i32(pixel_words + first_row * pixel_pitch + load_n), count,
                    )  # fmt: skip
                else:
                    multiplied(
                        sums, words,
                        i32(pixel_words + first_row * pixel_pitch + load_m),
                        i32(output_words + first_row * output_pitch + load_n), count,
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
                            p = i32(sum_n + (j // quads) * 32 + j % quads * 4)
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
                                    bias = load_value(kernels, i64(o))[0]
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
                                o = i32(o0 + sum_n + (j // quads) * 32 + j % quads * 4)
                                left = i32(all_outputs - o)
                                if y_inside and x < out_width and left > 0:
                                    at = i * across + 4 * j
                                    write(
                                        out, place + o,
                                        (
                                            finish(sums[at], load_value(kernels, i64(o))[0]),
                                            finish(sums[at + 1], load_value(kernels, i64(o) + 1)[0]),
                                            finish(sums[at + 2], load_value(kernels, i64(o) + 2)[0]),
                                            finish(sums[at + 3], load_value(kernels, i64(o) + 3)[0]),
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
    if source.address % (max(tile.shape.unit, 1) * size):
        tile = replace(tile, shape=replace(tile.shape, unit=1 if size >= 4 else 0))
    shape = tile.shape
    a = arrange(first, second, tile)
    down, across = tiles_of(first, tile)
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
                    a.channel_pitch, a.chunks, a.output_tiles, a.slots, a.taps_at // wide, a.halo_at // size, a.middle_at // word, a.weights_at // word,
                    tile.resident, aligned, columns, min(shape.words, shape.threads // columns),
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
    words = np.zeros((*blocks.shape[:1], *blocks.shape[2:4], shape.output_pitch, shape.pack), padded.dtype)
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

"""The CUDA kernel for every depthwise case: any taps, rank, stride, dilation, layout, dtype.

``out[o] = sum_r sum_kx taps[r, kx] * line_r[o * stride + kx * dilation]``

A dense kernel has a term r for each of its rows, whose line is the image's. A term of low-rank
weights has the column sums of its line. Lines stand in shared memory, converted, with what the
boundary puts around the image; a block takes as many terms (and, if even one's do not fit, taps) at
a time as there is room for::

    image               shared memory                    registers of a thread
    . . . . . . .       .------------------------.       four outputs, of one row or of four
    . . . . . . .  ->   | lines of some terms    |  ->   . . . .
    . . . . . . .       | of several channels    |       . . . .
                        | taps                   |
                        '------------------------'

The layouts differ in steps between elements and in what neighbouring threads do: columns (NCHW) or
channels (NHWC). The sum starts from zero and goes by terms, then by taps, ascending.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from numbasep import boundary as boundaries
from numbasep.cuda.activations import epilogue
from numbasep.cuda.elements import loader, multiply_add, numba_type, raw_type, zero
from numbasep.cuda.launch import VERSION, Kernel, cuda, device_function, types
from numbasep.cuda.primitives import i32, i64, load_vector, u32, unroll
from numbasep.plan.cuda_depthwise import VECTOR

map_any = device_function(boundaries.map_index)

TILE_THREADS = 256


@lru_cache(maxsize=256)
def tile_kernel(
    layout: str,
    low_rank: bool,
    slides: bool,
    rows: int,
    boundary: int,
    storage: str,
    compute: str,
    output: str,
    activation: str,
) -> Kernel:
    """Return the kernel of a layout, a form of weights and dtypes; see ``plan.cuda_depthwise``."""
    pointers = [types.CPointer(raw_type(name)) for name in (storage, output, *[compute] * 3)]
    return Kernel(
        _tile(layout, low_rank, slides, rows, boundary, storage, compute, output, activation),
        [*pointers, *[types.int64] * 8, *[types.int32] * 27],
        TILE_THREADS,
        # Room for what else ptxas would spill for the sake of more blocks.
        None if rows > 1 else 4 if compute == "float64" else 5,
    )


@device_function
def divided(value: Any, by: Any) -> Any:
    """Return quotient and remainder of an unsigned number by a positive one."""
    quotient = u32(value // u32(by))
    return i32(quotient), i32(u32(value) - u32(quotient * u32(by)))


def _line(slides: bool, rows: int, compute: str, whole: bool) -> Any:
    """Return what adds one line of shared memory to the outputs of a thread.

    whole: every one of the thread's rows takes the line; else those from ``first`` to ``last``.
    """
    step = multiply_add(compute)
    load = load_vector(VECTOR, numba_type(compute))

    def sliding(
        sums: Any, total: Any, window: Any, near: int, tap: int, tap_pitch: int, count: int,
        first: int, last: int, stride: int, dilation: int,
    ) -> None:  # fmt: skip
        part = load(sums, i64(near))
        for j in range(VECTOR):
            unroll()
            window[j] = part[j]
        whole_taps = i32(count & i32(-VECTOR))
        k = i32(0)
        while k < whole_taps:
            part = load(sums, i64(i32(near + k + VECTOR)))
            for j in range(VECTOR):
                unroll()
                window[VECTOR + j] = part[j]
            for r in range(rows):
                unroll()
                if whole or (first <= i32(r) and i32(r) < last):
                    four = load(sums, i64(i32(tap + k) - i32(r * tap_pitch)))
                    for kk in range(VECTOR):
                        unroll()
                        for j in range(VECTOR):
                            unroll()
                            at = r * VECTOR + j
                            total[at] = step(total[at], four[kk], window[kk + j])
            for j in range(VECTOR):
                unroll()
                window[j] = window[VECTOR + j]
            k = i32(k + VECTOR)
        if k < count:
            if i32(k + 1) < count:
                part = load(sums, i64(i32(near + k + VECTOR)))
                for j in range(VECTOR):
                    unroll()
                    window[VECTOR + j] = part[j]
            for r in range(rows):
                unroll()
                if whole or (first <= i32(r) and i32(r) < last):
                    four = load(sums, i64(i32(tap + k) - i32(r * tap_pitch)))
                    for kk in range(VECTOR - 1):
                        unroll()
                        if i32(k + kk) < count:
                            for j in range(VECTOR):
                                unroll()
                                at = r * VECTOR + j
                                total[at] = step(total[at], four[kk], window[kk + j])

    def apart(
        sums: Any, total: Any, window: Any, near: int, tap: int, tap_pitch: int, count: int,
        first: int, last: int, stride: int, dilation: int,
    ) -> None:  # fmt: skip
        for k in range(count):
            one = sums[tap + k]
            for j in range(VECTOR):
                unroll()
                total[j] = step(total[j], one, sums[near + j * stride + k * dilation])

    return device_function(sliding if slides else apart)


def _tile(
    layout: str,
    low_rank: bool,
    slides: bool,
    rows: int,
    boundary: int,
    storage: str,
    compute: str,
    output: str,
    activation: str,
) -> Callable[..., None]:
    planar = layout == "NCHW"
    load, load_tap = loader(storage, compute), loader(compute, compute)
    step = multiply_add(compute)
    finish = epilogue(activation, compute, output)
    add_whole = _line(slides, rows, compute, True)
    add_some = _line(slides, rows, compute, False)
    map_index = device_function(lambda i, n: map_any(i, n, boundary))
    nothing, element = zero(compute), numba_type(compute)
    outputs, window_size = rows * VECTOR, 2 * VECTOR
    version = VERSION

    def kernel(
        image: Any,
        out: Any,
        columns: Any,
        taps: Any,
        bias: Any,
        image_batch: int,
        image_channel: int,
        image_row: int,
        image_pixel: int,
        out_batch: int,
        out_filter: int,
        out_row: int,
        out_pixel: int,
        tiles_y: int,
        tiles_x: int,
        tiles_c: int,
        in_height: int,
        in_width: int,
        out_height: int,
        out_width: int,
        channels: int,
        multiplier: int,
        stride_y: int,
        dilation_y: int,
        origin_y: int,
        stride_x: int,
        dilation_x: int,
        origin_x: int,
        taps_y: int,
        taps_x: int,
        terms: int,
        tile_width: int,
        tile_height: int,
        tile_channels: int,
        term_chunk: int,
        tap_chunk: int,
        pitch: int,
        plane: int,
        tap_pitch: int,
        lanes: int,
    ) -> None:
        sums = cuda.shared.array(0, element)
        total = cuda.local.array(outputs, element)
        window = cuda.local.array(window_size, element)
        t = u32(cuda.threadIdx.x)
        threads = u32(cuda.blockDim.x)
        group = i32(t // u32(lanes))
        lane = i32(t) - i32(group * lanes)
        groups = i32(threads // u32(lanes))
        # A version below 0 never is; its place is in the key of Numba's cache.
        rest = u32(cuda.blockIdx.x) if version >= 0 else u32(0)
        if planar:
            py, px = divided(t, tile_width // VECTOR)
            c, py = divided(u32(py), tile_height // rows)
            rest, x0 = divided(rest, tiles_x)
            rest, y0 = divided(u32(rest), tiles_y)
            n, c0 = divided(u32(rest), tiles_c)
        else:
            px, c = divided(t, tile_channels)
            py, px = divided(u32(px), tile_width // VECTOR)
            rest, c0 = divided(rest, tiles_c)
            rest, x0 = divided(u32(rest), tiles_x)
            n, y0 = divided(u32(rest), tiles_y)
        px, py = i32(px * VECTOR), i32(py * rows)
        x0, y0, c0 = i32(x0 * tile_width), i32(y0 * tile_height), i32(c0 * tile_channels)
        some = i32(min(tile_channels, i32(channels - c0)))
        # Lines below each other belong to neighbouring rows of outputs and to neighbouring terms.
        # One term at a time: only its lines; one tap at a time: only its columns.
        row_step = i32(1) if low_rank or term_chunk == 1 else stride_y
        term_step = tile_height if low_rank else dilation_y
        column_step = i32(1) if tap_chunk == 1 else stride_x
        line_step = stride_y if term_chunk == 1 else i32(1)
        place_step = stride_x if tap_chunk == 1 else i32(1)
        taps_at = i32(tile_channels * plane)
        kept = term_chunk >= terms and tap_chunk >= taps_x and not low_rank
        source = i64(n) * image_batch + i64(c0) * image_channel
        m = i32(0)
        while m < multiplier:
            for j in range(outputs):
                unroll()
                total[j] = nothing
            r0 = i32(0)
            while r0 < terms:
                count = i32(min(term_chunk, i32(terms - r0)))
                staged = i32(count * tile_height)
                if not low_rank:
                    staged = i32((tile_height - 1) * row_step + (count - 1) * term_step + 1)
                k0 = i32(0)
                while k0 < taps_x:
                    near = i32(min(tap_chunk, i32(taps_x - k0)))
                    left = i32(x0 * stride_x + origin_x + k0 * dilation_x)
                    upper_y = i32(y0 * stride_y + origin_y + r0 * dilation_y)
                    cuda.syncthreads()
                    lines = i32(some * staged) if planar else i32(staged * pitch)
                    inner = pitch if planar else some
                    line = i32(group)
                    if (m > 0 and kept) or group >= groups:
                        line = lines
                    while line < lines:
                        upper, lower = divided(u32(line), staged if planar else pitch)
                        row = lower if planar else upper
                        if low_rank:
                            r, oy = divided(u32(row), tile_height)
                            r = i32(r + r0)
                            y = i32((y0 + oy) * stride_y + origin_y)
                        else:
                            r = i32(0)
                            y = i32(map_index(i32(upper_y + row * line_step), in_height))
                        i = i32(lane)
                        while i < inner:
                            channel = upper if planar else i
                            place = i if planar else lower
                            x = i32(map_index(i32(left + place * place_step), in_width))
                            at = source + i64(channel) * image_channel + i64(x) * image_pixel
                            value = nothing
                            if low_rank:
                                f = i32((c0 + channel) * multiplier + m)
                                tap_at = (i64(f) * terms + r) * taps_y
                                my = y
                                for k in range(taps_y):
                                    mapped = i32(map_index(my, in_height))
                                    one = nothing
                                    if x >= 0 and mapped >= 0:
                                        one = load(image, at + i64(mapped) * image_row)
                                    value = step(value, load_tap(columns, tap_at + k), one)
                                    my = i32(my + dilation_y)
                            elif x >= 0 and y >= 0:
                                value = load(image, at + i64(y) * image_row)
                            sums[i32(channel * plane + row * pitch + place)] = value
                            i = i32(i + lanes)
                        line = i32(line + groups)
                    # Taps, with zeros up to whole vectors, which no output takes.
                    s = i32(t)
                    while s < i32(some * count * tap_pitch):
                        q, k = divided(u32(s), tap_pitch)
                        channel, r = divided(u32(q), count)
                        f = i32((c0 + channel) * multiplier + m)
                        value = nothing
                        if k < near:
                            value = load_tap(taps, (i64(f) * terms + r0 + r) * taps_x + k0 + k)
                        sums[i32(taps_at + s)] = value
                        s = i32(s + i32(threads))
                    cuda.syncthreads()
                    if c < some:
                        first = i32(c * plane + py * row_step * pitch + px * column_step)
                        tap = i32(taps_at + c * count * tap_pitch)
                        i = i32(0)
                        while i < i32(count + rows - 1):
                            if i32(rows - 1) <= i and i < count:
                                add_whole(
                                    sums, total, window, first, tap, tap_pitch, near,
                                    i32(0), i32(0), column_step, dilation_x,
                                )  # fmt: skip
                            elif rows > 1:
                                add_some(
                                    sums, total, window, first, tap, tap_pitch, near,
                                    i32(i - count + 1), i32(i + 1), column_step, dilation_x,
                                )  # fmt: skip
                            i = i32(i + 1)
                            first = i32(first + term_step * pitch)
                            tap = i32(tap + tap_pitch)
                    k0 = i32(k0 + tap_chunk)
                r0 = i32(r0 + term_chunk)
            if c < some:
                f = i32((c0 + c) * multiplier + m)
                added = load_tap(bias, f)
                at = i64(n) * out_batch + i64(f) * out_filter
                at += i64(y0 + py) * out_row + i64(x0 + px) * out_pixel
                for r in range(rows):
                    unroll()
                    for j in range(VECTOR):
                        unroll()
                        if i32(y0 + py + r) < out_height and i32(x0 + px + j) < out_width:
                            raw = finish(total[r * VECTOR + j], added)
                            out[at + r * out_row + j * out_pixel] = raw
            m = i32(m + 1)

    return kernel

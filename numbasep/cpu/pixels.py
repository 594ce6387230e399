"""Depthwise correlation of pixels (NHWC) on the CPU: vectors run along the channels.

Where the image has the compute dtype, the outputs whose taps all lie inside are computed from the
image as it is, through a table of row addresses; the edges through a table of pixel addresses.
Images of other dtypes are packed first.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import njit
from numpy.typing import NDArray

from numbasep.cpu import atomics, blocks, compiled, simd, transposes
from numbasep.cpu.channels import (
    APART,
    ARRANGE,
    BIAS,
    BOUNDARY,
    COLUMN,
    DENSE,
    DIRECT,
    DY,
    EXTENT,
    FILTER,
    HIGH,
    KH,
    KW,
    LOW,
    OW,
    OX,
    OY,
    PACK,
    PHASE,
    PITCH,
    POINTED,
    POINTS,
    ROW_TAPS,
    ROWS_AT,
    SIZE,
    SPAN,
    SUMS_AT,
    SX,
    SY,
    TABLE_AT,
    TAPS,
    TAPS_AT,
    TERMS,
    WIDE,
    ZEROS,
    C,
    H,
    M,
    W,
)  # fmt: skip
from numbasep.cpu.passes import map_index, move

Array = NDArray[Any]

VECTORS = 2
# Outputs of a block; of one in a row of few, or where neighbours share few pixels: with a stride.
PIXELS, FEWER = (7 if simd.REGISTERS == 32 else 4), 4


def make_filter(pixels: int, pointed: bool) -> Any:
    """Make the filter of neighbouring pixels: from a table of rows, or of the pixels' addresses."""

    def make(pixels: int, vectors: int, masked: bool = False) -> Any:
        return blocks.make_pixels(pixels, vectors, masked=masked, pointed=pointed)

    some2, some1, some_few = make(pixels, VECTORS), make(pixels, 1), make(pixels, 1, True)
    one4, one1, one_few = make(1, 4), make(1, 1), make(1, 1, True)

    def filter_pixels(
        g: int, table: int, x: int, taps: int, bias: int, dst: int, count: int, n: int,
        compute: Any, spec: Any,
    ) -> None:  # fmt: skip
        """Filter ``count`` neighbouring pixels of n channels.

        Pixels left over are in the last block once more, or alone where they are one.
        """
        lanes, wide = blocks.vector_lanes(compute), simd.size_of(compute)
        step, out = atomics.peek(g + 8 * blocks.X_STEP), atomics.peek(g + 8 * blocks.OUT_PIXEL)
        i = 0
        while i < count:
            if i + pixels > count and count >= pixels and count - i > 1:
                i = count - pixels
            rows, here = (table + i * step, x) if pointed else (table, x + i * step)
            to, c = dst + i * out, 0
            if i + pixels <= count:
                while c + VECTORS * lanes <= n:
                    at = c * wide
                    some2(g, rows, here + at, taps + at, bias + at, to + at, n, compute, spec)
                    c += VECTORS * lanes
                if n < lanes:
                    some_few(g, rows, here, taps, bias, to, n, compute, spec)
                else:
                    while c < n:
                        c = min(c, n - lanes)
                        at = c * wide
                        some1(g, rows, here + at, taps + at, bias + at, to + at, n, compute, spec)
                        c += lanes
                i += pixels
            else:
                while c + 4 * lanes <= n:
                    at = c * wide
                    one4(g, rows, here + at, taps + at, bias + at, to + at, n, compute, spec)
                    c += 4 * lanes
                if n < lanes:
                    one_few(g, rows, here, taps, bias, to, n, compute, spec)
                else:
                    while c < n:
                        c = min(c, n - lanes)
                        at = c * wide
                        one1(g, rows, here + at, taps + at, bias + at, to + at, n, compute, spec)
                        c += lanes
                i += 1

    # Compiled in different processes, two could have one symbol, and the code of one.
    filter_pixels.__qualname__ += f"_{pixels}_{'pointed' if pointed else 'in_rows'}"
    return njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(filter_pixels)


filter_pixels, filter_pointed = make_filter(PIXELS, False), make_filter(PIXELS, True)
filter_fewer, pointed_fewer = make_filter(FEWER, False), make_filter(FEWER, True)


NINE = "void(" + ", ".join(["int64"] * 9) + ")"


@cache
def pixels_of(compute: str, number: int) -> Any:
    """Return ``void (g, table, x, taps, bias, dst, count, n, unused)``."""
    computed, spec = simd.tag(compute), blocks.number_tag(number)

    if number % 10 == 2 or PIXELS == FEWER:

        @compiled.cfunc(NINE)
        def fewer(
            g: int, table: int, x: int, taps: int, bias: int, dst: int, count: int, n: int,
            unused: int,
        ) -> None:  # fmt: skip
            filter_fewer(g, table, x, taps, bias, dst, count, n, computed, spec)

        return fewer

    @compiled.cfunc(NINE)
    def pixels(
        g: int, table: int, x: int, taps: int, bias: int, dst: int, count: int, n: int, unused: int
    ) -> None:
        if count < PIXELS:
            filter_fewer(g, table, x, taps, bias, dst, count, n, computed, spec)
        else:
            filter_pixels(g, table, x, taps, bias, dst, count, n, computed, spec)

    return pixels


@cache
def pointed_of(compute: str, number: int) -> Any:
    """Return ``void (g, table, x, taps, bias, dst, count, n, unused)``."""
    computed, spec = simd.tag(compute), blocks.number_tag(number)

    if number % 10 == 2 or PIXELS == FEWER:

        @compiled.cfunc(NINE)
        def fewer(
            g: int, table: int, x: int, taps: int, bias: int, dst: int, count: int, n: int,
            unused: int,
        ) -> None:  # fmt: skip
            pointed_fewer(g, table, x, taps, bias, dst, count, n, computed, spec)

        return fewer

    @compiled.cfunc(NINE)
    def pointed(
        g: int, table: int, x: int, taps: int, bias: int, dst: int, count: int, n: int, unused: int
    ) -> None:
        if count < PIXELS:
            pointed_fewer(g, table, x, taps, bias, dst, count, n, computed, spec)
        else:
            filter_pointed(g, table, x, taps, bias, dst, count, n, computed, spec)

    return pointed


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def arrange(src: int, dst: int, pitch: int, n: int, taps: int, compute: Any) -> None:
    """Turn n filters of ``taps`` taps into ``taps`` rows of n."""
    lanes, wide = blocks.vector_lanes(compute), simd.size_of(compute)
    f = 0
    while f < n:
        if n >= lanes and taps >= lanes:
            f, t = min(f, n - lanes), 0
            while t < taps:
                t = min(t, taps - lanes)
                to = dst + t * pitch + f * wide
                transposes.transpose(src + (f * taps + t) * wide, taps * wide, to, pitch, compute)
                t += lanes
            f += lanes
        else:
            for t in range(taps):
                move(src + (f * taps + t) * wide, dst + t * pitch + f * wide, wide)
            f += 1


@cache
def arranger(compute: str) -> Any:
    """Return ``void (src, dst, pitch, n, taps, unused, unused)``."""
    computed = simd.tag(compute)

    @compiled.cfunc("void(" + ", ".join(["int64"] * 7) + ")")
    def arranged(src: int, dst: int, pitch: int, n: int, taps: int, _: int, unused: int) -> None:
        arrange(src, dst, pitch, n, taps, computed)

    return arranged


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def arrange_taps(p: Array, f0: int, n: int, to: int) -> None:
    """Bring the taps of filters f0 to f0 + n into memory that stays in L1, channels last."""
    pitch, wide = atomics.peek(p[DENSE] + 8 * blocks.TAP_PITCH), p[WIDE]
    high = p[KH] * p[TERMS] if p[TERMS] else p[KH] * p[KW]
    atomics.call7(p[ARRANGE], p[TAPS] + f0 * high * wide, to, pitch, n, high, 0, 0)
    if p[TERMS]:
        wide_taps = p[TERMS] * p[KW]
        src = p[ROW_TAPS] + f0 * wide_taps * wide
        atomics.call7(p[ARRANGE], src, to + high * pitch, pitch, n, wide_taps, 0, 0)


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def pack_pixels(
    p: Array, base: int, first: int, rows: int, x0: int, count: int, f0: int, n: int, to: int
) -> None:
    """Pack the channels of filters f0 to f0 + n of pixels of rows ``first`` and on."""
    pixel, size = p[PHASE], p[SIZE]
    for j in range(rows):
        y = map_index(first + j, p[H], p[BOUNDARY])
        for q in range(count):
            x = map_index(x0 + q, p[W], p[BOUNDARY]) if y >= 0 else -1
            dst = to + j * p[PITCH] + q * pixel
            if x < 0:
                atomics.call7(p[PACK], p[ZEROS], dst, n, 1, 0, 0, 0)
                continue
            src = base + ((y * p[W] + x) * p[C]) * size
            if p[M] == 1:
                atomics.call7(p[PACK], src + f0 * size, dst, n, 1, 0, 0, 0)
            else:
                for f in range(n):
                    c = (f0 + f) // p[M]
                    atomics.call7(p[PACK], src + c * size, dst + f * p[WIDE], 1, 1, 0, 0, 0)


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def pixel_segment(
    p: Array, scratch: int, base: int, f0: int, n: int, y0: int, rows: int, x0: int, x1: int,
    dst: int, out_row: int,
) -> None:  # fmt: skip
    """Output columns x0 to x1 of a band from packed pixels."""
    if x0 >= x1:
        return
    wide, kh, terms = p[WIDE], p[KH], p[TERMS]
    table, packed, sums = (
        scratch + p[TABLE_AT],
        scratch + p[ROWS_AT],
        scratch + p[SUMS_AT],
    )
    needed = (rows - 1) * p[SY] + (kh - 1) * p[DY] + 1
    span = (x1 - 1 - x0) * p[SX] + p[EXTENT]
    pack_pixels(p, base, y0 * p[SY] + p[OY], needed, x0 * p[SX] + p[OX], span, f0, n, packed)
    for j in range(needed):
        atomics.poke(table + 8 * j, packed + j * p[PITCH])
    after = table + 8 * needed
    for t in range(terms):
        atomics.poke(after + 8 * t, sums + t * p[PITCH])
    taps, pitch = scratch + p[TAPS_AT], atomics.peek(p[DENSE] + 8 * blocks.TAP_PITCH)
    for y in range(rows):
        entry, to = table + 8 * y * p[SY], dst + y * out_row
        if terms == 0:
            step = p[SX] * p[PHASE]
            pixel_row(p, p[FILTER], p[DENSE], entry, step, 0, taps, f0, n, to, x1 - x0)
            continue
        for t in range(terms):
            atomics.call9(
                p[FILTER], p[COLUMN], entry, 0, taps + t * kh * pitch, p[ZEROS],
                sums + t * p[PITCH], span, n, 0,
            )  # fmt: skip
        atomics.call9(
            p[FILTER], p[DENSE], after, 0, taps + terms * kh * pitch, p[BIAS] + f0 * wide, to,
            x1 - x0, n, 0,
        )  # fmt: skip


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def pixel_row(
    p: Array, function: int, geometry: int, table: int, step: int, x: int, taps: int, f0: int,
    n: int, dst: int, count: int,
) -> None:  # fmt: skip
    """``count`` neighbouring outputs: those that share pixels in turn, ``APART`` apart.

    step: to the next output in what ``table`` addresses, or in ``table`` where that is per pixel.
    """
    apart, out = p[APART], atomics.peek(geometry + 8 * blocks.OUT_PIXEL) // p[APART]
    bias = p[BIAS] + f0 * p[WIDE]
    for phase in range(min(apart, count)):
        pointed = function == p[POINTED]
        atomics.call9(
            function, geometry, table + phase * step * pointed, x + phase * step * (not pointed),
            taps, bias, dst + phase * out, (count - phase + apart - 1) // apart, n, 0,
        )  # fmt: skip


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def pixel_band(
    p: Array, scratch: int, base: int, f0: int, n: int, y0: int, rows: int, dst: int, pitch: int
) -> None:
    """Filters f0 to f0 + n on a band of output rows, in the compute dtype; dst is pixel 0."""
    arrange_taps(p, f0, n, scratch + p[TAPS_AT])
    if p[POINTED] == 0:
        pixel_segment(p, scratch, base, f0, n, y0, rows, 0, p[OW], dst, pitch)
        return
    wide, low, high, span = p[WIDE], p[LOW], p[HIGH], p[SPAN]
    out = atomics.peek(p[DIRECT] + 8 * blocks.OUT_PIXEL) // p[APART]
    table, image_pixel = scratch + p[TABLE_AT], p[C] * p[SIZE]
    needed = (rows - 1) * p[SY] + (p[KH] - 1) * p[DY] + 1
    pixels = table + 8 * needed
    left, right = (low - 1) * p[SX] + p[EXTENT] if low else 0, high * p[SX]
    for j in range(needed):
        m = map_index(y0 * p[SY] + p[OY] + j, p[H], p[BOUNDARY])
        row = p[ZEROS] if m < 0 else base + m * p[W] * image_pixel
        atomics.poke(table + 8 * j, row)
        for q in range(span):
            if q < left or q >= right:
                k = map_index(q + p[OX], p[W], p[BOUNDARY])
                where = p[ZEROS] if m < 0 or k < 0 else row + k * image_pixel
                atomics.poke(pixels + 8 * (j * span + q), where)
    x = ((low * p[SX] + p[OX]) * p[C] + f0) * wide
    taps = scratch + p[TAPS_AT]
    for y in range(rows):
        entry, to = pixels + 8 * y * p[SY] * span, dst + y * pitch
        pixel_row(p, p[POINTED], p[POINTS], entry, 8 * p[SX], f0 * wide, taps, f0, n, to, low)
        pixel_row(
            p, p[FILTER], p[DIRECT], table + 8 * y * p[SY], p[SX] * image_pixel, x, taps, f0, n,
            to + low * out, high - low,
        )  # fmt: skip
        pixel_row(
            p, p[POINTED], p[POINTS], entry + 8 * right, 8 * p[SX], f0 * wide, taps, f0, n,
            to + high * out, p[OW] - high,
        )  # fmt: skip

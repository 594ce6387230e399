"""Depthwise correlation on the CPU, in planes (NCHW) and in pixels (NHWC).

Planes: a thread packs the image rows that a band of output rows needs, converted, padded and, for a
stride, sorted by the remainder of their column, into memory that stays in L1; blocks of rows by
vectors are then filtered there without a branch:

    image rows ----> packed rows |0 ........... 0|   ----> 4 rows x 2 vectors of the result
                                 |0 ........... 0|

Pixels: vectors run along the channels. Where the image has the compute dtype, the outputs whose
taps all lie inside are computed from the image as it is, through a table of row addresses; the
edges, and images of other dtypes, from packed pixels.

Low-rank weights: a column pass over the packed rows leaves one row of sums for each term, which the
row pass reads as if terms were vertical taps.
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

from numbasep import boundary as boundaries
from numbasep.cpu import atomics, blocks, compiled, pool, separable, simd
from numbasep.cpu.pool import address
from numbasep.cpu.separable import map_index, move
from numbasep.plan import cpu_tiles
from numbasep.plan.channelwise import DepthwisePlan

Array = NDArray[Any]

# The cache of compiled code watches one file only: what it is made of goes into its key.
VERSION = zlib.crc32(
    b"".join(
        Path(str(part.__file__)).read_bytes()
        for part in (simd, atomics, boundaries, blocks, separable)
    )
    + Path(__file__).read_bytes()
)

ROWS, VECTORS, PIXELS = 4, 2, 4
shared2 = blocks.make_plane(ROWS, VECTORS, ends=blocks.WHOLE, shared=True)
shared1 = blocks.make_plane(ROWS, 1, ends=blocks.WHOLE, shared=True)
shared_some = blocks.make_plane(ROWS, 1, ends=blocks.SOME, shared=True)
shared_few = blocks.make_plane(ROWS, 1, ends=blocks.FEW, shared=True)
plane4 = blocks.make_plane(1, 4, ends=blocks.WHOLE, shared=False)
plane1 = blocks.make_plane(1, 1, ends=blocks.WHOLE, shared=False)
plane_few = blocks.make_plane(1, 1, ends=blocks.FEW, shared=False)
pixels2 = blocks.make_pixels(PIXELS, VECTORS, masked=False)
pixels1 = blocks.make_pixels(PIXELS, 1, masked=False)
pixels_few = blocks.make_pixels(PIXELS, 1, masked=True)
pixel4 = blocks.make_pixels(1, 4, masked=False)
pixel1 = blocks.make_pixels(1, 1, masked=False)
pixel_few = blocks.make_pixels(1, 1, masked=True)
pointed2 = blocks.make_pixels(PIXELS, VECTORS, masked=False, pointed=True)
pointed1 = blocks.make_pixels(PIXELS, 1, masked=False, pointed=True)
pointed_few = blocks.make_pixels(PIXELS, 1, masked=True, pointed=True)
pointed_one4 = blocks.make_pixels(1, 4, masked=False, pointed=True)
pointed_one1 = blocks.make_pixels(1, 1, masked=False, pointed=True)
pointed_one_few = blocks.make_pixels(1, 1, masked=True, pointed=True)
move_full = blocks.make_move(masked=False)
move_edge = blocks.make_move(masked=True)
move_padded = blocks.make_move(masked=True, padded=True)
split_full = blocks.make_split(masked=False)
split_edge = blocks.make_split(masked=True)

# Places of the numbers that describe a depthwise correlation.
(
    IMAGE, OUT, TAPS, ROW_TAPS, BIAS,
    C, M, H, W, OH, OW, SIZE, WIDE, NARROW, KH, KW, TERMS, OY, OX, SY, SX, DY, BOUNDARY,
    GROUP, GROUPS, BAND, BANDS, PITCH, PHASE, PADS, PAD_COUNT, ZEROS, PACK, FILTER, FINISH,
    DENSE, COLUMN, DIRECT, LOW, HIGH, EXTENT, LENGTH, ROWS_AT, SUMS_AT, RESULT_AT, TABLE_AT,
    LINE_AT, PLANAR, SHARED, PACK_PLANE, APART, SPAN, POINTED, POINTS,
) = range(54)  # fmt: skip
NUMBERS = 54
PER_CALL = 5


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def filter_plane(
    g: int, src: int, taps: int, bias: int, dst: int, pitch: int, rows: int, shared: int,
    compute: Any, spec: Any,
) -> None:  # fmt: skip
    """Filter ``rows`` rows of a plane; the last block takes rows and columns again if need be.

    shared: rows this many apart need the same image rows; 0 where none do.
    """
    step, apart = atomics.peek(g + 8 * blocks.ROW_STEP), max(shared, 1)
    for phase in range(min(apart, rows)):
        filter_rows(
            g, src + phase * step, taps, bias, dst + phase * pitch, apart * step, apart * pitch,
            (rows - phase + apart - 1) // apart, shared, compute, spec,
        )  # fmt: skip


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def filter_rows(
    g: int, src: int, taps: int, bias: int, dst: int, step: int, pitch: int, rows: int,
    shared: int, compute: Any, spec: Any,
) -> None:  # fmt: skip
    """Filter rows whose sources are ``step`` bytes apart, and whose results are ``pitch``."""
    lanes, wide = blocks.vector_lanes(compute), simd.size_of(compute)
    n = atomics.peek(g + 8 * blocks.WIDTH)
    apart, y = lanes * wide, 0
    if shared and rows >= ROWS:
        while y < rows:
            y = min(y, rows - ROWS)
            s, d, x = src + y * step, dst + y * pitch, 0
            if n >= lanes:
                while x < n:
                    left = n - x
                    if left > lanes:
                        if left >= VECTORS * lanes:
                            between = apart
                        elif n >= VECTORS * lanes:
                            between, x = apart, n - VECTORS * lanes
                        else:
                            between = (n - lanes) * wide
                        at = x * wide
                        shared2(g, s + at, taps, bias, d + at, pitch, between, n, compute, spec)
                        x += VECTORS * lanes
                    else:
                        at = (n - lanes) * wide
                        shared1(g, s + at, taps, bias, d + at, pitch, 0, n, compute, spec)
                        x = n
            elif simd.MASKS or n < lanes // 2:
                shared_few(g, s, taps, bias, d, pitch, 0, n, compute, spec)
            else:
                shared_some(g, s, taps, bias, d, pitch, 0, n, compute, spec)
            y += ROWS
    while y < rows:
        s, d, x = src + y * step, dst + y * pitch, 0
        while x + 4 * lanes <= n:
            at = x * wide
            plane4(g, s + at, taps, bias, d + at, pitch, apart, n, compute, spec)
            x += 4 * lanes
        if n >= lanes:
            while x < n:
                x = min(x, n - lanes)
                at = x * wide
                plane1(g, s + at, taps, bias, d + at, pitch, 0, n, compute, spec)
                x += lanes
        else:
            plane_few(g, s, taps, bias, d, pitch, 0, n, compute, spec)
        y += 1


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def next_pixels(i: int, count: int) -> int:
    """Return where the block at i starts: pixels left over are in the last one once more, or alone
    where they are one."""
    if i + PIXELS > count and count >= PIXELS and count - i > 1:
        return count - PIXELS
    return i


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def filter_pixels(
    g: int, table: int, x: int, taps: int, bias: int, dst: int, count: int, n: int,
    compute: Any, spec: Any,
) -> None:  # fmt: skip
    """Filter ``count`` neighbouring pixels of n channels."""
    lanes, wide = blocks.vector_lanes(compute), simd.size_of(compute)
    step, out = atomics.peek(g + 8 * blocks.X_STEP), atomics.peek(g + 8 * blocks.OUT_PIXEL)
    i = 0
    while i < count:
        i = next_pixels(i, count)
        here, to, c = x + i * step, dst + i * out, 0
        if i + PIXELS <= count:
            while c + VECTORS * lanes <= n:
                at = c * wide
                pixels2(g, table, here + at, taps + at, bias + at, to + at, n, compute, spec)
                c += VECTORS * lanes
            if n < lanes:
                pixels_few(g, table, here, taps, bias, to, n, compute, spec)
            else:
                while c < n:
                    c = min(c, n - lanes)
                    at = c * wide
                    pixels1(g, table, here + at, taps + at, bias + at, to + at, n, compute, spec)
                    c += lanes
            i += PIXELS
        else:
            while c + 4 * lanes <= n:
                at = c * wide
                pixel4(g, table, here + at, taps + at, bias + at, to + at, n, compute, spec)
                c += 4 * lanes
            if n < lanes:
                pixel_few(g, table, here, taps, bias, to, n, compute, spec)
            else:
                while c < n:
                    c = min(c, n - lanes)
                    at = c * wide
                    pixel1(g, table, here + at, taps + at, bias + at, to + at, n, compute, spec)
                    c += lanes
            i += 1


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def filter_pointed(
    g: int, table: int, x: int, taps: int, bias: int, dst: int, count: int, n: int,
    compute: Any, spec: Any,
) -> None:  # fmt: skip
    """As ``filter_pixels``, from a table of the pixels' addresses."""
    lanes, wide = blocks.vector_lanes(compute), simd.size_of(compute)
    step, out = atomics.peek(g + 8 * blocks.X_STEP), atomics.peek(g + 8 * blocks.OUT_PIXEL)
    i = 0
    while i < count:
        i = next_pixels(i, count)
        here, to, c = table + i * step, dst + i * out, 0
        if i + PIXELS <= count:
            while c + VECTORS * lanes <= n:
                at = c * wide
                pointed2(g, here, x + at, taps + at, bias + at, to + at, n, compute, spec)
                c += VECTORS * lanes
            if n < lanes:
                pointed_few(g, here, x, taps, bias, to, n, compute, spec)
            else:
                while c < n:
                    c = min(c, n - lanes)
                    at = c * wide
                    pointed1(g, here, x + at, taps + at, bias + at, to + at, n, compute, spec)
                    c += lanes
            i += PIXELS
        else:
            while c + 4 * lanes <= n:
                at = c * wide
                pointed_one4(g, here, x + at, taps + at, bias + at, to + at, n, compute, spec)
                c += 4 * lanes
            if n < lanes:
                pointed_one_few(g, here, x, taps, bias, to, n, compute, spec)
            else:
                while c < n:
                    c = min(c, n - lanes)
                    at = c * wide
                    pointed_one1(g, here, x + at, taps + at, bias + at, to + at, n, compute, spec)
                    c += lanes
            i += 1


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def move_row(
    src: int, dst: int, n: int, storage: Any, compute: Any, output: Any, spec: Any
) -> None:
    """Convert n neighbours."""
    lanes, size, narrow = blocks.vector_lanes(compute), simd.size_of(storage), simd.size_of(output)
    i = 0
    while i + lanes <= n:
        move_full(src + i * size, dst + i * narrow, 0, storage, compute, output, spec)
        i += lanes
    if i < n:
        move_edge(src + i * size, dst + i * narrow, n - i, storage, compute, output, spec)


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def pack_rows(
    src: int, dst: int, n: int, rows: int, src_pitch: int, dst_pitch: int, stride: int, phase: int,
    left: int, storage: Any, compute: Any, spec: Any,
) -> None:  # fmt: skip
    """Convert rows of n to columns ``left`` and on, sorted by their remainder by the stride.

    Zeros may follow, to the end of a vector.
    """
    lanes, size, wide = blocks.vector_lanes(compute), simd.size_of(storage), simd.size_of(compute)
    if stride == 1:
        for j in range(rows):
            s, d, i = src + j * src_pitch, dst + j * dst_pitch + left * wide, 0
            while i + lanes <= n:
                move_full(s + i * size, d + i * wide, 0, storage, compute, compute, spec)
                i += lanes
            if i < n:
                move_padded(s + i * size, d + i * wide, n - i, storage, compute, compute, spec)
        return
    if stride == 2:
        even = left % 2 * phase + left // 2 * wide
        odd = (left + 1) % 2 * phase + (left + 1) // 2 * wide
        for j in range(rows):
            s, d, i = src + j * src_pitch, dst + j * dst_pitch, 0
            while i + 2 * lanes <= n:
                at = d + i // 2 * wide
                split_full(s + i * size, at + even, at + odd, 0, storage, compute)
                i += 2 * lanes
            if i < n:
                at = d + i // 2 * wide
                split_edge(s + i * size, at + even, at + odd, n - i, storage, compute)
        return
    for j in range(rows):
        s, d = src + j * src_pitch, dst + j * dst_pitch
        for i in range(n):
            q = left + i
            where = d + q % stride * phase + q // stride * wide
            move_padded(s + i * size, where, 1, storage, compute, compute, spec)


@cache
def plane_packer(storage: str, compute: str, version: int = VERSION) -> Any:
    """Return ``void (src, dst, n, rows, src_pitch, dst_pitch, stride, phase, left)``."""
    stored, computed, spec = simd.tag(storage), simd.tag(compute), blocks.number_tag(0)

    @compiled.cfunc("void(" + ", ".join(["int64"] * 9) + ")")
    def pack(
        src: int, dst: int, n: int, rows: int, src_pitch: int, dst_pitch: int, stride: int,
        phase: int, left: int,
    ) -> None:  # fmt: skip
        if version:
            pack_rows(
                src, dst, n, rows, src_pitch, dst_pitch, stride, phase, left, stored, computed, spec
            )

    return pack


@cache
def packer(storage: str, compute: str, version: int = VERSION) -> Any:
    """Return ``void (src, dst, n, stride, phase, left, unused)``."""
    stored, computed, spec = simd.tag(storage), simd.tag(compute), blocks.number_tag(0)

    @compiled.cfunc("void(" + ", ".join(["int64"] * 7) + ")")
    def pack(src: int, dst: int, n: int, stride: int, phase: int, left: int, unused: int) -> None:
        if version:
            pack_rows(src, dst, n, 1, 0, 0, stride, phase, left, stored, computed, spec)

    return pack


@cache
def planes_of(compute: str, number: int, version: int = VERSION) -> Any:
    """Return ``void (g, src, taps, bias, dst, pitch, rows, shared, unused)``."""
    computed, spec = simd.tag(compute), blocks.number_tag(number)

    @compiled.cfunc("void(" + ", ".join(["int64"] * 9) + ")")
    def planes(
        g: int, src: int, taps: int, bias: int, dst: int, pitch: int, rows: int, shared: int,
        unused: int,
    ) -> None:  # fmt: skip
        if version:
            filter_plane(g, src, taps, bias, dst, pitch, rows, shared, computed, spec)

    return planes


@cache
def pixels_of(compute: str, number: int, version: int = VERSION) -> Any:
    """Return ``void (g, table, x, taps, bias, dst, count, n, unused)``."""
    computed, spec = simd.tag(compute), blocks.number_tag(number)

    @compiled.cfunc("void(" + ", ".join(["int64"] * 9) + ")")
    def pixels(
        g: int, table: int, x: int, taps: int, bias: int, dst: int, count: int, n: int, unused: int
    ) -> None:
        if version:
            filter_pixels(g, table, x, taps, bias, dst, count, n, computed, spec)

    return pixels


@cache
def pointed_of(compute: str, number: int, version: int = VERSION) -> Any:
    """Return ``void (g, table, x, taps, bias, dst, count, n, unused)``."""
    computed, spec = simd.tag(compute), blocks.number_tag(number)

    @compiled.cfunc("void(" + ", ".join(["int64"] * 9) + ")")
    def pointed(
        g: int, table: int, x: int, taps: int, bias: int, dst: int, count: int, n: int, unused: int
    ) -> None:
        if version:
            filter_pointed(g, table, x, taps, bias, dst, count, n, computed, spec)

    return pointed


@cache
def finisher(compute: str, output: str, activation: int, version: int = VERSION) -> Any:
    """Return ``void (src, dst, n)``: the activation, then the conversion."""
    computed, out, spec = simd.tag(compute), simd.tag(output), blocks.number_tag(activation)

    @compiled.cfunc("void(int64, int64, int64)")
    def finish(src: int, dst: int, n: int) -> None:
        if version:
            move_row(src, dst, n, computed, computed, out, spec)

    return finish


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def pack_band(p: Array, base: int, first: int, rows: int, to: int) -> None:
    """Pack image rows ``first`` and on of a plane with what stands around them."""
    pitch, wide = p[PITCH], p[WIDE]
    if p[BOUNDARY] == boundaries.FILL:
        # What is outside the image is the same for all channels: ``clear_band`` wrote it.
        low, high = max(-first, 0), min(p[H] - first, rows)
        if low < high:
            atomics.call9(
                p[PACK_PLANE], base + (first + low) * p[W] * p[SIZE], to + low * pitch, p[W],
                high - low, p[W] * p[SIZE], pitch, p[SX], p[PHASE], max(-p[OX], 0),
            )  # fmt: skip
        return
    for j in range(rows):
        slot = to + j * pitch
        m = map_index(first + j, p[H], p[BOUNDARY])
        atomics.call7(
            p[PACK],
            base + m * p[W] * p[SIZE],
            slot,
            p[W],
            p[SX],
            p[PHASE],
            max(-p[OX], 0),
            0,
        )
        for k in range(p[PAD_COUNT]):
            where = atomics.peek(p[PADS] + 16 * k)
            source = atomics.peek(p[PADS] + 16 * k + 8)
            move(slot + source, slot + where, wide)


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def clear_band(p: Array, scratch: int, rows: int) -> None:
    """Write zeros where ``pack_band`` leaves what is outside the image."""
    if p[BOUNDARY] == boundaries.FILL:
        needed = (rows - 1) * p[SY] + (p[KH] - 1) * p[DY] + 1
        numba.carray(simd.as_pointer(scratch + p[ROWS_AT]), needed * p[PITCH] // 8)[:] = 0


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def plane_band(
    p: Array, scratch: int, base: int, c: int, y0: int, rows: int, dst: int, plane: int, pitch: int
) -> None:
    """All filters of a channel on a band of output rows, in the compute dtype."""
    wide, kh, kw, terms = p[WIDE], p[KH], p[KW], p[TERMS]
    packed, sums = scratch + p[ROWS_AT], scratch + p[SUMS_AT]
    needed = (rows - 1) * p[SY] + (kh - 1) * p[DY] + 1
    pack_band(p, base, y0 * p[SY] + p[OY], needed, packed)
    for m in range(p[M]):
        f = c * p[M] + m
        bias = p[BIAS] + f * wide
        if terms == 0:
            atomics.call9(
                p[FILTER], p[DENSE], packed, p[TAPS] + f * kh * kw * wide, bias,
                dst + m * plane, pitch, rows, p[SHARED], 0,
            )  # fmt: skip
            continue
        for t in range(terms):
            atomics.call9(
                p[FILTER], p[COLUMN], packed, p[TAPS] + (f * terms + t) * kh * wide, p[ZEROS],
                sums + t * p[PITCH], terms * p[PITCH], rows, 0, 0,
            )  # fmt: skip
        atomics.call9(
            p[FILTER], p[DENSE], sums, p[ROW_TAPS] + f * terms * kw * wide, bias,
            dst + m * plane, pitch, rows, 0, 0,
        )  # fmt: skip


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
    dst: int, pitch: int,
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
    filters = p[C] * p[M]
    for j in range(needed):
        atomics.poke(table + 8 * j, packed + j * p[PITCH])
    after = table + 8 * needed
    for t in range(terms):
        atomics.poke(after + 8 * t, sums + t * p[PITCH])
    for y in range(rows):
        entry, to = table + 8 * y * p[SY], dst + y * pitch
        taps, bias = p[TAPS] + f0 * wide, p[BIAS] + f0 * wide
        if terms == 0:
            pixel_row(
                p,
                p[FILTER],
                p[DENSE],
                entry,
                p[SX] * p[PHASE],
                0,
                f0,
                n,
                to,
                x1 - x0,
            )
            continue
        for t in range(terms):
            atomics.call9(
                p[FILTER], p[COLUMN], entry, 0, taps + t * kh * filters * wide, p[ZEROS],
                sums + t * p[PITCH], span, n, 0,
            )  # fmt: skip
        atomics.call9(
            p[FILTER],
            p[DENSE],
            after,
            0,
            p[ROW_TAPS] + f0 * wide,
            bias,
            to,
            x1 - x0,
            n,
            0,
        )


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def pixel_row(
    p: Array, function: int, geometry: int, table: int, step: int, x: int, f0: int, n: int,
    dst: int, count: int,
) -> None:  # fmt: skip
    """``count`` neighbouring outputs: those that share pixels in turn, ``APART`` apart.

    step: to the next output in what ``table`` addresses, or in ``table`` where that is per pixel.
    """
    apart, out = p[APART], atomics.peek(geometry + 8 * blocks.OUT_PIXEL) // p[APART]
    taps, bias = p[TAPS] + f0 * p[WIDE], p[BIAS] + f0 * p[WIDE]
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
    for y in range(rows):
        entry, to = pixels + 8 * y * p[SY] * span, dst + y * pitch
        pixel_row(p, p[POINTED], p[POINTS], entry, 8 * p[SX], f0 * wide, f0, n, to, low)
        pixel_row(
            p, p[FILTER], p[DIRECT], table + 8 * y * p[SY], p[SX] * image_pixel, x, f0, n,
            to + low * out, high - low,
        )  # fmt: skip
        pixel_row(
            p, p[POINTED], p[POINTS], entry + 8 * right, 8 * p[SX], f0 * wide, f0, n,
            to + high * out, p[OW] - high,
        )  # fmt: skip


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def work(numbers: int, taken: int, items: int, scratch: int) -> None:
    """Take bands of groups of channels until there are none."""
    p = simd.as_pointer(numbers)
    filters = p[C] * p[M]
    size = p[H] * p[W] * p[SIZE]
    while True:
        item = atomics.take(taken)
        if item >= items:
            break
        band, rest = item % p[BANDS], item // p[BANDS]
        group, n = rest % p[GROUPS], rest // p[GROUPS]
        y0 = band * p[BAND]
        rows = min(p[OH] - y0, p[BAND])
        first = group * p[GROUP]
        if p[PLANAR]:
            plane = p[OH] * p[OW] * p[NARROW]
            clear_band(p, scratch, rows)
            for c in range(first, min(first + p[GROUP], p[C])):
                base = p[IMAGE] + (n * p[C] + c) * size
                out = p[OUT] + (n * filters + c * p[M]) * plane + y0 * p[OW] * p[NARROW]
                if p[FINISH] == 0:
                    plane_band(p, scratch, base, c, y0, rows, out, plane, p[OW] * p[WIDE])
                    continue
                result, length = scratch + p[RESULT_AT], rows * p[OW]
                plane_band(
                    p,
                    scratch,
                    base,
                    c,
                    y0,
                    rows,
                    result,
                    length * p[WIDE],
                    p[OW] * p[WIDE],
                )
                for m in range(p[M]):
                    atomics.call3(p[FINISH], result + m * length * p[WIDE], out + m * plane, length)
        else:
            base = p[IMAGE] + n * p[C] * size
            count = min(p[GROUP], filters - first)
            out = p[OUT] + (((n * p[OH] + y0) * p[OW]) * filters + first) * p[NARROW]
            if p[FINISH] == 0:
                pitch = p[OW] * filters * p[WIDE]
                pixel_band(p, scratch, base, first, count, y0, rows, out, pitch)
            else:
                result, pixel = scratch + p[RESULT_AT], p[GROUP] * p[WIDE]
                pixel_band(p, scratch, base, first, count, y0, rows, result, p[OW] * pixel)
                for i in range(rows * p[OW]):
                    atomics.call3(
                        p[FINISH], result + i * pixel, out + i * filters * p[NARROW], count
                    )
        atomics.take(taken + 8)


@cache
def driver(version: int = VERSION) -> Any:
    """Return ``void (numbers, counter, items, scratch)``, the kernel for ``pool.run``."""

    @compiled.cfunc("void(int64, int64, int64, int64)")
    def driver(numbers: int, counter: int, items: int, scratch: int) -> None:
        if version:
            work(numbers, counter, items, scratch)

    return driver


def bounds_of(compute: str, activation: str) -> Array:
    """Return what results are clamped to: nothing but for relu and relu6."""
    if compute == "int32":
        low, high = -(2.0**31), 2.0**31 - 1
    else:
        low, high = -np.inf, np.inf
    if activation in ("relu", "relu6"):
        low = 0
    if activation == "relu6":
        high = 6
    return np.array([low, high], compute)


ACTIVATED = {"silu": blocks.SILU, "hardswish": blocks.HARDSWISH, "gelu": blocks.GELU}


@dataclass(frozen=True, slots=True)
class Tile:
    """A work item: ``band`` output rows of ``group`` channels (NHWC: filters)."""

    band: int
    group: int
    threads: int

    def __str__(self) -> str:
        return f"{self.band} rows of {self.group} channels, {self.threads} threads"


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """What calls of one plan and tile share: all numbers but the first ``PER_CALL``."""

    numbers: Array
    items: int
    scratch: int
    threads: int
    owners: tuple[Any, ...]


def rounded(size: int, step: int = 64) -> int:
    return -(-size // step) * step


def row_bytes(plan: DepthwisePlan, group: int) -> tuple[int, int]:
    """Return the bytes of a packed row, and of one remainder of the stride in it (of a pixel)."""
    wide = np.dtype(plan.compute).itemsize
    span = (plan.x.out - 1) * plan.x.stride + plan.x.extent
    # The whole image row is packed, also what no output reads.
    span = max(span, plan.x.size + max(-plan.x.origin, 0))
    if plan.layout == "NHWC":
        return rounded(span * group * wide) + 64, group * wide
    # Whole vectors are written and read beyond the last element.
    phase = rounded(-(-span // plan.x.stride) * wide) + 4 * simd.VECTOR
    return rounded(plan.x.stride * phase + 4 * simd.VECTOR), phase


@lru_cache(maxsize=1024)
def choose(plan: DepthwisePlan, threads: int) -> Tile:
    """Return the tile for a plan."""
    wide = np.dtype(plan.compute).itemsize
    taps = plan.rank * (plan.y.taps + plan.x.taps) if plan.rank else plan.y.taps * plan.x.taps
    outputs = plan.y.out * plan.x.out
    if plan.batch * plan.filters * outputs * max(taps, 8) < cpu_tiles.ALONE:
        threads = 1
    if plan.layout == "NCHW":
        pitch, _ = row_bytes(plan, 1)
        fits = (cpu_tiles.L1_BYTES // pitch - plan.y.extent) // plan.y.stride + 1
        band = min(max(fits, 2 * ROWS), plan.y.out)
        bands = -(-plan.y.out // band)
        band = min(rounded(-(-plan.y.out // bands), ROWS), plan.y.out)
        group = max(1, 60_000 // (band * plan.x.out * taps * plan.multiplier))
        most = -(-plan.batch * plan.channels * bands // (4 * threads))
        return Tile(band, min(group, max(most, 1), plan.channels), threads)
    lanes = blocks.lanes_of(plan.compute)
    in_place = plan.storage == plan.compute and plan.multiplier == 1 and plan.rank == 0
    if in_place:
        group = plan.filters
        rows = max(1, cpu_tiles.L2_BYTES // (plan.x.size * plan.channels * wide))
    else:
        group = min(4 * lanes, plan.filters)
        pitch, _ = row_bytes(plan, group)
        rows = max(1, (cpu_tiles.L2_BYTES // pitch - plan.y.extent) // plan.y.stride + 1)
    share = -(-plan.batch * plan.y.out * -(-plan.filters // group) // (4 * threads))
    return Tile(max(1, min(rows, max(share, ROWS), plan.y.out)), group, threads)


def _specialised(plan: DepthwisePlan) -> int:
    """Return the number of the blocks for this kernel; 0 for those of any kernel."""
    kh, kw = plan.y.taps, plan.x.taps
    if plan.rank or kh != kw or kh not in (3, 5, 7) or plan.compute == "float64":
        return 0
    if plan.layout == "NHWC":
        if plan.x.dilation % plan.x.stride == 0:
            return 10 * kw + 1
        return 10 * kw + 2 if plan.x.dilation == 1 and plan.x.stride == 2 else 0
    if plan.y.dilation % plan.y.stride == 0:
        return 100 * kh + 10 * kw + 1
    return 100 * kh + 10 * kw + 2 if plan.y.dilation == 1 and plan.y.stride == 2 else 0


@lru_cache(maxsize=512)
def prepare(plan: DepthwisePlan, tile: Tile, out_pixel: int = 0) -> Prepared:
    """Return what calls of a plan share.

    out_pixel: bytes between pixels of the result where a caller of ``pixel_band`` has its own
    place for them; else the plan's.
    """
    wide = np.dtype(plan.compute).itemsize
    narrow = simd.itemsize(plan.output)
    planar = plan.layout == "NCHW"
    x, y = plan.x, plan.y
    group, pitch, filters = tile.group, 0, plan.filters
    pitch, phase = row_bytes(plan, group)
    number = _specialised(plan)
    axis = y if planar else x
    # Outputs this many apart need the same image rows (NHWC: pixels).
    apart = axis.dilation // axis.stride if axis.dilation % axis.stride == 0 and number else 1
    shared = apart if planar and number else 0
    if planar and not plan.rank and y.taps >= ROWS and y.dilation % y.stride == 0:
        shared = y.dilation // y.stride
    finishing = plan.output != plan.compute or plan.activation in ACTIVATED
    if not out_pixel:
        out_pixel = (group if finishing else filters) * wide
    bounds = bounds_of(plan.compute, plan.activation), bounds_of(plan.compute, "none")
    taps = np.arange(x.taps) * x.dilation
    places = taps % x.stride * phase + taps // x.stride * wide if planar else taps * phase
    in_place = taps * plan.channels * wide
    offsets = [np.ascontiguousarray(a, np.int64) for a in (places, np.zeros(1), in_place, 8 * taps)]
    geometry = np.zeros((4, blocks.GEOMETRY), np.int64)
    span = (x.out - 1) * x.stride + x.extent
    terms = plan.rank
    rows_pitch = terms * pitch if terms else y.stride * pitch
    low_taps = (pitch, terms) if planar else (8, terms)
    taps_of = low_taps if terms else (y.dilation * (pitch if planar else 8), y.taps)
    pixel = phase if not planar else 0
    if planar:
        length = pitch // wide if x.stride > 1 else span
        # Whole vectors are written: no more than what is there.
        geometry[0, :7] = (
            rows_pitch, taps_of[0], address(offsets[0]), taps_of[1], x.taps, x.out,
            address(bounds[0]),
        )  # fmt: skip
        geometry[1, :7] = (
            y.stride * pitch, y.dilation * pitch, address(offsets[1]), y.taps, 1, length,
            address(bounds[1]),
        )  # fmt: skip
    else:
        length = span
        across = apart * x.stride
        geometry[0] = (
            0, taps_of[0], address(offsets[0]), taps_of[1], x.taps, 0, address(bounds[0]),
            across * pixel, filters * wide, apart * out_pixel,
        )  # fmt: skip
        geometry[1] = (
            0, 8 * y.dilation, address(offsets[1]), y.taps, 1, 0, address(bounds[1]), pixel,
            filters * wide, pixel,
        )  # fmt: skip
        geometry[2:] = geometry[0]
        geometry[2:, blocks.OFFSETS] = address(offsets[2]), address(offsets[3])
        geometry[2:, blocks.X_STEP] = across * plan.channels * wide, 8 * across
        geometry[3, blocks.TAP_STEP] = 8 * y.dilation * span
    direct = not planar and plan.storage == plan.compute and plan.multiplier == 1 and not plan.rank
    low = high = x.out
    if direct:
        low = min(max(-(x.origin // x.stride), 0), x.out)
        high = (x.size - x.extent - x.origin) // x.stride + 1
        high = min(max(high, low), x.out)
        if high - low < 2 * PIXELS:
            low = high = x.out
    left = max(-x.origin, 0)
    pads = []
    if planar:

        def place(q: int) -> int:
            return q % x.stride * phase + q // x.stride * wide

        for q in (*range(left), *range(left + x.size, span)):
            m = boundaries.map_index(q - left, x.size, plan.boundary)
            pads.append((place(q), -1 if m < 0 else place(left + m)))
    pad_table = np.array(pads or [(0, 0)], np.int64)
    zeros = np.zeros(max(x.size * plan.channels if direct else 0, filters, 64), plan.compute)
    bands = -(-y.out // tile.band)
    needed = (tile.band - 1) * y.stride + y.extent
    sizes = [
        0 if direct else needed * pitch + 4 * simd.VECTOR,
        (tile.band if planar else 1) * max(terms, 1) * pitch + 4 * simd.VECTOR if terms else 0,
        tile.band * x.out * wide * (plan.multiplier if planar else group) if finishing else 0,
        8 * (needed * (1 + span * direct) + terms),
        64,
    ]
    starts = np.cumsum([0, *map(rounded, sizes)]).tolist()
    units = plan.channels if planar else filters
    groups = -(-units // group)
    compiled = (planes_of if planar else pixels_of)(plan.compute, number)
    numbers = np.zeros(NUMBERS, np.int64)
    numbers[PER_CALL:] = (
        plan.channels, plan.multiplier, y.size, x.size, y.out, x.out, simd.itemsize(plan.storage),
        wide, narrow, y.taps, x.taps, terms, y.origin, x.origin, y.stride, x.stride, y.dilation,
        plan.boundary, group, groups, tile.band, bands, pitch, phase, address(pad_table),
        len(pads), address(zeros), packer(plan.storage, plan.compute).address, compiled.address,
        finisher(plan.compute, plan.output, ACTIVATED.get(plan.activation, 0)).address
        if finishing
        else 0,
        *(address(one) for one in geometry[:3]), low, high, x.extent, length, *starts[:5], planar,
        shared,
        plane_packer(plan.storage, plan.compute).address if planar else 0,
        apart,
        span,
        pointed_of(plan.compute, number).address if direct else 0,
        address(geometry[3]),
    )  # fmt: skip
    return Prepared(
        numbers,
        plan.batch * groups * bands,
        starts[-1] + 4 * simd.VECTOR,
        tile.threads,
        (bounds, offsets, geometry, pad_table, zeros),
    )


@lru_cache(maxsize=512)
def chosen(plan: DepthwisePlan, threads: int) -> Prepared:
    """Return ``prepare`` of the tile for a plan."""
    return prepare(plan, choose(plan, threads))


def arranged(plan: DepthwisePlan, weight: Any) -> tuple[Array, Array]:
    """Return the taps as the blocks take them: as they are (NCHW), or filters last (NHWC)."""
    columns, rows = weight if plan.rank else (weight, weight)
    if plan.layout == "NHWC":
        columns, rows = (np.ascontiguousarray(np.moveaxis(w, 0, -1)) for w in (columns, rows))
    return columns, rows


def run_depthwise(
    plan: DepthwisePlan,
    image: Array,
    weight: Any,
    bias: Array,
    out: Array,
    tile: Tile | None = None,
) -> None:
    """Write the depthwise correlation of ``image`` into ``out``; see ``plan.channelwise``."""
    made = chosen(plan, numba.get_num_threads()) if tile is None else prepare(plan, tile)
    columns, rows = arranged(plan, weight)
    numbers = made.numbers.copy()
    numbers[:PER_CALL] = [address(a) for a in (image, out, columns, rows, bias)]
    owners = image, out, columns, rows, bias, made
    pool.run(driver().address, numbers, made.items, made.scratch, made.threads, owners)

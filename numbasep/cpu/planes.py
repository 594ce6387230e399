"""Depthwise correlation of planes (NCHW) on the CPU.

Where it can, ``windows`` filters them from the image as it is. Else a thread packs the image rows
that a band of output rows needs, converted, padded and, for a stride, sorted by the remainder of
their column, into memory that stays in L1; blocks of rows by vectors are then filtered there
without a branch:

    image rows ----> packed rows |0 ........... 0|   ----> 4 rows x 2 vectors of the result
                                 |0 ........... 0|

Low-rank weights: a column pass over the packed rows leaves one row of sums for each term, which the
row pass reads as if terms were vertical taps.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
from numba import njit
from numpy.typing import NDArray

from numbasep import boundary as boundaries
from numbasep.cpu import atomics, blocks, compiled, simd
from numbasep.cpu.channels import (
    BIAS,
    BOUNDARY,
    COLUMN,
    DENSE,
    DY,
    FILTER,
    KH,
    KW,
    LEAST,
    OX,
    OY,
    PACK,
    PACK_PLANE,
    PAD_COUNT,
    PADS,
    PHASE,
    PITCH,
    ROW_TAPS,
    ROWS_AT,
    SHARED,
    SIZE,
    SUMS_AT,
    SX,
    SY,
    TAPS,
    TERMS,
    WIDE,
    WINDOW,
    WINDOWS,
    ZEROS,
    H,
    M,
    W,
    pack_rows,
)  # fmt: skip
from numbasep.cpu.passes import map_index, move

Array = NDArray[Any]

ROWS, VECTORS = 4, 2
shared2 = blocks.make_plane(ROWS, VECTORS, ends=blocks.WHOLE, shared=True)
shared1 = blocks.make_plane(ROWS, 1, ends=blocks.WHOLE, shared=True)
shared_some = blocks.make_plane(ROWS, 1, ends=blocks.SOME, shared=True)
shared_few = blocks.make_plane(ROWS, 1, ends=blocks.FEW, shared=True)
plane4 = blocks.make_plane(1, 4, ends=blocks.WHOLE, shared=False)
plane1 = blocks.make_plane(1, 1, ends=blocks.WHOLE, shared=False)
plane_few = blocks.make_plane(1, 1, ends=blocks.FEW, shared=False)


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


@cache
def plane_packer(storage: str, compute: str) -> Any:
    """Return ``void (src, dst, n, rows, src_pitch, dst_pitch, stride, phase, left)``."""
    stored, computed, spec = simd.tag(storage), simd.tag(compute), blocks.number_tag(0)

    @compiled.cfunc("void(" + ", ".join(["int64"] * 9) + ")")
    def pack(
        src: int, dst: int, n: int, rows: int, src_pitch: int, dst_pitch: int, stride: int,
        phase: int, left: int,
    ) -> None:  # fmt: skip
        pack_rows(
            src, dst, n, rows, src_pitch, dst_pitch, stride, phase, left, stored, computed, spec
        )

    return pack


@cache
def planes_of(compute: str, number: int) -> Any:
    """Return ``void (g, src, taps, bias, dst, pitch, rows, shared, unused)``."""
    computed, spec = simd.tag(compute), blocks.number_tag(number)

    @compiled.cfunc("void(" + ", ".join(["int64"] * 9) + ")")
    def planes(
        g: int, src: int, taps: int, bias: int, dst: int, pitch: int, rows: int, shared: int,
        unused: int,
    ) -> None:  # fmt: skip
        filter_plane(g, src, taps, bias, dst, pitch, rows, shared, computed, spec)

    return planes


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
def windowed(p: Array, rows: int) -> bool:
    """Whether a band of output rows is filtered from the image as it is."""
    return bool(p[WINDOWS] != 0 and rows >= p[LEAST])


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def clear_band(p: Array, scratch: int, rows: int) -> None:
    """Write zeros where ``pack_band`` leaves what is outside the image."""
    if p[BOUNDARY] == boundaries.FILL:
        needed = (rows - 1) * p[SY] + (p[KH] - 1) * p[DY] + 1
        numba.carray(simd.as_pointer(scratch + p[ROWS_AT]), needed * p[PITCH] // 8)[:] = 0


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def plane_bands(
    p: Array, scratch: int, image: int, first: int, channels: int, y0: int, rows: int, dst: int,
    plane: int, pitch: int,
) -> None:  # fmt: skip
    """All filters of channels from ``first`` on, on a band of output rows, in the compute dtype."""
    size, taps = p[H] * p[W] * p[SIZE], p[KH] * p[KW] * p[WIDE]
    if not windowed(p, rows):
        for c in range(first, first + channels):
            to = dst + (c - first) * p[M] * plane
            packed_band(p, scratch, image + c * size, c, y0, rows, to, plane, pitch)
        return
    # Images of one filter go together.
    together = channels if p[M] == 1 else 1
    for c in range(first, first + channels, together):
        for m in range(p[M]):
            f = c * p[M] + m
            atomics.call10(
                p[WINDOWS], p[WINDOW], image + c * size, p[TAPS] + f * taps, p[BIAS] + f * p[WIDE],
                dst + (f - first * p[M]) * plane, pitch, y0, rows, together, plane,
            )  # fmt: skip


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def packed_band(
    p: Array, scratch: int, base: int, c: int, y0: int, rows: int, dst: int, plane: int, pitch: int
) -> None:
    """All filters of a channel on a band of output rows, from packed rows."""
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

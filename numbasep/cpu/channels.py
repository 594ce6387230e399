"""What depthwise correlations on the CPU share: the numbers that describe one, moves of rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from numbasep.cpu import activations, blocks, compiled, simd

Array = NDArray[Any]

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
    TAPS_AT, PLANAR, SHARED, PACK_PLANE, APART, SPAN, POINTED, POINTS,
    ARRANGE, WINDOW, WINDOWS, LEAST,
) = range(58)  # fmt: skip
NUMBERS = 58
PER_CALL = 5

ACTIVATED = {"silu": activations.SILU, "hardswish": activations.HARDSWISH, "gelu": activations.GELU}


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
def packer(storage: str, compute: str) -> Any:
    """Return ``void (src, dst, n, stride, phase, left, unused)``."""
    stored, computed, spec = simd.tag(storage), simd.tag(compute), blocks.number_tag(0)

    @compiled.cfunc("void(" + ", ".join(["int64"] * 7) + ")")
    def pack(src: int, dst: int, n: int, stride: int, phase: int, left: int, unused: int) -> None:
        pack_rows(src, dst, n, 1, 0, 0, stride, phase, left, stored, computed, spec)

    return pack


@cache
def finisher(compute: str, output: str, activation: int) -> Any:
    """Return ``void (src, dst, n)``: the activation, then the conversion."""
    computed, out, spec = simd.tag(compute), simd.tag(output), blocks.number_tag(activation)

    @compiled.cfunc("void(int64, int64, int64)")
    def finish(src: int, dst: int, n: int) -> None:
        move_row(src, dst, n, computed, computed, out, spec)

    return finish

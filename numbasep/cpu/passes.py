"""Rows of the separable passes on the CPU: converted, summed over columns, summed along themselves.

Three C functions are compiled by dtype: ``converter`` (storage to compute), ``columns_of``
(compute) and ``rows_of`` (compute to output). Tap counts are loop bounds, so a new one compiles
nothing. The order of the sums is fixed: taps ascending, by fused multiply-adds.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import njit

from numbasep import boundary as boundaries
from numbasep.cpu import atomics, compiled, simd, spatial_blocks
from numbasep.plan import cpu_tiles

ROWS = cpu_tiles.ROWS
BLOCK = 4 if simd.REGISTERS == 32 else 2
columns4 = spatial_blocks.make_columns(ROWS, BLOCK)
columns4_of3 = spatial_blocks.make_columns(ROWS, BLOCK, taps=3)
columns4_of2 = spatial_blocks.make_columns(ROWS, BLOCK, taps=2)
columns4_of1 = spatial_blocks.make_columns(ROWS, BLOCK, taps=1)
columns1 = spatial_blocks.make_columns(1, 4)
column = spatial_blocks.make_columns(1, 1)
column_single = spatial_blocks.make_columns(1, 1, lanes=1)
VECTORS = 8 if simd.REGISTERS == 32 else 12
row_block = spatial_blocks.make_row(VECTORS)
row_block_of3 = spatial_blocks.make_row(VECTORS, taps=3)
row_block_of5 = spatial_blocks.make_row(VECTORS, taps=5)
row4 = spatial_blocks.make_row(4)
row1 = spatial_blocks.make_row(1)
row_single = spatial_blocks.make_row(1, lanes=1)
RUN_VECTORS = 8
SHORTEST_RUN = 1 if simd.PERMUTES else spatial_blocks.RUN
run_block = (spatial_blocks.make_run if simd.PERMUTES else spatial_blocks.make_aligned_run)(
    RUN_VECTORS
)
run_block_of3, run_block_of5 = (
    run_block if simd.PERMUTES else spatial_blocks.make_aligned_run(RUN_VECTORS, count)
    for count in (3, 5)
)
convert4 = spatial_blocks.make_convert(4)
convert1 = spatial_blocks.make_convert(1)
convert_single = spatial_blocks.make_convert(1, lanes=1)

map_index = njit(boundaries.map_index)


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def convert_row(src: int, dst: int, n: int, ahead: int, storage: Any, compute: Any) -> None:
    """Convert n elements; ask memory for those at ``ahead``."""
    lanes, size, wide = simd.vector_lanes(compute), simd.size_of(storage), simd.size_of(compute)
    i = 0
    while i + 4 * lanes <= n:
        convert4(src + i * size, dst + i * wide, ahead + i * size, storage, compute)
        i += 4 * lanes
    if n >= lanes:
        while i < n:
            i = min(i, n - lanes)
            convert1(src + i * size, dst + i * wide, ahead + i * size, storage, compute)
            i += lanes
    else:
        while i < n:
            convert_single(src + i * size, dst + i * wide, ahead + i * size, storage, compute)
            i += 1


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def column_rows(
    table: int, step: int, x: int, taps: int, kh: int, dst: int, pitch: int, n: int, rows: int,
    copy: int, copied: Any, compute: Any,
) -> None:  # fmt: skip
    """One row of the column pass, or ``ROWS`` neighbouring ones: n elements from byte x; unless
    ``copied`` is None also a copy of them, ``copy`` bytes further."""
    lanes, wide = simd.vector_lanes(compute), simd.size_of(compute)
    done = 0
    if rows == ROWS:
        block = BLOCK * lanes
        while done + block <= n:
            at, to = x + done * wide, dst + done * wide
            if kh >= ROWS:
                columns4(table, step, at, taps, kh, to, pitch, copy, copied, compute)
            elif kh == 3:
                columns4_of3(table, step, at, taps, kh, to, pitch, copy, copied, compute)
            elif kh == 2:
                columns4_of2(table, step, at, taps, kh, to, pitch, copy, copied, compute)
            else:
                columns4_of1(table, step, at, taps, kh, to, pitch, copy, copied, compute)
            done += block
    if done == n:
        return
    for r in range(rows):
        entry, top = table + r * step, dst + r * pitch
        i = done
        while i + 4 * lanes <= n:
            at, to = x + i * wide, top + i * wide
            columns1(entry, step, at, taps, kh, to, 0, copy, copied, compute)
            i += 4 * lanes
        if n >= lanes:
            while i < n:
                i = min(i, n - lanes)
                at, to = x + i * wide, top + i * wide
                column(entry, step, at, taps, kh, to, 0, copy, copied, compute)
                i += lanes
        else:
            while i < n:
                at, to = x + i * wide, top + i * wide
                column_single(entry, step, at, taps, kh, to, 0, copy, copied, compute)
                i += 1


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def result_row(
    src: int, offsets: int, weights: int, count: int, run: int, dst: int, n: int,
    compute: Any, output: Any, runs: Any,
) -> None:  # fmt: skip
    """One row of the result, n elements; ``run`` taps in turn are neighbours."""
    lanes, wide, size = simd.vector_lanes(compute), simd.size_of(compute), simd.size_of(output)
    i = 0
    if runs is not None:  # noqa: SIM102 (decided when compiled)
        if run > 1:
            groups = count // run
            block = RUN_VECTORS * lanes
            if count == 3:
                while i + block <= n:
                    at, to = src + i * wide, dst + i * size
                    run_block_of3(at, offsets, weights, groups, run, to, compute, output)
                    i += block
            elif count == 5:
                while i + block <= n:
                    at, to = src + i * wide, dst + i * size
                    run_block_of5(at, offsets, weights, groups, run, to, compute, output)
                    i += block
            elif run >= SHORTEST_RUN:
                while i + block <= n:
                    at, to = src + i * wide, dst + i * size
                    run_block(at, offsets, weights, groups, run, to, compute, output)
                    i += block
    if count == 3:
        while i + VECTORS * lanes <= n:
            row_block_of3(src + i * wide, offsets, weights, count, dst + i * size, compute, output)
            i += VECTORS * lanes
    elif count == 5:
        while i + VECTORS * lanes <= n:
            row_block_of5(src + i * wide, offsets, weights, count, dst + i * size, compute, output)
            i += VECTORS * lanes
    while i + VECTORS * lanes <= n:
        row_block(src + i * wide, offsets, weights, count, dst + i * size, compute, output)
        i += VECTORS * lanes
    if n >= 4 * lanes:
        while i < n:
            i = min(i, n - 4 * lanes)
            row4(src + i * wide, offsets, weights, count, dst + i * size, compute, output)
            i += 4 * lanes
    elif n >= lanes:
        while i < n:
            i = min(i, n - lanes)
            row1(src + i * wide, offsets, weights, count, dst + i * size, compute, output)
            i += lanes
    else:
        while i < n:
            row_single(src + i * wide, offsets, weights, count, dst + i * size, compute, output)
            i += 1


# The compiled functions close over dtypes and constants only: these are their keys in the cache of
# compiled code. Those that stay apart are called by address: what is called by name is compiled
# again with it.


@cache
def converter(storage: str, compute: str) -> Any:
    """Return ``void (src, dst, n, ahead)``."""
    stored, computed = simd.tag(storage), simd.tag(compute)

    @compiled.cfunc("void(int64, int64, int64, int64)")
    def converter(src: int, dst: int, n: int, ahead: int) -> None:
        convert_row(src, dst, n, ahead, stored, computed)

    return converter


@cache
def columns_of(compute: str, copies: bool) -> Any:
    """Return ``void (table, step, x, taps, kh, dst, pitch, n, rows, copy)``."""
    computed, copied = simd.tag(compute), True if copies else None

    @compiled.cfunc("void(" + ", ".join(["int64"] * 10) + ")")
    def columns(
        table: int, step: int, x: int, taps: int, kh: int, dst: int, pitch: int, n: int, rows: int,
        copy: int,
    ) -> None:  # fmt: skip
        column_rows(table, step, x, taps, kh, dst, pitch, n, rows, copy, copied, computed)

    return columns


@cache
def rows_of(compute: str, output: str) -> Any:
    """Return ``void (src, offsets, weights, count, run, dst, n)``."""
    computed, out = simd.tag(compute), simd.tag(output)
    runs = True if simd.RUNS and compute in ("float32", "float64") else None

    @compiled.cfunc("void(" + ", ".join(["int64"] * 7) + ")")
    def rows(src: int, offsets: int, weights: int, count: int, run: int, dst: int, n: int) -> None:
        result_row(src, offsets, weights, count, run, dst, n, computed, out, runs)

    return rows


@njit(inline="always")
def move(src: int, dst: int, size: int) -> None:
    """Copy one element of 4, 8 or 16 bytes."""
    if size == 4:
        atomics.copy4(src, dst)
    else:
        atomics.copy8(src, dst)
        if size == 16:
            atomics.copy8(src + 8, dst + 8)

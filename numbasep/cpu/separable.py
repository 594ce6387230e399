"""Separable and direct 2-D correlation on the CPU: both passes fused in the cache.

Each thread takes bands of output rows, cut into strips. For four output rows of a strip the column
pass reads the image through a table of row addresses and leaves its sums in scratch memory that
stays in L1; the row pass reads them there and writes the result:

    image rows (table)      scratch, one per term       result
    |...............|          |...............|
    |...............|   kh     |...............|   kw   |...............|
    |...............|  ---->   |...............|  --->  |...............|
    |...............|          |...............|        |...............|

The boundary is in the table (rows) and in the scratch's edges (columns); inner loops have no
branches. Tap counts are loop bounds, so a new one compiles nothing. The order of the sums is fixed:
for each term the column taps, then terms and row taps, each ascending, by fused multiply-adds.
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
from numbasep.cpu import atomics, pool, simd
from numbasep.plan import cpu_tiles
from numbasep.plan.cpu_tiles import CpuTile
from numbasep.plan.geometry import SpatialPlan

Array = NDArray[Any]

# The cache of compiled code watches this file only: what it is made of goes into its key.
VERSION = zlib.crc32(
    b"".join(Path(part.__file__).read_bytes() for part in (simd, atomics, boundaries))
)

ROWS = 4  # output rows that share loaded image rows
columns4 = simd.make_columns(ROWS, 4 if simd.REGISTERS == 32 else 2)
columns4_of3 = simd.make_columns(ROWS, 4 if simd.REGISTERS == 32 else 2, taps=3)
columns4_of2 = simd.make_columns(ROWS, 4 if simd.REGISTERS == 32 else 2, taps=2)
columns4_of1 = simd.make_columns(ROWS, 4 if simd.REGISTERS == 32 else 2, taps=1)
columns1 = simd.make_columns(1, 4)
column = simd.make_columns(1, 1)
column_single = simd.make_columns(1, 1, lanes=1)
row8 = simd.make_row(8)
row1 = simd.make_row(1)
row_single = simd.make_row(1, lanes=1)
copy1 = simd.make_copy()
copy_single = simd.make_copy(lanes=1)
BLOCK = 4 if simd.REGISTERS == 32 else 2

map_index = njit(boundaries.map_index)

# Places of the numbers that describe a call.
(
    IMAGE, IMAGE_PLANE, IMAGE_ROW, OUT, OUT_PLANE, OUT_ROW, H, W, C, OH, OW, KH, KW, TERMS,
    SY, SX, DY, DX, OY, OX, BOUNDARY, DIRECT, STRIP, BAND, BANDS, FILL_ROW, COLUMNS, WEIGHTS,
    OFFSETS, NUMBERS, PITCH, FILLS, TABLE, EDGES, PHASED, PHASE,
) = range(36)  # fmt: skip


@njit
def column_row(
    table: int, step: int, x: int, coefficients: int, kh: int, dst: int, n: int,
    storage: Any, compute: Any,
) -> None:  # fmt: skip
    """One row of the column pass, n elements from byte x of the rows."""
    lanes, size, wide = (
        simd.vector_lanes(compute), simd.size_of(storage), simd.size_of(compute)
    )  # fmt: skip
    i = 0
    while i + 4 * lanes <= n:
        columns1(table, step, x + i * size, coefficients, kh, dst + i * wide, 0, storage, compute)
        i += 4 * lanes
    if n >= lanes:
        while i < n:
            i = min(i, n - lanes)
            column(table, step, x + i * size, coefficients, kh, dst + i * wide, 0, storage, compute)
            i += lanes
    else:
        while i < n:
            column_single(
                table, step, x + i * size, coefficients, kh, dst + i * wide, 0, storage, compute
            )
            i += 1


@njit
def copy_row(src: int, dst: int, n: int, storage: Any, compute: Any) -> None:
    lanes, size, wide = (
        simd.vector_lanes(compute), simd.size_of(storage), simd.size_of(compute)
    )  # fmt: skip
    i = 0
    if n >= lanes:
        while i < n:
            i = min(i, n - lanes)
            copy1(src + i * size, dst + i * wide, storage, compute)
            i += lanes
    else:
        while i < n:
            copy_single(src + i * size, dst + i * wide, storage, compute)
            i += 1


@njit
def result_row(
    src: int, offsets: int, weights: int, count: int, dst: int, n: int,
    compute: Any, output: Any,
) -> None:  # fmt: skip
    """One row of the result, n elements."""
    lanes, wide, size = (
        simd.vector_lanes(compute), simd.size_of(compute), simd.size_of(output)
    )  # fmt: skip
    i = 0
    while i + 8 * lanes <= n:
        row8(src + i * wide, offsets, weights, count, dst + i * size, compute, output)
        i += 8 * lanes
    if n >= lanes:
        while i < n:
            i = min(i, n - lanes)
            row1(src + i * wide, offsets, weights, count, dst + i * size, compute, output)
            i += lanes
    else:
        while i < n:
            row_single(src + i * wide, offsets, weights, count, dst + i * size, compute, output)
            i += 1


@njit
def column_block(
    table: int, x: int, coefficients: int, kh: int, dst: int, pitch: int, n: int,
    storage: Any, compute: Any,
) -> int:  # fmt: skip
    """Four rows of the column pass; returns how many of the n elements are done."""
    lanes, size, wide = (
        simd.vector_lanes(compute), simd.size_of(storage), simd.size_of(compute)
    )  # fmt: skip
    block = BLOCK * lanes
    i = 0
    if kh >= ROWS:
        while i + block <= n:
            columns4(
                table, 8, x + i * size, coefficients, kh, dst + i * wide, pitch,
                storage, compute,
            )  # fmt: skip
            i += block
    elif kh == 3:
        while i + block <= n:
            columns4_of3(
                table, 8, x + i * size, coefficients, kh, dst + i * wide, pitch,
                storage, compute,
            )  # fmt: skip
            i += block
    elif kh == 2:
        while i + block <= n:
            columns4_of2(
                table, 8, x + i * size, coefficients, kh, dst + i * wide, pitch,
                storage, compute,
            )  # fmt: skip
            i += block
    else:
        while i + block <= n:
            columns4_of1(
                table, 8, x + i * size, coefficients, kh, dst + i * wide, pitch,
                storage, compute,
            )  # fmt: skip
            i += block
    return i


@njit
def edges(
    edge: int, count: int, dst: int, fill: int, table: int, step: int, coefficients: int,
    kh: int, channels: int, direct: bool, storage: Any, compute: Any,
) -> None:  # fmt: skip
    """Fill scratch positions outside the image from (position, source, column) triples."""
    size, wide = simd.size_of(storage), simd.size_of(compute)
    for k in range(count):
        position = atomics.peek(edge + 24 * k)
        source = atomics.peek(edge + 24 * k + 8)
        outside = atomics.peek(edge + 24 * k + 16)
        for c in range(channels):
            where = dst + (position * channels + c) * wide
            if source >= 0:
                simd.move(dst + (source * channels + c) * wide, where, compute)
            elif outside < 0:
                simd.move(fill, where, compute)
            elif direct:
                first = atomics.peek(table)
                copy_single(first + (outside * channels + c) * size, where, storage, compute)
            else:
                column_single(
                    table, step, (outside * channels + c) * size, coefficients, kh, where, 0,
                    storage, compute,
                )  # fmt: skip


@njit
def split(
    src: int, dst: int, stride: int, phase: int, span: int, channels: int, compute: Any
) -> None:
    """Every stride-th pixel to itself, so that a strided row pass reads neighbours."""
    wide = simd.size_of(compute)
    for position in range(span):
        where = dst + (position % stride) * phase + (position // stride) * channels * wide
        for c in range(channels):
            simd.move(src + (position * channels + c) * wide, where + c * wide, compute)


@njit(error_model="numpy")
def work(
    numbers: int, taken: int, items: int, scratch: int, storage: Any, compute: Any, output: Any
) -> None:
    """Take bands of output rows until there are none."""
    p = numba.carray(simd.as_pointer(numbers), PHASE + 1)
    size, wide, narrow = (
        simd.size_of(storage), simd.size_of(compute), simd.size_of(output)
    )  # fmt: skip
    height, width, channels, kh, terms = p[H], p[W], p[C], p[KH], p[TERMS]
    sy, dy = p[SY], p[DY]
    direct = p[DIRECT] != 0
    table = scratch + p[TABLE]
    edge = scratch + p[EDGES]
    phased = scratch + p[PHASED]
    pitch = p[PITCH]
    extent_y = (kh - 1) * dy + 1
    extent_x = (p[KW] - 1) * p[DX] + 1
    shared = sy == 1 and dy == 1 and not direct
    # What the column pass gives outside the image, for each term.
    fills = scratch + p[FILLS]
    for k in range(kh):
        atomics.poke(table + 8 * k, p[FILL_ROW])
    for t in range(terms):
        if direct:
            copy_single(p[FILL_ROW], fills, storage, compute)
        else:
            column_single(
                table, 8, 0, p[COLUMNS] + t * kh * wide, kh, fills + t * wide, 0,
                storage, compute,
            )  # fmt: skip
    while True:
        item = atomics.take(taken)
        if item >= items:
            break
        plane, band = item // p[BANDS], item % p[BANDS]
        y0 = band * p[BAND]
        y1 = min(p[OH], y0 + p[BAND])
        base = p[IMAGE] + plane * p[IMAGE_PLANE]
        first_row = y0 * sy + p[OY]
        for j in range((y1 - 1 - y0) * sy + extent_y):
            m = map_index(first_row + j, height, p[BOUNDARY])
            row = base + m * p[IMAGE_ROW] if m >= 0 else p[FILL_ROW]
            atomics.poke(table + 8 * j, row)
        for x0 in range(0, p[OW], p[STRIP]):
            x1 = min(p[OW], x0 + p[STRIP])
            first = x0 * p[SX] + p[OX]
            span = (x1 - 1 - x0) * p[SX] + extent_x
            low = min(max(first, 0), width)
            high = max(min(first + span, width), low)
            outside = 0
            for q in range(span):
                if first + q < low or first + q >= high:
                    m = map_index(first + q, width, p[BOUNDARY])
                    triple = edge + 24 * outside
                    atomics.poke(triple, q)
                    atomics.poke(triple + 8, m - first if low <= m < high else -1)
                    atomics.poke(triple + 16, m)
                    outside += 1
            inside = (high - low) * channels
            x = low * channels * size
            start = (low - first) * channels * wide
            y = y0
            while y < y1:
                rows = min(ROWS, y1 - y)
                rows_table = table + 8 * (y - y0) * sy
                if direct:
                    # Scratch rows are image rows, as many as these outputs need.
                    for j in range((rows - 1) * sy + extent_y):
                        dst = scratch + j * pitch
                        entry = rows_table + 8 * j
                        copy_row(atomics.peek(entry) + x, dst + start, inside, storage, compute)
                        edges(
                            edge, outside, dst, fills, entry, 8, 0, kh, channels, True,
                            storage, compute,
                        )  # fmt: skip
                        if p[PHASE] > 0:
                            split(
                                dst, phased + j * pitch, p[SX], p[PHASE], span, channels,
                                compute,
                            )  # fmt: skip
                else:
                    for t in range(terms):
                        coefficients = p[COLUMNS] + t * kh * wide
                        top = scratch + t * pitch
                        done = 0
                        if shared and rows == ROWS:
                            done = column_block(
                                rows_table, x, coefficients, kh, top + start,
                                terms * pitch, inside, storage, compute,
                            )  # fmt: skip
                        for r in range(rows):
                            dst = top + r * terms * pitch
                            entry = rows_table + 8 * r * sy
                            begin = done
                            if done > 0 and inside - done < simd.vector_lanes(compute):
                                begin = min(done, inside - simd.vector_lanes(compute))
                            if begin < inside and done < inside:
                                column_row(
                                    entry, 8 * dy, x + begin * size, coefficients, kh,
                                    dst + start + begin * wide, inside - begin,
                                    storage, compute,
                                )  # fmt: skip
                            edges(
                                edge, outside, dst, fills + t * wide, entry, 8 * dy,
                                coefficients, kh, channels, False, storage, compute,
                            )  # fmt: skip
                            if p[PHASE] > 0:
                                split(
                                    dst, phased + r * terms * pitch + t * pitch,
                                    p[SX], p[PHASE], span, channels, compute,
                                )  # fmt: skip
                source = phased if p[PHASE] > 0 else scratch
                out = p[OUT] + plane * p[OUT_PLANE] + x0 * channels * narrow
                for r in range(rows):
                    step = r * sy * pitch if direct else r * terms * pitch
                    result_row(
                        source + step, p[OFFSETS], p[WEIGHTS], p[NUMBERS],
                        out + (y + r) * p[OUT_ROW], (x1 - x0) * channels, compute, output,
                    )  # fmt: skip
                y += rows
        atomics.take(taken + 8)


@cache
def kernel(storage: str, compute: str, output: str, version: int = VERSION) -> Any:
    """Return the compiled kernel for three dtypes, a C function for ``pool.run``.

    Closed over are only the dtypes and the version: they make the key of the compiled code's cache.
    """
    stored, computed, out = simd.tag(storage), simd.tag(compute), simd.tag(output)

    @numba.cfunc("void(int64, int64, int64, int64)", cache=True)
    def separable(numbers: int, counter: int, items: int, scratch: int) -> None:
        if version:
            work(numbers, counter, items, scratch, stored, computed, out)

    return separable


def run_separable(
    plan: SpatialPlan,
    image: Array,
    out: Array,
    columns: Array,
    rows: Array,
    tile: CpuTile | None = None,
) -> None:
    """Write the correlation of ``image`` with ``sum_r outer(columns[r], rows[r])`` into ``out``.

    Arrays and plan as in ``geometry.SpatialPlan``; columns (R, kh) and rows (R, kw) in the compute
    dtype. ``image`` and ``out`` do not overlap.
    """
    _run(plan, image, out, columns, rows, tile)


def run_direct(
    plan: SpatialPlan, image: Array, out: Array, kernel: Array, tile: CpuTile | None = None
) -> None:
    """Write the correlation of ``image`` with ``kernel`` (kh, kw) into ``out``."""
    _run(plan, image, out, kernel, kernel, tile)


def _run(
    plan: SpatialPlan,
    image: Array,
    out: Array,
    columns: Array,
    weights: Array,
    tile: CpuTile | None,
) -> None:
    if out.size == 0:
        return
    threads = numba.get_num_threads()
    made = _work(plan, tile or cpu_tiles.choose(plan, threads))
    outside = plan.boundary == boundaries.FILL
    fill = np.full(plan.x.size * plan.channels if outside else 1, plan.fillvalue, image.dtype)
    numbers = made.numbers.copy()
    numbers[IMAGE : OUT_ROW + 1] = (
        _address(image), *image.strides[:2], _address(out), *out.strides[:2]
    )  # fmt: skip
    numbers[FILL_ROW : WEIGHTS + 1] = _address(fill), _address(columns), _address(weights)
    owners = image, out, columns, weights, fill, made
    pool.run(made.function, numbers, made.items, made.scratch, made.threads, owners)


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """What calls of one plan and tile share: the numbers but for addresses and pitches."""

    numbers: Array
    function: int
    items: int
    scratch: int
    threads: int
    offsets: Array


@lru_cache(maxsize=1024)
def _work(plan: SpatialPlan, tile: CpuTile) -> _Work:
    layout = cpu_tiles.layout(plan, tile)
    bands = -(-plan.y.out // tile.band)
    numbers = np.zeros(PHASE + 1, np.int64)
    numbers[H : BANDS + 1] = (
        plan.y.size,
        plan.x.size,
        plan.channels,
        plan.y.out,
        plan.x.out,
        plan.y.taps,
        plan.x.taps,
        max(plan.rank, 1),
        plan.y.stride,
        plan.x.stride,
        plan.y.dilation,
        plan.x.dilation,
        plan.y.origin,
        plan.x.origin,
        plan.boundary,
        plan.direct,
        tile.strip,
        tile.band,
        bands,
    )
    numbers[OFFSETS:] = (
        _address(layout.offsets),
        layout.offsets.size,
        layout.pitch,
        layout.fills,
        layout.table,
        layout.edges,
        layout.phased,
        layout.phase,
    )
    function = kernel(plan.storage, plan.compute, plan.output).address
    return _Work(numbers, function, plan.planes * bands, layout.size, tile.threads, layout.offsets)

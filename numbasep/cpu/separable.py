"""Separable and direct 2-D correlation on the CPU: both passes fused in the cache.

Each thread takes bands of output rows, cut into strips. The image rows of a strip, converted and
with their surroundings, are packed into memory that stays in L2 (rows whose distance is a power of
two would displace each other from the cache). For four output rows the column pass reads them
through a table of row addresses and leaves its sums in memory that stays in L1; the row pass reads
them there and writes the result:

    image rows, packed (table)   sums, one row per term    result
    |...............|
    |...............|     kh     |...............|   kw    |...............|
    |...............|   ---->    |...............|  --->   |...............|
    |...............|

Few taps on an image of the compute dtype take its rows as they are. The boundary is in the table
(rows) and in the edges of what is packed (columns); inner loops have no branches. A direct
convolution is the row pass over packed rows. The order of the sums is fixed: for each term the
column taps, then terms and row taps, each ascending.

``driver`` and the two kinds of strips are compiled once; they call what is compiled by dtype, the
passes over rows (``passes``), by address.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numba
import numpy as np
from numba import njit
from numpy.typing import NDArray

from numbasep import boundary as boundaries
from numbasep.cpu import atomics, compiled, pool, queues, simd
from numbasep.cpu.passes import columns_of, converter, map_index, move, rows_of
from numbasep.cpu.pool import address
from numbasep.plan import cpu_tiles
from numbasep.plan.cpu_tiles import CpuTile
from numbasep.plan.geometry import SpatialPlan

Array = NDArray[Any]

ROWS = cpu_tiles.ROWS

# Places of the numbers that describe a call.
(
    IMAGE, IMAGE_PLANE, IMAGE_ROW, OUT, OUT_PLANE, OUT_ROW, FILL, COLUMN_TAPS, ROW_TAPS,
    H, W, C, OH, OW, KH, KW, TERMS, SY, SX, DY, DX, OY, OX, BOUNDARY, DIRECT, PACKED, STRIP, BAND,
    BANDS, SIZE, WIDE, NARROW, RUN, CONVERTER, COLUMNS, ROWS_OF, OFFSETS, WEIGHTS, PITCH, PHASE,
    FILLS, TABLE, EDGES, LINE, PACKS, SUMS, COPY, RING, STRIPPER,
) = range(49)  # fmt: skip
NUMBERS = 49
PER_CALL = 9


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def find_edges(
    edges: int, first: int, span: int, low: int, high: int, width: int, boundary: int
) -> int:
    """Write (position, position of the same element or -1, image column or -1) for what is not in
    columns low to high of the image; return how many."""
    count = 0
    for part in range(2):
        begin = 0 if part == 0 else max(high - first, 0)
        end = max(min(low - first, span), 0) if part == 0 else span
        if low == high and part == 0:
            continue
        if low == high:
            begin = 0
        for q in range(begin, end):
            m = map_index(first + q, width, boundary)
            edge = edges + 24 * count
            atomics.poke(edge, q)
            atomics.poke(edge + 8, m - first if low <= m < high else -1)
            atomics.poke(edge + 16, m)
            count += 1
    return count


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def pack_row(
    p: Array, row: int, ahead: int, dst: int, fill: int, low: int, start: int, inside: int,
    edges: int, count: int,
) -> None:  # fmt: skip
    """One image row of a strip with its surroundings; ``row`` is its address, or 0 outside."""
    channels, size, wide = p[C], p[SIZE], p[WIDE]
    if row == 0:
        for i in range(count):
            move(fill, dst + i * wide, wide)
        return
    x = low * channels * size
    atomics.call4(p[CONVERTER], row + x, dst + start, inside, ahead + x)
    for k in range(count):
        position = atomics.peek(edges + 24 * k) * channels
        source = atomics.peek(edges + 24 * k + 8) * channels
        outside = atomics.peek(edges + 24 * k + 16) * channels
        for c in range(channels):
            where = dst + (position + c) * wide
            if source >= 0:
                move(dst + (source + c) * wide, where, wide)
            elif outside < 0:
                move(fill, where, wide)
            else:
                atomics.call4(p[CONVERTER], row + (outside + c) * size, where, 1, 0)


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def split(src: int, dst: int, stride: int, phase: int, span: int, pixel: int, wide: int) -> None:
    """Every stride-th pixel to itself, so that a strided row pass reads neighbours."""
    for position in range(span):
        where = dst + (position % stride) * phase + (position // stride) * pixel
        for byte in range(0, pixel, wide):
            move(src + position * pixel + byte, where + byte, wide)


STRIPS = "void(" + ", ".join(["int64"] * 8) + ")"


@cache
def packed_strip() -> Any:
    """Return ``void (numbers, scratch, base, out, first_row, rows, x0, x1)``.

    It computes a strip of a band from packed image rows.
    """

    @compiled.cfunc(STRIPS)
    def strip(
        numbers: int, scratch: int, base: int, out: int, first_row: int, rows: int, x0: int, x1: int
    ) -> None:  # fmt: skip
        p = simd.as_pointer(numbers)
        channels, kh, terms, wide = p[C], p[KH], p[TERMS], p[WIDE]
        sy, dy, pitch, phase = p[SY], p[DY], p[PITCH], p[PHASE]
        table, edges, fill = scratch + p[TABLE], scratch + p[EDGES], scratch + p[FILLS]
        packs, sums, line = scratch + p[PACKS], scratch + p[SUMS], scratch + p[LINE]
        first = x0 * p[SX] + p[OX]
        span = (x1 - 1 - x0) * p[SX] + (p[KW] - 1) * p[DX] + 1
        low = min(max(first, 0), p[W])
        high = max(min(first + span, p[W]), low)
        outside = find_edges(edges, first, span, low, high, p[W], p[BOUNDARY])
        pixel = channels * wide
        atomics.call4(p[CONVERTER], p[FILL], fill, 1, 0)
        n = (x1 - x0) * channels
        length = p[SX] * phase // wide if phase > 0 else span * channels
        packed = 0
        last = p[H] - 1
        y = 0
        while y < rows:
            group = min(ROWS, rows - y)
            # The rows that this group adds; meanwhile memory is asked for those of the next.
            needed = (y + group - 1) * sy + (kh - 1) * dy + 1
            for j in range(packed, needed):
                m = map_index(first_row + j, p[H], p[BOUNDARY])
                slot = packs + j % p[RING] * pitch
                row = base + m * p[IMAGE_ROW] if m >= 0 else 0
                ahead = base + min(max(first_row + j + ROWS * sy, 0), last) * p[IMAGE_ROW]
                pack_row(
                    p, row, ahead, line if phase > 0 else slot, fill, low, (low - first) * pixel,
                    (high - low) * channels, edges, outside if m >= 0 else span * channels,
                )  # fmt: skip
                if phase > 0:
                    split(line, slot, p[SX], phase, span, pixel, wide)
                atomics.poke(table + 8 * j, slot)
            packed = max(packed, needed)
            if p[DIRECT]:
                for r in range(group):
                    atomics.call7(
                        p[ROWS_OF], packs + (y + r) * sy * pitch, p[OFFSETS], p[ROW_TAPS],
                        p[WEIGHTS], p[RUN], out + (y + r) * p[OUT_ROW], n,
                    )  # fmt: skip
                y += group
                continue
            for t in range(terms):
                taps, top = p[COLUMN_TAPS] + t * kh * wide, sums + t * pitch
                if sy == 1 and dy == 1 and group == ROWS:
                    atomics.call10(
                        p[COLUMNS],
                        table + 8 * y,
                        8,
                        0,
                        taps,
                        kh,
                        top,
                        terms * pitch,
                        length,
                        ROWS,
                        p[COPY],
                    )
                else:
                    for r in range(group):
                        atomics.call10(
                            p[COLUMNS], table + 8 * (y + r) * sy, 8 * dy, 0, taps, kh,
                            top + r * terms * pitch, 0, length, 1, p[COPY],
                        )  # fmt: skip
            for r in range(group):
                atomics.call7(
                    p[ROWS_OF], sums + r * terms * pitch, p[OFFSETS], p[ROW_TAPS], p[WEIGHTS],
                    p[RUN], out + (y + r) * p[OUT_ROW], n,
                )  # fmt: skip
            y += group

    return strip


@cache
def unpacked_strip() -> Any:
    """Return what ``packed_strip`` does for image rows where they are, by the band's table."""

    @compiled.cfunc(STRIPS)
    def strip(
        numbers: int, scratch: int, base: int, out: int, first_row: int, rows: int, x0: int, x1: int
    ) -> None:  # fmt: skip
        p = simd.as_pointer(numbers)
        channels, kh, terms, wide, pitch = p[C], p[KH], p[TERMS], p[WIDE], p[PITCH]
        dy = p[DY]
        table, edges, fills = scratch + p[TABLE], scratch + p[EDGES], scratch + p[FILLS]
        sums = scratch + p[SUMS]
        first = x0 + p[OX]
        span = x1 - 1 - x0 + (p[KW] - 1) * p[DX] + 1
        low = min(max(first, 0), p[W])
        high = max(min(first + span, p[W]), low)
        outside = find_edges(edges, first, span, low, high, p[W], p[BOUNDARY])
        pixel = channels * wide
        start, inside = (low - first) * pixel, (high - low) * channels
        y = 0
        while y < rows:
            group = min(ROWS, rows - y)
            for t in range(terms):
                taps, top = p[COLUMN_TAPS] + t * kh * wide, sums + t * pitch
                if p[SY] == 1 and dy == 1 and group == ROWS:
                    atomics.call10(
                        p[COLUMNS], table + 8 * y, 8, low * pixel, taps, kh, top + start,
                        terms * pitch, inside, ROWS, p[COPY],
                    )  # fmt: skip
                else:
                    for r in range(group):
                        atomics.call10(
                            p[COLUMNS], table + 8 * (y + r) * p[SY], 8 * dy, low * pixel, taps, kh,
                            top + r * terms * pitch + start, 0, inside, 1, p[COPY],
                        )  # fmt: skip
                for r in range(group):
                    dst = top + r * terms * pitch
                    for k in range(outside):
                        position = atomics.peek(edges + 24 * k) * channels
                        source = atomics.peek(edges + 24 * k + 8) * channels
                        column = atomics.peek(edges + 24 * k + 16) * channels
                        for c in range(channels):
                            where = dst + (position + c) * wide
                            if source >= 0 or column < 0:
                                value = (
                                    dst + (source + c) * wide if source >= 0 else fills + t * wide
                                )
                                move(value, where, wide)
                                if p[COPY]:
                                    move(value, where + p[COPY], wide)
                            else:
                                atomics.call10(
                                    p[COLUMNS], table + 8 * (y + r) * p[SY], 8 * dy,
                                    (column + c) * wide, taps, kh, where, 0, 1, 1, p[COPY],
                                )  # fmt: skip
            for r in range(group):
                atomics.call7(
                    p[ROWS_OF], sums + r * terms * pitch, p[OFFSETS], p[ROW_TAPS], p[WEIGHTS],
                    p[RUN], out + (y + r) * p[OUT_ROW], (x1 - x0) * channels,
                )  # fmt: skip
            y += group

    return strip


@cache
def driver() -> Any:
    """Return ``void (numbers, queued, own, scratch)``, the kernel for ``pool.run``.

    It takes bands of output rows until there are none.
    """

    @compiled.cfunc("void(int64, int64, int64, int64)")
    def driver(numbers: int, queued: int, own: int, scratch: int) -> None:
        p = simd.as_pointer(numbers)
        table, fills = scratch + p[TABLE], scratch + p[FILLS]
        if not p[PACKED]:
            # What the column pass gives outside the image, for each term.
            for k in range(p[KH]):
                atomics.poke(table + 8 * k, p[FILL])
            for t in range(p[TERMS]):
                atomics.call10(
                    p[COLUMNS], table, 8, 0, p[COLUMN_TAPS] + t * p[KH] * p[WIDE], p[KH],
                    fills + t * p[WIDE], 0, 1, 1, 0,
                )  # fmt: skip
        while True:
            item = queues.take(queued, own)
            if item == queues.NOTHING:
                break
            plane, band = item // p[BANDS], item % p[BANDS]
            y0 = band * p[BAND]
            rows = min(p[OH] - y0, p[BAND])
            base = p[IMAGE] + plane * p[IMAGE_PLANE]
            first_row = y0 * p[SY] + p[OY]
            if not p[PACKED]:
                # Entries beyond the last are only asked for.
                for j in range((rows - 1) * p[SY] + (p[KH] - 1) * p[DY] + 1 + ROWS):
                    m = map_index(first_row + j, p[H], p[BOUNDARY])
                    atomics.poke(table + 8 * j, base + m * p[IMAGE_ROW] if m >= 0 else p[FILL])
            for x0 in range(0, p[OW], p[STRIP]):
                x1 = min(p[OW], x0 + p[STRIP])
                out = p[OUT] + plane * p[OUT_PLANE] + y0 * p[OUT_ROW] + x0 * p[C] * p[NARROW]
                atomics.call8(p[STRIPPER], numbers, scratch, base, out, first_row, rows, x0, x1)
            queues.finish(queued, own)

    return driver


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
    _run(plan, image, out, (columns, rows), tile)


def run_direct(
    plan: SpatialPlan, image: Array, out: Array, kernel: Array, tile: CpuTile | None = None
) -> None:
    """Write the correlation of ``image`` with ``kernel`` (kh, kw) into ``out``."""
    _run(plan, image, out, (kernel,), tile)


def dense_call(plan: SpatialPlan, taps: tuple[Array, ...]) -> Callable[[Array, Array], None]:
    """Return ``run_separable``, or ``run_direct``, for one plan and kernel and C-contiguous arrays.

    All but where the arrays are is decided; they may have any shape of the plan's size. taps as
    those functions take them, in turn.
    """
    channels = plan.channels
    row, result_row = (
        size * channels * simd.itemsize(dtype)
        for size, dtype in ((plan.x.size, plan.storage), (plan.x.out, plan.output))
    )
    strides = plan.y.size * row, row, plan.y.out * result_row, result_row
    known: dict[int, tuple[_Prepared, Array, object]] = {}

    def call(image: Array, out: Array) -> None:
        threads = numba.get_num_threads()
        if threads not in known:
            made = _chosen(plan, threads)
            known[threads] = (made, *_numbers(plan, made, strides, taps))
        made, numbers, owners = known[threads]
        _start(made, numbers.copy(), image, out, owners)

    return call


def _run(
    plan: SpatialPlan, image: Array, out: Array, taps: tuple[Array, ...], tile: CpuTile | None
) -> None:
    if out.size == 0:
        return
    made = _chosen(plan, numba.get_num_threads()) if tile is None else _prepared(plan, tile)
    strides = *image.strides[:2], *out.strides[:2]
    numbers, owners = _numbers(plan, made, strides, taps)
    _start(made, numbers, image, out, owners)


def _numbers(
    plan: SpatialPlan, made: _Prepared, strides: tuple[int, ...], taps: tuple[Array, ...]
) -> tuple[Array, object]:
    """Return a call's numbers, all but the addresses of its arrays, and what owns their memory."""
    # Rows of the image that lie outside it are read where they are.
    outside = plan.boundary == boundaries.FILL and not made.packed
    length = plan.x.size * plan.channels if outside else 1
    fill = _filled(length, plan.fillvalue, plan.storage)
    columns, weights = taps[0], taps[-1]
    numbers = made.numbers.copy()
    numbers[:PER_CALL] = (
        0, *strides[:2], 0, *strides[2:], address(fill), address(columns), address(weights),
    )  # fmt: skip
    return numbers, (columns, weights, fill, made)


def _start(made: _Prepared, numbers: Array, image: Array, out: Array, owners: object) -> None:
    numbers[IMAGE], numbers[OUT] = address(image), address(out)
    pool.run(
        driver().address, numbers, (made.items,), made.scratch, made.threads, (image, out, owners)
    )


@lru_cache(maxsize=64)
def _filled(size: int, value: complex, dtype: str) -> Array:
    return np.full(size, value, dtype)


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """What calls of one plan and tile share: all numbers but the first ``PER_CALL``."""

    numbers: Array
    items: int
    scratch: int
    threads: int
    packed: bool
    offsets: Array


@lru_cache(maxsize=1024)
def _chosen(plan: SpatialPlan, threads: int) -> _Prepared:
    return _prepared(plan, cpu_tiles.choose(plan, threads, simd.COPIES))


@lru_cache(maxsize=1024)
def _prepared(plan: SpatialPlan, tile: CpuTile) -> _Prepared:
    layout = cpu_tiles.layout(plan, tile)
    bands = -(-plan.y.out // tile.band)
    numbers = np.zeros(NUMBERS, np.int64)
    numbers[PER_CALL:] = (
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
        tile.packed,
        tile.strip,
        tile.band,
        bands,
        simd.itemsize(plan.storage),
        simd.itemsize(plan.compute),
        simd.itemsize(plan.output),
        plan.x.taps if cpu_tiles.neighbours(plan) else 1,
        converter(plan.storage, plan.compute).address if tile.packed else 0,
        0 if plan.direct else columns_of(plan.compute, tile.copies).address,
        rows_of(plan.compute, plan.output).address,
        address(layout.offsets),
        len(layout.offsets),
        layout.pitch,
        layout.phase,
        layout.fills,
        layout.table,
        layout.edges,
        layout.line,
        layout.packs,
        layout.sums,
        layout.copy,
        layout.ring,
        (packed_strip() if tile.packed else unpacked_strip()).address,
    )
    return _Prepared(
        numbers, plan.planes * bands, layout.size, tile.threads, tile.packed, layout.offsets
    )

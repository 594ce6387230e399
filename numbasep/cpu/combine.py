"""Partial sums added up and written where they belong, in another order or dtype if need be.

``out[r * OUT_ROW + c * OUT_COLUMN] = sum_s sums[s * PITCH + r * ROW + c]``, s ascending.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
from numba import njit

from numbasep.cpu import blocks, compiled, jobs, products, queues, simd
from numbasep.cpu.channels import Prepared, move_edge, move_row, rounded
from numbasep.cpu.passes import move

sums_full = products.make_sums(1, masked=False)
sums_edge = products.make_sums(1, masked=True)

# Places of the numbers: addresses; slices, bytes between them; rows, bytes between them; columns;
# bytes between rows and between columns of the result; rows and columns of an item, items side by
# side.
(
    SUMS, OUT, SLICES, PITCH, ROWS, ROW, COLUMNS, OUT_ROW, OUT_COLUMN, HIGH, LONG, ACROSS,
) = range(12)  # fmt: skip

# Items of one combination, and the most columns of one.
ITEMS, COLUMNS_MOST = 16, 2048


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def add_row(to: int, src: int, n: int, compute: Any) -> None:
    """Add n elements to as many."""
    lanes, wide = blocks.vector_lanes(compute), simd.size_of(compute)
    for i in range(0, n, lanes):
        at = i * wide
        if i + lanes <= n:
            sums_full(to + at, src + at, 0, 1, lanes, compute, compute)
        else:
            sums_edge(to + at, src + at, 0, 1, n - i, compute, compute)


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def clear(to: int, size: int) -> None:
    """Write zeros to so many bytes."""
    numba.carray(simd.as_bytes(to), size)[:] = 0


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def work(
    numbers: int, queued: int, own: int, scratch: int, compute: Any, output: Any, spec: Any
) -> None:
    """Take rows of some columns until there are none."""
    q = simd.as_pointer(numbers)
    wide, size = simd.size_of(compute), simd.size_of(output)
    while True:
        item = queues.take(queued, own)
        if item == queues.NOTHING:
            break
        first, start = item % q[ACROSS] * q[LONG], item // q[ACROSS] * q[HIGH]
        n = min(q[LONG], q[COLUMNS] - first)
        for r in range(start, min(start + q[HIGH], q[ROWS])):
            src = q[SUMS] + r * q[ROW] + first * wide
            to = q[OUT] + r * q[OUT_ROW] + first * q[OUT_COLUMN]
            if q[SLICES] > 1:
                move_row(src, scratch, n, compute, compute, compute, spec)
                for k in range(1, q[SLICES]):
                    add_row(scratch, src + k * q[PITCH], n, compute)
                src = scratch
            if q[OUT_COLUMN] == size:
                move_row(src, to, n, compute, compute, output, spec)
            elif wide == size:
                for i in range(n):
                    move(src + i * wide, to + i * q[OUT_COLUMN], wide)
            else:
                for i in range(n):
                    at = to + i * q[OUT_COLUMN]
                    move_edge(src + i * wide, at, 1, compute, compute, output, spec)
        queues.finish(queued, own)


@cache
def driver(compute: str, output: str) -> Any:
    """Return ``void (numbers, queued, own, scratch)``, the kernel for ``pool.run``."""
    computed, out, spec = simd.tag(compute), simd.tag(output), blocks.number_tag(0)

    @compiled.cfunc("void(int64, int64, int64, int64)")
    def driver(numbers: int, queued: int, own: int, scratch: int) -> None:
        work(numbers, queued, own, scratch, computed, out, spec)

    return driver


def step(
    sums: str, out: str, compute: str, output: str, threads: int, slices: int, pitch: int,
    rows: int, columns: int, row: int, order: tuple[int, int],
) -> jobs.Step:  # fmt: skip
    """Return the step of a job that adds up ``sums`` into ``out``.

    pitch, row: elements from one slice, and from one row, of the sums to the next. order: those
    between rows of the result, and between columns.
    """
    wide, size = np.dtype(compute).itemsize, simd.itemsize(output)
    long = min(columns, COLUMNS_MOST, max(128, rounded(-(-columns // ITEMS))))
    across = -(-columns // long)
    high = -(-rows // max(1, ITEMS // across)) if order[1] == 1 else rows
    numbers = np.array(
        [
            0, 0, slices, pitch * wide, rows, row * wide, columns, order[0] * size,
            order[1] * size, high, long, across,
        ],
        np.int64,
    )  # fmt: skip
    items = across * -(-rows // high)
    made = Prepared(numbers, items, rounded(long * wide) + simd.VECTOR, threads, ())
    return jobs.step(made, driver(compute, output).address, sums, out)

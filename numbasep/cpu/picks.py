"""Some elements of each row: ``out[r][i] = src[r][table[i]]``. Taps, flipped, or of one phase."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from numbasep.cpu import atomics, compiled, jobs, queues, simd
from numbasep.cpu.channels import Prepared
from numbasep.cpu.passes import move
from numbasep.cpu.pool import address

# Places of the numbers: addresses, of the table too; rows, rows of an item; bytes of a row and of
# an element; elements of a result's row.
SRC, OUT, TABLE, ROWS, HIGH, ROW, WIDE, COUNT = range(8)
# Rows of an item.
SHARE = 128


@cache
def driver() -> Any:
    """Return ``void (numbers, queued, own, scratch)``, the kernel for ``pool.run``."""

    @compiled.cfunc("void(int64, int64, int64, int64)")
    def driver(numbers: int, queued: int, own: int, scratch: int) -> None:
        q = simd.as_pointer(numbers)
        while True:
            item = queues.take(queued, own)
            if item == queues.NOTHING:
                break
            start = item * q[HIGH]
            for r in range(start, min(start + q[HIGH], q[ROWS])):
                src, to = q[SRC] + r * q[ROW], q[OUT] + r * q[COUNT] * q[WIDE]
                for i in range(q[COUNT]):
                    move(src + atomics.peek(q[TABLE] + 8 * i), to + i * q[WIDE], q[WIDE])
            queues.finish(queued, own)

    return driver


def step(
    src: str, out: str, dtype: str, threads: int, rows: int, row: int, chosen: Sequence[int]
) -> jobs.Step:
    """Return the step of a job that picks elements ``chosen`` of rows of ``row`` each."""
    wide = np.dtype(dtype).itemsize
    table = np.array(chosen, np.int64) * wide
    numbers = np.array([0, 0, address(table), rows, SHARE, row * wide, wide, len(table)], np.int64)
    made = Prepared(numbers, -(-rows // SHARE), 0, threads, (table,))
    return jobs.step(made, driver().address, src, out)

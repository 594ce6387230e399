"""Whether memory holds what it held."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from numbasep.cpu import atomics, compiled, simd
from numbasep.cpu.pool import address

# Bytes that are compared before a difference is looked for.
BLOCK = 4096


@compiled.njit("boolean(int64, int64)")
def _same(table: int, rows: int) -> bool:
    for k in range(rows):
        row = table + 24 * k
        here, there, size = atomics.peek(row), atomics.peek(row + 8), atomics.peek(row + 16)
        for start in range(0, size, BLOCK):
            count = min(size - start, BLOCK)
            one = numba.carray(simd.as_bytes(here + start), count)
            two = numba.carray(simd.as_bytes(there + start), count)
            difference = np.uint8(0)
            for i in range(count):
                difference |= one[i] ^ two[i]
            if difference:
                return False
    return True


def same(table: NDArray[Any]) -> bool:
    """Return whether each row (address, another, bytes) names twice the same bytes."""
    return bool(_same(address(table), len(table)))

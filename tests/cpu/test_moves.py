"""Conversions of a few neighbours: all of them, and nothing beyond."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit

from numbasep.cpu import blocks, channels, simd
from numbasep.cpu.pool import address
from tests.oracle import of

PAIRS = [
    *[("float32", out) for out in ("float32", "float16", "bfloat16")],
    *[("float64", out) for out in ("float64", "float32")],
    ("int32", "int32"),
]


@pytest.mark.parametrize(("compute", "output"), PAIRS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_counts_that_the_compiler_knows(compute: str, output: str, n: int) -> None:
    """A store of one element was made one of as many bytes as it had before its conversion."""
    tags = simd.tag(compute), simd.tag(compute), simd.tag(output), blocks.number_tag(0)
    move = channels.move_edge

    @njit
    def moved(src: Any, dst: Any) -> None:
        for i in range(4):
            move(src + i * size, dst + 4 * i * narrow, n, *tags)

    size, narrow = simd.itemsize(compute), simd.itemsize(output)
    values = np.arange(1, 8).astype(compute)
    out = np.full(16, 99).astype(of(output))
    moved(address(values), address(out))
    expected = np.full((4, 4), 99)
    for i in range(4):
        expected[i, :n] = values[i : i + n]
    assert (out.astype(np.float64).reshape(4, 4) == expected).all()

"""The matrix primitives, element by element: exact integers in every place of every fragment."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from numbasep.cuda import launch
from numbasep.cuda.launch import VERSION, Kernel, cuda, types
from numbasep.cuda.primitives import (
    commit_copies,
    copy_async,
    i64,
    load_matrices,
    mma,
    to_tf32,
    wait_copies,
)

Array = NDArray[Any]

DEPTH = {"tf32": 8, "float16": 16, "bfloat16": 16}
STORED = {"tf32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def registers(matrix: Array, name: str) -> Array:
    """A matrix's rows as 32-bit registers along its last axis."""
    return np.ascontiguousarray(matrix.astype(STORED[name])).view(np.uint32)


@lru_cache
def multiplier(name: str) -> Any:

    step = mma(name)
    version = VERSION

    def kernel(a: Any, b: Any, c: Any, d: Any) -> None:
        lane = cuda.threadIdx.x if version >= 0 else 0
        g, q = lane // 4, lane % 4
        left = a[8 * g + q], a[8 * (g + 8) + q], a[8 * g + q + 4], a[8 * (g + 8) + q + 4]
        right = b[8 * g + q], b[8 * g + q + 4]
        at = 8 * g + 2 * q
        found = step(left, right, (c[at], c[at + 1], c[at + 64], c[at + 65]))
        d[at] = found[0]
        d[at + 1] = found[1]
        d[at + 64] = found[2]
        d[at + 65] = found[3]

    words, numbers = types.CPointer(types.uint32), types.CPointer(types.float32)
    return Kernel(kernel, [words, words, numbers, numbers], 32)


def multiply(name: str, a: Array, b: Array, c: Array) -> Array:

    fragments = [launch.to_device(registers(one, name)) for one in (a, b.T)]
    added, out = launch.to_device(c), launch.to_device(np.full((16, 8), np.nan, np.float32))
    multiplier(name).launch(
        1,
        32,
        0,
        None,
        [
            *(launch.view(one).pointer("uint32") for one in fragments),
            *(launch.view(one).pointer("float32") for one in (added, out)),
        ],
    )
    result = np.empty((16, 8), np.float32)
    launch.to_host(out, result)
    return result


@pytest.mark.parametrize("name", DEPTH)
def test_each_place_of_the_operands(name: str) -> None:
    """Different numbers in all places of one factor, by the unit matrix in each place of k."""
    k = DEPTH[name]
    a = np.arange(16 * k, dtype=np.float32).reshape(16, k)
    b = np.arange(8 * k, dtype=np.float32).reshape(k, 8)
    c = np.arange(128, dtype=np.float32).reshape(16, 8) * 512
    for first in range(0, k, 8):
        unit = np.eye(k, 8, -first, dtype=np.float32)
        assert np.array_equal(multiply(name, a, unit, c), a @ unit + c)
    assert np.array_equal(
        multiply(name, np.eye(16, k, dtype=np.float32), b, c), np.eye(16, k) @ b + c
    )


@pytest.mark.parametrize("name", DEPTH)
def test_products_and_sums_are_exact_on_integers(name: str) -> None:
    rng = np.random.default_rng(0)
    k = DEPTH[name]
    for _ in range(3):
        a, b = (rng.integers(-128, 129, shape).astype(np.float32) for shape in ((16, k), (k, 8)))
        c = rng.integers(-(2**20), 2**20, (16, 8)).astype(np.float32)
        assert np.array_equal(multiply(name, a, b, c), a @ b + c)


@lru_cache
def loader(count: int, transposed: bool) -> Any:
    """Copies rows asynchronously, then loads matrices."""

    load, wait = load_matrices(count, transposed), wait_copies(0)
    copies = {size: copy_async(size) for size in (4, 8, 16)}
    copy4, copy8, copy16 = copies[4], copies[8], copies[16]
    version = VERSION

    def kernel(source: Any, out: Any, rows: int) -> None:
        memory = cuda.shared.array(0, types.uint16)
        lane = cuda.threadIdx.x if version >= 0 else 0
        # Row by row of 16 bytes, 3 rows apart (conflict-free): copied by pieces of each size.
        at = i64(24 * lane)
        ok = lane < rows
        if lane % 3 == 0:
            copy16(memory, at, source, 16 * lane, ok)
        elif lane % 3 == 1:
            copy8(memory, at, source, 16 * lane, ok)
            copy8(memory, at + 4, source, 16 * lane + 8, ok)
        else:
            for piece in range(4):
                copy4(memory, at + 2 * piece, source, 16 * lane + 4 * piece, ok)
        commit_copies()
        wait()
        cuda.syncthreads()
        found = load(memory, at)
        for i in range(count):
            out[32 * i + lane] = found[i]

    pointers = [types.CPointer(types.uint8), types.CPointer(types.uint32)]
    return Kernel(kernel, [*pointers, types.int32], 32)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_loads_of_matrices(count: int, transposed: bool) -> None:

    rows = 27
    # Behind the rows nothing is there to be read.
    host = np.arange(1, rows * 8 + 1, dtype=np.uint16).reshape(rows, 8)
    source = launch.to_device(host)
    out = launch.to_device(np.full((count, 32), 7, np.uint32))
    loader(count, transposed).launch(
        1,
        32,
        2 * 24 * 32,
        None,
        [
            launch.view(source).pointer("uint8"),
            launch.view(out).pointer("uint32"),
            np.int32(rows),
        ],
    )
    result = np.empty((count, 32), np.uint32)
    launch.to_host(out, result)
    matrices = np.zeros((4, 8, 8), np.uint16)
    matrices.reshape(32, 8)[:rows] = host
    if transposed:
        matrices = matrices.transpose(0, 2, 1)
    expected = np.ascontiguousarray(matrices[:count]).view(np.uint32).reshape(count, 32)
    assert np.array_equal(result, expected)


@lru_cache
def rounder() -> Any:

    version = VERSION

    def kernel(source: Any, out: Any) -> None:
        t = cuda.threadIdx.x if version >= 0 else 0
        out[t] = to_tf32(source[t])

    return Kernel(kernel, [types.CPointer(types.float32), types.CPointer(types.uint32)], 1024)


def test_rounding_to_tf32() -> None:

    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2**32, 512, np.uint32)
    # Halves between neighbours, and the values around them.
    bits[:256] = (bits[:256] & np.uint32(0xFFFFE000)) + rng.choice(
        np.array([0, 0xFFF, 0x1000, 0x1001, 0x1FFF], np.uint32), 256
    )
    values = bits.view(np.float32)
    values[:4] = 0, -0.0, np.inf, -np.inf
    values = values[~np.isnan(values)]
    source, out = launch.to_device(values), launch.to_device(np.zeros(len(values), np.uint32))
    arguments = [launch.view(source).pointer("float32"), launch.view(out).pointer("uint32")]
    rounder().launch(1, len(values), 0, None, arguments)
    result = np.empty(len(values), np.uint32)
    launch.to_host(out, result)
    with np.errstate(over="ignore", invalid="ignore"):
        # In float64 the 11 bits kept are those above 2**42, where halves go away from zero.
        exact = values.astype(np.float64).view(np.uint64)
        nearest = ((exact + np.uint64(1 << 41)) >> np.uint64(42)) << np.uint64(42)
        expected = nearest.view(np.float64).astype(np.float32)
    normal = np.isfinite(values) & ((abs(values) >= 2.0**-126) | (values == 0))
    assert np.array_equal(result[normal], expected[normal].view(np.uint32))
    assert np.array_equal(result[np.isinf(values)], values[np.isinf(values)].view(np.uint32))

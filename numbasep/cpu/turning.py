"""Weights of pointwise convolutions as NHWC takes them: for each channel, output channels in turn.

They lie in blocks of so many output channels as a block of the product has columns, one block after
the other. What is beyond the last output channel is never read.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from numbasep.cpu import atomics, blocks, compiled, jobs, queues, simd, transposes
from numbasep.cpu.channels import Prepared
from numbasep.cpu.passes import move

Array = NDArray[Any]


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def turn_blocks(weight: int, dst: int, rows: int, channels: int, block: int, compute: Any) -> None:
    """Turn ``rows`` output channels of the weights."""
    lanes, wide = blocks.vector_lanes(compute), simd.size_of(compute)
    pitch = channels * wide
    for first in range(0, rows, block):
        to, r, last = dst + first * pitch, 0, min(block, rows - first)
        if channels >= lanes:
            while r + lanes <= last:
                row, c = weight + (first + r) * pitch, 0
                while c < channels:
                    c = min(c, channels - lanes)
                    at = to + (c * block + r) * wide
                    transposes.transpose(row + c * wide, pitch, at, block * wide, compute)
                    c += lanes
                r += lanes
        while r < last:
            row = weight + (first + r) * pitch
            for c in range(channels):
                move(row + c * wide, to + (c * block + r) * wide, wide)
            r += 1


@cache
def turner(compute: str) -> Any:
    """Return ``void (weight, dst, rows, channels, block)``."""
    computed = simd.tag(compute)

    @compiled.cfunc("void(" + ", ".join(["int64"] * 5) + ")")
    def turn(weight: int, dst: int, rows: int, channels: int, block: int) -> None:
        turn_blocks(weight, dst, rows, channels, block, computed)

    return turn


WEIGHT, TURNED, TURN, OUTPUTS, CHANNELS, BLOCK, WIDE = range(7)


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
            first = item * q[BLOCK]
            skipped = first * q[CHANNELS] * q[WIDE]
            rows = min(q[BLOCK], q[OUTPUTS] - first)
            atomics.call5(
                q[TURN], q[WEIGHT] + skipped, q[TURNED] + skipped, rows, q[CHANNELS], q[BLOCK]
            )
            queues.finish(queued, own)

    return driver


def step(
    outputs: int, channels: int, compute: str, threads: int, block: int = 0
) -> tuple[jobs.Step, int]:
    """Return the step of a job that turns "weight" into "turned", and the latter's bytes.

    block: outputs of a block; 0: those of the product's.
    """
    block = block or blocks.MIX_VECTORS * blocks.lanes_of(compute)
    count, wide = -(-outputs // block), np.dtype(compute).itemsize
    numbers = np.array([0, 0, turner(compute).address, outputs, channels, block, wide], np.int64)
    made = Prepared(numbers, count, 0, threads, ())
    return jobs.step(made, driver().address, "weight", "turned"), count * channels * block * wide


@lru_cache(maxsize=256)
def _transposing(rows: int, columns: int, dtype: str) -> jobs.Job:
    return jobs.job(("weight", "turned"), [step(rows, columns, dtype, 1, rows)[0]])


def transposed(matrix: Array) -> Array:
    """Return a matrix of float32 or float64 with rows and columns exchanged."""
    turned = np.empty(matrix.shape[::-1], matrix.dtype)
    if turned.size:
        _transposing(*matrix.shape, matrix.dtype.name).run(matrix, turned)
    return turned

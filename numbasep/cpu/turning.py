"""Weights of pointwise convolutions as NHWC takes them: for each channel, output channels in turn.

They lie in blocks of so many output channels as a block of the product has columns, one block after
the other. What is beyond the last output channel is never read.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from numbasep.cpu import atomics, blocks, compiled, pool, queues, simd
from numbasep.cpu.passes import move
from numbasep.cpu.pool import address

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
                    blocks.transpose(row + c * wide, pitch, at, block * wide, compute)
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


TURN, WEIGHT, TURNED, OUTPUTS, CHANNELS, BLOCK, WIDE = range(7)


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


def turned_weight(weight: Array, compute: str, threads: int, block: int = 0) -> Array:
    """Return the weights of a compute dtype, for each output its channels, in blocks.

    block: outputs of a block; 0: those of the product's.
    """
    outputs, channels = len(weight), weight.size // len(weight)
    block = block or blocks.MIX_VECTORS * blocks.lanes_of(compute)
    count = -(-outputs // block)
    turned = np.empty((count, channels, block), weight.dtype)
    numbers = np.array(
        [
            turner(compute).address, address(weight), address(turned), outputs, channels, block,
            weight.itemsize,
        ],
        np.int64,
    )  # fmt: skip
    pool.run(driver().address, numbers, count, 0, threads, (weight, turned))
    return turned


def transposed(weight: Array) -> Array:
    """Return a matrix of float32 or float64 with rows and columns exchanged."""
    matrix: Array = turned_weight(weight, weight.dtype.name, 1, len(weight))[0]
    return matrix

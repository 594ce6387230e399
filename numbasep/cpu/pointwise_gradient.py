"""The weight gradient of the pointwise convolution on the CPU.

``out[o][c] = sum_p grad[p][o] * image[p][c]``: products of blocks of the two, pixels by channels,
with the pixels of a slice ascending; the partial sums of slices are added in pairs.
"""

from __future__ import annotations

import zlib
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import njit
from numpy.typing import NDArray

from numbasep.cpu import atomics, compiled, depthwise_gradient, pointwise, pool, simd
from numbasep.cpu.channels import Prepared, bounds_of
from numbasep.cpu.pool import address
from numbasep.plan import cpu_tiles
from numbasep.plan import gradients as planner
from numbasep.plan.channelwise import PointwisePlan

Array = NDArray[Any]

VERSION = zlib.crc32(Path(__file__).read_bytes(), pointwise.VERSION)

# Rows of the result in a work item, and the fewest pixels of a slice.
SHARE, LEAST = 8 * pointwise.ROWS, 256

# Places of the numbers that describe a product.
GRAD, IMAGE, SUMS, ZEROS, GEOMETRY, STARTS, MIX, C, COUT, SHARES, WIDE = range(11)


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def work(numbers: int, taken: int, items: int) -> None:
    """Take slices of shares of the rows until there are none."""
    q = simd.as_pointer(numbers)
    wide = q[WIDE]
    while True:
        item = atomics.take(taken)
        if item >= items:
            break
        share, part = item % q[SHARES], item // q[SHARES]
        first, start = share * SHARE, atomics.peek(q[STARTS] + 8 * part)
        atomics.call8(
            q[MIX], q[GEOMETRY] + 8 * pointwise.GEOMETRY_SIZE * part,
            q[GRAD] + (start * q[COUT] + first) * wide,
            q[IMAGE] + start * q[C] * wide, pointwise.LOOSE,
            q[SUMS] + (part * q[COUT] + first) * q[C] * wide, q[ZEROS],
            min(SHARE, q[COUT] - first), q[C],
        )  # fmt: skip
        atomics.take(taken + 8)


@cache
def driver(version: int = VERSION) -> Any:
    """Return ``void (numbers, counter, items, scratch)``, the kernel for ``pool.run``."""

    @compiled.cfunc("void(int64, int64, int64, int64)")
    def driver(numbers: int, counter: int, items: int, scratch: int) -> None:
        if version:
            work(numbers, counter, items)

    return driver


@lru_cache(maxsize=512)
def prepare(plan: PointwisePlan) -> tuple[Prepared, int]:
    """Return what calls of a plan share, and the number of slices."""
    wide = np.dtype(plan.compute).itemsize
    pixels, shares = plan.batch * plan.pixels, -(-plan.outputs // SHARE)
    slices = planner.slices(-(-pixels // LEAST), shares)
    starts = np.arange(slices + 1, dtype=np.int64) * pixels // slices
    bounds = bounds_of(plan.compute, "none")
    geometry = np.zeros((slices, pointwise.GEOMETRY_SIZE), np.int64)
    row, outputs = plan.channels * wide, plan.outputs * wide
    geometry[:] = wide, outputs, row, row, 0, address(bounds), 0
    geometry[:, pointwise.COUNT] = np.diff(starts)
    zeros = np.zeros(plan.channels, plan.compute)
    numbers = np.zeros(WIDE + 1, np.int64)
    numbers[ZEROS:] = (
        address(zeros), address(geometry), address(starts),
        pointwise.mixer(plan.compute, 2).address, plan.channels, plan.outputs, shares, wide,
    )  # fmt: skip
    return Prepared(numbers, shares * slices, 64, 1, (bounds, geometry, zeros, starts)), slices


def run_weight_gradient(plan: PointwisePlan, image: Array, grad: Array, out: Array) -> None:
    """Write the gradient to the weight into ``out``; see ``plan.gradients``."""
    if grad.size == 0:
        out[...] = 0
        return
    if plan.layout == "NCHW":
        image, grad = np.moveaxis(image, 1, 2), np.moveaxis(grad, 1, 2)
    image, grad = (np.ascontiguousarray(one, plan.compute) for one in (image, grad))
    made, slices = prepare(plan)
    sums = np.empty((slices, plan.outputs, plan.channels), plan.compute)
    numbers = made.numbers.copy()
    numbers[:ZEROS] = address(grad), address(image), address(sums)
    threads = numba.get_num_threads()
    if grad.size * plan.channels < 2 * cpu_tiles.ALONE:
        threads = 1
    pool.run(
        driver().address, numbers, made.items, made.scratch, threads,
        (image, grad, sums, numbers, made),
    )  # fmt: skip
    np.copyto(out, depthwise_gradient.added(sums, 0), casting="unsafe")

"""Sums of each channel over all pixels on the CPU: the gradient of a bias.

Threads take slices of the images' rows of one group of channels, and add them up in vectors; the
sums of slices are added at the end.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numba
import numpy as np
from numba import njit
from numpy.typing import NDArray

from numbasep.cpu import blocks, combine, compiled, jobs, products, queues, simd
from numbasep.cpu.channels import Prepared
from numbasep.cpu.combine import clear
from numbasep.plan import cpu_tiles
from numbasep.plan import gradients as planner
from numbasep.plan.channelwise import DepthwisePlan

Array = NDArray[Any]

sums_full = products.make_sums(products.SUMS, masked=False)
sums_edge = products.make_sums(1, masked=True)

# Channels of a group (NHWC), and pixels of a slice at least.
CHANNELS, LEAST = 128, 4096

# Places of the numbers that describe sums: addresses; channels, pixels of an image, images; bytes
# of an element; whether planes; channels of a group, groups, slices.
GRAD, TOTALS, C, PIXELS, BATCH, SIZE, PLANAR, GROUP, GROUPS, SLICES = range(10)


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def add(
    to: int, src: int, src_step: int, count: int, n: int, storage: Any, compute: Any
) -> None:  # fmt: skip
    """Add ``count`` rows of n elements, ``src_step`` bytes apart, to n sums, a block at most."""
    lanes, wide, size = blocks.vector_lanes(compute), simd.size_of(compute), simd.size_of(storage)
    if n == products.SUMS * lanes:
        sums_full(to, src, src_step, count, n, storage, compute)
        return
    for i in range(0, n, lanes):
        sums_edge(to + i * wide, src + i * size, src_step, count, n - i, storage, compute)


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def work(numbers: int, queued: int, own: int, scratch: int, storage: Any, compute: Any) -> None:
    """Take slices of groups of channels until there are none."""
    q = simd.as_pointer(numbers)
    block = products.SUMS * blocks.vector_lanes(compute)
    wide, size, pixels = simd.size_of(compute), q[SIZE], q[PIXELS]
    while True:
        item = queues.take(queued, own)
        if item == queues.NOTHING:
            break
        group, part = item % q[GROUPS], item // q[GROUPS]
        first, last = group * q[GROUP], min((group + 1) * q[GROUP], q[C])
        units = q[BATCH] if q[PLANAR] else q[BATCH] * pixels
        start, stop = part * units // q[SLICES], (part + 1) * units // q[SLICES]
        if q[PLANAR]:
            whole = pixels // block
            for c in range(first, last):
                to = scratch
                numba.carray(simd.as_pointer(to), block * wide // 8)[:] = 0
                for n in range(start, stop):
                    src = q[GRAD] + (n * q[C] + c) * pixels * size
                    if whole > 0:
                        add(to, src, block * size, whole, block, storage, compute)
                    if pixels > whole * block:
                        rest = src + whole * block * size
                        add(to, rest, 0, 1, pixels - whole * block, storage, compute)
                place = q[TOTALS] + (part * q[C] + c) * wide
                products.total(to, products.SUMS, place, compute)
        else:
            clear(q[TOTALS] + (part * q[C] + first) * wide, (last - first) * wide)
            for c in range(first, last, block):
                src = q[GRAD] + (start * q[C] + c) * size
                to = q[TOTALS] + (part * q[C] + c) * wide
                n = min(block, last - c)
                if stop > start:
                    add(to, src, q[C] * size, stop - start, n, storage, compute)
        queues.finish(queued, own)


@cache
def driver(storage: str, compute: str) -> Any:
    """Return ``void (numbers, queued, own, scratch)``, the kernel for ``pool.run``."""
    stored, computed = simd.tag(storage), simd.tag(compute)

    @compiled.cfunc("void(int64, int64, int64, int64)")
    def driver(numbers: int, queued: int, own: int, scratch: int) -> None:
        work(numbers, queued, own, scratch, stored, computed)

    return driver


def steps(plan: DepthwisePlan, threads: int) -> tuple[list[jobs.Step], dict[str, int]]:
    """Return the steps of a job that write the sum of each channel of ``grad`` into ``out``."""
    planar, pixels = plan.layout == "NCHW", plan.y.out * plan.x.out
    units = plan.batch if planar else plan.batch * pixels // LEAST + 1
    group = max(1, LEAST // pixels) if planar else CHANNELS
    group = min(group, plan.channels)
    groups = -(-plan.channels // group)
    slices = planner.slices(units, groups)
    if plan.batch * plan.channels * pixels < cpu_tiles.ALONE:
        threads = 1
    numbers = np.zeros(SLICES + 1, np.int64)
    numbers[C:] = (
        plan.channels, pixels, plan.batch, simd.itemsize(plan.storage), planar, group, groups,
        slices,
    )  # fmt: skip
    made = Prepared(numbers, groups * slices, products.SUMS * simd.VECTOR, threads, ())
    function = driver(plan.storage, plan.compute).address
    if slices == 1 and plan.storage == plan.compute:
        return [jobs.step(made, function, "grad", "out")], {}
    count = plan.channels
    added = combine.step(
        "totals", "out", plan.compute, plan.storage, threads, slices, count, 1, count, count, (0, 1)
    )
    size = slices * count * np.dtype(plan.compute).itemsize
    return [jobs.step(made, function, "grad", "totals"), added], {"totals": size}


@lru_cache(maxsize=512)
def job(plan: DepthwisePlan, threads: int) -> jobs.Job:
    """Return what to do with ``grad`` and ``out``."""
    return jobs.job(("grad", "out"), *steps(plan, threads))


def run(plan: DepthwisePlan, grad: Array, out: Array) -> None:
    """Write the sum of each channel of ``grad`` into ``out``, of as many elements."""
    job(plan, numba.get_num_threads()).run(grad, out)

"""A batch norm in the convolution before it: its scale in the weights, its shift as their bias.

``scale = gamma / sqrt(variance + eps)``; ``weight * scale`` and ``beta + (bias - mean) * scale``,
for each filter; in float64 but for the products with weights, which are rounded once more. And
back: from the gradients to those two, the gradients to weight, gamma, beta and bias.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numba
import numpy as np
from numba import njit

from numbasep.cpu import compiled, jobs, queues, simd
from numbasep.cpu.channels import Prepared

# Places of the numbers: addresses, 0 where there is none of gamma, beta and bias; filters, and
# those of an item; elements of a filter; the bits of eps.
(
    WEIGHT, BIAS, GAMMA, BETA, MEAN, VARIANCE, FOLDED, SHIFT,
    TO_WEIGHT, TO_BIAS, TO_GAMMA, TO_BETA, FILTERS, SHARE, ROW, EPS,
) = range(16)  # fmt: skip
PLACES = (
    "weight", "bias", "gamma", "beta", "mean", "variance", "folded", "shift",
    "to_weight", "to_bias", "to_gamma", "to_beta",
)  # fmt: skip

# Elements of an item, about.
MOST = 8192


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def one_of(address: int, f: int, absent: float, compute: Any) -> float:
    """Return an element as float64; absent: instead of one of no array."""
    if address == 0:
        return absent
    return float(numba.carray(simd.as_elements(address, compute), f + 1)[f])


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def put(address: int, f: int, value: float, compute: Any) -> None:
    """Write an element, if there is an array."""
    if address != 0:
        numba.carray(simd.as_elements(address, compute), f + 1)[f] = value


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def narrowness(q: Any, f: int, compute: Any, double: Any) -> float:
    """Return the reciprocal of a filter's standard deviation."""
    eps = one_of(q[EPS], 0, 0.0, double)
    return float(1 / np.sqrt(one_of(q[VARIANCE], f, 1.0, compute) + eps))


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def scaled(src: int, to: int, n: int, scale: float, compute: Any) -> None:
    """Write n elements times a number of their dtype."""
    given = numba.carray(simd.as_elements(src, compute), n)
    made = numba.carray(simd.as_elements(to, compute), n)
    factor = given.dtype.type(scale)
    for i in range(n):
        made[i] = given[i] * factor


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, fastmath={"reassoc"})
def product(one: int, two: int, n: int, compute: Any) -> float:
    """Return the sum of the products of n elements, in float64."""
    first = numba.carray(simd.as_elements(one, compute), n)
    second = numba.carray(simd.as_elements(two, compute), n)
    total = 0.0
    for i in range(n):
        total += float(first[i]) * float(second[i])
    return total


@cache
def driver(compute: str, back: bool) -> Any:
    """Return ``void (numbers, queued, own, scratch)``, the kernel for ``pool.run``."""
    computed, double = simd.tag(compute), simd.tag("float64")

    @compiled.cfunc("void(int64, int64, int64, int64)")
    def driver(numbers: int, queued: int, own: int, scratch: int) -> None:
        q = simd.as_pointer(numbers)
        size = q[ROW] * simd.size_of(computed)
        while True:
            item = queues.take(queued, own)
            if item == queues.NOTHING:
                break
            for f in range(item * q[SHARE], min((item + 1) * q[SHARE], q[FILTERS])):
                narrow = narrowness(q, f, computed, double)
                scale = one_of(q[GAMMA], f, 1.0, computed) * narrow
                around = one_of(q[BIAS], f, 0.0, computed) - one_of(q[MEAN], f, 0.0, computed)
                if not back:
                    scaled(q[WEIGHT] + f * size, q[FOLDED] + f * size, q[ROW], scale, computed)
                    shift = one_of(q[BETA], f, 0.0, computed) + around * scale
                    put(q[SHIFT], f, shift, computed)
                    continue
                shift = one_of(q[SHIFT], f, 0.0, computed)
                put(q[TO_BETA], f, shift, computed)
                put(q[TO_BIAS], f, shift * scale, computed)
                if q[TO_GAMMA] != 0:
                    total = product(q[FOLDED] + f * size, q[WEIGHT] + f * size, q[ROW], computed)
                    put(q[TO_GAMMA], f, (total + shift * around) * narrow, computed)
                if q[TO_WEIGHT] != 0:
                    scaled(q[FOLDED] + f * size, q[TO_WEIGHT] + f * size, q[ROW], scale, computed)
            queues.finish(queued, own)

    return driver


def step(filters: int, row: int, eps: float, compute: str, threads: int, back: bool) -> jobs.Step:
    """Return the step of a job for weights of so many filters, ``row`` elements each.

    back: "folded" and "shift" are the gradients to what they are else.
    """
    share = max(1, min(MOST // row, -(-filters // (2 * threads))))
    value = np.array([eps])
    numbers = np.zeros(EPS + 1, np.int64)
    numbers[FILTERS:] = filters, share, row, value.ctypes.data
    made = Prepared(numbers, -(-filters // share), 0, threads, (value,))
    return jobs.step(made, driver(compute, back).address, *PLACES)


# What a stage of a job is told: filters, elements of each, eps.
Stage = tuple[int, int, float]


@lru_cache(maxsize=512)
def job(stages: tuple[Stage, ...], compute: str, back: bool, threads: int) -> jobs.Job:
    """Return what to do with ``PLACES`` of each stage, one stage after the other."""
    steps: list[jobs.Step] = []
    given: list[str] = []
    for k, (filters, row, eps) in enumerate(stages):
        names = {name: f"{name} {k}" for name in PLACES}
        steps += jobs.renamed([step(filters, row, eps, compute, threads, back)], **names)
        given += names.values()
    return jobs.job(tuple(given), steps)

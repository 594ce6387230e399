"""What an activation makes of a gradient: ``out[i] = grad[i] * slope(of[i])``.

``of`` is the activation's result for relu and relu6, what it was given for the others.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numpy as np
from numba import njit
from numba.core import types
from numba.extending import intrinsic

from numbasep.cpu import activations, blocks, compiled, jobs, queues, simd
from numbasep.cpu.channels import Prepared

Array = np.ndarray[Any, Any]

# Places of the numbers: addresses; elements, and those of an item.
GRAD, OF, OUT, COUNT, SHARE = range(5)
# Elements of an item.
MOST = 8192


def _make(*, masked: bool) -> Any:
    @intrinsic
    def sloped(context: Any, grad: Any, of: Any, dst: Any, n: Any, compute: Any, spec: Any) -> Any:
        computed, number = simd.name_of(compute), blocks.tagged(spec)
        signature = types.void(*[types.int64] * 4, compute, spec)

        def generate(ctx: Any, b: Any, _: Any, args: Any) -> Any:
            grad, of, dst, n = args[:4]
            e = blocks.Emitter(b, computed, blocks.lanes_of(computed))
            mask = e.mask(n, 0) if masked else None
            (given,), (x,) = e.load(grad, computed, mask), e.load(of, computed, mask)
            e.store([activations.sloped(e, given, x, number)], dst, computed, mask)
            return ctx.get_dummy_value()

        return signature, generate

    return sloped


sloped_full, sloped_edge = _make(masked=False), _make(masked=True)


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def work(numbers: int, queued: int, own: int, compute: Any, spec: Any) -> None:
    """Take shares of the elements until there are none."""
    q = simd.as_pointer(numbers)
    lanes, wide = blocks.vector_lanes(compute), simd.size_of(compute)
    while True:
        item = queues.take(queued, own)
        if item == queues.NOTHING:
            break
        start = item * q[SHARE]
        n, i = min(q[SHARE], q[COUNT] - start), 0
        grad, of, out = q[GRAD] + start * wide, q[OF] + start * wide, q[OUT] + start * wide
        while i + lanes <= n:
            at = i * wide
            sloped_full(grad + at, of + at, out + at, lanes, compute, spec)
            i += lanes
        if i < n:
            at = i * wide
            sloped_edge(grad + at, of + at, out + at, n - i, compute, spec)
        queues.finish(queued, own)


@cache
def driver(compute: str, activation: int) -> Any:
    """Return ``void (numbers, queued, own, scratch)``, the kernel for ``pool.run``."""
    computed, spec = simd.tag(compute), blocks.number_tag(activation)

    @compiled.cfunc("void(int64, int64, int64, int64)")
    def driver(numbers: int, queued: int, own: int, scratch: int) -> None:
        work(numbers, queued, own, computed, spec)

    return driver


@lru_cache(maxsize=512)
def job(activation: str, compute: str, count: int, threads: int) -> jobs.Job:
    """Return what to do with "grad", "of" and "out"."""
    return jobs.job(("grad", "of", "out"), [step(activation, compute, count, threads)])


def step(activation: str, compute: str, count: int, threads: int) -> jobs.Step:
    """Return the step of a job for ``count`` elements; "out" may be "grad"."""
    share = min(MOST, max(1024, -(-count // (4 * threads))))
    numbers = np.array([0, 0, 0, count, share], np.int64)
    made = Prepared(numbers, -(-count // share), 0, threads, ())
    number = activations.SLOPES[activation]
    return jobs.step(made, driver(compute, number).address, "grad", "of", "out")

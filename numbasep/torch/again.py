"""Layers on the host that are computed again: with the shapes and options of a call before.

To check tensors, view them as arrays and ask the package for a plan takes longer than a small layer
takes. What held for one call holds for the next that differs from it in elements only: it is a job
(``cpu.jobs``) on other addresses. Backward passes are one job each (``cpu.backward``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import torch
from torch import Tensor
from torch.nn import Parameter

from numbasep import channelwise, nvtx
from numbasep.calls import Call
from numbasep.cpu import backward, depthwise, fused, jobs, slopes
from numbasep.cpu.jobs import Job
from numbasep.cpu.pool import address, among
from numbasep.known import Known
from numbasep.layer_weights import zeros_of
from numbasep.torch.arguments import fresh, stands_last
from numbasep.torch.direct import direct
from numbasep.torch.host import seen
from numbasep.torch.team import team

# An image, and weights.
Tensors = tuple[Tensor | None, ...]
Gradients = tuple[Tensor | None, ...]

_NAMES = {torch.float32: "float32", torch.float64: "float64"}


@dataclass(frozen=True, slots=True)
class Forward:
    """A call's job, the shape of its result, and zeros for the biases that it has not."""

    job: Callable[[], Job]
    shape: tuple[int, ...]
    zeros: tuple[Any, ...]


_forwards: Known[Forward] = Known(1024)
_backwards: Known[Callable[[], Job | None]] = Known(1024)


def key(tensors: Tensors, options: tuple[Any, ...]) -> Any:
    """Return all that tells a call from others but its elements; None for one not known again.

    The image stands in one of the two layouts.
    """
    x = tensors[0]
    assert x is not None
    first = x.is_contiguous()
    if x.dtype not in _NAMES or not (first or stands_last(x)):
        return None
    if not (_has_memory(x, x.dtype) and plain(tensors[1:], x.dtype)):
        return None
    shapes = [None if one is None else one.shape for one in tensors]
    return x.dtype, first, *shapes, *_settled(options)


def plain(tensors: Sequence[Tensor | None], dtype: torch.dtype | None = None) -> bool:
    """Return whether jobs can read tensors where they are: contiguous, all of one dtype."""
    for one in tensors:
        if one is not None:
            dtype = dtype or one.dtype
            if not (one.is_contiguous() and _has_memory(one, dtype)):
                return False
    return dtype in _NAMES


def _has_memory(one: Tensor, dtype: torch.dtype) -> bool:
    return (
        type(one) in (Tensor, Parameter)
        and one.is_cpu
        and one.dtype is dtype
        and not one.is_neg()
        and one.data_ptr() != 0
    )


def named_dtype(one: Tensor) -> str:
    """Return the name of a plain tensor's dtype."""
    return _NAMES[one.dtype]


def run(name: str, known: Any, tensors: Tensors, order: tuple[int, ...]) -> Tensor | None:
    """Return the result of a forward that is known, else None.

    name: of its function. order: of the tensors as the job takes them after image and result.
    """
    found = None if known is None else _forwards.get(known)
    if found is None:
        return None
    x = tensors[0]
    assert x is not None
    out = fresh(x, *found.shape)
    places = [x.data_ptr(), out.data_ptr()]
    for k in order:
        one = tensors[k]
        places.append(address(found.zeros[k]) if one is None else one.data_ptr())
    with nvtx.range(name):
        found.job().run_at(places, (tensors, out, found))
    return out


def _seen(x: Tensor, weights: Tensors) -> tuple[Call, list[Any]]:
    """Return a call's shapes and its weights, as the package's functions check them."""
    last = stands_last(x)
    n, c, h, w = x.shape
    call = Call((n, h, w, c) if last else (n, c, h, w), _NAMES[x.dtype], "NHWC" if last else "NCHW")
    call.backend = "cpu"
    return call, [None if one is None else seen(one) for one in weights]


def _settled(options: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return options as the package's functions take them."""
    return tuple([tuple(one) if isinstance(one, list) else one for one in options])


def know_depthwise(known: Any, tensors: Tensors, options: tuple[Any, ...], out: Tensor) -> None:
    """Keep what a call of x, weight and bias did; known: its key."""
    x = tensors[0]
    if known is None or x is None or not out.numel():
        return
    call, weights = _seen(x, tensors[1:])
    plan, _, _ = channelwise.plan_depthwise(call, *weights, *_settled(options))
    zeros = None, None, zeros_of(plan.filters, plan.compute)
    _forwards.put(known, Forward(depthwise.repeated(plan), tuple(out.shape), zeros))


def know_separable(known: Any, tensors: Tensors, options: tuple[Any, ...], out: Tensor) -> None:
    """Keep what a call of x, both weights and both biases did; known: its key."""
    x = tensors[0]
    if known is None or x is None or not out.numel():
        return
    both = _both(x, tensors, options)
    zeros = (
        zeros_of(both.first.filters, both.first.compute),
        zeros_of(both.second.outputs, both.second.compute),
    )
    job = fused.repeated(both.planned("cpu"))
    _forwards.put(known, Forward(job, tuple(out.shape), (None, None, None, *zeros)))


def _both(x: Tensor, tensors: Tensors, options: tuple[Any, ...]) -> channelwise.Both:
    call, (taps, matrix, bias, second) = _seen(x, tensors[1:])
    *settled, fuse = _settled(options)
    arguments = [taps, bias, matrix, second, *settled, None, fuse]
    return channelwise.plan_separable(call, *arguments)


def sloped(activation: str, grad: Tensor, of: Tensor) -> Tensor | None:
    """Return the gradient to what an activation was given; None where torch's functions do that.

    of: its result, or what it was given, as ``cpu.slopes`` wants it.
    """
    if torch.is_grad_enabled() or not direct((grad, of)) or grad.stride() != of.stride():
        return None
    dense = grad.is_contiguous() or stands_last(grad)
    memory = all(_has_memory(one, grad.dtype) for one in (grad, of))
    if grad.dtype not in _NAMES or not (dense and memory):
        return None
    out = fresh(grad, *grad.shape)
    job = slopes.job(activation, _NAMES[grad.dtype], grad.numel(), numba.get_num_threads())
    with among(team()):
        job.run_at([one.data_ptr() for one in (grad, of, out)], (grad, of, out))
    return out


def depthwise_backward(
    tensors: Tensors, grad: Tensor, result: Tensor | None, options: tuple[Any, ...],
    asked: tuple[bool, ...],
) -> Gradients | None:  # fmt: skip
    """Return the gradients to x, weight and bias that are asked for; None where it is no job.

    options: with the activation; its result where that tells its slope.
    """

    def plan(x: Tensor) -> Callable[[int], Job | None]:
        call, weights = _seen(x, tensors[1:])
        made, _, _ = channelwise.plan_depthwise(call, *weights, *_settled(options))
        biased, wanted = weights[1] is not None, (asked[0], asked[1], asked[2])
        return lambda threads: backward.of_depthwise(made, biased, wanted, threads)

    name = "numbasep.depthwise_conv2d.backward"
    return _backward(name, plan, tensors, grad, result, options, asked, (1, 2))


def separable_backward(
    tensors: Tensors, grad: Tensor, result: Tensor | None, options: tuple[Any, ...],
    asked: tuple[bool, ...],
) -> Gradients | None:  # fmt: skip
    """Return the gradients to x, both weights and both biases; as ``depthwise_backward``."""

    def plan(x: Tensor) -> Callable[[int], Job | None]:
        both = _both(x, tensors, (*options, None))
        # Not the weights, which would be kept with the plans.
        first, second = both.first, both.second
        biased, wanted = tensors[3] is not None, (*(asked[k] for k in (0, 1, 3, 2, 4)),)
        return lambda threads: backward.of_separable(first, second, biased, wanted, threads)

    name = "numbasep.depthwise_separable_conv2d.backward"
    return _backward(name, plan, tensors, grad, result, options, asked, (1, 3, 2, 4))


def _backward(
    name: str, plan: Callable[[Tensor], Callable[[int], Job | None]], tensors: Tensors,
    grad: Tensor, result: Tensor | None, options: tuple[Any, ...], asked: tuple[bool, ...],
    order: tuple[int, ...],
) -> Gradients | None:  # fmt: skip
    """Return the gradients to the tensors that are asked for; None where it is no job.

    plan: makes what makes the job for some threads. order: of the weights as the job takes them.
    """
    x = tensors[0]
    assert x is not None
    given = (*tensors, grad) if result is None else (*tensors, grad, result)
    # Gradients that are to have gradients are made of operators.
    if torch.is_grad_enabled() or not direct(given) or grad.dtype is not x.dtype:
        return None
    known = key(tensors, (*options, asked, result is None))
    if known is None or not x.numel() or not grad.numel():
        return None
    found = _backwards.get(known)
    if found is None:
        found = jobs.repeated(plan(x))
        _backwards.put(known, found)
    job = found()
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    if job is None or not (result is None or result.is_contiguous(memory_format=layout)):
        return None
    grad = grad.contiguous(memory_format=layout)
    made = tuple(
        None
        if one is None or not wanted
        else fresh(x, *x.shape)
        if one is x
        else torch.empty_like(one)
        for one, wanted in zip(tensors, asked, strict=True)
    )
    arrays = x, grad, *[tensors[k] for k in order], result, made[0], *[made[k] for k in order]
    with nvtx.range(name), among(team()):
        job.run_at([0 if one is None else one.data_ptr() for one in arrays], (arrays,))
    return made

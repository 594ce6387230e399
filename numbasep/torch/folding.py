"""Batch norms folded into the convolutions before them: for tensors on the host, one job.

By torch's own functions a layer's two norms take as long to fold as a small layer takes.
"""

from __future__ import annotations

from typing import Any

import numba
import torch
from torch import Tensor
from torch.autograd import Function

from numbasep.cpu import folding
from numbasep.cpu.pool import among
from numbasep.torch.again import named_dtype, plain
from numbasep.torch.direct import direct, learns
from numbasep.torch.team import team

# Of a stage: the convolution's weight and bias; the norm's weight, bias, mean and variance.
Stage = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor, Tensor]
TENSORS = 6


def by_torch(stage: Stage, eps: float) -> tuple[Tensor, Tensor]:
    """Return a stage's weight and bias with the norm in them, by torch's own functions."""
    weight, bias, gamma, beta, mean, variance = stage
    # In double, but for the weights: these are many, and rounded twice.
    scale = (variance.double() + eps).rsqrt()
    if gamma is not None:
        scale = scale * gamma.double()
    shift = -mean.double() * scale
    if bias is not None:
        shift = shift + bias.double() * scale
    if beta is not None:
        shift = shift + beta.double()
    column = scale.to(weight.dtype).reshape(-1, *[1] * (weight.dim() - 1))
    return weight * column, shift.to(weight.dtype)


def at_once(stages: list[Stage], eps: list[float]) -> tuple[Tensor, ...] | None:
    """Return weight and bias of each stage in turn; None where torch has to see the operations."""
    if torch.compiler.is_compiling():
        return None
    tensors = [one for stage in stages for one in stage]
    if not (plain(tensors) and direct(tuple(tensors))):
        return None
    if learns(tuple(tensors)):
        if any(stage[4].requires_grad or stage[5].requires_grad for stage in stages):
            return None
        # torch's apply has no types.
        found: tuple[Tensor, ...] = _Folded.apply(  # type: ignore[no-untyped-call]
            tuple(eps), *tensors
        )
        return found
    return _fold(tensors, eps)


def _fold(tensors: Any, eps: Any) -> tuple[Tensor, ...]:
    made: list[Tensor] = []
    places: list[Tensor | None] = []
    for k in range(0, len(tensors), TENSORS):
        weight = tensors[k]
        folded, shift = torch.empty_like(weight), weight.new_empty(weight.shape[0])
        made += folded, shift
        places += *tensors[k : k + TENSORS], folded, shift, None, None, None, None
    _run(tensors, eps, places, back=False)
    return tuple(made)


def _run(tensors: Any, eps: Any, places: list[Tensor | None], *, back: bool) -> None:
    stages = tuple(
        (tensors[k].shape[0], tensors[k][0].numel(), eps[k // TENSORS])
        for k in range(0, len(tensors), TENSORS)
    )
    job = folding.job(stages, named_dtype(tensors[0]), back, numba.get_num_threads())
    with among(team()):
        job.run_at([0 if one is None else one.data_ptr() for one in places], places)


class _Folded(Function):
    """``by_torch`` of several stages, and its gradients."""

    @staticmethod
    def forward(ctx: Any, eps: tuple[float, ...], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        ctx.eps = eps
        ctx.save_for_backward(*tensors)
        return _fold(tensors, eps)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        tensors, asked = ctx.saved_tensors, ctx.needs_input_grad[1:]
        if torch.is_grad_enabled() or not (plain(given) and direct(given)):
            return None, *_differentiable(tensors, asked, ctx.eps, given)
        made: list[Tensor | None] = []
        places: list[Tensor | None] = []
        for k in range(0, len(tensors), TENSORS):
            # Running statistics have no gradients.
            some = [
                torch.empty_like(one) if wanted else None
                for one, wanted in zip(tensors[k : k + 4], asked[k : k + 4], strict=True)
            ]
            made += *some, None, None
            places += *tensors[k : k + TENSORS], *given[k // 3 : k // 3 + 2], *some
        _run(tensors, ctx.eps, places, back=True)
        return None, *made


def _differentiable(
    tensors: Any, asked: Any, eps: tuple[float, ...], given: tuple[Tensor, ...]
) -> list[Tensor | None]:
    """Return gradients that have gradients themselves."""
    with torch.enable_grad():
        made: list[Tensor] = []
        for k, value in enumerate(eps):
            made += by_torch(tensors[TENSORS * k : TENSORS * (k + 1)], value)
        wanted = [one for one, is_asked in zip(tensors, asked, strict=True) if is_asked]
        # A shift of running statistics alone has no gradients.
        pairs = [pair for pair in zip(made, given, strict=True) if pair[0].requires_grad]
        outputs, grads = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True))
    return [next(found) if is_asked else None for is_asked in asked]

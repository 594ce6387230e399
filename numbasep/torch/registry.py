"""How operators come to be: ``torch.ops.numbasep``, with shapes, gradients and batching rules."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.library import custom_op

from numbasep.cpu.pool import among
from numbasep.torch.direct import direct, learns
from numbasep.torch.team import team

# The operators by name, as functions: those of ``torch.ops.numbasep``, or at once what these do.
operators: Any = SimpleNamespace()


def define(
    name: str,
    arguments: str,
    *,
    result: Callable[..., Tensor],
    setup: Callable[..., None],
    backward: Callable[..., Any],
    folds: bool,
) -> Callable[[Callable[..., Tensor]], Any]:
    """Return a decorator that makes a function an operator.

    arguments: its schema's. result: checks them and returns the result, unfilled. setup, backward:
    as ``torch.autograd.Function`` has them. folds: whether the result has an image for each image
    of the first argument.
    """

    def decorate(function: Callable[..., Tensor]) -> Any:
        @wraps(function)
        def computed(*arguments: Any) -> Tensor:
            with among(team()):
                return function(*arguments)

        made: Any = custom_op(
            f"numbasep::{name}", computed, mutates_args=(), schema=f"({arguments}) -> Tensor"
        )
        made.register_fake(result)
        made.register_autograd(backward, setup_context=setup)
        operator = getattr(torch.ops.numbasep, name)
        made.register_vmap(_mapped(operator, folds))

        # What torch makes of them for the operator, without its checks of each call: of a
        # ``setup_context`` of its own it would ask for the signature each time.
        def forward(ctx: Any, *arguments: Any) -> Tensor:
            made = computed(*arguments)
            setup(ctx, arguments, made)
            return made

        methods: dict[str, Any] = {"forward": forward, "backward": backward}
        learning: Any = type(
            name, (Function,), {key: staticmethod(one) for key, one in methods.items()}
        )

        def called(*arguments: Any) -> Any:
            if not direct(arguments):
                return operator(*arguments)
            return learning.apply(*arguments) if learns(arguments) else computed(*arguments)

        setattr(operators, name, called)
        return made

    return decorate


def _mapped(operator: Any, folds: bool) -> Callable[..., tuple[Tensor, int]]:
    """Return how an operator is mapped: by more images where only they are many, else in a loop."""

    def rule(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        dims = [dim if isinstance(dim, int) else None for dim in in_dims]
        if folds and all(dim is None for dim in dims[1:]):
            x = inputs[0].movedim(dims[0], 0)
            result = operator(x.flatten(0, 1), *inputs[1:])
            return result.unflatten(0, (x.shape[0], x.shape[1])), 0
        parts = [
            operator(
                *[
                    one if dim is None else one.select(dim, index)
                    for one, dim in zip(inputs, dims, strict=True)
                ]
            )
            for index in range(info.batch_size)
        ]
        return torch.stack(parts), 0

    return rule


# Of (gradient, first, second, options) one factor's gradient.
Formula = Callable[[Tensor, Tensor, Tensor, Any], Tensor]


def bilinear(to_first: Formula, to_second: Formula) -> dict[str, Callable[..., Any]]:
    """Return setup and backward of an operator that is linear in its first two arguments.

    Its third, a size, is no option.
    """

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.others, ctx.options = len(inputs) - 2, inputs[3:]

    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        one, two = ctx.saved_tensors
        return (
            *[
                formula(given, one, two, ctx.options) if asked else None
                for formula, asked in zip(
                    (to_first, to_second), ctx.needs_input_grad[:2], strict=True
                )
            ],
            *[None] * ctx.others,
        )

    return {"setup": setup, "backward": backward}

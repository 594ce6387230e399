"""The depthwise convolution by row and column passes as an operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from numbasep import channelwise
from numbasep.plan.gradients import BY_RESULT
from numbasep.torch.activations import before
from numbasep.torch.arguments import OPTIONS, check, named
from numbasep.torch.depthwise import result as depthwise_result
from numbasep.torch.host import beside, factors, host
from numbasep.torch.registry import define, operators


def dense(columns: Tensor, rows: Tensor) -> Tensor:
    """Return the kernels (filters, 1, kh, kw) of factors (filters, R, kh), (filters, R, kw)."""
    return torch.einsum("fri,frj->fij", columns, rows)[:, None]


def _result(
    x: Tensor,
    columns: Tensor,
    rows: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    padding_mode: str,
    activation: str,
) -> Tensor:
    check(x, {"columns": columns, "rows": rows, "bias": bias})
    if columns.dim() != 3 or rows.dim() != 3 or columns.shape[:2] != rows.shape[:2]:
        raise ValueError(
            f"columns, rows: shapes {tuple(columns.shape)} and {tuple(rows.shape)} arrived; pass "
            "(C * M, R, kh) and (C * M, R, kw)"
        )
    weight = columns.new_empty((columns.shape[0], 1, columns.shape[2], rows.shape[2]))
    return depthwise_result(
        x, weight, bias, stride, padding, dilation, padding_mode, activation
    )  # fmt: skip


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, columns, rows, bias, *ctx.options, ctx.activation = inputs
    kept = output if ctx.activation in BY_RESULT else None
    ctx.save_for_backward(x, columns, rows, bias, kept)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, columns, rows, bias, result = ctx.saved_tensors
    options = ctx.options
    grad = before(
        ctx.activation,
        grad,
        result,
        lambda: operators.low_rank_depthwise_conv2d(x, columns, rows, bias, *options, "none"),
    )
    asked = ctx.needs_input_grad
    to_x = to_columns = to_rows = None
    if asked[0]:
        weight = dense(columns, rows)
        to_x = operators.depthwise_input_gradient(grad, weight, x.shape[1:], *options)
    if asked[1] or asked[2]:
        size = columns.shape[2], rows.shape[2]
        kernel = operators.depthwise_weight_gradient(x, grad, size, *options)[:, 0]
        to_columns = torch.einsum("fij,frj->fri", kernel, rows) if asked[1] else None
        to_rows = torch.einsum("fij,fri->frj", kernel, columns) if asked[2] else None
    to_bias = operators.bias_gradient(grad) if asked[3] else None
    return (to_x, to_columns, to_rows, to_bias, *[None] * 5)


@define(
    "low_rank_depthwise_conv2d",
    f"Tensor x, Tensor columns, Tensor rows, Tensor? bias, {OPTIONS}, str activation",
    result=_result,
    setup=_setup,
    backward=_backward,
    folds=True,
)
def low_rank_depthwise_conv2d(
    x: Tensor, columns: Tensor, rows: Tensor, bias: Tensor | None, *options: Any
) -> Tensor:
    out = _result(x, columns, rows, bias, *options)
    image, place = beside(x, out)
    channelwise.depthwise_conv2d(
        image, factors(columns, rows), host(bias), **named(*options[:4]),
        activation=options[4], **place,
    )  # fmt: skip
    return out

"""Depthwise and pointwise convolution in one operator.

Its backward computes the intermediate again: it was not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from numbasep import channelwise
from numbasep.plan import checks
from numbasep.plan.channelwise import ACTIVATIONS
from numbasep.plan.gradients import BY_RESULT
from numbasep.torch import again
from numbasep.torch.activations import activate, before
from numbasep.torch.arguments import (
    OPTIONS,
    check,
    check_bias,
    check_filters,
    check_matrix,
    fresh,
    named,
    sizes,
)
from numbasep.torch.depthwise import asked_for
from numbasep.torch.host import beside, host
from numbasep.torch.registry import define, operators


def _result(
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    pointwise_bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    padding_mode: str,
    depthwise_activation: str,
    activation: str,
    fuse: bool | None,
) -> Tensor:
    check(
        x,
        {
            "depthwise_weight": depthwise_weight,
            "pointwise_weight": pointwise_weight,
            "depthwise_bias": depthwise_bias,
            "pointwise_bias": pointwise_bias,
        },
    )
    checks.choice("depthwise_activation", depthwise_activation, ACTIVATIONS)
    checks.choice("activation", activation, ACTIVATIONS)
    check_filters("depthwise_weight", depthwise_weight, x.shape[1])
    check_matrix("pointwise_weight", pointwise_weight, depthwise_weight.shape[0])
    check_bias("depthwise_bias", depthwise_bias, depthwise_weight.shape[0])
    check_bias("pointwise_bias", pointwise_bias, pointwise_weight.shape[0])
    found = sizes(x, depthwise_weight.shape[2:], stride, padding, dilation)
    return fresh(x, x.shape[0], pointwise_weight.shape[0], *found)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, stride, padding, dilation, padding_mode, first, second, _ = inputs
    ctx.options = stride, padding, dilation, padding_mode
    ctx.activations = first, second
    ctx.save_for_backward(*tensors, output if second in BY_RESULT else None)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, depthwise, pointwise, depthwise_bias, pointwise_bias, result = ctx.saved_tensors
    first, second = ctx.activations
    options = ctx.options
    tensors = x, depthwise, pointwise, depthwise_bias, pointwise_bias
    made = again.separable_backward(
        tensors, grad, result, (*options, first, second), ctx.needs_input_grad[:5]
    )
    if made is not None:
        return (*made, *[None] * 7)
    # The intermediate, again: by one operator where its activation's slope is known from it.
    in_one = first == "none" or first in BY_RESULT
    sums = operators.depthwise_conv2d(
        x, depthwise, depthwise_bias, *options, first if in_one else "none"
    )
    middle = sums if in_one else activate(first, sums)
    grad = before(
        second,
        grad,
        result,
        lambda: operators.pointwise_conv2d(middle, pointwise, pointwise_bias, "none"),
    )
    asked = ctx.needs_input_grad
    to_pointwise = operators.pointwise_weight_gradient(middle, grad) if asked[2] else None
    to_pointwise_bias = operators.bias_gradient(grad) if asked[4] else None
    to_x = to_depthwise = to_bias = None
    if asked[0] or asked[1] or asked[3]:
        between = operators.pointwise_input_gradient(grad, pointwise)
        between = before(first, between, middle, lambda: sums)
        to_x, to_depthwise, to_bias = asked_for(ctx, x, depthwise, between, options, bias=3)
    return (to_x, to_depthwise, to_pointwise, to_bias, to_pointwise_bias, *[None] * 7)


@define(
    "depthwise_separable_conv2d",
    "Tensor x, Tensor depthwise_weight, Tensor pointwise_weight, Tensor? depthwise_bias, "
    f"Tensor? pointwise_bias, {OPTIONS}, str depthwise_activation, str activation, bool? fuse",
    result=_result,
    setup=_setup,
    backward=_backward,
    folds=True,
)
def depthwise_separable_conv2d(
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    pointwise_bias: Tensor | None,
    *options: Any,
) -> Tensor:
    tensors = x, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias
    known = again.key(tensors, options)
    done = again.run("numbasep.depthwise_separable_conv2d", known, tensors, (1, 1, 3, 2, 4))
    if done is not None:
        return done
    out = _result(*tensors, *options)
    image, place = beside(x, out)
    channelwise.depthwise_separable_conv2d(
        image,
        host(depthwise_weight),
        host(pointwise_weight),
        depthwise_bias=host(depthwise_bias),
        pointwise_bias=host(pointwise_bias),
        **named(*options[:4]),
        depthwise_activation=options[4],
        activation=options[5],
        fuse=options[6],
        **place,
    )
    again.know_separable(known, tensors, options, out)
    return out

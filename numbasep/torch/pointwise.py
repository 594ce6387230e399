"""The pointwise convolution as an operator, and its gradients."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from numbasep import channelwise, gradients
from numbasep.plan import checks
from numbasep.plan.channelwise import ACTIVATIONS
from numbasep.plan.gradients import BY_RESULT
from numbasep.torch.activations import before
from numbasep.torch.arguments import check, check_bias, check_matrix, fresh
from numbasep.torch.host import alike, beside, host, seen
from numbasep.torch.registry import bilinear, define, operators


def _result(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    check(x, {"weight": weight, "bias": bias})
    checks.choice("activation", activation, ACTIVATIONS)
    check_matrix("weight", weight, x.shape[1])
    check_bias("bias", bias, weight.shape[0])
    return fresh(x, x.shape[0], weight.shape[0], *x.shape[2:])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.activation = inputs
    ctx.save_for_backward(x, weight, bias, output if ctx.activation in BY_RESULT else None)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, made = ctx.saved_tensors
    grad = before(
        ctx.activation, grad, made, lambda: operators.pointwise_conv2d(x, weight, bias, "none")
    )
    asked = ctx.needs_input_grad
    return (
        operators.pointwise_input_gradient(grad, weight) if asked[0] else None,
        operators.pointwise_weight_gradient(x, grad) if asked[1] else None,
        operators.bias_gradient(grad) if asked[2] else None,
        None,
    )


@define(
    "pointwise_conv2d",
    "Tensor x, Tensor weight, Tensor? bias, str activation",
    result=_result,
    setup=_setup,
    backward=_backward,
    folds=True,
)
def pointwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    out = _result(x, weight, bias, activation)
    image, place = beside(x, out)
    channelwise.pointwise_conv2d(image, host(weight), host(bias), activation=activation, **place)
    return out


def _image(grad: Tensor, weight: Tensor) -> Tensor:
    return fresh(grad, grad.shape[0], weight.shape[1], *grad.shape[2:])


@define(
    "pointwise_input_gradient",
    "Tensor grad, Tensor weight",
    result=_image,
    folds=True,
    **bilinear(
        lambda given, grad, weight, _: operators.pointwise_conv2d(given, weight, None, "none"),
        lambda given, grad, weight, _: operators.pointwise_weight_gradient(given, grad),
    ),
)
def pointwise_input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    out = _image(grad, weight)
    image, place = beside(grad, out)
    gradients.pointwise_input_gradient(image, host(weight), **place)
    return out


def _weight(x: Tensor, grad: Tensor) -> Tensor:
    return x.new_empty((grad.shape[1], x.shape[1], 1, 1))


@define(
    "pointwise_weight_gradient",
    "Tensor x, Tensor grad",
    result=_weight,
    folds=False,
    **bilinear(
        lambda given, x, grad, _: operators.pointwise_input_gradient(grad, given),
        lambda given, x, grad, _: operators.pointwise_conv2d(x, given, None, "none"),
    ),
)
def pointwise_weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    out = _weight(x, grad)
    (image, given), layout = alike(x, grad)
    gradients.pointwise_weight_gradient(image, given, layout=layout, out=seen(out[:, :, 0, 0]))
    return out

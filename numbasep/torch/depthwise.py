"""The depthwise convolution as an operator, and its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from numbasep import channelwise, gradients
from numbasep.plan import checks
from numbasep.plan.channelwise import ACTIVATIONS
from numbasep.plan.gradients import BY_RESULT
from numbasep.torch import again
from numbasep.torch.activations import before
from numbasep.torch.arguments import (
    OPTIONS,
    check,
    check_bias,
    check_filters,
    fresh,
    named,
    sizes,
)
from numbasep.torch.host import alike, beside, host, seen
from numbasep.torch.registry import bilinear, define, operators


def result(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    padding_mode: str,
    activation: str,
) -> Tensor:
    """Check the arguments and return the result, unfilled."""
    check(x, {"weight": weight, "bias": bias})
    checks.choice("activation", activation, ACTIVATIONS)
    check_filters("weight", weight, x.shape[1])
    check_bias("bias", bias, weight.shape[0])
    return fresh(
        x, x.shape[0], weight.shape[0], *sizes(x, weight.shape[2:], stride, padding, dilation)
    )


def asked_for(
    ctx: Any, x: Tensor, weight: Tensor, grad: Tensor, options: Sequence[Any], bias: int = 2
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients to image, weight and bias that are asked for; bias: its argument."""
    asked = ctx.needs_input_grad
    return (
        operators.depthwise_input_gradient(grad, weight, x.shape[1:], *options)
        if asked[0]
        else None,
        operators.depthwise_weight_gradient(x, grad, weight.shape[2:], *options)
        if asked[1]
        else None,
        operators.bias_gradient(grad) if asked[bias] else None,
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *options, activation = inputs
    ctx.save_for_backward(x, weight, bias, output if activation in BY_RESULT else None)
    ctx.options, ctx.activation = options, activation


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, made = ctx.saved_tensors
    options = ctx.options
    found = again.depthwise_backward(
        (x, weight, bias), grad, made, (*options, ctx.activation), ctx.needs_input_grad[:3]
    )
    if found is not None:
        return (*found, *[None] * 5)
    grad = before(
        ctx.activation,
        grad,
        made,
        lambda: operators.depthwise_conv2d(x, weight, bias, *options, "none"),
    )
    return (*asked_for(ctx, x, weight, grad, options), *[None] * 5)


@define(
    "depthwise_conv2d",
    f"Tensor x, Tensor weight, Tensor? bias, {OPTIONS}, str activation",
    result=result,
    setup=_setup,
    backward=_backward,
    folds=True,
)
def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    tensors = x, weight, bias
    known = again.key(tensors, options)
    done = again.run("numbasep.depthwise_conv2d", known, tensors, (1, 1, 2))
    if done is not None:
        return done
    out = result(x, weight, bias, *options)
    image, place = beside(x, out)
    channelwise.depthwise_conv2d(
        image, host(weight), host(bias), **named(*options[:4]), activation=options[4], **place
    )
    again.know_depthwise(known, tensors, options, out)
    return out


def _image(grad: Tensor, weight: Tensor, size: Sequence[int], *_: Any) -> Tensor:
    return fresh(grad, grad.shape[0], *size)


@define(
    "depthwise_input_gradient",
    f"Tensor grad, Tensor weight, SymInt[] size, {OPTIONS}",
    result=_image,
    folds=True,
    **bilinear(
        lambda given, grad, weight, options: operators.depthwise_conv2d(
            given, weight, None, *options, "none"
        ),
        lambda given, grad, weight, options: operators.depthwise_weight_gradient(
            given, grad, weight.shape[2:], *options
        ),
    ),
)
def depthwise_input_gradient(
    grad: Tensor, weight: Tensor, size: Sequence[int], *options: Any
) -> Tensor:
    out = _image(grad, weight, size)
    (given, place), layout = alike(grad, out)
    gradients.depthwise_input_gradient(
        given, host(weight), place.shape, **named(*options), layout=layout, out=place
    )
    return out


def _weight(x: Tensor, grad: Tensor, size: Sequence[int], *_: Any) -> Tensor:
    return x.new_empty((grad.shape[1], 1, *size))


@define(
    "depthwise_weight_gradient",
    f"Tensor x, Tensor grad, SymInt[] size, {OPTIONS}",
    result=_weight,
    folds=False,
    **bilinear(
        lambda given, x, grad, options: operators.depthwise_input_gradient(
            grad, given, x.shape[1:], *options
        ),
        lambda given, x, grad, options: operators.depthwise_conv2d(
            x, given, None, *options, "none"
        ),
    ),
)
def depthwise_weight_gradient(
    x: Tensor, grad: Tensor, size: Sequence[int], *options: Any
) -> Tensor:
    out = _weight(x, grad, size)
    (image, given), layout = alike(x, grad)
    gradients.depthwise_weight_gradient(
        image, given, (size[0], size[1]), **named(*options), layout=layout, out=seen(out)
    )
    return out


def _bias(grad: Tensor) -> Tensor:
    return grad.new_empty((grad.shape[1],))


def _bias_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.shape = inputs[0].shape


def _bias_backward(ctx: Any, given: Tensor) -> Tensor:
    return given[None, :, None, None].expand(ctx.shape)


@define(
    "bias_gradient",
    "Tensor grad",
    result=_bias,
    setup=_bias_setup,
    backward=_bias_backward,
    folds=False,
)
def bias_gradient(grad: Tensor) -> Tensor:
    out = _bias(grad)
    (given,), layout = alike(grad)
    gradients.bias_gradient(given, layout=layout, out=seen(out))
    return out

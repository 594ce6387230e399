"""The channelwise functions and their gradients as operators: ``torch.ops.numbasep``.

Shapes are torch's: images (N, C, H, W), contiguous or channels_last, computed as they stand; of
other strides they are copied. Each result stands as its image does. Every operator is linear in
each of its tensors but for biases and activations, and the gradients of each are others of them:

=========================  ===================================================================
operator                   gradients
=========================  ===================================================================
depthwise_conv2d           depthwise_input_gradient, depthwise_weight_gradient, bias_gradient
depthwise_input_gradient   depthwise_conv2d, depthwise_weight_gradient
depthwise_weight_gradient  depthwise_input_gradient, depthwise_conv2d
pointwise_...              the same three
depthwise_separable_...    all of them; the intermediate is computed again, not kept
=========================  ===================================================================

so gradients of gradients come of themselves. padding: (top, bottom, left, right).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op, register_autograd, register_fake, register_vmap

from numbasep import channelwise, gradients
from numbasep.plan import checks
from numbasep.plan.channelwise import ACTIVATIONS
from numbasep.torch.host import factors, host

OPTIONS = "int[] stride, int[] padding, int[] dilation, str padding_mode"
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Activations whose slope is known from their result; of the others the sum is computed again.
BY_RESULT = ("relu", "relu6")

operators = torch.ops.numbasep


def stands_last(x: Tensor) -> bool:
    """Return whether an image stands channels last in memory, and not also first."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def fresh(x: Tensor, *shape: Any) -> Tensor:
    """Return an unfilled image that stands as ``x`` does."""
    last = stands_last(x)
    return torch.empty(
        shape,
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )


def _standing(first: Tensor, *others: Tensor) -> tuple[str, list[Tensor]]:
    """Return the layout in which the first image stands, and all in it."""
    images = [one.detach() for one in (first, *others)]
    if stands_last(first):
        return "NHWC", [one.permute(0, 2, 3, 1).contiguous() for one in images]
    return "NCHW", [one.contiguous() for one in images]


def check(x: Tensor, weights: dict[str, Tensor | None]) -> None:
    """Refuse what no kernel takes: the same words whether the tensors have elements or not."""
    if x.dim() != 4:
        raise ValueError(f"x: shape {tuple(x.shape)} arrived; pass (N, C, H, W)")
    if x.dtype not in FLOATS:
        raise TypeError(f"x: {x.dtype} arrived; convert it to a floating dtype")
    for name, weight in weights.items():
        if weight is None:
            continue
        if weight.dtype != x.dtype:
            remedy = (
                "convert one of them, or call under torch.autocast"
                if weight.dtype in FLOATS
                else "pass floating weights"
            )
            raise TypeError(f"{name}: {weight.dtype} arrived and x is {x.dtype}; {remedy}")
        if weight.device != x.device:
            raise ValueError(
                f"{name}: on {weight.device} and x is on {x.device}; move one of them there"
            )


def _check_bias(name: str, bias: Tensor | None, count: Any) -> None:
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != count):
        raise ValueError(f"{name}: shape {tuple(bias.shape)} arrived; pass ({count},)")


def _sizes(
    x: Tensor,
    taps: Sequence[Any],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[Any]:
    """Return the rows and columns of a result."""
    found = []
    for axis in range(2):
        padded = x.shape[2 + axis] + padding[2 * axis] + padding[2 * axis + 1]
        extent = (taps[axis] - 1) * dilation[axis] + 1
        if padded < extent:
            raise ValueError(
                f"weight: {taps[axis]} taps at dilation {dilation[axis]} span {extent} and x has "
                f"{padded} with its padding; pad more, or pass a smaller kernel"
            )
        found.append((padded - extent) // stride[axis] + 1)
    return found


def _check_filters(name: str, weight: Tensor, channels: Any) -> None:
    filters = weight.shape[0]
    if weight.dim() != 4 or weight.shape[1] != 1 or filters == 0 or filters % channels:
        raise ValueError(
            f"{name}: shape {tuple(weight.shape)} arrived and x has {channels} channels; pass "
            "M filters for each, (C * M, 1, kh, kw), as of a convolution with groups=C"
        )


def _check_matrix(name: str, weight: Tensor, channels: Any) -> None:
    if weight.dim() != 4 or weight.shape[1] != channels or tuple(weight.shape[2:]) != (1, 1):
        raise ValueError(
            f"{name}: shape {tuple(weight.shape)} arrived and the image has {channels} channels; "
            "pass (Cout, C, 1, 1) with groups=1"
        )


def _options(
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], padding_mode: str
) -> dict[str, Any]:
    return {
        "stride": tuple(stride),
        "padding": tuple(padding),
        "dilation": tuple(dilation),
        "padding_mode": padding_mode,
    }


def activate(activation: str, z: Tensor) -> Tensor:
    """Return an activation by torch's own functions."""
    functional = torch.nn.functional
    made: Tensor = {
        "none": lambda z: z,
        "relu": functional.relu,
        "relu6": functional.relu6,
        "silu": functional.silu,
        "hardswish": functional.hardswish,
        "gelu": functional.gelu,
    }[activation](z)
    return made


def _before(
    activation: str, grad: Tensor, result: Tensor | None, sums: Callable[[], Tensor]
) -> Tensor:
    """Return the gradient to what an activation was given."""
    aten = torch.ops.aten
    made: Tensor
    if activation == "none":
        made = grad
    elif activation == "relu":
        made = aten.threshold_backward(grad, result, 0)
    elif activation == "relu6":
        made = aten.hardtanh_backward(grad, result, 0, 6)
    elif activation == "silu":
        # aten.silu_backward has no derivative of its own.
        z = sums()
        slope = torch.sigmoid(z)
        made = grad * slope * (1 + z * (1 - slope))
    elif activation == "hardswish":
        made = aten.hardswish_backward(grad, sums())
    else:
        made = aten.gelu_backward(grad, sums())
    return made


# Depthwise -------------------------------------------------------------------------------------


def depthwise_result(
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
    _check_filters("weight", weight, x.shape[1])
    _check_bias("bias", bias, weight.shape[0])
    return fresh(
        x, x.shape[0], weight.shape[0], *_sizes(x, weight.shape[2:], stride, padding, dilation)
    )


@custom_op(
    "numbasep::depthwise_conv2d",
    mutates_args=(),
    schema=f"(Tensor x, Tensor weight, Tensor? bias, {OPTIONS}, str activation) -> Tensor",
)
def depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any
) -> Tensor:  # fmt: skip
    out = depthwise_result(x, weight, bias, *options)
    channelwise.depthwise_conv2d(
        x.detach(), host(weight), host(bias), **_options(*options[:4]), activation=options[4],
        out=out,
    )  # fmt: skip
    return out


def _input_gradient_result(grad: Tensor, weight: Tensor, size: Sequence[int], *_: Any) -> Tensor:
    return fresh(grad, grad.shape[0], *size)


@custom_op(
    "numbasep::depthwise_input_gradient",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor weight, SymInt[] size, {OPTIONS}) -> Tensor",
)
def depthwise_input_gradient(
    grad: Tensor, weight: Tensor, size: Sequence[int], *options: Any
) -> Tensor:
    layout, (image,) = _standing(grad)
    c, h, w = size
    shape = (len(grad), c, h, w) if layout == "NCHW" else (len(grad), h, w, c)
    made: Tensor = gradients.depthwise_input_gradient(
        image, host(weight), shape, layout=layout, **_options(*options)
    )
    return made if layout == "NCHW" else made.permute(0, 3, 1, 2)


def _weight_gradient_result(x: Tensor, grad: Tensor, size: Sequence[int], *_: Any) -> Tensor:
    return x.new_empty((grad.shape[1], 1, *size))


@custom_op(
    "numbasep::depthwise_weight_gradient",
    mutates_args=(),
    schema=f"(Tensor x, Tensor grad, SymInt[] size, {OPTIONS}) -> Tensor",
)
def depthwise_weight_gradient(
    x: Tensor, grad: Tensor, size: Sequence[int], *options: Any
) -> Tensor:
    layout, (image, grads) = _standing(x, grad)
    made: Tensor = gradients.depthwise_weight_gradient(
        image, grads, (size[0], size[1]), layout=layout, **_options(*options)
    )
    return made.to(x.dtype).reshape(grad.shape[1], 1, *size)


def _bias_gradient_result(grad: Tensor) -> Tensor:
    return grad.new_empty((grad.shape[1],))


@custom_op("numbasep::bias_gradient", mutates_args=(), schema="(Tensor grad) -> Tensor")
def bias_gradient(grad: Tensor) -> Tensor:
    layout, (image,) = _standing(grad)
    made: Tensor = gradients.bias_gradient(image, layout=layout)
    return made.to(grad.dtype)


# Pointwise -------------------------------------------------------------------------------------


def _pointwise_result(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    check(x, {"weight": weight, "bias": bias})
    checks.choice("activation", activation, ACTIVATIONS)
    _check_matrix("weight", weight, x.shape[1])
    _check_bias("bias", bias, weight.shape[0])
    return fresh(x, x.shape[0], weight.shape[0], *x.shape[2:])


@custom_op(
    "numbasep::pointwise_conv2d",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, str activation) -> Tensor",
)
def pointwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    out = _pointwise_result(x, weight, bias, activation)
    channelwise.pointwise_conv2d(
        x.detach(), host(weight), host(bias), activation=activation, out=out
    )
    return out


def _pointwise_input_result(grad: Tensor, weight: Tensor) -> Tensor:
    return fresh(grad, grad.shape[0], weight.shape[1], *grad.shape[2:])


@custom_op(
    "numbasep::pointwise_input_gradient",
    mutates_args=(),
    schema="(Tensor grad, Tensor weight) -> Tensor",
)
def pointwise_input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    layout, (image,) = _standing(grad)
    made: Tensor = gradients.pointwise_input_gradient(image, host(weight), layout=layout)
    return made if layout == "NCHW" else made.permute(0, 3, 1, 2)


def _pointwise_weight_result(x: Tensor, grad: Tensor) -> Tensor:
    return x.new_empty((grad.shape[1], x.shape[1], 1, 1))


@custom_op(
    "numbasep::pointwise_weight_gradient",
    mutates_args=(),
    schema="(Tensor x, Tensor grad) -> Tensor",
)
def pointwise_weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    layout, (image, grads) = _standing(x, grad)
    made: Tensor = gradients.pointwise_weight_gradient(image, grads, layout=layout)
    return made.to(x.dtype).reshape(grad.shape[1], x.shape[1], 1, 1)


# Both ------------------------------------------------------------------------------------------


def _separable_result(
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
    _check_filters("depthwise_weight", depthwise_weight, x.shape[1])
    _check_matrix("pointwise_weight", pointwise_weight, depthwise_weight.shape[0])
    _check_bias("depthwise_bias", depthwise_bias, depthwise_weight.shape[0])
    _check_bias("pointwise_bias", pointwise_bias, pointwise_weight.shape[0])
    sizes = _sizes(x, depthwise_weight.shape[2:], stride, padding, dilation)
    return fresh(x, x.shape[0], pointwise_weight.shape[0], *sizes)


@custom_op(
    "numbasep::depthwise_separable_conv2d",
    mutates_args=(),
    schema="(Tensor x, Tensor depthwise_weight, Tensor pointwise_weight, Tensor? depthwise_bias, "
    f"Tensor? pointwise_bias, {OPTIONS}, str depthwise_activation, str activation, bool? fuse) "
    "-> Tensor",
)
def depthwise_separable_conv2d(
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    pointwise_bias: Tensor | None,
    *options: Any,
) -> Tensor:
    out = _separable_result(
        x, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, *options
    )
    channelwise.depthwise_separable_conv2d(
        x.detach(),
        host(depthwise_weight),
        host(pointwise_weight),
        depthwise_bias=host(depthwise_bias),
        pointwise_bias=host(pointwise_bias),
        **_options(*options[:4]),
        depthwise_activation=options[4],
        activation=options[5],
        fuse=options[6],
        out=out,
    )
    return out


# Low-rank depthwise ----------------------------------------------------------------------------


def dense(columns: Tensor, rows: Tensor) -> Tensor:
    """Return the kernels (filters, 1, kh, kw) of factors (filters, R, kh), (filters, R, kw)."""
    return torch.einsum("fri,frj->fij", columns, rows)[:, None]


def _low_rank_result(
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


@custom_op(
    "numbasep::low_rank_depthwise_conv2d",
    mutates_args=(),
    schema=f"(Tensor x, Tensor columns, Tensor rows, Tensor? bias, {OPTIONS}, str activation) "
    "-> Tensor",
)
def low_rank_depthwise_conv2d(
    x: Tensor, columns: Tensor, rows: Tensor, bias: Tensor | None, *options: Any
) -> Tensor:
    out = _low_rank_result(x, columns, rows, bias, *options)
    channelwise.depthwise_conv2d(
        x.detach(), factors(columns, rows), host(bias), **_options(*options[:4]),
        activation=options[4], out=out,
    )  # fmt: skip
    return out


# Gradients -------------------------------------------------------------------------------------


def _depthwise_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *options, activation = inputs
    ctx.save_for_backward(x, weight, bias, output if activation in BY_RESULT else None)
    ctx.options, ctx.activation = options, activation


def _depthwise_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, result = ctx.saved_tensors
    options = ctx.options
    grad = _before(
        ctx.activation,
        grad,
        result,
        lambda: operators.depthwise_conv2d(x, weight, bias, *options, "none"),
    )
    return (*_depthwise_gradients(ctx, x, weight, grad, options), *[None] * 5)


def _depthwise_gradients(
    ctx: Any, x: Tensor, weight: Tensor, grad: Tensor, options: Sequence[Any], bias: int = 2
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients to image, weight and bias that are asked for."""
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


def _input_gradient_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, weight, _, *ctx.options = inputs
    ctx.save_for_backward(grad, weight)


def _input_gradient_backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
    grad, weight = ctx.saved_tensors
    options = ctx.options
    first = second = None
    if ctx.needs_input_grad[0]:
        first = operators.depthwise_conv2d(given, weight, None, *options, "none")
    if ctx.needs_input_grad[1]:
        second = operators.depthwise_weight_gradient(given, grad, weight.shape[2:], *options)
    return first, second, None, None, None, None, None


def _weight_gradient_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, grad, _, *ctx.options = inputs
    ctx.save_for_backward(x, grad)


def _weight_gradient_backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
    x, grad = ctx.saved_tensors
    options = ctx.options
    first = second = None
    if ctx.needs_input_grad[0]:
        first = operators.depthwise_input_gradient(grad, given, x.shape[1:], *options)
    if ctx.needs_input_grad[1]:
        second = operators.depthwise_conv2d(x, given, None, *options, "none")
    return first, second, None, None, None, None, None


def _bias_gradient_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.shape = inputs[0].shape


def _bias_gradient_backward(ctx: Any, given: Tensor) -> Tensor:
    return given[None, :, None, None].expand(ctx.shape)


def _pointwise_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.activation = inputs
    ctx.save_for_backward(x, weight, bias, output if ctx.activation in BY_RESULT else None)


def _pointwise_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, result = ctx.saved_tensors
    grad = _before(
        ctx.activation, grad, result, lambda: operators.pointwise_conv2d(x, weight, bias, "none")
    )
    asked = ctx.needs_input_grad
    return (
        operators.pointwise_input_gradient(grad, weight) if asked[0] else None,
        operators.pointwise_weight_gradient(x, grad) if asked[1] else None,
        operators.bias_gradient(grad) if asked[2] else None,
        None,
    )


def _two_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _pointwise_input_backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, Tensor | None]:
    grad, weight = ctx.saved_tensors
    asked = ctx.needs_input_grad
    return (
        operators.pointwise_conv2d(given, weight, None, "none") if asked[0] else None,
        operators.pointwise_weight_gradient(given, grad) if asked[1] else None,
    )


def _pointwise_weight_backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, grad = ctx.saved_tensors
    asked = ctx.needs_input_grad
    return (
        operators.pointwise_input_gradient(grad, given) if asked[0] else None,
        operators.pointwise_conv2d(x, given, None, "none") if asked[1] else None,
    )


def _separable_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, stride, padding, dilation, padding_mode, first, second, _ = inputs
    ctx.options = stride, padding, dilation, padding_mode
    ctx.activations = first, second
    ctx.save_for_backward(*tensors, output if second in BY_RESULT else None)


def _separable_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, depthwise, pointwise, depthwise_bias, pointwise_bias, result = ctx.saved_tensors
    first, second = ctx.activations
    options = ctx.options
    # The intermediate, again: by one operator where its activation's slope is known from it.
    in_one = first == "none" or first in BY_RESULT
    sums = operators.depthwise_conv2d(
        x, depthwise, depthwise_bias, *options, first if in_one else "none"
    )
    middle = sums if in_one else activate(first, sums)
    grad = _before(
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
        between = _before(first, between, middle, lambda: sums)
        to_x, to_depthwise, to_bias = _depthwise_gradients(
            ctx, x, depthwise, between, options, bias=3
        )
    return (to_x, to_depthwise, to_pointwise, to_bias, to_pointwise_bias, *[None] * 7)


def _low_rank_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, columns, rows, bias, *ctx.options, ctx.activation = inputs
    kept = output if ctx.activation in BY_RESULT else None
    ctx.save_for_backward(x, columns, rows, bias, kept)


def _low_rank_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, columns, rows, bias, result = ctx.saved_tensors
    options = ctx.options
    grad = _before(
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


# Batches of calls ------------------------------------------------------------------------------


def vmap_rule(operator: Any, folds: bool) -> Callable[..., tuple[Tensor, int]]:
    """Return how an operator is mapped: by more images where only they are many, else in a loop.

    folds: whether the result has an image for each image of the first argument.
    """

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


# Result, setup and backward of each; whether its images fold.
_FORMULAS: dict[str, tuple[Any, Any, Any, bool]] = {
    "depthwise_conv2d": (depthwise_result, _depthwise_setup, _depthwise_backward, True),
    "depthwise_input_gradient": (
        _input_gradient_result, _input_gradient_setup, _input_gradient_backward, True,
    ),
    "depthwise_weight_gradient": (
        _weight_gradient_result, _weight_gradient_setup, _weight_gradient_backward, False,
    ),
    "bias_gradient": (_bias_gradient_result, _bias_gradient_setup, _bias_gradient_backward, False),
    "pointwise_conv2d": (_pointwise_result, _pointwise_setup, _pointwise_backward, True),
    "pointwise_input_gradient": (
        _pointwise_input_result, _two_setup, _pointwise_input_backward, True,
    ),
    "pointwise_weight_gradient": (
        _pointwise_weight_result, _two_setup, _pointwise_weight_backward, False,
    ),
    "depthwise_separable_conv2d": (
        _separable_result, _separable_setup, _separable_backward, True,
    ),
    "low_rank_depthwise_conv2d": (_low_rank_result, _low_rank_setup, _low_rank_backward, True),
}  # fmt: skip

for _name, (_result, _setup, _backward, _folds) in _FORMULAS.items():
    _operator = f"numbasep::{_name}"
    register_fake(_operator, _result)
    register_autograd(_operator, _backward, setup_context=_setup)
    register_vmap(_operator, vmap_rule(getattr(operators, _name), _folds))

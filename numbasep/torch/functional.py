"""The operators as functions: options as torch's convolutions take them, and autocast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from numbasep.plan import checks
from numbasep.plan.channelwise import PADDING_MODES, sides
from numbasep.torch.ops import operators

Padding = int | tuple[int, int] | tuple[int, int, int, int] | str


def cast(x: Tensor, *weights: Tensor | None) -> list[Any]:
    """Return all in the dtype in which autocast lets convolutions compute; as they are without."""
    kind = x.device.type
    if kind not in ("cpu", "cuda") or not torch.is_autocast_enabled(kind):
        return [x, *weights]
    dtype = torch.get_autocast_dtype(kind)
    return [
        one
        if one is None or not one.is_floating_point() or one.dtype == torch.float64
        else one.to(dtype)
        for one in (x, *weights)
    ]


def settle(
    stride: int | tuple[int, int],
    padding: Padding,
    dilation: int | tuple[int, int],
    padding_mode: str,
    taps: tuple[int, int],
    size: tuple[int, int] | None = None,
) -> tuple[list[int], list[int], list[int], str]:
    """Return options as the operators take them.

    size: of the image, on which "same" depends where there is a stride; None refuses that.
    """
    step = checks.pair("stride", stride, 1)
    apart = checks.pair("dilation", dilation, 1)
    mode = checks.choice("padding_mode", padding_mode, tuple(PADDING_MODES))
    if size is None and padding == "same" and step != (1, 1):
        raise ValueError(
            f"padding: 'same' with stride {step} depends on the image's size; pass the numbers"
        )
    extent = (taps[0] - 1) * apart[0] + 1, (taps[1] - 1) * apart[1] + 1
    around = sides(padding, size or extent, extent, step)
    return list(step), list(around), list(apart), mode


def batched(x: Tensor) -> Tensor:
    """Return an image of three dimensions as a batch of one."""
    if x.dim() not in (3, 4):
        raise ValueError(f"x: shape {tuple(x.shape)} arrived; pass (N, C, H, W) or (C, H, W)")
    return x if x.dim() == 4 else x.unsqueeze(0)


def _size(x: Tensor, weight: Tensor, argument: str) -> tuple[Any, Any]:
    if x.dim() not in (3, 4):
        raise ValueError(f"x: shape {tuple(x.shape)} arrived; pass (N, C, H, W) or (C, H, W)")
    if weight.dim() != 4:
        raise ValueError(
            f"{argument}: shape {tuple(weight.shape)} arrived; pass (C * M, 1, kh, kw)"
        )
    return (weight.shape[2], weight.shape[3]), (x.shape[-2], x.shape[-1])


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: Padding = 0,
    dilation: int | tuple[int, int] = 1,
    padding_mode: str = "zeros",
    activation: str | None = None,
) -> Tensor:
    """``numbasep.depthwise_conv2d`` of tensors, with gradients to all three and autocast.

    Equal to ``torch.nn.functional.conv2d(x, weight, bias, stride, padding, dilation, groups=C)``
    and then the activation. x: (N, C, H, W) or (C, H, W), computed as it stands, channels_last
    too; weight: (C * M, 1, kh, kw); bias: (C * M,).

    Raises:
        TypeError, ValueError: naming the argument, what arrived and the remedy.
    """
    taps, size = _size(x, weight, "weight")
    options = settle(stride, padding, dilation, padding_mode, taps, size)
    images, weight, bias = cast(batched(x), weight, bias)
    made: Tensor = operators.depthwise_conv2d(images, weight, bias, *options, activation or "none")
    return made if x.dim() == 4 else made[0]


def pointwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None
) -> Tensor:
    """``numbasep.pointwise_conv2d`` of tensors, with gradients to all three and autocast.

    Equal to ``torch.nn.functional.conv2d(x, weight, bias)`` and then the activation. weight:
    (Cout, C, 1, 1); the rest as for ``depthwise_conv2d``.
    """
    images, weight, bias = cast(batched(x), weight, bias)
    made: Tensor = operators.pointwise_conv2d(images, weight, bias, activation or "none")
    return made if x.dim() == 4 else made[0]


def depthwise_separable_conv2d(
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    *,
    depthwise_bias: Tensor | None = None,
    depthwise_activation: str | None = None,
    pointwise_bias: Tensor | None = None,
    activation: str | None = None,
    stride: int | tuple[int, int] = 1,
    padding: Padding = 0,
    dilation: int | tuple[int, int] = 1,
    padding_mode: str = "zeros",
    fuse: bool | None = None,
) -> Tensor:
    """``numbasep.depthwise_separable_conv2d`` of tensors, with gradients to all and autocast.

    Equal to ``pointwise_conv2d(depthwise_conv2d(x, ...), ...)``. The intermediate is not kept for
    the gradients but computed again: see ``saved_bytes``. float16 and bfloat16 round it there, and
    not where the forward fuses.
    """
    taps, size = _size(x, depthwise_weight, "depthwise_weight")
    options = settle(stride, padding, dilation, padding_mode, taps, size)
    images, *weights = cast(
        batched(x), depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias
    )
    made: Tensor = operators.depthwise_separable_conv2d(
        images, *weights, *options, depthwise_activation or "none", activation or "none", fuse
    )
    return made if x.dim() == 4 else made[0]


def separable_conv2d(
    x: Tensor,
    columns: Tensor,
    rows: Tensor,
    *,
    mode: str = "same",
    boundary: str = "fill",
    fillvalue: float = 0.0,
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
) -> Tensor:
    """``numbasep.separable_conv2d`` of tensors, with gradients to images and factors, and autocast.

    Equal to ``scipy.signal.convolve2d(image, columns.T @ rows, mode, boundary, fillvalue)``, every
    stride-th row and column: it convolves (flips). x: (..., H, W); columns: (R, kh); rows: (R, kw).
    """
    step, apart = checks.pair("stride", stride, 1), checks.pair("dilation", dilation, 1)
    x, columns, rows = cast(x, columns, rows)
    made: Tensor = operators.separable_conv2d(
        x, columns, rows, mode, boundary, float(fillvalue), list(step), list(apart)
    )
    return made


def saved_bytes(
    shape: Sequence[int],
    depthwise_weight: Sequence[int],
    *,
    stride: int | tuple[int, int] = 1,
    padding: Padding = 0,
    dilation: int | tuple[int, int] = 1,
    depthwise_activation: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> int:
    """Return the bytes that a step of training need not keep between forward and backward.

    Those of the intermediate, which torch's two convolutions keep once, and again before an
    activation whose slope is known from its argument. shape: (N, C, H, W); depthwise_weight:
    (C * M, 1, kh, kw).
    """
    from numbasep.cost import cost

    filters, _, *taps = depthwise_weight
    found = cost(
        shape, 1, (taps[0], taps[1]), stride=stride, padding=padding, dilation=dilation,
        depth_multiplier=filters // shape[1], dtype=str(dtype).removeprefix("torch."),
    )  # fmt: skip
    kept = 2 if depthwise_activation in ("silu", "hardswish", "gelu") else 1
    return kept * found.intermediate_bytes

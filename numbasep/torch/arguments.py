"""What the operators are given: checks that name the argument, and results, unfilled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from numbasep.torch.memory import LARGE, storage

OPTIONS = "int[] stride, int[] padding, int[] dilation, str padding_mode"
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def stands_last(x: Tensor) -> bool:
    """Return whether an image stands channels last in memory, and not also first."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def fresh(x: Tensor, *shape: Any) -> Tensor:
    """Return an unfilled image that stands as ``x`` does."""
    last = stands_last(x)
    # A compiler's tensors have types of their own.
    if type(x) is Tensor and x.device.type == "cpu":
        size = math.prod(shape) * x.itemsize
        if size >= LARGE:
            _, c, h, w = shape
            strides = (c * h * w, 1, w * c, c) if last else (c * h * w, h * w, w, 1)
            # Not a view, which activations in place would refuse.
            return torch.empty(0, dtype=x.dtype).set_(storage(size), 0, shape, strides)
    return torch.empty(
        shape,
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )


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


def check_bias(name: str, bias: Tensor | None, count: Any) -> None:
    """Refuse a bias that has not one number a channel."""
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != count):
        raise ValueError(f"{name}: shape {tuple(bias.shape)} arrived; pass ({count},)")


def sizes(
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


def check_filters(name: str, weight: Tensor, channels: Any) -> None:
    """Refuse depthwise weights that do not go with the image."""
    filters = weight.shape[0]
    if weight.dim() != 4 or weight.shape[1] != 1 or filters == 0 or filters % channels:
        raise ValueError(
            f"{name}: shape {tuple(weight.shape)} arrived and x has {channels} channels; pass "
            "M filters for each, (C * M, 1, kh, kw), as of a convolution with groups=C"
        )


def check_matrix(name: str, weight: Tensor, channels: Any) -> None:
    """Refuse pointwise weights that do not go with the image."""
    if weight.dim() != 4 or weight.shape[1] != channels or tuple(weight.shape[2:]) != (1, 1):
        raise ValueError(
            f"{name}: shape {tuple(weight.shape)} arrived and the image has {channels} channels; "
            "pass (Cout, C, 1, 1) with groups=1"
        )


def named(
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], padding_mode: str
) -> dict[str, Any]:
    """Return the options of a depthwise operator as the package's functions take them."""
    return {
        "stride": tuple(stride),
        "padding": tuple(padding),
        "dilation": tuple(dilation),
        "padding_mode": padding_mode,
    }

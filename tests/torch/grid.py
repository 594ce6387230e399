"""The cases that the gradients are checked on, and their inputs."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor

STRIDES = ((1, 1), (2, 1), (2, 3))
DILATIONS = ((1, 1), (2, 1))
# None, as much before as after, and less; (top, bottom, left, right).
PADDINGS = ((0, 0, 0, 0), (1, 1, 1, 1), (0, 2, 1, 0))
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
MULTIPLIERS = (1, 2)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
ACTIVATIONS = ("none", "relu", "relu6", "silu", "hardswish", "gelu")

OPTIONS = [
    [list(stride), list(padding), list(dilation), mode]
    for stride, dilation, padding, mode in product(STRIDES, DILATIONS, PADDINGS, PADDING_MODES)
    # Without padding the modes are one.
    if any(padding) or mode == "zeros"
]
GRID = list(product(OPTIONS, MULTIPLIERS, LAYOUTS))


def leaf(*shape: int, layout: Any = torch.contiguous_format, dtype: Any = torch.float64) -> Tensor:
    """Return standard normal values that want a gradient."""
    made = torch.randn(shape, dtype=torch.float64).to(dtype)
    if len(shape) == 4:
        made = made.contiguous(memory_format=layout)
    return made.requires_grad_()


def depthwise(multiplier: int = 1, layout: Any = torch.contiguous_format, **more: Any) -> list[Any]:
    """Return x, weight and bias: two images of two channels, 6x5, and 3x2 taps."""
    torch.manual_seed(0)
    filters = 2 * multiplier
    x = leaf(2, 2, 6, 5, layout=layout, **more)
    return [x, leaf(filters, 1, 3, 2, **more), leaf(filters, **more)]


def separable(multiplier: int = 1, layout: Any = torch.contiguous_format, **more: Any) -> list[Any]:
    """Return x, both weights and both biases."""
    x, weight, bias = depthwise(multiplier, layout, **more)
    return [x, weight, leaf(3, 2 * multiplier, 1, 1, **more), bias, leaf(3, **more)]

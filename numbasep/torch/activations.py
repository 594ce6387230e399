"""Activations, and what they make of a gradient, by torch's own functions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


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


def before(
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

"""Activations, and what they make of a gradient, by torch's own functions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from numbasep.plan.gradients import BY_RESULT
from numbasep.torch import again


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
    if activation == "none":
        return grad
    if activation in BY_RESULT:
        assert result is not None
        of = result
    else:
        of = sums()
    at_once = again.sloped(activation, grad, of)
    if at_once is not None:
        return at_once
    aten = torch.ops.aten
    made: Tensor
    if activation == "relu":
        made = aten.threshold_backward(grad, of, 0)
    elif activation == "relu6":
        made = aten.hardtanh_backward(grad, of, 0, 6)
    elif activation == "silu":
        # aten.silu_backward has no derivative of its own.
        slope = torch.sigmoid(of)
        made = grad * slope * (1 + of * (1 - slope))
    elif activation == "hardswish":
        made = aten.hardswish_backward(grad, of)
    else:
        made = aten.gelu_backward(grad, of)
    return made

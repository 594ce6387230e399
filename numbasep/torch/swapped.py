"""What a swapped depthwise convolution is: it computes what follows it too.

The modules that follow stay where they are, with their parameters and buffers, so that state dicts
are the same before and after, and only pass on what they are given.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from numbasep.torch import functional
from numbasep.torch.host import folds, promised
from numbasep.torch.modules import DepthwiseConv2d, LowRankDepthwiseConv2d
from numbasep.torch.ops import operators


def activation_of(module: nn.Module) -> str | None:
    """Return the name of an activation module, None for one that the kernels do not know."""
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else None
    known = {
        nn.Identity: "none",
        nn.ReLU: "relu",
        nn.ReLU6: "relu6",
        nn.SiLU: "silu",
        nn.Hardswish: "hardswish",
    }
    return known.get(type(module))


def parts_of(norm: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """Return what a fused norm does after its normalisation: (drop, activation)."""
    return getattr(norm, "drop", None), getattr(norm, "act", None)


def passed(x: Tensor) -> Tensor:
    """What a module does whose work is done before it."""
    return x


class Stage:
    """A convolution, its batch norm and its activation: any of the last two may be absent."""

    def __init__(
        self, conv: nn.Module | None, norm: nn.Module | None, activation: nn.Module | None
    ) -> None:
        self.conv, self.norm, self.activation = conv, norm, activation

    @property
    def modules(self) -> list[nn.Module]:
        """All of them, in their order."""
        return [one for one in (self.conv, self.norm, self.activation) if one is not None]

    @property
    def name(self) -> str:
        """The activation's name, as the kernels have it."""
        act = self.activation
        if act is None and self.norm is not None:
            act = parts_of(self.norm)[1]
        return "none" if act is None else activation_of(act) or "none"

    @property
    def trains(self) -> bool:
        """Whether the norm takes its statistics from the batch."""
        norm: Any = self.norm
        return norm is not None and bool(norm.training or norm.running_mean is None)

    def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias with the norm's scale and shift in them.

        weight: of whatever shape, filters first.
        """
        norm: Any = self.norm
        if norm is None:
            return weight, bias
        given = [
            one
            for one in (weight, bias, norm.weight, norm.bias, norm.running_mean, norm.running_var)
            if one is not None
        ]

        def fold(*_: Tensor) -> tuple[Tensor, Tensor]:
            # In double, but for the weights: these are many, and rounded twice.
            scale = (norm.running_var.double() + norm.eps).rsqrt()
            if norm.weight is not None:
                scale = scale * norm.weight.double()
            shift = -norm.running_mean.double() * scale
            if bias is not None:
                shift = shift + bias.double() * scale
            if norm.bias is not None:
                shift = shift + norm.bias.double()
            column = scale.to(weight.dtype).reshape(-1, *[1] * (weight.dim() - 1))
            return weight * column, shift.to(weight.dtype)

        learns = torch.is_grad_enabled() and any(one.requires_grad for one in given)
        if learns or torch.compiler.is_compiling():
            return fold()
        what = norm.eps, bias is None, norm.weight is None, norm.bias is None
        found: tuple[Tensor, Tensor]
        if weight.device.type == "cpu":
            found = folds.by_content(what, fold, *given)
        else:
            found = folds.by_version(what, fold, *given) if promised() else fold()
        return found

    def by_torch(self, x: Tensor) -> Tensor:
        """Compute norm and activation as their own modules do."""
        for module in self.modules:
            if module is not self.conv:
                x = type(module).forward(module, x)
        return x


class SwappedDepthwise(DepthwiseConv2d):
    """A depthwise convolution that computes the batch norm and activation after it as well."""

    first: Stage
    second: Stage | None
    names: tuple[str, ...]

    def forward(self, x: Tensor) -> Tensor:
        """Return what the last of the modules in its place returned."""
        first, second = self.first, self.second
        if first.trains or (second is not None and second.trains):
            return self._apart(x)
        weight, bias = first.folded(self.weight, self.bias)
        if second is None:
            images, weight, bias = functional.cast(functional.batched(x), weight, bias)
            made: Tensor = operators.depthwise_conv2d(
                images, weight, bias, *self._options, first.name
            )
        else:
            conv: Any = second.conv
            matrix, shift = second.folded(conv.weight, conv.bias)
            images, *weights = functional.cast(functional.batched(x), weight, matrix, bias, shift)
            made = operators.depthwise_separable_conv2d(
                images, *weights, *self._options, first.name, second.name, None
            )
        return made if x.dim() == 4 else made[0]

    def _apart(self, x: Tensor) -> Tensor:
        """Compute every part by itself: a batch norm takes its statistics between them."""
        x = self.first.by_torch(
            operators.depthwise_conv2d(
                *functional.cast(x, self.weight, self.bias), *self._options, "none"
            )
        )
        if self.second is not None:
            conv: Any = self.second.conv
            x = self.second.by_torch(functional.pointwise_conv2d(x, conv.weight, conv.bias))
        return x

    def extra_repr(self) -> str:
        return super().extra_repr() + _also(self.names)


class SwappedLowRank(LowRankDepthwiseConv2d):
    """A depthwise convolution by factors that computes batch norm and activation after it too."""

    first: Stage
    names: tuple[str, ...]

    def forward(self, x: Tensor) -> Tensor:
        """Return what the last of the modules in its place returned."""
        first = self.first
        trains = first.trains
        columns, bias = (
            (self.columns, self.bias) if trains else first.folded(self.columns, self.bias)
        )
        images, columns, rows, bias = functional.cast(
            functional.batched(x), columns, self.rows, bias
        )
        made: Tensor = operators.low_rank_depthwise_conv2d(
            images, columns, rows, bias, *self._options, "none" if trains else first.name
        )
        made = made if x.dim() == 4 else made[0]
        return first.by_torch(made) if trains else made

    def extra_repr(self) -> str:
        return super().extra_repr() + _also(self.names)


def _also(names: tuple[str, ...]) -> str:
    return f", computes {', '.join(names)} too" if names else ""

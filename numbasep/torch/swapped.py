"""What a swapped depthwise convolution is: it computes what follows it too.

The modules that follow stay where they are, with their parameters and buffers, so that state dicts
are the same before and after, and only pass on what they are given.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from numbasep.torch import folding, functional
from numbasep.torch.direct import learns
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

    def tensors(self, weight: Tensor, bias: Tensor | None) -> folding.Stage:
        """Return what is folded: weight and bias, whose filters are first, and the norm's."""
        norm: Any = self.norm
        return weight, bias, norm.weight, norm.bias, norm.running_mean, norm.running_var

    def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias with the norm's scale and shift in them."""
        norm: Any = self.norm
        if norm is None:
            return weight, bias
        stage = self.tensors(weight, bias)
        given = [one for one in stage if one is not None]

        def fold(*_: Tensor) -> tuple[Tensor, Tensor]:
            return folding.by_torch(stage, norm.eps)

        if torch.compiler.is_compiling() or learns(tuple(given)):
            return fold()
        what = norm.eps, *(one is None for one in stage)
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


def folded(
    parts: list[tuple[Stage, Tensor, Tensor | None]],
) -> list[tuple[Tensor, Tensor | None]]:
    """Return weight and bias of each stage, of those that have norms with these in them."""
    made: list[tuple[Tensor, Tensor | None]] = [(weight, bias) for _, weight, bias in parts]
    normed = [k for k, (stage, *_) in enumerate(parts) if stage.norm is not None]
    norms: list[Any] = [parts[k][0].norm for k in normed]
    found = folding.at_once(
        [parts[k][0].tensors(*made[k]) for k in normed], [norm.eps for norm in norms]
    )
    for turn, k in enumerate(normed):
        if found is None:
            made[k] = parts[k][0].folded(*made[k])
        else:
            made[k] = found[2 * turn], found[2 * turn + 1]
    return made


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
        parts = [(first, self.weight, self.bias)]
        if second is not None:
            conv: Any = second.conv
            parts.append((second, conv.weight, conv.bias))
        (weight, bias), *others = folded(parts)
        if second is None:
            images, weight, bias = functional.cast(functional.batched(x), weight, bias)
            made: Tensor = operators.depthwise_conv2d(
                images, weight, bias, *self._options, first.name
            )
        else:
            ((matrix, shift),) = others
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
        columns, bias = self.columns, self.bias
        if not trains:
            ((columns, bias),) = folded([(first, columns, bias)])
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

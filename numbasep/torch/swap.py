"""``swap``: a network's depthwise layers exchanged for the package's, in place, and a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from numbasep.cost import LayerCost, cost
from numbasep.torch.modules import DepthwiseConv2d
from numbasep.torch.swapped import (
    Stage,
    SwappedDepthwise,
    SwappedLowRank,
    activation_of,
    parts_of,
    passed,
)


@dataclass(frozen=True, slots=True)
class Layer:
    """One depthwise convolution of a model.

    name: of the module. takes: names of modules whose work it does too. swapped: whether it is.
    why: the reason where it was not swapped, or where the pointwise after it stays by itself.
    rank, error: of factorised kernels, as ``factorise`` promises them.
    cost: of the layer; None where no example input was given, or none came by.
    """

    name: str
    takes: tuple[str, ...] = ()
    swapped: bool = True
    pointwise: str | None = None
    why: str = ""
    rank: int | None = None
    error: float | None = None
    cost: LayerCost | None = None

    @property
    def before(self) -> tuple[int, int]:
        """Bytes and multiply-adds as separate convolutions."""
        if self.cost is None:
            return 0, 0
        found = self.cost.two_launches if self.pointwise else self.cost.depthwise
        return found.bytes, found.multiply_adds

    @property
    def after(self) -> tuple[int, int]:
        """Bytes and multiply-adds as swapped."""
        if self.cost is None or not self.swapped:
            return self.before
        found = self.cost.separable if self.pointwise else self.cost.depthwise
        if self.cost.low_rank is not None:
            found = self.cost.low_rank
        return found.bytes, found.multiply_adds


@dataclass(frozen=True, slots=True)
class Report:
    """What ``swap`` did, layer by layer. notes: what concerns the whole model."""

    layers: tuple[Layer, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def swapped(self) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.swapped)

    def __str__(self) -> str:
        pairs = [layer for layer in self.swapped if layer.pointwise]
        lines = [
            f"{len(self.swapped)} of {len(self.layers)} depthwise layers swapped, "
            f"{len(pairs)} with the pointwise after them",
            *self.notes,
        ]
        for layer in self.layers:
            text = f"  {layer.name:<28} "
            text += "swapped" if layer.swapped else "left as it was"
            if layer.takes:
                text += f", with {', '.join(layer.takes)}"
            if layer.rank is not None:
                text += f", rank {layer.rank}, error {layer.error:.2g} x sum|K| max|x|"
            lines.append(text + (f": {layer.why}" if layer.why else ""))
        if any(layer.cost for layer in self.layers):
            for index, what in enumerate(("bytes", "multiply-adds")):
                was = sum(layer.before[index] for layer in self.layers)
                now = sum(layer.after[index] for layer in self.layers)
                lines.append(f"{what:<14} {was:,} before, {now:,} after ({was / now:.2f} x)")
        return "\n".join(lines)


def swap(
    model: nn.Module, *, low_rank_tol: float | None = None, example: Tensor | None = None
) -> Report:
    """Exchange the depthwise convolutions of a model for the package's, in place.

    A depthwise convolution takes the batch norm (in eval mode) and activation after it into one
    operator, and the pointwise convolution after those, with its own, where nothing else stands
    between. Modules and their parameters stay where they are: state dicts load both ways. What
    stands between is known from ``torch.fx``, or, where it cannot trace the model, from the order
    in an ``nn.Sequential``; where neither says, the depthwise convolution alone is exchanged. After
    ``model.train()`` batch norms take the batch's statistics, and everything is computed part by
    part; the swap itself takes pairs only with their norms in eval mode.

    Args:
        model: on one device. Swap a copy to compare.
        low_rank_tol: kernels of 7x7 and larger are replaced by the fewest row and column passes
            within ``tol * sum|K| * max|x|`` of them, where that needs fewer multiply-adds.
        example: an input, with which the model is run once, in eval mode, for the report's bytes
            and multiply-adds.

    Returns:
        A report, for ``print``: what was swapped, what was not and why, costs before and after.

    Raises:
        TypeError, ValueError: naming the argument, what arrived and the remedy. Nothing is swapped.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: {type(model).__name__} arrived; pass a torch.nn.Module")
    if low_rank_tol is not None and not 0 <= low_rank_tol < 1:
        raise ValueError(f"low_rank_tol: {low_rank_tol!r} arrived; pass a number in [0, 1)")
    devices = sorted({str(one.device) for one in (*model.parameters(), *model.buffers())})
    if len(devices) > 1:
        raise ValueError(
            f"model: parameters on {' and '.join(devices)} arrived; move the model to one of them"
        )
    modules = dict(model.named_modules())
    shapes = {} if example is None else _shapes(model, modules, example)
    after, notes = _successors(model, modules)
    layers = []
    for name, module in list(modules.items()):
        if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels:
            layers.append(_exchange(model, modules, name, after, low_rank_tol, shapes.get(name)))
    return Report(tuple(layers), notes)


def _shapes(
    model: nn.Module, modules: dict[str, nn.Module], example: Tensor
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the images that convolutions are given."""
    found: dict[str, tuple[int, ...]] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, given, name=name: found.setdefault(name, tuple(given[0].shape)) and None
        )
        for name, module in modules.items()
        if isinstance(module, nn.Conv2d)
    ]
    modes = [(module, module.training) for module in modules.values()]
    try:
        with torch.no_grad():
            model.eval()(example)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return found


class _Tracer(fx.Tracer):
    """Norms and convolutions are leaves, subclasses of other libraries too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (nn.BatchNorm2d, nn.Conv2d)) or super().is_leaf_module(
            m, module_qualified_name
        )


@dataclass(frozen=True, slots=True)
class _Next:
    """What follows a module: the names of modules, or why there is none to take."""

    name: str | None
    why: str = ""


def _successors(
    model: nn.Module, modules: dict[str, nn.Module]
) -> tuple[dict[str, _Next], tuple[str, ...]]:
    """Return what alone uses the result of each module, and notes for the report."""
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # Whatever the model's forward raises on what is no tensor.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return dict(_adjacent(modules)), (
            f"torch.fx cannot trace the model ({reason}): what stands between is known in "
            "nn.Sequential only",
        )
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    found = {}
    for node in graph.nodes:
        if node.op != "call_module":
            continue
        name = str(node.target)
        users = list(node.users)
        if calls[name] > 1:
            found[name] = _Next(None, f"{name} is called {calls[name]} times")
        elif len(users) != 1:
            found[name] = _Next(None, f"{len(users)} use its result{_excited(users, modules)}")
        elif users[0].op != "call_module":
            what = getattr(users[0].target, "__name__", users[0].target)
            found[name] = _Next(None, f"{what} stands after {name}")
        elif calls[str(users[0].target)] > 1:
            found[name] = _Next(None, f"{users[0].target} is called more than once")
        else:
            found[name] = _Next(str(users[0].target))
    return found, ()


def _excited(users: list[fx.Node], modules: dict[str, nn.Module]) -> str:
    """Return words where squeeze-excite uses a result: a mean, and a product by what became."""
    targets = {getattr(user.target, "__name__", str(user.target)) for user in users}
    pools = any(
        isinstance(modules.get(str(user.target)), nn.AdaptiveAvgPool2d)
        for user in users
        if user.op == "call_module"
    )
    means = pools or targets & {"mean", "adaptive_avg_pool2d"}
    return ", squeeze-excite among them" if means and targets & {"mul", "imul"} else ""


def _adjacent(modules: dict[str, nn.Module]) -> Iterator[tuple[str, _Next]]:
    for name, module in modules.items():
        if type(module).forward is nn.Sequential.forward:
            children = [f"{name}.{one}".lstrip(".") for one, _ in module.named_children()]
            for first, second in pairwise(children):
                yield first, _Next(second)


_UNKNOWN = _Next(None, "what follows is not known")


def _exchange(
    model: nn.Module,
    modules: dict[str, nn.Module],
    name: str,
    after: dict[str, _Next],
    tol: float | None,
    shape: tuple[int, ...] | None,
) -> Layer:
    """Exchange one depthwise convolution for what computes it and what follows."""
    conv: Any = modules[name]
    if type(conv).forward is not nn.Conv2d.forward or "forward" in vars(conv):
        return Layer(name, swapped=False, why=f"{type(conv).__name__} computes in its own way")
    if not conv.weight.dtype.is_floating_point:
        return Layer(name, swapped=False, why=f"its weights are {conv.weight.dtype}, no floats")
    if any(vars(conv)[hooks] for hooks in ("_forward_hooks", "_forward_pre_hooks")):
        return Layer(name, swapped=False, why="it has hooks; remove them first")
    first, last, why = _stage(modules, name, after)
    takes = [] if last == name else _path(after, name, last)
    second: Stage | None = None
    pointwise = None
    if not why:
        following = after.get(last, _UNKNOWN)
        candidate = None if following.name is None else modules[following.name]
        while isinstance(candidate, nn.Identity):
            following = after.get(following.name or "", _UNKNOWN)
            candidate = None if following.name is None else modules[following.name]
        reason = following.why if candidate is None else _no_pointwise(candidate, conv)
        if reason or following.name is None:
            why = reason
        else:
            pointwise = following.name
            second, end, stays = _stage(modules, pointwise, after)
            takes = _path(after, name, end)
            why = stays and f"after the pointwise, {stays}"
    swapped: SwappedDepthwise | SwappedLowRank
    factored = None if tol is None else _low_rank(conv, tol)
    if factored is not None:
        swapped = factored
        takes = [] if last == name else _path(after, name, last)
        why = "row and column passes are an operator without a pointwise" if pointwise else why
        made = Layer(name, tuple(takes), why=why, rank=factored.rank, error=factored.error)
    else:
        swapped = SwappedDepthwise.of(conv)
        swapped.second = second
        made = Layer(name, tuple(takes), pointwise=pointwise, why=why)
    swapped.first, swapped.names = first, made.takes
    first.conv = None
    for one in takes:
        modules[one].forward = passed
    _put(model, name, swapped)
    if shape is None:
        return made
    return replace(made, cost=_cost(conv, modules, made, shape))


def _path(after: dict[str, _Next], first: str, last: str) -> list[str]:
    """Return the names after ``first``, to ``last``."""
    found = []
    while first != last:
        first = after[first].name or last
        found.append(first)
    return found


def _stage(
    modules: dict[str, nn.Module], name: str, after: dict[str, _Next]
) -> tuple[Stage, str, str]:
    """Return a convolution with what follows and can be computed with it, and the last's name.

    And why what follows cannot be, where it is a norm or an activation.
    """
    stage = Stage(modules[name], None, None)
    last = name
    while True:
        following = after.get(last, _UNKNOWN).name
        module: Any = None if following is None else modules[following]
        if following is None or _hooked(module):
            return stage, last, ""
        if isinstance(module, nn.Identity):
            # Taken only on the way to something.
            beyond = after.get(following, _UNKNOWN).name
            if beyond is None or not isinstance(modules[beyond], nn.BatchNorm2d):
                return stage, last, ""
            last = following
            continue
        if isinstance(module, nn.BatchNorm2d):
            if stage.norm is not None or stage.activation is not None:
                return stage, last, ""
            if module.training or module.running_mean is None:
                return (
                    stage,
                    last,
                    (f"{following} is a batch norm in training mode; call model.eval() first"),
                )
            drop, act = parts_of(module)
            if drop is not None and not isinstance(drop, nn.Identity):
                return stage, last, f"{following} drops values"
            if act is not None and activation_of(act) is None:
                return stage, last, f"{following} has the activation {type(act).__name__}"
            stage.norm, last = module, following
        elif activation_of(module) is not None:
            if stage.activation is not None or stage.name != "none":
                return stage, last, ""
            stage.activation, last = module, following
        else:
            return stage, last, ""


def _hooked(module: nn.Module) -> bool:
    return any(vars(module)[hooks] for hooks in ("_forward_hooks", "_forward_pre_hooks"))


def _no_pointwise(module: nn.Module, conv: nn.Conv2d) -> str:
    """Return why a module is no pointwise convolution of a depthwise one's result, or nothing."""
    if not isinstance(module, nn.Conv2d):
        return f"{type(module).__name__} stands after it"
    plain = (
        type(module).forward is nn.Conv2d.forward
        and tuple(module.kernel_size) == tuple(module.stride) == (1, 1)
        and module.groups == 1
        and module.padding in ((0, 0), "same", "valid")
        and not _hooked(module)
    )
    if not plain:
        return f"the {type(module).__name__} after it is no plain pointwise convolution"
    if module.weight.dtype != conv.weight.dtype:
        return f"the pointwise weights are {module.weight.dtype} and its own {conv.weight.dtype}"
    return ""


def _low_rank(conv: nn.Conv2d, tol: float) -> SwappedLowRank | None:
    """Return a large kernel's convolution by factors, where they pay."""
    high, wide = conv.kernel_size
    if min(high, wide) < 7:
        return None
    made: Any = SwappedLowRank.of(conv, tol=tol)
    return made if made.rank * (high + wide) < high * wide else None


def _cost(
    conv: nn.Conv2d, modules: dict[str, nn.Module], layer: Layer, shape: tuple[int, ...]
) -> LayerCost:
    second: Any = None if layer.pointwise is None else modules[layer.pointwise]
    padding: Any = conv.padding
    return cost(
        shape if len(shape) == 4 else (1, *shape),
        None if second is None else second.out_channels,
        (conv.kernel_size[0], conv.kernel_size[1]),
        stride=(conv.stride[0], conv.stride[1]),
        padding=padding if isinstance(padding, str) else (padding[0], padding[1]),
        dilation=(conv.dilation[0], conv.dilation[1]),
        depth_multiplier=conv.out_channels // conv.in_channels,
        rank=layer.rank,
        bias=conv.bias is not None,
        dtype=str(conv.weight.dtype).removeprefix("torch."),
    )


def _put(model: nn.Module, name: str, module: DepthwiseConv2d) -> None:
    parent, _, own = name.rpartition(".")
    model.get_submodule(parent).register_module(own, module)

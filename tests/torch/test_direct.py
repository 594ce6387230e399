"""Operators that are called at once: only where torch has nothing to do about them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, profiler
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import numbasep.torch as nt
from numbasep.torch import direct, registry
from tests.torch.test_operators import LAYOUTS, samples

X, WEIGHT = torch.ones(1, 2, 5, 5), torch.ones(2, 1, 3, 3)


class Calls(TorchDispatchMode):
    """Counts the operators of the package that torch sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.fixture
def went(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each call since was one at once."""
    found: list[bool] = []

    def noted(arguments: tuple[Any, ...]) -> bool:
        found.append(direct.direct(arguments))
        return found[-1]

    monkeypatch.setattr(registry, "direct", noted)
    return found


def test_it_is_known_here() -> None:
    """Of this version of torch; with another all goes through it, and takes longer."""
    assert direct._known


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_bits_are_those_of_the_operator(layout: Any, went: list[bool]) -> None:
    for name, given in samples(layout).items():
        plain = [one.detach() if isinstance(one, Tensor) else one for one in given]
        at_once = getattr(registry.operators, name)(*plain)
        through = getattr(torch.ops.numbasep, name)(*plain)
        assert torch.equal(at_once, through)
        assert at_once.stride() == through.stride()
        assert at_once.requires_grad is False
    assert went == [True] * len(samples(layout))


def leaf() -> Tensor:
    return WEIGHT.clone().requires_grad_()


def test_gradients_only_where_they_are_asked_for(went: list[bool]) -> None:
    assert nt.depthwise_conv2d(X, WEIGHT).grad_fn is None
    assert nt.depthwise_conv2d(X, leaf()).grad_fn is not None
    with torch.no_grad():
        assert nt.depthwise_conv2d(X, leaf()).grad_fn is None
    with torch.inference_mode():
        assert nt.depthwise_conv2d(X, leaf()).is_inference()
    assert went == [True] * 4


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_gradients_are_those_of_the_operator(layout: Any, went: list[bool]) -> None:
    """And those of the gradients: to all that the operator has gradients to."""
    for name, given in samples(layout).items():
        found = []
        for operator in (getattr(registry.operators, name), getattr(torch.ops.numbasep, name)):
            plain = [one.detach() if isinstance(one, Tensor) else one for one in given]
            leaves = [one.requires_grad_() for one in plain if isinstance(one, Tensor)]
            made = operator(*plain)
            grad = torch.linspace(-1, 1, made.numel()).reshape(made.shape).requires_grad_()
            first = torch.autograd.grad(made, leaves, grad, create_graph=True, allow_unused=True)
            total = sum(one.square().sum() for one in first if one is not None)
            second = torch.autograd.grad(total, [*leaves, grad], allow_unused=True)
            found.append([*first, *second])
        for at_once, through in zip(*found, strict=True):
            assert (at_once is None) == (through is None)
            assert at_once is None or torch.equal(at_once, through)
    assert went
    assert all(went)


def watchers() -> list[tuple[str, Callable[[], Any]]]:
    return [
        ("dispatch", Calls),
        ("function", Functions),
        ("forward_ad", forward_ad.dual_level),
        ("profiler", lambda: profiler.profile(use_kineto=True)),
    ]


@pytest.mark.parametrize(("name", "watch"), watchers(), ids=[name for name, _ in watchers()])
def test_through_torch_where_it_watches(
    name: str, watch: Callable[[], Any], went: list[bool]
) -> None:
    with torch.no_grad(), watch() as watching:
        nt.depthwise_conv2d(X, WEIGHT)
    assert went == [False]
    if name == "dispatch":
        assert "numbasep.depthwise_conv2d.default" in watching.seen
    if name == "profiler":
        assert any("numbasep" in event.key for event in watching.key_averages())


def test_through_torch_where_it_transforms_or_traces(went: list[bool]) -> None:
    images = torch.stack([X, 2 * X])
    mapped = torch.func.vmap(lambda x: nt.depthwise_conv2d(x, WEIGHT))(images)
    assert torch.equal(mapped[1], 2 * mapped[0])
    assert not any(went)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(lambda x: nt.depthwise_conv2d(x, WEIGHT), X, check_trace=False)
    assert "numbasep::depthwise_conv2d" in str(traced.graph)
    assert not any(went)


def test_tensors_of_other_kinds_go_through_torch(went: list[bool]) -> None:
    class Named(Tensor):
        pass

    nt.depthwise_conv2d(X.as_subclass(Named), WEIGHT)
    assert went == [False]


def test_tensors_that_only_look_plain_go_through_torch(went: list[bool]) -> None:
    """Without memory, negative, or one for many: of a vectorised Jacobian's backward pass."""
    nt.depthwise_conv2d(torch._efficientzerotensor((1, 2, 5, 5)), WEIGHT)
    nt.depthwise_conv2d(torch._neg_view(X), WEIGHT)
    assert went == [False] * 2
    made = {
        vectorize: torch.autograd.functional.jacobian(
            lambda x: nt.depthwise_conv2d(x, WEIGHT), X, vectorize=vectorize
        )
        for vectorize in (False, True)
    }
    assert torch.equal(made[False], made[True])


def test_wrong_use_is_refused_in_the_same_words() -> None:
    for weight, error in ((WEIGHT.double(), TypeError), (torch.ones(3, 1, 3, 3), ValueError)):
        with torch.no_grad(), pytest.raises(error) as at_once:
            nt.depthwise_conv2d(X, weight)
        with pytest.raises(error) as through:
            nt.depthwise_conv2d(X, weight.clone().requires_grad_())
        assert str(at_once.value) == str(through.value)

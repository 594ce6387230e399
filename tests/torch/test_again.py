"""Calls with the shapes and options of one before: the same bits as the first, and never more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from numbasep.torch import again, folding, ops
from tests.torch import grid

PLAIN: list[Any] = [[1, 1], [1, 1, 1, 1], [1, 1], "zeros"]
STRIDED: list[Any] = [[2, 2], [1, 1, 1, 1], [1, 1], "zeros"]
U, U_FLOAT32 = 2.0**-53, 2.0**-24


def layer(layout: Any, dtype: Any = torch.float32) -> list[Tensor]:
    """Return x, both weights and both biases."""
    torch.manual_seed(0)
    x = grid.leaf(2, 6, 9, 8, layout=layout, dtype=dtype)
    shapes = (6, 1, 3, 3), (5, 6, 1, 1), (6,), (5,)
    return [x, *[grid.leaf(*shape, dtype=dtype) for shape in shapes]]


def separable(given: list[Any], *options: Any) -> Tensor:
    x, weight, matrix, bias, shift = given
    made: Tensor = ops.operators.depthwise_separable_conv2d(
        x, weight, matrix, bias, shift, *options, None
    )
    return made


def gradients(made: Tensor, given: list[Any]) -> list[Tensor]:
    grad = torch.linspace(-1, 1, made.numel(), dtype=made.dtype).reshape(made.shape)
    grad = torch.empty_like(made).copy_(grad)
    return list(torch.autograd.grad(made, [one for one in given if one is not None], grad))


@pytest.mark.parametrize("layout", grid.LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_bits_are_those_of_the_functions(
    layout: Any, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options in (PLAIN, STRIDED):
        for first, second in (("none", "none"), ("relu6", "relu"), ("relu", "none")):
            for biased in (False, True):
                given: list[Any] = layer(layout, dtype)
                if not biased:
                    given[3:] = None, None
                with monkeypatch.context() as patch:
                    patch.setattr(again, "key", lambda *_: None)
                    expected = separable(given, *options, first, second)
                    wanted = gradients(expected, given)
                for _ in range(2):
                    made = separable(given, *options, first, second)
                    assert torch.equal(made, expected)
                    assert made.stride() == expected.stride()
                    for one, other in zip(gradients(made, given), wanted, strict=True):
                        assert torch.equal(one, other)
                        assert one.stride() == other.stride()


@pytest.mark.parametrize("layout", grid.LAYOUTS, ids=str)
def test_it_follows_the_values(layout: Any) -> None:
    x, weight, _, bias, _ = (one.detach() for one in layer(layout))
    for _ in range(2):
        ops.operators.depthwise_conv2d(x, weight, bias, *PLAIN, "none")
    before = ops.operators.depthwise_conv2d(x, weight, bias, *PLAIN, "none")
    weight.mul_(2)
    bias.mul_(2)
    assert torch.equal(ops.operators.depthwise_conv2d(x, weight, bias, *PLAIN, "none"), 2 * before)
    x.mul_(4)
    bias.mul_(4)
    assert torch.equal(ops.operators.depthwise_conv2d(x, weight, bias, *PLAIN, "none"), 8 * before)


def test_every_difference_but_of_elements_tells_calls_apart() -> None:
    x, weight, matrix, bias, shift = layer(torch.contiguous_format)
    others: list[tuple[Any, ...]] = [
        ((x, weight, bias), (*PLAIN, "none")),
        ((x, weight, None), (*PLAIN, "none")),
        ((x, weight, bias), (*STRIDED, "none")),
        ((x, weight, bias), (*PLAIN, "relu")),
        ((x[:1], weight, bias), (*PLAIN, "none")),
        ((x.double(), weight.double(), bias.double()), (*PLAIN, "none")),
        ((x.contiguous(memory_format=torch.channels_last), weight, bias), (*PLAIN, "none")),
        ((x, weight, matrix, bias, shift), (*PLAIN, "none", "none", None)),
        ((x, weight, matrix, bias, shift), (*PLAIN, "none", "none", True)),
    ]
    keys = [again.key(tensors, options) for tensors, options in others]
    assert None not in keys
    assert len(set(keys)) == len(others)


def test_what_is_not_known_again() -> None:
    """Tensors whose elements are not where a kernel would read them."""
    x, weight, _, bias, _ = (one.detach() for one in layer(torch.contiguous_format))
    strided = torch.empty(12)[::2].copy_(bias)
    half = [one.half() for one in (x, weight, bias)]
    for given in (
        (x, weight, strided),
        (x.transpose(2, 3), weight, bias),
        (x, torch._neg_view(weight), bias),
        (torch._neg_view(x), weight, bias),
        (x[:0], weight, bias),
        half,
    ):
        assert again.key(tuple(given), (*PLAIN, "none")) is None
        made = ops.operators.depthwise_conv2d(*given, *PLAIN, "none")
        dense = [one.clone(memory_format=torch.contiguous_format) for one in given]
        assert torch.equal(made, ops.operators.depthwise_conv2d(*dense, *PLAIN, "none"))


@pytest.mark.parametrize("layout", grid.LAYOUTS, ids=str)
def test_gradients_that_stand_otherwise(layout: Any) -> None:
    """As those of a sum do, whose elements are all one."""
    given = layer(layout)
    made = separable(given, *PLAIN, "relu6", "none")
    found = torch.autograd.grad(made.sum(), given)
    made = separable(given, *PLAIN, "relu6", "none")
    for one, other in zip(
        found, torch.autograd.grad(made, given, torch.ones_like(made)), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("activation", grid.ACTIVATIONS)
def test_activations(activation: str) -> None:
    given = grid.depthwise()
    for options in (PLAIN, STRIDED):
        assert gradcheck(
            lambda *one, o=options: ops.operators.depthwise_conv2d(*one, *o, activation), given
        )


def test_gradients_to_some_only() -> None:
    for asked in ((0,), (1,), (2,), (3,), (4,), (0, 4), (1, 2)):
        given = layer(torch.contiguous_format)
        everything = gradients(separable(given, *PLAIN, "relu6", "none"), given)
        some = [one if k in asked else one.detach() for k, one in enumerate(given)]
        made = separable(some, *PLAIN, "relu6", "none")
        grad = torch.linspace(-1, 1, made.numel()).reshape(made.shape)
        found = torch.autograd.grad(made, [given[k] for k in asked], grad)
        for one, k in zip(found, asked, strict=True):
            assert torch.equal(one, everything[k])


def stage(filters: int, shape: tuple[int, ...], dtype: Any, absent: tuple[int, ...]) -> list[Any]:
    torch.manual_seed(filters)
    made: list[Any] = [grid.leaf(filters, *shape, dtype=dtype)]
    made += [grid.leaf(filters, dtype=dtype) for _ in range(4)]
    made.append((torch.rand(filters, dtype=torch.float64) + 0.2).to(dtype))
    made[4] = made[4].detach()
    return [None if k in absent else one for k, one in enumerate(made)]


ABSENT: tuple[tuple[int, ...], ...] = ((), (1,), (2,), (3,), (1, 2, 3))


@pytest.mark.parametrize("absent", ABSENT, ids=str)
def test_folded_norms(absent: tuple[int, ...]) -> None:
    """Equal to torch's own functions but for the last bits of float64, and one more rounding."""
    first = stage(300, (1, 3, 3), torch.float32, absent)
    second = stage(7, (300, 1, 1), torch.float32, absent)
    found = folding.at_once([tuple(first), tuple(second)], [1e-3, 1e-5])
    assert found is not None
    expected = [*folding.by_torch(tuple(first), 1e-3), *folding.by_torch(tuple(second), 1e-5)]
    for one, other in zip(found, expected, strict=True):
        assert ((one - other).abs() <= 2 * U_FLOAT32 * other.abs() + 64 * U).all()
    plain = [[None if one is None else one.detach() for one in part] for part in (first, second)]
    for one, other in zip(
        folding.at_once([tuple(part) for part in plain], [1e-3, 1e-5]), found, strict=True
    ):
        assert torch.equal(one, other)
        assert not one.requires_grad


@pytest.mark.parametrize("absent", ABSENT, ids=str)
def test_gradients_of_folded_norms(absent: tuple[int, ...]) -> None:
    parts = [stage(4, (1, 3, 2), torch.float64, absent), stage(3, (4, 1, 1), torch.float64, ())]
    tensors = [one for part in parts for one in part]
    leaves = [one for one in tensors if one is not None and one.requires_grad]

    def folded(*given: Tensor) -> Any:
        values = iter(given)
        made = [next(values) if one is not None and one.requires_grad else one for one in tensors]
        found = folding.at_once([tuple(made[:6]), tuple(made[6:])], [1e-3, 1e-5])
        assert found is not None
        return found

    assert gradcheck(folded, leaves)
    assert gradgradcheck(folded, leaves)

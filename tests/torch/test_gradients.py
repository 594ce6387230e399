"""Gradients against differences, in float64, over every option; and gradients of gradients.

The grid: 3 strides x 2 dilations x (2 paddings x 4 modes + 1 without) x 2 multipliers x 2 layouts
= 216 cases of the depthwise operator and as many of the fused one; each activation by itself; the
spatial operator over 3 modes x 5 boundaries x 2 strides.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from numbasep.boundary import NAMES
from numbasep.torch import ops, spatial
from tests.torch import grid

PLAIN: list[Any] = [[1, 1], [1, 1, 1, 1], [1, 1], "zeros"]


def check(function: Any, inputs: list[Any], twice: bool = False) -> None:
    """Compare every element of the Jacobian with differences where ``twice``, else a projection."""
    assert gradcheck(function, inputs, fast_mode=not twice)
    if twice:
        assert gradgradcheck(function, inputs)


def test_the_grid_is_as_large_as_it_says() -> None:
    assert len(grid.GRID) == 216


@pytest.mark.parametrize("multiplier", grid.MULTIPLIERS)
@pytest.mark.parametrize("layout", grid.LAYOUTS, ids=str)
def test_depthwise(multiplier: int, layout: Any) -> None:
    inputs = grid.depthwise(multiplier, layout)
    for options in grid.OPTIONS:
        check(lambda *given, o=options: ops.operators.depthwise_conv2d(*given, *o, "none"), inputs)


@pytest.mark.parametrize("multiplier", grid.MULTIPLIERS)
@pytest.mark.parametrize("layout", grid.LAYOUTS, ids=str)
def test_separable(multiplier: int, layout: Any) -> None:
    inputs = grid.separable(multiplier, layout)
    for options in grid.OPTIONS:
        check(
            lambda *given, o=options: ops.operators.depthwise_separable_conv2d(
                *given, *o, "none", "none", None
            ),
            inputs,
        )


@pytest.mark.parametrize("activation", grid.ACTIVATIONS)
def test_activations(activation: str) -> None:
    inputs = grid.separable()
    for first, second in ((activation, "none"), ("none", activation), (activation, activation)):
        check(
            lambda *given, f=first, s=second: ops.operators.depthwise_separable_conv2d(
                *given, *PLAIN, f, s, True
            ),
            inputs,
        )
    inputs = grid.depthwise()
    check(lambda *given: ops.operators.depthwise_conv2d(*given, *PLAIN, activation), inputs)
    x = inputs[0]
    weight = grid.leaf(3, 2, 1, 1)
    check(lambda *given: ops.operators.pointwise_conv2d(*given, activation), [x, weight, None])


@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
def test_gradients_of_gradients(activation: str) -> None:
    torch.manual_seed(1)
    options: list[Any] = [[2, 1], [1, 0, 0, 1], [1, 2], "replicate"]
    x, weight, bias = grid.leaf(1, 2, 4, 4), grid.leaf(2, 1, 2, 2), grid.leaf(2)
    check(
        lambda *given: ops.operators.depthwise_conv2d(*given, *options, activation),
        [x, weight, bias],
        twice=True,
    )
    check(
        lambda *given: ops.operators.depthwise_separable_conv2d(
            *given, *options, activation, activation, None
        ),
        [x, weight, grid.leaf(2, 2, 1, 1), bias, grid.leaf(2)],
        twice=True,
    )


def test_low_rank() -> None:
    x, _, bias = grid.depthwise()
    columns, rows = grid.leaf(2, 2, 3), grid.leaf(2, 2, 2)
    for options in grid.OPTIONS[::5]:
        check(
            lambda *given, o=options: ops.operators.low_rank_depthwise_conv2d(*given, *o, "silu"),
            [x, columns, rows, bias],
        )


@pytest.mark.parametrize("boundary", NAMES)
@pytest.mark.parametrize("mode", ["full", "valid", "same"])
def test_spatial(mode: str, boundary: str) -> None:
    torch.manual_seed(0)
    # Taps that reach past a whole image on both sides, but where that is refused.
    inputs = [grid.leaf(2, 5, 6), grid.leaf(2, 5), grid.leaf(2, 2)]
    for stride, dilation in product(([1, 1], [2, 3]), ([1, 1], [1, 4])):
        check(
            lambda *given, s=stride, d=dilation: spatial.operators.separable_conv2d(
                *given, mode, boundary, 0.5 * (boundary == "fill"), s, d
            ),
            inputs,
        )
    check(
        lambda *given: spatial.operators.separable_conv2d(
            *given, mode, boundary, 0.5 * (boundary == "fill"), [2, 1], [1, 1]
        ),
        [grid.leaf(1, 3, 4), grid.leaf(1, 3), grid.leaf(1, 2)],
        twice=True,
    )

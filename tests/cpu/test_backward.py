"""Backward passes as one job: the bits of the gradients' own functions, one after the other."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import special

from numbasep.cpu import backward, channel_sums, depthwise, pointwise, slopes
from numbasep.cpu.depthwise_gradient import run_input_gradient, run_weight_gradient
from numbasep.cpu.pointwise_gradient import run_weight_gradient as run_matrix_gradient
from numbasep.plan import channelwise as planner

Array = np.ndarray[Any, Any]
LAYOUTS = ("NCHW", "NHWC")


def noise(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def image(layout: str, n: int, c: int, h: int, w: int, seed: int = 0) -> Array:
    return noise(seed, *((n, c, h, w) if layout == "NCHW" else (n, h, w, c)))


def sloped(activation: str, grad: Array, of: Array) -> Array:
    out = np.full_like(grad, np.nan)
    slopes.job(activation, "float32", grad.size, 2).run(grad, of, out)
    return out


def depthwise_plan(layout: str, activation: str, stride: int, k: int, size: int) -> Any:
    shape = image(layout, 2, 11, size, size + 2).shape
    return planner.depthwise(
        shape, "float32", 11, (k, k), 0, stride=stride, padding=k // 2, layout=layout,
        activation=activation,
    )  # fmt: skip


def of_result(plan: Any, layout: str, channels: int, seed: int) -> Array:
    y, x = (plan.y.out, plan.x.out)
    return image(layout, plan.batch, channels, y, x, seed)


def in_turn(
    plan: Any, x: Array, grad: Array, taps: Array, bias: Array | None, result: Array | None
) -> dict[str, Array]:
    """Return the gradients of a depthwise convolution by its functions."""
    plain = replace(plan, activation="none")
    if plan.activation != "none":
        of = result
        if plan.activation not in ("relu", "relu6"):
            of = np.empty_like(grad)
            shift = np.zeros(plan.filters, np.float32) if bias is None else bias
            depthwise.run_depthwise(plain, x, taps, shift, of)
        assert of is not None
        grad = sloped(plan.activation, grad, of)
    to_image, to_taps = np.empty_like(x), np.empty_like(taps)
    to_bias = np.empty(plan.filters, np.float32)
    run_input_gradient(plain, grad, taps, to_image)
    run_weight_gradient(plain, x, grad, to_taps)
    channel_sums.run(plain, grad, to_bias)
    return {"to_image": to_image, "to_taps": to_taps, "to_bias": to_bias}


def poisoned(*arrays: Array) -> list[Array]:
    return [np.full_like(one, np.nan) for one in arrays]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "silu", "hardswish", "gelu"])
def test_depthwise(layout: str, activation: str) -> None:
    for stride, k, biased, threads in product((1, 2), (3, 5), (False, True), (1, 2)):
        plan = depthwise_plan(layout, activation, stride, k, 9)
        x, grad = image(layout, 2, 11, 9, 11), of_result(plan, layout, 11, 1)
        taps, bias = noise(2, 11, k, k), noise(3, 11)
        result = np.empty_like(grad)
        depthwise.run_depthwise(plan, x, taps, bias if biased else np.zeros_like(bias), result)
        expected = in_turn(plan, x, grad, taps, bias if biased else None, result)
        job = backward.of_depthwise(plan, biased, (True, True, True), threads)
        assert job is not None
        found = poisoned(x, taps, bias)
        job.run(x, grad, taps, bias, result, *found)
        for one, other in zip(found, expected.values(), strict=True):
            assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("first", ["none", "relu", "relu6"])
@pytest.mark.parametrize("second", ["none", "relu6"])
def test_separable(layout: str, first: str, second: str) -> None:
    for stride, biased, threads in product((1, 2), (False, True), (1, 2)):
        plan = depthwise_plan(layout, first, stride, 3, 9)
        outputs = 19
        middle_shape = of_result(plan, layout, 11, 0).shape
        mix = planner.pointwise(
            middle_shape, "float32", (outputs, 11), "float32", layout=layout, activation=second
        )
        x, grad = image(layout, 2, 11, 9, 11), of_result(plan, layout, outputs, 1)
        taps, bias, matrix = noise(2, 11, 3, 3), noise(3, 11), noise(4, outputs, 11)
        shift = bias if biased else np.zeros_like(bias)
        middle, result = np.empty(middle_shape, np.float32), np.empty_like(grad)
        depthwise.run_depthwise(plan, x, taps, shift, middle)
        other = noise(5, outputs)
        pointwise.run_pointwise(mix, middle, matrix, other, result)
        given = grad if second == "none" else sloped(second, grad, result)
        plain = replace(mix, activation="none")
        to_matrix, to_other = np.empty_like(matrix), np.empty_like(other)
        run_matrix_gradient(plain, middle, given, to_matrix)
        sums = planner.depthwise(grad.shape, "float32", outputs, (1, 1), 0, layout=layout)
        channel_sums.run(sums, given, to_other)
        between = np.empty_like(middle)
        back = replace(plain, channels=outputs, outputs=11)
        transposed = np.ascontiguousarray(matrix.T)
        pointwise.run_pointwise(back, given, transposed, np.zeros_like(bias), between)
        expected = in_turn(plan, x, between, taps, bias if biased else None, middle)
        wanted = [*expected.values(), to_matrix, to_other]
        for asked in ((True,) * 5, (False,) * 3 + (True,) * 2, (True,) + (False,) * 4):
            job = backward.of_separable(plan, mix, biased, asked, threads)
            assert job is not None
            found = poisoned(x, taps, bias, matrix, other)
            job.run(x, grad, taps, bias, matrix, other, result, *found)
            for one, expect, was in zip(found, wanted, asked, strict=True):
                assert one.tobytes() == expect.tobytes() if was else np.isnan(one).all()


def activated(activation: str, x: Array) -> Array:
    """Return an activation in float64."""
    made: Array = {
        "relu": lambda x: np.maximum(x, 0),
        "relu6": lambda x: np.clip(x, 0, 6),
        "silu": lambda x: x / (1 + np.exp(-x)),
        "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
        "gelu": lambda x: x * special.ndtr(x),
    }[activation](x)
    return made


def test_what_has_no_job() -> None:
    """Copying padding, several filters of a channel, more memory than a thread keeps."""
    shape, asked = (1, 4, 9, 9), (True, True, True)
    for more in ({"padding_mode": "reflect"}, {"padding": 5}):
        plan = planner.depthwise(shape, "float32", 4, (3, 3), 0, **{"padding": 1} | more)
        assert backward.of_depthwise(plan, True, asked, 2) is None
    plan = planner.depthwise(shape, "float32", 8, (3, 3), 0, padding=1)
    assert backward.of_depthwise(plan, True, asked, 2) is None
    large = planner.depthwise((1, 64, 300, 300), "float32", 64, (3, 3), 0, activation="silu")
    assert backward.of_depthwise(large, True, asked, 2) is None


@pytest.mark.parametrize("activation", ["relu", "relu6", "silu", "hardswish", "gelu"])
def test_slopes(activation: str) -> None:
    """Against differences of the activation in float64, half a step to each side.

    The bound: what the difference leaves out, a sixth of the third derivative (below 2 for all of
    them) times the square of the step; and of float32 16 roundings of numbers below 8, and what
    the formula of erf leaves out, 1.5e-7.
    """
    x = np.linspace(-7.3, 7.9, 1001).astype(np.float32)
    x = x[np.minimum(np.abs(np.abs(x) - 3), np.minimum(np.abs(x), np.abs(x - 6))) > 1e-3]
    step, wide = 2.0**-12, x.astype(np.float64)
    expected = (activated(activation, wide + step) - activated(activation, wide - step)) / 2 / step
    of = activated(activation, wide).astype(np.float32) if "relu" in activation else x
    found = sloped(activation, np.ones_like(x), of)
    assert np.abs(found - expected).max() < step**2 / 3 + 16 * 8 * 2.0**-24 + 1.5e-7

"""Planes that are filtered where they are: edges, narrow rows, and nothing written beyond them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import signal

from numbasep.cpu import depthwise, windows
from numbasep.plan import channelwise as planner
from tests import oracle

Array = NDArray[Any]

# (kernel, stride, dilation): all that blocks are made for.
KERNELS = [(k, stride, 1) for k in (3, 5, 7) for stride in (1, 2)] + [(3, 1, 2), (5, 1, 3)]


@given(
    st.sampled_from(KERNELS),
    st.tuples(st.integers(windows.ROWS, 22), st.integers(4, 36)),
    st.tuples(*[st.integers(0, 4)] * 4),
    st.sampled_from((1, 2)),
    st.sampled_from((4, 7, 8, 22)),
    st.integers(0, 2**32 - 1),
)
def test_exact_and_nothing_beyond(
    kernel: tuple[int, int, int],
    size: tuple[int, int],
    sides: tuple[int, int, int, int],
    multiplier: int,
    band: int,
    seed: int,
) -> None:
    k, stride, dilation = kernel
    extent = (k - 1) * dilation + 1
    # The image is what makes a result of this size, to the last row and column that taps reach.
    height, width = (
        max((out - 1) * stride + extent - before - after, 1)
        for out, before, after in zip(size, sides[::2], sides[1::2], strict=True)
    )
    rng = np.random.default_rng(seed)
    channels = 3
    plan = planner.depthwise(
        (2, channels, height, width), "float32", channels * multiplier, (k, k), 0,
        stride=stride, dilation=dilation, padding=sides,
    )  # fmt: skip
    image = rng.integers(-8, 9, (2, channels, height, width)).astype(np.float32)
    weight = rng.integers(-8, 9, (channels * multiplier, k, k)).astype(np.float32)
    bias = rng.integers(-8, 9, channels * multiplier).astype(np.float32)
    shape = (2, channels * multiplier, plan.y.out, plan.x.out)
    memory = np.full(int(np.prod(shape)) + 128, np.nan, np.float32)
    out = memory[64:-64].reshape(shape)
    tile = depthwise.Tile(min(band, plan.y.out), 2, 2)
    depthwise.run_depthwise(plan, image, weight, bias, out, tile)
    padded = np.pad(image, ((0, 0), (0, 0), sides[:2], sides[2:]))
    for n, f in np.ndindex(2, channels * multiplier):
        taps = oracle.dilate(weight[f], (dilation, dilation))
        expected = signal.correlate2d(padded[n, f // multiplier], taps, "valid")
        assert np.array_equal(out[n, f], expected[::stride, ::stride] + bias[f])
    assert np.isnan(memory[:64]).all()
    assert np.isnan(memory[-64:]).all()


@pytest.mark.parametrize(("size", "k"), [((7, 7), 3), ((9, 5), 5), ((30, 21), 7)])
def test_the_bits_of_packed_planes(size: tuple[int, int], k: int) -> None:
    """Of one row, which is too few for a block: its rows are packed."""
    plan = planner.depthwise((1, 4, *size), "float32", 4, (k, k), 0, padding=k // 2)
    assert depthwise.least_rows(plan) > 1
    rng = np.random.default_rng(k)
    image, weight = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((1, 4, *size), (4, k, k))
    )
    results = []
    for band in (1, size[0]):
        out = np.full((1, 4, *size), np.nan, np.float32)
        tile = depthwise.Tile(band, 4, 1)
        depthwise.run_depthwise(plan, image, weight, np.zeros(4, np.float32), out, tile)
        results.append(out.tobytes())
    assert results[0] == results[1]


def test_what_is_outside_is_no_more_than_zero() -> None:
    """Infinity beside an edge stays out of what does not reach it."""
    plan = planner.depthwise((1, 2, 9, 20), "float32", 2, (3, 3), 0, padding=1)
    image = np.zeros((1, 2, 9, 20), np.float32)
    image[0, 0, -1, -1] = image[0, 1, 0, 0] = np.inf
    out = np.full_like(image, np.nan)
    weight = np.ones((2, 3, 3), np.float32)
    depthwise.run_depthwise(plan, image, weight, np.zeros(2, np.float32), out)
    expected = np.zeros_like(image)
    expected[0, 0, -2:, -2:] = expected[0, 1, :2, :2] = np.inf
    assert np.array_equal(out, expected)

"""What fuzzing found (``tests/fuzz.py``)."""

from __future__ import annotations

import time
from fractions import Fraction

import numpy as np
import pytest

from numbasep import depthwise_conv2d, factorise, separable_conv2d


def test_factorise_ends() -> None:
    """Steps of one between terms whose coefficients differ by 2**30 took for ever."""
    small = np.array(
        [
            [0, 0, 3, 0, -3, -1],
            [2, 3, -3, 0, 0, 0],
            [3, 0, -3, -1, -1, -1],
            [-1, -1, -3, -3, -3, -3],
            [-3, -3, -3, -3, -3, -3],
        ]
    )
    for kernel in (np.where(small < 0, small + 2**30, small), small.astype(np.uint64)):
        factors = factorise(kernel)
        columns, rows = (np.vectorize(Fraction)(taps) for taps in (factors.columns, factors.rows))
        off = np.abs(kernel.astype(object) - columns.T @ rows).sum()
        assert off <= Fraction(factors.error) * sum(map(int, kernel.flat))
        assert factors.error < 1e-14


def test_factorise_does_not_search_where_no_integer_factors_can_be_kept() -> None:
    """A 24 x 24 kernel of unsigned integers near 2**64 took a quarter of a minute."""
    rng = np.random.default_rng(0)
    kernel = rng.integers(-3, 4, (24, 24)).astype(np.uint64)
    kernel[rng.random((24, 24)) < 0.7] = 0
    begin = time.process_time()
    factors = factorise(kernel)
    assert factors.dtype == np.float64
    assert factors.error < 1e-13
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("huge", [2**40, 2**70])
def test_steps_of_any_size(huge: int) -> None:
    """Numbers beyond 64 bits were an OverflowError; a table of 2**40 positions is no plan."""
    x, three = np.arange(12.0).reshape(3, 4), np.ones(3)
    first = separable_conv2d(x, (three, three), stride=huge)
    np.testing.assert_array_equal(first, [[x[:2, :2].sum()]])
    single = separable_conv2d(x, ([2], [3]), dilation=huge)
    np.testing.assert_array_equal(single, 6 * x)
    with pytest.raises(ValueError, match=rf"dilation: 3 taps at dilation {huge} span .* at most"):
        separable_conv2d(x, (three, three), dilation=huge)
    image, weight = x[None], np.ones((1, 1, 3, 3))
    step = depthwise_conv2d(image, weight, stride=huge, padding=1)
    np.testing.assert_array_equal(step, first[None])
    pixel = depthwise_conv2d(image, 2 * np.ones((1, 1, 1, 1)), dilation=huge)
    np.testing.assert_array_equal(pixel, 2 * image)
    with pytest.raises(ValueError, match=rf"dilation: 3 taps at dilation {huge} span .* at most"):
        depthwise_conv2d(image, weight, dilation=huge, padding="same")
    with pytest.raises(ValueError, match=rf"padding: got {huge}; pass at most"):
        depthwise_conv2d(image, weight, padding=huge)
    with pytest.raises(ValueError, match=rf"padding: got {huge}; pass at most"):
        depthwise_conv2d(image, weight, padding=(0, huge, 0, 0))

"""What fuzzing found (``tests/fuzz.py``)."""

from __future__ import annotations

import time
from fractions import Fraction

import numpy as np

from numbasep import factorise


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

"""What fuzzing found (``tests/fuzz.py``)."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from numbasep import factorise


def test_factorise_ends_on_integers_near_2_to_the_64() -> None:
    """Steps of one between terms whose coefficients differ by 2**64 took for ever."""
    small = np.array(
        [
            [0, 0, 3, 0, -3, -1],
            [2, 3, -3, 0, 0, 0],
            [3, 0, -3, -1, -1, -1],
            [-1, -1, -3, -3, -3, -3],
            [-3, -3, -3, -3, -3, -3],
        ]
    )
    kernel = small.astype(np.uint64)
    factors = factorise(kernel)
    columns, rows = (np.vectorize(Fraction)(taps) for taps in (factors.columns, factors.rows))
    off = np.abs(kernel.astype(object) - columns.T @ rows).sum()
    assert 0 < off <= Fraction(factors.error) * sum(map(int, kernel.flat))
    assert factors.error < 1e-14
    # The same numbers, signed, have exact factors.
    exact = factorise(small)
    assert exact.dtype == np.int64
    np.testing.assert_array_equal(exact.columns.T @ exact.rows, small)

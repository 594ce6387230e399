"""The measured remainder against exact fractions."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbasep.remainder import Remainder, Scaled


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=6))
def test_signed_integers_are_held_exactly(values: list[int]) -> None:
    check_held(np.array([[values]], np.int64), values)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6))
def test_unsigned_integers_are_held_exactly(values: list[int]) -> None:
    check_held(np.array([[values]], np.uint64), values)


@given(st.lists(st.integers(-128, 127), min_size=1, max_size=6))
def test_bytes_are_held_exactly(values: list[int]) -> None:
    check_held(np.array([[values]], np.int8), values)


def check_held(kernels: Any, values: list[int]) -> None:
    scaled = Scaled.of(kernels)
    unit = Fraction(4) ** int(scaled.half_exponent[0])
    held = [
        (Fraction(h.item()) + Fraction(low.item())) * unit
        for h, low in zip(scaled.high[0, 0], scaled.low[0, 0], strict=True)
    ]
    assert held == values


def ratio_of(terms: list[tuple[float, float]]) -> float:
    """Return what is measured of the kernel ``[[1]]`` less the products."""
    remainder = Remainder(Scaled.of(np.ones((1, 1, 1))))
    for c, r in terms:
        remainder.subtract(np.array([[c]]), np.array([[r]]))
    return float(remainder.ratio()[0])


def test_what_doubled_precision_loses_is_counted() -> None:
    tiny = (2.0**-80, 2.0**-80)
    # The small term falls off the running sum's end before the others cancel.
    assert ratio_of([tiny, (1.0, 2.0**-60), (1.0, 1.0), (-1.0, 2.0**-60)]) >= 2.0**-160
    # In another order it does not, and is measured.
    assert ratio_of([(1.0, 1.0), tiny]) == pytest.approx(2.0**-160, rel=1e-12)
    # Nothing is counted where nothing is lost.
    assert ratio_of([(1.0, 1.0)]) == 0
    assert ratio_of([(1 + 2.0**-52, 1 - 2.0**-52), (2.0**-52, 2.0**-52)]) == 0


@given(
    st.lists(
        st.tuples(st.floats(-2, 2), st.floats(-2, 2), st.integers(-120, 0)), min_size=1, max_size=6
    )
)
def test_ratio_is_never_less_than_the_remainder(terms: list[tuple[float, float, int]]) -> None:
    # Taken back and forth, so that the large parts cancel.
    pairs = [(c * 2.0**e, r) for c, r, e in terms]
    pairs += [(1.0, 1.0)] + [(-c * r, 1.0) for c, r in pairs]
    left = abs(1 - sum(Fraction(c) * Fraction(r) for c, r in pairs))
    # Products below 2**-1000 lose their own low bits.
    assert left <= Fraction(ratio_of(pairs)) + Fraction(2) ** -1000

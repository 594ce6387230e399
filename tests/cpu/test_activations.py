"""Activations of single numbers, over the whole range of floats."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from scipy import special

from numbasep.cpu import channels
from numbasep.cpu.pool import address

EXACT = {"silu": special.expit, "gelu": special.ndtr}

# In roundings of |x|. silu: the exponential errs by 3 (its argument, Horner's last steps), the sum
# and the quotient by one each. gelu: half of what 1 + erf errs by, and the two products. erf of
# float32: 1.5e-7 by its formula, 2.6 roundings; 7 by the two of t at a slope of 3.5 at most, 9 by
# Horner's, 3 by the exponential, 2 by product and difference. erf of float64: the C library's, 2.
ROUNDINGS = {
    ("silu", "float32"): 5, ("silu", "float64"): 5, ("gelu", "float32"): 14, ("gelu", "float64"): 4,
}  # fmt: skip


@pytest.mark.parametrize(("name", "dtype"), ROUNDINGS)
def test_over_the_whole_range(name: str, dtype: str) -> None:
    limits = np.finfo(dtype)
    size = np.geomspace(limits.tiny, float(limits.max) / 4, 20_011)
    x = np.concatenate([size, -size, np.linspace(-120, 120, 1_000_003)]).astype(dtype)
    found = np.full_like(x, np.nan)
    made = channels.finisher(dtype, dtype, channels.ACTIVATED[name])
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(made.address)
    function(address(x), address(found), x.size)
    exact = x.astype(np.float64) * EXACT[name](x.astype(np.float64))
    allowed = ROUNDINGS[name, dtype] * float(limits.eps) / 2 * np.abs(x.astype(np.float64))
    assert (np.abs(found - exact) <= allowed + float(limits.smallest_subnormal)).all()


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_no_number(name: str, dtype: str) -> None:
    """As of ``x / (1 + exp(-x))`` and ``x (1 + erf(x / sqrt 2)) / 2``, and as torch has it."""
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], dtype)
    found = np.full_like(x, 7)
    made = channels.finisher(dtype, dtype, channels.ACTIVATED[name])
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(made.address)
    function(address(x), address(found), x.size)
    assert np.array_equal(found, np.array([np.nan, np.inf, np.nan, 0, 0], dtype), equal_nan=True)
    assert np.array_equal(np.signbit(found[3:]), [False, True])

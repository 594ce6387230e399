"""Kernels near 1 and what is left of them: error-free sums in about twice double precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Remainder", "Scaled", "cast", "wide_dtype"]

Array = npt.NDArray[Any]

EPS = float(np.finfo(np.float64).eps)


def wide_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.complex128 if dtype.kind == "c" else np.float64)


def cast(array: Array, dtype: np.dtype[Any]) -> Array:
    return np.asarray(array.astype(dtype))


def _by_parts(function: Callable[[Array], Array], array: Array) -> Array:
    """Apply a real function to a real array, or to both parts of a complex one."""
    if array.dtype.kind != "c":
        return np.asarray(function(array))
    out = np.empty(array.shape, np.complex128)
    out.real, out.imag = function(array.real), function(array.imag)
    return out


@dataclass(frozen=True)
class Scaled:
    """Kernels ``(B, kh, kw)`` brought near 1 by a power of four each, and exact as ``high + low``.

    Powers of four, so that half of the power goes to each side's taps without rounding. ``low`` is
    what float64 cannot hold of 64-bit integers and of long doubles.
    """

    high: Array
    low: Array
    half_exponent: npt.NDArray[np.int64]
    total: npt.NDArray[np.float64]

    @classmethod
    def of(cls, kernels: Array) -> Scaled:
        wide = wide_dtype(kernels.dtype)
        if kernels.dtype.kind in "iu":
            # The last 11 bits apart: both parts of a 64-bit integer are floats.
            last = kernels & kernels.dtype.type(31 if kernels.dtype.itemsize == 1 else 2047)
            high, low = _two_sum((kernels - last).astype(np.float64), last.astype(np.float64))
        elif kernels.dtype.itemsize > wide.itemsize:
            with np.errstate(over="ignore"):
                high = kernels.astype(wide)
            low = (kernels - high).astype(wide)
        else:
            high = kernels.astype(wide)
            low = np.zeros_like(high)
        largest = np.maximum(np.abs(high.real), np.abs(high.imag)).max((-2, -1))
        half = (np.frexp(largest)[1].astype(np.int64) + 1) // 2
        shift = -2 * half[:, None, None]
        high, low = (_by_parts(lambda part: np.ldexp(part, shift), a) for a in (high, low))
        total = np.abs(high).sum((-2, -1))
        scaled = cls(high, low, half, total)
        with np.errstate(over="ignore"):
            overflows = ~np.isfinite(scaled.unscale(total * 2))
        if overflows.any():
            raise ValueError(
                f"the sum of |kernel| overflows float64 (largest element {largest.max():.3g}); "
                f"scale the kernel down, for example by a power of two"
            )
        return scaled

    def unscale(self, array: Array) -> Array:
        half = self.half_exponent.reshape(-1, *(1,) * (array.ndim - 1))
        return _by_parts(lambda part: np.ldexp(part, 2 * half), array)

    def unscale_taps(self, array: Array) -> Array:
        half = self.half_exponent.reshape(-1, *(1,) * (array.ndim - 1))
        return _by_parts(lambda part: np.ldexp(part, half), array)

    def scale_taps(self, array: Array) -> Array:
        half = self.half_exponent.reshape(-1, *(1,) * (array.ndim - 1))
        return _by_parts(lambda part: np.ldexp(part, -half), array)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return ``s = fl(a + b)`` and ``a + b - s``, exactly (Knuth)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """Return ``p = fl(a * b)`` and ``a * b - p``, exactly but for underflow (Dekker)."""
    p = a * b
    split = 2.0**27 + 1
    a_high = a * split - (a * split - a)
    b_high = b * split - (b * split - b)
    a_low, b_low = a - a_high, b - b_high
    return p, ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low


class Remainder:
    """What is left of scaled kernels as terms are subtracted, in twice the working precision.

    A running sum of error-free transformations (Ogita, Rump and Oishi 2005, Dot2), which also sums
    what even those leave out (``slack``): ``|exact - (high + low)| <= slack``, zero where every
    operation was exact.
    """

    def __init__(self, kernels: Scaled) -> None:
        self._kernels = kernels
        self._parts: list[list[Array]] = [
            [np.array(high), np.array(low), np.zeros(high.shape)]
            for high, low in zip(_split(kernels.high), _split(kernels.low), strict=True)
        ]

    def subtract(self, columns: Array, rows: Array) -> None:
        """Subtract ``outer(columns[b], rows[b])`` from each kernel; taps as they are stored."""
        c = _split(self._kernels.scale_taps(columns)[:, :, None])
        r = _split(self._kernels.scale_taps(rows)[:, None, :])
        self._add(0, -c[0], r[0])
        if len(c) == 2:
            self._add(0, c[1], r[1])
            self._add(1, -c[0], r[1])
            self._add(1, -c[1], r[0])

    def _add(self, part: int, a: Array, b: Array) -> None:
        high, low, slack = self._parts[part]
        p, p_error = _two_product(a, b)
        high, sum_error = _two_sum(high, p)
        error, lost = _two_sum(sum_error, p_error)
        low, lost_too = _two_sum(low, error)
        self._parts[part] = [high, low, slack + np.abs(lost) + np.abs(lost_too)]

    def value(self) -> Array:
        """Return the remainders, each rounded once."""
        parts = [high + low for high, low, _ in self._parts]
        if len(parts) == 1:
            return parts[0]
        out = np.empty(parts[0].shape, np.complex128)
        out.real, out.imag = parts
        return out

    def ratio(self) -> npt.NDArray[np.float64]:
        """Return ``sum|remainder| / sum|K|`` of each kernel, rounded up; 0 for ``K = 0``."""
        left = np.abs(self.value()) + sum(slack for _, _, slack in self._parts)
        top = left.sum((-2, -1))
        size = left.shape[-2] * left.shape[-1]
        # Each of the two sums is off by less than size * eps / 2, the rest by a few eps.
        up = 1 + (size + 16) * EPS
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.where(top == 0, 0.0, up * top / self._kernels.total))


def _split(array: Array) -> list[Array]:
    return [array.real, array.imag] if array.dtype.kind == "c" else [array]

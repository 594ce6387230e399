"""Separable sums of 2-D kernels: ``K = sum_r outer(columns[r], rows[r])``, with the error measured.

The factors come from a singular value decomposition that keeps the kernel's mirror symmetries to
the bit (``_symmetric_svd``), or from a lattice basis where the kernel is integer (``integer.py``).
The error is not the decomposition's estimate: it is measured on the factors as they are stored, in
about twice the working precision (``_Remainder``).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from numbasep.integer import exact_factors

__all__ = ["SeparableKernel", "factorise"]

Array = npt.NDArray[Any]

_EPS = float(np.finfo(np.float64).eps)
# The precision of a kernel is that of its dtype, whatever the factors are computed in: eps, and the
# spacing of subnormals, which is what small elements are rounded to.
_PRECISION = {
    "float16": (2.0**-10, -24),
    "bfloat16": (2.0**-7, -133),
    "float32": (2.0**-23, -149),
    "complex64": (2.0**-23, -149),
}
# A sum of taps below this part of their 1-norm is taken for zero by the sign rule.
_NO_SUM = 2.0**-20


@dataclass(frozen=True, eq=False, repr=False)
class SeparableKernel:
    """A 2-D kernel, or a stack of them, as a sum of separable terms.

    ``K = columns.T @ rows + residual`` (stacks: ``swapaxes(columns, -1, -2) @ rows + residual``).
    Made by :func:`factorise` or :meth:`from_taps`. Arrays are read-only; two objects are equal only
    if they are the same object (arrays have no single truth value); pickling keeps every bit.

    Attributes:
        columns: ``(..., R, kh)``, the taps of the column passes: int64 (exact), float64 or
            complex128.
        rows: ``(..., R, kw)``, the taps of the row passes, of the same dtype.
        singular_values: ``(..., min(kh, kw))``, all of the kernel's, descending, float64.
        residual: ``(..., kh, kw)``, the kernel minus the sum of the terms.
        ranks: ``(...)``, int64, the terms that each kernel of a stack needs; those after them in
            ``columns`` and ``rows`` are zero.
        errors: ``(...)``, float64, ``sum|residual| / sum|K|`` of each kernel, rounded up.
        magnitude: ``(...)``, float64, ``sum|K|`` of each kernel.
    """

    columns: Array
    rows: Array
    singular_values: Array
    residual: Array
    ranks: Array
    errors: Array
    magnitude: Array

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            array = np.array(getattr(self, name), order="C")  # a copy: nobody else can write to it
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    def __reduce__(self) -> tuple[Any, ...]:
        # Through __init__, because NumPy unpickles read-only arrays as writable ones.
        return type(self), tuple(getattr(self, name) for name in self.__dataclass_fields__)

    @classmethod
    def from_taps(cls, columns: npt.ArrayLike, rows: npt.ArrayLike) -> SeparableKernel:
        """Make a separable kernel of taps that are already there, kept bit for bit.

        The kernel is by definition the sum of its terms, so its error is 0.

        Args:
            columns: ``(kh,)``, ``(R, kh)`` or ``(..., R, kh)``, real or complex numbers.
            rows: ``(kw,)``, ``(R, kw)`` or ``(..., R, kw)``, with the same leading axes.

        Raises:
            TypeError: for bool, object, text and masked arrays.
            ValueError: for NaN, infinity, no taps, or leading axes that differ.

        Equal to:
            ``K = columns.T @ rows`` (``numpy.outer(columns, rows)`` where both are 1-D)
        """
        pair = [_numbers(columns, "columns"), _numbers(rows, "rows")]
        if (pair[0].ndim == 1) != (pair[1].ndim == 1):
            raise ValueError(
                f"columns and rows must both be 1-D or both have a rank axis, got shapes "
                f"{pair[0].shape} and {pair[1].shape}; write taps[None, :] for one term"
            )
        if pair[0].ndim == 1:
            pair = [taps[None, :] for taps in pair]
        if pair[0].shape[:-1] != pair[1].shape[:-1]:
            raise ValueError(
                f"columns {pair[0].shape} and rows {pair[1].shape} must agree in all axes but the "
                f"last: one row of taps per term in each"
            )
        if pair[0].shape[-1] == 0 or pair[1].shape[-1] == 0 or 0 in pair[0].shape[:-2]:
            raise ValueError(
                f"columns {pair[0].shape} and rows {pair[1].shape} hold no taps; give at least one"
            )
        for name, taps in zip(("columns", "rows"), pair, strict=True):
            if taps.dtype.kind == "u" and int(taps.max()) > np.iinfo(np.int64).max:
                raise ValueError(
                    f"{name} hold {taps.max()}, which exceeds int64; give them as floats"
                )
        kinds = {taps.dtype.kind for taps in pair}
        dtype = np.dtype(
            np.complex128 if "c" in kinds else np.int64 if kinds <= set("iu") else np.float64
        )
        c, r = (_cast(taps, dtype) for taps in pair)
        with np.errstate(over="ignore", invalid="ignore"):
            kernel = np.asarray(np.swapaxes(c, -1, -2) @ r)
            wide = _cast(kernel, _wide(dtype))
            # Of the taps as given: casting to int64 may wrap.
            norms = [np.abs(_cast(taps, _wide(taps.dtype))).sum(-1) for taps in pair]
            bound = np.sum(norms[0] * norms[1], -1)
        if not np.all(bound < (2.0**62 if dtype == np.int64 else np.inf)):
            raise ValueError(
                f"the kernel of these taps overflows {dtype}; scale the taps down"
                + (" or give them as floats" if dtype == np.int64 else "")
            )
        batch = kernel.shape[:-2]
        return cls(
            columns=c,
            rows=r,
            singular_values=np.linalg.svd(wide, compute_uv=False),
            residual=np.zeros_like(kernel),
            ranks=np.full(batch, c.shape[-2]),
            errors=np.zeros(batch),
            magnitude=np.abs(wide).sum((-2, -1)),
        )

    @property
    def rank(self) -> int:
        """Terms of the sum, R; in a stack, those of the kernel that needs most."""
        return int(self.columns.shape[-2])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the kernel or of the stack, ``(..., kh, kw)``."""
        return tuple(self.residual.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the taps: int64 where they are exact integers, else float64 or complex128."""
        return self.columns.dtype

    @property
    def error(self) -> float:
        """``sum|residual| / sum|K|``, rounded up; in a stack, the largest.

        ``|y - y_exact| <= error * sum|K| * max|x|`` for every output of the convolution, before
        the rounding of its arithmetic, with any boundary that repeats elements of the image.
        """
        return float(self.errors.max())

    @property
    def speedup(self) -> float:
        """Multiply-adds of the dense kernel over those of the sum, ``kh kw / (R (kh + kw))``."""
        kh, kw = self.shape[-2:]
        return kh * kw / (self.rank * (kh + kw)) if self.rank else math.inf

    @property
    def worth_separating(self) -> bool:
        """Whether the sum takes fewer multiply-adds than the dense kernel."""
        return self.speedup > 1

    def dense(self) -> Array:
        """Return the sum of the terms, ``(..., kh, kw)``: the kernel that is applied."""
        return np.asarray(np.swapaxes(self.columns, -1, -2) @ self.rows)

    def output_error_bound(self, lo: float, hi: float) -> float:
        """Bound ``|y - y_exact|`` for images whose elements, fill value included, are in [lo, hi].

        ``|sum E| |lo + hi| / 2 + sum|E| (hi - lo) / 2`` with E the residual, since an image is its
        middle plus at most half its range: a residual without DC only sees the range. Not counted
        is the rounding of the convolution's own arithmetic. In a stack, the largest.

        Raises:
            ValueError: if lo > hi, or either is NaN or infinite.
        """
        lo, hi = float(lo), float(hi)
        if not (math.isfinite(lo) and math.isfinite(hi) and lo <= hi):
            raise ValueError(f"lo and hi must be finite with lo <= hi, got lo={lo!r}, hi={hi!r}")
        middle, half = abs(lo / 2 + hi / 2), hi / 2 - lo / 2
        gain = np.abs(np.asarray(self.residual.sum((-2, -1)), _wide(self.dtype)))
        total = self.errors * self.magnitude
        # The residual's own sum is rounded, by at most this part of sum|E|; the rest by less.
        gain = np.minimum(gain + math.prod(self.shape[-2:]) * _EPS * total, total)
        return float(np.max(gain * middle + total * half) * (1 + 8 * _EPS))

    def __repr__(self) -> str:
        *batch, kh, kw = self.shape
        size = f"{kh}x{kw}" if not batch else f"{'x'.join(map(str, batch))} of {kh}x{kw}"
        pays = f"speedup {self.speedup:.3g}x"
        if not self.worth_separating:
            pays = f"does not compress: {1 / self.speedup:.3g}x the multiply-adds of the 2-D kernel"
        exact = "exact" if self.error == 0 else f"{self.error:.2g}"
        return f"SeparableKernel({size}, rank {self.rank}, error {exact}, {pays}, {self.dtype})"


def factorise(
    kernel: npt.ArrayLike, *, rank: int | None = None, tol: float | None = None
) -> SeparableKernel:
    """Write a 2-D kernel as a sum of separable ones, ``K = columns.T @ rows + residual``.

    Terms come in descending order of their singular value. Each side carries its square root. The
    sign is such that the column taps have a positive sum; where that sum is below 2**-20 of their
    1-norm, the row taps' sum decides, and where that is too, the first of the largest column taps
    is positive. (Complex: what decides is real and positive; the row taps are those of ``conj(V)``,
    so that no conjugate stands in the sum.) A kernel that equals its own mirror image up to sign,
    or itself turned by 180 degrees, has taps that do so to the bit. One that equals its transpose
    has ``columns[r] == +-rows[r]`` to the bit, unless the half turn negates it. The result is the
    same on each run.

    Integer kernels get integer taps (int64) with ``K == columns.T @ rows`` exactly, where the rank
    allows (``rank`` or ``tol`` may ask for less) and such taps exist with
    ``sum_r sum|columns[r]| sum|rows[r]| <= 4 sum|K|``; sums that cancel more would cost range and
    precision. The integer taps are not of balanced scale. A stack has them if each of its kernels
    has.

    Args:
        kernel: ``(kh, kw)`` or a stack ``(..., kh, kw)``: integers, floats (float16 and bfloat16
            included) or complex numbers.
        rank: at most this many terms, the best in the Frobenius and spectral norms (Eckart and
            Young 1936); terms at rounding level are left out.
        tol: the smallest number of those terms that keeps ``sum|residual| <= tol * sum|K|``, and
            with it ``|y - y_exact| <= tol * sum|K| * max|x|`` on the output. The rounding of the
            taps counts: where that alone breaks a tiny ``tol``, the terms are the rows or columns
            of the kernel with unit taps, which is exact.
            With neither, the terms with ``sigma > max(kh, kw) * eps * sigma[0]``, eps being that of
            the kernel's own dtype, as ``numpy.linalg.matrix_rank`` counts (and of a kernel of
            subnormal numbers, ``sigma > max(kh, kw)`` times their spacing).

    Returns:
        The factors; in a stack they share the largest rank, and kernels of a lower one end in
        zero taps.

    Raises:
        TypeError: for bool, object, text and masked kernels, and for a rank that is no integer.
        ValueError: for NaN, infinity, no elements, fewer than two axes, ``sum|K|`` beyond float64,
            a rank outside [0, min(kh, kw)], a tol that is negative or NaN, or both.

    Equal to:
        ``U, s, Vh = numpy.linalg.svd(K)`` with ``columns[r] = sqrt(s[r]) * U[:, r]`` and
        ``rows[r] = sqrt(s[r]) * Vh[r]``
    """
    array = _numbers(kernel, "kernel")
    if array.ndim < 2:
        raise ValueError(
            f"kernel must be 2-D or a stack (..., kh, kw), got shape {array.shape}; "
            f"taps that are already 1-D go to SeparableKernel.from_taps"
        )
    if array.size == 0:
        raise ValueError(f"kernel has no elements, got shape {array.shape}")
    *batch, kh, kw = array.shape
    rank, tol = _asked(rank, tol, min(kh, kw))

    flat = array.reshape(-1, kh, kw)
    scaled = _Scaled.of(flat)
    columns, sigma, rows = _symmetric_svd(scaled.high)
    columns, rows = _signed(columns * np.sqrt(sigma)[..., None], rows * np.sqrt(sigma)[..., None])
    columns, rows = scaled.unscale_taps(columns), scaled.unscale_taps(rows)

    eps, spacing = _PRECISION.get(array.dtype.name, (_EPS, -1074))
    if rank is not None:
        eps, spacing = _EPS, -1074
    noise = np.ldexp(1.0, np.maximum(spacing - 2 * scaled.half_exponent, -1074))
    ranks = np.sum(sigma > max(kh, kw) * np.maximum(eps * sigma[:, 0], noise)[:, None], axis=-1)
    if rank is not None:
        ranks = np.minimum(ranks, rank)
    elif tol is not None:
        ranks = _smallest_ranks(scaled, columns, rows, tol)
        for b in map(int, np.flatnonzero(ranks < 0)):
            columns[b], rows[b] = _unit_taps(scaled, b, tol)
        ranks[ranks < 0] = min(kh, kw)

    exact = np.zeros(len(flat), bool)
    if array.dtype.kind in "iu":
        numerical = np.sum(sigma > max(kh, kw) * _EPS * sigma[:, :1], axis=-1)
        for b in range(len(flat)):
            factors = exact_factors(flat[b], int(numerical[b]))
            if factors is None or (rank is not None and len(factors[0]) > rank):
                continue
            if tol is not None and len(factors[0]) > ranks[b]:
                continue
            found = len(factors[0])
            ranks[b], exact[b] = found, True
            columns[b, :found], rows[b, :found] = factors

    terms = int(ranks.max())
    used = np.arange(terms) < ranks[:, None]
    columns = np.where(used[..., None], columns[:, :terms], 0)
    rows = np.where(used[..., None], rows[:, :terms], 0)
    remainder = _Remainder(scaled)
    for r in range(terms):
        remainder.subtract(columns[:, r], rows[:, r])
    residual = scaled.unscale(remainder.value())
    if exact.all():
        columns, rows, residual = (_cast(a, np.dtype(np.int64)) for a in (columns, rows, residual))
    shape = tuple(batch)
    return SeparableKernel(
        columns=columns.reshape(*shape, terms, kh),
        rows=rows.reshape(*shape, terms, kw),
        singular_values=scaled.unscale(sigma).reshape(*shape, -1),
        residual=residual.reshape(*shape, kh, kw),
        ranks=ranks.reshape(shape),
        errors=np.where(ranks == 0, np.sign(scaled.total), remainder.ratio()).reshape(shape),
        magnitude=scaled.unscale(scaled.total).reshape(shape),
    )


def _numbers(values: npt.ArrayLike, name: str) -> Array:
    """Return finite numbers of a supported dtype as an array, or say what is wrong with them."""
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; fill it first: {name}.filled(0)")
    array = np.asarray(values)
    if array.dtype.kind == "b":
        raise TypeError(f"{name} has dtype bool; say what it counts as: {name}.astype(int)")
    if array.dtype.kind not in "iufc" and array.dtype.name != "bfloat16":
        raise TypeError(
            f"{name} must hold integers, floats or complex numbers, got dtype {array.dtype}"
        )
    if array.ndim == 0:
        raise ValueError(f"{name} must be an array of taps, got the single number {array.item()!r}")
    if array.dtype.kind not in "iu":
        bad = ~np.isfinite(array)
        if bad.any():
            where = tuple(int(i) for i in np.argwhere(bad)[0])
            raise ValueError(
                f"{name} must be finite, got {array[where]} at {where}"
                + (f" and {int(bad.sum()) - 1} more" if bad.sum() > 1 else "")
            )
    return array


def _asked(rank: int | None, tol: float | None, most: int) -> tuple[int | None, float | None]:
    if rank is not None and tol is not None:
        raise ValueError(f"give rank or tol, not both: got rank={rank!r} and tol={tol!r}")
    if rank is not None:
        if isinstance(rank, bool | np.bool_):
            raise TypeError(f"rank must be an integer, got {rank!r}")
        try:
            rank = operator.index(rank)
        except TypeError:
            raise TypeError(f"rank must be an integer, got {rank!r}") from None
        if not 0 <= rank <= most:
            raise ValueError(f"rank must be in [0, min(kh, kw)] = [0, {most}], got {rank}")
    if tol is not None:
        try:
            tol = float(tol)
        except (TypeError, ValueError):
            raise TypeError(f"tol must be a real number, got {tol!r}") from None
        if not 0 <= tol < math.inf:
            raise ValueError(f"tol must be a finite number >= 0, got {tol!r}")
    return rank, tol


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.complex128 if dtype.kind == "c" else np.float64)


def _cast(array: Array, dtype: np.dtype[Any]) -> Array:
    return np.asarray(array.astype(dtype))


def _by_parts(function: Callable[[Array], Array], array: Array) -> Array:
    """Apply a real function to a real array, or to both parts of a complex one."""
    if array.dtype.kind != "c":
        return np.asarray(function(array))
    out = np.empty(array.shape, np.complex128)
    out.real, out.imag = function(array.real), function(array.imag)
    return out


@dataclass(frozen=True)
class _Scaled:
    """Kernels ``(B, kh, kw)`` brought near 1 by a power of four each, and exact as ``high + low``.

    Powers of four, so that half of the power goes to each side's taps without rounding. ``low`` is
    what float64 cannot hold of 64-bit integers and of long doubles.
    """

    high: Array
    low: Array
    half_exponent: npt.NDArray[np.int64]
    total: npt.NDArray[np.float64]

    @classmethod
    def of(cls, kernels: Array) -> _Scaled:
        wide = _wide(kernels.dtype)
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


class _Remainder:
    """What is left of scaled kernels as terms are subtracted, in twice the working precision.

    A running sum of error-free transformations (Ogita, Rump and Oishi 2005, Dot2), which also sums
    what even those leave out (``slack``): ``|exact - (high + low)| <= slack``, zero where every
    operation was exact.
    """

    def __init__(self, kernels: _Scaled) -> None:
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
        up = 1 + (size + 16) * _EPS
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.where(top == 0, 0.0, up * top / self._kernels.total))


def _split(array: Array) -> list[Array]:
    return [array.real, array.imag] if array.dtype.kind == "c" else [array]


def _smallest_ranks(
    scaled: _Scaled, columns: Array, rows: Array, tol: float
) -> npt.NDArray[np.int64]:
    """Return the first number of terms that keeps ``tol``, or -1 where none does."""
    remainder = _Remainder(scaled)
    # Without terms the remainder is the kernel: a ratio of exactly 1, or 0 for a kernel of zeros.
    ranks = np.where((scaled.total == 0) | (tol >= 1), 0, -1)
    for r in range(columns.shape[1]):
        if (ranks >= 0).all():
            break
        remainder.subtract(columns[:, r], rows[:, r])
        ranks = np.where((ranks < 0) & (remainder.ratio() <= tol), r + 1, ranks)
    return np.asarray(ranks, np.int64)


def _unit_taps(scaled: _Scaled, b: int, tol: float) -> tuple[Array, Array]:
    if scaled.low[b].any():
        raise ValueError(
            f"tol={tol!r} cannot be kept: the kernel has elements that float64 taps cannot hold; "
            f"give a larger tol, or neither tol nor rank"
        )
    kernel = scaled.unscale(scaled.high)[b]
    kh, kw = kernel.shape
    if kh <= kw:
        return np.eye(kh), kernel
    return kernel.T, np.eye(kw)


def _signed(columns: Array, rows: Array) -> tuple[Array, Array]:
    """Give each term the sign (complex: the phase) that :func:`factorise` states."""
    pivot = np.zeros(columns.shape[:-1], columns.dtype)
    largest = np.argmax(np.abs(columns), axis=-1)[..., None]
    candidates = [np.take_along_axis(columns, largest, -1)[..., 0]]
    for taps, conjugate in ((rows, True), (columns, False)):
        total = taps.sum(-1)
        clear = np.abs(total) > _NO_SUM * np.abs(taps).sum(-1)
        total = np.conj(total) if conjugate else total
        candidates.append(np.where(clear, total, 0))
    for candidate in candidates:
        pivot = np.where(candidate != 0, candidate, pivot)
    if columns.dtype.kind == "c":
        size = np.abs(pivot)
        phase = np.where(size > 0, np.conj(pivot) / np.where(size > 0, size, 1), 1)[..., None]
        return columns * phase, np.asarray(rows * np.conj(phase))
    sign = np.where(pivot < 0, -1.0, 1.0)[..., None]
    # Adding 0 turns the -0.0 that a negated zero tap would be into 0.0.
    return columns * sign + 0.0, rows * sign + 0.0


def _symmetric_svd(kernels: Array) -> tuple[Array, Array, Array]:
    """Decompose ``(B, kh, kw)`` so that symmetries of a kernel are those of its taps, to the bit.

    A kernel that is even or odd along an axis is folded there, one that is so under a half turn is
    folded into its even and odd blocks, and a real one that is its own transpose has its
    eigenvectors taken. Returns columns ``(B, n, kh)``, sigma ``(B, n)`` descending, and rows
    ``(B, n, kw)``, of unit norm or zero.
    """
    count, kh, kw = kernels.shape
    n = min(kh, kw)
    columns = np.zeros((count, n, kh), kernels.dtype)
    sigma = np.zeros((count, n))
    rows = np.zeros((count, n, kw), kernels.dtype)
    kinds = np.stack(
        [
            _parity(kernels, kernels[:, ::-1]),
            _parity(kernels, kernels[:, :, ::-1]),
            _parity(kernels, kernels[:, ::-1, ::-1]),
            (_parity(kernels, kernels.swapaxes(1, 2)) == 1) & (kernels.dtype.kind == "f")
            if kh == kw
            else np.zeros(count, int),
        ],
        axis=-1,
    )
    for kind in np.unique(kinds, axis=0):
        where = np.flatnonzero((kinds == kind).all(-1))
        down, across, turned, transposed = (int(k) for k in kind)
        blocks = [(down, across)]
        if turned and not (down or across):
            blocks = [(1, turned), (-1, -turned)]
        found = [_folded_svd(kernels[where], d, a, bool(transposed)) for d, a in blocks]
        c, s, r = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        order = np.argsort(-s, axis=-1, kind="stable")
        terms = s.shape[1]
        columns[where, :terms] = np.take_along_axis(c, order[..., None], 1)
        sigma[where, :terms] = np.take_along_axis(s, order, 1)
        rows[where, :terms] = np.take_along_axis(r, order[..., None], 1)
    return columns, sigma, rows


def _parity(kernels: Array, turned: Array) -> Array:
    """Return 1 for kernels that equal their turned image, -1 for its negative, else 0."""
    even = (kernels == turned).all((-2, -1))
    odd = (kernels == -turned).all((-2, -1))
    return np.where(even, 1, np.where(odd, -1, 0))


def _folded_svd(
    kernels: Array, down: int, across: int, transposed: bool
) -> tuple[Array, Array, Array]:
    block = _fold(kernels, down)
    block = _fold(block.swapaxes(1, 2), across).swapaxes(1, 2)
    if transposed and down == across:
        values, vectors = np.linalg.eigh(block)
        order = np.argsort(-np.abs(values), axis=-1, kind="stable")
        values = np.take_along_axis(values, order, -1)
        vectors = np.take_along_axis(vectors.swapaxes(1, 2), order[..., None], 1)
        u, s, v = vectors, np.abs(values), vectors * np.where(values < 0, -1, 1)[..., None]
    else:
        u, s, v = np.linalg.svd(block, full_matrices=False)
        u, v = _projected(block, u, s, v)
    return _unfold(u, down, kernels.shape[1]), s, _unfold(v, across, kernels.shape[2])


def _projected(block: Array, u: Array, s: Array, v: Array) -> tuple[Array, Array]:
    """Return both sides' taps ``(B, terms, length)``, one side projected anew from the kernel.

    LAPACK's iteration stops up to 50 eps short (``dbdsqr``: TOLMUL). The product of one side's
    vectors, where they are a whole basis, with the kernel is the other side to rounding.
    """
    u = u.swapaxes(1, 2)
    count = s.shape[-1]
    sure = s > count * _EPS * s[:, :1]
    over = np.where(sure, s, 1)[..., None]
    if block.shape[1] <= block.shape[2]:
        norm = np.sum(np.abs(u) ** 2, axis=-1, keepdims=True)
        return u, np.where(sure[..., None], np.conj(u) @ block / norm / over, v)
    norm = np.sum(np.abs(v) ** 2, axis=-1, keepdims=True)
    return np.where(sure[..., None], np.conj(v) @ block.swapaxes(1, 2) / norm / over, u), v


def _fold(kernels: Array, parity: int) -> Array:
    """Return ``Q.T @ kernel``, Q an orthonormal basis of the even (1) or odd (-1) columns."""
    if parity == 0:
        return kernels
    half = kernels.shape[1] // 2
    first, last = kernels[:, :half], kernels[:, ::-1][:, :half]
    folded = (first + parity * last) * math.sqrt(0.5)
    if parity < 0:
        return np.asarray(folded)
    return np.concatenate([folded, kernels[:, half : kernels.shape[1] - half]], axis=1)


def _unfold(taps: Array, parity: int, length: int) -> Array:
    """Return ``Q @ taps`` of folded taps ``(B, terms, folded length)``."""
    if parity == 0:
        return taps
    half = length // 2
    first = taps[..., :half] * math.sqrt(0.5)
    middle = taps[..., half:] if parity > 0 else np.zeros((*taps.shape[:-1], length - 2 * half))
    return np.concatenate([first, middle, parity * first[..., ::-1]], axis=-1)

"""Separable sums of 2-D kernels: ``K = sum_r outer(columns[r], rows[r])``, with the error measured.

The factors come from a singular value decomposition that keeps the kernel's mirror symmetries to
the bit (``decompose.py``), or from a lattice basis where the kernel is integer (``integer.py``).
The error is not the decomposition's estimate: it is measured on the factors as they are stored, in
about twice the working precision (``remainder.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from numbasep import nvtx
from numbasep.decompose import balanced_terms
from numbasep.integer import exact_factors
from numbasep.plan import checks
from numbasep.remainder import EPS, Remainder, Scaled, cast, wide_dtype

__all__ = ["SeparableKernel", "factorise"]

Array = npt.NDArray[Any]

# The precision of a kernel is that of its dtype, whatever the factors are computed in: eps, and the
# spacing of subnormals, which is what small elements are rounded to.
_PRECISION = {
    "float16": (2.0**-10, -24),
    "bfloat16": (2.0**-7, -133),
    "float32": (2.0**-23, -149),
    "complex64": (2.0**-23, -149),
}


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
        """Make a separable kernel of taps that are already there.

        They are kept as they are, but for the cast to int64 (where both sides are integers),
        float64 or complex128. The kernel is by definition the sum of its terms: its error is 0.

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
        kinds = {taps.dtype.kind for taps in pair}
        dtype = np.dtype(
            np.complex128 if "c" in kinds else np.int64 if kinds <= set("iu") else np.float64
        )
        for name, taps in zip(("columns", "rows"), pair, strict=True):
            if dtype == np.int64 and taps.size and int(taps.max()) > np.iinfo(np.int64).max:
                raise ValueError(
                    f"{name} hold {taps.max()}, which exceeds int64; give them as floats"
                )
        with np.errstate(over="ignore", invalid="ignore"):
            c, r = (cast(taps, dtype) for taps in pair)
            kernel = np.asarray(np.swapaxes(c, -1, -2) @ r)
            wide = cast(kernel, wide_dtype(dtype))
            norms = [np.abs(cast(taps, wide_dtype(dtype))).sum(-1) for taps in (c, r)]
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

    @property
    def growth(self) -> float:
        """``sum_r sum|columns[r]| sum|rows[r]|`` over ``sum|K|``; in a stack, the largest.

        How much larger the terms are than the kernel, and so how much larger the rounding of the
        convolution's arithmetic may be than the dense kernel's: at least about 1.
        """
        left, right = (np.abs(taps).sum(-1, np.float64) for taps in (self.columns, self.rows))
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.sum(left * right, axis=-1) / self.magnitude
        return float(np.where(self.magnitude > 0, ratio, 1.0).max())

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
        gain = np.abs(np.asarray(self.residual.sum((-2, -1)), wide_dtype(self.dtype)))
        total = self.errors * self.magnitude
        # The residual's own sum is rounded, by at most this part of sum|E|; the rest by less.
        gain = np.minimum(gain + math.prod(self.shape[-2:]) * EPS * total, total)
        return float(np.max(gain * middle + total * half) * (1 + 8 * EPS))

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
            taps counts: where that alone breaks a tiny ``tol``, the terms are the different rows or
            columns of the kernel with taps of 1 and 0, which is exact.
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
    with nvtx.range("numbasep.factorise"):
        return _factorise(kernel, rank, tol)


def _factorise(kernel: npt.ArrayLike, rank: int | None, tol: float | None) -> SeparableKernel:
    array = _numbers(kernel, "kernel")
    if array.ndim < 2:
        raise ValueError(
            f"kernel must be 2-D or a stack (..., kh, kw), got shape {array.shape}; "
            f"taps that are already 1-D go to SeparableKernel.from_taps"
        )
    if array.size == 0:
        raise ValueError(f"kernel has no elements, got shape {array.shape}; give at least one")
    *batch, kh, kw = array.shape
    rank, tol = _asked(rank, tol, min(kh, kw))

    flat = array.reshape(-1, kh, kw)
    scaled = Scaled.of(flat)
    columns, sigma, rows = balanced_terms(scaled.high)
    columns, rows = scaled.unscale_taps(columns), scaled.unscale_taps(rows)

    eps, spacing = _PRECISION.get(array.dtype.name, (EPS, -1074))
    if rank is not None:
        eps, spacing = EPS, -1074
    noise = np.ldexp(1.0, np.maximum(spacing - 2 * scaled.half_exponent, -1074))
    ranks = np.sum(sigma > max(kh, kw) * np.maximum(eps * sigma[:, 0], noise)[:, None], axis=-1)
    if rank is not None:
        ranks = np.minimum(ranks, rank)
    elif tol is not None:
        ranks = _smallest_ranks(scaled, columns, rows, tol)

    exact = np.zeros(len(flat), bool)
    if array.dtype.kind in "iu":
        numerical = np.sum(sigma > max(kh, kw) * EPS * sigma[:, :1], axis=-1)
        for b in range(len(flat)):
            factors = exact_factors(flat[b], int(numerical[b]))
            if factors is None or (rank is not None and len(factors[0]) > rank):
                continue
            if tol is not None and 0 <= ranks[b] < len(factors[0]):
                continue
            found = len(factors[0])
            ranks[b], exact[b] = found, True
            columns[b, :found], rows[b, :found] = factors
    for b in map(int, np.flatnonzero(ranks < 0)):
        if scaled.low[b].any():
            raise ValueError(
                f"tol={tol!r} cannot be kept: the kernel has elements that float64 taps cannot "
                f"hold; give a larger tol, or neither tol nor rank"
            )
        units = _unit_taps(cast(flat[b], columns.dtype))
        ranks[b] = len(units[0])
        columns[b, : ranks[b]], rows[b, : ranks[b]] = units

    terms = int(ranks.max())
    used = np.arange(terms) < ranks[:, None]
    columns = np.where(used[..., None], columns[:, :terms], 0)
    rows = np.where(used[..., None], rows[:, :terms], 0)
    remainder = Remainder(scaled)
    for r in range(terms):
        remainder.subtract(columns[:, r], rows[:, r])
    residual = scaled.unscale(remainder.value())
    if exact.all():
        columns, rows, residual = (cast(a, np.dtype(np.int64)) for a in (columns, rows, residual))
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
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(
            f"{name} is a ragged {type(values).__name__}; give rows of one length"
        ) from None
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
        rank = checks.integer("rank", rank)
        if not 0 <= rank <= most:
            raise ValueError(f"rank must be in [0, min(kh, kw)] = [0, {most}], got {rank}")
    if tol is not None:
        value = checks.scalar("tol", tol)
        if isinstance(value, complex):
            raise TypeError(f"tol must be a real number, got {tol!r}")
        tol = float(value)
        if not 0 <= tol < math.inf:
            raise ValueError(f"tol must be a finite number >= 0, got {tol!r}")
    return rank, tol


def _smallest_ranks(
    scaled: Scaled, columns: Array, rows: Array, tol: float
) -> npt.NDArray[np.int64]:
    """Return the first number of terms that keeps ``tol``, or -1 where none does."""
    remainder = Remainder(scaled)
    # Without terms the remainder is the kernel: a ratio of exactly 1, or 0 for a kernel of zeros.
    ranks = np.where((scaled.total == 0) | (tol >= 1), 0, -1)
    for r in range(columns.shape[1]):
        if (ranks >= 0).all():
            break
        remainder.subtract(columns[:, r], rows[:, r])
        ranks = np.where((ranks < 0) & (remainder.ratio() <= tol), r + 1, ranks)
    return np.asarray(ranks, np.int64)


def _unit_taps(kernel: Array) -> tuple[Array, Array]:
    """Return exact terms: the different rows of the kernel and where they stand, or its columns."""
    sides = []
    for table in (kernel, kernel.T):
        rows, inverse = np.unique(table, axis=0, return_inverse=True)
        used = np.flatnonzero(rows.any(axis=1))
        sides.append(((inverse == used[:, None]).astype(kernel.dtype), rows[used]))
    down, across = sides
    return down if len(down[0]) <= len(across[0]) else (across[1], across[0])

"""Filtering a picture: factors that keep a promise, and how signed results are shown."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbasep.factorise import SeparableKernel, factorise
from numbasep.spatial import separable_conv2d

Array = NDArray[Any]

# A kernel whose taps sum to at most this part of their absolute sum takes differences.
BALANCED = 1 / 20


@dataclass(frozen=True)
class Shown:
    """The value of a pixel: ``offset + scale * result``, or of its magnitude."""

    scale: float = 1.0
    offset: float = 0.0
    absolute: bool = False

    def __str__(self) -> str:
        value = "|result|" if self.absolute else "result"
        if self.scale != 1:
            value = f"{self.scale:.6g} x {value}"
        return f"{self.offset:.6g} + {value}" if self.offset else value

    @property
    def plain(self) -> bool:
        return self == Shown()


@dataclass(frozen=True)
class Filtered:
    """A filtered image, and how it came about.

    kernel: factors, or the dense kernel where that is cheaper or was asked for.
    error: bound of what the factors change in a pixel's value, before its rounding; NaN for an
        image that is not finite.
    seconds: what the filtering took, loading or compilation included, factorising not.
    """

    image: Array
    kernel: SeparableKernel | Array
    shown: Shown
    error: float
    seconds: float

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.image.dtype


def showing(
    kernel: Array,
    dtype: np.dtype[Any],
    scale: float | None,
    offset: float | None,
    absolute: bool,
) -> Shown:
    """Return how results are shown where the user did not say all of it.

    Results of a kernel whose taps cancel (derivatives, Gabor, Laplace) have both signs. Where
    pixels have none, and none of the three was given, they are shown around the middle grey and
    divided by ``sum|K|``: exactly the range that such results can take.
    """
    if scale is None and offset is None and not absolute and dtype.kind == "u":
        total = float(np.abs(kernel).sum(dtype=np.float64))
        if kernel.dtype.kind != "c" and abs(float(kernel.sum())) <= BALANCED * total and total:
            return Shown(1 / total, 2.0 ** (8 * dtype.itemsize - 1))
    return Shown(1.0 if scale is None else scale, 0.0 if offset is None else offset, absolute)


def chosen(
    kernel: Array | SeparableKernel, tol: float | None, rank: int | None
) -> SeparableKernel | Array:
    """Return what is convolved with: the factors that were asked for, or what costs least."""
    if isinstance(kernel, SeparableKernel):
        if tol is None and rank is None:
            return kernel
        kernel = kernel.dense() + kernel.residual
    factors = factorise(kernel, rank=rank, tol=tol)
    return factors if rank is not None or factors.worth_separating else kernel


@dataclass(frozen=True)
class Filter:
    """A filter for images of a dtype, checked and factorised.

    kernel, shown: see ``Filtered``. result: dtype that the convolution is asked for.
    """

    kernel: SeparableKernel | Array
    shown: Shown
    dtype: np.dtype[Any]
    result: Any
    boundary: str
    fillvalue: float
    backend: str | None

    def __call__(self, image: Array, axes: tuple[int, int]) -> Array:
        """Filter the images of an array; the result has its dtype."""
        outside = {"boundary": self.boundary, "fillvalue": self.fillvalue}
        return self._pixels(image, axes, **outside)

    def inner(self, window: Array, axes: tuple[int, int]) -> Array:
        """Filter where the kernel lies inside a window."""
        return self._pixels(window, axes, mode="valid")

    def _pixels(self, image: Array, axes: tuple[int, int], **options: Any) -> Array:
        result: Array = separable_conv2d(
            image, self.kernel, axes=axes, dtype=self.result, backend=self.backend, **options
        )
        return result if self.shown.plain else _shown(result, self.shown, self.dtype)

    def error(self, low: float, high: float) -> float:
        """Bound what the factors change in a pixel of images within [low, high]."""
        if not isinstance(self.kernel, SeparableKernel) or self.kernel.error == 0:
            return 0.0
        values = [low, high]
        if self.boundary == "fill":
            values.append(float(self.fillvalue))
        if not np.isfinite(values).all():
            return float("nan")
        return self.kernel.output_error_bound(min(values), max(values)) * abs(self.shown.scale)


def prepared(
    dtype: np.dtype[Any],
    kernel: Array | SeparableKernel,
    *,
    tol: float | None = None,
    rank: int | None = None,
    boundary: str = "mirror",
    fillvalue: float = 0,
    scale: float | None = None,
    offset: float | None = None,
    absolute: bool = False,
    backend: str | None = None,
) -> Filter:
    """Return the filter for images of a dtype. ``fillvalue`` is in units of the image."""
    for name, value in (("scale", scale), ("offset", offset)):
        if value is not None and not np.isfinite(value):
            raise ValueError(f"{name}: got {value}; pass a finite number")
    used = chosen(kernel, tol, rank)
    dense = used.dense() if isinstance(used, SeparableKernel) else used
    shown = showing(dense, dtype, scale, offset, absolute)
    if dense.dtype.kind == "c" and not absolute:
        raise ValueError("the kernel is complex, and so is the result; add --absolute for |result|")
    if dtype.kind in "iu" and float(fillvalue).is_integer():
        fillvalue = int(fillvalue)
    result: Any = dtype
    if not shown.plain:
        result = "int64" if dtype.kind in "iu" and dense.dtype.kind in "iu" else None
    return Filter(used, shown, dtype, result, boundary, fillvalue, backend)


def apply(image: Array, kernel: Array | SeparableKernel, **options: Any) -> Filtered:
    """Filter each channel of an image ``(H, W, C)``; the result has its dtype.

    Integers are rounded once, half to even, and saturate. options: of ``prepared``.
    """
    made = prepared(image.dtype, kernel, **options)
    start = time.perf_counter()
    result = made(image, (0, 1))
    seconds = time.perf_counter() - start
    error = made.error(float(image.min()), float(image.max()))
    return Filtered(result, made.kernel, made.shown, error, seconds)


def _shown(result: Array, shown: Shown, dtype: np.dtype[Any]) -> Array:
    value = np.abs(result) if shown.absolute else result
    if dtype.kind == "f":
        value = value.astype(np.result_type(dtype, np.float32), copy=False)
        return (shown.scale * value + shown.offset).astype(dtype)
    if shown == Shown(absolute=True) and value.dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return np.clip(value, limits.min, limits.max).astype(dtype)
    return rounded(shown.scale * value.astype(np.float64) + shown.offset, dtype)


def rounded(values: Array, dtype: np.dtype[Any]) -> Array:
    """Return floats as integers: rounded half to even, saturating, NaN as 0."""
    limits = np.iinfo(dtype)
    whole = np.nan_to_num(np.rint(values), nan=0.0, posinf=np.inf, neginf=-np.inf)
    # Clipping to a limit that float64 rounds up would overflow: 2**63 and 2**64 are set apart.
    inside = np.where(whole >= limits.max, 0, np.clip(whole, limits.min, None))
    result: Array = inside.astype(dtype)
    result[whole >= limits.max] = limits.max
    return result

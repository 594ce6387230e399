"""Reference results: scipy.signal and numpy.pad, in more precision than what is tested."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from scipy import signal

Array = NDArray[Any]


def of(name: str) -> np.dtype[Any]:
    """Return the dtype of a name, bfloat16 too."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


PAD = {"wrap": "wrap", "symm": "symmetric", "nearest": "edge", "mirror": "reflect"}

# Unit roundoffs; the accumulator's dtype is the key.
ROUNDOFF = {
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
    "float32": 2.0**-24,
    "float64": 2.0**-53,
    # A complex product is four real ones and two sums (Higham, section 3.6: 2 sqrt(2) gamma(2)).
    "complex64": 2.0**-24,
    "complex128": 2.0**-53,
}

LARGEST = {"float16": 65504.0, "bfloat16": float.fromhex("0x1.FEp127")}


def dense(columns: Array, rows: Array) -> Array:
    """Return the kernel of factors (R, kh) and (R, kw)."""
    return np.einsum("ri,rj->ij", columns, rows)


def dilate(kernel: Array, dilation: tuple[int, int]) -> Array:
    """Return the kernel with zeros between its taps."""
    kh, kw = kernel.shape
    dy, dx = dilation
    result = np.zeros(((kh - 1) * dy + 1, (kw - 1) * dx + 1), kernel.dtype)
    result[::dy, ::dx] = kernel
    return result


def extend(image: Array, margins: tuple[int, int], boundary: str, fillvalue: Any) -> Array:
    """Return the image with ``margins`` rows and columns of its surroundings on every side."""
    widths = [(margin, margin) for margin in margins]
    if boundary == "fill":
        return np.pad(image, widths, "constant", constant_values=fillvalue)
    return np.pad(image, widths, PAD[boundary])  # type: ignore[call-overload]


def convolve2d(
    image: Array,
    kernel: Array,
    *,
    mode: str = "same",
    boundary: str = "fill",
    fillvalue: Any = 0,
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
) -> Array:
    """Convolve one image, any boundary, every mode, in the dtype that the arguments have."""
    kernel = dilate(kernel, dilation)
    kh, kw = kernel.shape
    h, w = image.shape
    if mode == "valid" and (h < kh or w < kw):
        full = signal.convolve2d(image, kernel, "valid")
    else:
        extended = extend(image, (kh - 1, kw - 1), boundary, fillvalue)
        full = signal.convolve2d(extended, kernel, "valid")
        if mode == "same":
            full = full[(kh - 1) // 2 :, (kw - 1) // 2 :][:h, :w]
        elif mode == "valid":
            full = full[kh - 1 : h, kw - 1 : w]
    return full[:: stride[0], :: stride[1]]


def gamma(n: int, dtype: str) -> float:
    """Return Higham's n u / (1 - n u)."""
    u = ROUNDOFF[dtype]
    return n * u / (1 - n * u)


def bound(n: int, sums: Array, reference: Array, compute: str, output: str) -> Array:
    """Return the largest error allowed in each element.

    n roundings of the accumulator, each relative to ``sums`` = |x| convolved with |taps|, then one
    rounding into the output: half an ulp, or half the spacing of its subnormals.
    """
    error = gamma(n, compute) * sums
    if output == compute or output in ("float64", "complex128"):
        return error
    real = output.replace("complex64", "float32")
    u = ROUNDOFF[real]
    smallest = {"float16": 2.0**-25, "bfloat16": 2.0**-134, "float32": 2.0**-150}[real]
    return error + u * (np.abs(reference) + error) + smallest

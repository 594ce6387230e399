"""The 2-D kernels that people ask for by name, as NumPy arrays ``(kh, kw)``.

They are convolution kernels (``scipy.signal.convolve2d`` flips them); x points right, y down, and
angles are in radians from x towards y. Lengths and standard deviations are in pixels. All are odd
and centred; derivative kernels and unnormalised ones are int64, the rest float64.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from numbasep.plan import checks

__all__ = [
    "binomial",
    "box",
    "disk",
    "gabor",
    "gaussian",
    "laplace_of_gaussian",
    "motion",
    "named",
    "prewitt_x",
    "prewitt_y",
    "rotated_gaussian",
    "scharr_x",
    "scharr_y",
    "sobel_x",
    "sobel_y",
]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

# Elements from the middle of a kernel to its edge: one of half a gigabyte. A slip of the keyboard
# is answered before it takes the machine's memory.
_LARGEST_REACH = 4096


def gaussian(sigma: float, truncate: float = 4.0) -> Floats:
    """Return a Gaussian of sum 1, cut off at ``truncate`` standard deviations.

    Equal to:
        ``scipy.ndimage.gaussian_filter(impulse, sigma, truncate=truncate)``
    """
    taps = _gaussian_taps(sigma, truncate)
    return np.outer(taps, taps)


def _gaussian_taps(sigma: float, truncate: float) -> Floats:
    sigma, truncate = _positive(sigma, "sigma"), _positive(truncate, "truncate")
    radius = _bounded(truncate * sigma + 0.5)
    x = np.arange(-radius, radius + 1)
    taps = np.exp(-0.5 / (sigma * sigma) * x**2)
    return np.asarray(taps / taps.sum())


def rotated_gaussian(sigma_u: float, sigma_v: float, angle: float, truncate: float = 4.0) -> Floats:
    """Return a Gaussian of sum 1, of ``sigma_u`` along the angle and ``sigma_v`` across it.

    ``exp(-(u / sigma_u)**2 / 2 - (v / sigma_v)**2 / 2)`` on the rectangle that holds
    ``truncate`` standard deviations of x and of y.
    """
    sigma_u, sigma_v = _positive(sigma_u, "sigma_u"), _positive(sigma_v, "sigma_v")
    truncate, angle = _positive(truncate, "truncate"), _finite(angle, "angle")
    c, s = _direction(angle)
    y, x = _grid(
        int(truncate * math.hypot(sigma_u * s, sigma_v * c) + 0.5),
        int(truncate * math.hypot(sigma_u * c, sigma_v * s) + 0.5),
    )
    u, v = x * c + y * s, y * c - x * s
    kernel = np.exp(-0.5 * ((u / sigma_u) ** 2 + (v / sigma_v) ** 2))
    return np.asarray(kernel / kernel.sum())


def disk(radius: float, antialias: bool = True) -> Floats:
    """Return a disk of sum 1, the blur of a lens out of focus.

    With ``antialias``, an element is the part ``clip(radius + 1/2 - distance, 0, 1)`` of a full
    one; without, it counts where its centre is within the radius.

    Equal to:
        ``skimage.morphology.disk(radius)`` over its sum, for whole radii without ``antialias``
    """
    radius = _positive(radius, "radius")
    reach = math.ceil(radius + 0.5) - 1 if antialias else int(radius)
    y, x = _grid(reach, reach)
    if antialias:
        kernel = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1)
    else:
        kernel = (x * x + y * y <= radius * radius).astype(np.float64)
    return np.asarray(kernel / kernel.sum())


def box(n: int, normalise: bool = True) -> Floats | Integers:
    """Return ``n`` x ``n`` equal elements of sum 1, or ones (int64) without ``normalise``.

    Equal to:
        ``scipy.ndimage.uniform_filter(impulse, n)`` for odd n
    """
    n = checks.integer("n", n, 1)
    _bounded(n / 2)
    ones = np.ones((n, n), np.int64)
    return ones / (n * n) if normalise else ones


def binomial(n: int, normalise: bool = True) -> Floats | Integers:
    """Return the ``n`` x ``n`` binomial kernel of sum 1, or its integers without ``normalise``.

    The taps are row ``n - 1`` of Pascal's triangle. n at most 30, so that the integers are exact in
    int64 and in float64.
    """
    n = checks.integer("n", n, 1)
    if n > 30:
        raise ValueError(f"n must be at most 30, got {n}; use gaussian(sqrt(n - 1) / 2)")
    taps = np.array([math.comb(n - 1, k) for k in range(n)], np.int64)
    kernel = np.outer(taps, taps)
    return kernel / 4.0 ** (n - 1) if normalise else kernel


def sobel_x() -> Integers:
    """Return Sobel's derivative along x.

    Equal to:
        ``scipy.ndimage.sobel(image, axis=1)`` is the convolution with it (``mode="constant"``)
    """
    return np.outer([1, 2, 1], [1, 0, -1])


def sobel_y() -> Integers:
    """Return Sobel's derivative along y: ``scipy.ndimage.sobel(image, axis=0)``."""
    return sobel_x().T.copy()


def scharr_x() -> Integers:
    """Return Scharr's derivative along x.

    Equal to:
        16 times ``skimage.filters.scharr(image, axis=1)`` is the convolution with it
    """
    return np.outer([3, 10, 3], [1, 0, -1])


def scharr_y() -> Integers:
    """Return Scharr's derivative along y: 16 times ``skimage.filters.scharr(image, axis=0)``."""
    return scharr_x().T.copy()


def prewitt_x() -> Integers:
    """Return Prewitt's derivative along x: ``scipy.ndimage.prewitt(image, axis=1)``."""
    return np.outer([1, 1, 1], [1, 0, -1])


def prewitt_y() -> Integers:
    """Return Prewitt's derivative along y: ``scipy.ndimage.prewitt(image, axis=0)``."""
    return prewitt_x().T.copy()


def laplace_of_gaussian(sigma: float, truncate: float = 4.0) -> Floats:
    """Return the Laplace operator of a Gaussian, shifted to a sum of 0 so that flat stays flat.

    Equal to:
        ``scipy.ndimage.gaussian_laplace(impulse, sigma, truncate=truncate)`` less its mean, and
        MATLAB's ``fspecial("log", n, sigma)``
    """
    taps = _gaussian_taps(sigma, truncate)
    y, x = _grid(len(taps) // 2, len(taps) // 2)
    kernel = np.outer(taps, taps) * ((x * x + y * y - 2 * sigma**2) / sigma**4)
    return np.asarray(kernel - kernel.mean())


def gabor(
    frequency: float,
    theta: float = 0.0,
    bandwidth: float = 1.0,
    sigma_x: float | None = None,
    sigma_y: float | None = None,
    n_stds: float = 3.0,
    offset: float = 0.0,
    part: Literal["real", "imag", "complex"] = "real",
) -> npt.NDArray[Any]:
    """Return a Gabor kernel: a wave of ``frequency`` cycles per pixel under a Gaussian.

    The wave runs along ``theta``. ``sigma_x`` (along the wave) and ``sigma_y`` (across it) follow
    from ``bandwidth``, in octaves, where they are not given. Its real part by default; the whole,
    complex kernel is separable where ``sigma_x == sigma_y``, and either part is then of rank 2.

    Equal to:
        ``skimage.filters.gabor_kernel(frequency, theta, bandwidth, sigma_x, sigma_y, n_stds,
        offset)``, its ``.real`` or its ``.imag``
    """
    if part not in ("real", "imag", "complex"):
        raise ValueError(f'part must be "real", "imag" or "complex", got {part!r}')
    frequency, theta = _positive(frequency, "frequency"), _finite(theta, "theta")
    bandwidth, n_stds = _positive(bandwidth, "bandwidth"), _positive(n_stds, "n_stds")
    octaves = 2.0**bandwidth
    # Standard deviation times frequency at which the response falls to half `bandwidth` apart.
    spread = math.sqrt(math.log(2) / 2) / math.pi * (octaves + 1) / (octaves - 1) / frequency
    sigma_x = spread if sigma_x is None else _positive(sigma_x, "sigma_x")
    sigma_y = spread if sigma_y is None else _positive(sigma_y, "sigma_y")
    c, s = _direction(theta)
    y, x = _grid(
        math.ceil(max(abs(n_stds * sigma_y * c), abs(n_stds * sigma_x * s), 1)),
        math.ceil(max(abs(n_stds * sigma_x * c), abs(n_stds * sigma_y * s), 1)),
    )
    u, v = x * c + y * s, y * c - x * s
    envelope = np.exp(-0.5 * ((u / sigma_x) ** 2 + (v / sigma_y) ** 2))
    envelope /= 2 * math.pi * sigma_x * sigma_y
    kernel: npt.NDArray[Any] = envelope * np.exp(
        1j * (2 * math.pi * frequency * u + _finite(offset, "offset"))
    )
    if part == "complex":
        return kernel
    return (kernel.real if part == "real" else kernel.imag).copy()


def motion(length: float, angle: float = 0.0) -> Floats:
    """Return the blur of a straight motion over ``length`` pixels, of sum 1.

    An element is ``max(0, 1 - distance)`` of its centre from the segment of ``length - 1`` pixels
    through the middle: one pixel wide, antialiased. Only along the axes is it of low rank.

    Equal to:
        MATLAB's ``fspecial("motion", length, angle)`` turned the other way, as y points down here
    """
    length, angle = _positive(length, "length"), _finite(angle, "angle")
    half = max(length - 1, 0) / 2
    c, s = _direction(angle)
    y, x = _grid(_reach(half * abs(s)), _reach(half * abs(c)))
    u, v = x * c + y * s, y * c - x * s
    kernel = np.maximum(0, 1 - np.hypot(np.maximum(np.abs(u) - half, 0), v))
    return np.asarray(kernel / kernel.sum())


def _reach(half: float) -> int:
    # A centre at distance 1 from the segment counts nothing. The last bits of cos and sin do not
    # add an empty border.
    return max(math.ceil(half - 1e-9 + 1) - 1, 0)


_NAMES: dict[str, Callable[..., npt.NDArray[Any]]] = {
    "binomial": binomial,
    "box": box,
    "disk": disk,
    "gabor": gabor,
    "gaussian": gaussian,
    "log": laplace_of_gaussian,
    "motion": motion,
    "prewitt-x": prewitt_x,
    "prewitt-y": prewitt_y,
    "rotated-gaussian": rotated_gaussian,
    "scharr-x": scharr_x,
    "scharr-y": scharr_y,
    "sobel-x": sobel_x,
    "sobel-y": sobel_y,
}
_ANGLES = {"angle", "theta", "offset"}
_NUMBERS = {"float", "float | None", "int"}


def named(text: str) -> npt.NDArray[Any]:
    """Return the kernel of a text such as ``gaussian:2.5``, ``disk:15`` or ``gabor:0.1,30``.

    A name of this module with hyphens (``log`` for ``laplace_of_gaussian``), a colon, and its
    numbers, in order or by name (``gabor:0.1,sigma_x=4``). Angles are in degrees here.

    Raises:
        ValueError: naming what is not understood, and what would be.
    """
    name, _, given = text.partition(":")
    name = name.strip()
    if name not in _NAMES:
        near = difflib.get_close_matches(name.lower(), _NAMES, n=1)
        hint = f"did you mean {near[0]}? T" if near else "t"
        raise ValueError(f"no kernel is named {name!r}; {hint}here are {', '.join(_NAMES)}")
    function = _NAMES[name]
    parameters = [
        p for p in inspect.signature(function).parameters.values() if p.annotation in _NUMBERS
    ]
    values: dict[str, float] = {}
    for i, item in enumerate(given.split(",") if given.strip() else []):
        key, equals, number = (part.strip() for part in item.rpartition("="))
        if not equals:
            key = parameters[i].name if i < len(parameters) else ""
        parameter = next((p for p in parameters if p.name == key), None)
        if parameter is None or key in values:
            raise ValueError(
                f"{item.strip()!r} in {text!r} is too much; {_usage(name, parameters)}"
            )
        try:
            value = int(number) if parameter.annotation == "int" else float(number)
        except ValueError:
            kind = "whole number" if parameter.annotation == "int" else "number"
            raise ValueError(f"{item.strip()!r} in {text!r} is no {kind}") from None
        values[key] = math.radians(value) if key in _ANGLES else value
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.name not in values:
            raise ValueError(f"{text!r} lacks {parameter.name}; {_usage(name, parameters)}")
    return function(**values)


def _usage(name: str, parameters: list[inspect.Parameter]) -> str:
    items = [p.name if p.default is p.empty else f"[{p.name}]" for p in parameters]
    return f"write {name}:{','.join(items)}" if items else f"write {name}"


def _direction(angle: float) -> tuple[float, float]:
    """Return cos and sin, 0 where a multiple of a right angle misses it by pi's rounding."""
    c, s = math.cos(angle), math.sin(angle)
    return c if abs(c) > 1e-15 else 0.0, s if abs(s) > 1e-15 else 0.0


def _bounded(reach: float) -> int:
    if reach > _LARGEST_REACH:
        raise ValueError(
            f"the kernel would reach {reach:.6g} pixels from its middle, at most "
            f"{_LARGEST_REACH} are made; reduce its size, or filter a smaller image"
        )
    return int(reach)


def _grid(reach_y: int, reach_x: int) -> tuple[Floats, Floats]:
    _bounded(max(reach_y, reach_x))
    y, x = np.ogrid[-reach_y : reach_y + 1, -reach_x : reach_x + 1]
    return y.astype(np.float64), x.astype(np.float64)


def _finite(value: float, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return number


def _positive(value: float, name: str) -> float:
    number = _finite(value, name)
    if number <= 0:
        raise ValueError(f"{name} must be positive, got {value!r}")
    return number

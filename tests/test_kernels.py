"""The named kernels against the libraries that have them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.ndimage
import scipy.signal
import skimage.filters
import skimage.morphology
from hypothesis import given
from hypothesis import strategies as st

from numbasep import kernels

Array = npt.NDArray[Any]

EPS = float(np.finfo(np.float64).eps)


def impulse(shape: tuple[int, ...]) -> Array:
    image = np.zeros(shape)
    image[tuple(n // 2 for n in shape)] = 1
    return image


def near(kernel: Array, peer: Array, operations: int) -> None:
    """Both come from the same formula with so many roundings each, relative to the largest."""
    assert kernel.shape == peer.shape
    assert np.abs(kernel - peer).max() <= 2 * operations * EPS * np.abs(peer).max()


@given(st.floats(0.3, 6), st.floats(1, 5))
def test_gaussian(sigma: float, truncate: float) -> None:
    kernel = kernels.gaussian(sigma, truncate)
    peer = scipy.ndimage.gaussian_filter(impulse(kernel.shape), sigma, truncate=truncate)
    # A tap: exponent, power, sum and quotient; its exponent of up to 13 multiplies the rounding.
    near(kernel, peer, 30 + len(kernel))
    assert kernel.sum() == pytest.approx(1, abs=kernel.size * EPS)


@given(st.floats(0.5, 4))
def test_laplace_of_gaussian(sigma: float) -> None:
    kernel = kernels.laplace_of_gaussian(sigma)
    peer = scipy.ndimage.gaussian_laplace(impulse(kernel.shape), sigma, mode="constant")
    near(kernel, peer - peer.mean(), 60 + len(kernel))
    assert abs(kernel.sum()) <= kernel.size * EPS * np.abs(kernel).max()


@given(
    st.floats(0.05, 0.4),
    st.floats(-4, 4),
    st.floats(0.5, 2),
    st.none() | st.floats(1, 4),
    st.none() | st.floats(1, 4),
    st.floats(1, 3),
    st.floats(-4, 4),
)
def test_gabor(
    frequency: float,
    theta: float,
    bandwidth: float,
    sigma_x: float | None,
    sigma_y: float | None,
    n_stds: float,
    offset: float,
) -> None:
    given_values = (frequency, theta, bandwidth, sigma_x, sigma_y, n_stds, offset)
    kernel = kernels.gabor(*given_values, part="complex")
    peer = skimage.filters.gabor_kernel(*given_values)
    # A phase of 2 pi frequency times the radius, rounded, turns the wave by as many eps.
    near(kernel, peer, 40 + 7 * max(kernel.shape))
    assert (kernels.gabor(*given_values) == kernel.real).all()
    assert (kernels.gabor(*given_values, part="imag") == kernel.imag).all()


@pytest.mark.parametrize("radius", [1, 2, 5, 15])
def test_disk(radius: int) -> None:
    peer = skimage.morphology.disk(radius)
    kernel = kernels.disk(radius, antialias=False)
    assert kernel.shape == peer.shape
    assert (kernel == peer / peer.sum()).all()
    smooth = kernels.disk(radius)
    assert smooth.shape == peer.shape
    # The edge is smoothed over one pixel: whole inside, nothing outside.
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    full = smooth[radius, radius]
    assert (smooth[np.hypot(x, y) <= radius - 0.5] == full).all()
    assert (smooth[np.hypot(x, y) >= radius + 0.5] == 0).all()
    # The elements add up to the area, but for the pixels' squareness.
    assert abs(1 / full - math.pi * (radius**2 + 1 / 12)) < 0.02 * math.pi * radius**2 + 0.5


@given(st.floats(0.3, 20), st.booleans())
def test_disks_have_no_empty_border(radius: float, antialias: bool) -> None:
    kernel = kernels.disk(radius, antialias)
    assert kernel[0].any()
    assert (kernel == kernel[::-1]).all()
    assert (kernel == kernel.T).all()


@pytest.mark.parametrize("n", [1, 3, 7])
def test_box(n: int) -> None:
    near(kernels.box(n), scipy.ndimage.uniform_filter(impulse((n, n)), n), 4)
    assert (kernels.box(n, normalise=False) == 1).all()
    assert kernels.box(2).tolist() == [[0.25, 0.25], [0.25, 0.25]]


def test_binomial() -> None:
    assert kernels.binomial(3, normalise=False).tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
    assert kernels.binomial(5).sum() == 1
    largest = kernels.binomial(30, normalise=False)
    assert int(largest.sum()) == 4**29
    assert (largest.astype(np.float64).astype(np.int64) == largest).all()


@pytest.mark.parametrize("name", ["sobel", "prewitt", "scharr"])
@pytest.mark.parametrize("axis", [0, 1])
def test_derivatives(name: str, axis: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 11))
    kernel = kernels.named(f"{name}-{'yx'[axis]}")
    y = scipy.signal.convolve2d(image, kernel, mode="same")
    if name == "scharr":
        floats = 16 * skimage.filters.scharr(image.astype(float), axis=axis, mode="constant")
        assert np.abs(y - floats).max() <= 64 * EPS * 255 * 16
    else:
        peer = getattr(scipy.ndimage, name)(image, axis=axis, mode="constant")
        assert (y == peer).all()
    assert kernel.dtype == np.int64


@given(st.floats(0.5, 4), st.floats(0.5, 4), st.floats(-7, 7))
def test_rotated_gaussian(sigma_u: float, sigma_v: float, angle: float) -> None:
    kernel = kernels.rotated_gaussian(sigma_u, sigma_v, angle)
    assert kernel.sum() == pytest.approx(1, abs=kernel.size * EPS)
    assert (kernel == kernel[::-1, ::-1]).all()
    # A quarter turn exchanges the axes; rounding of cos and sin shows in the exponent.
    turned = kernels.rotated_gaussian(sigma_v, sigma_u, angle + math.pi / 2)
    if turned.shape == kernel.shape:
        near(turned, kernel, 200 + 20 * max(kernel.shape))


def test_rotated_gaussian_points_from_x_towards_y() -> None:
    kernel = kernels.rotated_gaussian(4, 1, math.radians(30))
    h, w = kernel.shape[0] // 2, kernel.shape[1] // 2
    assert kernel[h + 3, w + 5] > kernel[h - 3, w + 5]
    assert kernel.shape[1] > kernel.shape[0]
    straight = kernels.rotated_gaussian(4, 1, 0)
    taps = [scipy.ndimage.gaussian_filter1d(impulse((n,)), s) for n, s in ((9, 1), (33, 4))]
    near(straight, np.outer(*taps), 100)


@given(st.floats(0.5, 40), st.floats(-7, 7))
def test_motion(length: float, angle: float) -> None:
    kernel = kernels.motion(length, angle)
    assert kernel.sum() == pytest.approx(1, abs=kernel.size * EPS)
    assert (kernel >= 0).all()
    assert (kernel == kernel[::-1, ::-1]).all()
    # Second moments of a segment along the angle: all of the length is there, none across.
    h, w = (n // 2 for n in kernel.shape)
    y, x = np.ogrid[-h : h + 1, -w : w + 1]
    across = y * math.cos(angle) - x * math.sin(angle)
    along = y * math.sin(angle) + x * math.cos(angle)
    assert np.abs(across[kernel > 0]).max() <= 1
    assert np.abs(along[kernel > 0]).max() <= max(length - 1, 0) / 2 + 1


def test_straight_motion() -> None:
    assert (kernels.motion(5) == np.full((1, 5), 0.2)).all()
    assert (kernels.motion(5, math.pi / 2) == np.full((5, 1), 0.2)).all()
    assert kernels.motion(1, 0.3).tolist() == [[1.0]]
    falling = kernels.motion(9, math.radians(45))
    assert falling[0, 0] > 0
    assert falling[0, -1] == 0


def test_named() -> None:
    assert (kernels.named("gaussian:2.5") == kernels.gaussian(2.5)).all()
    assert (kernels.named(" gaussian : 2.5 , 3") == kernels.gaussian(2.5, 3)).all()
    assert (kernels.named("disk:15") == kernels.disk(15)).all()
    assert (kernels.named("box:3") == kernels.box(3)).all()
    assert (kernels.named("sobel-x") == kernels.sobel_x()).all()
    assert (kernels.named("log:2") == kernels.laplace_of_gaussian(2)).all()
    assert (kernels.named("gabor:0.1,30") == kernels.gabor(0.1, math.radians(30))).all()
    assert (kernels.named("gabor:0.1,sigma_x=2") == kernels.gabor(0.1, sigma_x=2)).all()
    assert (kernels.named("motion:9,45") == kernels.motion(9, math.radians(45))).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("blur", "no kernel is named 'blur'; there are binomial, box, "),
        ("Gausian:2", "no kernel is named 'Gausian'; did you mean gaussian. There are binomial"),
        ("gaussian", "'gaussian' lacks sigma; write gaussian:sigma"),
        ("gaussian:1,2,3", "'3' in .* is too much"),
        ("gaussian:x", "'x' in 'gaussian:x' is no number"),
        ("gaussian:1,sigma=2", "'sigma=2' in .* is too much"),
        ("gaussian:1,width=2", "'width=2' in .* is too much"),
        ("box:2.5", "'2.5' in 'box:2.5' is no whole number"),
        ("sobel-x:3", "is too much; write sobel-x$"),
        ("gaussian:-1", "sigma must be positive, got -1.0"),
        ("gaussian:nan", "sigma must be finite, got nan"),
        ("disk:0", "radius must be positive"),
        ("box:0", "n: got 0; pass an integer of at least 1"),
        ("gaussian:1e5", "would reach 400000 pixels from its middle, at most 4096"),
        ("disk:1e6", "would reach 1e.06 pixels"),
        ("gabor:1e-9", "would reach .* pixels"),
        ("motion:1e7", "would reach .* pixels"),
        ("box:8194", "would reach 4097 pixels"),
        ("binomial:31", "n must be at most 30"),
    ],
)
def test_refused_names(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.named(text)


def test_refused_values() -> None:
    with pytest.raises(TypeError, match="sigma must be a number, got 'wide'"):
        kernels.gaussian("wide")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"n: expected an integer, got 2\.5"):
        kernels.box(2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='part must be "real", "imag" or "complex", got'):
        kernels.gabor(0.1, part="phase")  # type: ignore[arg-type]

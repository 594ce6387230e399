"""factorise and SeparableKernel against their definitions; sums that decide are exact fractions."""

from __future__ import annotations

import copy
import math
import pickle
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import scipy.signal
from hypothesis import example, given
from hypothesis import strategies as st

from numbasep import kernels
from numbasep.factorise import SeparableKernel, factorise

Array = npt.NDArray[Any]

EPS = float(np.finfo(np.float64).eps)


@st.composite
def float_kernels(draw: st.DrawFn, most: int = 9) -> Array:
    """Random kernels with structure: full or low rank, graded, folded onto a symmetry, rounded."""
    kh, kw = draw(st.integers(1, most)), draw(st.integers(1, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kernel = rng.standard_normal((kh, kw))
    shape = draw(st.sampled_from(["full", "low", "graded", "sparse", "whole"]))
    if shape == "low":
        r = draw(st.integers(0, min(kh, kw)))
        kernel = rng.standard_normal((kh, r)) @ rng.standard_normal((r, kw))
    elif shape == "graded":
        kernel *= 10.0 ** -rng.uniform(0, 20, (kh, kw))
    elif shape == "sparse":
        kernel *= rng.random((kh, kw)) < 0.3
    elif shape == "whole":
        kernel = np.round(kernel * 3)
    kernel = symmetrised(kernel, draw(st.sampled_from(SYMMETRIES)))
    return kernel * 2.0 ** draw(st.integers(-400, 400))


SYMMETRIES = ["none", "down+", "down-", "across+", "across-", "both", "turn+", "turn-", "transpose"]


def symmetrised(kernel: Array, symmetry: str) -> Array:
    sign = -1 if symmetry.endswith("-") else 1
    if symmetry.startswith("down") or symmetry == "both":
        kernel = kernel + sign * kernel[::-1]
    if symmetry.startswith("across") or symmetry == "both":
        kernel = kernel + sign * kernel[:, ::-1]
    if symmetry.startswith("turn"):
        kernel = kernel + sign * kernel[::-1, ::-1]
    if symmetry == "transpose":
        side = min(kernel.shape)
        kernel = kernel[:side, :side] + kernel[:side, :side].T
    return kernel


@st.composite
def complex_kernels(draw: st.DrawFn) -> Array:
    real = draw(float_kernels())
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return real + 1j * np.abs(real).max() * rng.standard_normal(real.shape)


def exact_terms(f: SeparableKernel) -> list[list[Fraction]]:
    kh, kw = f.shape
    c = [[Fraction(x.item()) for x in taps] for taps in f.columns]
    r = [[Fraction(x.item()) for x in taps] for taps in f.rows]
    return [
        [sum((c[t][i] * r[t][j] for t in range(f.rank)), Fraction(0)) for j in range(kw)]
        for i in range(kh)
    ]


def exact_error(f: SeparableKernel, kernel: Array) -> tuple[Fraction, Fraction]:
    """Return ``sum|K - terms|`` and ``sum|K|``, exactly."""
    terms = exact_terms(f)
    # A long double has no exact `item`, but an exact ratio; integers have no ratio.
    whole = kernel.dtype.kind in "iu"
    elements = [
        [Fraction(k.item()) if whole else Fraction(*k.as_integer_ratio()) for k in row]
        for row in kernel
    ]
    left = sum(
        (
            abs(k - t)
            for row, sums in zip(elements, terms, strict=True)
            for k, t in zip(row, sums, strict=True)
        ),
        Fraction(0),
    )
    return left, sum((abs(k) for row in elements for k in row), Fraction(0))


def decomposition_bound(kernel: Array) -> float:
    """Bound the rounding of an SVD and of its taps, in the Frobenius norm.

    LAPACK's SVD is exact for a kernel within ``p eps sigma[0]`` of the one given, p a modestly
    growing function of the size (LAPACK Users' Guide, 4.9), taken as kh + kw; folding adds 2 eps.
    A term has four roundings of eps / 2 in each product (its root twice, the two scalings), and
    the terms' norms add up to at most sqrt(min(kh, kw)) of the kernel's. Complex operations round
    2 sqrt(2) times as much (Higham, Accuracy and Stability, section 3.6).
    """
    kh, kw = kernel.shape
    factor = 2 * math.sqrt(2) if kernel.dtype.kind == "c" else 1.0
    return factor * (kh + kw + 2 + 2 * math.sqrt(min(kh, kw))) * EPS * float(np.linalg.norm(kernel))


# The definition and the error.


@given(float_kernels())
@example(np.zeros((3, 4)))
@example(np.full((1, 1), 5e-324))
@example(np.full((2, 2), 1.7e308 / 8))
def test_error_is_that_of_the_taps_as_stored(kernel: Array) -> None:
    f = factorise(kernel)
    left, total = exact_error(f, kernel)
    # Rounded up, and by no more than its two sums' worth of eps (and the bits below the double).
    assert left <= Fraction(f.error) * total
    size = kernel.size
    assert Fraction(f.error) * total <= left * (1 + Fraction(3 * (size + 16) * EPS)) + (
        total * Fraction(2) ** -96
    )
    assert np.array_equal(f.errors, f.error)


@given(complex_kernels(), st.data())
def test_complex_error_is_that_of_the_taps_as_stored(kernel: Array, data: st.DataObject) -> None:
    f = factorise(kernel, rank=data.draw(st.integers(0, min(kernel.shape))))
    left = total = 0.0
    for i, j in np.ndindex(kernel.shape):
        parts = [Fraction(kernel[i, j].real.item()), Fraction(kernel[i, j].imag.item())]
        total += math.hypot(*map(float, parts))
        for c, r in zip(f.columns[:, i], f.rows[:, j], strict=True):
            cr, ci, rr, ri = (Fraction(x.item()) for x in (c.real, c.imag, r.real, r.imag))
            parts[0] -= cr * rr - ci * ri
            parts[1] -= cr * ri + ci * rr
        left += math.hypot(*map(float, parts))
    # Both sums and their moduli are rounded, here and there.
    near = 3 * (kernel.size + 16) * EPS
    assert left <= f.error * total * (1 + near)
    assert f.error * total <= left * (1 + near) + total * 2.0**-90


@given(float_kernels())
def test_terms_and_residual_make_the_kernel(kernel: Array) -> None:
    f = factorise(kernel)
    spacing = Fraction(5e-324)
    for i, sums in enumerate(exact_terms(f)):
        for j, term in enumerate(sums):
            left = Fraction(kernel[i, j].item()) - term
            # One rounding, and what doubled precision cannot tell in a sum that cancels.
            grown = Fraction(float(np.abs(f.columns[:, i]) @ np.abs(f.rows[:, j])))
            bound = abs(left) * Fraction(EPS) + grown * Fraction(2) ** -96 + spacing
            assert abs(Fraction(f.residual[i, j].item()) - left) <= bound


# LAPACK alone is 41 eps off here.
GRADED = [
    [9.71340738e-02, 6.98888425e-16, 5.70456465e-12],
    [-3.31407619e-07, 1.54257132e-16, 3.85303418e-07],
    [-4.57065745e-10, 1.21179864e-03, 3.15881400e-09],
]


@given(float_kernels())
@example(np.array(GRADED))
@example(np.array(GRADED)[:, ::-1].T)
def test_numerical_rank_reproduces_the_kernel(kernel: Array) -> None:
    f = factorise(kernel)
    dropped = max(kernel.shape) * EPS * np.linalg.norm(kernel, 2) * math.sqrt(min(kernel.shape))
    assert np.linalg.norm(f.residual) <= dropped + decomposition_bound(kernel)
    assert f.rank == f.ranks
    assert f.columns.shape == (f.rank, kernel.shape[0])
    assert f.rows.shape == (f.rank, kernel.shape[1])


@given(float_kernels() | complex_kernels(), st.data())
def test_truncation_is_the_best_of_its_rank(kernel: Array, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, min(kernel.shape)))
    f = factorise(kernel, rank=rank)
    sigma = np.linalg.svd(kernel, compute_uv=False)
    bound = decomposition_bound(kernel)
    # Terms at rounding level are left out even where they were asked for.
    left_out = max(kernel.shape) * EPS * math.sqrt(min(kernel.shape)) * sigma[0]
    assert f.rank <= rank
    assert abs(np.linalg.norm(f.residual) - np.linalg.norm(sigma[rank:])) <= bound + left_out
    spectral = sigma[rank] if rank < len(sigma) else 0.0
    assert abs(np.linalg.norm(f.residual, 2) - spectral) <= bound + left_out
    assert np.abs(f.singular_values - sigma).max() <= bound


@given(float_kernels(), st.floats(-4, 0), st.integers(0, 2**32))
def test_tol_is_kept_on_the_output(kernel: Array, exponent: float, seed: int) -> None:
    tol = 10.0**exponent
    f = factorise(kernel, tol=tol)
    assert f.error <= tol
    image = np.random.default_rng(seed).uniform(-1, 1, (12, 12))
    y = scipy.signal.convolve2d(image, f.dense())
    exact = scipy.signal.convolve2d(image, kernel)
    grown = np.abs(f.columns).T @ np.abs(f.rows)
    n = kernel.size + f.rank + 1
    rounding = (
        n
        * EPS
        * (
            scipy.signal.convolve2d(np.abs(image), grown)
            + scipy.signal.convolve2d(np.abs(image), np.abs(kernel))
        )
    )
    promise = tol * np.abs(kernel).sum() * np.abs(image).max()
    assert (np.abs(y - exact) <= promise + rounding).all()


@given(float_kernels(most=6), st.floats(-18, 0))
@example(np.full((3, 3), 1 / 9), -300.0)
def test_tol_is_kept_exactly_by_the_smallest_rank(kernel: Array, exponent: float) -> None:
    tol = 10.0**exponent
    f = factorise(kernel, tol=tol)
    left, total = exact_error(f, kernel)
    assert left <= Fraction(tol) * total
    if f.rank > 0 and f.error > 0:
        # The rank below does not keep it, but for the rounding up of the error.
        fewer = factorise(kernel, rank=f.rank - 1)
        assert fewer.error > tol or fewer.rank < f.rank - 1


def test_tol_zero_is_kept_by_unit_taps() -> None:
    kernel = kernels.rotated_gaussian(3, 1, 0.4)[:5]
    f = factorise(kernel, tol=0)
    assert f.error == 0
    assert (f.dense() == kernel).all()
    assert sorted(f.columns.tolist()) == sorted(np.eye(5).tolist())
    g = factorise(kernel.T, tol=0)
    assert (g.dense() == kernel.T).all()
    turned = factorise(kernel * 1j, tol=0)
    assert turned.error == 0
    assert (turned.dense() == kernel * 1j).all()
    stack = factorise(np.stack([kernel, np.ones((5, kernel.shape[1]))]), tol=0)
    assert stack.error == 0
    assert stack.ranks.tolist() == [5, 1]
    # A large element does not hide a small one, an integer too long for a float may have taps.
    graded = factorise([[1e300, 1e-300], [1e-300, 1e-300]], tol=0)
    assert graded.dense().tolist() == [[1e300, 1e-300], [1e-300, 1e-300]]
    long = factorise(np.outer([2**30 + 1, 1], [2**30 + 1, 1]), tol=0)
    assert long.dtype == np.int64
    assert long.error == 0
    with pytest.raises(ValueError, match="elements that float64 taps cannot hold"):
        factorise(np.array([[2**64 - 1, 2**64 - 3], [2**64 - 5, 7]], np.uint64), tol=0)


@given(float_kernels(), st.integers(-640, 640), st.integers(0, 640), st.data())
def test_output_error_bound_is_reached(
    kernel: Array, first: int, width: int, data: st.DataObject
) -> None:
    f = factorise(kernel, rank=data.draw(st.integers(0, min(kernel.shape))))
    lo, hi = first / 64, (first + width) / 64
    bound = f.output_error_bound(lo, hi)
    worst = 0.0
    for sign in (1, -1):
        image = np.where(f.residual * sign > 0, hi, lo)
        worst = max(worst, abs(float(np.sum(f.residual * image))))
    largest = np.abs(f.residual).sum() * max(abs(lo), abs(hi))
    rounding = (3 * kernel.size + 32) * EPS * largest + kernel.size * 1e-323 * max(abs(lo), abs(hi))
    # Below double precision's end the measured error of the taps remains.
    unseen = 2.0**-90 * np.abs(kernel).sum() * max(abs(lo), abs(hi))
    assert worst <= bound + rounding
    assert bound <= worst + rounding + unseen


# Known ranks.


@pytest.mark.parametrize(
    ("text", "rank"),
    [
        ("gaussian:0.7", 1),
        ("gaussian:5", 1),
        ("box:9", 1),
        ("binomial:7", 1),
        ("sobel-x", 1),
        ("sobel-y", 1),
        ("scharr-x", 1),
        ("prewitt-y", 1),
        ("gabor:0.1,30", 2),
        ("gabor:0.1,0", 1),
        ("log:2", 3),
        ("disk:15", 11),
    ],
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_known_ranks(text: str, rank: int, dtype: Any) -> None:
    kernel = kernels.named(text)
    if text in ("disk:15", "log:2") and np.dtype(dtype).itemsize == 2:
        # Two of three digits cannot tell the small terms from the rounding of the elements.
        assert factorise(kernel.astype(dtype)).rank <= rank
        return
    f = factorise(kernel.astype(dtype))
    assert f.rank == rank
    assert f.dtype == np.float64
    assert factorise(kernel).rank == rank


def test_published_errors_of_truncated_kernels() -> None:
    disk = kernels.disk(15)
    errors = [factorise(disk, rank=r).error for r in (1, 2, 4, 8)]
    assert [round(e, 3) for e in errors] == [0.25, 0.141, 0.069, 0.03]
    ellipse = factorise(kernels.rotated_gaussian(6, 2, math.pi / 4), rank=8)
    assert 1e-3 < ellipse.error < 1e-2
    assert ellipse.worth_separating


def test_motion_blur_is_reported_as_not_worth_separating() -> None:
    f = factorise(kernels.motion(31, math.radians(30)))
    assert not f.worth_separating
    assert f.speedup < 1
    assert "does not compress" in repr(f)
    assert factorise(kernels.motion(31, math.radians(30)), rank=8).error > 0.9


# Symmetry, sign, balance, scale, transposition.


@given(float_kernels(), st.sampled_from(SYMMETRIES))
def test_symmetry_is_kept_to_the_bit(kernel: Array, symmetry: str) -> None:
    kernel = symmetrised(kernel, symmetry)
    f = factorise(kernel)
    sign = -1 if symmetry.endswith("-") else 1
    if symmetry.startswith("down") or symmetry == "both":
        assert (f.columns == sign * f.columns[:, ::-1]).all()
    if symmetry.startswith("across") or symmetry == "both":
        assert (f.rows == sign * f.rows[:, ::-1]).all()
    if symmetry.startswith("turn"):
        for c, r in zip(f.columns, f.rows, strict=True):
            turns = [s for s in (1, -1) if (c == s * c[::-1]).all()]
            assert any((r == s * sign * r[::-1]).all() for s in turns)
    if symmetry == "transpose" and not (kernel == -kernel[::-1, ::-1]).all():
        for c, r in zip(f.columns, f.rows, strict=True):
            assert (c == r).all() or (c == -r).all()


@given(float_kernels() | complex_kernels())
def test_sides_are_balanced_and_signs_as_stated(kernel: Array) -> None:
    f = factorise(kernel)
    for c, r, s in zip(f.columns, f.rows, f.singular_values, strict=False):
        # Of small terms, the rounding of the large ones is a larger part.
        near = decomposition_bound(kernel) / s
        assert abs(np.linalg.norm(c) / math.sqrt(s) - 1) <= near
        assert abs(np.linalg.norm(r) / math.sqrt(s) - 1) <= near
        pivots = [c.sum(), np.conj(r.sum()), c[np.argmax(np.abs(c))]]
        sizes = [2.0**-20 * np.abs(c).sum(), 2.0**-20 * np.abs(r).sum(), 0.0]
        pivot = next(p for p, size in zip(pivots, sizes, strict=True) if abs(p) > size)
        # A rotated complex sum is real but for its own rounding.
        assert pivot.real > 0
        assert abs(pivot.imag) <= (c.size + r.size) * EPS * max(np.abs(c).sum(), np.abs(r).sum())
    assert (np.diff(f.singular_values) <= 0).all()


@given(float_kernels(), st.integers(-100, 100))
def test_powers_of_four_scale_the_taps_by_powers_of_two(kernel: Array, power: int) -> None:
    f, g = factorise(kernel), factorise(kernel * 4.0**power)
    assert (g.columns == f.columns * 2.0**power).all()
    assert (g.rows == f.rows * 2.0**power).all()
    assert (g.singular_values == f.singular_values * 4.0**power).all()
    assert g.error == f.error


@given(float_kernels())
def test_transposed_kernels_have_the_same_error(kernel: Array) -> None:
    f, g = factorise(kernel), factorise(kernel.T)
    bound = decomposition_bound(kernel)
    assert np.abs(f.singular_values - g.singular_values).max() <= bound
    threshold = max(kernel.shape) * EPS * f.singular_values[0]
    if not (np.abs(f.singular_values - threshold) <= 2 * bound).any():
        assert f.rank == g.rank
    assert np.linalg.norm(f.dense() - g.dense().T) <= 2 * bound + (
        2 * threshold * math.sqrt(min(kernel.shape))
    )


@pytest.mark.parametrize("scale", [1e300, 1e-300, 2.0**-1060])
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_huge_and_tiny_kernels(scale: float, kind: str) -> None:
    kernel = kernels.gabor(0.2, 0.3, part="complex")
    kernel = kernel if kind == "complex" else kernel.real
    f = factorise(kernel * scale)
    assert f.rank == (1 if kind == "complex" else 2)
    assert np.isfinite(f.columns).all()
    # One spacing of subnormals for each element, and the decomposition.
    subnormal = kernel.size * 5e-324 / (scale * np.abs(kernel).sum())
    assert f.error <= 1e-14 + subnormal
    ratio = np.abs(f.columns).max() / np.abs(f.rows).max()
    assert 0.1 < ratio < 10


def test_kernels_whose_sum_overflows_are_refused() -> None:
    with pytest.raises(ValueError, match="overflows float64"):
        factorise(np.full((3, 3), 1.7e308))


# Complex.


@given(complex_kernels())
def test_complex_kernels(kernel: Array) -> None:
    f = factorise(kernel)
    assert f.dtype == np.complex128
    left_out = max(kernel.shape) * EPS * math.sqrt(min(kernel.shape)) * f.singular_values[0]
    assert np.linalg.norm(f.columns.T @ f.rows - kernel) <= (
        # One more for the roundings of this product.
        2 * decomposition_bound(kernel) + left_out
    )
    # Norms: |.|_1 <= sqrt(size) |.|_2. Twice, for the rounding up.
    most = 2 * (decomposition_bound(kernel) + left_out) * math.sqrt(kernel.size)
    assert f.error * np.abs(kernel).sum() <= most


@given(float_kernels())
def test_complex_numbers_without_imaginary_part_have_real_taps(kernel: Array) -> None:
    f = factorise(kernel.astype(np.complex128))
    assert (f.columns.imag == 0).all()
    assert (f.rows.imag == 0).all()


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_a_round_complex_gabor_is_separable(dtype: Any) -> None:
    f = factorise(kernels.gabor(0.1, 0.5, part="complex").astype(dtype))
    assert f.rank == 1


# Integers.


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 3), st.integers(1, 9), st.data())
def test_integer_kernels_of_low_rank_are_exact(
    kh: int, kw: int, rank: int, largest: int, data: st.DataObject
) -> None:
    seed = data.draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    kernel = rng.integers(-largest, largest + 1, (kh, rank)) @ rng.integers(
        -largest, largest + 1, (rank, kw)
    )
    f = factorise(kernel)
    left, total = exact_error(f, kernel)
    if f.dtype == np.int64:
        assert left == 0
        assert f.error == 0
        assert (f.dense() == kernel).all()
        assert f.residual.dtype == np.int64
        assert f.rank == np.linalg.matrix_rank(kernel)
        grown = np.sum(np.abs(f.columns).sum(1) * np.abs(f.rows).sum(1))
        assert grown <= 4 * total
    else:
        assert left <= Fraction(f.error) * total
    if rank <= 1 or f.rank == min(kh, kw):
        assert f.dtype == np.int64


@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 2, 3]), st.integers(0, 2**32))
def test_even_integer_kernels_have_even_integer_taps(
    kh: int, kw: int, rank: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    kernel = rng.integers(-5, 6, (kh, rank)) @ rng.integers(-5, 6, (rank, kw))
    kernel = symmetrised(kernel, "both")
    f = factorise(kernel)
    assert (f.columns == f.columns[:, ::-1]).all()
    assert (f.rows == f.rows[:, ::-1]).all()


def test_integer_kernels_people_use() -> None:
    f = factorise(kernels.sobel_x())
    assert f.columns.tolist() == [[1, 2, 1]]
    assert f.rows.tolist() == [[1, 0, -1]]
    # The column taps have no sum: that of the row taps is positive.
    assert factorise(-kernels.sobel_y()).columns.tolist() == [[-1, 0, 1]]
    assert factorise(-kernels.sobel_y()).rows.tolist() == [[1, 2, 1]]
    laplace = factorise([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    assert laplace.dtype == np.int64
    assert laplace.rank == 2
    assert factorise(kernels.binomial(30, normalise=False)).error == 0
    assert factorise(6 * np.ones((3, 5), np.uint8)).dense().tolist() == [[6] * 5] * 3
    # The rows' directions are more than the rank: a lattice basis is needed.
    kernel = np.array([[1, 0, 2], [0, 1, 3], [1, 1, 5], [2, -1, 1]])
    assert factorise(kernel).dtype == np.int64
    assert factorise(kernel).rank == 2


def test_integer_kernels_with_fewer_terms_are_floats() -> None:
    kernel = (kernels.disk(5, antialias=False) > 0).astype(np.uint8)
    exact = factorise(kernel)
    assert exact.dtype == np.int64
    assert factorise(kernel, rank=exact.rank).dtype == np.int64
    assert factorise(kernel, tol=0).dtype == np.int64
    fewer = factorise(kernel, rank=exact.rank - 1)
    assert fewer.dtype == np.float64
    assert fewer.rank == exact.rank - 1
    loose = factorise(kernel, tol=0.2)
    assert loose.dtype == np.float64
    assert loose.error <= 0.2


@pytest.mark.parametrize(
    "value", [2**53 + 1, 2**62 + 1, -(2**63), 2**63 - 1, 2**64 - 1, -(2**53) - 1]
)
def test_integers_beyond_double_precision(value: int) -> None:
    dtype = np.uint64 if value >= 2**63 else np.int64
    kernel = np.array([[value, 1], [0, value]], dtype)
    f = factorise(kernel)
    left, total = exact_error(f, kernel)
    assert left <= Fraction(f.error) * total
    assert f.error <= 4 * EPS


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32])
def test_ends_of_integer_ranges(dtype: Any) -> None:
    info = np.iinfo(dtype)
    kernel = np.array([[info.min, info.max], [info.max, 1]], dtype)
    f = factorise(kernel)
    assert f.dtype == np.int64
    assert f.dense().tolist() == kernel.tolist()


# Dtypes and stacks.


@pytest.mark.skipif(
    np.finfo(np.longdouble).nmant <= 52, reason="long double is double on this machine"
)
def test_long_doubles_count_beyond_double_precision() -> None:
    kernel = np.full((2, 3), np.longdouble(1) / 3)
    f = factorise(kernel)
    left, total = exact_error(f, kernel)
    assert 0 < left <= Fraction(f.error) * total
    with pytest.raises(ValueError, match="overflows float64"):
        factorise(np.full((2, 2), np.longdouble("1e4000")))


@pytest.mark.parametrize("order", ["<f4", ">f4", ">i2", ">c16"])
def test_byte_order_and_views(order: str) -> None:
    kernel = np.arange(24).reshape(4, 6)[::-1, ::2].astype(order)
    f = factorise(kernel)
    native = factorise(kernel.astype(kernel.dtype.newbyteorder("=")))
    assert (f.columns == native.columns).all()
    assert f.rank == native.rank


@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from([None, 1e-3, 0.3]), st.data())
def test_stacks_equal_one_by_one(kh: int, kw: int, tol: float | None, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    stack = rng.standard_normal((2, 3, kh, kw))
    for index in np.ndindex(2, 3):
        fold = symmetrised(stack[index], data.draw(st.sampled_from(SYMMETRIES[:-1])))
        stack[index] = fold * data.draw(st.sampled_from([0.0, 1.0, 1e-200, 1e200]))
    if data.draw(st.booleans()):
        stack = np.round(np.clip(stack, -9, 9)).astype(np.int64)
    f = factorise(stack, tol=tol)
    ones = {index: factorise(stack[index], tol=tol) for index in np.ndindex(2, 3)}
    assert f.rank == max(one.rank for one in ones.values())
    for index, one in ones.items():
        assert f.ranks[index] == one.rank
        assert (f.columns[index][: one.rank] == one.columns).all()
        assert (f.rows[index][: one.rank] == one.rows).all()
        assert (f.columns[index][one.rank :] == 0).all()
        assert (f.rows[index][one.rank :] == 0).all()
        assert (f.singular_values[index] == one.singular_values).all()
        assert (f.residual[index] == one.residual).all()
        assert f.errors[index] == one.error
        assert f.magnitude[index] == one.magnitude
    assert f.shape == stack.shape
    assert f.dense().shape == stack.shape
    assert f.error == max(one.error for one in ones.values())
    if f.dtype == np.int64:
        assert all(one.dtype == np.int64 for one in ones.values())


def test_stack_of_integers_is_exact_only_as_a_whole() -> None:
    stack = np.stack([kernels.sobel_x(), np.full((3, 3), 2**62 + 1)])
    f = factorise(stack)
    assert f.dtype == np.float64
    assert f.columns[0].tolist() == [[1, 2, 1]]
    assert factorise(stack[:1]).dtype == np.int64


def test_zeros_have_rank_zero() -> None:
    for dtype in (np.float32, np.int8, np.complex64):
        f = factorise(np.zeros((3, 4), dtype))
        assert f.rank == 0
        assert f.columns.shape == (0, 3)
        assert f.rows.shape == (0, 4)
        assert f.error == 0
        assert f.speedup == math.inf
        assert f.worth_separating
        assert (f.dense() == np.zeros((3, 4))).all()
        assert "rank 0" in repr(f)
        assert f.output_error_bound(-1, 1) == 0


def test_no_terms_leave_the_whole_kernel() -> None:
    f = factorise(kernels.gaussian(1), rank=0)
    assert f.rank == 0
    assert f.error == 1
    assert (f.residual == kernels.gaussian(1)).all()
    assert factorise(kernels.gaussian(1), tol=1).rank == 0


# The object.


def test_attributes() -> None:
    f = factorise(kernels.disk(15))
    assert f.shape == (31, 31)
    assert f.speedup == 31 * 31 / (11 * 62)
    assert f.worth_separating
    assert f.singular_values.shape == (31,)
    assert repr(f).startswith("SeparableKernel(31x31, rank 11, error ")
    assert repr(f).endswith("speedup 1.41x, float64)")
    assert factorise(kernels.gaussian(2)).growth == pytest.approx(1, abs=100 * EPS)
    assert factorise(np.zeros((2, 2))).growth == 1
    cancelling = SeparableKernel.from_taps([[3, 1], [2, 0]], [[1, 1], [-1, -1]])
    assert cancelling.dense().tolist() == [[1, 1], [1, 1]]
    assert cancelling.growth == (4 * 2 + 2 * 2) / 4
    stack = factorise(np.ones((2, 5, 3, 3)))
    assert "2x5 of 3x3" in repr(stack)
    assert "error exact" in repr(factorise(kernels.sobel_x()))


def test_arrays_are_read_only_and_belong_to_the_object() -> None:
    source = np.ones((2, 3))
    f = SeparableKernel.from_taps(source, source)
    source[:] = 7
    for name in ("columns", "rows", "singular_values", "residual", "ranks", "errors", "magnitude"):
        assert not getattr(f, name).flags.writeable
    assert (f.columns == 1).all()
    with pytest.raises(ValueError, match="read-only"):
        f.columns[0, 0] = 2
    with pytest.raises(AttributeError):
        f.columns = source  # type: ignore[misc]


@pytest.mark.parametrize("copied", [lambda f: pickle.loads(pickle.dumps(f)), copy.deepcopy])
def test_copies_keep_every_bit_and_stay_read_only(copied: Any) -> None:
    f = factorise(kernels.gabor(0.1, 0.5))
    g = copied(f)
    assert g is not f
    assert f != g
    assert len({f, g}) == 2
    for name in ("columns", "rows", "singular_values", "residual", "ranks", "errors", "magnitude"):
        assert np.array_equal(getattr(f, name), getattr(g, name))
        assert not getattr(g, name).flags.writeable


def test_input_is_unchanged() -> None:
    kernel = kernels.gabor(0.1, 0.5)
    kernel.flags.writeable = False
    before = kernel.copy()
    factorise(kernel)
    assert (kernel == before).all()


@given(float_kernels())
def test_taps_make_a_kernel_bit_for_bit(kernel: Array) -> None:
    f = factorise(kernel)
    g = SeparableKernel.from_taps(f.columns, f.rows)
    assert (g.columns == f.columns).all()
    assert (g.rows == f.rows).all()
    assert g.error == 0
    assert not g.residual.any()
    assert (g.dense() == f.dense()).all()


def test_taps_of_every_form() -> None:
    one = SeparableKernel.from_taps([1, 2, 1], [1, 0, -1])
    assert one.dtype == np.int64
    assert (one.dense() == kernels.sobel_x()).all()
    assert one.rank == 1
    mixed = SeparableKernel.from_taps([1, 2], [0.5, 1, 1])
    assert mixed.dtype == np.float64
    assert mixed.shape == (2, 3)
    half = SeparableKernel.from_taps(np.ones(2, ml_dtypes.bfloat16), np.ones(3, np.complex64))
    assert half.dtype == np.complex128
    stack = SeparableKernel.from_taps(np.ones((4, 2, 3)), np.ones((4, 2, 5)))
    assert stack.shape == (4, 3, 5)
    assert stack.rank == 2
    assert stack.magnitude.tolist() == [30.0] * 4
    nothing = SeparableKernel.from_taps(np.ones((0, 3)), np.ones((0, 5)))
    assert nothing.rank == 0
    assert nothing.shape == (3, 5)
    assert SeparableKernel.from_taps(np.ones((0, 3), np.uint8), np.ones((0, 5), int)).rank == 0
    assert SeparableKernel.from_taps(np.array([2**63], np.uint64), [0.5]).dense() == 2.0**62


# Refusals.


@pytest.mark.parametrize(
    ("kernel", "options", "error", "message"),
    [
        ([[1.0, math.nan]], {}, ValueError, r"kernel must be finite, got nan at \(0, 1\)$"),
        ([[math.inf, -math.inf]], {}, ValueError, r"got inf at \(0, 0\) and 1 more"),
        ([[complex(0, math.inf)]], {}, ValueError, "kernel must be finite"),
        (np.zeros((0, 3)), {}, ValueError, r"no elements, got shape \(0, 3\)"),
        (np.zeros((0, 3, 3)), {}, ValueError, "no elements"),
        ([1.0, 2.0], {}, ValueError, r"2-D or a stack .* got shape \(2,\); .*from_taps"),
        (3.0, {}, ValueError, "single number 3.0"),
        (np.ones((2, 2), bool), {}, TypeError, r"dtype bool; .*kernel\.astype\(int\)"),
        (np.ones((2, 2), object), {}, TypeError, "got dtype object"),
        ([["a"]], {}, TypeError, "integers, floats or complex numbers, got dtype <U1"),
        ([[2**70]], {}, TypeError, "got dtype object"),
        (np.ma.masked_equal(np.ones((2, 2)), 1), {}, TypeError, r"masked array; .*filled\(0\)"),
        (np.ones((2, 3)), {"rank": -1}, ValueError, r"rank must be in .*\[0, 2\], got -1"),
        (np.ones((2, 3)), {"rank": 3}, ValueError, r"rank must be in .*\[0, 2\], got 3"),
        (np.ones((2, 3)), {"rank": 1.0}, TypeError, r"rank: expected an integer, got 1\.0"),
        (np.ones((2, 3)), {"rank": True}, TypeError, "rank: expected an integer, got True"),
        (np.ones((2, 3)), {"tol": -1e-9}, ValueError, "tol must be a finite number >= 0, got -1e"),
        (np.ones((2, 3)), {"tol": math.nan}, ValueError, "tol must be .* got nan"),
        (np.ones((2, 3)), {"tol": math.inf}, ValueError, "tol must be .* got inf"),
        (np.ones((2, 3)), {"tol": "small"}, TypeError, "tol: expected a number, got 'small'"),
        (np.ones((2, 3)), {"tol": 1j}, TypeError, "tol must be a real number"),
        (np.ones((2, 3)), {"tol": 0.1, "rank": 1}, ValueError, "rank or tol, not both"),
    ],
)
def test_refusals(
    kernel: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        factorise(kernel, **options)


@pytest.mark.parametrize(
    ("columns", "rows", "error", "message"),
    [
        ([1.0], [[1.0]], ValueError, "both be 1-D or both have a rank axis"),
        (np.ones((2, 3)), np.ones((1, 3)), ValueError, "must agree in all axes but the last"),
        (np.ones((2, 0)), np.ones((2, 3)), ValueError, "hold no taps"),
        (np.ones((0, 1, 3)), np.ones((0, 1, 3)), ValueError, "hold no taps"),
        ([1.0, math.nan], [1.0], ValueError, r"columns must be finite, got nan at \(1,\)"),
        ([1.0], [True], TypeError, "rows has dtype bool"),
        ([np.longdouble("1e400")], [1.0], ValueError, "overflows float64; scale the taps down"),
        ([1e200], [1e200], ValueError, "overflows float64; scale the taps down"),
        ([2**40], [2**40], ValueError, "overflows int64; .* give them as floats"),
        (np.array([2**63], np.uint64), [1], ValueError, "which exceeds int64; give them as floats"),
    ],
)
def test_refused_taps(columns: Any, rows: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SeparableKernel.from_taps(columns, rows)


@pytest.mark.parametrize(("lo", "hi"), [(1, 0), (math.nan, 1), (0, math.inf)])
def test_refused_ranges(lo: float, hi: float) -> None:
    with pytest.raises(ValueError, match="lo and hi must be finite with lo <= hi"):
        factorise(np.ones((2, 2))).output_error_bound(lo, hi)

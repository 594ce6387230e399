"""separable_conv2d against scipy, on every backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage, signal

import numbasep
from numbasep.boundary import NAMES as BOUNDARIES
from tests import oracle
from tests.conftest import examples
from tests.oracle import of

Array = NDArray[Any]

INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
FLOATS = ("float16", "bfloat16", "float32", "float64")
COMPLEXES = ("complex64", "complex128")
VIEWS = ("plain", "fortran", "interleaved", "sliced", "reversed", "read-only", "swapped", "bytes")


@dataclass
class Case:
    """One call: its image in some memory layout, its factors, its options."""

    image: Array
    columns: Array
    rows: Array
    options: dict[str, Any]
    axes: tuple[int, int] = (-2, -1)
    out: str = "none"
    seed: int = 0
    view: str = field(default="plain")

    def kernel(self) -> tuple[Array, Array]:
        return self.columns, self.rows

    def call(self, backend: str, **more: Any) -> Array:
        return numbasep.separable_conv2d(
            self.image, self.kernel(), axes=self.axes, backend=backend, **self.options, **more
        )

    def reference(self, image: Array, kernel: Array) -> Array:
        """The same call by the oracle, image by image."""
        options = {key: value for key, value in self.options.items() if key != "dtype"}
        moved = np.moveaxis(image, self.axes, (-2, -1))
        flat = moved.reshape(-1, *moved.shape[-2:])
        results = [oracle.convolve2d(one, kernel, **options) for one in flat]
        stacked = np.stack(results).reshape(*moved.shape[:-2], *results[0].shape)
        return np.moveaxis(stacked, (-2, -1), self.axes)


def arranged(values: Array, view: str) -> Array:
    """The same values in another memory layout."""
    if view == "fortran":
        return np.asfortranarray(values)
    if view == "interleaved":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(values, 0, -1)), -1, 0)
    if view == "sliced":
        larger = np.zeros([2 * size + 3 for size in values.shape], values.dtype)
        inner = larger[tuple(slice(1, 1 + 2 * size, 2) for size in values.shape)]
        inner[...] = values
        return inner
    if view == "reversed":
        flip = (slice(None, None, -1),) * values.ndim
        return np.ascontiguousarray(values[flip])[flip]
    if view == "read-only":
        values = values.copy()
        values.flags.writeable = False
        return values
    if view == "swapped":
        return (
            values.astype(values.dtype.newbyteorder()) if values.dtype != of("bfloat16") else values
        )
    if view == "bytes":
        # One byte off: not aligned.
        raw = np.zeros(values.nbytes + 1, np.uint8)
        shifted = raw[1:].view(values.dtype).reshape(values.shape)
        shifted[...] = values
        return shifted
    return values


@st.composite
def cases(
    draw: Callable[..., Any],
    backend: str,
    dtypes: tuple[str, ...],
    taps: str = "f",
    *,
    fill: bool = True,
) -> Case:
    """Calls with images smaller and larger than the kernel; small ones where a simulator runs."""
    side, reach = (24, 12) if backend == "cpu" else (9, 6)
    h, w = draw(st.integers(1, side)), draw(st.integers(1, side))
    kh, kw = draw(st.integers(1, reach)), draw(st.integers(1, reach))
    rank = draw(st.sampled_from((1, 1, 2, 3)))
    dilation = draw(st.sampled_from(((1, 1), (1, 1), (2, 1), (1, 3), (2, 2))))
    stride = draw(st.sampled_from(((1, 1), (1, 1), (2, 1), (1, 2), (3, 2))))
    batch = draw(st.sampled_from(((), (), (1,), (3,), (2, 2))))
    name = draw(st.sampled_from(dtypes))
    mode = draw(st.sampled_from(("full", "same", "valid")))
    extents = [(k - 1) * d + 1 for k, d in zip((kh, kw), dilation, strict=True)]
    if mode == "valid":
        h, w = max(h, extents[0]), max(w, extents[1])
        if draw(st.integers(0, 5)) == 0:
            h, w = (draw(st.integers(1, extent)) for extent in extents)
    boundary = draw(st.sampled_from(BOUNDARIES))
    seed = draw(st.integers(0, 2**32 - 1))
    view = draw(st.sampled_from(VIEWS))
    rng = np.random.default_rng(seed)
    dtype = of(name)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        low, high = max(limits.min, -(2**20)), min(limits.max, 2**20)
        values = rng.integers(low, high, (*batch, h, w), endpoint=True).astype(dtype)
    else:
        values = rng.standard_normal((*batch, h, w))
        if dtype.kind == "c":
            values = values + 1j * rng.standard_normal(values.shape)
        values = values.astype(dtype)
    columns, rows = (made_taps(rng, taps, (rank, k)) for k in (kh, kw))
    options: dict[str, Any] = {
        "mode": mode,
        "boundary": boundary,
        "stride": stride,
        "dilation": dilation,
    }
    if boundary == "fill" and fill and mode != "valid":
        options["fillvalue"] = draw(st.sampled_from((0, 1, 3)))
    axes = (-2, -1)
    if draw(st.booleans()):
        order = draw(st.permutations(range(values.ndim)))
        values = values.transpose(order)
        axes = (order.index(values.ndim - 2), order.index(values.ndim - 1))
    out = draw(st.sampled_from(("none", "none", "poisoned", "strided")))
    return Case(arranged(values, view), columns, rows, options, axes, out, seed, view)


def made_taps(rng: np.random.Generator, kind: str, shape: tuple[int, int]) -> Array:
    if kind == "i":
        return rng.integers(-3, 4, shape)
    values = rng.standard_normal(shape)
    return values + 1j * rng.standard_normal(shape) if kind == "c" else values


def poisoned(shape: tuple[int, ...], dtype: np.dtype[Any], kind: str) -> Array | None:
    """A place for the result in which every element that is not written shows."""
    if kind == "none":
        return None
    larger = np.empty([2 * size + 1 for size in shape] if kind == "strided" else shape, dtype)
    larger[...] = np.nan if dtype.kind in "fcV" else 77
    return larger[tuple(slice(0, 2 * size, 2) for size in shape)] if kind == "strided" else larger


def run_checked(case: Case, backend: str, reference: Array, dtype: str) -> Array:
    """The call with its ``out``; input unchanged, shape and dtype as expected."""
    before = case.image.copy()
    out = poisoned(reference.shape, of(dtype), case.out)
    result = case.call(backend, out=out)
    if out is not None:
        assert result is out
    assert result.shape == reference.shape
    assert result.dtype == of(dtype)
    np.testing.assert_array_equal(case.image, before)
    return result


def wide(values: Array) -> Array:
    if values.dtype.kind == "V":  # bfloat16
        values = values.astype(np.float64)
    return values.astype(np.clongdouble if values.dtype.kind == "c" else np.longdouble)


def compute_dtype(image: str, taps: str, dtype: str) -> str:
    """The accumulator, by the rule of the docstring."""
    large = image in ("int32", "uint32", "int64", "uint64", "float64", "complex128")
    if taps == "c" or image in COMPLEXES:
        return "complex128" if large or dtype == "complex128" else "complex64"
    return "float64" if large or dtype == "float64" else "float32"


def result_dtype(image: str, taps: str) -> str:
    if taps == "c" or image in COMPLEXES or image in INTEGERS:
        return compute_dtype(image, taps, "")
    return image


def within_bound(case: Case, backend: str, taps: str, **more: Any) -> float:
    """Run a case, require the error bound, return the largest ratio of error to bound."""
    name = case.image.dtype.name
    compute = compute_dtype(name, taps, "")
    output = result_dtype(name, taps)
    precise = np.dtype(compute)
    columns, rows = case.columns.astype(precise), case.rows.astype(precise)
    reference = case.reference(wide(case.image), wide(oracle.dense(wide(columns), wide(rows))))
    sums = case.reference(
        np.abs(wide(case.image)), oracle.dense(abs(wide(columns)), abs(wide(rows)))
    )
    result = run_checked(case, backend, reference, output)
    # One more rounding where a 64-bit integer becomes a float64.
    n = columns.shape[1] + rows.shape[1] + len(rows) + 2
    if precise.kind == "c":
        n *= 3  # 2 sqrt(2) gamma(2) for each complex product and sum in place of gamma(1)
    error = np.abs(wide(result) - reference)
    allowed = oracle.bound(n, sums, reference, compute, output)
    assert (error <= allowed).all()
    return float((error[allowed > 0] / allowed[allowed > 0]).max(initial=0))


@pytest.mark.parametrize("dtypes", [INTEGERS], ids=["integers"])
def test_integers_are_exact(backend: str, dtypes: tuple[str, ...]) -> None:
    @settings(max_examples=examples(backend))
    @given(case=cases(backend, dtypes, "i"))
    def check(case: Case) -> None:
        reference = case.reference(
            case.image.astype(np.int64), oracle.dense(case.columns, case.rows)
        )
        name = "int32" if case.image.dtype.itemsize <= 2 else "int64"
        result = run_checked(case, backend, reference, name)
        np.testing.assert_array_equal(result, reference)

    check()


def test_integers_saturate(backend: str) -> None:
    @settings(max_examples=examples(backend))
    @given(case=cases(backend, INTEGERS, "i"), name=st.sampled_from(INTEGERS))
    def check(case: Case, name: str) -> None:
        reference = case.reference(
            case.image.astype(np.int64), oracle.dense(case.columns, case.rows)
        )
        limits = np.iinfo(name)
        # A Python list of exact integers: uint64's maximum is not an int64.
        clipped = np.clip(reference.astype(object), limits.min, limits.max)
        case.options["dtype"] = name
        result = run_checked(case, backend, reference, name)
        np.testing.assert_array_equal(result.astype(object), clipped)

    check()


@pytest.mark.parametrize(
    ("dtypes", "taps"),
    [(FLOATS, "f"), (INTEGERS, "f"), (COMPLEXES, "f"), (FLOATS + COMPLEXES, "c"), (FLOATS, "i")],
    ids=["floats", "integers-float-taps", "complex", "complex-taps", "integer-taps"],
)
def test_error_bound(backend: str, dtypes: tuple[str, ...], taps: str) -> None:
    worst = 0.0

    @settings(max_examples=examples(backend))
    @given(case=cases(backend, dtypes, taps))
    def check(case: Case) -> None:
        nonlocal worst
        worst = max(worst, within_bound(case, backend, taps))

    check()
    print(f"largest error / bound, {backend}: {worst:.3f}")


def test_rounds_half_to_even_and_saturates(backend: str) -> None:
    @settings(max_examples=examples(backend))
    @given(
        case=cases(backend, ("uint8", "int16", "float32"), "f"), name=st.sampled_from(INTEGERS[:4])
    )
    def check(case: Case, name: str) -> None:
        # Sums of multiples of 1/4 are exact in float32, so that halves are really halves.
        case.columns = np.round(2 * case.columns) / 2
        case.rows = np.round(2 * case.rows) / 2
        case.image = (np.round(np.clip(case.image.astype(float), -300, 300))).astype(
            case.image.dtype
        )
        reference = case.reference(
            case.image.astype(np.float64), oracle.dense(case.columns, case.rows)
        )
        limits = np.iinfo(name)
        case.options["dtype"] = name
        result = run_checked(case, backend, reference, name)
        np.testing.assert_array_equal(result, np.clip(np.rint(reference), limits.min, limits.max))

    check()


@pytest.mark.parametrize("boundary", ["fill", "wrap", "symm"])
def test_equals_scipy_signal(backend: str, boundary: str) -> None:
    """Straight against the call that the docstring names, on integers."""

    @settings(max_examples=examples(backend))
    @given(case=cases(backend, ("int16",), "i"))
    def check(case: Case) -> None:
        image = np.moveaxis(case.image, case.axes, (-2, -1))
        image = image[(0,) * (image.ndim - 2)]
        mode, (sy, sx) = case.options["mode"], case.options["stride"]
        fillvalue = case.options.get("fillvalue", 0) if boundary == "fill" else 0
        dense = oracle.dilate(oracle.dense(case.columns, case.rows), case.options["dilation"])
        if mode == "valid":
            expected = signal.convolve2d(image.astype(np.int64), dense, mode)
        else:
            expected = signal.convolve2d(image.astype(np.int64), dense, mode, boundary, fillvalue)
        result = numbasep.separable_conv2d(
            image,
            case.kernel(),
            backend=backend,
            **case.options | {"boundary": boundary, "fillvalue": fillvalue},
        )
        np.testing.assert_array_equal(result, expected[::sy, ::sx])

    check()


@pytest.mark.parametrize("boundary", ["nearest", "mirror"])
def test_equals_scipy_ndimage(backend: str, boundary: str) -> None:
    @settings(max_examples=examples(backend))
    @given(case=cases(backend, ("int32",), "i"))
    def check(case: Case) -> None:
        image = np.moveaxis(case.image, case.axes, (-2, -1))
        image = image[(0,) * (image.ndim - 2)]
        kernel = oracle.dense(case.columns, case.rows)
        # ndimage centres an even kernel one element later than convolve2d's "same".
        origin = [-1 if size % 2 == 0 else 0 for size in kernel.shape]
        expected = ndimage.convolve(image.astype(np.int64), kernel, mode=boundary, origin=origin)
        result = numbasep.separable_conv2d(image, case.kernel(), boundary=boundary, backend=backend)
        np.testing.assert_array_equal(result, expected)

    check()


def test_dense_kernel(backend: str) -> None:
    """A dense kernel, separated or direct, in every dtype: exact on integers."""

    @settings(max_examples=examples(backend))
    @given(case=cases(backend, INTEGERS, "i"), full_rank=st.booleans())
    def check(case: Case, full_rank: bool) -> None:
        kernel = oracle.dense(case.columns, case.rows)
        if full_rank:
            kernel = np.random.default_rng(case.seed).integers(-3, 4, kernel.shape)
        reference = case.reference(case.image.astype(np.int64), kernel)
        result = numbasep.separable_conv2d(
            case.image, kernel, axes=case.axes, backend=backend, **case.options
        )
        np.testing.assert_array_equal(result, reference)

    check()


def test_dense_float_kernel(backend: str) -> None:
    @settings(max_examples=examples(backend))
    @given(case=cases(backend, ("float32", "float64"), "f", fill=False), full_rank=st.booleans())
    def check(case: Case, full_rank: bool) -> None:
        kernel = oracle.dense(case.columns, case.rows)
        if full_rank:
            kernel = np.random.default_rng(case.seed).standard_normal(kernel.shape)
        factors = numbasep.factorise(kernel)
        reference = case.reference(wide(case.image), wide(kernel))
        name = case.image.dtype.name
        weights = np.maximum(abs(kernel), oracle.dense(abs(factors.columns), abs(factors.rows)))
        sums = case.reference(np.abs(wide(case.image)), wide(weights))
        # Taps are rounded to the accumulator first (two more roundings per product), and factors
        # stand for the kernel to the error they state.
        n = max(sum(kernel.shape) + factors.rank, kernel.size) + 4
        allowed = oracle.bound(n, sums, reference, name, name)
        allowed = allowed + factors.error * abs(kernel).sum() * np.abs(case.image).max()
        result = numbasep.separable_conv2d(
            case.image, kernel, axes=case.axes, backend=backend, **case.options
        )
        assert (np.abs(result - reference) <= allowed).all()

    check()


def test_impulse_returns_the_taps(backend: str) -> None:
    @settings(max_examples=examples(backend))
    @given(
        kh=st.integers(1, 9),
        kw=st.integers(1, 9),
        seed=st.integers(0, 2**32 - 1),
        name=st.sampled_from(("float32", "float64")),
    )
    def check(kh: int, kw: int, seed: int, name: str) -> None:
        rng = np.random.default_rng(seed)
        column, row = (rng.standard_normal(k).astype(name) for k in (kh, kw))
        image = np.zeros((1, 1), name)
        image[0, 0] = 1
        result = numbasep.separable_conv2d(image, (column, row), mode="full", backend=backend)
        np.testing.assert_array_equal(result, np.outer(column, row))

    check()


def test_linear(backend: str) -> None:
    @settings(max_examples=examples(backend))
    @given(
        case=cases(backend, ("int16",), "i", fill=False), a=st.integers(-4, 4), b=st.integers(-4, 4)
    )
    def check(case: Case, a: int, b: int) -> None:
        case.image = case.image.astype(np.int32)
        first = case.call(backend)
        other = case.image[..., ::-1].copy()
        both = a * case.image + b * other
        mixed = Case(both, case.columns, case.rows, case.options, case.axes)
        second = Case(other, case.columns, case.rows, case.options, case.axes)
        np.testing.assert_array_equal(mixed.call(backend), a * first + b * second.call(backend))

    check()


def test_adjoint(backend: str) -> None:
    """<K x, y> == <x, K' y>: the adjoint of "full" is "valid" with flipped taps."""

    @settings(max_examples=examples(backend))
    @given(case=cases(backend, ("int16",), "i", fill=False))
    def check(case: Case) -> None:
        image = np.moveaxis(case.image, case.axes, (-2, -1)).astype(np.int32)
        result = numbasep.separable_conv2d(image, case.kernel(), mode="full", backend=backend)
        rng = np.random.default_rng(case.seed)
        other = rng.integers(-100, 100, result.shape).astype(np.int32)
        flipped = case.columns[:, ::-1], case.rows[:, ::-1]
        back = numbasep.separable_conv2d(other, flipped, mode="valid", backend=backend)
        assert (result * other).sum() == (image * back).sum()

    check()


def test_nan_spreads_to_the_support_only(backend: str) -> None:
    @settings(max_examples=examples(backend))
    @given(case=cases(backend, ("float32", "float64"), "f", fill=False))
    def check(case: Case) -> None:
        rng = np.random.default_rng(case.seed)
        clean = case.call(backend)
        image = case.image.astype(case.image.dtype.newbyteorder("="))
        image[tuple(rng.integers(0, size) for size in image.shape)] = np.nan
        # Zero taps count too: 0 * NaN is NaN.
        case.columns[:, 0] = case.columns[:, 0] * 0
        clean = Case(np.nan_to_num(image), case.columns, case.rows, case.options, case.axes).call(
            backend
        )
        touched = case.reference(
            np.isnan(image).astype(float), np.ones((case.columns.shape[1], case.rows.shape[1]))
        )
        result = Case(image, case.columns, case.rows, case.options, case.axes).call(backend)
        np.testing.assert_array_equal(np.isnan(result), touched > 0)
        np.testing.assert_array_equal(result[touched == 0], clean[touched == 0])

    check()


@pytest.mark.parametrize("overlap", ["same", "shifted"])
def test_out_may_overlap_x(backend: str, overlap: str) -> None:
    rng = np.random.default_rng(0)
    memory = rng.integers(-100, 100, (13, 11)).astype(np.int32)
    image = memory[:-1]
    out = image if overlap == "same" else memory[1:]
    taps = np.array([1, 2, -1]), np.array([3, 1])
    expected = signal.convolve2d(image, np.outer(*taps), "same")
    result = numbasep.separable_conv2d(image, taps, out=out, dtype="int32", backend=backend)
    assert result is out
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("place", ["fresh", "out"])
def test_repeated_calls_compute_anew(backend: str, place: str) -> None:
    """The same call with other elements, other taps, and other options in turn."""
    rng = np.random.default_rng(5)
    images = rng.integers(-100, 100, (3, 2, 13, 140)).astype(np.float32)
    kernels = rng.integers(-5, 5, (2, 2, 5)).astype(np.float32)
    for boundary, axes, stride in (("fill", (-2, -1), (1, 1)), ("wrap", (0, 1), (2, 1))):
        for image, (down, across) in product(images, kernels):
            options = {"boundary": boundary, "stride": stride}
            turned = image if axes == (-2, -1) else np.ascontiguousarray(np.moveaxis(image, 0, 2))
            expected = np.stack(
                [oracle.convolve2d(plane, np.outer(down, across), **options) for plane in image]
            )
            if axes != (-2, -1):
                expected = np.moveaxis(expected, 0, 2)
            out = np.full(expected.shape, 77, np.float32) if place == "out" else None
            result = numbasep.separable_conv2d(
                turned, (down, across), axes=axes, out=out, backend=backend, **options
            )
            np.testing.assert_array_equal(result, expected)


def test_zero_kernel_gives_zeros(backend: str) -> None:
    image = np.full((3, 4), np.nan, np.float32)
    result = numbasep.separable_conv2d(image, np.zeros((3, 3)), backend=backend)
    np.testing.assert_array_equal(result, np.zeros((3, 4)))


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)])
def test_empty_images(backend: str, shape: tuple[int, ...]) -> None:
    result = numbasep.separable_conv2d(
        np.zeros(shape, np.float32), ([1.0, 2.0], [1.0, 2.0, 1.0]), backend=backend
    )
    assert result.shape == shape
    assert result.dtype == np.float32


def test_boolean_image_counts(backend: str) -> None:
    image = np.random.default_rng(0).integers(0, 2, (7, 8)).astype(bool)
    result = numbasep.separable_conv2d(image, ([1, 1, 1], [1, 1, 1]), backend=backend)
    expected = signal.convolve2d(image.astype(int), np.ones((3, 3), int), "same")
    np.testing.assert_array_equal(result, expected)


def test_sums_past_64_bits_are_refused(backend: str) -> None:
    image = np.full((3, 3), 2**62, np.int64)
    with pytest.raises(ValueError, match=r"x: values from 4611686018427387904 .* float64"):
        numbasep.separable_conv2d(image, ([1, 1], [1, 1]), backend=backend)
    small = image // 8
    result = numbasep.separable_conv2d(small, ([1, 1], [1, 1]), mode="valid", backend=backend)
    np.testing.assert_array_equal(result, np.full((2, 2), 2**61))

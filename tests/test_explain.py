"""explain against the call that it explains, and against counts by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numbasep
from numbasep import explain, kernels, separable_conv2d
from numbasep.plan import traffic
from numbasep.plan.geometry import Axis
from tests.conftest import examples


@given(
    st.builds(
        Axis,
        size=st.integers(1, 30),
        out=st.integers(1, 20),
        taps=st.integers(1, 6),
        stride=st.integers(1, 4),
        dilation=st.integers(1, 3),
        origin=st.integers(-8, 3),
    ),
    st.integers(1, 25),
)
def test_traffic_is_that_of_the_loops(axis: Axis, tile: int) -> None:
    def read(o: int) -> list[int]:
        return [o * axis.stride + axis.origin + k * axis.dilation for k in range(axis.taps)]

    inside = {i for o in range(axis.out) for i in read(o) if 0 <= i < axis.size}
    assert traffic.needed(axis) == len(inside)
    spans = beyond = 0
    for first in range(0, axis.out, tile):
        last = min(first + tile, axis.out) - 1
        low, high = read(first)[0], read(last)[-1]
        beyond += high - low + 1
        spans += sum(0 <= i < axis.size for i in range(low, high + 1))
    assert traffic.spanned(axis, tile) == spans
    assert traffic.spanned(axis, tile, beyond=True) == beyond


def test_what_a_call_does(backend: str) -> None:
    """Shape, dtype, rank and promised error are those of the call, whatever the options."""

    @settings(max_examples=examples(backend))
    @given(
        shape=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)),
        dtype=st.sampled_from(("uint8", "float16", "float32", "int64", "complex64")),
        kernel=st.sampled_from((kernels.disk(2), kernels.sobel_x(), kernels.gaussian(1.0))),
        mode=st.sampled_from(("same", "full")),
        stride=st.integers(1, 3),
    )
    def check(shape: Any, dtype: str, kernel: Any, mode: str, stride: int) -> None:
        x = np.ones(shape, dtype)
        options = {"mode": mode, "stride": stride, "backend": backend}
        said = explain(separable_conv2d, x, kernel, **options)
        assert said == explain(separable_conv2d, (shape, dtype), kernel, **options)
        result = separable_conv2d(x, kernel, **options)
        assert (said.shape, said.dtype) == (result.shape, result.dtype.name)
        assert said.backend == backend
        assert said.launches == 1
        assert said.bytes_least <= said.bytes_moved
        # Real taps act on each part of a complex number.
        parts = result.size * (2 if dtype == "complex64" else 1)
        assert said.multiply_adds_dense == parts * kernel.size
        assert said.multiply_adds >= min(said.multiply_adds_dense, parts * sum(kernel.shape))

    check()


def test_counts_by_hand(backend: str) -> None:
    said = explain(separable_conv2d, (64, 64), ([1.0, 2.0, 1.0], [1.0, 1.0]), backend=backend)
    assert said.rank == 1
    assert said.bytes_least == 4 * (64 * 64 + 64 * 64 + 3 + 2)
    assert said.multiply_adds_dense == 64 * 64 * 6
    assert said.promised_error == 0
    text = str(said)
    for part in ("separable_conv2d", backend, "32,788", "24,576", said.variant, said.tile):
        assert part in text


def test_notes(backend: str) -> None:
    def notes(x: Any, kernel: Any = ([1.0], [1.0]), **options: Any) -> str:
        return " ".join(explain(separable_conv2d, x, kernel, backend=backend, **options).notes)

    x = np.ones((8, 8), np.float32)
    assert "copied first" not in notes(x)
    assert "copied first" in notes(np.ones((16, 16), np.float32)[::2, ::2])
    assert "computed apart" not in notes(x, out=np.empty((8, 8), np.float32))
    assert "computed apart" in notes(x, out=np.empty((16, 16), np.float32)[::2, ::2])
    assert "more multiply-adds" in notes(x, np.random.default_rng(0).random((3, 3)))


def test_promised_error_is_the_factors() -> None:
    factors = numbasep.factorise(kernels.disk(7), tol=0.05)
    said = explain(separable_conv2d, (256, 256), factors)
    assert said.promised_error == factors.error
    assert said.rank == factors.rank


@pytest.mark.parametrize(
    ("op", "x", "kernel", "error", "words"),
    [
        (np.convolve, (8, 8), ([1], [1]), ValueError, "op: .*separable_conv2d"),
        (separable_conv2d, (8, -8), ([1], [1]), ValueError, "x: got -8"),
        (separable_conv2d, (8, 8.0), ([1], [1]), TypeError, "x: expected an integer, got 8.0"),
        (separable_conv2d, ((8, 8), "float31"), ([1], [1]), ValueError, "did you mean 'float32'"),
        (separable_conv2d, (8, 8), None, TypeError, "kernel: got NoneType"),
        (separable_conv2d, (8,), ([1], [1]), ValueError, "x: an array of shape"),
    ],
)
def test_refusals(op: Any, x: Any, kernel: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        explain(op, x, kernel)

"""Gradients against direct sums: exactly on integers, within derived bounds on floats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from numbasep import depthwise_conv2d, gradients, repeats
from numbasep.plan import channelwise as planner
from tests import oracle
from tests.conftest import examples
from tests.oracle import of

Array = NDArray[Any]

FLOATS = ("float32", "float64", "float16", "bfloat16")
COMPUTE = {"float64": "float64"}
PAD = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
ROOM: dict[str, dict[str, int]] = {
    "cpu": {"size": 20, "channels": 19},
    "cuda": {"size": 6, "channels": 3},
}


def last(x: Array) -> Array:
    """NCHW to NHWC."""
    return np.ascontiguousarray(np.moveaxis(x, -3, -1))


def first(x: Array) -> Array:
    """NHWC to NCHW."""
    return np.moveaxis(x, -1, -3)


@dataclass
class Case:
    """A depthwise convolution, NCHW, with the gradient of its result."""

    x: Array
    weight: Array
    grad: Array
    options: dict[str, Any]
    sides: tuple[int, int, int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    mode: str

    def windows(self) -> list[tuple[int, int, Any, Any]]:
        """For each tap, what it reads of the padded image."""
        _, _, kh, kw = self.weight.shape
        oh, ow = self.grad.shape[2:]
        return [
            (
                ky,
                kx,
                slice(
                    ky * self.dilation[0],
                    ky * self.dilation[0] + (oh - 1) * self.stride[0] + 1,
                    self.stride[0],
                ),
                slice(
                    kx * self.dilation[1],
                    kx * self.dilation[1] + (ow - 1) * self.stride[1] + 1,
                    self.stride[1],
                ),
            )
            for ky in range(kh)
            for kx in range(kw)
        ]

    def pad(self, image: Array) -> Array:
        top, bottom, left, right = self.sides
        lead = ((0, 0),) * (image.ndim - 2)
        return np.pad(image, (*lead, (top, bottom), (left, right)), PAD[self.mode])  # type: ignore[call-overload,no-any-return]

    def weight_gradient(self, x: Array, grad: Array) -> Array:
        multiplier = grad.shape[1] // x.shape[1]
        padded = np.repeat(self.pad(x), multiplier, 1)
        result = np.zeros((grad.shape[1], 1, *self.weight.shape[2:]))
        for ky, kx, rows, columns in self.windows():
            result[:, 0, ky, kx] = (padded[:, :, rows, columns] * grad).sum((0, 2, 3))
        return result

    def input_gradient(self, grad: Array, weight: Array) -> Array:
        n, c, h, w = self.x.shape
        # Which element stands at each place of the padded image; 0 for a zero.
        places = self.pad(np.arange(1, h * w + 1).reshape(h, w))
        padded = np.zeros((n, c, *places.shape))
        for ky, kx, rows, columns in self.windows():
            each = weight[:, 0, ky, kx, None, None] * grad
            padded[:, :, rows, columns] += each.reshape(n, c, -1, *each.shape[2:]).sum(2)
        result = np.zeros((h * w + 1, n, c))
        np.add.at(result, places, np.moveaxis(padded, (2, 3), (0, 1)))
        return np.moveaxis(result[1:], 0, -1).reshape(n, c, h, w)


@st.composite
def cases(draw: Callable[..., Any], size: int, channels: int) -> Case:
    taps = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    dilation = draw(st.sampled_from(((1, 1), (1, 1), (2, 2), (1, 2), (4, 3))))
    stride = draw(st.sampled_from(((1, 1), (2, 2), (2, 1), (3, 2), (4, 6))))
    mode = draw(st.sampled_from(("zeros", "zeros", *PAD)))
    sides = tuple(draw(st.integers(0, 4)) for _ in range(4))
    extent = [(k - 1) * d + 1 for k, d in zip(taps, dilation, strict=True)]
    least = [max(1, e - a - b) for e, a, b in zip(extent, sides[::2], sides[1::2], strict=True)]
    h, w = (draw(st.integers(low, max(low, size))) for low in least)
    c, m, n = (
        draw(st.integers(1, channels)),
        draw(st.sampled_from((1, 1, 2))),
        draw(st.integers(1, 2)),
    )
    padding: Any = sides
    if draw(st.integers(0, 5)) == 0:
        padding = "same"
        sides = planner.sides("same", (h, w), (extent[0], extent[1]), stride)
    oh, ow = (
        (length + a + b - e) // s + 1
        for length, a, b, e, s in zip((h, w), sides[::2], sides[1::2], extent, stride, strict=True)
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return Case(
        rng.integers(-3, 4, (n, c, h, w)).astype(np.float64),
        rng.integers(-2, 3, (c * m, 1, *taps)).astype(np.float64),
        rng.integers(-3, 4, (n, c * m, oh, ow)).astype(np.float64),
        {"stride": stride, "padding": padding, "dilation": dilation, "padding_mode": mode},
        sides,  # type: ignore[arg-type]
        stride,
        dilation,
        mode,
    )


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_exact_on_integers(backend: str) -> None:
    @settings(max_examples=examples(backend, 4 if backend == "cpu" else 12))
    @given(
        case=cases(**ROOM[backend]),
        dtype=st.sampled_from(("float32", "float32", *FLOATS)),
        layout=st.sampled_from(("NCHW", "NHWC", "channels_last")),
        batched=st.booleans(),
        whole=st.booleans(),
    )
    def check(case: Case, dtype: str, layout: str, batched: bool, whole: bool) -> None:
        if not batched:
            case.x, case.grad = case.x[:1], case.grad[:1]
        dx = case.input_gradient(case.grad, case.weight)
        dw = case.weight_gradient(case.x, case.grad)
        db = case.grad.sum((0, 2, 3))
        kind = of(dtype)
        order = "NHWC" if layout == "NHWC" else "NCHW"
        options = {**case.options, "layout": order, "backend": backend}

        def give(image: Array) -> Array:
            image = image.astype(kind)
            image = last(image) if layout != "NCHW" else image
            image = first(image) if layout == "channels_last" else image
            return image if batched else image[0]

        def poison(image: Array) -> Array:
            return np.full(image.shape, np.nan, kind)

        x, grad = give(case.x), give(case.grad)
        given = case.weight.astype(kind)
        found = gradients.depthwise_input_gradient(
            grad, given, x.shape, **options, out=poison(x) if whole else None
        )
        assert found.dtype == kind
        assert np.array_equal(found, give(dx))
        # Sums of integers: each is exact, and is rounded once.
        found = gradients.depthwise_weight_gradient(
            x, grad, given.shape[2:], **options, out=poison(given) if whole else None
        )
        assert found.dtype == kind
        assert np.array_equal(found, dw.astype(kind))
        found = gradients.bias_gradient(grad, layout=order, backend=backend)
        assert np.array_equal(found, db.astype(kind))

    check()


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_pointwise_is_exact_on_integers(backend: str) -> None:
    most = 70 if backend == "cpu" else 9

    @settings(max_examples=examples(backend, 12))
    @given(
        n=st.integers(1, 3),
        c=st.integers(1, most),
        o=st.integers(1, most),
        size=st.tuples(st.integers(1, 12), st.integers(1, 4)),
        dtype=st.sampled_from(("float32", "float32", *FLOATS)),
        layout=st.sampled_from(("NCHW", "NHWC")),
        seed=st.integers(0, 2**32),
    )
    def check(
        n: int, c: int, o: int, size: tuple[int, int], dtype: str, layout: str, seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        kind = of(dtype)
        x, grad = (rng.integers(-3, 4, (n, k, *size)).astype(np.float64) for k in (c, o))
        weight = rng.integers(-2, 3, (o, c)).astype(np.float64)

        def give(image: Array) -> Array:
            image = image.astype(kind)
            return image if layout == "NCHW" else last(image)

        dw = np.einsum("nohw,nchw->oc", grad, x).astype(kind)
        found = gradients.pointwise_weight_gradient(
            give(x), give(grad), layout=layout, backend=backend, out=np.full((o, c), np.nan, kind)
        )
        assert np.array_equal(found, dw)
        found = gradients.pointwise_input_gradient(
            give(grad), weight.astype(kind), layout=layout, backend=backend
        )
        assert np.array_equal(found, give(np.einsum("nohw,oc->nchw", grad, weight)))

    check()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_within_the_bound(backend: str, dtype: str, layout: str, mode: str) -> None:
    rng = np.random.default_rng(5)
    n, c, h, w = (2, 5, 9, 8) if backend == "cuda" else (3, 18, 21, 37)
    case = Case(
        rng.standard_normal((n, c, h, w)), rng.standard_normal((c, 1, 3, 3)), np.zeros(1),
        {"stride": 2, "padding": 1, "padding_mode": mode}, (1, 1, 1, 1), (2, 2), (1, 1), mode,
    )  # fmt: skip
    case.grad = rng.standard_normal((n, c, (h - 1) // 2 + 1, (w - 1) // 2 + 1))
    kind, compute = of(dtype), COMPUTE.get(dtype, "float32")
    case.x, case.weight, case.grad = (
        one.astype(kind).astype(np.float64) for one in (case.x, case.weight, case.grad)
    )
    give = last if layout == "NHWC" else np.ascontiguousarray
    x, grad = (give(one.astype(kind)) for one in (case.x, case.grad))
    more = {"layout": layout, "backend": backend}

    def check(found: Array, exact: Array, sums: Array, count: int) -> None:
        found = found.astype(np.float64)
        assert (np.abs(found - exact) <= oracle.bound(count, sums, exact, compute, dtype)).all()

    # A tap, a sum and a fold each round once; every element is copied at most 4 times.
    check(
        gradients.depthwise_input_gradient(
            grad, case.weight.astype(kind), x.shape, **case.options, **more
        ),
        give(case.input_gradient(case.grad, case.weight)),
        give(case.input_gradient(np.abs(case.grad), np.abs(case.weight))),
        9 + 8,
    )
    count = case.grad[:, 0].size
    check(
        gradients.depthwise_weight_gradient(x, grad, (3, 3), **case.options, **more),
        case.weight_gradient(case.x, case.grad),
        case.weight_gradient(np.abs(case.x), np.abs(case.grad)),
        count,
    )
    check(
        gradients.bias_gradient(grad, **more),
        case.grad.sum((0, 2, 3)),
        np.abs(case.grad).sum((0, 2, 3)),
        count,
    )
    check(
        gradients.pointwise_weight_gradient(grad, grad[..., ::1], **more),
        np.einsum("nohw,nchw->oc", case.grad, case.grad),
        np.einsum("nohw,nchw->oc", np.abs(case.grad), np.abs(case.grad)),
        count,
    )


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_bits_do_not_depend_on_threads(layout: str) -> None:
    rng = np.random.default_rng(6)
    shape = (4, 48, 40, 40) if layout == "NCHW" else (4, 40, 40, 48)
    x, grad = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    weight = rng.standard_normal((48, 1, 3, 3)).astype(np.float32)

    def results() -> list[bytes]:
        more: dict[str, Any] = {"layout": layout}
        return [
            one.tobytes()
            for one in (
                gradients.depthwise_input_gradient(grad, weight, shape, padding=1, **more),
                gradients.depthwise_weight_gradient(x, grad, (3, 3), padding=1, **more),
                gradients.pointwise_weight_gradient(x, grad, **more),
                gradients.bias_gradient(grad, **more),
            )
        ]

    threads = numba.get_num_threads()
    several = [results() for _ in range(3)]
    try:
        numba.set_num_threads(1)
        assert several == [results()] * 3
    finally:
        numba.set_num_threads(threads)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_repeated_calls(
    layout: str, batched: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known of a call does for other elements what was found out for the first."""
    rng = np.random.default_rng(8)
    entries: list[Any] = []
    put = repeats._known.put
    monkeypatch.setattr(repeats._known, "put", lambda *one: (entries.append(one), put(*one)))

    def drawn(*shape: int) -> Array:
        shape = shape if layout == "NCHW" else (*shape[:-3], *shape[-2:], shape[-3])
        return rng.standard_normal(shape if batched else shape[1:]).astype(dtype)

    more: dict[str, Any] = {"layout": layout}
    options: dict[str, Any] = {"stride": 2, "padding": 1, "padding_mode": "reflect", **more}
    images = [(drawn(2, 6, 12, 11), drawn(2, 6, 6, 6), drawn(2, 4, 6, 6)) for _ in range(3)]
    weights = [rng.standard_normal((6, 1, 3, 3)).astype(dtype) for _ in range(3)]

    def results(i: int, out: bool = False) -> list[Array]:
        (x, grad, mixed), weight = images[i], weights[i]
        calls: list[Callable[..., Array]] = [
            lambda **o: gradients.depthwise_input_gradient(grad, weight, x.shape, **options, **o),
            lambda **o: gradients.depthwise_weight_gradient(x, grad, (3, 3), **options, **o),
            lambda **o: gradients.pointwise_weight_gradient(grad, mixed, **more, **o),
            lambda **o: gradients.bias_gradient(grad, **more, **o),
        ]
        made = [call() for call in calls]
        if out:
            for call, one in zip(calls, made, strict=True):
                place = np.full_like(one, np.nan)
                assert call(out=place) is place
                assert place.tobytes() == one.tobytes()
        return made

    repeats._known._entries.clear()
    results(0)
    assert len(entries) == 4
    again = results(1, out=True)
    assert len(entries) == 8
    repeats._known._entries.clear()
    for one, alone in zip(again, results(1), strict=True):
        assert one.tobytes() == alone.tobytes()
    # A result in the memory of what it is made of is no known call.
    x = images[2][0]
    expected = gradients.depthwise_input_gradient(x, weights[2], x.shape, padding=1, **more)
    place = x.copy()
    gradients.depthwise_input_gradient(place, weights[2], x.shape, padding=1, out=place, **more)
    assert place.tobytes() == expected.tobytes()


def test_the_adjoint_identity() -> None:
    rng = np.random.default_rng(7)
    for mode in PAD:
        options: dict[str, Any] = {"stride": 2, "padding": 2, "padding_mode": mode}
        x = rng.integers(-3, 4, (2, 3, 11, 10)).astype(np.float64)
        weight = rng.integers(-2, 3, (6, 1, 3, 4)).astype(np.float64)
        y = depthwise_conv2d(x, weight, **options)
        grad = rng.integers(-3, 4, y.shape).astype(np.float64)
        dx = gradients.depthwise_input_gradient(grad, weight, x.shape, **options)
        dw = gradients.depthwise_weight_gradient(x, grad, (3, 4), **options)
        assert (y * grad).sum() == (x * dx).sum() == (weight * dw).sum()


def test_empty_batches_give_zeros(backend: str) -> None:
    x = np.zeros((0, 4, 6, 6), np.float32)
    assert gradients.depthwise_input_gradient(
        x, np.ones((4, 1, 1, 1)), x.shape, backend=backend
    ).shape == (0, 4, 6, 6)
    for found in (
        gradients.depthwise_weight_gradient(x, x, (3, 3), padding=1, backend=backend),
        gradients.pointwise_weight_gradient(x, x, backend=backend),
        gradients.bias_gradient(x, backend=backend),
    ):
        assert not found.any()


def test_wrong_calls_are_refused() -> None:
    x = np.zeros((2, 4, 6, 6), np.float32)
    w = np.ones((4, 1, 3, 3), np.float32)
    dx, dw = gradients.depthwise_input_gradient, gradients.depthwise_weight_gradient
    for call, error, text in (
        (lambda: dx(x, w, (2, 4, 6, 6)), ValueError, "^grad: shape .* has .*4, 4"),
        (lambda: dx(x, w, (4, 6, 6), padding=1), ValueError, "^shape: "),
        (lambda: dx(x, w, 5, padding=1), TypeError, "^shape: "),
        (lambda: dx(x.astype(np.int8), w, x.shape, padding=1), TypeError, "^grad: int8"),
        (lambda: dx([1.0], w, x.shape), TypeError, "^grad: "),
        (lambda: dw(x, x[:, :3], (3, 3)), ValueError, "^grad: 3 channels"),
        (lambda: dw(x, x, (3, 3)), ValueError, "^grad: shape"),
        (lambda: dw(x, x[0], (3, 3)), ValueError, "^grad: shape"),
        (lambda: dw(x, x.astype(np.float64), (3, 3), padding=1), TypeError, "^grad: dtype"),
        (lambda: dw(x, x, (9, 9)), ValueError, "^size: "),
        (lambda: dw(x, x, (0, 1)), ValueError, "^size: "),
        (
            lambda: dw(x, x, (3, 3), padding=1, out=np.zeros((4, 3, 3), np.float32)),
            ValueError,
            "^out: shape",
        ),
        (lambda: gradients.pointwise_weight_gradient(x, x[:1]), ValueError, "^grad: shape"),
    ):
        with pytest.raises(error, match=text):
            call()

"""depthwise_, pointwise_ and depthwise_separable_conv2d against scipy, channel by channel."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import signal, special

from numbasep import (
    SeparableKernel,
    depthwise_conv2d,
    depthwise_separable_conv2d,
    factorise,
    pointwise_conv2d,
)
from tests import oracle
from tests.conftest import examples
from tests.oracle import of

Array = NDArray[Any]

FLOATS = ("float32", "float64", "float16", "bfloat16")
COMPUTE = {"float64": "float64", "int8": "int32"}
PAD = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
LAYOUTS = ("NCHW", "NHWC")

# What torch.nn.functional has, in the precision of the argument.
ACTIVATIONS: dict[str | None, Callable[[Array], Array]] = {
    None: lambda y: y,
    "relu": lambda y: np.maximum(y, 0),
    "relu6": lambda y: np.clip(y, 0, 6),
    "silu": lambda y: y * special.expit(y),
    "hardswish": lambda y: y * np.clip(y + 3, 0, 6) / 6,
    "gelu": lambda y: y * special.ndtr(y),
}
# By how much a unit of error before the activation can grow: the largest slope.
SLOPE = {None: 1, "relu": 1, "relu6": 1, "silu": 1.1, "hardswish": 1.5, "gelu": 1.13}


def wide(values: Array) -> Array:
    return values.astype(np.float64)


def last(x: Array) -> Array:
    """NCHW to NHWC."""
    return np.ascontiguousarray(np.moveaxis(x, -3, -1))


@dataclass
class Layer:
    """A depthwise layer in NCHW; weight (filters, kh, kw)."""

    x: Array
    weight: Array
    bias: Array | None
    options: dict[str, Any]
    sides: tuple[int, int, int, int]

    def reference(self, x: Array, weight: Array, bias: Array | None) -> Array:
        top, bottom, left, right = self.sides
        mode = PAD[self.options["padding_mode"]]
        padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), mode=mode)  # type: ignore[call-overload]
        sy, sx = self.options["stride"]
        multiplier = len(weight) // x.shape[1]
        kernels = [oracle.dilate(one, self.options["dilation"]) for one in weight]
        result = np.stack(
            [
                [
                    signal.correlate2d(image[f // multiplier], kernel, "valid")[::sy, ::sx]
                    for f, kernel in enumerate(kernels)
                ]
                for image in padded
            ]
        )
        return result if bias is None else result + bias[:, None, None]

    def sums(self) -> tuple[Array, Array]:
        """The reference in float64, and the sum of absolute values."""
        x, weight = wide(self.x), wide(self.weight)
        bias = None if self.bias is None else wide(self.bias)
        return (
            self.reference(x, weight, bias),
            self.reference(abs(x), abs(weight), None if bias is None else abs(bias)),
        )

    def call(self, layout: str = "NCHW", weight: Any = None, **more: Any) -> Array:
        x = self.x if layout == "NCHW" else last(self.x)
        result: Array = depthwise_conv2d(
            x, self.weight[:, None] if weight is None else weight, self.bias, layout=layout,
            **{**self.options, **more},
        )  # fmt: skip
        return result if layout == "NCHW" else np.moveaxis(result, -1, -3)


def values(rng: np.random.Generator, shape: tuple[int, ...], name: str, *, whole: bool) -> Array:
    if name == "int8":
        return rng.integers(-128, 128, shape).astype(np.int8)
    if whole:
        return rng.integers(-2, 3, shape).astype(of(name))
    return rng.standard_normal(shape).astype(of(name))


@st.composite
def layers(
    draw: Callable[..., Any], dtypes: tuple[str, ...], *, whole: bool, backend: str = "cpu"
) -> Layer:
    """Layers; small ones where a simulator runs."""
    name = draw(st.sampled_from(dtypes))
    square = draw(st.sampled_from((0, 0, 3, 5, 7) if backend == "cpu" else (0, 0, 3, 3, 5)))
    most = 9 if backend == "cpu" else 6
    kh, kw = (square, square) if square else (draw(st.integers(1, most)) for _ in range(2))
    dilation = draw(st.sampled_from(((1, 1), (1, 1), (2, 2), (2, 1), (1, 3))))
    stride = draw(st.sampled_from(((1, 1), (2, 2), (1, 2), (2, 1), (3, 3))))
    extent = [(k - 1) * d + 1 for k, d in zip((kh, kw), dilation, strict=True)]
    sides = [draw(st.integers(0, 4)) for _ in range(4)]
    least = [max(1, extent[axis] - sides[2 * axis] - sides[2 * axis + 1]) for axis in (0, 1)]
    largest = 40 if backend == "cpu" else 6
    size = [draw(st.integers(low, max(low, largest))) for low in least]
    channels = draw(st.sampled_from((1, 2, 3, 15, 16, 17, 40) if backend == "cpu" else (1, 2, 3)))
    multiplier = draw(st.sampled_from((1, 1, 1, 2, 3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    mode = draw(st.sampled_from(tuple(PAD)))
    bias = values(rng, (channels * multiplier,), name, whole=whole) if draw(st.booleans()) else None
    return Layer(
        values(rng, (draw(st.integers(1, 2)), channels, *size), name, whole=whole),
        values(rng, (channels * multiplier, kh, kw), name, whole=whole),
        bias,
        {
            "stride": stride,
            "dilation": dilation,
            "padding": tuple(sides),
            "padding_mode": mode,
        },
        (sides[0], sides[1], sides[2], sides[3]),
    )


def compute_of(name: str) -> str:
    return COMPUTE.get(name, "float32")


def activated(
    reference: Array, error: Array, activation: str | None, name: str
) -> tuple[Array, Array]:
    """The activation of a reference, and of how much it may be off."""
    result = ACTIVATIONS[activation](reference)
    if activation in ("silu", "hardswish", "gelu"):
        # Some operations of a few roundings each, on values of the size of the argument.
        error = SLOPE[activation] * error + oracle.gamma(16, compute_of(name)) * abs(reference)
    return result, error


def within(result: Array, reference: Array, error: Array, name: str) -> None:
    """Compare after one rounding into the output dtype."""
    if name in ("float16", "bfloat16", "float32"):
        smallest = {"float16": 2.0**-25, "bfloat16": 2.0**-134, "float32": 2.0**-150}[name]
        if name != "float32":
            error = error + oracle.ROUNDOFF[name] * (abs(reference) + error)
        error = error + smallest
    off = abs(wide(result) - reference)
    assert (off <= error).all(), f"off by up to {(off / np.maximum(error, 1e-300)).max()} bounds"


def test_depthwise_is_within_the_bound(backend: str) -> None:
    @settings(max_examples=examples(backend))
    @given(
        layer=layers(FLOATS, whole=False, backend=backend),
        layout=st.sampled_from(LAYOUTS),
        activation=st.sampled_from(tuple(ACTIVATIONS)),
    )
    def check(layer: Layer, layout: str, activation: str | None) -> None:
        name = layer.x.dtype.name
        result = layer.call(layout, activation=activation, backend=backend)
        assert result.dtype == layer.x.dtype
        reference, sums = layer.sums()
        n = layer.weight[0].size + 1
        reference, error = activated(
            reference, oracle.gamma(n, compute_of(name)) * sums, activation, name
        )
        within(result, reference, error, name)

    check()


def test_depthwise_is_exact_on_integers(backend: str) -> None:
    @settings(max_examples=examples(backend))
    @given(
        layer=layers(("float32", "float64", "int8"), whole=True, backend=backend),
        layout=st.sampled_from(LAYOUTS),
    )
    def check(layer: Layer, layout: str) -> None:
        reference, _ = layer.sums()
        # Of poison what is not written stays.
        kind = "int32" if layer.x.dtype == np.int8 else layer.x.dtype
        poison = np.full(reference.shape, 77, kind)
        assert np.array_equal(layer.call(layout, backend=backend), reference)
        if layout == "NHWC":
            poison = last(poison)
        out = layer.call(layout, out=poison, backend=backend)
        assert np.array_equal(out, reference)
        assert np.shares_memory(out, poison)

    check()


def test_low_rank_depthwise_is_exact_on_integers(backend: str) -> None:
    @settings(max_examples=examples(backend))
    @given(
        layer=layers(("float32", "float64", "int8"), whole=True, backend=backend),
        layout=st.sampled_from(LAYOUTS),
    )
    def check(layer: Layer, layout: str) -> None:
        rng = np.random.default_rng(1)
        rank = 2
        columns = rng.integers(-2, 3, (len(layer.weight), rank, layer.weight.shape[1]))
        rows = rng.integers(-2, 3, (len(layer.weight), rank, layer.weight.shape[2]))
        layer.weight = np.einsum("fri,frj->fij", columns, rows)
        stack = SeparableKernel.from_taps(columns, rows)
        reference, _ = layer.sums()
        assert np.array_equal(layer.call(layout, weight=stack, backend=backend), reference)

    check()


@settings(max_examples=examples("cuda", 3))
@given(
    layer=layers(("float32", "float16", "bfloat16"), whole=False, backend="cuda"),
    low_rank=st.booleans(),
)
def test_backends_and_layouts_give_the_same_bits(layer: Layer, low_rank: bool) -> None:
    weight = None
    if low_rank:
        filters, *sizes = layer.weight.shape
        rng = np.random.default_rng(6)
        columns, rows = (rng.standard_normal((filters, 2, k)) for k in sizes)
        weight = SeparableKernel.from_taps(columns, rows)
    results = [
        layer.call(layout, weight=weight, backend=backend).astype(layer.x.dtype).tobytes()
        for layout in LAYOUTS
        for backend in ("cpu", "cuda")
    ]
    assert len(set(results)) == 1


def test_factorised_weights_keep_their_promise(backend: str) -> None:
    size, reach = (40, 31) if backend == "cpu" else (7, 9)
    rng = np.random.default_rng(2)
    rank1 = rng.standard_normal((6, reach, 1)) * rng.standard_normal((6, 1, reach))
    x = rng.standard_normal((1, 6, size, size))
    options = {"padding": reach // 2, "backend": backend}
    dense = depthwise_conv2d(x, rank1[:, None], **options)
    for weight in (factorise(rank1[:, None]), [factorise(one) for one in rank1]):
        low = depthwise_conv2d(x, weight, **options)
        sums = depthwise_conv2d(abs(x), abs(rank1)[:, None], **options)
        assert (abs(low - dense) <= 1e-12 * sums).all()  # tol of the factors, far above rounding


@st.composite
def mixes(
    draw: Callable[..., Any], dtypes: tuple[str, ...], backend: str, *, whole: bool
) -> tuple[Any, ...]:
    name = draw(st.sampled_from(dtypes))
    most, side = (70, 15) if backend == "cpu" else (20, 4)
    n, c, outputs = (draw(st.integers(1, top)) for top in (3, most, most))
    h, w = draw(st.integers(1, side)), draw(st.integers(1, side))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    bias = values(rng, (outputs,), name, whole=whole) if draw(st.booleans()) else None
    return (
        values(rng, (n, c, h, w), name, whole=whole),
        values(rng, (outputs, c), name, whole=whole),
        bias,
    )


def mixed(x: Array, weight: Array, bias: Array | None) -> Array:
    result = np.einsum("oc,nchw->nohw", weight, x, optimize=True)
    return result if bias is None else result + bias[:, None, None]


def mix(x: Array, weight: Array, bias: Array | None, layout: str, **more: Any) -> Array:
    image = x if layout == "NCHW" else last(x)
    result: Array = pointwise_conv2d(image, weight, bias, layout=layout, **more)
    return result if layout == "NCHW" else np.moveaxis(result, -1, -3)


def roundings(name: str, channels: int, backend: str) -> int:
    """Roundings of a pointwise sum: one a channel, but for tensor cores three (test_pointwise)."""
    if backend == "cuda" and name in ("float16", "bfloat16"):
        return 3 * (channels + -channels % 32) + 1
    return channels + 1


def test_pointwise_is_within_the_bound(backend: str) -> None:
    @settings(max_examples=examples(backend))
    @given(
        case=mixes(FLOATS, backend, whole=False),
        layout=st.sampled_from(LAYOUTS),
        activation=st.sampled_from(tuple(ACTIVATIONS)),
    )
    def check(case: Any, layout: str, activation: str | None) -> None:
        x, weight, bias = case
        name = x.dtype.name
        full = None if bias is None else wide(bias)
        reference = mixed(wide(x), wide(weight), full)
        sums = mixed(abs(wide(x)), abs(wide(weight)), None if full is None else abs(full))
        n = roundings(name, x.shape[1], backend)
        error = oracle.gamma(n, compute_of(name)) * sums
        reference, error = activated(reference, error, activation, name)
        result = mix(x, weight, bias, layout, activation=activation, backend=backend)
        within(result, reference, error, name)

    check()


def test_pointwise_is_exact_on_integers(backend: str) -> None:
    @settings(max_examples=examples(backend))
    @given(
        case=mixes(("float32", "float64", "int8"), backend, whole=True),
        layout=st.sampled_from(LAYOUTS),
    )
    def check(case: Any, layout: str) -> None:
        x, weight, bias = case
        reference = mixed(wide(x), wide(weight), None if bias is None else wide(bias))
        assert np.array_equal(mix(x, weight, bias, layout, backend=backend), reference)
        if x.dtype == np.float32:
            four = weight[:, :, None, None]
            result = mix(x, four, bias, layout, precision="tf32", backend=backend)
            assert np.array_equal(result, reference)

    check()


def test_fused_has_the_bits_of_the_two_calls(backend: str) -> None:
    @settings(max_examples=examples(backend))
    @given(
        layer=layers(("float32", "float64"), whole=False, backend=backend),
        outputs=st.integers(1, 60 if backend == "cpu" else 18),
        layout=st.sampled_from(LAYOUTS),
        first=st.sampled_from(tuple(ACTIVATIONS)),
        second=st.sampled_from(tuple(ACTIVATIONS)),
        fuse=st.sampled_from((True, True, False, None)),
    )
    def check(
        layer: Layer, outputs: int, layout: str, first: Any, second: Any, fuse: bool | None
    ) -> None:
        rng = np.random.default_rng(3)
        matrix = rng.standard_normal((outputs, len(layer.weight))).astype(layer.x.dtype)
        bias = rng.standard_normal(outputs).astype(layer.x.dtype)
        x = layer.x if layout == "NCHW" else last(layer.x)
        result = depthwise_separable_conv2d(
            x, layer.weight[:, None], matrix, depthwise_bias=layer.bias,
            depthwise_activation=first, pointwise_bias=bias, activation=second, layout=layout,
            fuse=fuse, backend=backend, **layer.options,
        )  # fmt: skip
        middle = layer.call("NCHW", activation=first, backend=backend)
        calls = mix(middle, matrix, bias, "NCHW", activation=second, backend=backend)
        if layout == "NHWC":
            calls = last(calls)
        assert result.tobytes() == np.ascontiguousarray(calls).tobytes()

    check()


def test_narrow_fused_sums_are_exact(backend: str) -> None:
    @settings(max_examples=examples(backend))
    @given(
        layer=layers(("float16", "bfloat16"), whole=True, backend=backend),
        layout=st.sampled_from(LAYOUTS),
        fuse=st.sampled_from((None, True, False)),
    )
    def check(layer: Layer, layout: str, fuse: bool | None) -> None:
        layer.x[...] = layer.x > 0
        layer.weight[...] = layer.weight > 0
        layer.bias = None
        matrix = np.eye(len(layer.weight), dtype=layer.x.dtype)
        x = layer.x if layout == "NCHW" else last(layer.x)
        result = depthwise_separable_conv2d(
            x, layer.weight[:, None], matrix, layout=layout, fuse=fuse, backend=backend,
            **layer.options,
        )  # fmt: skip
        reference, _ = layer.sums()
        if layout == "NHWC":
            reference = last(reference)
        assert np.array_equal(wide(result), reference)

    check()


def table() -> list[dict[str, Any]]:
    with (Path(__file__).parent / "layers.csv").open(newline="") as file:
        return [
            {key: value if key == "name" else int(value) for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize("row", table(), ids=lambda row: row["name"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layers_of_known_networks(row: dict[str, Any], layout: str) -> None:
    rng = np.random.default_rng(4)
    h, w = min(row["H"], 56), min(row["W"], 56)
    channels = min(row["C"], 40 if row["k"] > 7 else 160)
    k, stride, dilation, pad = row["k"], row["stride"], row["dilation"], row["pad"]
    layer = Layer(
        rng.integers(-2, 3, (1, channels, h, w)).astype(np.float32),
        rng.integers(-2, 3, (channels, k, k)).astype(np.float32),
        None,
        {
            "stride": (stride, stride),
            "padding": pad,
            "dilation": (dilation, dilation),
            "padding_mode": "zeros",
        },
        (pad, pad, pad, pad),
    )
    reference, _ = layer.sums()
    assert np.array_equal(layer.call(layout), reference)
    outputs = min(row["Cout"], 100)
    if outputs:
        matrix = rng.integers(-1, 2, (outputs, channels)).astype(np.float32)
        x = layer.x if layout == "NCHW" else last(layer.x)
        for fuse in (True, False):
            result = depthwise_separable_conv2d(
                x, layer.weight[:, None], matrix, layout=layout, fuse=fuse, **layer.options
            )
            expected = mixed(reference, wide(matrix), None)
            assert np.array_equal(
                result if layout == "NCHW" else np.moveaxis(result, -1, 1), expected
            )


@pytest.mark.parametrize("size", range(1, 20))
@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_padding_is_tensorflows(size: int, k: int, stride: int) -> None:
    x = np.arange(1.0, size + 1)[None, None, :].repeat(2, 1)
    result = depthwise_conv2d(x, np.ones((1, 1, 1, k)), stride=stride, padding="same")
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + k - size, 0)
    padded = np.pad(x[0, 0], (total // 2, total - total // 2))
    expected = [padded[o * stride : o * stride + k].sum() for o in range(outputs)]
    assert result[0, 0].tolist() == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_spreads_as_far_as_the_kernel(layout: str, backend: str) -> None:
    channels, height, width = (20, 30, 40) if backend == "cpu" else (5, 14, 9)
    x = np.zeros((1, channels, height, width), np.float32)
    x[0, 3, 8, 4] = np.nan
    image = x if layout == "NCHW" else last(x)
    taps = np.ones((channels, 1, 5, 3))
    for activation in (None, "relu", "relu6", "silu", "hardswish", "gelu"):
        y = depthwise_conv2d(
            image, taps, padding=(2, 1), layout=layout, activation=activation, backend=backend
        )
        y = y if layout == "NCHW" else np.moveaxis(y, -1, 1)
        expected = np.zeros(x.shape, bool)
        expected[0, 3, 6:11, 3:6] = True
        assert np.array_equal(np.isnan(y), expected)


@pytest.mark.parametrize("function", ["depthwise", "pointwise", "both"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_views_unbatched_and_overlapping_out(function: str, layout: str) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2, 9, 12, 9)).astype(np.float32)

    def call(image: Array, **more: Any) -> Array:
        c = image.shape[-3 if layout == "NCHW" else -1]
        taps = np.arange(c * 9.0).reshape(c, 1, 3, 3)
        matrix = np.arange(1.0 * c * c).reshape(c, c)
        result: Array = (
            depthwise_conv2d(image, taps, padding=1, layout=layout, **more)
            if function == "depthwise"
            else pointwise_conv2d(image, matrix, layout=layout, **more)
            if function == "pointwise"
            else depthwise_separable_conv2d(image, taps, matrix, padding=1, layout=layout, **more)
        )
        return result

    expected = call(x)
    assert np.array_equal(call(x[0]), expected[0])
    assert np.array_equal(call(x[::-1]), expected[::-1])
    assert np.array_equal(call(np.asfortranarray(x)), expected)
    turned = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    assert np.array_equal(call(turned), expected)
    assert np.array_equal(call(x.astype(x.dtype.newbyteorder())), expected)
    assert call(x[:0]).shape == (0, *expected.shape[1:])
    frozen = x.copy()
    frozen.flags.writeable = False
    assert np.array_equal(call(frozen), expected)
    strided = np.zeros((2, 9, 12, 18), np.float32)[..., ::2]
    assert call(x, out=strided) is strided
    assert np.array_equal(strided, expected)
    own = x.copy()
    assert call(own, out=own) is own
    assert np.array_equal(own, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_out_may_overlap_the_weights(layout: str) -> None:
    """The first call, and the same call again, which takes another way."""
    rng = np.random.default_rng(6)
    x = rng.standard_normal((1, 9, 9, 9)).astype(np.float32)
    taps, matrix, bias = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((9, 1, 3, 3), (9, 9), (9,))
    )

    def inside(out: Array, weight: Array) -> Array:
        view = out.reshape(-1)[: weight.size].reshape(weight.shape)
        view[...] = weight
        return view

    for _ in range(2):
        for which in range(3):
            weights: list[Array] = [taps, matrix, bias]
            depthwise = depthwise_conv2d(x, taps, bias, padding=1, layout=layout)
            pointwise = pointwise_conv2d(x, matrix, bias, layout=layout)
            both = depthwise_separable_conv2d(
                x, taps, matrix, pointwise_bias=bias, padding=1, layout=layout
            )
            out = np.empty_like(x)
            weights[which] = inside(out, weights[which])
            depthwise_conv2d(x, weights[0], weights[2], padding=1, layout=layout, out=out)
            assert np.array_equal(out, depthwise)
            weights[which] = inside(out, (taps, matrix, bias)[which])
            pointwise_conv2d(x, weights[1], weights[2], layout=layout, out=out)
            assert np.array_equal(out, pointwise)
            weights[which] = inside(out, (taps, matrix, bias)[which])
            depthwise_separable_conv2d(
                x, weights[0], weights[1], pointwise_bias=weights[2], padding=1, layout=layout,
                out=out,
            )  # fmt: skip
            assert np.array_equal(out, both)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("near", [0, 1 << 20])
def test_pointwise_weights_with_a_window_of_one(
    layout: str, dtype: str, near: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice: the second call takes another way. ``near``: so do pixels that the caches hold."""
    from numbasep.cpu import pointwise, pointwise_tiles

    monkeypatch.setattr(pointwise_tiles, "NEAR_BYTES", near)
    for cached in (pointwise_tiles.choose, pointwise.chosen):
        cached.cache_clear()
    rng = np.random.default_rng(9)
    x = rng.integers(-3, 4, (1, 5, 40, 20)).astype(dtype)
    matrix = rng.integers(-3, 4, (70, 5 if layout == "NCHW" else 20)).astype(dtype)
    taps = np.ones((matrix.shape[1], 1, 1, 1), dtype)
    expected = np.einsum("ncyx,oc->noyx" if layout == "NCHW" else "nyxc,oc->nyxo", x, matrix)
    for weight in (matrix, matrix[:, :, None, None]):
        for _ in range(2):
            out = pointwise_conv2d(x, weight, layout=layout)
            assert np.array_equal(out, expected)
            for fuse in (False, True):
                both = depthwise_separable_conv2d(x, taps, weight, layout=layout, fuse=fuse)
                assert np.array_equal(both, expected)
    for cached in (pointwise_tiles.choose, pointwise.chosen):
        cached.cache_clear()


IMAGE = np.zeros((2, 4, 8, 8), np.float32)
TAPS = np.zeros((4, 1, 3, 3), np.float32)


@pytest.mark.parametrize(
    ("words", "error", "x", "weight", "options"),
    [
        ("4 channels", ValueError, IMAGE, TAPS[:3], {}),
        ("layout", ValueError, IMAGE, TAPS, {"layout": "CHWN"}),
        ("stride", ValueError, IMAGE, TAPS, {"stride": 0}),
        ("padding", ValueError, IMAGE, TAPS, {"padding": -1}),
        ("padding", ValueError, IMAGE, TAPS, {"padding": "full"}),
        ("padding", ValueError, IMAGE, TAPS, {"padding": (1, 2, 3)}),
        ("padding_mode", ValueError, IMAGE, TAPS, {"padding_mode": "symmetric"}),
        ("activation", ValueError, IMAGE, TAPS, {"activation": "tanh"}),
        ("bias", ValueError, IMAGE, TAPS, {"bias": np.zeros(3)}),
        ("smaller kernel", ValueError, IMAGE, TAPS, {"dilation": 5}),
        ("x: dtype uint8", TypeError, IMAGE.astype(np.uint8), TAPS, {}),
        ("weight: shape", ValueError, IMAGE, np.zeros((4, 4, 3, 3)), {}),
        ("int8", TypeError, IMAGE.astype(np.int8), TAPS, {}),
        ("x: shape", ValueError, IMAGE[0, 0], TAPS, {}),
        ("out: shape", ValueError, IMAGE, TAPS, {"out": IMAGE.copy()}),
        ("out: dtype", ValueError, IMAGE, TAPS, {"padding": 1, "out": IMAGE.astype(float)}),
        ("stream", ValueError, IMAGE, TAPS, {"stream": 1}),
    ],
)
def test_depthwise_refusals(words: str, error: Any, x: Any, weight: Any, options: Any) -> None:
    with pytest.raises(error, match=words):
        depthwise_conv2d(x, weight, **options)


@pytest.mark.parametrize(
    ("words", "error", "weight", "options"),
    [
        ("grouped pointwise", ValueError, np.zeros((4, 2)), {}),
        ("filters of 3 channels", ValueError, np.zeros((4, 3)), {}),
        ("weight: shape", ValueError, np.zeros((4, 4, 3, 3)), {}),
        ("precision", ValueError, np.zeros((4, 4)), {"precision": "bf16"}),
        ("complex", TypeError, np.zeros((4, 4), complex), {}),
    ],
)
def test_pointwise_refusals(words: str, error: Any, weight: Any, options: Any) -> None:
    with pytest.raises(error, match=words):
        pointwise_conv2d(IMAGE, weight, **options)


def test_separable_refusals() -> None:
    matrix = np.zeros((5, 4))
    with pytest.raises(TypeError, match="int8"):
        depthwise_separable_conv2d(IMAGE.astype(np.int8), TAPS, matrix)
    with pytest.raises(TypeError, match="fuse"):
        depthwise_separable_conv2d(IMAGE, TAPS, matrix, fuse="yes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="depthwise_activation"):
        depthwise_separable_conv2d(IMAGE, TAPS, matrix, depthwise_activation="tanh")
    with pytest.raises(ValueError, match="tf32"):
        pointwise_conv2d(IMAGE.astype(np.float64), np.zeros((4, 4)), precision="tf32")

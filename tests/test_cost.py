"""cost and receptive_field against counting one by one, and against published figures."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbasep.cost import Cost, cost, receptive_field
from numbasep.factorise import factorise

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def layers(draw: st.DrawFn) -> dict[str, Any]:
    kernel, dilation = draw(pairs), draw(pairs)
    return {
        "shape": (draw(st.integers(1, 2)), draw(st.integers(1, 3)), *draw(sizes(kernel, dilation))),
        "out_channels": draw(st.none() | st.integers(1, 4)),
        "kernel_size": kernel,
        "stride": draw(pairs),
        "padding": draw(st.tuples(*[st.integers(0, 2)] * 4)),
        "dilation": dilation,
        "depth_multiplier": draw(st.integers(1, 2)),
        "rank": draw(st.none() | st.integers(0, min(kernel))),
        "bias": draw(st.booleans()),
        "dtype": draw(st.sampled_from(["float32", "bfloat16", "int8", "float64"])),
    }


def sizes(kernel: tuple[int, int], dilation: tuple[int, int]) -> st.SearchStrategy[Any]:
    least = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    return st.tuples(*(st.integers(n, n + 4) for n in least))


def counted_by_hand(layer: dict[str, Any]) -> dict[str, Any]:
    """Walk over every output and tap; remember what is read."""
    n, c, h, w = layer["shape"]
    (kh, kw), (sy, sx), (dy, dx) = layer["kernel_size"], layer["stride"], layer["dilation"]
    top, bottom, left, right = layer["padding"]
    m = layer["depth_multiplier"]
    cout = layer["out_channels"] or c * m
    ys = range(0, h + top + bottom - (kh - 1) * dy, sy)
    xs = range(0, w + left + right - (kw - 1) * dx, sx)
    read, rows, standard, depthwise, pointwise = set(), set(), 0, 0, 0
    for image, y, x in itertools.product(range(n), ys, xs):
        for i, j, channel in itertools.product(range(kh), range(kw), range(c)):
            standard += cout
            depthwise += m
            row, column = y + i * dy - top, x + j * dx - left
            if 0 <= row < h:
                rows.add((image, row))
                if 0 <= column < w:
                    read.add((image, channel, row, column))
        pointwise += c * m * cout
    return {
        "out_shape": (n, cout, len(ys), len(xs)),
        "read": len(read),
        "rows": len(rows),
        "standard": standard,
        "depthwise": depthwise,
        "pointwise": pointwise,
    }


@given(layers())
def test_counts_are_those_of_the_loops(layer: dict[str, Any]) -> None:
    shape, cout, kernel = layer["shape"], layer["out_channels"], layer["kernel_size"]
    options = {k: v for k, v in layer.items() if k not in ("shape", "out_channels", "kernel_size")}
    result = cost(shape, cout, kernel, **options)
    hand = counted_by_hand(layer)
    itemsize = {"float32": 4, "bfloat16": 2, "int8": 1, "float64": 8}[layer["dtype"]]
    biases = int(layer["bias"])
    kh, kw = kernel
    between = shape[1] * layer["depth_multiplier"]
    written = math.prod(hand["out_shape"])
    pixels = written // hand["out_shape"][1]
    last = hand["out_shape"][1]

    assert result.out_shape == hand["out_shape"]
    assert result.standard.parameters == last * shape[1] * kh * kw + biases * last
    assert result.standard.multiply_adds == hand["standard"]
    assert result.standard.bytes == itemsize * (result.standard.parameters + hand["read"] + written)
    assert result.depthwise.parameters == between * kh * kw + biases * between
    assert result.depthwise.multiply_adds == hand["depthwise"]
    assert result.depthwise.bytes == itemsize * (
        result.depthwise.parameters + hand["read"] + pixels * between
    )
    if cout is None:
        assert result.pointwise is None
        assert result.separable == result.depthwise == result.two_launches
        assert result.intermediate_bytes == 0
        mixing = 0
    else:
        assert result.pointwise is not None
        mixing = between * cout
        assert result.pointwise.parameters == mixing + biases * cout
        assert result.pointwise.multiply_adds == hand["pointwise"]
        assert result.intermediate_bytes == itemsize * pixels * between
        assert result.two_launches == result.depthwise + result.pointwise
        # One launch saves the intermediate, written and read.
        assert result.two_launches.bytes - result.separable.bytes == 2 * result.intermediate_bytes
        assert result.two_launches.multiply_adds == result.separable.multiply_adds
        assert result.two_launches.parameters == result.separable.parameters
    if layer["rank"] is None:
        assert result.low_rank is None
    else:
        assert result.low_rank is not None
        terms = layer["rank"]
        row_pass = between * hand["rows"] * hand["out_shape"][3] * kw
        column_pass = between * pixels * kh
        assert result.low_rank.multiply_adds == terms * (row_pass + column_pass) + pixels * mixing
        weights = result.separable.parameters - between * kh * kw
        assert result.low_rank.parameters == weights + terms * between * (kh + kw)
        assert result.low_rank.bytes - result.separable.bytes == itemsize * (
            result.low_rank.parameters - result.separable.parameters
        )


@given(layers())
def test_published_ratio(layer: dict[str, Any]) -> None:
    cout = layer["out_channels"] or 1
    kh, kw = layer["kernel_size"]
    m = layer["depth_multiplier"]
    result = cost(
        layer["shape"],
        cout,
        (kh, kw),
        stride=layer["stride"],
        padding=layer["padding"],
        dilation=layer["dilation"],
        depth_multiplier=m,
    )
    published = m * (Fraction(1, cout) + Fraction(1, kh * kw))
    assert Fraction(result.separable.multiply_adds, result.standard.multiply_adds) == published
    assert Fraction(result.separable.parameters, result.standard.parameters) == published
    # Two integers' quotient, rounded once.
    assert result.ratio == float(published)


def test_low_rank_speedup_is_that_of_the_factors() -> None:
    f = factorise([[1.0, 2, 1], [0, 0, 0], [-1, -2, -1]])
    layer = cost((1, 1, 64, 64), None, 3, padding=1, rank=f.rank)
    assert layer.low_rank is not None
    assert layer.depthwise.multiply_adds / layer.low_rank.multiply_adds == f.speedup


# (channels in, channels out, stride) of the thirteen separable layers, from 112 x 112.
MOBILENET = [
    (32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2),
    (512, 512, 1), (512, 512, 1), (512, 512, 1), (512, 512, 1), (512, 512, 1), (512, 1024, 2),
    (1024, 1024, 1),
]  # fmt: skip


def test_mobilenet_adds_up_to_its_published_totals() -> None:
    first = cost((3, 224, 224), 32, 3, stride=2, padding="same")
    classifier = Cost(1024 * 1000, 1024 * 1000, 0)
    separable = dense = first.standard + classifier
    size = 112
    for cin, cout, stride in MOBILENET:
        layer = cost((cin, size, size), cout, 3, stride=stride, padding="same")
        separable, dense = separable + layer.separable, dense + layer.standard
        size = layer.out_shape[2]
    assert size == 7
    # Table 4: 569 and 4866 million multiply-adds, 4.2 and 29.3 million parameters; the second is
    # reached without the classifier's million.
    assert round(separable.multiply_adds / 1e6) == 569
    assert round((dense.multiply_adds - classifier.multiply_adds) / 1e6) == 4866
    assert round(separable.parameters / 1e6, 1) == 4.2
    assert round(dense.parameters / 1e6, 1) == 29.3


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [5, 6, 7, 12])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_same_padding(stride: int, size: int, kernel: int) -> None:
    layer = cost((1, size, size), 1, kernel, stride=stride, padding="same")
    assert layer.out_shape[2:] == (math.ceil(size / stride),) * 2
    same = cost((1, size, size), 1, kernel, stride=1, padding="same")
    before, after = (kernel - 1) // 2, kernel // 2
    assert same == cost((1, size, size), 1, kernel, padding=(before, after) * 2)


def test_forms_of_arguments() -> None:
    assert cost((2, 8, 9), 4, 3) == cost((1, 2, 8, 9), 4, (3, 3), padding="valid")
    assert cost((2, 8, 9), 4, 3, padding=1) == cost((2, 8, 9), 4, 3, padding=(1, 1, 1, 1))
    assert cost((2, 8, 9), 4, 3, padding=(1, 0)) == cost((2, 8, 9), 4, 3, padding=(1, 1, 0, 0))


def test_table() -> None:
    lines = str(cost((64, 32, 112, 112), 64, 3, padding=1, rank=1)).splitlines()
    assert lines[0].split() == [
        "64x32x112x112", "->", "64x64x112x112", "parameters", "multiply-adds", "bytes", "flop/B",
    ]  # fmt: skip
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["standard", "18,432", "14,797,504,512", "308,355,072", "96.0"]
    assert [line[:24].strip() for line in lines[2:]] == [
        "depthwise",
        "pointwise",
        "separable, two launches",
        "separable, one launch",
        "low rank, one launch",
    ]
    alone = str(cost((64, 32, 112, 112), None, 3)).splitlines()
    assert [line[:24].strip() for line in alone[1:]] == ["standard", "depthwise"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"shape": (8, 9)}, ValueError, "shape: got 2 values; pass"),
        ({"shape": (0, 8, 9)}, ValueError, "shape: got 0; pass an integer of at least 1"),
        ({"shape": 7}, TypeError, "shape: expected"),
        ({"shape": (1.5, 8, 9)}, TypeError, "shape: expected an integer"),
        ({"out_channels": 0}, ValueError, "out_channels: got 0"),
        ({"kernel_size": 0}, ValueError, "kernel_size: got 0"),
        ({"kernel_size": (3, 3, 3)}, ValueError, "kernel_size: got 3 values"),
        ({"kernel_size": (3, 11)}, ValueError, "kw reaches over 11 elements .* padded input has 9"),
        ({"dilation": (4, 1)}, ValueError, "kh reaches over 9 elements .* padded input has 8"),
        ({"stride": 0}, ValueError, "stride: got 0"),
        ({"stride": True}, TypeError, "stride: expected an integer"),
        ({"padding": -1}, ValueError, "padding: got -1"),
        ({"padding": "full"}, ValueError, "padding: 'full' is not one of 'same', 'valid'"),
        ({"padding": (1, 1, 1)}, ValueError, r"pass one integer, .*\(top, bottom, left, right\)"),
        ({"padding": (1, 1, 1, -1)}, ValueError, "padding: got -1"),
        ({"depth_multiplier": 0}, ValueError, "depth_multiplier: got 0"),
        ({"rank": 4}, ValueError, "rank: got 4; a 3x3 kernel has at most 3"),
        ({"rank": -1}, ValueError, "rank: got -1"),
        ({"bias": 1}, TypeError, "bias: expected True or False, got 1"),
        ({"dtype": "float33"}, ValueError, "dtype: 'float33' is not one of"),
        ({"dtype": None}, TypeError, "dtype: got None"),
    ],
)
def test_refusals(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"shape": (2, 8, 9), "out_channels": 4, "kernel_size": 3}
    with pytest.raises(error, match=message):
        cost(**(arguments | change))


@st.composite
def stacks(draw: st.DrawFn) -> list[dict[str, Any]]:
    return [
        {
            "kernel_size": draw(pairs),
            "stride": draw(pairs),
            "padding": draw(st.tuples(*[st.integers(0, 3)] * 4)),
            "dilation": draw(pairs),
        }
        for _ in range(draw(st.integers(0, 4)))
    ]


@given(stacks(), st.integers(0, 5))
def test_field_is_that_of_the_taps_followed_back(stack: list[dict[str, Any]], output: int) -> None:
    field = receptive_field(stack)
    for axis in range(2):
        seen = {output}
        for layer in reversed(stack):
            k, s, d = (layer[name][axis] for name in ("kernel_size", "stride", "dilation"))
            before = layer["padding"][2 * axis]
            seen = {x * s - before + i * d for x in seen for i in range(k)}
        assert field.region(output, output)[axis] == (min(seen), max(seen))
        assert field.size[axis] == max(seen) - min(seen) + 1


def test_published_fields() -> None:
    # Distill 2019, table of architectures: receptive field, effective stride, effective padding.
    vgg = [layer for n in (2, 2, 3, 3, 3) for layer in [(3, 1, 1)] * n + [(2, 2, 0)]]
    field = receptive_field(vgg)
    assert (field.size, field.stride, field.padding) == ((212, 212), (32, 32), (90, 90))
    mobilenet = [(3, 2, 1)] + [(3, stride, 1) for _, _, stride in MOBILENET]
    assert receptive_field(mobilenet).size == (315, 315)
    assert receptive_field(mobilenet).stride == (32, 32)


def test_forms_of_layers() -> None:
    whole = receptive_field([{"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2}, 5])
    assert receptive_field([(3, 2, 1, 2), (5,)]) == whole
    assert receptive_field(iter([(3, 2, 1, 2), {"kernel_size": (5, 5)}])) == whole
    assert whole.size == (13, 13)
    assert receptive_field([(3, 1, "same")]).padding == (1, 1)
    assert receptive_field([(4, 1, "same")]).padding == (1, 1)
    assert receptive_field([(3, 2, "valid")]).padding == (0, 0)
    assert receptive_field([]).size == (1, 1)
    assert receptive_field([((1, 7), 1, (0, 3))]).region(4, 4) == ((4, 4), (1, 7))


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ("3,3", TypeError, "layers: expected a sequence of layers, got '3,3'"),
        ({"kernel_size": 3}, TypeError, "layers: expected a sequence of layers"),
        (3, TypeError, "layers: expected a sequence of layers, got 3"),
        ([3, {"stride": 1}], ValueError, r"layers\[1\]: got .* without kernel_size"),
        ([{"kernel_size": 3, "strides": 1}], ValueError, r"layers\[0\]: .*did you mean 'stride'"),
        ([(3, 1, 1, 1, 1)], ValueError, r"layers\[0\]: got 5 values"),
        ([0], ValueError, r"layers\[0\]: kernel_size: got 0"),
        (["3x3"], TypeError, r"layers\[0\]: kernel_size: expected an integer, got '3x3'"),
        ([(3, 2, "same")], ValueError, "'same' with stride .* depends on the image's size"),
        ([(3, 0)], ValueError, r"layers\[0\]: stride: got 0"),
    ],
)
def test_refused_layers(layers: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        receptive_field(layers)


def test_refused_outputs() -> None:
    with pytest.raises(ValueError, match="row: got -1"):
        receptive_field([3]).region(-1, 0)

"""Wrong calls of factorise, SeparableKernel, cost, receptive_field and explain: each is refused
with its exception, its argument, what arrived and a remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from numbasep import SeparableKernel, cost, explain, factorise, receptive_field, separable_conv2d

K = np.outer([1.0, 2.0, 1.0], [1.0, 0.0, -1.0])
IMAGE = np.zeros((8, 8), np.float32)
TAPS = np.ones(3), np.ones(3)


def refused(function: Callable[..., Any], *args: Any, **options: Any) -> Callable[[], Any]:
    return lambda: function(*args, **options)


def spoilt(value: float) -> Any:
    kernel = K.copy()
    kernel[1, 2] = value
    return kernel


CALLS: dict[str, tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = {
    # factorise
    "kernel None": (refused(factorise, None), TypeError, ("kernel", "object", "integers, floats")),
    "kernel string": (refused(factorise, "box"), TypeError, ("kernel", "<U3", "integers, floats")),
    "kernel bytes": (refused(factorise, b"box"), TypeError, ("kernel", "S3", "integers, floats")),
    "kernel bool": (refused(factorise, K > 0), TypeError, ("kernel", "bool", ".astype(int)")),
    "kernel objects": (refused(factorise, K.astype(object)), TypeError, ("kernel", "object")),
    "kernel dates": (refused(factorise, K.astype("M8[s]")), TypeError, ("kernel", "datetime64")),
    "kernel masked": (
        refused(factorise, np.ma.masked_array(K)), TypeError, ("kernel", "masked", ".filled(0)"),
    ),
    "kernel ragged": (
        refused(factorise, [[1.0], [1.0, 2.0]]), ValueError, ("kernel", "ragged", "one length"),
    ),
    "kernel scalar": (refused(factorise, 3.5), ValueError, ("kernel", "3.5", "array of taps")),
    "kernel 1-d": (
        refused(factorise, [1.0, 2.0]), ValueError, ("kernel", "(2,)", "from_taps"),
    ),
    "kernel no rows": (refused(factorise, K[:0]), ValueError, ("kernel", "(0, 3)", "at least one")),
    "kernel empty stack": (
        refused(factorise, K[None][:0]), ValueError, ("kernel", "(0, 3, 3)", "at least one"),
    ),
    "kernel NaN": (
        refused(factorise, spoilt(np.nan)), ValueError, ("kernel", "nan", "(1, 2)", "finite"),
    ),
    "kernel infinite": (
        refused(factorise, spoilt(-np.inf)), ValueError, ("kernel", "-inf", "(1, 2)", "finite"),
    ),
    "kernel complex NaN": (
        refused(factorise, K + 1j * spoilt(np.nan)), ValueError, ("kernel", "finite", "nan"),
    ),
    "kernel too large": (
        refused(factorise, np.full((3, 3), 1e308)), ValueError, ("kernel", "1e+308", "scale"),
    ),
    "rank negative": (refused(factorise, K, rank=-1), ValueError, ("rank", "-1", "[0, min")),
    "rank too large": (refused(factorise, K, rank=4), ValueError, ("rank", "4", "3]")),
    "rank float": (refused(factorise, K, rank=1.0), TypeError, ("rank:", "1.0", "int()")),
    "rank bool": (refused(factorise, K, rank=True), TypeError, ("rank:", "True", "number")),
    "rank string": (refused(factorise, K, rank="full"), TypeError, ("rank:", "'full'", "int()")),
    "tol negative": (refused(factorise, K, tol=-1e-3), ValueError, ("tol", "-0.001", ">= 0")),
    "tol NaN": (refused(factorise, K, tol=np.nan), ValueError, ("tol", "nan", "finite")),
    "tol infinite": (refused(factorise, K, tol=np.inf), ValueError, ("tol", "inf", "finite")),
    "tol string": (refused(factorise, K, tol="1e-3"), TypeError, ("tol", "'1e-3'", "one number")),
    "tol complex": (refused(factorise, K, tol=1j), TypeError, ("tol", "1j", "real number")),
    "tol bool": (refused(factorise, K, tol=True), TypeError, ("tol", "True", "one number")),
    "tol array": (
        refused(factorise, K, tol=np.array([0.1, 0.2])), TypeError, ("tol", "0.1", "one number"),
    ),
    "rank and tol": (refused(factorise, K, rank=1, tol=0.1), ValueError, ("rank=1", "tol=0.1")),
    "factorise unknown": (refused(factorise, K, tolerance=1), TypeError, ("tolerance",)),
    # SeparableKernel.from_taps, output_error_bound
    "columns NaN": (
        refused(SeparableKernel.from_taps, [np.nan], [1.0]), ValueError, ("columns", "nan"),
    ),
    "rows bool": (
        refused(SeparableKernel.from_taps, [1.0], [True]), TypeError, ("rows", "bool", "astype"),
    ),
    "columns of two ranks": (
        refused(SeparableKernel.from_taps, np.ones((2, 3)), np.ones((1, 3))),
        ValueError, ("columns", "(2, 3)", "(1, 3)"),
    ),
    "columns and rows of two kinds": (
        refused(SeparableKernel.from_taps, np.ones((1, 3)), np.ones(3)),
        ValueError, ("columns", "(1, 3)", "(3,)", "[None, :]"),
    ),
    "rows empty": (
        refused(SeparableKernel.from_taps, [1.0], []), ValueError, ("rows", "(1, 0)", "at least"),
    ),
    "taps too large": (
        refused(SeparableKernel.from_taps, [1e200], [1e200]), ValueError, ("taps", "scale"),
    ),
    "lo above hi": (
        refused(factorise(K).output_error_bound, 1, 0), ValueError, ("lo=1", "hi=0", "lo <= hi"),
    ),
    "hi NaN": (
        refused(factorise(K).output_error_bound, 0, np.nan), ValueError, ("hi", "nan", "finite"),
    ),
    # cost
    "shape number": (refused(cost, 5, 8, 3), TypeError, ("shape:", "5", "(N, C, H, W)")),
    "shape string": (refused(cost, "1x3", 8, 3), TypeError, ("shape:", "'1x3'", "(N, C, H, W)")),
    "shape of two": (refused(cost, (8, 8), 8, 3), ValueError, ("shape:", "2 values", "(C, H, W)")),
    "shape zero": (refused(cost, (3, 0, 8), 8, 3), ValueError, ("shape:", "0", "at least 1")),
    "shape float": (refused(cost, (3, 8.0, 8), 8, 3), TypeError, ("shape:", "8.0", "int()")),
    "out_channels zero": (
        refused(cost, (3, 8, 8), 0, 3), ValueError, ("out_channels:", "0", "at least 1"),
    ),
    "out_channels float": (
        refused(cost, (3, 8, 8), 8.0, 3), TypeError, ("out_channels:", "8.0", "int()"),
    ),
    "kernel_size zero": (
        refused(cost, (3, 8, 8), 8, 0), ValueError, ("kernel_size:", "0", "at least 1"),
    ),
    "kernel_size None": (refused(cost, (3, 8, 8), 8, None), TypeError, ("kernel_size:", "None")),
    "kernel_size large": (
        refused(cost, (3, 8, 8), 8, 9), ValueError, ("kernel_size:", "9", "8", "pad more"),
    ),
    "cost stride": (refused(cost, (3, 8, 8), 8, 3, stride=0), ValueError, ("stride:", "0")),
    "cost dilation": (
        refused(cost, (3, 8, 8), 8, 3, dilation=1.5), TypeError, ("dilation:", "1.5", "int()"),
    ),
    "cost padding": (
        refused(cost, (3, 8, 8), 8, 3, padding="sane"),
        ValueError, ("padding:", "'sane'", "did you mean 'same'"),
    ),
    "cost padding three": (
        refused(cost, (3, 8, 8), 8, 3, padding=(1, 1, 1)), ValueError, ("padding:", "(1, 1, 1)"),
    ),
    "depth_multiplier": (
        refused(cost, (3, 8, 8), 8, 3, depth_multiplier=0), ValueError, ("depth_multiplier:", "0"),
    ),
    "cost rank": (refused(cost, (3, 8, 8), 8, 3, rank=4), ValueError, ("rank:", "4", "at most 3")),
    "cost rank negative": (
        refused(cost, (3, 8, 8), 8, 3, rank=-1), ValueError, ("rank:", "-1", "at least 0"),
    ),
    "cost bias": (refused(cost, (3, 8, 8), 8, 3, bias=[1]), TypeError, ("bias:", "[1]", "True")),
    "cost dtype": (
        refused(cost, (3, 8, 8), 8, 3, dtype="float31"),
        ValueError, ("dtype:", "'float31'", "did you mean 'float32'"),
    ),
    "cost dtype object": (
        refused(cost, (3, 8, 8), 8, 3, dtype=object), TypeError, ("dtype:", "object", "convert"),
    ),
    # receptive_field
    "layers number": (refused(receptive_field, 3), TypeError, ("layers:", "3", "sequence")),
    "layers string": (refused(receptive_field, "3"), TypeError, ("layers:", "'3'", "sequence")),
    "layers mapping": (
        refused(receptive_field, {"kernel_size": 3}), TypeError, ("layers:", "sequence"),
    ),
    "layer None": (
        refused(receptive_field, [3, None]), TypeError, ("layers[1]:", "kernel_size:", "None"),
    ),
    "layer zero": (
        refused(receptive_field, [3, 0]), ValueError, ("layers[1]:", "kernel_size:", "at least 1"),
    ),
    "layer key": (
        refused(receptive_field, [{"kernel_sise": 3}]),
        ValueError, ("layers[0]:", "'kernel_sise'", "did you mean 'kernel_size'"),
    ),
    "layer without a kernel": (
        refused(receptive_field, [{"stride": 2}]), ValueError, ("layers[0]:", "kernel_size"),
    ),
    "layer of five": (
        refused(receptive_field, [(3, 1, 0, 1, 7)]), ValueError, ("layers[0]:", "5 values"),
    ),
    "layer padding same": (
        refused(receptive_field, [(3, 2, "same")]),
        ValueError, ("layers[0]:", "padding:", "'same'", "pass the numbers"),
    ),
    "layer stride": (
        refused(receptive_field, [(3, -1)]), ValueError, ("layers[0]:", "stride:", "-1"),
    ),
    "region row": (
        refused(receptive_field([3]).region, -1, 0), ValueError, ("row:", "-1", "at least 0"),
    ),
    # explain
    "op unknown": (refused(explain, np.convolve, IMAGE, K), ValueError, ("op:", "convolve")),
    "op string": (
        refused(explain, "separable_conv2d", IMAGE, K),
        ValueError, ("op:", "'separable_conv2d'", "numbasep.separable_conv2d"),
    ),
    "op without hash": (refused(explain, [], IMAGE, K), ValueError, ("op:", "[]", "numbasep.")),
    "explain x": (refused(explain, separable_conv2d, None, K), TypeError, ("x:", "NoneType")),
    "explain list": (
        refused(explain, separable_conv2d, [8, 8], K), TypeError, ("x:", "list", "numpy.asarray"),
    ),
    "explain shape": (
        refused(explain, separable_conv2d, (8, -8), K), ValueError, ("x:", "-8", "at least 0"),
    ),
    "explain shape of floats": (
        refused(explain, separable_conv2d, (8, 8.0), K), TypeError, ("x:", "8.0", "int()"),
    ),
    "explain shape of one": (
        refused(explain, separable_conv2d, (8,), K), ValueError, ("x:", "(8,)", "two dimensions"),
    ),
    "explain dtype": (
        refused(explain, separable_conv2d, ((8, 8), "float31"), K),
        ValueError, ("x:", "'float31'", "did you mean 'float32'"),
    ),
    "explain kernel": (
        refused(explain, separable_conv2d, (8, 8), "box"), TypeError, ("kernel:", "'box'"),
    ),
    "explain mode": (
        refused(explain, separable_conv2d, (8, 8), K, mode="sme"), ValueError, ("mode:", "'same'?"),
    ),
    "explain unknown": (
        refused(explain, separable_conv2d, (8, 8), K, bounday="wrap"), TypeError, ("bounday",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_refused(name: str) -> None:
    call, exception, parts = CALLS[name]
    with pytest.raises(exception) as caught:
        call()
    assert type(caught.value) is exception
    message = str(caught.value)
    for part in parts:
        assert part in message
    assert "\n" not in message

"""Wrong calls of the channelwise functions: each is refused with its exception, its argument, what
arrived and a remedy; the output buffer is untouched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import numbasep
from numbasep import SeparableKernel, factorise

X = np.zeros((2, 4, 8, 8), np.float32)
W = np.ones((4, 1, 3, 3), np.float32)
M = np.ones((5, 4), np.float32)
STACK = factorise(W)


def with_nan(array: Any) -> Any:
    array = array.copy()
    array.flat[0] = np.nan
    return array


def depthwise(x: Any = X, weight: Any = W, bias: Any = None, **more: Any) -> Callable[..., Any]:
    return lambda **out: numbasep.depthwise_conv2d(x, weight, bias, **more, **out)


def pointwise(x: Any = X, weight: Any = M, bias: Any = None, **more: Any) -> Callable[..., Any]:
    return lambda **out: numbasep.pointwise_conv2d(x, weight, bias, **more, **out)


def both(x: Any = X, first: Any = W, second: Any = M, **more: Any) -> Callable[..., Any]:
    return lambda **out: numbasep.depthwise_separable_conv2d(x, first, second, **more, **out)


def read_only(shape: tuple[int, ...]) -> Any:
    out = np.zeros(shape, np.float32)
    out.flags.writeable = False
    return out


SAME = (2, 4, 6, 6)

# The call, the exception, and the parts its message must have: argument, what arrived, remedy.
CALLS: dict[str, tuple[Callable[..., Any], type[Exception], tuple[str, ...]]] = {
    # x
    "x None": (depthwise(None), TypeError, ("x:", "NoneType", "numpy.asarray")),
    "x list": (pointwise([[1.0]]), TypeError, ("x:", "list", "numpy.asarray")),
    "x 2-d": (depthwise(X[0, 0]), ValueError, ("x:", "(8, 8)", "four dimensions")),
    "x 5-d": (both(X[None]), ValueError, ("x:", "(1, 2, 4, 8, 8)", "four dimensions")),
    "x 0-d": (pointwise(np.float32(1)[...]), ValueError, ("x:", "()", "four dimensions")),
    "x no channels": (depthwise(X[:, :0]), ValueError, ("x:", "(2, 0, 8, 8)", "at least one")),
    "x no rows": (pointwise(X[:, :, :0]), ValueError, ("x:", "(2, 4, 0, 8)", "at least one")),
    "x no columns": (both(X[..., :0]), ValueError, ("x:", "(2, 4, 8, 0)", "at least one")),
    "x uint8": (depthwise(X.astype(np.uint8)), TypeError, ("x:", "uint8", "convert", "float32")),
    "x int32": (pointwise(X.astype(np.int32)), TypeError, ("x:", "int32", "convert", "float32")),
    "x complex": (both(X.astype(complex)), TypeError, ("x:", "complex128", "convert")),
    "x bool": (depthwise(X > 0), TypeError, ("x:", "bool", "convert")),
    "x objects": (depthwise(X.astype(object)), TypeError, ("x:", "object", "convert")),
    "x longdouble": (depthwise(X.astype(np.longdouble)), TypeError, ("x:", "convert")),
    "x masked": (
        depthwise(np.ma.masked_array(X, X > 1)), TypeError, ("x:", "mask", ".filled"),
    ),
    "x int8 fused": (both(X.astype(np.int8)), TypeError, ("x:", "int8", "requantise")),
    # depthwise weights
    "weight None": (depthwise(weight=None), TypeError, ("weight:", "NoneType", "numpy.asarray")),
    "weight string": (depthwise(weight="box"), TypeError, ("weight:", "str", "numpy.asarray")),
    "weight scalar": (depthwise(weight=1.0), TypeError, ("weight:", "float", "numpy.asarray")),
    "weight empty list": (depthwise(weight=[]), ValueError, ("weight:", "(0,)", "(C, kh, kw)")),
    "weight ragged": (
        depthwise(weight=[[1.0], [1.0, 2.0]]), TypeError, ("weight:", "ragged", "one shape"),
    ),
    "weight 1-d": (depthwise(weight=np.ones(3)), ValueError, ("weight:", "(3,)", "(C, kh, kw)")),
    "weight 2-d": (depthwise(weight=np.ones((3, 3))), ValueError, ("weight:", "(3, 3)", "kh, kw")),
    "weight dense": (
        depthwise(weight=np.ones((4, 4, 3, 3))), ValueError, ("weight:", "(4, 4, 3, 3)", "1, kh"),
    ),
    "weight filters": (
        depthwise(weight=W[:3]), ValueError, ("weight:", "3 filters", "4 channels", "C * M"),
    ),
    "weight no filters": (depthwise(weight=W[:0]), ValueError, ("weight:", "0 filters", "C * M")),
    "weight no taps": (
        depthwise(weight=W[..., :0]), ValueError, ("weight:", "(3, 0) taps", "at least one"),
    ),
    "weight complex": (
        depthwise(weight=W.astype(complex)), TypeError, ("weight:", "complex128", "real"),
    ),
    "weight objects": (
        depthwise(weight=W.astype(object)), TypeError, ("weight:", "object", "convert"),
    ),
    "weight masked": (
        depthwise(weight=np.ma.masked_array(W)), TypeError, ("weight:", "mask", ".filled"),
    ),
    "weight too large": (
        depthwise(weight=np.ones((4, 1, 9, 9))),
        ValueError, ("weight:", "9 taps", "8", "pad more", "smaller kernel"),
    ),
    "weight float for int8": (
        depthwise(X.astype(np.int8)), TypeError, ("weight:", "float32", "int8", "convert"),
    ),
    "weight int16 for int8": (
        depthwise(X.astype(np.int8), W.astype(np.int16)), TypeError, ("weight:", "int16", "int8"),
    ),
    "weight one kernel": (
        depthwise(weight=factorise(np.ones((3, 3)))), ValueError, ("weight:", "shape ()", "stack"),
    ),
    "weight list of stacks": (
        depthwise(weight=[STACK] * 4), ValueError, ("weight:", "(4, 1)", "stack itself"),
    ),
    "weight stack of three": (
        depthwise(weight=factorise(W[:3])), ValueError, ("weight:", "3 filters", "4 channels"),
    ),
    "weight complex stack": (
        depthwise(weight=factorise(W * (1 + 1j))), TypeError, ("weight:", "complex", "real"),
    ),
    "weight float stack for int8": (
        depthwise(X.astype(np.int8), factorise(W[:, 0] + 0.5)),
        TypeError, ("weight:", "float64", "int8", "integer"),
    ),
    "weight stack beyond int32": (
        depthwise(X.astype(np.int8), factorise(np.full((4, 1, 3, 3), 2**22))),
        ValueError, ("weight:", "int32", "float32"),
    ),
    "weight mixed sizes": (
        depthwise(weight=[factorise(np.ones((3, k))) for k in (1, 3, 3, 3)]),
        ValueError, ("weight:", "(3, 1)", "(3, 3)", "one size"),
    ),
    "depthwise_weight shape": (both(first=M), ValueError, ("depthwise_weight:", "(5, 4)")),
    "depthwise_weight filters": (
        both(first=W[:3]), ValueError, ("depthwise_weight:", "3 filters", "4 channels"),
    ),
    "depthwise_weight too large": (
        both(first=np.ones((4, 1, 9, 9))), ValueError, ("depthwise_weight:", "9 taps", "pad"),
    ),
    # pointwise weights
    "weight of three dimensions": (
        pointwise(weight=np.ones((5, 4, 1))), ValueError, ("weight:", "(5, 4, 1)", "(Cout, C)"),
    ),
    "weight not 1x1": (
        pointwise(weight=np.ones((5, 4, 3, 3))), ValueError, ("weight:", "(5, 4, 3, 3)", "Cout"),
    ),
    "weight without filters": (pointwise(weight=M[:0]), ValueError, ("weight:", "at least one")),
    "weight of three channels": (
        pointwise(weight=M[:, :3]), ValueError, ("weight:", "3 channels", "4", "(Cout, C)"),
    ),
    "weight grouped": (
        pointwise(weight=M[:, :2]), ValueError, ("weight:", "2 channels", "4", "split"),
    ),
    "weight of no channels": (pointwise(weight=M[:, :0]), ValueError, ("weight:", "0 channels")),
    "weight of complex numbers": (
        pointwise(weight=M * 1j), TypeError, ("weight:", "complex64", "real"),
    ),
    "weight a SeparableKernel": (
        pointwise(weight=STACK), TypeError, ("weight:", "SeparableKernel"),
    ),
    "weight of strings": (
        pointwise(weight=[["a"] * 4]), TypeError, ("weight:", "numbers"),
    ),
    "pointwise_weight channels": (
        both(second=M[:, :3]), ValueError, ("pointwise_weight:", "3 channels", "4"),
    ),
    "pointwise_weight None": (both(second=None), TypeError, ("pointwise_weight:", "NoneType")),
    # biases
    "bias length": (depthwise(bias=np.ones(3)), ValueError, ("bias:", "(3,)", "(4,)")),
    "bias 2-d": (pointwise(bias=np.ones((5, 1))), ValueError, ("bias:", "(5, 1)", "(5,)")),
    "bias scalar": (depthwise(bias=1.0), TypeError, ("bias:", "float", "numpy.asarray")),
    "bias string": (depthwise(bias="zeros"), TypeError, ("bias:", "str", "numpy.asarray")),
    "bias complex": (pointwise(bias=np.ones(5) * 1j), TypeError, ("bias:", "complex", "real")),
    "bias float for int8": (
        depthwise(X.astype(np.int8), W.astype(np.int8), np.ones(4)),
        TypeError, ("bias:", "float64", "int8 or int32"),
    ),
    "depthwise_bias length": (
        both(depthwise_bias=np.ones(5)), ValueError, ("depthwise_bias:", "(5,)", "(4,)"),
    ),
    "pointwise_bias length": (
        both(pointwise_bias=np.ones(4)), ValueError, ("pointwise_bias:", "(4,)", "(5,)"),
    ),
    # geometry
    "stride zero": (depthwise(stride=0), ValueError, ("stride:", "0", "at least 1")),
    "stride negative": (both(stride=(1, -1)), ValueError, ("stride:", "-1", "at least 1")),
    "stride float": (depthwise(stride=1.0), TypeError, ("stride:", "1.0", "int()")),
    "stride bool": (depthwise(stride=True), TypeError, ("stride:", "True", "number")),
    "stride three": (depthwise(stride=(1, 1, 1)), ValueError, ("stride:", "3 values", "two")),
    "dilation zero": (depthwise(dilation=0), ValueError, ("dilation:", "0", "at least 1")),
    "dilation string": (both(dilation="2"), TypeError, ("dilation:", "'2'", "int()")),
    "dilation too large": (
        depthwise(dilation=5), ValueError, ("weight:", "dilation 5", "pad more"),
    ),
    "padding negative": (depthwise(padding=-1), ValueError, ("padding:", "-1", "at least 0")),
    "padding float": (depthwise(padding=0.5), TypeError, ("padding:", "0.5", "int()")),
    "padding NaN": (both(padding=np.nan), TypeError, ("padding:", "nan", "int()")),
    "padding three": (
        depthwise(padding=(1, 2, 3)), ValueError, ("padding:", "(1, 2, 3)", "'same'"),
    ),
    "padding unknown": (
        depthwise(padding="sane"), ValueError, ("padding:", "'sane'", "did you mean 'same'"),
    ),
    "padding None": (depthwise(padding=None), TypeError, ("padding:", "None", "int()")),
    "padding four with a float": (
        depthwise(padding=(1, 1, 1, 1.0)), TypeError, ("padding:", "1.0", "int()"),
    ),
    "padding_mode unknown": (
        depthwise(padding_mode="reflct"), ValueError, ("padding_mode:", "did you mean 'reflect'"),
    ),
    "padding_mode of numpy": (
        both(padding_mode="symmetric"), ValueError, ("padding_mode:", "'symmetric'", "'zeros'"),
    ),
    "padding_mode None": (depthwise(padding_mode=None), TypeError, ("padding_mode:", "None")),
    # words
    "layout unknown": (depthwise(layout="CHWN"), ValueError, ("layout:", "'CHWN'", "'NHWC'")),
    "layout small": (
        pointwise(layout="nhwc"), ValueError, ("layout:", "'nhwc'", "choose one of them"),
    ),
    "layout None": (both(layout=None), TypeError, ("layout:", "None", "'NCHW'")),
    "layout other": (depthwise(layout="NHWC"), ValueError, ("weight:", "8 channels", "layout")),
    "activation unknown": (
        depthwise(activation="tanh"), ValueError, ("activation:", "'tanh'", "'silu'"),
    ),
    "activation near": (
        pointwise(activation="relu5"), ValueError, ("activation:", "did you mean 'relu"),
    ),
    "activation function": (depthwise(activation=abs), TypeError, ("activation:", "built-in")),
    "activation of int8": (
        depthwise(X.astype(np.int8), W.astype(np.int8), activation="gelu"),
        ValueError, ("activation:", "'gelu'", "int32", "'relu'"),
    ),
    "depthwise_activation unknown": (
        both(depthwise_activation="tanh"), ValueError, ("depthwise_activation:", "'tanh'"),
    ),
    "precision unknown": (
        pointwise(precision="bf16"), ValueError, ("precision:", "'bf16'", "'tf32'"),
    ),
    "precision of float64": (
        pointwise(X.astype(float), precision="tf32"),
        ValueError, ("precision:", "float64", "leave it out"),
    ),
    "precision number": (both(precision=32), TypeError, ("precision:", "32", "'tf32'")),
    "fuse string": (both(fuse="yes"), TypeError, ("fuse:", "'yes'", "True or False")),
    "fuse number": (both(fuse=1), TypeError, ("fuse:", "1", "True or False")),
    "backend unknown": (depthwise(backend="gpu"), ValueError, ("backend:", "'gpu'", "'cuda'")),
    "backend number": (pointwise(backend=0), TypeError, ("backend:", "0", "'cpu'")),
    "stream on the CPU": (both(stream=1), ValueError, ("stream:", "CPU", "leave it out")),
    # out
    "out list": (depthwise(out=[1.0]), TypeError, ("out:", "list", "numpy.asarray")),
    "out shape": (
        depthwise(out=np.zeros(X.shape, "f4")), ValueError, ("out:", "(2, 4, 8, 8)", str(SAME)),
    ),
    "out dtype": (depthwise(out=np.zeros(SAME)), ValueError, ("out:", "float64", "float32")),
    "out of int8": (
        depthwise(X.astype(np.int8), W.astype(np.int8), out=np.zeros(SAME, np.int8)),
        ValueError, ("out:", "int8", "int32"),
    ),
    "out read-only": (
        depthwise(out=read_only(SAME)), ValueError, ("out:", "read-only", "writable"),
    ),
    "out broadcast": (
        depthwise(out=np.lib.stride_tricks.as_strided(np.zeros(6, "f4"), SAME, (0, 0, 0, 4))),
        ValueError, ("out:", "share memory", "full one"),
    ),
    "out unbatched": (
        depthwise(X[0], out=np.zeros(SAME, "f4")), ValueError, ("out:", str(SAME), str(SAME[1:])),
    ),
    "out of the other layout": (
        pointwise(layout="NHWC", weight=np.ones((5, 8)), out=np.zeros((2, 5, 4, 8), "f4")),
        ValueError, ("out:", "(2, 5, 4, 8)", "(2, 4, 8, 5)"),
    ),
}  # fmt: skip

OUT = {"depthwise": SAME, "pointwise": (2, 5, 8, 8), "both": (2, 5, 6, 6)}


@pytest.mark.parametrize("name", CALLS)
def test_refused(name: str) -> None:
    call, exception, parts = CALLS[name]
    buffers = {}
    given = call.__closure__ is not None and any(
        isinstance(cell.cell_contents, dict) and "out" in cell.cell_contents
        for cell in call.__closure__
    )
    if not given:
        # Of the shape that a right call would have.
        buffers["out"] = np.full(OUT[call.__qualname__.split(".")[0]], 7, np.float32)
    with pytest.raises(exception) as caught:
        call(**buffers)
    assert type(caught.value) is exception
    message = str(caught.value)
    for part in parts:
        assert part in message
    assert "\n" not in message
    for out in buffers.values():
        assert (out == 7).all()


@pytest.mark.parametrize("call", [depthwise, pointwise, both])
def test_unknown_arguments_are_refused(call: Any) -> None:
    with pytest.raises(TypeError, match="strid"):
        call(strid=2)()


def test_stacks_are_told_apart() -> None:
    assert isinstance(STACK, SeparableKernel)
    assert depthwise(weight=STACK)().shape == SAME

"""Wrong calls: each is refused with its exception, its argument, what arrived and a remedy; the
output buffer is untouched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import numbasep

IMAGE = np.arange(30, dtype=np.float32).reshape(5, 6)
BYTES = IMAGE.astype(np.uint8)
TAPS = np.array([1.0, 2.0, 1.0]), np.array([1.0, 0.5])
INTEGER_TAPS = np.array([1, 2, 1]), np.array([1, 3])


def read_only() -> Any:
    out = np.empty((5, 6), np.float32)
    out.flags.writeable = False
    return out


# (x, kernel, options), the exception, and the parts its message must have.
CALLS: dict[str, tuple[Any, Any, dict[str, Any], type[Exception], tuple[str, ...]]] = {
    # x
    "x None": (None, TAPS, {}, TypeError, ("x:", "NoneType", "numpy.asarray")),
    "x list": ([[1.0, 2.0]], TAPS, {}, TypeError, ("x:", "list", "numpy.asarray")),
    "x string": ("image.png", TAPS, {}, TypeError, ("x:", "str")),
    "x scalar": (1.0, TAPS, {}, TypeError, ("x:", "float")),
    "x 0-d": (np.array(1, np.float32), TAPS, {}, ValueError, ("x:", "()", "two dimensions")),
    "x 1-d": (IMAGE[0], TAPS, {}, ValueError, ("x:", "(6,)", "two dimensions")),
    "x objects": (IMAGE.astype(object), TAPS, {}, TypeError, ("x:", "object", "convert")),
    "x strings": (np.array([["a", "b"]]), TAPS, {}, TypeError, ("x:", "str", "convert")),
    "x dates": (
        np.zeros((5, 6), "datetime64[s]"), TAPS, {}, TypeError, ("x:", "datetime64", "convert"),
    ),
    "x longdouble": (IMAGE.astype(np.longdouble), TAPS, {}, TypeError, ("x:", "convert")),
    "x structured": (np.zeros((5, 6), "f4,f4"), TAPS, {}, TypeError, ("x:", "convert")),
    "x masked": (
        np.ma.masked_array(IMAGE, IMAGE > 3), TAPS, {}, TypeError, ("x:", "mask", ".filled"),
    ),
    "x empty full": (IMAGE[:0], TAPS, {"mode": "full"}, ValueError, ("x:", "empty", "0 x 6")),
    "x empty valid": (IMAGE[:, :0], TAPS, {"mode": "valid"}, ValueError, ("x:", "empty", "5 x 0")),
    "x too large for 64 bits": (
        np.full((5, 6), 2**62), INTEGER_TAPS, {}, ValueError, ("x:", "4611686018427387904"),
    ),
    # kernel
    "kernel None": (IMAGE, None, {}, TypeError, ("kernel:", "NoneType", "SeparableKernel")),
    "kernel string": (IMAGE, "gaussian", {}, TypeError, ("kernel:", "'gaussian'", "pair")),
    "kernel dict": (IMAGE, {"a": 1}, {}, TypeError, ("kernel:", "dict")),
    "kernel scalar": (IMAGE, 3.0, {}, ValueError, ("kernel:", "()", "2-D")),
    "kernel 1-d": (IMAGE, np.ones(3), {}, ValueError, ("kernel:", "(3,)", "pair")),
    "kernel 3-d": (IMAGE, np.ones((2, 3, 3)), {}, ValueError, ("kernel:", "(2, 3, 3)")),
    "kernel empty": (IMAGE, np.ones((0, 3)), {}, ValueError, ("kernel",)),
    "kernel of objects": (IMAGE, np.ones((3, 3), object), {}, TypeError, ("kernel", "object")),
    "kernel list of two": (
        IMAGE, [[1, 2, 1], [1, 0, -1]], {}, TypeError, ("kernel:", "list of two", "tuple"),
    ),
    "kernel NaN": (IMAGE, np.full((3, 3), np.nan), {}, ValueError, ("kernel", "finite", "nan")),
    "kernel infinite": (IMAGE, np.full((3, 3), np.inf), {}, ValueError, ("kernel", "finite")),
    "kernel triple": (IMAGE, (TAPS[0], TAPS[1], TAPS[1]), {}, ValueError, ("kernel",)),
    "kernel ragged": (IMAGE, ([[1.0], [1.0, 2.0]], [1.0]), {}, ValueError, ("kernel", "ragged")),
    "taps empty": (IMAGE, ([], [1.0]), {}, ValueError, ("kernel", "(1, 0)")),
    "taps 3-d": (IMAGE, (np.ones((1, 1, 3)), [1.0]), {}, ValueError, ("kernel", "(1, 1, 3)")),
    "taps NaN": (IMAGE, ([1.0, np.nan], [1.0]), {}, ValueError, ("kernel", "finite", "nan")),
    "taps infinite": (IMAGE, ([1.0], [np.inf]), {}, ValueError, ("kernel", "finite", "inf")),
    "taps strings": (IMAGE, (["a"], [1.0]), {}, TypeError, ("kernel",)),
    "taps of objects": (IMAGE, ([None], [1.0]), {}, TypeError, ("kernel",)),
    "taps booleans": (IMAGE, ([True, False], [1.0]), {}, TypeError, ("kernel", "bool")),
    "taps of two ranks": (
        IMAGE, (np.ones((2, 3)), np.ones((3, 3))), {}, ValueError, ("kernel:", "2", "3"),
    ),
    "taps past int64": (
        BYTES, (np.array([2**64 - 1], np.uint64), [1]), {}, ValueError, ("kernel", "int64"),
    ),
    "taps past float32": (IMAGE, ([1e300], [1.0]), {}, ValueError, ("kernel:", "float32")),
    "integer taps past int32": (
        BYTES, ([2**20], [2**10]), {}, ValueError, ("kernel:", "int32", "dtype='int64'"),
    ),
    # options
    "mode unknown": (IMAGE, TAPS, {"mode": "sme"}, ValueError, ("mode:", "'sme'", "'same'?")),
    "mode case": (IMAGE, TAPS, {"mode": "SAME"}, ValueError, ("mode:", "did you mean 'same'")),
    "mode None": (IMAGE, TAPS, {"mode": None}, TypeError, ("mode:", "None")),
    "mode number": (IMAGE, TAPS, {"mode": 1}, TypeError, ("mode:", "1")),
    "mode valid mixed": (
        IMAGE, (np.ones(7), np.ones(2)), {"mode": "valid"}, ValueError, ("mode:", "5 x 6", "7 x 2"),
    ),
    "boundary unknown": (
        IMAGE, TAPS, {"boundary": "reflect"}, ValueError, ("boundary:", "'reflect'"),
    ),
    "boundary near": (
        IMAGE, TAPS, {"boundary": "nearset"}, ValueError, ("boundary:", "did you mean 'nearest'"),
    ),
    "boundary None": (IMAGE, TAPS, {"boundary": None}, TypeError, ("boundary:", "None")),
    "fillvalue string": (IMAGE, TAPS, {"fillvalue": "0"}, TypeError, ("fillvalue:", "'0'")),
    "fillvalue None": (IMAGE, TAPS, {"fillvalue": None}, TypeError, ("fillvalue:", "None")),
    "fillvalue array": (IMAGE, TAPS, {"fillvalue": np.ones(2)}, TypeError, ("fillvalue:",)),
    "fillvalue complex": (
        IMAGE, TAPS, {"fillvalue": 1j}, ValueError, ("fillvalue:", "1j", "complex"),
    ),
    "fillvalue half": (
        BYTES, TAPS, {"fillvalue": 0.5}, ValueError, ("fillvalue:", "0.5", "uint8", "0 to 255"),
    ),
    "fillvalue too large": (BYTES, TAPS, {"fillvalue": 256}, ValueError, ("fillvalue:", "256")),
    "fillvalue negative": (BYTES, TAPS, {"fillvalue": -1}, ValueError, ("fillvalue:", "-1")),
    "fillvalue NaN": (BYTES, TAPS, {"fillvalue": np.nan}, ValueError, ("fillvalue:", "nan")),
    "fillvalue unused": (
        IMAGE, TAPS, {"boundary": "wrap", "fillvalue": 1}, ValueError, ("fillvalue:", "'wrap'"),
    ),
    "stride zero": (IMAGE, TAPS, {"stride": 0}, ValueError, ("stride:", "0", "at least 1")),
    "stride negative": (IMAGE, TAPS, {"stride": (1, -2)}, ValueError, ("stride:", "-2")),
    "stride float": (IMAGE, TAPS, {"stride": 2.0}, TypeError, ("stride:", "2.0", "int()")),
    "stride triple": (IMAGE, TAPS, {"stride": (1, 1, 1)}, ValueError, ("stride:", "3 values")),
    "stride string": (IMAGE, TAPS, {"stride": "2"}, TypeError, ("stride:", "'2'")),
    "stride None": (IMAGE, TAPS, {"stride": None}, TypeError, ("stride:", "None")),
    "stride bool": (IMAGE, TAPS, {"stride": True}, TypeError, ("stride:", "True")),
    "dilation zero": (IMAGE, TAPS, {"dilation": (0, 1)}, ValueError, ("dilation:", "0")),
    "dilation float": (IMAGE, TAPS, {"dilation": 1.5}, TypeError, ("dilation:", "1.5")),
    "dilation empty": (IMAGE, TAPS, {"dilation": ()}, ValueError, ("dilation:", "0 values")),
    "axes number": (IMAGE, TAPS, {"axes": 0}, TypeError, ("axes:", "0", "(-2, -1)")),
    "axes twice": (IMAGE, TAPS, {"axes": (0, -2)}, ValueError, ("axes:", "(0, -2)", "twice")),
    "axes out of range": (IMAGE, TAPS, {"axes": (0, 2)}, ValueError, ("axes:", "2", "-2 to 1")),
    "axes three": (IMAGE, TAPS, {"axes": (0, 1, 1)}, ValueError, ("axes:", "3 values")),
    "axes floats": (IMAGE, TAPS, {"axes": (0.0, 1.0)}, TypeError, ("axes:", "0.0")),
    "axes string": (IMAGE, TAPS, {"axes": "yx"}, TypeError, ("axes:", "'yx'")),
    "dtype unknown": (IMAGE, TAPS, {"dtype": "float31"}, ValueError, ("dtype:", "'float32'?")),
    "dtype object": (IMAGE, TAPS, {"dtype": object}, TypeError, ("dtype:", "object")),
    "dtype not a dtype": (IMAGE, TAPS, {"dtype": 3.5}, TypeError, ("dtype:", "3.5")),
    "dtype bool": (IMAGE, TAPS, {"dtype": bool}, TypeError, ("dtype:", "bool")),
    "dtype complex": (IMAGE, TAPS, {"dtype": "complex64"}, ValueError, ("dtype:", "complex64")),
    "dtype real of complex": (
        IMAGE + 1j, TAPS, {"dtype": "float32"}, ValueError, ("dtype:", "float32", ".real"),
    ),
    "backend unknown": (IMAGE, TAPS, {"backend": "gpu"}, ValueError, ("backend:", "'gpu'")),
    "backend number": (IMAGE, TAPS, {"backend": 0}, TypeError, ("backend:", "0")),
    "stream on the CPU": (IMAGE, TAPS, {"stream": 1}, ValueError, ("stream:", "CPU")),
    # out
    "out list": (IMAGE, TAPS, {"out": [1.0]}, TypeError, ("out:", "list", "numpy.asarray")),
    "out shape": (
        IMAGE, TAPS, {"out": np.empty((6, 5), "f4")}, ValueError, ("out:", "(6, 5)", "(5, 6)"),
    ),
    "out dtype and dtype": (
        IMAGE, TAPS, {"out": np.empty((5, 6)), "dtype": "float32"}, ValueError, ("out:", "float64"),
    ),
    "out read-only": (IMAGE, TAPS, {"out": read_only()}, ValueError, ("out:", "read-only")),
    "out broadcast": (
        IMAGE,
        TAPS,
        {"out": np.lib.stride_tricks.as_strided(np.empty(6, np.float32), (5, 6), (0, 4))},
        ValueError,
        ("out:", "share memory"),
    ),
    "out complex": (
        IMAGE, TAPS, {"out": np.empty((5, 6), complex)}, ValueError, ("dtype:", "complex128"),
    ),
    "out objects": (IMAGE, TAPS, {"out": np.empty((5, 6), object)}, TypeError, ("dtype:", "obj")),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_refused(name: str) -> None:
    x, kernel, options, exception, parts = CALLS[name]
    out = options.get("out")
    if out is None:
        out = np.full((5, 6), 7, np.float32)
        if "dtype" not in options and name.split()[0] in ("mode", "boundary", "stride", "axes"):
            options = {**options, "out": out}
    before = np.copy(out)
    with pytest.raises(exception) as caught:
        numbasep.separable_conv2d(x, kernel, **options)
    assert type(caught.value) is exception
    message = str(caught.value)
    for part in parts:
        assert part in message
    assert "\n" not in message
    np.testing.assert_array_equal(out, before)


def test_unknown_argument_is_refused() -> None:
    with pytest.raises(TypeError, match="bounday"):
        numbasep.separable_conv2d(IMAGE, TAPS, bounday="wrap")  # type: ignore[call-arg]


def test_a_call_after_a_refusal_is_right() -> None:
    with pytest.raises(ValueError, match="mode"):
        numbasep.separable_conv2d(IMAGE, TAPS, mode="sme")
    result = numbasep.separable_conv2d(IMAGE, (np.ones(1), np.ones(1)))
    np.testing.assert_array_equal(result, IMAGE)

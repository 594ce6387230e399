"""Batches of host images in bands, of one image or of its rows, give the bits of the whole."""

from __future__ import annotations

from typing import Any

import ml_dtypes  # noqa: F401  NumPy learns the name
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from numbasep import (
    depthwise_conv2d,
    depthwise_separable_conv2d,
    explain,
    factorise,
    pointwise_conv2d,
)
from numbasep.cuda import transfers
from numbasep.plan import bands as planner
from numbasep.plan import channelwise as plans
from numbasep.plan.bands import Bands
from tests.conftest import examples
from tests.cuda.test_bands import Limited, Ordered, arranged, cut_into

Array = NDArray[Any]


def values(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    return (rng.integers(-8, 9, shape) / (1 if dtype == "int8" else 4)).astype(dtype)


@st.composite
def calls(draw: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """A function, its arrays but for ``out``, and its options."""
    dtype = draw(st.sampled_from(("float32", "float64", "float16", "bfloat16", "int8")))
    layout = draw(st.sampled_from(("NCHW", "NHWC")))
    op = draw(st.sampled_from((depthwise_conv2d, pointwise_conv2d, depthwise_separable_conv2d)))
    if op is depthwise_separable_conv2d and dtype == "int8":
        dtype = "float32"
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, c, h, w = (draw(st.integers(1, most)) for most in (3, 3, 8, 5))
    multiplier, outputs = draw(st.integers(1, 2)), draw(st.integers(1, 4))
    kh, kw = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    shape = (n, c, h, w) if layout == "NCHW" else (n, h, w, c)
    if n == 1 and draw(st.booleans()):
        shape = shape[1:]
    memory = draw(st.sampled_from(("plain", "sliced", "fortran", "swapped")))
    if dtype == "bfloat16" and memory == "swapped":
        memory = "plain"
    x = arranged(values(rng, shape, dtype), memory)
    if layout == "NCHW" and draw(st.booleans()):
        # As torch's channels_last.
        x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, -3, -1)), -1, -3)
    options: dict[str, Any] = {
        "layout": layout,
        "activation": draw(st.sampled_from((None, "relu"))),
    }
    if op is pointwise_conv2d:
        return op, (x, values(rng, (outputs, c), dtype), values(rng, (outputs,), dtype)), options
    options |= {
        "stride": draw(st.integers(1, 3)),
        "dilation": draw(st.integers(1, 2)),
        "padding": draw(st.sampled_from(("same", (2, 2, 2, 2), (4, 3, 4, 4)))),
        "padding_mode": draw(st.sampled_from(("zeros", "reflect", "replicate", "circular"))),
    }
    weight: Any = values(rng, (c * multiplier, 1, kh, kw), dtype)
    if dtype in ("float32", "float64") and draw(st.booleans()):
        weight = factorise(weight[:, 0], rank=1)
    if op is depthwise_conv2d:
        return op, (x, weight, values(rng, (c * multiplier,), dtype)), options
    options["fuse"] = draw(st.sampled_from((None, True, False)))
    return op, (x, weight, values(rng, (outputs, c * multiplier), dtype)), options


@settings(max_examples=max(examples("cuda") // 5, 10))
@given(call=calls(), size=st.integers(1, 600), given_out=st.booleans())
def test_bands_give_the_whole(call: Any, size: int, given_out: bool) -> None:
    op, arrays, options = call
    whole = op(*arrays, backend="cuda", **options)
    out = np.zeros_like(whole) if given_out else None
    with cut_into(size):
        found = op(*arrays, backend="cuda", out=out, **options)
    assert out is None or found is out
    assert (found.dtype, found.shape) == (whole.dtype, whole.shape)
    np.testing.assert_array_equal(
        np.ascontiguousarray(found).view(np.uint8), np.ascontiguousarray(whole).view(np.uint8)
    )


X = np.random.default_rng(0).integers(-4, 5, (2, 2, 6, 3)).astype(np.float32)
W = np.random.default_rng(1).integers(-4, 5, (2, 1, 3, 3)).astype(np.float32)
P = np.random.default_rng(2).integers(-4, 5, (5, 2)).astype(np.float32)
CALLS = {
    "depthwise": (depthwise_conv2d, (X, W), {"padding": 1}),
    "pointwise": (pointwise_conv2d, (X, P), {}),
    "fused": (depthwise_separable_conv2d, (X, W, P), {"padding": 1, "fuse": True}),
    "apart": (depthwise_separable_conv2d, (X, W, P), {"padding": 1, "fuse": False}),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_in_every_order(name: str, layout: str) -> None:
    op, arrays, options = CALLS[name]
    x = arrays[0] if layout == "NCHW" else np.ascontiguousarray(np.moveaxis(arrays[0], 1, -1))
    options = {**options, "layout": layout, "backend": "cuda"}
    whole = op(x, *arrays[1:], **options)
    for seed in range(2):
        with cut_into(200), Ordered(seed).installed():
            found = op(x, *arrays[1:], **options)
        np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("name", CALLS)
def test_bands_shrink_where_memory_is_short(name: str) -> None:
    op, arrays, options = CALLS[name]
    whole = op(*arrays, backend="cuda", **options)
    for number in (0, 2, 3):
        with (
            cut_into(200),
            Limited(number).installed(),
            pytest.warns(RuntimeWarning, match="x: the device had no memory for") as caught,
        ):
            found = op(*arrays, backend="cuda", **options)
        assert [one.filename for one in caught] == [__file__]
        np.testing.assert_array_equal(found, whole)


def test_an_image_of_which_no_row_fits() -> None:
    with (
        cut_into(200),
        Limited(most=23).installed(),
        pytest.raises(MemoryError, match=r"x: an image of 6 x 3 .* for one row .* backend='cpu'"),
    ):
        depthwise_conv2d(X, W, padding=1, backend="cuda")


@pytest.mark.parametrize("name", CALLS)
def test_batches_larger_than_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands take no more than what is free, what lies between two launches included."""
    op, arrays, options = CALLS[name]
    x = np.tile(arrays[0], (3, 1, 3, 1))
    whole = op(x, *arrays[1:], backend="cuda", **options)
    free, taken, memory = 1500, [], transfers.memory
    monkeypatch.setattr(planner, "LARGE", 0)
    monkeypatch.setattr(transfers, "free", lambda: free)
    monkeypatch.setattr(transfers, "memory", lambda size: taken.append(size) or memory(size))
    found = op(x, *arrays[1:], backend="cuda", **options)
    assert found.tobytes() == whole.tobytes()
    assert 0 < sum(taken) <= free < x.nbytes + whole.nbytes


def test_what_lies_between_two_launches_counts() -> None:
    first = plans.depthwise((1, 8, 64, 64), "float32", 16, (3, 3), 0, padding=1)
    second = plans.pointwise((1, 16, 64, 64), "float32", (4, 16), "float32")
    apart = planner.whole(plans.separable(first, second, False, "cuda"))
    fused = planner.whole(plans.separable(first, second, True, "cuda"))
    assert planner.needed(apart, 1, 2) - planner.needed(fused, 1, 2) == 2 * 64 * 16 * 4
    assert (
        planner.sizes(apart, 1, 2) == planner.sizes(fused, 1, 2) == (4 * 64 * 8 * 4, 2 * 64 * 4 * 4)
    )
    for cut in (Bands(1, 2), Bands(1, 1)):
        for band in planner.cut(apart, cut):
            assert isinstance(band.problem, plans.FusedPlan)
            assert not band.problem.fused
            assert band.problem.pointwise.pixels == (band.end - band.begin) * 64


def test_explain_names_the_bands() -> None:
    shape = 64, 32, 512, 512
    for op, weights in (
        (depthwise_conv2d, ((32, 1, 3, 3),)),
        (pointwise_conv2d, ((64, 32),)),
        (depthwise_separable_conv2d, ((32, 1, 3, 3), (64, 32))),
    ):
        said = explain(op, shape, *weights, backend="cuda")
        assert any("bands of" in note for note in said.notes)
        assert not any("bands of" in note for note in explain(op, shape, *weights).notes)
        small = explain(op, (1, 32, 16, 16), *weights, backend="cuda")
        assert not any("bands of" in note for note in small.notes)

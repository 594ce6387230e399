"""dask arrays: lazy, one task a chunk, and the bits of the call on the whole array."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import numbasep
from tests.conftest import examples

Array = NDArray[Any]

# A call of a few hundred tasks takes some milliseconds; each example has two.
EXAMPLES = examples("cpu") // 5


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    with dask.config.set(scheduler="synchronous"):
        yield


@st.composite
def chunks(draw: Callable[..., Any], size: int) -> tuple[int, ...]:
    """Any way to cut an axis, into single elements too."""
    most = draw(st.sampled_from((1, 2, 3, 5, 8, 40)))
    cut: list[int] = []
    while sum(cut) < size and len(cut) < 7:
        cut.append(min(draw(st.integers(1, most)), size - sum(cut)))
    left = size - sum(cut)
    return (*cut, left) if left or not cut else tuple(cut)


def values(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    if np.dtype(dtype).kind in "iub":
        return rng.integers(0, 2 if dtype == "bool" else 100, shape).astype(dtype)
    real = rng.standard_normal(shape)
    return (real + 1j * rng.standard_normal(shape) if dtype[0] == "c" else real).astype(dtype)


def taps(rng: np.random.Generator, sizes: tuple[int, int], form: str) -> Any:
    if form == "dense":  # of full rank: direct
        return rng.standard_normal(sizes)
    pair = tuple(rng.integers(-3, 4, size) for size in sizes)
    if form == "integers":
        return pair
    if form == "complex":
        return pair[0] * 1j, pair[1] + 0.5
    return numbasep.factorise(np.outer(pair[0] + 0.25, pair[1] - 0.5))


@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_separable_has_the_bits_of_the_whole(data: st.DataObject) -> None:
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = draw(st.integers(1, 25)), draw(st.integers(1, 25))
    kernel = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    dtype = draw(st.sampled_from(("float32", "float64", "uint8", "bool", "int64", "complex64")))
    form = draw(st.sampled_from(("dense", "integers", "factors", "complex")))
    boundary = draw(st.sampled_from(("fill", "wrap", "symm", "nearest", "mirror")))
    dilation = draw(st.sampled_from((1, 1, 2, (3, 1))))
    mode = draw(st.sampled_from(("same", "full", "valid")))
    options: dict[str, Any] = {
        "mode": mode,
        "boundary": boundary,
        "stride": draw(st.sampled_from((1, 1, 2, (1, 3), (5, 2)))),
        "dilation": dilation,
    }
    if boundary == "fill":
        options["fillvalue"] = draw(st.sampled_from((0, 7)))
    if draw(st.booleans()) and dtype != "complex64" and form != "complex":
        options["dtype"] = "float64"
    axes = draw(st.sampled_from(((-2, -1), (0, 1), (2, 0))))
    if axes != (-2, -1):
        options["axes"] = axes
    shape = [0, 0, 0]
    shape[axes[0]], shape[axes[1]] = size
    shape[next(a for a in range(3) if a not in (axes[0] % 3, axes[1] % 3))] = 2
    x = values(rng, tuple(shape), dtype)
    k = taps(rng, kernel, form)
    extents = [(n - 1) * d + 1 for n, d in zip(kernel, np.broadcast_to(dilation, 2), strict=True)]
    if mode == "valid":
        # As large as the kernel or larger both ways, or smaller both ways.
        larger = np.greater_equal(size, extents)
        assume(larger.all() or not np.greater(size, extents).any())
    expected = numbasep.separable_conv2d(x, k, **options)
    lazy = numbasep.separable_conv2d(
        da.from_array(x, chunks=tuple(draw(chunks(n)) for n in shape)), k, **options
    )
    assert isinstance(lazy, da.Array)
    assert lazy.shape == expected.shape
    assert lazy.dtype == expected.dtype
    result = lazy.compute()
    assert result.dtype == expected.dtype
    assert result.tobytes() == np.ascontiguousarray(expected).tobytes()


LAYOUTS = ("NCHW", "NHWC")


@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_channelwise_has_the_bits_of_the_whole(data: st.DataObject) -> None:
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    function = draw(st.sampled_from(("depthwise", "pointwise", "both")))
    dtype = draw(st.sampled_from(("float32", "float64", "float16", "int8")))
    if function == "both" and dtype == "int8":
        dtype = "float32"
    layout = draw(st.sampled_from(LAYOUTS))
    n, c, m, outputs = (draw(st.integers(1, top)) for top in (3, 5, 2, 4))
    h, w = draw(st.integers(5, 20)), draw(st.integers(5, 20))
    shape = (n, c, h, w) if layout == "NCHW" else (n, h, w, c)
    if draw(st.booleans()):
        shape = shape[1:]
    x = values(rng, shape, dtype)
    geometry: dict[str, Any] = {
        "stride": draw(st.sampled_from((1, 1, 2, (3, 1)))),
        "padding": draw(st.sampled_from((0, 1, (2, 3), (0, 1, 2, 3), "same", "valid"))),
        "dilation": draw(st.sampled_from((1, 1, (2, 1)))),
        "padding_mode": draw(st.sampled_from(("zeros", "reflect", "replicate", "circular"))),
    }
    activation = draw(st.sampled_from((None, "relu") if dtype == "int8" else (None, "gelu")))
    weight: Any = values(rng, (c * m, 1, draw(st.integers(1, 3)), draw(st.integers(1, 5))), dtype)
    if dtype != "int8" and draw(st.booleans()):
        weight = numbasep.factorise(weight)
    matrix = values(rng, (outputs, c if function == "pointwise" else c * m), dtype)
    biased = draw(st.booleans())
    bias = values(rng, (c * m,), dtype) if biased else None
    last = values(rng, (outputs,), dtype) if biased else None

    def call(image: Any) -> Any:
        if function == "depthwise":
            return numbasep.depthwise_conv2d(
                image, weight, bias, layout=layout, activation=activation, **geometry
            )
        if function == "pointwise":
            return numbasep.pointwise_conv2d(
                image, matrix, last, layout=layout, activation=activation
            )
        return numbasep.depthwise_separable_conv2d(
            image, weight, matrix, depthwise_bias=bias, depthwise_activation=activation,
            pointwise_bias=last, activation=activation, layout=layout, **geometry,
        )  # fmt: skip

    expected = call(x)
    lazy = call(da.from_array(x, chunks=tuple(draw(chunks(size)) for size in shape)))
    assert lazy.shape == expected.shape
    assert lazy.dtype == expected.dtype
    assert lazy.compute().tobytes() == expected.tobytes()


def test_nothing_is_computed_before_it_is_asked_for() -> None:
    def refuse(block: Array) -> Array:
        raise AssertionError("computed")

    x = da.zeros((40, 40), chunks=10, dtype="f4").map_blocks(refuse, dtype="f4", meta=np.empty(0))
    y = numbasep.separable_conv2d(x, (np.ones(3), np.ones(3)))
    with pytest.raises(AssertionError, match="computed"):
        y.compute()


def test_one_task_a_chunk() -> None:
    x = da.zeros((100, 100), chunks=10)
    y = numbasep.separable_conv2d(x, (np.ones(31), np.ones(3)), boundary="wrap")
    assert y.chunks == x.chunks
    assert len(dict(y.dask)) == len(dict(x.dask)) + y.npartitions
    image = da.zeros((2, 3, 40, 40), chunks=(1, 2, 20, 20))
    z = numbasep.depthwise_conv2d(image, np.ones((6, 1, 3, 3)), padding=1)
    assert z.chunks == ((1, 1), (4, 2), (20, 20), (20, 20))
    assert len(dict(z.dask)) == len(dict(image.dask)) + z.npartitions


def test_the_same_call_has_the_same_name_and_another_has_another() -> None:
    x = da.zeros((8, 8), chunks=4)
    one, two = np.ones(3), np.array([1.0, 2.0, 1.0])
    name = numbasep.separable_conv2d(x, (one, two)).name
    assert numbasep.separable_conv2d(x, (one.copy(), two.copy())).name == name
    others = [
        numbasep.separable_conv2d(x, (two, one)),
        numbasep.separable_conv2d(x, (one, two), boundary="wrap"),
        numbasep.separable_conv2d(x, (one, two), fillvalue=1),
        numbasep.separable_conv2d(x, (one, two), dtype="float32"),
        numbasep.separable_conv2d(x + 1, (one, two)),
    ]
    assert len({name, *(other.name for other in others)}) == 6


def test_empty_arrays() -> None:
    for shape in ((0, 5, 5), (2, 0, 5)):
        x = da.zeros(shape, chunks=3)
        y = numbasep.separable_conv2d(x, (np.ones(3), np.ones(3)))
        assert y.compute().shape == shape
    zeros = numbasep.separable_conv2d(da.ones((5, 5), chunks=2), np.zeros((3, 3)))
    assert not zeros.compute().any()


X = da.zeros((2, 4, 8, 8), chunks=4, dtype=np.float32)
TAPS = np.ones(3), np.ones(3)
FILTERS = np.zeros((4, 1, 3, 3))


@pytest.mark.parametrize(
    ("words", "error", "call"),
    [
        (r"out: ndarray .*\.store", ValueError,
         lambda: numbasep.separable_conv2d(X, TAPS, out=np.zeros(X.shape, "f4"))),
        (r"out: Array .*\.store", ValueError, lambda: numbasep.depthwise_conv2d(X, FILTERS, out=X)),
        ("x: .* unknown shape .*compute_chunk_sizes", ValueError,
         lambda: numbasep.separable_conv2d(X[0, 0][X[0, 0, 0] > 1], TAPS)),
        ("x: dtype object", TypeError,
         lambda: numbasep.separable_conv2d(X.astype(object), TAPS)),
        ("x: .*two dimensions", ValueError, lambda: numbasep.separable_conv2d(X[0, 0, 0], TAPS)),
        ("mode: 'sme'", ValueError, lambda: numbasep.separable_conv2d(X, TAPS, mode="sme")),
        ("stream: .*CPU", ValueError, lambda: numbasep.separable_conv2d(X, TAPS, stream=1)),
        ("stream: .*CPU", ValueError, lambda: numbasep.pointwise_conv2d(X, FILTERS, stream=1)),
        ("backend: 'gpu'", ValueError,
         lambda: numbasep.depthwise_conv2d(X, FILTERS, backend="gpu")),
        ("layout: 'CHWN'", ValueError,
         lambda: numbasep.pointwise_conv2d(X, np.zeros((4, 4)), layout="CHWN")),
        ("weight: 3 filters", ValueError, lambda: numbasep.depthwise_conv2d(X, FILTERS[:3])),
        ("weight: filters of 3", ValueError,
         lambda: numbasep.pointwise_conv2d(X, np.zeros((4, 3)))),
        ("bias: shape", ValueError,
         lambda: numbasep.depthwise_conv2d(X, FILTERS, np.zeros(3))),
        ("x: int8", TypeError, lambda: numbasep.depthwise_separable_conv2d(
            X.astype(np.int8), FILTERS, np.zeros((5, 4)))),
        ("fuse: 'yes'", TypeError, lambda: numbasep.depthwise_separable_conv2d(
            X, FILTERS, np.zeros((5, 4)), fuse="yes")),
        ("pointwise_weight: filters of 3", ValueError,
         lambda: numbasep.depthwise_separable_conv2d(X, FILTERS, np.zeros((5, 3)))),
        ("depthwise_bias: shape", ValueError, lambda: numbasep.depthwise_separable_conv2d(
            X, FILTERS, np.zeros((5, 4)), depthwise_bias=np.zeros(5))),
    ],
)  # fmt: skip
def test_refused_before_anything_is_computed(
    words: str, error: type[Exception], call: Callable[[], Any]
) -> None:
    with pytest.raises(error, match=words):
        call()


def test_dask_is_not_imported_without_a_dask_array() -> None:
    code = (
        "import sys, numpy as np, numbasep;"
        "numbasep.separable_conv2d(np.ones((4, 4)), (np.ones(3), np.ones(3)));"
        "assert not any(name.split('.')[0] == 'dask' for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_threads_and_processes_at_once() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((300, 400))
    k = rng.random(9), rng.random(33)
    expected = numbasep.separable_conv2d(x, k, boundary="mirror")
    lazy = numbasep.separable_conv2d(da.from_array(x, chunks=(37, 61)), k, boundary="mirror")
    for _ in range(5):
        assert lazy.compute(scheduler="threads", num_workers=8).tobytes() == expected.tobytes()


def test_two_worker_processes_one_of_them_killed() -> None:
    import distributed

    rng = np.random.default_rng(1)
    x = rng.integers(0, 200, (240, 250)).astype(np.uint8)
    k = np.arange(1, 26), np.array([1, 5, 1])
    expected = numbasep.separable_conv2d(x, k, boundary="wrap")
    lazy = numbasep.separable_conv2d(da.from_array(x, chunks=40), k, boundary="wrap")

    def announced(block: Array) -> Array:
        distributed.Event("a chunk is done").set()
        time.sleep(0.02)
        return block

    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        pids = client.run(os.getpid)
        assert len(pids) == 2
        future = client.compute(lazy.map_blocks(announced, dtype=lazy.dtype))
        assert distributed.Event("a chunk is done").wait(120)
        assert not future.done()
        os.kill(next(iter(pids.values())), signal.SIGKILL)
        result = future.result(120)
    assert result.tobytes() == expected.tobytes()

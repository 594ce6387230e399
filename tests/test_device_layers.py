"""The channelwise functions on device arrays of every kind give what the CPU backend gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import numbasep
from numbasep.cuda import session
from tests import devices as doubles
from tests.conftest import examples
from tests.devices import CudaTensor, Library, aligned, exposed
from tests.test_spatial import of

Array = NDArray[Any]
OPERATIONS = ("depthwise", "pointwise", "fused", "unfused")
DTYPES = ("float32", "float64", "float16", "bfloat16", "int8")


@pytest.fixture(autouse=True)
def _stand_ins(cuda_runs_on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if cuda_runs_on == "simulator":
        doubles.stand_in(monkeypatch)


def small(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Integers whose sums are exact in every dtype."""
    return aligned(rng.integers(-1, 2, shape).astype(of(dtype)))


def call(operation: str, x: Any, rng: np.random.Generator, dtype: str, **options: Any) -> Any:
    """One call of a layer with 3 channels; the same weights for the same state of ``rng``."""
    weight, bias = small(rng, (3, 1, 3, 2), dtype), small(rng, (3,), dtype)
    matrix, more = small(rng, (4, 3), dtype), small(rng, (4,), dtype)
    if operation == "depthwise":
        return numbasep.depthwise_conv2d(x, weight, bias, padding=1, **options)
    if operation == "pointwise":
        return numbasep.pointwise_conv2d(x, matrix, more, activation="relu", **options)
    return numbasep.depthwise_separable_conv2d(
        x, weight, matrix, depthwise_bias=bias, pointwise_bias=more, padding=1,
        fuse=operation == "fused", **options,
    )  # fmt: skip


def arranged(values: Array, memory: str) -> Array:
    """The same values in another memory layout."""
    if memory == "channels last":
        return np.moveaxis(aligned(np.ascontiguousarray(np.moveaxis(values, -3, -1))), -1, -3)
    if memory == "sliced":
        larger = np.zeros([2 * size + 1 for size in values.shape], values.dtype)
        inner = aligned(larger)[tuple(slice(1, 1 + 2 * size, 2) for size in values.shape)]
        inner[...] = values
        return inner
    return aligned(values)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_layers(cuda_runs_on: str, operation: str) -> None:
    """Layouts of x and out, dtypes, both layouts; the second call repeats launches."""

    # The kernels have tests of their own: these are few calls of each way to them.
    @settings(max_examples=max(examples("cuda") // 30, 8))
    @given(
        library=st.sampled_from(doubles.libraries(cuda_runs_on)),
        seed=st.integers(0, 2**32 - 1),
        dtype=st.sampled_from(DTYPES),
        batched=st.booleans(),
        layout=st.sampled_from(("NCHW", "NHWC")),
        memory=st.sampled_from(("plain", "channels last", "sliced")),
        place=st.sampled_from(("none", "plain", "channels last", "sliced")),
        size=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    )
    def check(
        library: Library,
        seed: int,
        dtype: str,
        batched: bool,
        layout: str,
        memory: str,
        place: str,
        size: tuple[int, int],
    ) -> None:
        if dtype == "int8" and operation.endswith("fused"):
            dtype = "float32"
        if dtype == "bfloat16" and library.name not in ("cupy", "torch"):
            # Type strings have no name for it, nor has NumPy's DLPack.
            dtype = "float16"
        shape = (3, *size) if layout == "NCHW" else (*size, 3)
        for turn in range(2):
            values = small(np.random.default_rng((seed, turn)), (2,) * batched + shape, dtype)
            image = arranged(values, memory)
            weights = lambda: np.random.default_rng(seed)  # noqa: E731
            expected = call(operation, values, weights(), dtype, layout=layout, backend="cpu")
            out = None
            if place != "none":
                out = library.put(arranged(np.full_like(expected, 99), place))
            x = library.put(image)
            result = call(operation, x, weights(), dtype, layout=layout, out=out)
            assert library.is_own(result) if out is None else result is out
            found = library.get(result)
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found.astype(float), expected.astype(float))
            np.testing.assert_array_equal(library.get(x).astype(float), values.astype(float))

    check()


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_host_arrays_go_to_the_device_and_back(operation: str, dtype: str) -> None:
    values = small(np.random.default_rng(0), (2, 3, 4, 5), dtype)
    for x in (values, arranged(values, "channels last"), values[1], values[:0]):
        expected = call(operation, x, np.random.default_rng(1), dtype, backend="cpu")
        out = np.full_like(expected, 99)
        call(operation, x, np.random.default_rng(1), dtype, backend="cuda", out=out)
        np.testing.assert_array_equal(out.astype(float), expected.astype(float))


def test_channels_last_tensors_stay_so(cuda_runs_on: str) -> None:
    library = doubles.libraries(cuda_runs_on)[-1]
    values = small(np.random.default_rng(0), (1, 3, 4, 5), "float32")
    x = library.put(arranged(values, "channels last"))
    for operation in OPERATIONS:
        result = call(operation, x, np.random.default_rng(1), "float32")
        if library.name == "torch":
            assert result.is_contiguous(memory_format=torch.channels_last)
        expected = call(operation, values, np.random.default_rng(1), "float32", backend="cpu")
        np.testing.assert_array_equal(library.get(result), expected)


def test_repeated_layers_follow_the_weights(cuda_runs_on: str) -> None:
    """Weights changed in place are other weights; so is one of many."""
    library = doubles.libraries(cuda_runs_on)[0]
    rng = np.random.default_rng(0)
    session.calls.clear()
    x = library.put(small(rng, (1, 40, 2, 3), "float32"))
    weight = small(rng, (40, 40), "float32")
    for change in (None, (0, 0), (39, 39), (17, 5)):
        if change is not None:
            weight[change] += 1
        for _ in range(2):
            result = numbasep.pointwise_conv2d(x, weight)
            expected = numbasep.pointwise_conv2d(library.get(x), weight, backend="cpu")
            np.testing.assert_array_equal(library.get(result), expected)


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "weight on a device": (
        {"weight": exposed(np.ones((3, 1, 3, 3), "f4"))}, TypeError,
        ("weight:", "device", "host array"),
    ),
    "bias on a device": (
        {"bias": CudaTensor(torch.ones(3))}, TypeError, ("bias:", "torch", "host array"),
    ),
    "out on the host": ({"out": np.ones((1, 3, 2, 3), "f4")}, TypeError, ("out:", "host")),
    "backend cpu": ({"backend": "cpu"}, ValueError, ("backend:", "'cpu'")),
    "layout": ({"layout": "NWHC"}, ValueError, ("layout:", "'NWHC'")),
    "stride": ({"stride": 1.0}, TypeError, ("stride:", "1.0")),
    "out shape": ({"out": exposed(np.ones((1, 3, 2, 2), "f4"))}, ValueError, ("out:", "(1, 3")),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    options, exception, parts = REFUSED[name]
    options = {"weight": np.ones((3, 1, 3, 3), "f4"), **options}
    x = exposed(np.ones((1, 3, 4, 5), "f4"))
    with pytest.raises(exception) as caught:
        numbasep.depthwise_conv2d(x, options.pop("weight"), **options)
    assert type(caught.value) is exception
    for part in parts:
        assert part in str(caught.value)

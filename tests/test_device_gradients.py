"""The gradients of device arrays of every kind are what the CPU backend gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from numbasep import gradients
from tests import devices as doubles
from tests.conftest import examples
from tests.devices import Library
from tests.test_device_layers import arranged, small

Array = NDArray[Any]

CHANNELS, TAPS = 3, (2, 3)
OPTIONS: dict[str, Any] = {"stride": (2, 1), "padding": (1, 0, 2, 1), "padding_mode": "replicate"}


@pytest.fixture(autouse=True)
def _stand_ins(cuda_runs_on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if cuda_runs_on == "simulator":
        doubles.stand_in(monkeypatch)


class Operation:
    """A gradient of images of one size: the shapes of what it is given, and a call."""

    def __init__(self, name: str, size: tuple[int, int], layout: str, batched: bool) -> None:
        self.name, self.layout = name, layout
        high, wide = size
        result = (high + 1 - TAPS[0]) // 2 + 1, wide + 3 - TAPS[1] + 1

        def image(channels: int, size: tuple[int, int]) -> tuple[int, ...]:
            shape = (channels, *size) if layout == "NCHW" else (*size, channels)
            return (2, *shape) if batched else shape

        self.image, grad = image(CHANNELS, size), image(CHANNELS, result)
        self.shapes = {
            "input": [grad],
            "weight": [self.image, grad],
            "bias": [grad],
            "pointwise input": [self.image],
            "pointwise weight": [self.image, image(2, size)],
        }[name]

    def __call__(self, given: list[Any], weights: Array, **more: Any) -> Any:
        more["layout"] = self.layout
        if self.name == "input":
            return gradients.depthwise_input_gradient(
                *given, weights, self.image, **OPTIONS, **more
            )
        if self.name == "weight":
            return gradients.depthwise_weight_gradient(*given, TAPS, **OPTIONS, **more)
        if self.name == "bias":
            return gradients.bias_gradient(*given, **more)
        if self.name == "pointwise input":
            return gradients.pointwise_input_gradient(*given, weights[:, 0, 0], **more)
        return gradients.pointwise_weight_gradient(*given, **more)


@pytest.mark.parametrize("name", ["input", "weight", "bias", "pointwise input", "pointwise weight"])
def test_gradients(cuda_runs_on: str, name: str) -> None:
    """Layouts of arrays and out, dtypes, both layouts; the second call repeats launches."""

    # The kernels have tests of their own: these are few calls of each way to them.
    @settings(max_examples=max(examples("cuda") // 40, 8))
    @given(
        library=st.sampled_from(doubles.libraries(cuda_runs_on)),
        seed=st.integers(0, 2**32 - 1),
        dtype=st.sampled_from(("float32", "float64", "float16", "bfloat16")),
        batched=st.booleans(),
        layout=st.sampled_from(("NCHW", "NHWC")),
        memory=st.tuples(*[st.sampled_from(("plain", "channels last", "sliced"))] * 2),
        place=st.sampled_from(("none", "plain", "sliced")),
        size=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    )
    def check(
        library: Library,
        seed: int,
        dtype: str,
        batched: bool,
        layout: str,
        memory: tuple[str, str],
        place: str,
        size: tuple[int, int],
    ) -> None:
        if dtype == "bfloat16" and library.name not in ("cupy", "torch"):
            # Type strings have no name for it, nor has NumPy's DLPack.
            dtype = "float16"
        operation = Operation(name, size, layout, batched)
        for turn in range(2):
            rng = np.random.default_rng((seed, turn))
            values = [small(rng, shape, dtype) for shape in operation.shapes]
            weights = small(np.random.default_rng(seed), (CHANNELS, 1, *TAPS), dtype)
            if name == "pointwise input":
                # (Cout, C): as many outputs as the gradient has channels.
                weights = weights.reshape(CHANNELS, 2, 1, 3)
            expected = operation(values, weights, backend="cpu")
            out = None
            if place != "none":
                out = library.put(arranged(np.full_like(expected, 99), place))
            given = [
                library.put(arranged(one, where))
                for one, where in zip(values, memory, strict=False)
            ]
            result = operation(given, weights, out=out)
            assert library.is_own(result) if out is None else result is out
            found = library.get(result)
            assert found.dtype == expected.dtype
            assert np.array_equal(found.astype(float), expected.astype(float))
            for one, value in zip(given, values, strict=True):
                assert np.array_equal(library.get(one).astype(float), value.astype(float))

    check()


def test_mixed_places_and_libraries_are_refused(cuda_runs_on: str) -> None:
    known = doubles.libraries(cuda_runs_on)
    x = small(np.random.default_rng(0), (1, 3, 4, 4), "float32")
    first, last = known[0].put(x), known[-1].put(x)
    for call, error, text in (
        (lambda: gradients.pointwise_weight_gradient(x, first), TypeError, "^grad: .*host"),
        (lambda: gradients.pointwise_weight_gradient(first, x), TypeError, "^grad: .*host"),
        (lambda: gradients.depthwise_weight_gradient(first, last, (1, 1)), TypeError, "^grad: "),
        (lambda: gradients.bias_gradient(first, out=np.zeros(3, np.float32)), TypeError, "^out: "),
        (lambda: gradients.depthwise_input_gradient(first, first, x.shape), TypeError, "^weight: "),
    ):
        with pytest.raises(error, match=text):
            call()

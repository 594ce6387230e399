"""The CUDA gradient kernels with tiles so small that every case makes many blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from numbasep.cuda import depthwise_gradient, launch, pointwise_gradient
from numbasep.plan import channelwise as planner
from numbasep.plan.gradients import MatrixTile, SumTile
from tests.conftest import examples
from tests.test_gradients import Case, cases, first, last

Array = NDArray[Any]

LAYOUTS = st.sampled_from(planner.LAYOUTS)


def weight_gradient(case: Case, layout: str, tile: SumTile | None, dtype: str) -> Array:
    """The kernels' result; what is not written stays poison."""
    give = last if layout == "NHWC" else np.ascontiguousarray
    x, grad = (give(one).astype(dtype) for one in (case.x, case.grad))
    taps = case.weight.shape[2:]
    plan = planner.depthwise(
        x.shape, dtype, case.grad.shape[1], taps, 0, layout=layout, **case.options
    )
    place = launch.to_device(np.full((plan.filters, *taps), np.nan, dtype))
    depthwise_gradient.run_weight_gradient(
        plan, launch.to_device(x), launch.to_device(grad), place, tile=tile
    )
    result = np.empty((plan.filters, *taps), dtype)
    launch.to_host(place, result)
    return result[:, None]


@settings(max_examples=examples("cuda", 12))
@given(
    case=cases(6, 3),
    layout=LAYOUTS,
    tile=st.builds(SumTile, st.sampled_from((4, 8)), st.sampled_from((1, 2, 4)), st.integers(1, 3)),
)
def test_weight_gradients_are_exact(case: Case, layout: str, tile: SumTile) -> None:
    found = weight_gradient(case, layout, tile, "float32")
    assert np.array_equal(found, case.weight_gradient(case.x, case.grad))


@settings(max_examples=examples("cuda", 12))
@given(case=cases(6, 3), layout=LAYOUTS)
def test_input_gradients_are_exact(case: Case, layout: str) -> None:
    give = last if layout == "NHWC" else np.ascontiguousarray
    x, grad = (give(one).astype(np.float32) for one in (case.x, case.grad))
    taps = case.weight.shape[2:]
    plan = planner.depthwise(
        x.shape, "float32", case.grad.shape[1], taps, 0, layout=layout, **case.options
    )
    place = launch.to_device(np.full(x.shape, np.nan, np.float32))
    depthwise_gradient.run_input_gradient(
        plan, launch.to_device(grad), case.weight[:, 0].astype(np.float32), place
    )
    result = np.empty(x.shape, np.float32)
    launch.to_host(place, result)
    wanted = case.input_gradient(case.grad, case.weight)
    assert np.array_equal(result if layout == "NCHW" else first(result), wanted)


@settings(max_examples=examples("cuda", 12))
@given(
    n=st.integers(1, 2),
    o=st.integers(1, 9),
    c=st.integers(1, 9),
    pixels=st.integers(1, 9),
    layout=LAYOUTS,
    tile=st.builds(
        MatrixTile,
        st.sampled_from((4, 8)),
        st.sampled_from((4, 8)),
        st.sampled_from((1, 4)),
        st.integers(1, 3),
    ),
    seed=st.integers(0, 2**32),
)
def test_matrices_are_exact(
    n: int, o: int, c: int, pixels: int, layout: str, tile: MatrixTile, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x, grad = (rng.integers(-3, 4, (n, k, pixels)).astype(np.float32) for k in (c, o))
    shape = (n, c, pixels, 1) if layout == "NCHW" else (n, pixels, 1, c)
    plan = planner.pointwise(shape, "float32", (o, c), "float32", layout=layout)
    place = launch.to_device(np.full((o, c), np.nan, np.float32))
    image, given = (
        launch.to_device(one if layout == "NCHW" else np.ascontiguousarray(one.transpose(0, 2, 1)))
        for one in (x, grad)
    )
    pointwise_gradient.run_weight_gradient(plan, image, given, place, tile=tile)
    found = np.empty((o, c), np.float32)
    launch.to_host(place, found)
    assert np.array_equal(found, np.einsum("nop,ncp->oc", grad, x))


@pytest.mark.parametrize("layout", planner.LAYOUTS)
def test_a_run_gives_the_bits_of_another(layout: str) -> None:
    rng = np.random.default_rng(3)
    case = Case(
        rng.standard_normal((2, 3, 7, 6)), np.zeros((3, 1, 3, 3)),
        rng.standard_normal((2, 3, 7, 6)), {"padding": 1}, (1, 1, 1, 1), (1, 1), (1, 1), "zeros",
    )  # fmt: skip
    # The simulator's threads run in another order each time.
    runs = [weight_gradient(case, layout, SumTile(8, 2, 3), "float32") for _ in range(3)]
    assert len({one.tobytes() for one in runs}) == 1

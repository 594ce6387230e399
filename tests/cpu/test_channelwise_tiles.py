"""The bits of the CPU backend do not depend on how it cuts its work, nor on its threads."""

from __future__ import annotations

from itertools import product
from typing import Any

import numba
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import signal

from numbasep.channelwise import depthwise_conv2d, depthwise_separable_conv2d, pointwise_conv2d
from numbasep.cpu import depthwise, fused, pointwise, pointwise_tiles
from numbasep.plan import channelwise as planner
from tests import oracle

Array = NDArray[Any]


def noise(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    ("size", "k", "stride", "storage"),
    [
        ((7, 7), 3, 1, "float32"),
        ((15, 6), 3, 1, "float32"),
        ((14, 30), 3, 2, "float32"),
        ((33, 50), 5, 2, "float32"),
        ((40, 70), 7, 1, "float16"),
        ((21, 19), 4, 3, "float32"),
        ((40, 40), 13, 1, "float32"),
    ],
)
def test_depthwise_tiles(
    layout: str, size: tuple[int, int], k: int, stride: int, storage: str
) -> None:
    channels = 37
    shape = (2, channels, *size) if layout == "NCHW" else (2, *size, channels)
    plan = planner.depthwise(
        shape, storage, channels, (k, k), 0, stride=stride, padding=k // 2, layout=layout
    )
    image, weight, bias = noise(*shape).astype(storage), noise(channels, k, k), noise(channels)
    rows, columns = plan.y.out, plan.x.out
    out_shape = (2, channels, rows, columns) if layout == "NCHW" else (2, rows, columns, channels)
    expected = None
    for band, group, threads in product((1, 3, 4, 9, 100), (1, 5, 16, channels), (1, 2, 3)):
        out = np.full(out_shape, np.nan, storage)
        tile = depthwise.Tile(min(band, rows), group, threads)
        depthwise.run_depthwise(plan, image, weight, bias, out, tile)
        expected = out if expected is None else expected
        assert out.tobytes() == expected.tobytes()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("taps", depthwise.PHASES)
def test_small_kernels(taps: tuple[int, int], dtype: str, layout: str) -> None:
    """Those with blocks of their own without a stride, and the same with one, of whole numbers."""
    rng = np.random.default_rng(3)
    for size, stride, dilation in product(((7, 7), (30, 41)), (1, 2), (1, 2)):
        image = rng.integers(-4, 5, (2, 18, *size)).astype(dtype)
        weight = rng.integers(-4, 5, (18, 1, *taps)).astype(dtype)
        x = image if layout == "NCHW" else np.ascontiguousarray(np.moveaxis(image, 1, -1))
        made = depthwise_conv2d(
            x, weight, stride=stride, dilation=dilation, padding=1, layout=layout
        )
        made = made if layout == "NCHW" else np.moveaxis(made, -1, 1)
        padded = np.pad(image.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
        for n, c in np.ndindex(2, 18):
            wide = oracle.dilate(weight[c, 0].astype(np.float64), (dilation, dilation))
            expected = signal.correlate2d(padded[n, c], wide, "valid")[::stride, ::stride]
            assert np.array_equal(made[n, c], expected)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_pointwise_tiles(layout: str) -> None:
    shape = (2, 70, 13, 11) if layout == "NCHW" else (2, 13, 11, 70)
    plan = planner.pointwise(shape, "float32", (101, 70), "float32", layout=layout)
    image, weight, bias = noise(*shape), noise(101, 70), noise(101)
    image = image.reshape((2, 70, -1) if layout == "NCHW" else (2, -1, 70))
    expected = None
    for pixels, share, threads, turns in product(
        (16, 48, 64, 144), (48, 96, 144), (1, 2, 3), (False, layout == "NHWC")
    ):
        out = np.full((2, 101, 143) if layout == "NCHW" else (2, 143, 101), np.nan, np.float32)
        tile = pointwise_tiles.Tile(pixels, share, threads, turns)
        pointwise.run_pointwise(plan, image, weight, bias, out, tile)
        expected = out if expected is None else expected
        assert out.tobytes() == expected.tobytes()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("activation", [None, "hardswish"])
@pytest.mark.parametrize("channels", [3, 32])
def test_pointwise_ends(
    layout: str, activation: str | None, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows and columns that are no whole blocks, of whole numbers; packed alone and with others."""
    monkeypatch.setattr(pointwise, "prepare", pointwise.prepare.__wrapped__)
    planar = layout == "NCHW"
    for few, packed, outputs, pixels in product(
        (0, 16), (16, 48), (1, 5, 6, 13, 24, 37), (1, 7, 8, 9, 15, 16, 17, 18, 24, 33, 49, 52, 90)
    ):
        monkeypatch.setattr(pointwise, "PACKED", packed)
        monkeypatch.setattr(pointwise, "FEW", few)
        shape = (2, channels, 1, pixels) if planar else (2, 1, pixels, channels)
        plan = planner.pointwise(
            shape, "float32", (outputs, channels), "float32", layout=layout, activation=activation
        )
        rng = np.random.default_rng(outputs * pixels)
        image, weight, bias = (
            rng.integers(-9, 9, size).astype(np.float32)
            for size in (shape, (outputs, channels), outputs)
        )
        axes = "ncyx,oc->noyx" if planar else "nyxc,oc->nyxo"
        expected = np.einsum(axes, image, weight) + (bias[:, None, None] if planar else bias)
        if activation is not None:
            expected *= np.clip(expected + 3, 0, 6)
            expected /= 6
        out = np.full(expected.shape, np.nan, np.float32)
        tile = pointwise_tiles.Tile(min(48, pixels), 1000, 2, outputs % 2 == 0 and not planar)
        pointwise.run_pointwise(plan, image, weight, bias, out, tile)
        assert (out == expected).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_last_pixels_of_several_images(dtype: str) -> None:
    """Side by side in vectors: of all images, of whole vectors and one that is not full."""
    found = set()
    for batch, pixels, outputs in product((2, 5, 17, 33), (5, 9, 17, 18, 20, 24, 49), (8, 19, 70)):
        shape, channels = (batch, 6, 1, pixels), 6
        plan = planner.pointwise(shape, dtype, (outputs, channels), dtype, activation="relu")
        rng = np.random.default_rng(batch * pixels)
        image, weight, bias = (
            rng.integers(-9, 9, size).astype(dtype)
            for size in (shape, (outputs, channels), outputs)
        )
        expected = np.einsum("ncyx,oc->noyx", image, weight) + bias[:, None, None]
        memory = np.full(expected.size + 64, np.nan, dtype)
        out = memory[32:-32].reshape(expected.shape)
        pointwise.run_pointwise(plan, image, weight, bias, out)
        assert (out == np.maximum(expected, 0)).all()
        assert np.isnan(memory[:32]).all()
        assert np.isnan(memory[-32:]).all()
        found.add(pointwise_tiles.left_over(plan) > 0)
    assert found == {False, True}


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_fused_tiles(layout: str) -> None:
    shape = (2, 30, 17, 21) if layout == "NCHW" else (2, 17, 21, 30)
    first = planner.depthwise(shape, "float32", 30, (3, 3), 0, padding=1, layout=layout)
    second = planner.pointwise(shape, "float32", (50, 30), "float32", layout=layout)
    plan = planner.separable(first, second, True, "cpu")
    image, taps, matrix = noise(*shape), noise(30, 3, 3), noise(50, 30)
    biases = noise(30), noise(50)
    expected = None
    for band, threads in product((1, 2, 5, 17), (1, 2, 3)):
        out = np.full((2, 50, 357) if layout == "NCHW" else (2, 357, 50), np.nan, np.float32)
        fused.run_fused(
            plan, image, taps, biases[0], matrix, biases[1], out, fused.Tile(band, threads)
        )
        expected = out if expected is None else expected
        assert out.tobytes() == expected.tobytes()


def test_threads_that_numba_is_told_of() -> None:
    x, taps, matrix = noise(1, 64, 60, 60), noise(64, 1, 3, 3), noise(64, 64)
    results = []
    before = numba.get_num_threads()
    for threads in range(1, before + 1):
        numba.set_num_threads(threads)
        y = depthwise_separable_conv2d(x, taps, matrix, padding=1)
        results.append((y.tobytes(), pointwise_conv2d(x, matrix).tobytes()))
    numba.set_num_threads(before)
    assert len(set(results)) == 1

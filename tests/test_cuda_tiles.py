"""What the CUDA backend chooses to run, from shapes alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbasep.plan.cuda_tiles import StreamShape, TileShape, choose
from numbasep.plan.geometry import Axis, SpatialPlan
from tests.by_hand import axes


def square(
    taps: int, rank: int = 1, size: int = 4096, channels: int = 1, dtype: str = "float32"
) -> SpatialPlan:
    axis = Axis(size, size, taps, origin=-(taps // 2))
    return SpatialPlan(1, channels, axis, axis, rank, False, 0, 0, dtype, dtype, dtype)


STRIDED = replace(square(5), y=Axis(64, 32, 5, stride=2), x=Axis(64, 32, 5, stride=2))


@pytest.mark.parametrize(
    ("variant", "plan"),
    [
        ("stream", square(3)),
        ("stream", square(63)),
        ("stream", square(31, rank=4)),
        ("stream", square(9, size=7)),
        ("stream", square(9, channels=3)),
        ("stream", square(31, dtype="float64")),
        ("tile", square(31, rank=11)),
        ("tile", square(31, rank=11, channels=3)),
        ("tile", square(127)),
        ("tile", square(31, rank=8, dtype="int64")),
        ("general", square(1001)),
        ("general", square(5, channels=200)),
        ("general", square(5, dtype="complex64")),
        ("general", square(5, rank=0)),
        ("general", STRIDED),
        ("direct", replace(square(5, rank=0), direct=True)),
    ],
)
def test_variants(variant: str, plan: SpatialPlan) -> None:
    tile = choose(plan)
    assert tile.variant == variant
    assert tile.reason


@given(
    y=axes(3000, taps=70, stride=2),
    x=axes(3000, taps=70, stride=2),
    planes=st.integers(1, 20),
    channels=st.integers(1, 40),
    rank=st.integers(1, 12),
    dtype=st.sampled_from(("float32", "float64", "int64", "complex64")),
    most_shared=st.sampled_from((48 * 1024, 99 * 1024, 227 * 1024)),
)
def test_tiles_are_launchable(
    y: Axis, x: Axis, planes: int, channels: int, rank: int, dtype: str, most_shared: int
) -> None:
    plan = SpatialPlan(planes, channels, y, x, rank, False, 0, 0, dtype, dtype, dtype)
    tile = choose(plan, most_shared)
    assert tile.width > 0
    assert tile.height > 0
    assert 0 < tile.threads <= 384
    assert tile.shared <= most_shared
    if isinstance(tile.shape, StreamShape):
        assert tile.height % tile.shape.steps == tile.threads % 32 == 0
        assert tile.shape.blocks * tile.threads <= 2048
    elif isinstance(tile.shape, TileShape):
        runs = tile.width // tile.shape.run * tile.height
        assert tile.height % tile.shape.run == tile.width % (tile.shape.run * x.dilation) == 0
        assert runs <= tile.threads
        assert tile.width + (x.taps - 1) * tile.shape.spacing <= tile.shape.pitch


@pytest.mark.parametrize("taps", [5, 9, 15, 31])
def test_halo_of_large_images(taps: int) -> None:
    plan = square(taps)
    tile = choose(plan)
    assert isinstance(tile.shape, StreamShape)
    read = (1 + (taps - 1) / tile.height) * tile.shape.pitch / tile.width
    assert (read + 1) / 2 <= 1.15


def test_blocks_fill_the_device_where_images_are_small() -> None:
    plan: Any = square(5, size=512)
    tile = choose(plan)
    assert -(-512 // tile.height) * -(-512 // tile.width) >= 132

"""The CPU backend against sums by hand: exact on integers, and the same bits for every tile."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from numbasep.cpu import simd
from numbasep.cpu.separable import run_direct, run_separable
from numbasep.plan.cpu_tiles import CpuTile, may_copy, must_pack
from numbasep.plan.geometry import Axis, SpatialPlan
from tests.by_hand import axes, correlate

TYPES = [
    ("float32", "float32", "float32"),
    ("uint8", "float32", "uint8"),
    ("float64", "float64", "float64"),
    ("int16", "int64", "int32"),
    ("complex64", "complex64", "complex64"),
]


@given(
    y=axes(14),
    x=axes(110),
    kinds=st.sampled_from(TYPES),
    channels=st.integers(1, 3),
    rank=st.integers(0, 3),
    boundary=st.integers(0, 4),
    strip=st.integers(1, 110),
    band=st.integers(1, 16),
    threads=st.integers(1, 3),
    packed=st.booleans(),
    copies=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_sums_by_hand_for_every_tile(
    y: Axis, x: Axis, kinds: tuple[str, str, str], channels: int, rank: int, boundary: int,
    strip: int, band: int, threads: int, packed: bool, copies: bool, seed: int,
) -> None:  # fmt: skip
    storage, compute, output = kinds
    plan = SpatialPlan(
        2, channels, y, x, rank, rank == 0, boundary, 2, storage, compute, output
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 4, (2, y.size, x.size, channels)).astype(storage)[:, ::-1]
    copies = copies and simd.COPIES and may_copy(plan)
    tile = CpuTile(strip, band, threads, packed or must_pack(plan), copies)
    real = rng.integers(0, 3, (3, 9, 9)).astype(compute)

    def run(image: Any, tile: CpuTile | None, noise: Any = 0) -> Any:
        out = np.full((2, y.out, x.out, channels), 77, output)
        if rank == 0:
            run_direct(plan, image, out, np.ascontiguousarray(real[0, : y.taps, : x.taps]), tile)
            return out, real[0, : y.taps, : x.taps]
        down, across = real[1, :rank, : y.taps] + noise, real[2, :rank, : x.taps] + noise
        args = (np.ascontiguousarray(a.astype(compute)) for a in (down, across))
        run_separable(plan, image, out, *args, tile=tile)
        return out, down.T @ across

    out, kernel = run(image, tile)
    expected = correlate(plan, image, kernel)
    if output == "uint8":
        expected = np.minimum(expected.real, 255)
    assert np.array_equal(out, expected)
    if compute != "int64":  # inexact sums: only the same order gives the same bits
        if storage != "uint8":
            image = image * image.dtype.type(1 / 3)
        noise = np.array(1 / 7, compute)
        assert run(image, tile, noise)[0].tobytes() == run(image, None, noise)[0].tobytes()

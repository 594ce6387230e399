"""How the CPU backend cuts a spatial plan into work: arithmetic on shapes and cache sizes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbasep.plan.geometry import SpatialPlan

# Parts of the caches that are taken as there: scratch in L1, image rows of a strip in L2.
L1_BYTES = 24 << 10
L2_BYTES = 384 << 10
LINE = 64

ROWS = 4
# Multiply-adds below which a second thread costs more than it brings.
ALONE = 1 << 17


@dataclass(frozen=True, slots=True)
class CpuTile:
    """A work item: ``band`` rows of the result, computed in strips of ``strip`` columns."""

    strip: int
    band: int
    threads: int


@dataclass(frozen=True, eq=False, slots=True)
class Scratch:
    """Where things are in a thread's scratch memory, in bytes; and the row pass's offsets.

    pitch: of scratch rows. phase: of the pixels of one remainder modulo the stride; 0 without
    stride. offsets: from a result's place in the scratch to what each weight multiplies.
    """

    pitch: int
    phase: int
    fills: int
    table: int
    edges: int
    phased: int
    size: int
    offsets: NDArray[Any]


def _rounded(size: int, step: int = LINE) -> int:
    return -(-size // step) * step


@lru_cache(maxsize=1024)
def choose(plan: SpatialPlan, threads: int) -> CpuTile:
    """Return the tile for a plan."""
    wide = np.dtype(plan.compute).itemsize * plan.channels
    narrow = np.dtype(plan.storage).itemsize * plan.channels
    terms = max(plan.rank, 1)
    rows = (ROWS - 1) * plan.y.stride + plan.y.extent
    held = rows if plan.direct else ROWS * terms
    budget = L2_BYTES // 2 if plan.direct else L1_BYTES
    span = min(budget // (held * wide), L2_BYTES // (rows * narrow))
    strip = max((span - plan.x.extent) // plan.x.stride, 256 // plan.channels, 16)
    count = -(-plan.x.out // strip)
    strip = _rounded(-(-plan.x.out // count), max(LINE // plan.channels, 1))
    total = plan.planes * plan.y.out
    work = total * plan.x.out * plan.channels * max(
        plan.y.taps * plan.x.taps if plan.direct else terms * (plan.y.taps + plan.x.taps), 16
    )
    if work < ALONE:
        threads = 1
    band = _rounded(max(4 * ROWS, -(-total // (8 * threads))), ROWS)
    return CpuTile(strip, min(band, _rounded(plan.y.out, ROWS), 512), threads)


@lru_cache(maxsize=1024)
def layout(plan: SpatialPlan, tile: CpuTile) -> Scratch:
    """Return the scratch memory that a tile of a plan needs."""
    wide = np.dtype(plan.compute).itemsize
    pixel = wide * plan.channels
    stride = plan.x.stride
    columns = min(tile.strip, plan.x.out)
    span = (columns - 1) * stride + plan.x.extent
    phase = _rounded(-(-span // stride) * pixel) if stride > 1 else 0
    # One line more, so that rows do not fall on the same sets of the cache.
    pitch = _rounded(max(span * pixel, stride * phase)) + LINE
    terms = max(plan.rank, 1)
    rows = (ROWS - 1) * plan.y.stride + plan.y.extent if plan.direct else ROWS * terms
    sizes = [
        rows * pitch,
        terms * wide,
        8 * max((tile.band - 1) * plan.y.stride + plan.y.extent, plan.y.taps),
        24 * span,
        rows * pitch if phase else 0,
    ]
    starts = np.cumsum([0, *map(_rounded, sizes)]).tolist()
    taps = np.arange(plan.x.taps) * plan.x.dilation
    places = taps % stride * phase + taps // stride * pixel
    lines = np.arange(plan.y.taps) * plan.y.dilation if plan.direct else np.arange(terms)
    offsets = (lines[:, None] * pitch + places).astype(np.int64)
    assert prod(offsets.shape) > 0
    return Scratch(pitch, phase, *starts[1:5], starts[5], np.ascontiguousarray(offsets).ravel())

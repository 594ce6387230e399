"""How the CPU backend cuts a spatial plan into work: arithmetic on shapes and cache sizes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbasep.plan.geometry import SpatialPlan


def l2_bytes() -> int:
    """Return the bytes of a core's L2 cache, as Linux tells them; else 1 MiB."""
    try:
        size = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text().strip()
    except OSError:
        return 1 << 20
    return int(size[:-1]) << 10 if size.endswith("K") and size[:-1].isdigit() else 1 << 20


# Parts of the caches that are taken as there.
L1_BYTES = 24 << 10
L2_BYTES = min(3 * l2_bytes() // 4, 512 << 10)
# Of the latter, the sums of the column pass. They would stay in L1 if strips were narrow enough,
# but memory answers long rows faster than that saves.
SUMS_BYTES = L2_BYTES // 3
TAP_BYTES = 9 << 10  # the taps of a group of channels, beside the pixels in L1
LINE = 64

# Output rows that share what the column pass loads.
ROWS = 4
# Column taps up to which image rows are read where they are, if they need no conversion; and up to
# which if they would displace each other from L1, their distance being a multiple of its ways.
UNPACKED = 16
DISPLACED = 8
WAY = 4096
# Row taps up to which a copy of the sums costs more than loads within a cache line save.
SINGLE = 24
# Output rows of a band; of a direct convolution, all of whose image rows are packed at once.
BAND = 512
DIRECT_BAND = 64
# Multiply-adds below which a second thread costs more than it brings.
ALONE = 1 << 17


@dataclass(frozen=True, slots=True)
class CpuTile:
    """A work item: ``band`` rows of the result, computed in strips of ``strip`` columns.

    packed: image rows are converted, with what surrounds them, into memory that stays in L2.
    copies: the sums of the column pass are kept twice, for loads within a cache line.
    """

    strip: int
    band: int
    threads: int
    packed: bool = True
    copies: bool = False

    def __str__(self) -> str:
        return f"{self.band} x {self.strip} outputs, {self.threads} threads"


@dataclass(frozen=True, eq=False, slots=True)
class Scratch:
    """Where things are in a thread's scratch memory, in bytes; and the row pass's offsets.

    pitch: of scratch rows. phase: of the pixels of one remainder modulo the stride; 0 without
    stride. copy: from a sum to its copy, for loads that do not reach into another cache line; 0 if
    there is none. ring: places for packed rows, which take turns. offsets (weights, 2): from a
    result's place in the scratch to what each weight multiplies, for even vectors and for odd ones.
    """

    pitch: int
    phase: int
    fills: int
    table: int
    edges: int
    line: int
    packs: int
    sums: int
    copy: int
    ring: int
    size: int
    offsets: NDArray[Any]


def _rounded(size: int, step: int = LINE) -> int:
    return -(-size // step) * step


def must_pack(plan: SpatialPlan) -> bool:
    """Whether the image cannot be read where it is."""
    return plan.direct or plan.storage != plan.compute or plan.x.stride > 1


def _ring(plan: SpatialPlan, band: int) -> int:
    """Return how many image rows are in use at a time: packed rows take turns in so many places."""
    outputs = band if plan.direct else min(ROWS, band)
    return (outputs - 1) * plan.y.stride + plan.y.extent


def neighbours(plan: SpatialPlan) -> bool:
    """Whether row taps multiply elements that are neighbours."""
    return plan.x.stride == plan.x.dilation == plan.channels == 1


def may_copy(plan: SpatialPlan) -> bool:
    """Whether the row pass can read copies, where registers are half as long as a cache line.

    Neighbouring taps are taken from aligned loads instead.
    """
    return not (plan.direct or neighbours(plan) or "complex" in plan.compute)


@lru_cache(maxsize=1024)
def choose(plan: SpatialPlan, threads: int, copies: bool) -> CpuTile:
    """Return the tile for a plan.

    copies: whether vector registers are half as long as a cache line.
    """
    copies = copies and may_copy(plan) and plan.x.taps > SINGLE
    wide = np.dtype(plan.compute).itemsize * plan.channels
    terms = max(plan.rank, 1)
    displaced = plan.x.size * wide % WAY == 0
    packed = must_pack(plan) or plan.y.taps > (DISPLACED if displaced else UNPACKED)
    total = plan.planes * plan.y.out
    taps = plan.y.taps * plan.x.taps if plan.direct else terms * (plan.y.taps + plan.x.taps)
    if total * plan.x.out * plan.channels * max(taps, 16) < ALONE:
        threads = 1
    share = -(-total // (4 * threads))
    band = _rounded(
        min(max(share, 4 * ROWS), plan.y.out, DIRECT_BAND if plan.direct else 512), ROWS
    )
    span = L2_BYTES // (_ring(plan, band) * wide)
    if not plan.direct:
        kept = 2 if copies else 1
        span = min(span, SUMS_BYTES // (ROWS * terms * kept * wide))
    strip = max((span - plan.x.extent) // plan.x.stride, 256 // plan.channels, 16)
    count = -(-plan.x.out // strip)
    strip = _rounded(-(-plan.x.out // count), max(LINE // plan.channels, 1))
    return CpuTile(strip, band, threads, packed, copies)


@lru_cache(maxsize=1024)
def layout(plan: SpatialPlan, tile: CpuTile) -> Scratch:
    """Return the scratch memory that a tile of a plan needs."""
    wide = np.dtype(plan.compute).itemsize
    pixel = wide * plan.channels
    stride = plan.x.stride
    columns = min(tile.strip, plan.x.out)
    span = (columns - 1) * stride + plan.x.extent
    phase = _rounded(-(-span // stride) * pixel) if stride > 1 else 0
    # Lines more, so that rows do not fall on the same sets of the cache; an odd number of them.
    pitch = (_rounded(max(span * pixel, stride * phase)) // LINE + 1 | 1) * LINE
    terms = max(plan.rank, 1)
    band = min(tile.band, plan.y.out)
    rows = (band - 1) * plan.y.stride + plan.y.extent
    ring = _ring(plan, band)
    sizes = [
        terms * wide,
        8 * (max(rows, plan.y.taps) + ROWS),
        24 * span,
        pitch if phase else 0,
        ring * pitch if tile.packed else 0,
        0 if plan.direct else ROWS * terms * pitch,
        ROWS * terms * pitch + LINE // 2 if tile.copies else 0,
        # A vector read beyond the last element.
        LINE,
    ]
    starts = np.cumsum([0, *map(_rounded, sizes)]).tolist()
    taps = np.arange(plan.x.taps) * plan.x.dilation
    places = taps % stride * phase + taps // stride * pixel
    lines = np.arange(plan.y.taps) * plan.y.dilation if plan.direct else np.arange(terms)
    fills, table, edges, line, packs, sums, second, _, size = starts
    copy = second + LINE // 2 - sums if tile.copies else 0
    even = (lines[:, None] * pitch + places).astype(np.int64).ravel()
    # Half a line fits in a line from its first half on; it begins there, or does in the copy.
    later = even % LINE > LINE // 2
    odd = np.where((even + LINE // 2) % LINE > LINE // 2, even + copy, even)
    offsets = np.ascontiguousarray(np.stack([np.where(later, even + copy, even), odd], axis=1))
    return Scratch(pitch, phase, fills, table, edges, line, packs, sums, copy, ring, size, offsets)

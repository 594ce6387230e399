"""What one block of a CUDA kernel computes: chosen from a plan by arithmetic alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd

from numbasep.plan.geometry import SpatialPlan

SIZES = {"float32": 4, "float64": 8, "int64": 8, "complex64": 8, "complex128": 16}

# A launch has at most this many blocks; the general kernel's go on to further tiles.
MOST_BLOCKS = 2**31 - 1

# What tiles are made for: an H200. Others run the same tiles, with more or fewer waves of blocks.
MULTIPROCESSORS = 132
REGISTERS = 64 * 1024
MULTIPROCESSOR_SHARED = 228 * 1024

# The streaming kernel: limits of its registers, of its taps (kernel parameters, bytes), of pending
# sums for two columns a thread, and of a strip's rows.
MOST_REGISTERS = 168
MOST_TAPS = 2048
MOST_IN_PAIRS = 8
LEAST_ROWS, MOST_ROWS = 8, 512


@dataclass(frozen=True, slots=True)
class StreamShape:
    """What a streaming kernel is compiled for; everything else is given at run time.

    taps_y, taps_x, rank: of the kernel's factors.
    spacing: elements from one tap of a row to the next: dilation times channels.
    shift: elements between the aligned address where a strip's loads start and its first tap.
    columns: image columns (elements) of one thread.
    vector: outputs of one thread, side by side.
    steps: image rows between two barriers; a multiple of ``vector // columns``.
    threads: of a block; a multiple of ``steps``.
    blocks: that registers have to leave room for on a multiprocessor.
    """

    taps_y: int
    taps_x: int
    rank: int
    spacing: int
    shift: int
    columns: int
    vector: int
    steps: int
    threads: int
    blocks: int

    @property
    def loads(self) -> int:
        """Vectors of sums that one output vector takes."""
        return -(-(self.shift + self.vector + (self.taps_x - 1) * self.spacing) // self.vector)

    @property
    def extra(self) -> int:
        """Rows above the halo, so that the rows before the first output make whole steps."""
        return -(self.taps_y - 1) % self.steps

    @property
    def pitch(self) -> int:
        """Elements of a row in shared memory."""
        return self.threads * self.columns

    @property
    def width(self) -> int:
        """Outputs (elements) across a strip; above 0 where the shape is any good."""
        return self.pitch - (self.loads - 1) * self.vector

    def shared(self, height: int, size: int) -> int:
        """Return the bytes of what was loaded, of column sums, and of the lists of places."""
        warm = (self.taps_y - 1 + self.extra) // self.steps
        rows = (warm + -(-height // self.steps) + 2) * self.steps
        return 2 * (self.rank + 1) * self.steps * self.pitch * size + 4 * (self.pitch + rows)


# Rows that a thread of the tile kernel loads before it stores the first.
BATCH = 8


@dataclass(frozen=True, slots=True)
class TileShape:
    """What a tile kernel is compiled for; taps and rank are given at run time.

    spacing: elements from one tap of a row to the next: dilation times channels.
    pitch: of rows in shared memory, in elements; odd, so that accesses down a column meet no bank
        twice.
    run: outputs of one thread, ``spacing`` apart in a row.
    vector: taps of one access.
    threads: of a block; a multiple of 32, or a divisor.
    blocks: that registers have to leave room for on a multiprocessor.
    """

    spacing: int
    pitch: int
    run: int
    vector: int
    threads: int
    blocks: int

    def loaded_rows(self, taps: int, height: int) -> int:
        """Return the rows of a tile's support, in whole batches."""
        return -(-(height + taps - 1) // BATCH) * BATCH

    def places(self, taps_y: int, taps_x: int, height: int) -> tuple[int, int, int, int]:
        """Return where sums, taps and row numbers start, and the elements of a term's taps."""
        sums = self.loaded_rows(taps_y, height) * self.pitch
        taps = -(-(sums + height * self.pitch) // self.vector) * self.vector
        term = 2 * -(-max(taps_y, taps_x) // self.vector) * self.vector
        return sums, taps, taps + 2 * term, term

    def shared(self, taps_y: int, taps_x: int, height: int, size: int) -> int:
        """Return the bytes of support, sums, taps of two terms and row numbers."""
        *_, rows, _ = self.places(taps_y, taps_x, height)
        return rows * size + 4 * self.loaded_rows(taps_y, height)


@dataclass(frozen=True, slots=True)
class CudaTile:
    """What one block computes, and how.

    variant: "stream" (few taps), "tile" (many), "general" (any case) or "direct" (a dense kernel).
    width, height: outputs of one block; ``width`` in elements where there is a ``shape``, else in
        pixels.
    threads: in one block.
    shared: bytes of dynamic shared memory.
    reason: why this variant and size, for ``explain``.
    shape: what a streaming or tile kernel is compiled for.
    channels: interleaved channels of one block of the general kernel.
    chunk: taps of the row that share one load of its shared memory.
    shares: whether outputs of its tile share column sums.
    """

    variant: str
    width: int
    height: int
    threads: int
    shared: int = 0
    reason: str = ""
    shape: StreamShape | TileShape | None = None
    channels: int = 1
    chunk: int = 1
    shares: bool = True

    def __str__(self) -> str:
        return f"{self.height} x {self.width} outputs, {self.threads} threads"


def general(
    plan: SpatialPlan,
    width: int = 64,
    height: int = 4,
    channels: int = 32,
    budget: int = 16 * 1024,
    reason: str = "",
) -> CudaTile:
    """Return a tile of the general kernel of at most the sizes given, at most 256 threads."""
    channels = min(channels, plan.channels)
    width = max(1, min(width, plan.x.out, 256 // channels))
    height = max(1, min(height, plan.y.out, 256 // (channels * width)))
    size = SIZES[plan.compute]
    columns = max(1, budget // (size * height * channels))
    step = gcd(plan.x.stride, plan.x.dilation)
    apart, pace = plan.x.stride // step, plan.x.dilation // step
    chunk = min(plan.x.taps, (columns - 1 - (width - 1) * apart) // pace + 1)
    span = (width - 1) * apart + (chunk - 1) * pace + 1
    shares = chunk >= 1 and span <= width * chunk
    if not shares:
        chunk = max(1, min(plan.x.taps, columns // width))
        span = width * chunk
    return CudaTile(
        "general",
        width,
        height,
        threads=channels * width * height,
        shared=span * height * channels * size,
        reason=reason or "any taps, rank, stride, dilation and dtype",
        channels=channels,
        chunk=chunk,
        shares=shares,
    )


def stream_shape(
    plan: SpatialPlan, columns: int, steps: int, threads: int = 256, blocks: int = 1
) -> StreamShape:
    """Return the shape of a streaming kernel for a plan."""
    vector = 16 // SIZES[plan.compute]
    return StreamShape(
        plan.y.taps,
        plan.x.taps,
        plan.rank,
        plan.x.dilation * plan.channels,
        plan.x.origin * plan.channels % vector,
        columns,
        vector,
        steps,
        threads,
        blocks,
    )


def stream(plan: SpatialPlan, shape: StreamShape, height: int, reason: str = "") -> CudaTile:
    """Return a tile of the streaming kernel, whose strips are ``height`` rows high."""
    return CudaTile(
        "stream",
        shape.width,
        height,
        shape.threads,
        shape.shared(height, SIZES[plan.compute]),
        reason,
        shape,
    )


def tile_shape(
    plan: SpatialPlan, pitch: int, run: int, threads: int = 256, blocks: int = 1
) -> TileShape:
    """Return the shape of a tile kernel for a plan."""
    spacing = plan.x.dilation * plan.channels
    return TileShape(spacing, pitch, run, 16 // SIZES[plan.compute], threads, blocks)


def tile(plan: SpatialPlan, shape: TileShape, height: int, reason: str = "") -> CudaTile | None:
    """Return a tile of the tile kernel, as wide as it goes, or None where nothing fits.

    height: a multiple of ``shape.run``.
    """
    unit = shape.run * shape.spacing
    halo = (plan.x.taps - 1) * shape.spacing
    most = min(shape.pitch - halo, shape.threads // height * shape.run)
    width = min(most // unit, -(-plan.x.out * plan.channels // unit)) * unit
    if width <= 0:
        return None
    shared = shape.shared(plan.y.taps, plan.x.taps, height, SIZES[plan.compute])
    return CudaTile("tile", width, height, shape.threads, shared, reason, shape)


def _streamed(plan: SpatialPlan, most_shared: int) -> CudaTile | None:
    """Return the best tile of the streaming kernel, or None where it is not for this plan."""
    pending = plan.rank * (plan.y.taps - 1)
    size = SIZES[plan.compute]
    columns = 2 if pending <= MOST_IN_PAIRS and size == 4 else 1
    steps = 16 // size // columns
    # A pending sum has one register for each four bytes; the rest is what compiled kernels show.
    registers = 48 + pending * columns * size // 4
    if size == 8 and pending > MOST_IN_PAIRS * 2:
        # Long rows of float64 are read again for each vector of results: two vectors a turn.
        steps, registers = 2 * steps, registers + 20
    registers = -(-registers // 8) * 8
    taps = plan.rank * (plan.y.taps + plan.x.taps)
    if registers > MOST_REGISTERS or taps * size > MOST_TAPS:
        return None
    across = plan.x.out * plan.channels
    shapes = []
    for threads in (32, 64, 128, 256, 384):
        blocks = min(REGISTERS // (registers * threads), 2048 // threads, 32)
        shape = stream_shape(plan, columns, steps, threads, blocks)
        # Few taps wait for memory and need many threads; many taps have work for fewer.
        enough = blocks * threads >= (1024 if registers <= 64 else 384)
        if enough and 2 * shape.width >= shape.pitch:
            shapes.append(shape)
    if not shapes:
        return None
    # Threads side by side over all strips of a row; of equals, the widest strip.
    shape = min(shapes, key=lambda s: (-(-across // s.width) * s.threads, -s.threads))
    strips = plan.planes * plan.y.dilation * -(-across // shape.width)
    rows = -(-plan.y.out // plan.y.dilation)
    lead = plan.y.taps - 1 + shape.extra + 2 * steps
    best = None
    for waves in range(1, 9):
        below = max(1, waves * MULTIPROCESSORS * shape.blocks // strips)
        height = min(max(-(-rows // below), LEAST_ROWS), MOST_ROWS)
        height = -(-height // steps) * steps
        blocks = strips * -(-rows // height)
        cost = -(-blocks // (MULTIPROCESSORS * shape.blocks)) * (height + lead)
        if best is None or cost < best[0]:
            best = cost, height
    assert best is not None
    found = stream(plan, shape, best[1])
    if found.shared > most_shared:
        return None
    read = (1 + (plan.y.taps - 1) / best[1]) * shape.pitch / shape.width
    reason = (
        f"{pending} pending sums a column fit in registers (about {registers} a thread); "
        f"tiles read {read:.2f} times what they write"
    )
    return replace(found, reason=reason)


def _tiled(plan: SpatialPlan, most_shared: int) -> CudaTile | None:
    """Return the best tile of the tile kernel, or None where none fits in shared memory."""
    run = 64 // SIZES[plan.compute]
    across, rows = plan.x.out * plan.channels, -(-plan.y.out // plan.y.dilation)
    best = None
    for pitch in (65, 129, 257):
        for height in (run, 2 * run, 4 * run):
            found = tile(plan, tile_shape(plan, pitch, run, 256, 2), height)
            if found is None or found.shared > most_shared:
                continue
            span = found.width + (plan.x.taps - 1) * plan.x.dilation * plan.channels
            turns = -(-span * height // run // found.threads)
            tiles = plan.planes * plan.y.dilation * -(-across // found.width) * -(-rows // height)
            resident = MULTIPROCESSORS * min(2, MULTIPROCESSOR_SHARED // (found.shared + 1024))
            waves = -(-tiles // resident) * resident
            cost = waves * (turns * plan.y.taps + plan.x.taps), -found.width
            if best is None or cost < best[0]:
                best = cost, found, span / found.width
    if best is None:
        return None
    reason = (
        f"{plan.rank} terms of {plan.y.taps} and {plan.x.taps} taps are too many for registers; "
        f"column sums for {best[2]:.2f} times the width"
    )
    return replace(best[1], reason=reason)


@lru_cache(maxsize=1024)
def choose(plan: SpatialPlan, most_shared: int = MULTIPROCESSOR_SHARED - 1024) -> CudaTile:
    """Return the tile of a plan.

    most_shared: bytes of shared memory that the device grants a block.
    """
    if plan.direct:
        return CudaTile("direct", 256, 1, 256, reason="a dense kernel, one output a thread")
    if plan.rank == 0:
        return general(plan, reason="no terms: the result is zero")
    if plan.y.stride > 1 or plan.x.stride > 1:
        return general(plan, reason="strides: neighbouring outputs share too few sums to keep")
    if plan.compute.startswith("complex"):
        return general(plan, reason="complex taps")
    found = _streamed(plan, most_shared) or _tiled(plan, most_shared)
    return found or general(plan, reason="taps too long for a tile in shared memory")

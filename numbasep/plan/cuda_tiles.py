"""What one block of a CUDA kernel computes: chosen from a plan by arithmetic alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import gcd

from numbasep.plan.geometry import SpatialPlan

SIZES = {"float32": 4, "float64": 8, "int64": 8, "complex64": 8, "complex128": 16}

# A launch has at most this many blocks; the general kernel's go on to further tiles.
MOST_BLOCKS = 2**31 - 1


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
    def width(self) -> int:
        """Outputs (elements) across a strip; above 0 where the shape is any good."""
        return self.threads * self.columns - (self.loads - 1) * self.vector

    def shared(self, height: int, size: int) -> int:
        """Return the bytes of what was loaded, of column sums, and of the lists of places."""
        warm = (self.taps_y - 1 + self.extra) // self.steps
        rows = (warm + -(-height // self.steps) + 2) * self.steps
        pitch = self.threads * self.columns
        return 2 * (self.rank + 1) * self.steps * pitch * size + 4 * (pitch + rows)


@dataclass(frozen=True, slots=True)
class CudaTile:
    """What one block computes, and how.

    variant: "stream" (few taps), "general" (any case) or "direct" (a dense kernel).
    width, height: outputs of one block; ``width`` in elements for "stream", else in pixels.
    threads: in one block.
    shared: bytes of dynamic shared memory.
    reason: why this variant and size, for ``explain``.
    shape: of a streaming kernel.
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
    shape: StreamShape | None = None
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


@lru_cache(maxsize=1024)
def choose(plan: SpatialPlan) -> CudaTile:
    """Return the tile of a plan."""
    if plan.direct:
        return CudaTile("direct", 256, 1, 256, reason="a dense kernel, one output a thread")
    return general(plan)

"""What one block of a CUDA kernel computes: chosen from a plan by arithmetic alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import gcd

from numbasep.plan.geometry import SpatialPlan

# Dynamic shared memory that every device grants a block without being asked for more.
SHARED_DEFAULT = 48 * 1024

SIZES = {"float32": 4, "float64": 8, "int64": 8, "complex64": 8, "complex128": 16}


@dataclass(frozen=True, slots=True)
class CudaTile:
    """What one block computes, and how.

    variant: "general" (any case) or "direct" (a dense kernel).
    width, height: outputs of one block, in pixels.
    channels: interleaved channels of one block.
    threads: in one block; one output each.
    chunk: taps of the row that share one load of shared memory.
    shares: whether outputs of the tile share column sums.
    shared: bytes of dynamic shared memory.
    reason: why this variant and size, for ``explain``.
    """

    variant: str
    width: int
    height: int
    threads: int
    channels: int = 1
    chunk: int = 1
    shares: bool = True
    shared: int = 0
    reason: str = ""

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
        channels=channels,
        chunk=chunk,
        shares=shares,
        shared=span * height * channels * size,
        reason=reason or "any taps, rank, stride, dilation and dtype",
    )


@lru_cache(maxsize=1024)
def choose(plan: SpatialPlan) -> CudaTile:
    """Return the tile of a plan."""
    if plan.direct:
        return CudaTile("direct", 256, 1, 256, reason="a dense kernel, one output a thread")
    return general(plan)

"""The spatial kernels, as the plan chooses them for images of 4096 x 4096."""

from __future__ import annotations

from collections.abc import Iterator

from numbasep.cuda.general import direct_kernel, general_kernel
from numbasep.cuda.launch import Kernel
from numbasep.cuda.stream import stream_kernel
from numbasep.cuda.tile import tile_kernel
from numbasep.plan.cuda_tiles import SIZES, StreamShape, TileShape, choose
from numbasep.plan.geometry import Axis, SpatialPlan
from tests.cuda.compiled import Budget

WIDE = ("LDG.E.128", "STG.E.128")

# taps, rank, storage and compute dtype, most instructions per output, least occupancy, accesses.
CASES = (
    (5, 1, "float32", "float32", 28, 0.5, WIDE),
    (9, 1, "float32", "float32", 37, 0.5, WIDE),
    (15, 1, "float32", "float32", 51, 0.5, WIDE),
    (31, 1, "float32", "float32", 85, 0.37, WIDE),
    (31, 2, "float32", "float32", 175, 0.18, WIDE),
    (9, 8, "float32", "float32", 200, 0.18, WIDE),
    # The tile kernel's path through its loop over terms has each power of two of taps once: 31 taps
    # for one run of 16 outputs, and one term.
    (31, 8, "float32", "float32", 105, 0.25, ()),
    (5, 1, "float16", "float32", 34, 0.5, ("LDG.E.64", "STG.E.64")),
    (5, 1, "bfloat16", "float32", 38, 0.5, ("LDG.E.64", "STG.E.64")),
    (5, 1, "uint8", "float32", 30, 0.5, ("LDG.E.CONSTANT", "STG.E")),
    (5, 1, "float64", "float64", 42, 0.5, WIDE),
    (15, 1, "float64", "float64", 78, 0.37, WIDE),
)


def chosen(taps: int, rank: int, storage: str, compute: str) -> Kernel:
    """Return the kernel that the plan takes, one of those that are compiled for a shape."""
    axis = Axis(4096, 4096, taps, origin=-(taps // 2))
    kinds = storage, compute, storage
    plan = SpatialPlan(1, 1, axis, axis, rank, False, 0, 0, *kinds)
    shape = choose(plan).shape
    if isinstance(shape, StreamShape):
        return stream_kernel(shape, *kinds)
    assert isinstance(shape, TileShape)
    return tile_kernel(shape, *kinds)


def budgets() -> Iterator[Budget]:
    """Yield the budgets of this module."""
    for *case, most, occupancy, has in CASES:
        taps, rank, storage, compute = case
        outputs = 16 // SIZES[compute] if has else 16
        yield Budget(
            f"separable/{storage}-{taps}-taps-rank-{rank}",
            lambda case=case: chosen(*case),
            (most, outputs),
            occupancy,
            has,
        )
    for dtype in ("float32", "float64"):
        yield Budget(f"general/{dtype}", lambda d=dtype: general_kernel(d, d, d), occupancy=0.37)
        yield Budget(f"direct/{dtype}", lambda d=dtype: direct_kernel(d, d, d))

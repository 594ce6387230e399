"""The pointwise kernels, the tiles of large layers."""

from __future__ import annotations

from collections.abc import Iterator

from numbasep.cuda.launch import Kernel
from numbasep.cuda.pointwise import fma_kernel
from numbasep.cuda.pointwise_mma import mma_kernel
from numbasep.plan import channelwise as planner
from numbasep.plan.cuda_pointwise import MmaTile, choose
from tests.cuda.compiled import Budget

# Name, storage, dtype of the weights, tf32.
PATHS = (
    ("float32", "float32", "float32", False),
    ("float64", "float64", "float64", False),
    ("int8", "int8", "int8", False),
    ("float16", "float16", "float16", False),
    ("bfloat16", "bfloat16", "bfloat16", False),
    ("tf32", "float32", "float32", True),
    ("float16 by float32", "float16", "float32", False),
)


def kernel(layout: str, storage: str, weights: str, tf32: bool, aligned: int) -> Kernel:
    shape = (64, 256, 28, 28) if layout == "NCHW" else (64, 28, 28, 256)
    plan = planner.pointwise(
        shape,
        storage,
        (256, 256),
        weights,
        layout=layout,
        activation="relu",
        precision="tf32" if tf32 else None,
    )
    tile = choose(plan, aligned, aligned)
    if isinstance(tile, MmaTile):
        return mma_kernel(tile, plan.output, plan.activation)
    return fma_kernel(tile, plan.storage, plan.compute, plan.output, plan.activation)


def budgets() -> Iterator[Budget]:
    """Yield the budgets of this module.

    Tiles as large as the registers hold need no more threads: what they wait for is hidden by
    independent multiply-adds and by copies ahead.
    """
    for layout in planner.LAYOUTS:
        for name, storage, weights, tf32 in PATHS:
            tensor = tf32 or (weights == storage and storage.endswith("float16"))
            has: tuple[str, ...] = ("LDG.E.128", "STG.E.128")
            if tensor:
                has = "HMMA", "LDSM", "LDGSTS.E.BYPASS.128", "STG.E.128"
            elif storage.endswith("float16"):
                has = "LDG.E.64", "STG.E.64"
            elif storage == "int8":
                has = ("STG.E.128",)
            yield Budget(
                f"pointwise/{name} {layout}",
                lambda a=(layout, storage, weights, tf32): kernel(*a, 16),
                occupancy=0.125 if tensor or storage == "float64" else 0.25,
                has=has,
            )
        # Rows that are not aligned: no vectors, but no spills either.
        for name, storage in (("float32", "float32"), ("float16", "float16")):
            yield Budget(
                f"pointwise/{name} {layout} unaligned",
                lambda a=(layout, storage, storage, False): kernel(*a, 2 if "16" in a[1] else 4),
                occupancy=0.125 if storage == "float16" else 0.25,
                has=("HMMA",) if storage == "float16" else (),
            )

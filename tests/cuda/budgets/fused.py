"""The fused depthwise and pointwise kernel, with the tiles of a layer of 64 to 128 channels."""

from __future__ import annotations

from collections.abc import Iterator

from numbasep.cuda.fused import fused_kernel
from numbasep.cuda.launch import Kernel
from numbasep.plan import channelwise as planner
from numbasep.plan.cuda_fused import choose
from tests.cuda.compiled import Budget


def kernel(layout: str, dtype: str, tf32: bool, k: int) -> Kernel:
    """Return the kernel of KernelBench's problem 86, with another layout, dtype or window."""
    size = (64, 512, 512) if layout == "NCHW" else (512, 512, 64)
    shape = (16, *size)
    first = planner.depthwise(
        shape, dtype, 64, (k, k), 0, padding=k // 2, layout=layout, activation="relu6"
    )
    second = planner.pointwise(
        shape, dtype, (128, 64), dtype, layout=layout, activation="relu6",
        precision="tf32" if tf32 else None,
    )  # fmt: skip
    plan = planner.separable(first, second, None, "cuda")
    first, second = plan.depthwise, plan.pointwise
    tile = choose(first, second)
    assert plan.fused
    assert tile is not None
    return fused_kernel(
        tile.shape, first.storage, first.compute, second.output, first.activation, second.activation
    )


def budgets() -> Iterator[Budget]:
    """Yield the budgets of this module."""
    for layout in ("NCHW", "NHWC"):
        for dtype, tf32, k in (
            ("float32", False, 3),
            ("float32", False, 5),
            ("float32", True, 3),
            ("float16", False, 3),
            ("bfloat16", False, 5),
            ("float64", False, 3),
        ):
            multiply = "tf32" if tf32 else dtype
            has = ["LDGSTS.E.BYPASS.128", "LDS.128"]
            if multiply != dtype or dtype.endswith("16"):
                has.append("HMMA.1688" if tf32 else "HMMA.16816")
            if not dtype.endswith("16"):
                has.append("STG.E.128")
            # Sums in registers, not occupancy, cover the waits: 512 threads of 128 registers.
            yield Budget(
                f"fused/{layout}/{multiply}/{k}x{k}",
                lambda a=(layout, dtype, tf32, k): kernel(*a),
                occupancy=0.25,
                has=tuple(has),
            )

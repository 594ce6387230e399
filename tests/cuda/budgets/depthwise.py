"""The depthwise kernels.

Instructions per output are those of an interior lane; the ends of a warp of the rows kernel load
the columns beside them too, for which the other lanes wait: about 1.5 more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from numbasep.cuda.depthwise_pixels import pixels_kernel
from numbasep.cuda.depthwise_rows import rows_kernel
from numbasep.cuda.depthwise_tile import tile_kernel
from numbasep.plan import channelwise as planner
from numbasep.plan import cuda_depthwise as tiles
from numbasep.plan.channelwise import ITEMSIZE, DepthwisePlan
from tests.cuda.compiled import Budget

WIDE = ("LDG.E.128", "STG.E.128")
# Where memory binds, threads go before the width of accesses; neighbours' follow each other.
HALF_WIDE = ("LDG.E.64", "STG.E.64")
# Its window does not fit in the registers of half of the threads: what would spill are taps.
CROWDED = ("NCHW", "float32", 7, 2)


def plan(
    layout: str, dtype: str, taps: int, stride: int = 1, activation: str = "none",
    padding_mode: str = "zeros",
) -> DepthwisePlan:  # fmt: skip
    shape = (8, 64, 512, 512) if layout == "NCHW" else (8, 512, 512, 64)
    return planner.depthwise(
        shape, dtype, 64, (taps, taps), 0, stride=stride, padding=taps // 2, layout=layout,
        activation=activation, padding_mode=padding_mode,
    )  # fmt: skip


def dtypes(plan: DepthwisePlan) -> tuple[str, str, str, str]:
    return plan.storage, plan.compute, plan.output, plan.activation


def fast(plan: DepthwisePlan) -> Any:
    """Return the kernel that a plan runs, and the outputs of one turn of its loop."""
    tile = tiles.choose(plan, (16, 16))
    if isinstance(tile, tiles.Rows):
        return rows_kernel(tile.shape, plan.boundary, *dtypes(plan)), tile.shape.vector
    assert isinstance(tile, tiles.Pixels)
    shape = tile.shape
    return pixels_kernel(shape, plan.boundary, *dtypes(plan)), shape.vector * shape.pixels


def budgets() -> Iterator[Budget]:
    """Yield the budgets of this module."""
    for layout, dtype, taps, stride, most, has in (
        ("NCHW", "float32", 3, 1, 22, WIDE),
        ("NCHW", "float32", 3, 2, 34, WIDE[:1]),
        ("NCHW", "float32", 5, 1, 42, WIDE),
        ("NCHW", "float32", 7, 1, 72, WIDE),
        ("NCHW", "float32", 7, 2, 110, WIDE[:1]),
        ("NCHW", "float64", 5, 1, 94, HALF_WIDE),
        ("NCHW", "float16", 3, 1, 20, WIDE),
        ("NCHW", "float16", 3, 2, 36, WIDE[:1]),
        ("NCHW", "float16", 5, 2, 62, WIDE[:1]),
        ("NHWC", "float32", 3, 1, 20, WIDE),
        ("NHWC", "float32", 3, 2, 32, WIDE),
        ("NHWC", "float32", 5, 1, 48, HALF_WIDE),
        ("NHWC", "float32", 5, 2, 62, WIDE),
        ("NHWC", "float32", 7, 1, 72, WIDE),
        ("NHWC", "float32", 7, 2, 130, HALF_WIDE),
        ("NHWC", "float64", 5, 1, 70, HALF_WIDE),
        ("NHWC", "float16", 3, 1, 22, HALF_WIDE),
        ("NHWC", "float16", 3, 2, 38, HALF_WIDE),
        ("NHWC", "float16", 5, 1, 43, HALF_WIDE),
        ("NHWC", "bfloat16", 3, 1, 26, HALF_WIDE),
    ):
        what = plan(layout, dtype, taps, stride)
        kernel, outputs = fast(what)
        yield Budget(
            f"depthwise/{layout}/{dtype}/{taps}x{taps}/s{stride}",
            lambda k=kernel: k,
            (most, outputs),
            0.25,
            has,
            moved=None
            if (layout, dtype, taps, stride) == CROWDED
            else ITEMSIZE[what.storage] * stride**2 + ITEMSIZE[what.output],
        )
    for layout, dtype in (("NCHW", "float32"), ("NHWC", "float32"), ("NHWC", "float16")):
        kernel = fast(plan(layout, dtype, 3, padding_mode="reflect"))[0]
        yield Budget(f"depthwise/{layout}/{dtype}/3x3/reflect", lambda k=kernel: k)
    silu = fast(plan("NCHW", "float32", 3, activation="silu"))[0]
    yield Budget("depthwise/NCHW/float32/3x3/silu", lambda: silu, has=WIDE)
    for layout in planner.LAYOUTS:
        for low_rank in (False, True):
            name = f"depthwise/{layout}/tile/{'low rank' if low_rank else 'dense'}"
            rows = 4 if layout == "NCHW" and not low_rank else 1
            yield Budget(
                name,
                lambda a=(layout, low_rank, True, rows): tile_kernel(
                    *a, 0, "float32", "float32", "float32", "none"
                ),
                has=("LDS.128",),
                # Kernels of 31x31 live on this loop.
                per_multiply_add=1.4 if rows > 1 else None,
            )

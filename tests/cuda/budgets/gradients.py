"""Gradients."""

from __future__ import annotations

from collections.abc import Iterator

from numbasep.cuda.depthwise_gradient import (
    fold_kernel,
    input_kernel,
    total_kernel,
    weight_kernel,
)
from numbasep.cuda.pointwise_gradient import matrix_kernel
from tests.cuda.compiled import Budget


def budgets() -> Iterator[Budget]:
    """Yield the budgets of this module."""
    for planar in (True, False):
        name = "NCHW" if planar else "NHWC"
        for storage in ("float32", "float16"):
            yield Budget(
                f"gradient/input/{name}/{storage}",
                lambda a=(planar, storage, "float32", storage): input_kernel(*a),
            )
            yield Budget(
                f"gradient/weight/{name}/{storage}",
                lambda a=(planar, False, 0, storage, "float32", 128): weight_kernel(*a),
                occupancy=0.37,  # nine sums a thread, and where each of their pixels is
            )
        yield Budget(
            f"gradient/bias/{name}",
            lambda p=planar: weight_kernel(p, True, 0, "float32", "float32", 128),
        )
        yield Budget(f"gradient/fold/{name}", lambda p=planar: fold_kernel(p, "float32", "float32"))
        yield Budget(
            f"gradient/pointwise/{name}",
            lambda p=planar: matrix_kernel(p, 64, 64, 16, "float32", "float32"),
            has=("LDS.128",),
            occupancy=0.37,  # bound by arithmetic
        )
    yield Budget("gradient/sum", lambda: total_kernel("float32", "float32"))

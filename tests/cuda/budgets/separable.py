"""The spatial kernels."""

from __future__ import annotations

from collections.abc import Iterator

from numbasep.cuda.general import direct_kernel, general_kernel
from tests.cuda.compiled import Budget


def budgets() -> Iterator[Budget]:
    """Yield the budgets of this module."""
    for dtype in ("float32", "float64"):
        yield Budget(f"general/{dtype}", lambda d=dtype: general_kernel(d, d, d))
        yield Budget(f"direct/{dtype}", lambda d=dtype: direct_kernel(d, d, d))

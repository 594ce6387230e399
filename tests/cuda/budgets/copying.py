"""Copies between strides."""

from __future__ import annotations

from collections.abc import Iterator

from numbasep.cuda.copying import copy_kernel
from tests.cuda.compiled import Budget


def budgets() -> Iterator[Budget]:
    """Yield the budgets of this module."""
    for axes in (1, 2, 4):
        yield Budget(f"copy/{axes}", lambda n=axes: copy_kernel("uint32", "uint32", n))

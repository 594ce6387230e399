"""Ranges for profilers around the public calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pytest

import numbasep
from numbasep import nvtx

X = np.ones((1, 2, 4, 4), np.float32)
TAPS, MATRIX = np.ones((2, 1, 3, 3), np.float32), np.ones((3, 2), np.float32)

CALLS: dict[str, Callable[[Any], Any]] = {
    "separable_conv2d": lambda x: numbasep.separable_conv2d(x, ([1.0], [1.0])),
    "factorise": numbasep.factorise,
    "depthwise_conv2d": lambda x: numbasep.depthwise_conv2d(x, TAPS),
    "pointwise_conv2d": lambda x: numbasep.pointwise_conv2d(x, MATRIX),
    "depthwise_separable_conv2d": lambda x: numbasep.depthwise_separable_conv2d(x, TAPS, MATRIX),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_range_is_around_each_call(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened once, closed after the work, also where the call fails."""
    seen: list[str] = []

    def ranged(label: str) -> AbstractContextManager[None]:
        @contextmanager
        def marked() -> Iterator[None]:
            seen.append(label)
            try:
                yield
            finally:
                seen.append("end")

        return marked()

    monkeypatch.setattr(nvtx, "range", ranged)
    CALLS[name](X)
    assert seen == [f"numbasep.{name}", "end"]
    seen.clear()
    with pytest.raises((TypeError, ValueError)):
        CALLS[name](None)
    assert seen == [f"numbasep.{name}", "end"]

"""How much of an image a plan needs, and how much its tiles read: arithmetic on axes."""

from __future__ import annotations

import numpy as np

from numbasep.plan.geometry import Axis


def needed(axis: Axis) -> int:
    """Return how many elements of an axis at least one output reads."""
    seen = np.zeros(axis.size, bool)
    first = np.arange(axis.out) * axis.stride + axis.origin
    for k in range(axis.taps):
        index = first + k * axis.dilation
        seen[index[(index >= 0) & (index < axis.size)]] = True
    return int(seen.sum())


def spanned(axis: Axis, tile: int, *, beyond: bool = False) -> int:
    """Return the elements from first to last that each tile of outputs reads, summed over tiles.

    beyond: those outside the image count too.
    """
    first = np.arange(0, axis.out, tile)
    last = np.minimum(first + tile, axis.out) - 1
    low = first * axis.stride + axis.origin
    high = last * axis.stride + axis.origin + axis.extent
    if not beyond:
        low, high = np.clip(low, 0, axis.size), np.clip(high, 0, axis.size)
    return int((high - low).sum())

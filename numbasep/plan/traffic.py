"""How much of an image a plan needs, and how much its tiles read: arithmetic on axes."""

from __future__ import annotations

from dataclasses import replace

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


def phased(axis: Axis, tile: int) -> int:
    """Return ``spanned`` where a tile's outputs are those of one phase of the dilated taps.

    Outputs ``dilation`` apart share what they read; only without stride, or without dilation.
    """
    apart = axis.dilation
    if apart == 1:
        return spanned(axis, tile)
    total = 0
    for phase in range(min(apart, axis.out)):
        line = (phase + axis.origin) % apart
        size, out = -(-(axis.size - line) // apart), -(-(axis.out - phase) // apart)
        start = (phase + axis.origin - line) // apart
        total += spanned(Axis(max(size, 0), out, axis.taps, 1, 1, start), tile)
    return total


def parted(axis: Axis, tile: int, taps: int) -> int:
    """Return ``spanned``, summed over so many taps at a time; a single one reads no more."""
    total = 0
    for first in range(0, axis.taps, taps):
        count = min(taps, axis.taps - first)
        part = replace(axis, taps=count, origin=axis.origin + first * axis.dilation)
        total += needed(part) if count == 1 else spanned(part, tile)
    return total


def copied(axis: Axis, tile: int, unit: int) -> int:
    """Return the elements that whole tiles copy, ``unit`` at once, summed; of those in the image.

    Also for outputs beyond the last one.
    """
    first = np.arange(0, axis.out, tile) * axis.stride + axis.origin
    low = first // unit * unit
    high = -(-(first + (tile - 1) * axis.stride + axis.extent) // unit) * unit
    return int((np.clip(high, 0, axis.size) - np.clip(low, 0, axis.size)).sum())

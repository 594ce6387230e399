"""Arrays as the kernels take them: re-labelled views, never copies."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbasep.plan.checks import name_of
from numbasep.plan.layout import Layout, merge

Array = NDArray[Any]


def empty(shape: tuple[int, ...], dtype: str, order: tuple[int, ...]) -> Array:
    """Return a fresh array whose axes stand in ``order`` in memory, outermost first."""
    if order == tuple(range(len(shape))):
        return np.empty(shape, dtype)
    memory = np.empty([shape[axis] for axis in order], dtype)
    return memory.transpose(np.argsort(order))


def contiguous(array: Array, order: tuple[int, ...]) -> Array:
    """Return a copy, in native byte order, whose axes stand in ``order`` in memory."""
    memory = np.ascontiguousarray(array.transpose(order), dtype=array.dtype.newbyteorder("="))
    return memory.transpose(np.argsort(order))


def as_images(array: Array, layout: Layout, storage: str) -> Array:
    """Return a view of shape ``(*batch, rows, columns, channels)`` with elements of ``storage``."""
    ordered = array if layout.plain else array.transpose(layout.order)
    lead = len(layout.batch) + 2
    view = ordered.reshape(*ordered.shape[:lead], -1 if array.size else 1, copy=False)
    return view if name_of(view.dtype) == storage else view.view(storage)


def loops(image: Array, out: Array) -> tuple[Array, Array]:
    """Return both with their batch axes joined: ``(*loops, planes, rows, columns, channels)``."""
    if image.ndim == 4:
        return image, out
    extents = merge(image.shape[:-3], image.strides[:-3], out.strides[:-3]) or (1,)
    return (
        image.reshape(*extents, *image.shape[-3:], copy=False),
        out.reshape(*extents, *out.shape[-3:], copy=False),
    )

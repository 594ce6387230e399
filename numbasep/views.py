"""Arrays as the kernels take them: re-labelled views, never copies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbasep.plan.checks import name_of
from numbasep.plan.layout import Layout, join, merge
from numbasep.plan.layout import contiguous as contiguous_strides

Array = NDArray[Any]


@cache
def itemsize_of(dtype: str) -> int:
    """Return the bytes of an element; bfloat16 needs ml_dtypes imported, as NumPy does."""
    return np.dtype(dtype).itemsize


@dataclass(slots=True)
class Device:
    """An array in a device's memory: where its elements are, never what they are.

    strides: in bytes. dtype: a name of the package's; "uint8" for booleans.
    device: the CUDA device's number.
    stream: handle of the stream on which the elements become valid; None where nothing is pending.
    owner: keeps the memory.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    device: int
    owner: Any
    stream: int | None = None
    writable: bool = True

    @property
    def itemsize(self) -> int:
        return itemsize_of(self.dtype)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def usable(self) -> bool:
        """Whether every element is aligned."""
        size = self.itemsize
        return not any(place % size for place in (self.address, *self.strides))

    @property
    def dense(self) -> bool:
        """Whether the elements stand in C order without gaps, aligned."""
        expected = contiguous_strides(self.shape, self.itemsize, tuple(range(len(self.shape))))
        return self.address % self.itemsize == 0 and all(
            size == 1 or stride == step
            for size, stride, step in zip(self.shape, self.strides, expected, strict=True)
        )

    def span(self) -> tuple[int, int]:
        """Return the addresses of the first byte and of the one after the last."""
        if 0 in self.shape:
            return self.address, self.address
        low, high = self.address, self.address + self.itemsize
        for size, stride in zip(self.shape, self.strides, strict=True):
            if stride < 0:
                low += (size - 1) * stride
            else:
                high += (size - 1) * stride
        return low, high

    def overlaps(self, other: Device) -> bool:
        """Return whether the spans of two arrays meet; interleaved ones count as meeting."""
        (low, high), (first, last) = self.span(), other.span()
        return low < last and first < high

    def transposed(self, order: tuple[int, ...]) -> Device:
        return replace(
            self,
            shape=tuple(self.shape[axis] for axis in order),
            strides=tuple(self.strides[axis] for axis in order),
        )

    def reshape(self, shape: tuple[int, ...]) -> Device:
        """Return a dense array in another shape."""
        strides = contiguous_strides(shape, self.itemsize, tuple(range(len(shape))))
        return replace(self, shape=shape, strides=strides)

    def __getitem__(self, index: tuple[int, ...]) -> Device:
        """Return the sub-array at indices of the first axes."""
        lead = len(index)
        moved = sum(i * step for i, step in zip(index, self.strides, strict=False))
        return replace(
            self,
            address=self.address + moved,
            shape=self.shape[lead:],
            strides=self.strides[lead:],
        )


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


def device_images(array: Device, layout: Layout, storage: str) -> Device:
    """Return what ``as_images`` does, of an array on a device."""
    ordered = array.transposed(layout.order)
    lead = len(layout.batch) + 2
    size = itemsize_of(storage)
    channels = prod(ordered.shape[lead:]) * (array.itemsize // size)
    return replace(
        ordered,
        shape=(*ordered.shape[:lead], channels),
        strides=(*ordered.strides[:lead], size),
        dtype=storage,
    )


def device_loops(image: Device, out: Device) -> Iterator[tuple[Device, Device]]:
    """Yield pairs of shape ``(planes, rows, columns, channels)``; neither is empty."""
    joined = join(image.shape[:-3], image.strides[:-3], out.strides[:-3]) or [(1, (0, 0))]
    pair = [
        replace(
            one,
            shape=(*(extent for extent, _ in joined), *one.shape[-3:]),
            strides=(*(steps[which] for _, steps in joined), *one.strides[-3:]),
        )
        for which, one in enumerate((image, out))
    ]
    for index in product(*(range(extent) for extent, _ in joined[:-1])):
        yield pair[0][index], pair[1][index]

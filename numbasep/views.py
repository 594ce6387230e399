"""Arrays as the kernels take them: re-labelled views, never copies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache
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


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """How an array's elements stand around its address.

    strides: in bytes. low, high: offsets of the first byte and of the one after the last.
    aligned: whether elements are, where the address is. dense: in C order without gaps.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    itemsize: int
    low: int
    high: int
    aligned: bool
    dense: bool


@lru_cache(maxsize=4096)
def form(shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: str) -> Form:
    """Return a form; one object for equal ones, mostly. Without strides: in C order."""
    itemsize = itemsize_of(dtype)
    plain = contiguous_strides(shape, itemsize, tuple(range(len(shape))))
    steps = plain if strides is None else strides
    reach = [(size - 1) * step for size, step in zip(shape, steps, strict=True)]
    empty = 0 in shape
    return Form(
        shape,
        steps,
        dtype,
        itemsize,
        0 if empty else sum(step for step in reach if step < 0),
        0 if empty else sum(step for step in reach if step > 0) + itemsize,
        not any(step % itemsize for step in steps),
        all(
            size == 1 or step == same for size, step, same in zip(shape, steps, plain, strict=True)
        ),
    )


@dataclass(slots=True)
class Device:
    """An array in a device's memory: where its elements are, never what they are.

    device: the CUDA device's number. owner: keeps the memory.
    stream: handle of the stream on which the elements become valid; None where nothing is pending.
    """

    address: int
    form: Form
    device: int
    owner: Any
    stream: int | None = None
    writable: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        return self.form.shape

    @property
    def strides(self) -> tuple[int, ...]:
        return self.form.strides

    @property
    def dtype(self) -> str:
        return self.form.dtype

    @property
    def itemsize(self) -> int:
        return self.form.itemsize

    @property
    def size(self) -> int:
        return prod(self.form.shape)

    @property
    def usable(self) -> bool:
        """Whether every element is aligned."""
        return self.form.aligned and self.address % self.form.itemsize == 0

    @property
    def dense(self) -> bool:
        """Whether the elements stand in C order without gaps, aligned."""
        return self.form.dense and self.usable

    def reformed(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str) -> Device:
        """Return the same memory with its elements otherwise."""
        return replace(self, form=form(shape, strides, dtype))

    def overlaps(self, other: Device) -> bool:
        """Return whether the spans of two arrays meet; interleaved ones count as meeting."""
        mine, others = self.form, other.form
        return (
            self.address + mine.low < other.address + others.high
            and other.address + others.low < self.address + mine.high
        )

    def transposed(self, order: tuple[int, ...]) -> Device:
        shape, strides = self.shape, self.strides
        return self.reformed(
            tuple(shape[axis] for axis in order),
            tuple(strides[axis] for axis in order),
            self.dtype,
        )

    def reshape(self, shape: tuple[int, ...]) -> Device:
        """Return a dense array in another shape."""
        return replace(self, form=form(shape, None, self.dtype))

    def __getitem__(self, index: tuple[int, ...]) -> Device:
        """Return the sub-array at indices of the first axes."""
        lead = len(index)
        moved = sum(i * step for i, step in zip(index, self.strides, strict=False))
        part = self.reformed(self.shape[lead:], self.strides[lead:], self.dtype)
        part.address += moved
        return part


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
    return ordered.reformed(
        (*ordered.shape[:lead], channels), (*ordered.strides[:lead], size), storage
    )


def device_loops(image: Device, out: Device) -> Iterator[tuple[Device, Device]]:
    """Yield pairs of shape ``(planes, rows, columns, channels)``; neither is empty."""
    joined = join(image.shape[:-3], image.strides[:-3], out.strides[:-3]) or [(1, (0, 0))]
    pair = [
        one.reformed(
            (*(extent for extent, _ in joined), *one.shape[-3:]),
            (*(steps[which] for _, steps in joined), *one.strides[-3:]),
            one.dtype,
        )
        for which, one in enumerate((image, out))
    ]
    for index in product(*(range(extent) for extent, _ in joined[:-1])):
        yield pair[0][index], pair[1][index]

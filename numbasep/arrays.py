"""Arrays in and out: what arrives is described, never copied; what leaves is of the same kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbasep.plan import checks
from numbasep.plan.layout import Layout, contiguous, merge
from numbasep.plan.spatial import Buffer

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class DeviceView:
    """Elements on a CUDA device: an array without its owner, as the kernels take it.

    owner: kept so that the memory outlives the view.
    """

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: Any

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "strides": self.strides,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "version": 3,
        }


def on_device(value: object) -> bool:
    """Return whether an array says that its elements are on a CUDA device."""
    return not isinstance(value, np.ndarray) and hasattr(value, "__cuda_array_interface__")


def describe(argument: str, value: object) -> Buffer:
    """Return what a plan needs to know of an array; refuse what is not one."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{argument}: a masked array arrived and its mask would be lost; pass .filled(value)"
        )
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"{argument}: expected an array, got {type(value).__name__}; pass numpy.asarray(...) "
            "of it, or an array on a CUDA device"
        )
    return Buffer(
        value.shape,
        value.strides,
        "uint8" if value.dtype == np.bool_ else checks.dtype(argument, value.dtype),
        bool(value.flags.aligned and value.dtype.isnative),
    )


def check_out(out: object, shape: tuple[int, ...], dtype: str) -> Array:
    """Return ``out`` if a result of this shape and dtype can be written into it."""
    if not isinstance(out, np.ndarray):
        raise TypeError(
            f"out: expected a numpy.ndarray like x, got {type(out).__name__}; "
            f"pass numpy.empty({shape}, {dtype!r}) or leave it out"
        )
    if out.shape != shape:
        raise ValueError(f"out: shape {out.shape} arrived and the result has {shape}; pass that")
    if out.dtype.name != dtype:
        raise ValueError(
            f"out: dtype {out.dtype} arrived and the result has {dtype}; pass that, or dtype="
        )
    if not out.flags.writeable:
        raise ValueError("out: the array is read-only; pass a writable one")
    if any(step == 0 and size > 1 for step, size in zip(out.strides, out.shape, strict=True)):
        raise ValueError(
            "out: elements of the array share memory (a broadcast view); pass a full one"
        )
    return out


def empty(shape: tuple[int, ...], dtype: str, order: tuple[int, ...]) -> Array:
    """Return a fresh array whose axes stand in ``order`` in memory, outermost first."""
    if order == tuple(range(len(shape))):
        return np.empty(shape, dtype)
    memory = np.empty([shape[axis] for axis in order], dtype)
    return memory.transpose(np.argsort(order))


def as_images(array: Array, layout: Layout, storage: str) -> Array:
    """Return a view of shape ``(*batch, rows, columns, channels)`` with elements of ``storage``."""
    ordered = array.transpose(layout.order)
    lead = len(layout.batch) + 2
    view = ordered.reshape(*ordered.shape[:lead], -1 if array.size else 1, copy=False)
    return view if view.dtype.name == storage else view.view(storage)


def loops(image: Array, out: Array) -> tuple[Array, Array]:
    """Return both with their batch axes joined: ``(*loops, planes, rows, columns, channels)``."""
    if image.ndim == 4:
        return image, out
    extents = merge(image.shape[:-3], image.strides[:-3], out.strides[:-3]) or (1,)
    return (
        image.reshape(*extents, *image.shape[-3:], copy=False),
        out.reshape(*extents, *out.shape[-3:], copy=False),
    )


def device_contiguous(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Return the strides of a C-ordered array."""
    return contiguous(shape, itemsize, tuple(range(len(shape))))

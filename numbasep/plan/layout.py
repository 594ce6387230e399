"""Which memory layouts the kernels take as they are, from shapes and strides alone.

The kernels see ``(planes, rows, columns, channels)`` with the last two dense. Any array whose
spatial axes stand like that in memory is only re-labelled: planar images (one channel), interleaved
ones (RGB in the last axis: three channels), Fortran-ordered ones (the spatial axes change roles).
What is left must be copied, and the plan says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True, slots=True)
class Layout:
    """How the axes of an array become ``(loops..., planes, rows, columns, channels)``.

    rows, columns: array axes with those roles; ``swapped`` where they are the caller's horizontal
        and vertical axis, in this order.
    interleaved: batch axes that make the channels, outermost first.
    batch: the other axes, in the array's order.
    copied: the array stands otherwise in memory and has to be copied into C order of
        ``batch + (rows, columns)``.
    """

    rows: int
    columns: int
    interleaved: tuple[int, ...]
    batch: tuple[int, ...]
    swapped: bool
    copied: bool

    @property
    def order(self) -> tuple[int, ...]:
        """The array's axes, outermost first, as they stand in memory."""
        return (*self.batch, self.rows, self.columns, *self.interleaved)

    @property
    def plain(self) -> bool:
        """Whether the axes stand in memory as they are counted."""
        return self.rows == len(self.batch) and self.columns == self.rows + 1


def dense_channels(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    itemsize: int,
    rows: int,
    columns: int,
) -> tuple[int, ...] | None:
    """Return the axes, outermost first, interleaved between neighbours along ``columns``.

    None where no set of axes fills the space between one element and the next along ``columns``.
    """
    others = [axis for axis in range(len(shape)) if axis not in (rows, columns) and shape[axis] > 1]
    pitch = itemsize
    inner: tuple[int, ...] = ()
    while shape[columns] > 1 and strides[columns] != pitch:
        nearest = next((axis for axis in others if strides[axis] == pitch), None)
        if nearest is None:
            return None
        pitch *= shape[nearest]
        inner = (nearest, *inner)
    return inner


def find(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    itemsize: int,
    axes: tuple[int, int],
    *,
    usable: bool,
) -> Layout:
    """Return the layout in which the kernels take an array.

    usable: the elements are aligned and in native byte order, so that they need no copy.
    """
    vertical, horizontal = axes
    if usable:
        for rows, columns, swapped in (
            (vertical, horizontal, False),
            (horizontal, vertical, True),
        ):
            inner = dense_channels(shape, strides, itemsize, rows, columns)
            if inner is not None:
                batch = tuple(
                    axis
                    for axis in range(len(shape))
                    if axis not in inner and axis not in (rows, columns)
                )
                return Layout(rows, columns, inner, batch, swapped, False)
    batch = tuple(axis for axis in range(len(shape)) if axis not in axes)
    return Layout(vertical, horizontal, (), batch, False, True)


def holds(layout: Layout, shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Return whether an array has a layout as it stands, so that the kernels can write into it."""
    pitch = itemsize
    for axis in (*reversed(layout.interleaved), layout.columns):
        if shape[axis] > 1 and strides[axis] != pitch:
            return False
        pitch *= shape[axis]
    return True


def contiguous(shape: tuple[int, ...], itemsize: int, order: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a fresh array whose axes stand in ``order``, outermost first."""
    strides = [0] * len(shape)
    pitch = itemsize
    for axis in reversed(order):
        strides[axis] = pitch
        pitch *= max(shape[axis], 1)
    return tuple(strides)


def join(extents: tuple[int, ...], *strides: tuple[int, ...]) -> list[tuple[int, tuple[int, ...]]]:
    """Join neighbouring axes that step as one in every array; axes of extent 1 vanish.

    Returns each axis's extent and its step in every array.
    """
    left: list[tuple[int, tuple[int, ...]]] = []
    for extent, steps in zip(extents, zip(*strides, strict=True), strict=True):
        if extent == 1:
            continue
        if left and all(
            outer == step * extent for outer, step in zip(left[-1][1], steps, strict=True)
        ):
            left[-1] = (left[-1][0] * extent, steps)
        else:
            left.append((extent, steps))
    return left


def merge(extents: tuple[int, ...], *strides: tuple[int, ...]) -> tuple[int, ...]:
    """Return the extents of axes after ``join``."""
    if prod(extents) == 0:
        return (0,)
    return tuple(extent for extent, _ in join(extents, *strides))

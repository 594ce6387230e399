"""Host images through a device: whole where they are small, in bands that overlap where not.

Two bands are under way at once, each in a slot of its own: page-locked memory for its image and its
result, and the same on the device. Three streams copy in, compute and copy out; the host gathers
the next band's rows, and scatters the last one's result, while they work:

    host      gather 0   gather 1     scatter 0, gather 2    scatter 1, gather 3
    copy in            0            1                      2
    compute               0            1                      2
    copy out                 0            1                      2

A band's image is copied over that of the band before it in its slot when that one is computed, and
its result when the host has scattered that one's.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbasep.cuda import launch, transfers
from numbasep.cuda.launch import View
from numbasep.plan import bands as planner
from numbasep.plan.bands import Band, Bands, Whole
from numbasep.plan.layout import contiguous

Array = NDArray[Any]

# Launches a plan between an image and a result on the device, on a stream.
Launcher = Callable[[Any, Any, Any, Any], None]

# Bytes of page-locked memory that a thread keeps for its next call on a device.
KEPT = 128 << 20


class Line:
    """What a thread keeps of one device: streams to copy in, compute and copy out, and memory."""

    def __init__(self) -> None:
        self.streams = tuple(transfers.stream() for _ in range(3))
        self.pinned: list[Array] = []

    def take(self, size: int) -> Array:
        """Return page-locked memory of at least a size: the least that is kept, or fresh."""
        large = [i for i, memory in enumerate(self.pinned) if memory.size >= size]
        if large:
            return self.pinned.pop(min(large, key=lambda i: self.pinned[i].size))
        return transfers.pinned(size)

    def keep(self, memory: Array) -> None:
        """Keep page-locked memory, the latest used first, as far as the bound goes."""
        self.pinned.insert(0, memory)
        while sum(one.size for one in self.pinned) > KEPT:
            self.pinned.pop()


class _Lines(threading.local):
    def __init__(self) -> None:
        self.of: dict[int, Line] = {}


_lines = _Lines()


def _line() -> Line:
    device = launch.current_device()
    if device not in _lines.of:
        _lines.of[device] = Line()
    return _lines.of[device]


class Slot:
    """Memory of one band under way. job: the band whose result is to be scattered."""

    def __init__(self, line: Line, sizes: tuple[int, int]) -> None:
        self.line = line
        self.pinned: list[Array] = []
        self.device = [transfers.memory(size) for size in sizes]
        self.uploaded, self.computed, self.downloaded = (transfers.event() for _ in range(3))
        self.job: tuple[tuple[int, ...], Band] | None = None

    def pin(self, sizes: tuple[int, int]) -> None:
        """Take page-locked memory; what was taken before one is refused is given back."""
        for size in sizes:
            self.pinned.append(self.line.take(size))

    def release(self) -> None:
        """Give page-locked memory back."""
        for memory in self.pinned:
            self.line.keep(memory)
        self.pinned = []


def run(
    problem: Whole,
    images: Array,
    outs: Array,
    launcher: Launcher,
    stream: Any,
    bands: Bands | None,
) -> None:
    """Compute host images on the device.

    images: (..., planes, H, W, C) and outs: (..., planes, OH, OW, C), or with C before H and OH as
        ``problem`` says, of its dtypes and of any strides; they do not overlap. The planes are
        ``problem``'s.
    launcher: called with a plan, an image and a result on the device, and a stream.
    bands: None for the whole at once. Smaller ones are tried where the device's memory runs out.
    """
    refused: Bands | None = None
    asked = bands
    while True:
        try:
            if bands is None:
                _whole(problem, images, outs, launcher, stream)
            else:
                _banded(problem, images, outs, launcher, stream, bands)
            break
        except Exception as error:
            if not transfers.out_of_memory(error):
                raise
            least = planner.smaller(problem, bands)
            if least is None:
                raise MemoryError(
                    f"x: an image of {problem.y.size} x {problem.columns} and its result need "
                    f"{planner.needed(problem, 1, 1):,} bytes on the device for one row of the "
                    f"result, and {transfers.free():,} are free; free some, or pass backend='cpu'"
                ) from error
            refused, bands = refused or asked or Bands(problem.planes, problem.y.out), least
    if refused is not None:
        assert bands is not None
        size, fits = (
            one.slots * planner.needed(problem, one.planes, one.rows) for one in (refused, bands)
        )
        warnings.warn(
            f"x: the device had no memory for {size:,} bytes, {refused} of the result at a time; "
            f"it was computed {bands} at a time, {fits:,} bytes, with the same result",
            RuntimeWarning,
            stacklevel=_depth(),
        )


def _depth() -> int:
    """Return how many frames above the one that called this our caller's caller outside is."""
    depth, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("numbasep."):
        depth, frame = depth + 1, frame.f_back
    return depth


def _whole(problem: Whole, images: Array, outs: Array, launcher: Launcher, stream: Any) -> None:
    for index in np.ndindex(images.shape[:-4]):
        out = outs[index]
        source = launch.to_device(np.ascontiguousarray(images[index]), stream)
        target = launch.empty(out.shape, out.dtype, stream)
        launcher(problem.plan, source, target, stream)
        launch.to_host(target, out, stream)


def _banded(
    problem: Whole,
    images: Array,
    outs: Array,
    launcher: Launcher,
    stream: Any,
    bands: Bands,
) -> None:
    line = _line()
    copying_in, computing, copying_out = line.streams
    handle = launch.stream_handle(stream)
    if handle > 1 and not launch.SIMULATOR:
        # On the default stream nothing would overlap: it waits for the others, and they for it.
        computing = transfers.adopted(handle)
    sizes = planner.sizes(problem, bands.planes, bands.rows)
    slots: list[Slot] = []
    try:
        for _ in range(bands.slots):
            slots.append(Slot(line, sizes))
            slots[-1].pin(sizes)
        for number, (index, band) in enumerate(_jobs(problem, images, bands)):
            slot = slots[number % len(slots)]
            transfers.synchronize(slot.uploaded)
            taken = _gather(images[index], problem.axis, band, slot.pinned[0])
            transfers.wait(copying_in, slot.computed)
            transfers.to_device(slot.device[0], slot.pinned[0][:taken], copying_in)
            transfers.record(slot.uploaded, copying_in)
            transfers.wait(computing, slot.uploaded)
            transfers.wait(computing, slot.downloaded)
            source, target = _views(problem.axis, band, images, outs, slot)
            transfers.start(computing, partial(launcher, band.problem, source, target))
            transfers.record(slot.computed, computing)
            _scatter(outs, problem.axis, slot)
            transfers.wait(copying_out, slot.computed)
            made = prod(target.shape) * target.itemsize
            transfers.to_host(slot.pinned[1][:made], slot.device[1], copying_out)
            transfers.record(slot.downloaded, copying_out)
            slot.job = index, band
        # The older one first.
        for behind in range(1, len(slots) + 1):
            _scatter(outs, problem.axis, slots[(number + behind) % len(slots)])
    finally:
        # Whatever happened, nothing reads or writes memory that is let go.
        for one in (copying_in, computing, copying_out):
            with suppress(Exception):
                transfers.finish(one)
        for slot in slots:
            slot.release()


def _jobs(problem: Whole, images: Array, bands: Bands) -> Iterator[tuple[tuple[int, ...], Band]]:
    for index in np.ndindex(images.shape[:-4]):
        for band in planner.cut(problem, bands):
            yield index, band


def _gather(image: Array, axis: int, band: Band, pinned: Array) -> int:
    """Put a band's image rows into page-locked memory; return their bytes."""
    planes = image[band.first : band.last]
    staged = _staged(pinned, _shape(planes, axis, band.y.size), image.dtype)
    filled = 0
    for piece in band.pieces:
        stop = piece.stop if piece.stop >= 0 else None
        rows = _rows(planes, axis, slice(piece.start, stop, piece.step))
        np.copyto(_rows(staged, axis, slice(filled, filled + len(piece))), rows)
        filled += len(piece)
    return staged.nbytes


def _rows(array: Array, axis: int, chosen: slice) -> Array:
    return array[(slice(None),) * axis + (chosen,)]


def _shape(array: Array, axis: int, rows: int) -> tuple[int, ...]:
    """Return the shape of an array's planes with other rows."""
    return (*array.shape[:axis], rows, *array.shape[axis + 1 :])


def _scatter(outs: Array, axis: int, slot: Slot) -> None:
    """Wait for the result of a slot's band, and put it where it belongs."""
    if slot.job is None:
        return
    index, band = slot.job
    transfers.synchronize(slot.downloaded)
    target = _rows(outs[index][band.first : band.last], axis, slice(band.begin, band.end))
    np.copyto(target, _staged(slot.pinned[1], target.shape, outs.dtype))
    slot.job = None


def _staged(pinned: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return the elements of a dense array in page-locked memory, in native byte order."""
    kind = dtype.newbyteorder("=")
    found: Array = pinned[: prod(shape) * kind.itemsize].view(kind).reshape(shape)
    return found


def _views(axis: int, band: Band, images: Array, outs: Array, slot: Slot) -> tuple[View, View]:
    """Return the band's image and result on the device, dense."""
    source, target = (
        View(
            memory.address,
            shape := (band.last - band.first, *_shape(array, array.ndim - 4 + axis, rows)[-3:]),
            contiguous(shape, array.itemsize, (0, 1, 2, 3)),
            memory.owner,
            array.itemsize,
        )
        for memory, array, rows in zip(
            slot.device, (images, outs), (band.y.size, band.y.out), strict=True
        )
    )
    return source, target

"""Copies between arrays of one device: from any strides to any strides, and from dtype to dtype.

``target[i] = convert(source[i])``, one element a thread at a time, over axes joined where both
arrays step through them as one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import gcd
from typing import Any

import numpy as np

from numbasep.cuda.elements import loader, raw_type, storer
from numbasep.cuda.launch import VERSION, Kernel, cuda, types, upload, view
from numbasep.plan.layout import join
from numbasep.views import Device, form, itemsize_of

THREADS = 256
MOST_BLOCKS = 4096

# Elements that are copied as they are travel as numbers of their size.
RAW = {1: "uint8", 2: "uint16", 4: "uint32", 8: "uint64"}


@lru_cache
def copy_kernel(storage: str, output: str, axes: int) -> Kernel:
    """Return the kernel that copies, or converts, real dtypes over a number of axes."""
    pointers = [types.CPointer(raw_type(name)) for name in (storage, output)]
    steps = types.UniTuple(types.int64, axes)
    return Kernel(
        _copy(storage, output, axes), [*pointers, types.int64, steps, steps, steps], THREADS
    )


def _copy(storage: str, output: str, axes: int) -> Callable[..., None]:
    load, store = loader(storage, output), storer(output, output)
    version = VERSION

    def kernel(
        source: Any, target: Any, count: int, shape: Any, source_steps: Any, target_steps: Any
    ) -> None:
        _ = version
        index = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        while index < count:
            rest = index
            read = write = 0
            for back in range(axes):
                axis = axes - 1 - back
                place = rest % shape[axis]
                rest = rest // shape[axis]
                read += place * source_steps[axis]
                write += place * target_steps[axis]
            store(target, write, load(source, read))
            index += cuda.blockDim.x * cuda.gridDim.x

    return kernel


def copy(source: Device, target: Device, stream: Any = None) -> None:
    """Copy the elements of an array into one of the same shape, converted where dtypes differ.

    The arrays do not overlap. A target of a narrower dtype is rounded to.
    """
    if 0 in target.shape:
        return
    shape, steps = target.shape, (source.strides, target.strides)
    if source.dtype == target.dtype:
        # The widest numbers that every address is a multiple of.
        whole = itemsize_of(target.dtype)
        size = gcd(whole, 8, source.address, target.address, *steps[0], *steps[1])
        names = RAW[size], RAW[size]
        if size < whole:
            shape = (*shape, whole // size)
            steps = (*steps[0], size), (*steps[1], size)
    else:
        names = source.dtype, target.dtype
    sizes = [itemsize_of(name) for name in names]
    # Neighbouring threads write neighbours.
    order = sorted(range(len(shape)), key=lambda axis: -abs(steps[1][axis]))
    joined = join(
        tuple(shape[axis] for axis in order),
        *(tuple(each[axis] for axis in order) for each in steps),
    ) or [(1, (0, 0))]
    count = 1
    for extent, _ in joined:
        count *= extent
    copy_kernel(*names, len(joined)).launch(
        min(-(-count // THREADS), MOST_BLOCKS),
        THREADS,
        0,
        stream,
        (
            view(source).pointer(raw_type(names[0])),
            view(target).pointer(raw_type(names[1])),
            np.int64(count),
            *(np.int64(extent) for extent, _ in joined),
            *(np.int64(each[0] // sizes[0]) for _, each in joined),
            *(np.int64(each[1] // sizes[1]) for _, each in joined),
        ),
    )


def fill_zero(target: Device, stream: Any = None) -> None:
    """Write zeros."""
    zero = view(upload(np.zeros(2, np.float64), stream))
    everywhere = form(target.shape, (0,) * len(target.shape), target.dtype)
    copy(Device(zero.address, everywhere, target.device, zero), target, stream)

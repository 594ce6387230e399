"""The plan of ``separable_conv2d``: every check and every decision, from shapes and dtypes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import isfinite, prod

import numpy as np

from numbasep import boundary as boundaries
from numbasep.plan import checks
from numbasep.plan.geometry import Axis, SpatialPlan, check_extent
from numbasep.plan.layout import Layout, contiguous, find, holds

MODES = ("full", "valid", "same")
BACKENDS = ("cpu", "cuda")

# Largest integers that each accumulator holds exactly.
EXACT = {"float32": 2**24, "float64": 2**53, "int64": 2**63 - 1}


@dataclass(frozen=True, slots=True)
class Buffer:
    """What a plan knows of an array: where its elements are, never what they are.

    usable: aligned and in native byte order.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    usable: bool


@dataclass(frozen=True, slots=True)
class TapsInfo:
    """What a plan knows of the taps. ``gain`` bounds integer sums; 0 for taps of other kinds."""

    shape: tuple[int, int]
    rank: int
    direct: bool
    kind: str
    gain: int


@dataclass(frozen=True, slots=True)
class Spatial:
    """A whole call of ``separable_conv2d``.

    problem: what the backend computes, on ``layout`` of the image.
    shape, dtype, order: of the result; ``order`` is its axes as they stand in memory.
    largest: the largest ``|x|`` for which 64-bit sums are exact, to be checked against the data;
        None where the dtype of the image proves it.
    """

    problem: SpatialPlan
    layout: Layout
    shape: tuple[int, ...]
    dtype: str
    order: tuple[int, ...]
    largest: int | None

    def fresh_strides(self, itemsize: int) -> tuple[int, ...]:
        """Return the strides of a fresh result."""
        return contiguous(self.shape, itemsize, self.order)

    def takes(self, out: Buffer) -> bool:
        """Return whether the kernels can write into ``out`` as it stands."""
        itemsize = np.dtype(out.dtype).itemsize
        return out.usable and holds(self.layout, out.shape, out.strides, itemsize)


def axis(mode: str, size: int, taps: int, stride: int, dilation: int) -> Axis:
    """Return one axis of a convolution as a correlation with flipped taps.

    Output ``o`` is sample ``first + o * stride`` of the full convolution, which starts with the
    first image element under the kernel's first tap.
    """
    extent = (taps - 1) * dilation + 1
    if mode == "full":
        first, samples = 0, size + extent - 1
    elif mode == "same":
        first, samples = (extent - 1) // 2, size
    else:
        first, samples = min(size, extent) - 1, abs(size - extent) + 1
    out = -(-samples // stride)
    # What no second output or tap uses may be any number; kernels have 64 bits for it.
    return Axis(
        size,
        out,
        taps,
        stride if out > 1 else 1,
        dilation if taps > 1 else 1,
        first - (extent - 1),
    )


@lru_cache(maxsize=1024)
def plan(
    image: Buffer,
    taps: TapsInfo,
    mode: str,
    boundary: str,
    fillvalue: complex,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    axes: tuple[int, int],
    dtype: str | None,
) -> Spatial:
    """Plan a call. Arguments have their types; here they are checked against one another."""
    vertical, horizontal = axes
    extents = [check_extent(k, d) for k, d in zip(taps.shape, dilation, strict=True)]
    sizes = [image.shape[vertical], image.shape[horizontal]]
    if mode != "same" and 0 in sizes:
        raise ValueError(
            f"x: the image is empty, {sizes[0]} x {sizes[1]}; mode {mode!r} needs at least one "
            "element along each spatial axis, mode 'same' returns it empty"
        )
    smaller = [size < extent for size, extent in zip(sizes, extents, strict=True)]
    larger = [size > extent for size, extent in zip(sizes, extents, strict=True)]
    if mode == "valid" and any(smaller) and any(larger):
        raise ValueError(
            f"mode: 'valid' needs the image, {sizes[0]} x {sizes[1]}, to be at least as large as "
            f"the kernel, {extents[0]} x {extents[1]}, along both axes (or the reverse); use "
            "mode 'same' or 'full'"
        )
    if mode == "valid":
        # Nothing outside the image counts; where the kernel is the larger, its rest meets zeros.
        boundary, fillvalue = "fill", 0
    fillvalue = _fill(fillvalue, image.dtype, boundary)
    compute, output, largest = dtypes(image.dtype, taps, dtype)

    y, x = (
        axis(mode, size, k, s, d)
        for size, k, s, d in zip(sizes, taps.shape, stride, dilation, strict=True)
    )
    shape = list(image.shape)
    shape[vertical], shape[horizontal] = y.out, x.out
    itemsize = np.dtype(image.dtype).itemsize
    layout = find(image.shape, image.strides, itemsize, axes, usable=image.usable)
    if layout.swapped:
        y, x = x, y
    channels = prod(image.shape[a] for a in layout.interleaved)
    storage = image.dtype
    if storage in checks.COMPLEXES and taps.kind != "c" and fillvalue == 0 and output == storage:
        # Real taps act on real and imaginary parts alike: two channels of a real image.
        storage = compute = output = {"complex64": "float32", "complex128": "float64"}[storage]
        channels *= 2
    problem = SpatialPlan(
        planes=prod(image.shape[a] for a in layout.batch),
        channels=channels,
        y=y,
        x=x,
        rank=taps.rank,
        direct=taps.direct,
        boundary=boundaries.NAMES.index(boundary),
        fillvalue=fillvalue,
        storage=storage,
        compute=compute,
        output=output,
    )
    result = (
        {"float32": "complex64", "float64": "complex128"}[output]
        if (image.dtype in checks.COMPLEXES and storage != image.dtype)
        else output
    )
    return Spatial(problem, layout, tuple(shape), result, layout.order, largest)


def _fill(fillvalue: complex, storage: str, boundary: str) -> complex:
    if boundary != "fill":
        if fillvalue != 0:
            raise ValueError(
                f"fillvalue: {fillvalue!r} has no meaning for boundary {boundary!r}; pass "
                "boundary='fill' or leave fillvalue out"
            )
        return 0
    if isinstance(fillvalue, complex) and storage not in checks.COMPLEXES:
        raise ValueError(
            f"fillvalue: {fillvalue!r} is complex and the image is {storage}; pass a real number "
            "or a complex image"
        )
    if storage in checks.INTEGERS:
        limits = np.iinfo(storage)
        real = fillvalue.real
        if not isfinite(real) or real != int(real) or not limits.min <= real <= limits.max:
            raise ValueError(
                f"fillvalue: {fillvalue!r} is not a value of {storage}, the image's dtype; pass an "
                f"integer from {limits.min} to {limits.max}, or convert the image to float32"
            )
        return int(real)
    if isinstance(fillvalue, int):
        return float(fillvalue)
    return fillvalue


def dtypes(storage: str, taps: TapsInfo, dtype: str | None) -> tuple[str, str, int | None]:
    """Return the accumulator's dtype, the result's, and the largest exact ``|x|`` if not proven."""
    wide = storage in ("int32", "uint32", "int64", "uint64", "float64", "complex128")
    if taps.kind == "c" or storage in checks.COMPLEXES:
        natural = "complex128" if wide else "complex64"
        if dtype is not None and dtype not in checks.COMPLEXES:
            raise ValueError(
                f"dtype: {dtype} arrived and the result is complex; pass a complex dtype, and take "
                ".real or abs() of the result"
            )
        output = dtype or natural
        return max(natural, output, key=("complex64", "complex128").index), output, None
    if dtype in checks.COMPLEXES:
        raise ValueError(
            f"dtype: {dtype} arrived and the result is real; leave it out and convert the result"
        )
    if storage in checks.INTEGERS and taps.kind == "i":
        return _exact(storage, taps.gain, dtype)
    natural = "float64" if wide or dtype == "float64" else "float32"
    return natural, dtype or (storage if storage in checks.FLOATS else natural), None


def _exact(storage: str, gain: int, dtype: str | None) -> tuple[str, str, int | None]:
    """Integer images and integer taps: no rounding before the last one, into ``dtype``."""
    limits = np.iinfo(storage)
    bound = gain * max(limits.max, -limits.min)
    output = dtype or ("int32" if limits.bits <= 16 else "int64")
    if dtype is None and limits.bits <= 16 and bound > np.iinfo(np.int32).max:
        raise ValueError(
            f"kernel: integer taps of gain {gain} on a {storage} image can exceed int32, the "
            "result's dtype; pass dtype='int64' or dtype='float64', or use float taps"
        )
    for compute, exact in EXACT.items():
        if bound <= exact:
            return compute, output, None
    return "int64", output, EXACT["int64"] // gain

"""Gradients of the depthwise convolution on CUDA.

To the input, a thread gathers the gradient of one element of the image: of each tap the output that
read it, if the stride has one there. With a padding that copies, that of the padded image, which a
second launch folds.

To the weight, a block adds up a slice of all pixels for ``TAPS`` taps: threads take every so many
pixels, ascending, their sums are added in pairs, and a second launch adds slices, ascending::

    threads    p0 p1 p2 p3 p0 p1 ...     one filter (NCHW), or side by side along filters (NHWC)
               \\/    \\/
                 \\__/                   shared memory, one sum a tap and thread
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbasep import boundary as boundaries
from numbasep.cuda import launch
from numbasep.cuda.elements import loader, multiply_add, numba_type, raw_type, storer, zero
from numbasep.cuda.launch import VERSION, Kernel, cuda, device_function, types
from numbasep.cuda.primitives import i32, i64, unroll
from numbasep.plan import gradients as planner
from numbasep.plan.channelwise import ITEMSIZE, DepthwisePlan
from numbasep.plan.gradients import TAPS, SumTile

Array = NDArray[Any]

map_index = device_function(boundaries.map_index)

THREADS = 256


@lru_cache
def input_kernel(planar: bool, storage: str, compute: str, output: str) -> Kernel:
    """Return the kernel of a layout and three dtypes."""
    pointers = [types.CPointer(raw_type(name)) for name in (storage, output, compute)]
    return Kernel(
        _input(planar, storage, compute, output),
        [*pointers, types.int64, *[types.int32] * 14],
        THREADS,
        4,
    )


def _input(planar: bool, storage: str, compute: str, output: str) -> Callable[..., None]:
    load, load_tap, store = (
        loader(storage, compute),
        loader(compute, compute),
        storer(compute, output),
    )
    step, nothing, version = multiply_add(compute), zero(compute), VERSION

    def kernel(
        grad: Any,
        out: Any,
        weight: Any,
        count: int,
        channels: int,
        multiplier: int,
        height: int,
        width: int,
        out_height: int,
        out_width: int,
        first_y: int,
        first_x: int,
        stride_y: int,
        stride_x: int,
        dilation_y: int,
        dilation_x: int,
        taps_y: int,
        taps_x: int,
    ) -> None:
        # A version below 0 never is; its place is in the key of Numba's cache.
        index = i64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
        index = i64(index) if version >= 0 else count
        filters = i64(channels) * multiplier
        while index < count:
            rest = i64(index)
            if planar:
                x = i32(rest % width)
                rest = i64(rest // width)
                y = i32(rest % height)
                rest = i64(rest // height)
                c = i32(rest % channels)
                n = i64(rest // channels)
            else:
                c = i32(rest % channels)
                rest = i64(rest // channels)
                x = i32(rest % width)
                rest = i64(rest // width)
                y = i32(rest % height)
                n = i64(rest // height)
            total = nothing
            for m in range(multiplier):
                f = i64(c) * multiplier + m
                for ky in range(taps_y):
                    down = i32(y + first_y - ky * dilation_y)
                    oy = i32(down // stride_y)
                    if down >= 0 and oy * stride_y == down and oy < out_height:
                        for kx in range(taps_x):
                            across = i32(x + first_x - kx * dilation_x)
                            ox = i32(across // stride_x)
                            if across >= 0 and ox * stride_x == across and ox < out_width:
                                if planar:
                                    at = ((n * filters + f) * out_height + oy) * out_width + ox
                                else:
                                    at = ((n * out_height + oy) * out_width + ox) * filters + f
                                tap = load_tap(weight, (f * taps_y + ky) * taps_x + kx)
                                total = step(total, tap, load(grad, at))
            store(out, index, total)
            index += i64(cuda.blockDim.x) * cuda.gridDim.x

    return kernel


@lru_cache
def fold_kernel(planar: bool, compute: str, output: str) -> Kernel:
    """Return the kernel that adds up what the padding copied."""
    return Kernel(
        _fold(planar, compute, output),
        [
            *[types.CPointer(raw_type(name)) for name in (compute, output)],
            *[types.CPointer(types.int32)] * 4,
            types.int64,
            *[types.int32] * 5,
        ],
        THREADS,
        4,
    )


def _fold(planar: bool, compute: str, output: str) -> Callable[..., None]:
    load, store = loader(compute, compute), storer(compute, output)
    nothing, version = zero(compute), VERSION

    def kernel(
        padded: Any,
        out: Any,
        starts_y: Any,
        places_y: Any,
        starts_x: Any,
        places_x: Any,
        count: int,
        channels: int,
        height: int,
        width: int,
        padded_height: int,
        padded_width: int,
    ) -> None:
        index = i64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
        index = i64(index) if version >= 0 else count
        while index < count:
            rest = i64(index)
            c = i64(0)
            if not planar:
                c = i64(rest % channels)
                rest = i64(rest // channels)
            x = i32(rest % width)
            rest = i64(rest // width)
            y = i32(rest % height)
            n = i64(rest // height)
            total = nothing
            for i in range(starts_y[y], starts_y[y + 1]):
                line = (n * padded_height + places_y[i]) * padded_width
                for j in range(starts_x[x], starts_x[x + 1]):
                    at = line + places_x[j]
                    total += load(padded, at if planar else at * channels + c)
            store(out, index, total)
            index += i64(cuda.blockDim.x) * cuda.gridDim.x

    return kernel


@lru_cache
def weight_kernel(
    planar: bool, ones: bool, boundary: int, storage: str, compute: str, threads: int
) -> Kernel:
    """Return the kernel of a layout, a boundary and two dtypes; ones: for an image of ones."""
    return Kernel(
        _weight(planar, ones, boundary, storage, compute),
        [
            *[types.CPointer(raw_type(name)) for name in (storage, storage, compute)],
            types.int64,
            *[types.int32] * 18,
        ],
        threads,
        # More blocks leave too few registers for the sums of a thread.
        min(16, max(768 // threads, 1)),
    )


def _weight(
    planar: bool, ones: bool, boundary: int, storage: str, compute: str
) -> Callable[..., None]:
    load, store = loader(storage, compute), storer(compute, compute)
    step, nothing, element = multiply_add(compute), zero(compute), numba_type(compute)
    one, version = np.dtype(compute).type(1), VERSION

    def kernel(
        image: Any,
        grad: Any,
        sums: Any,
        pixels: int,
        slices: int,
        blocks_f: int,
        blocks_k: int,
        lanes: int,
        channels: int,
        multiplier: int,
        height: int,
        width: int,
        out_height: int,
        out_width: int,
        origin_y: int,
        origin_x: int,
        stride_y: int,
        stride_x: int,
        dilation_y: int,
        dilation_x: int,
        taps_y: int,
        taps_x: int,
    ) -> None:
        shared = cuda.shared.array(0, element)
        t, threads = i32(cuda.threadIdx.x), i32(cuda.blockDim.x)
        block = i64(cuda.blockIdx.x) if version >= 0 else pixels
        first_tap = i32(block % blocks_k) * TAPS
        block = i64(block // blocks_k)
        lane, share = i32(t % lanes), i32(threads // lanes)
        f = i32(block % blocks_f) * lanes + lane
        part = i64(block // blocks_f)
        filters, taps = i64(channels) * multiplier, i32(taps_y * taps_x)
        c = i64(f // multiplier)
        p = i64(part * pixels // slices) + i64(t // lanes)
        end = i64((part + 1) * pixels // slices) if f < filters else i64(0)

        total = cuda.local.array(TAPS, element)
        for j in range(TAPS):
            unroll()
            total[j] = nothing
        while p < end:
            ox = i32(p % out_width)
            rest = i64(p // out_width)
            oy = i32(rest % out_height)
            n = i64(rest // out_height)
            if planar:
                at = ((n * filters + f) * out_height + oy) * out_width + ox
            else:
                at = p * filters + f
            g = load(grad, at)
            for j in range(TAPS):
                unroll()
                value = nothing
                if ones:
                    value = one
                else:
                    k = i32(min(first_tap + j, taps - 1))
                    ky = i32(k // taps_x)
                    y = i32(map_index(oy * stride_y + origin_y + ky * dilation_y, height, boundary))
                    x = i32(
                        map_index(
                            ox * stride_x + origin_x + (k - ky * taps_x) * dilation_x, width,
                            boundary,
                        )
                    )  # fmt: skip
                    if y >= 0 and x >= 0:
                        if planar:
                            place = ((n * channels + c) * height + y) * width + x
                        else:
                            place = ((n * height + y) * width + x) * channels + c
                        value = load(image, place)
                total[j] = step(total[j], g, value)
            p += share
        for j in range(TAPS):
            unroll()
            shared[j * threads + t] = total[j]
        cuda.syncthreads()
        half = i32(threads // 2)
        while half >= lanes:
            if t < half:
                for j in range(TAPS):
                    unroll()
                    at_j = i32(j * threads + t)
                    shared[at_j] = shared[at_j] + shared[i32(at_j + half)]
            cuda.syncthreads()
            half = i32(half // 2)
        if t < lanes and f < filters:
            for j in range(TAPS):
                unroll()
                if first_tap + j < taps:
                    place = (part * filters + f) * taps + first_tap + j
                    store(sums, place, shared[i32(j * threads + t)])

    return kernel


@lru_cache
def total_kernel(compute: str, output: str) -> Kernel:
    """Return the kernel that adds slices."""
    return Kernel(
        _total(compute, output),
        [
            *[types.CPointer(raw_type(name)) for name in (compute, output)],
            types.int64,
            types.int32,
        ],
        THREADS,
        4,
    )


def _total(compute: str, output: str) -> Callable[..., None]:
    load, store = loader(compute, compute), storer(compute, output)
    nothing, version = zero(compute), VERSION

    def kernel(sums: Any, out: Any, count: int, slices: int) -> None:
        index = i64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
        index = i64(index) if version >= 0 else count
        while index < count:
            total = nothing
            for part in range(slices):
                total += load(sums, i64(part) * count + index)
            store(out, index, total)
            index += i64(cuda.blockDim.x) * cuda.gridDim.x

    return kernel


def _grid(count: int) -> tuple[int, int]:
    """Return the blocks, and the threads of one, for so many elements."""
    threads = min(THREADS, -(-count // 32) * 32)
    return min(-(-count // threads), 1 << 16), threads


def run_input_gradient(
    plan: DepthwisePlan, grad: Any, weight: Array, out: Any, stream: Any = None
) -> None:
    """Write the gradient to the input into ``out``; see ``plan.gradients``."""
    planar, copied = plan.layout == "NCHW", plan.boundary != boundaries.FILL
    (top, bottom), (left, right) = planner.padded(plan)
    y, x, size = plan.y, plan.x, (bottom - top, right - left)
    target, output = out, plan.output
    if copied:
        shape = (plan.channels, *size) if planar else (*size, plan.channels)
        target, output = launch.empty((plan.batch, *shape), plan.compute, stream), plan.compute
    count = plan.batch * plan.channels * size[0] * size[1]
    input_kernel(planar, plan.storage, plan.compute, output).launch(
        *_grid(count),
        0,
        stream,
        (
            launch.view(grad).pointer(raw_type(plan.storage)),
            launch.view(target).pointer(raw_type(output)),
            launch.view(launch.upload(weight, stream)).pointer(raw_type(plan.compute)),
            np.int64(count),
            *map(
                np.int32,
                (
                    plan.channels, plan.multiplier, *size, y.out, x.out, top - y.origin,
                    left - x.origin, y.stride, x.stride, y.dilation, x.dilation, y.taps, x.taps,
                ),
            ),
        ),
    )  # fmt: skip
    if not copied:
        return
    count = plan.batch * plan.channels * y.size * x.size
    tables = []
    for axis in (y, x):
        places = planner.folds(axis, plan.boundary)
        starts = np.cumsum([0, *map(len, places)])
        for table in (starts, np.concatenate(places)):
            kept = launch.upload(np.ascontiguousarray(table, np.int32), stream)
            tables.append(launch.view(kept).pointer("int32"))
    fold_kernel(planar, plan.compute, plan.output).launch(
        *_grid(count),
        0,
        stream,
        (
            launch.view(target).pointer(raw_type(plan.compute)),
            launch.view(out).pointer(raw_type(plan.output)),
            *tables,
            np.int64(count),
            *map(np.int32, (plan.channels, y.size, x.size, *size)),
        ),
    )


def run_weight_gradient(
    plan: DepthwisePlan,
    image: Any,
    grad: Any,
    out: Any,
    stream: Any = None,
    tile: SumTile | None = None,
) -> None:
    """Write the gradient to the weight into ``out``; see ``plan.gradients``.

    tile: what a block computes, in place of ``sum_tile(plan)``.
    """
    tile = tile or planner.sum_tile(plan)
    y, x, taps = plan.y, plan.x, plan.y.taps * plan.x.taps
    pixels = plan.batch * y.out * x.out
    slices = tile.slices if pixels else 0
    sums = launch.empty((max(slices, 1), plan.filters, taps), plan.compute, stream)
    blocks_f, blocks_k = -(-plan.filters // tile.lanes), -(-taps // TAPS)
    if slices:
        source = launch.view(grad if image is None else image)
        weight_kernel(
            plan.layout == "NCHW", image is None, plan.boundary, plan.storage, plan.compute,
            tile.threads,
        ).launch(
            slices * blocks_f * blocks_k,
            tile.threads,
            TAPS * tile.threads * ITEMSIZE[plan.compute],
            stream,
            (
                source.pointer(raw_type(plan.storage)),
                launch.view(grad).pointer(raw_type(plan.storage)),
                launch.view(sums).pointer(raw_type(plan.compute)),
                np.int64(pixels),
                *map(
                    np.int32,
                    (
                        slices, blocks_f, blocks_k, tile.lanes, plan.channels, plan.multiplier,
                        y.size, x.size, y.out, x.out, y.origin, x.origin, y.stride, x.stride,
                        y.dilation, x.dilation, y.taps, x.taps,
                    ),
                ),
            ),
        )  # fmt: skip
    add_slices(sums, out, slices, plan.filters * taps, plan.compute, plan.output, stream)


def add_slices(
    sums: Any, out: Any, slices: int, count: int, compute: str, output: str, stream: Any
) -> None:
    """Write the sum of ``slices`` arrays of ``count`` elements."""
    total_kernel(compute, output).launch(
        *_grid(count),
        0,
        stream,
        (
            launch.view(sums).pointer(raw_type(compute)),
            launch.view(out).pointer(raw_type(output)),
            np.int64(count),
            np.int32(slices),
        ),
    )

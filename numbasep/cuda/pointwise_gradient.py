"""The weight gradient of the pointwise convolution on CUDA.

``out[o, c] = sum_p grad[o, p] * image[c, p]``

A block computes a tile of outputs by channels over a slice of all pixels, ``depth`` of them at a
time in shared memory; a thread holds 4 x 4 sums. A second launch adds the slices, ascending.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from numbasep.cuda import launch
from numbasep.cuda.depthwise_gradient import add_slices
from numbasep.cuda.elements import loader, multiply_add, numba_type, raw_type, storer, zero
from numbasep.cuda.launch import VERSION, Kernel, cuda, types
from numbasep.cuda.primitives import i32, i64, load_vector, unroll
from numbasep.plan import gradients as planner
from numbasep.plan.channelwise import ITEMSIZE, PointwisePlan
from numbasep.plan.gradients import MatrixTile

SIDE = 4
SUMS = SIDE * SIDE


@lru_cache
def matrix_kernel(
    planar: bool, rows: int, columns: int, depth: int, storage: str, compute: str
) -> Kernel:
    """Return the kernel of a layout, a tile and two dtypes."""
    return Kernel(
        _matrix(planar, rows, columns, depth, storage, compute),
        [
            *[types.CPointer(raw_type(name)) for name in (storage, storage, compute)],
            *[types.int64] * 2,
            *[types.int32] * 5,
        ],
        rows * columns // SIDE**2,
        2,
    )


def _matrix(
    planar: bool, rows: int, columns: int, depth: int, storage: str, compute: str
) -> Callable[..., None]:
    load, store = loader(storage, compute), storer(compute, compute)
    step, nothing, element = multiply_add(compute), zero(compute), numba_type(compute)
    load_numbers = load_vector(SIDE, element)
    version, image_at, across = VERSION, depth * rows, columns // SIDE

    def kernel(
        image: Any,
        grad: Any,
        sums: Any,
        pixels: int,
        plane: int,
        channels: int,
        outputs: int,
        tiles_c: int,
        tiles_o: int,
        slices: int,
    ) -> None:
        shared = cuda.shared.array(0, element)
        t, threads = i32(cuda.threadIdx.x), i32(cuda.blockDim.x)
        block = i64(cuda.blockIdx.x) if version >= 0 else pixels
        first_c = i64(block % tiles_c) * columns
        block = i64(block // tiles_c)
        first_o = i64(block % tiles_o) * rows
        part = i64(block // tiles_o)
        p = i64(part * pixels // slices)
        end = i64((part + 1) * pixels // slices)
        down, right = i32(i32(t // across) * SIDE), i32(i32(t % across) * SIDE)
        total = cuda.local.array(SUMS, element)
        for j in range(SIDE * SIDE):
            unroll()
            total[j] = nothing
        while p < end:
            s = i32(t)
            while s < depth * rows:
                k = i32(s % depth) if planar else i32(s // rows)
                r = i32(s // depth) if planar else i32(s % rows)
                pixel, o = i64(p + k), i64(first_o + r)
                value = nothing
                if pixel < end and o < outputs:
                    n = i64(pixel // plane)
                    if planar:
                        value = load(grad, (n * outputs + o) * plane + (pixel - n * plane))
                    else:
                        value = load(grad, pixel * outputs + o)
                shared[i32(k * rows + r)] = value
                s = i32(s + threads)
            s = i32(t)
            while s < depth * columns:
                k = i32(s % depth) if planar else i32(s // columns)
                r = i32(s // depth) if planar else i32(s % columns)
                pixel, c = i64(p + k), i64(first_c + r)
                value = nothing
                if pixel < end and c < channels:
                    n = i64(pixel // plane)
                    if planar:
                        value = load(image, (n * channels + c) * plane + (pixel - n * plane))
                    else:
                        value = load(image, pixel * channels + c)
                shared[i32(image_at + k * columns + r)] = value
                s = i32(s + threads)
            cuda.syncthreads()
            for k in range(depth):
                unroll()
                left = load_numbers(shared, i64(down) + k * rows)
                top = load_numbers(shared, i64(right) + (image_at + k * columns))
                for i in range(SIDE):
                    unroll()
                    for j in range(SIDE):
                        unroll()
                        total[i * SIDE + j] = step(total[i * SIDE + j], left[i], top[j])
            cuda.syncthreads()
            p += depth
        for i in range(SIDE):
            unroll()
            for j in range(SIDE):
                unroll()
                o, c = i64(first_o + down + i), i64(first_c + right + j)
                if o < outputs and c < channels:
                    store(sums, (part * outputs + o) * channels + c, total[i * SIDE + j])

    return kernel


def run_weight_gradient(
    plan: PointwisePlan,
    image: Any,
    grad: Any,
    out: Any,
    stream: Any = None,
    tile: MatrixTile | None = None,
) -> None:
    """Write the gradient to the weight into ``out``; see ``plan.gradients``.

    tile: what a block computes, in place of ``matrix_tile(plan)``.
    """
    tile = tile or planner.matrix_tile(plan)
    pixels = plan.batch * plan.pixels
    slices = tile.slices if pixels else 0
    sums = launch.empty((max(slices, 1), plan.outputs, plan.channels), plan.compute, stream)
    if slices:
        tiles = -(-plan.channels // tile.columns), -(-plan.outputs // tile.rows)
        matrix_kernel(
            plan.layout == "NCHW", tile.rows, tile.columns, tile.depth, plan.storage, plan.compute
        ).launch(
            slices * tiles[0] * tiles[1],
            tile.threads,
            tile.depth * (tile.rows + tile.columns) * ITEMSIZE[plan.compute],
            stream,
            (
                launch.view(image).pointer(raw_type(plan.storage)),
                launch.view(grad).pointer(raw_type(plan.storage)),
                launch.view(sums).pointer(raw_type(plan.compute)),
                np.int64(pixels),
                np.int64(plan.pixels),
                *map(np.int32, (plan.channels, plan.outputs, *tiles, slices)),
            ),
        )
    add_slices(sums, out, slices, plan.outputs * plan.channels, plan.compute, plan.output, stream)

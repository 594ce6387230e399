"""The CUDA kernels for every case: any taps, rank, stride, dilation, channels, boundary, dtype.

``out[o] = sum_r sum_kx rows[r, kx] * (sum_ky columns[r, ky] * image[y(o, ky), x(o, kx)])``

One thread computes one output. The column sums that a tile's outputs share stand in shared memory,
for ``chunk`` taps of the row at a time, so that rows of taps of any length fit::

    image            column sums of one chunk          outputs of the tile
    . . . . . .      .-----------------------.         .-----------.
    . . . . . .  ->  |  height x width       |  ->     |  height   |
    . . . . . .      '-----------------------'         |  x width  |
                                                       '-----------'

Where outputs share no column (a stride or dilation beyond the tile) each pair of output and tap has
its own sum. Either way an output is accumulated over terms, then over ``kx``, each column sum over
``ky``, ascending from zero: the order of ``stream``, whatever the tile.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from numbasep import boundary as boundaries
from numbasep.cuda.elements import (
    loader,
    multiply_add,
    numba_type,
    parts,
    raw_type,
    storer,
    zero,
)
from numbasep.cuda.launch import VERSION, Kernel, cuda, device_function, types
from numbasep.cuda.primitives import i32, i64

map_index = device_function(boundaries.map_index)

# 80 registers a thread: with 64, the 64-bit numbers of every case spill.
GENERAL_THREADS, GENERAL_BLOCKS = 256, 3


@lru_cache
def general_kernel(storage: str, compute: str, output: str) -> Kernel:
    """Return the separable kernel of three dtypes."""
    pointers = [types.CPointer(raw_type(name)) for name in (storage, output, compute, compute)]
    return Kernel(
        _general(storage, compute, output),
        [*pointers, numba_type(compute), *[types.int64] * 19, *[types.int32] * 10],
        GENERAL_THREADS,
        GENERAL_BLOCKS,
    )


def _general(storage: str, compute: str, output: str) -> Callable[..., None]:
    load, store = loader(storage, compute), storer(compute, output)
    load_tap = loader(compute, compute)
    step = multiply_add(compute)
    nothing = zero(compute)
    in_parts, out_parts, tap_parts = parts(storage), parts(output), parts(compute)
    element = numba_type(compute)
    version = VERSION

    def kernel(
        image: Any,
        out: Any,
        columns: Any,
        rows: Any,
        fill: Any,
        tiles: int,
        tiles_y: int,
        tiles_x: int,
        tiles_c: int,
        image_plane: int,
        image_row: int,
        out_plane: int,
        out_row: int,
        in_height: int,
        in_width: int,
        out_height: int,
        out_width: int,
        channels: int,
        stride_y: int,
        dilation_y: int,
        origin_y: int,
        stride_x: int,
        origin_x: int,
        spacing: int,
        taps_y: int,
        taps_x: int,
        rank: int,
        boundary: int,
        tile_height: int,
        tile_width: int,
        tile_channels: int,
        chunk: int,
        output_step: int,
        tap_step: int,
    ) -> None:
        # Sum j of a chunk stands for the image column j * spacing after the chunk's first; with
        # tap_step 0, for tap j % count of output j // count.
        sums = cuda.shared.array(0, element)
        t = i32(cuda.threadIdx.x)
        threads = i32(cuda.blockDim.x)
        c = i32(t % tile_channels)
        px = i32((t // tile_channels) % tile_width)
        py = i32(t // (tile_channels * tile_width))
        # A version below 0 never is; its place is in the key of Numba's cache.
        tile = i64(cuda.blockIdx.x) if version >= 0 else tiles
        while tile < tiles:
            rest = tile
            c0 = i64(rest % tiles_c) * tile_channels
            rest = i64(rest // tiles_c)
            x0 = i64(rest % tiles_x) * tile_width
            rest = i64(rest // tiles_x)
            y0 = i64(rest % tiles_y) * tile_height
            plane = i64(rest // tiles_y)
            total = nothing
            for r in range(rank):
                for k0 in range(0, taps_x, chunk):
                    count = i32(min(chunk, taps_x - k0))
                    width = i32(tile_width * count)
                    if tap_step > 0:
                        width = i32((tile_width - 1) * output_step + (count - 1) * tap_step + 1)
                    size = i32(width * tile_channels)
                    for s in range(t, tile_height * size, threads):
                        row = i32(s // size)
                        j = i32((s - row * size) // tile_channels)
                        channel = i64(c0 + s % tile_channels)
                        x = i64(x0 * stride_x + origin_x)
                        if tap_step > 0:
                            x += (i64(k0) * tap_step + j) * spacing
                        else:
                            x += i64(j // count) * stride_x + i64(k0 + j % count) * spacing
                        x = i64(map_index(x, in_width, boundary))
                        y = i64((y0 + row) * stride_y + origin_y)
                        column = nothing
                        if channel < channels and y0 + row < out_height:
                            at = i64(plane * image_plane + (x * channels + channel) * in_parts)
                            for k in range(taps_y):
                                my = i64(map_index(y, in_height, boundary))
                                value = fill
                                if x >= 0 and my >= 0:
                                    value = load(image, at + my * image_row)
                                tap = load_tap(columns, (r * taps_y + k) * tap_parts)
                                column = step(column, tap, value)
                                y += dilation_y
                        sums[s] = column
                    cuda.syncthreads()
                    if py < tile_height:
                        # Without sharing an output's sums stand side by side.
                        first = i32(px * output_step)
                        pace = i32(tap_step)
                        if tap_step == 0:
                            first = i32(px * count)
                            pace = i32(1)
                        near = i32(py * size + first * tile_channels + c)
                        for k in range(count):
                            tap = load_tap(rows, (r * taps_x + k0 + k) * tap_parts)
                            total = step(total, tap, sums[near])
                            near += pace * tile_channels
                    cuda.syncthreads()
            if (
                py < tile_height
                and y0 + py < out_height
                and x0 + px < out_width
                and c0 + c < channels
            ):
                row_start = i64(plane * out_plane + (y0 + py) * out_row)
                store(out, row_start + ((x0 + px) * channels + c0 + c) * out_parts, total)
            tile += i64(cuda.gridDim.x)

    return kernel


@lru_cache
def direct_kernel(storage: str, compute: str, output: str) -> Kernel:
    """Return the dense kernel of three dtypes: one thread an output, taps in order."""
    pointers = [types.CPointer(raw_type(name)) for name in (storage, output, compute)]
    return Kernel(
        _direct(storage, compute, output),
        [*pointers, numba_type(compute), *[types.int64] * 16, *[types.int32] * 3],
        GENERAL_THREADS,
    )


def _direct(storage: str, compute: str, output: str) -> Callable[..., None]:
    load, store = loader(storage, compute), storer(compute, output)
    load_tap = loader(compute, compute)
    step = multiply_add(compute)
    nothing = zero(compute)
    in_parts, out_parts, tap_parts = parts(storage), parts(output), parts(compute)
    version = VERSION

    def kernel(
        image: Any,
        out: Any,
        taps: Any,
        fill: Any,
        outputs: int,
        image_plane: int,
        image_row: int,
        out_plane: int,
        out_row: int,
        in_height: int,
        in_width: int,
        out_height: int,
        out_width: int,
        channels: int,
        stride_y: int,
        dilation_y: int,
        origin_y: int,
        stride_x: int,
        dilation_x: int,
        origin_x: int,
        taps_y: int,
        taps_x: int,
        boundary: int,
    ) -> None:
        o = i64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
        # As above.
        o = i64(o) if version >= 0 else outputs
        while o < outputs:
            c = i64(o % channels)
            rest = i64(o // channels)
            px = i64(rest % out_width)
            rest = i64(rest // out_width)
            py = i64(rest % out_height)
            plane = i64(rest // out_height)
            total = nothing
            y = i64(py * stride_y + origin_y)
            for ky in range(taps_y):
                my = i64(map_index(y, in_height, boundary))
                at = i64(plane * image_plane + my * image_row + c * in_parts)
                x = i64(px * stride_x + origin_x)
                for kx in range(taps_x):
                    mx = i64(map_index(x, in_width, boundary))
                    value = fill
                    if mx >= 0 and my >= 0:
                        value = load(image, at + mx * channels * in_parts)
                    tap = load_tap(taps, (ky * taps_x + kx) * tap_parts)
                    total = step(total, tap, value)
                    x += dilation_x
                y += dilation_y
            row_start = i64(plane * out_plane + py * out_row)
            store(out, row_start + (px * channels + c) * out_parts, total)
            o += i64(cuda.gridDim.x) * cuda.blockDim.x

    return kernel

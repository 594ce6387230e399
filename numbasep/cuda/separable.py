"""Launchers of the spatial CUDA kernels: a plan, two device arrays and host taps in, one launch."""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbasep.cuda import launch
from numbasep.cuda.elements import parts, raw_type, real_name
from numbasep.cuda.general import direct_kernel, general_kernel
from numbasep.cuda.stream import stream_kernel
from numbasep.cuda.tile import tile_kernel
from numbasep.plan.cuda_tiles import (
    MOST_BLOCKS,
    SIZES,
    CudaTile,
    StreamShape,
    TileShape,
    choose,
    general,
)
from numbasep.plan.geometry import SpatialPlan

Array = NDArray[Any]


def run_separable(
    plan: SpatialPlan,
    image: Any,
    out: Any,
    columns: Array,
    rows: Array,
    stream: Any = None,
    tile: CudaTile | None = None,
) -> None:
    """Correlate device arrays with a sum of outer products of taps, in one launch.

    image, out: (planes, H, W, C) and (planes, OH, OW, C) of ``plan``'s dtypes (bfloat16 as its bits
        too), the last two axes dense, the others with any stride; they do not overlap.
    columns, rows: host arrays (R, kh) and (R, kw) in ``plan.compute``.
    stream: of numba.cuda, cuda.core, CuPy or torch, or a handle; the default stream without.
    tile: what a block computes, in place of ``choose(plan)``. Results do not depend on it.
    """
    source, target = launch.view(image), launch.view(out)
    if 0 in target.shape:
        return
    tile = choose(plan, launch.most_shared()) if tile is None else tile
    if tile.shape is not None and not _fits(plan, source, target, tile):
        tile = general(plan)
    run = {"general": _general, "stream": _stream, "tile": _tile}[tile.variant]
    run(plan, source, target, columns, rows, stream, tile)


def run_direct(
    plan: SpatialPlan,
    image: Any,
    out: Any,
    kernel: Array,
    stream: Any = None,
    tile: CudaTile | None = None,
) -> None:
    """Correlate device arrays with a dense (kh, kw) kernel; otherwise as ``run_separable``."""
    source, target = launch.view(image), launch.view(out)
    if 0 in target.shape:
        return
    threads = (choose(plan) if tile is None else tile).threads
    outputs = plan.planes * plan.y.out * plan.x.out * plan.channels
    direct_kernel(plan.storage, plan.compute, plan.output).launch(
        min(-(-outputs // threads), MOST_BLOCKS),
        threads,
        0,
        stream,
        (
            source.pointer(raw_type(plan.storage)),
            target.pointer(raw_type(plan.output)),
            _taps(plan, kernel, stream),
            *_fill(plan),
            *map(
                np.int64,
                (
                    outputs,
                    *_pitches(plan, source, target),
                    *_sizes(plan),
                    plan.y.stride,
                    plan.y.dilation,
                    plan.y.origin,
                    plan.x.stride,
                    plan.x.dilation,
                    plan.x.origin,
                ),
            ),
            *map(np.int32, (plan.y.taps, plan.x.taps, plan.boundary)),
        ),
    )


def _general(
    plan: SpatialPlan,
    source: launch.View,
    target: launch.View,
    columns: Array,
    rows: Array,
    stream: Any,
    tile: CudaTile,
) -> None:
    step = gcd(plan.x.stride, plan.x.dilation)
    tiles_y = -(-plan.y.out // tile.height)
    tiles_x = -(-plan.x.out // tile.width)
    tiles_c = -(-plan.channels // tile.channels)
    tiles = plan.planes * tiles_y * tiles_x * tiles_c
    general_kernel(plan.storage, plan.compute, plan.output).launch(
        min(tiles, MOST_BLOCKS),
        tile.threads,
        tile.shared,
        stream,
        (
            source.pointer(raw_type(plan.storage)),
            target.pointer(raw_type(plan.output)),
            _taps(plan, columns, stream),
            _taps(plan, rows, stream),
            *_fill(plan),
            *map(
                np.int64,
                (
                    tiles,
                    tiles_y,
                    tiles_x,
                    tiles_c,
                    *_pitches(plan, source, target),
                    *_sizes(plan),
                    plan.y.stride,
                    plan.y.dilation,
                    plan.y.origin,
                    plan.x.stride,
                    plan.x.origin,
                    step if tile.shares else plan.x.dilation,
                ),
            ),
            *map(
                np.int32,
                (
                    plan.y.taps,
                    plan.x.taps,
                    plan.rank,
                    plan.boundary,
                    tile.height,
                    tile.width,
                    tile.channels,
                    tile.chunk,
                    plan.x.stride // step if tile.shares else 0,
                    plan.x.dilation // step if tile.shares else 0,
                ),
            ),
        ),
    )


def _stream(
    plan: SpatialPlan,
    source: launch.View,
    target: launch.View,
    columns: Array,
    rows: Array,
    stream: Any,
    tile: CudaTile,
) -> None:
    shape = tile.shape
    assert isinstance(shape, StreamShape)
    in_size, out_size = np.dtype(plan.storage).itemsize, np.dtype(plan.output).itemsize
    tiles_x, tiles_y = _strips(plan, tile)
    stream_kernel(shape, plan.storage, plan.compute, plan.output).launch(
        plan.planes * plan.y.dilation * tiles_y * tiles_x,
        tile.threads,
        tile.shared,
        stream,
        (
            source.pointer("uint8"),
            target.pointer("uint8"),
            np.dtype(plan.compute).type(plan.fillvalue),
            *np.asarray(columns, plan.compute).reshape(-1),
            *np.asarray(rows, plan.compute).reshape(-1),
            np.int64(source.strides[0]),
            np.int64(target.strides[0]),
            *map(
                np.int32,
                (
                    source.strides[1],
                    target.strides[1],
                    tiles_x,
                    tiles_y,
                    tile.width,
                    tile.height,
                    *_sizes(plan),
                    plan.y.origin,
                    plan.x.origin * plan.channels - shape.shift,
                    plan.y.dilation,
                    plan.boundary,
                    _aligned(source, shape.vector * in_size),
                    _aligned(target, shape.vector * out_size),
                    (shape.taps_y - 1 + shape.extra) // shape.steps,
                ),
            ),
        ),
    )


def _tile(
    plan: SpatialPlan,
    source: launch.View,
    target: launch.View,
    columns: Array,
    rows: Array,
    stream: Any,
    tile: CudaTile,
) -> None:
    shape = tile.shape
    assert isinstance(shape, TileShape)
    tiles_x, tiles_y = _strips(plan, tile)
    sums_at, taps_at, rows_at, term = shape.places(plan.y.taps, plan.x.taps, tile.height)
    tile_kernel(shape, plan.storage, plan.compute, plan.output).launch(
        plan.planes * plan.y.dilation * tiles_y * tiles_x,
        tile.threads,
        tile.shared,
        stream,
        (
            source.pointer("uint8"),
            target.pointer(raw_type(plan.output)),
            _taps(plan, columns, stream),
            _taps(plan, rows, stream),
            *_fill(plan),
            np.int64(source.strides[0]),
            *map(np.int64, _pitches(plan, source, target)[2:]),
            *map(
                np.int32,
                (
                    source.strides[1],
                    tiles_x,
                    tiles_y,
                    tile.width,
                    tile.height,
                    tile.width + (plan.x.taps - 1) * shape.spacing,
                    shape.loaded_rows(plan.y.taps, tile.height),
                    *_sizes(plan),
                    plan.y.origin,
                    plan.x.origin * plan.channels,
                    plan.y.dilation,
                    plan.boundary,
                    plan.y.taps,
                    plan.x.taps,
                    plan.rank,
                    sums_at,
                    taps_at,
                    term,
                    rows_at * SIZES[plan.compute] // 4,
                ),
            ),
        ),
    )


def _strips(plan: SpatialPlan, tile: CudaTile) -> tuple[int, int]:
    """Return how many strips lie side by side, and below each other in one phase of the rows."""
    phase = -(-plan.y.out // plan.y.dilation)
    return -(-plan.x.out * plan.channels // tile.width), -(-phase // tile.height)


def _fits(plan: SpatialPlan, source: launch.View, target: launch.View, tile: CudaTile) -> bool:
    """Return whether the streaming kernel's 32-bit numbers suffice for these arrays."""
    tiles_x, tiles_y = _strips(plan, tile)
    largest = max(
        plan.planes * plan.y.dilation * tiles_y * tiles_x,
        (plan.x.size + abs(plan.x.origin) + 1) * plan.channels * np.dtype(plan.storage).itemsize,
        (tiles_x + 1) * tile.width + 4096,
        (plan.y.out + 2 * tile.height) * plan.y.dilation,
        plan.y.size + abs(plan.y.origin),
        abs(source.strides[1]),
        abs(target.strides[1]) * plan.y.dilation,
    )
    return largest < 2**31


def _aligned(view: launch.View, size: int) -> int:
    """Return 1 where a vector of ``size`` bytes is aligned in every row that starts one."""
    size = min(size, 16)
    return int(not (view.address | view.strides[0] | view.strides[1]) & (size - 1))


def _taps(plan: SpatialPlan, taps: Array, stream: Any) -> Any:
    """Return a pointer to taps on the device, complex ones as pairs."""
    dense = np.ascontiguousarray(taps, plan.compute).reshape(-1)
    kept = launch.upload(dense.view(real_name(plan.compute)), stream)
    return launch.view(kept).pointer(raw_type(plan.compute))


def _fill(plan: SpatialPlan) -> tuple[Any, ...]:
    """Return the fill value as kernel parameters: a complex one is two, except in the simulator."""
    value = np.dtype(plan.compute).type(plan.fillvalue)
    if parts(plan.compute) == 2 and not launch.SIMULATOR:
        return value.real, value.imag
    return (value,)


def _pitches(plan: SpatialPlan, source: launch.View, target: launch.View) -> tuple[int, ...]:
    """Return plane and row strides of image and out, in elements (real ones where complex)."""
    steps = []
    for view, name in ((source, plan.storage), (target, plan.output)):
        size = np.dtype(str(raw_type(name))).itemsize
        for stride in view.strides[:2]:
            steps.append(stride // size)
    return tuple(steps)


def _sizes(plan: SpatialPlan) -> tuple[int, ...]:
    return plan.y.size, plan.x.size, plan.y.out, plan.x.out, plan.channels

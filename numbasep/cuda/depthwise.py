"""The launcher of the CUDA depthwise kernels: one launch from a plan, arrays and weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbasep.cuda import launch
from numbasep.cuda.depthwise_pixels import pixels_kernel
from numbasep.cuda.depthwise_rows import rows_kernel
from numbasep.cuda.depthwise_tile import tile_kernel
from numbasep.cuda.elements import raw_type
from numbasep.plan import cuda_depthwise as tiles
from numbasep.plan.channelwise import ITEMSIZE, DepthwisePlan

Array = NDArray[Any]


def run_depthwise(
    plan: DepthwisePlan,
    image: Any,
    weight: Any,
    bias: Array,
    out: Any,
    stream: Any = None,
    tile: tiles.Tile | tiles.Rows | tiles.Pixels | None = None,
) -> None:
    """Write the depthwise correlation of ``image`` into ``out``; see ``plan.channelwise``.

    stream: of numba.cuda, cuda.core, CuPy or torch, or a handle; the default stream without.
    tile: what a block computes, in place of ``choose(plan)``. Results do not depend on it.
    """
    source, target = launch.view(image), launch.view(out)
    if tile is None:
        aligned = tiles.alignment(source.address), tiles.alignment(target.address)
        tile = tiles.choose(plan, aligned)
    if isinstance(tile, tiles.Rows):
        _rows(plan, source, target, weight, bias, stream, tile)
    elif isinstance(tile, tiles.Pixels):
        _pixels(plan, source, target, weight, bias, stream, tile)
    else:
        _tile(plan, source, target, weight, bias, stream, tile)


def _steps(plan: DepthwisePlan, channels: int, height: int, width: int) -> tuple[int, ...]:
    """Return elements between images, channels, rows and columns."""
    if plan.layout == "NCHW":
        return channels * height * width, height * width, width, 1
    return channels * height * width, 1, width * channels, channels


def _filters_last(weight: Array) -> Array:
    return np.ascontiguousarray(np.moveaxis(weight, 0, -1))


def _upload(plan: DepthwisePlan, array: Array, stream: Any, form: tuple[Any, ...] = ()) -> Any:
    return launch.view(launch.upload(array, stream, form)).pointer(raw_type(plan.compute))


def _rows(
    plan: DepthwisePlan,
    source: launch.View,
    target: launch.View,
    weight: Array,
    bias: Array,
    stream: Any,
    tile: tiles.Rows,
) -> None:
    x, y, shape = plan.x, plan.y, tile.shape
    size, narrow = ITEMSIZE[plan.storage], ITEMSIZE[plan.output]
    across = -(-x.out // shape.vector)
    phase = tiles.strips_of(plan, tile.height)
    strips = phase * y.dilation
    units = plan.batch * plan.filters * strips * across
    threads = min(tile.threads, tiles.whole(units, 32))
    rows_kernel(
        shape, plan.boundary, plan.storage, plan.compute, plan.output, plan.activation
    ).launch(
        -(-units // threads),
        threads,
        tiles.shared_bytes(plan, shape, tile.height, threads),
        stream,
        (
            source.pointer("uint8"),
            target.pointer("uint8"),
            *(_upload(plan, one, stream) for one in (weight, bias)),
            np.int64(y.size * x.size * size),
            np.int64(y.out * x.out * narrow),
            *map(
                np.int32,
                (
                    x.size * size, x.out * narrow, units, across, strips, phase, tile.height,
                    y.size, x.size, y.out, x.out, plan.filters, plan.multiplier, plan.channels,
                    y.origin, tile.start, y.dilation,
                ),
            ),
        ),
    )  # fmt: skip


def _pixels(
    plan: DepthwisePlan,
    source: launch.View,
    target: launch.View,
    weight: Array,
    bias: Array,
    stream: Any,
    tile: tiles.Pixels,
) -> None:
    x, y, shape = plan.x, plan.y, tile.shape
    size, narrow = ITEMSIZE[plan.storage], ITEMSIZE[plan.output]
    across = -(-x.out // shape.pixels)
    phase = tiles.strips_of(plan, tile.height)
    strips = phase * y.dilation
    units = plan.batch * strips * across
    threads = min(shape.threads, tiles.whole(units * tile.lanes, 32))
    chunks = -(-plan.channels // (tile.lanes * shape.vector))
    taps = (y.taps * x.taps + 1) * shape.lanes * shape.vector
    pixels_kernel(
        shape, plan.boundary, plan.storage, plan.compute, plan.output, plan.activation
    ).launch(
        chunks * -(-units // (threads // tile.lanes)),
        threads,
        taps * ITEMSIZE[plan.compute],
        stream,
        (
            source.pointer("uint8"),
            target.pointer("uint8"),
            _upload(plan, weight, stream, (_filters_last,)),
            _upload(plan, bias, stream),
            np.int64(y.size * x.size * plan.channels * size),
            np.int64(y.out * x.out * plan.channels * narrow),
            *map(
                np.int32,
                (
                    x.size * plan.channels * size, x.out * plan.channels * narrow,
                    plan.channels * size, units, across, strips, phase, chunks, tile.lanes,
                    tile.height,
                    y.size, x.size, y.out, x.out, plan.channels, y.origin, x.origin, y.dilation,
                ),
            ),
        ),
    )  # fmt: skip


def _tile(
    plan: DepthwisePlan,
    source: launch.View,
    target: launch.View,
    weight: Any,
    bias: Array,
    stream: Any,
    tile: tiles.Tile,
) -> None:
    x, y = plan.x, plan.y
    columns, rows = weight if plan.rank else (bias, weight)
    tiles_y, tiles_x = -(-y.out // tile.height), -(-x.out // tile.width)
    tiles_c = -(-plan.channels // tile.channels)
    tile_kernel(
        plan.layout, plan.rank > 0, tile.slides, tile.rows, plan.boundary, plan.storage,
        plan.compute, plan.output, plan.activation,
    ).launch(
        plan.batch * tiles_y * tiles_x * tiles_c,
        tile.threads,
        tile.shared,
        stream,
        (
            source.pointer(raw_type(plan.storage)),
            target.pointer(raw_type(plan.output)),
            *(_upload(plan, one, stream) for one in (columns, rows, bias)),
            *map(np.int64, _steps(plan, plan.channels, y.size, x.size)),
            *map(np.int64, _steps(plan, plan.filters, y.out, x.out)),
            *map(
                np.int32,
                (
                    tiles_y, tiles_x, tiles_c,
                    y.size, x.size, y.out, x.out, plan.channels, plan.multiplier,
                    y.stride, y.dilation, y.origin, x.stride, x.dilation, x.origin,
                    y.taps, x.taps, plan.rank or y.taps,
                    tile.width, tile.height, tile.channels, tile.terms, tile.taps,
                    tile.pitch, tile.plane, tile.tap_pitch, tile.lanes,
                ),
            ),
        ),
    )  # fmt: skip

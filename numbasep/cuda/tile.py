"""The CUDA kernel for many terms or long taps: a tile in shared memory, one term after the other.

``out[o] = sum_r sum_kx rows[r, kx] * (sum_ky columns[r, ky] * image[y(o, ky), x(o, kx)])``

A block loads its outputs' whole support once; then each term takes two passes over shared memory::

    support              column pass              row pass               registers of a thread
    .-------------.      .-------------.      .--------.
    |             |      |    ||||     |      |  ====  |
    | span x rows |  ->  | span x      |  ->  | width  |  ->  one run: `run` outputs of a row
    |             |      |      height |      |   x    |       that are `spacing` apart
    '-------------'      '-------------'      | height |
                                              '--------'

A thread sums a run of ``run`` results along the taps: ``run + 15`` values feed ``16 * run``
multiply-adds, then 8, 4, 2 and 1 taps at once do the rest. Taps and rank are known at run time
only, so that one compiled kernel serves them all. In the column pass the lanes of a warp stand side
by side, in the row pass one above the other on rows of an odd pitch: both without bank conflicts.
The results leave through shared memory, so that a warp writes neighbours.

Order of additions, whatever the tile: as in ``general``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from numbasep import boundary as boundaries
from numbasep.cuda.elements import loader, multiply_add, numba_type, raw_type, storer, widen, zero
from numbasep.cuda.launch import VERSION, Kernel, cuda, device_function, types
from numbasep.cuda.primitives import (
    advance,
    i32,
    i64,
    load_bytes,
    load_vector,
    step_to,
    store_vector,
    u32,
    unroll,
)
from numbasep.plan.cuda_tiles import BATCH, TileShape

map_index = device_function(boundaries.map_index)


@lru_cache(maxsize=64)
def tile_kernel(shape: TileShape, storage: str, compute: str, output: str) -> Kernel:
    """Return the kernel of a shape and three real dtypes, for ranks above 0."""
    pointers = [types.CPointer(raw_type(name)) for name in ("uint8", output, compute, compute)]
    return Kernel(
        _tile(shape, storage, compute, output),
        [*pointers, numba_type(compute), *[types.int64] * 3, *[types.int32] * 23],
        shape.threads,
        shape.blocks,
    )


def _block(shape: TileShape, compute: str, taps: int) -> Any:
    """Return ``add(totals, window, memory, at, pace, taps_at)``: a run's multiply-adds by ``taps``.

    pace: elements of shared memory from what one tap meets to what the next one does.
    """
    run, vector = shape.run, min(shape.vector, taps)
    element = numba_type(compute)
    step = multiply_add(compute)
    load_one, load_taps = load_vector(1, element), load_vector(vector, element)

    def add(totals: Any, window: Any, memory: Any, at: int, pace: int, taps_at: int) -> None:
        for i in range(run + taps - 1):
            unroll()
            window[i] = load_one(memory, at + i * pace)[0]
        for first in range(0, taps, vector):
            unroll()
            tap = load_taps(memory, taps_at + first)
            for m in range(vector):
                unroll()
                for j in range(run):
                    unroll()
                    totals[j] = step(totals[j], tap[m], window[first + m + j])

    return device_function(add)


def _accumulate(shape: TileShape, compute: str) -> Any:
    """Return ``accumulate(totals, window, memory, at, pace, taps_at, count)``, for any count."""
    add_16, add_8, add_4, add_2, add_1 = (_block(shape, compute, n) for n in (16, 8, 4, 2, 1))

    def accumulate(
        totals: Any, window: Any, memory: Any, at: int, pace: int, taps_at: int, count: int
    ) -> None:
        for _ in range(i32(count // 16)):
            add_16(totals, window, memory, at, pace, taps_at)
            at += 16 * pace
            taps_at += 16
        if count & 8:
            add_8(totals, window, memory, at, pace, taps_at)
            at += 8 * pace
            taps_at += 8
        if count & 4:
            add_4(totals, window, memory, at, pace, taps_at)
            at += 4 * pace
            taps_at += 4
        if count & 2:
            add_2(totals, window, memory, at, pace, taps_at)
            at += 2 * pace
            taps_at += 2
        if count & 1:
            add_1(totals, window, memory, at, pace, taps_at)

    return device_function(accumulate)


def _tile(shape: TileShape, storage: str, compute: str, output: str) -> Callable[..., None]:
    threads, pitch, spacing, run = shape.threads, shape.pitch, shape.spacing, shape.run
    element, nothing = numba_type(compute), zero(compute)
    raw_in, widened, store = raw_type(storage), widen(storage, compute), storer(compute, output)
    load, in_size = load_bytes(1, raw_in), raw_in.bitwidth // 8
    load_places = load_vector(BATCH, types.int32)
    load_tap = loader(compute, compute)
    accumulate = _accumulate(shape, compute)
    window_size = run + 15
    load_one, store_one = load_vector(1, element), store_vector(1, element)
    batch, lanes = BATCH, min(32, threads)
    version = VERSION

    def kernel(
        image: Any,
        out: Any,
        columns: Any,
        rows: Any,
        fill: Any,
        image_plane: int,
        out_plane: int,
        out_row: int,
        image_row: int,
        tiles_x: int,
        tiles_y: int,
        width: int,
        height: int,
        span: int,
        loaded_rows: int,
        in_height: int,
        in_width: int,
        out_height: int,
        out_width: int,
        channels: int,
        origin_y: int,
        start_x: int,
        dilation_y: int,
        boundary: int,
        taps_y: int,
        taps_x: int,
        rank: int,
        sums_at: int,
        taps_at: int,
        taps_size: int,
        places_at: int,
    ) -> None:
        t = i32(cuda.threadIdx.x)
        tile = u32(cuda.blockIdx.x)
        strips = u32(tile // u32(tiles_x))
        left = i32(i32(tile - strips * u32(tiles_x)) * width)
        planes = u32(strips // u32(tiles_y))
        first_row = i32(i32(strips - planes * u32(tiles_y)) * height)
        plane = u32(planes // u32(dilation_y))
        # Dilated rows fall into phases that never meet: each is an image of its own.
        phase = i32(planes - plane * u32(dilation_y))
        valid = i32(i32(i32(out_height - phase + dilation_y - 1) // dilation_y) - first_row)
        valid = i32(min(height, valid))
        # A version below 0 never is; its place is in the key of Numba's cache.
        valid = i32(valid) if version >= 0 else i32(0)
        across = i32(min(width, i32(out_width * channels - left)))

        # Where the boundary rule finds the support's rows in the image; -1: nowhere.
        places = cuda.shared.array(0, types.int32)
        for i in range(t, loaded_rows, threads):
            y = i64(origin_y + phase) + i64(first_row + i) * i64(dilation_y)
            found = i64(map_index(y, i64(in_height), boundary))
            places[places_at + i] = i32(found) if i < valid + taps_y - 1 else i32(-1)
        memory = cuda.shared.array(0, element)
        for k in range(t, taps_y, threads):
            memory[taps_at + k] = load_tap(columns, k)
        for k in range(t, taps_x, threads):
            memory[taps_at + taps_size // 2 + k] = load_tap(rows, k)
        cuda.syncthreads()
        values = cuda.local.array(batch, element)
        for x in range(t, span, threads):
            at = i32(start_x + left + x)
            if at < 0 or at >= in_width * channels:
                pixel = i64(at) // i64(channels)
                found = i64(map_index(pixel, i64(in_width), boundary))
                channel = i64(at - pixel * channels)
                at = i32(found * channels + channel) if found >= 0 else i32(-1)
            if x >= across + span - width:
                at = i32(-1)
            column = advance(image, i64(plane) * image_plane + i64(at) * in_size)
            target = i64(x)
            for i in range(i32(loaded_rows // batch)):
                found_rows = load_places(places, i64(places_at + i * batch))
                for j in range(batch):
                    unroll()
                    values[j] = fill
                    if found_rows[j] >= 0 and at >= 0:
                        single = load(step_to(column, found_rows[j], image_row), 0)
                        values[j] = widened(single[0])
                for j in range(batch):
                    unroll()
                    store_one(memory, target + j * pitch, (values[j],))
                target += batch * pitch
        cuda.syncthreads()

        sums = cuda.local.array(run, element)
        totals = cuda.local.array(run, element)
        window = cuda.local.array(window_size, element)
        for j in range(run):
            unroll()
            totals[j] = nothing
        line = i32(u32(t) % u32(height))
        unit = i32(u32(t) // u32(height))
        group = i32(unit // spacing)
        own = i64(line * pitch + group * (run * spacing) + (unit - group * spacing))
        owns = group * (run * spacing) < width
        units = i32(span * (height // run))
        for term in range(rank):
            tap_buffer = i32(taps_at + (term & 1) * taps_size)
            for u in range(t, units, threads):
                first = i32(u32(u) // u32(span))
                x = i32(u - first * span)
                for j in range(run):
                    unroll()
                    sums[j] = nothing
                at = i64(i32(first * run) * pitch + x)
                accumulate(sums, window, memory, at, pitch, i64(tap_buffer), taps_y)
                for j in range(run):
                    unroll()
                    store_one(memory, sums_at + at + j * pitch, (sums[j],))
            if term + 1 < rank:
                following = i32(taps_at + (1 - (term & 1)) * taps_size)
                for k in range(t, taps_y, threads):
                    memory[following + k] = load_tap(columns, (term + 1) * taps_y + k)
                for k in range(t, taps_x, threads):
                    memory[following + taps_size // 2 + k] = load_tap(rows, (term + 1) * taps_x + k)
            cuda.syncthreads()
            if owns:
                tap_buffer = i32(tap_buffer + taps_size // 2)
                accumulate(totals, window, memory, sums_at + own, spacing, i64(tap_buffer), taps_x)
            cuda.syncthreads()
        if owns:
            for j in range(run):
                unroll()
                store_one(memory, own + j * spacing, (totals[j],))
        cuda.syncthreads()
        for i in range(t // lanes, valid, threads // lanes):
            y = i64(phase) + i64(first_row + i) * i64(dilation_y)
            line_at = i64(plane) * out_plane + y * out_row + left
            for x in range(t % lanes, across, lanes):
                store(out, line_at + x, load_one(memory, i64(i * pitch + x))[0])

    return kernel

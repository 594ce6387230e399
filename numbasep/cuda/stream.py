"""The CUDA kernel for few terms and taps: rows of a strip stream through registers, once.

``out[o] = sum_r sum_kx rows[r, kx] * (sum_ky columns[r, ky] * image[y(o, ky), x(o, kx)])``

A block owns a strip of columns and walks down its rows, ``steps`` rows at a time::

    image rows       staged          registers of a thread        column sums          result
    .------------.   .----------.    partial sums of a column     .---------------.
    | 16 bytes a |-> | steps    | -> s0  s1  s2 ... s(kh-2)    -> | halo | strip  | -> 4 a thread
    | thread     |   | rows     |    each row adds to them all    | (two buffers) |    (row pass)
    '------------'   '----------'                                 '---------------'

One barrier a step: behind it, a thread takes the rows that were staged before it and finishes the
results of the rows that the step before summed, while the next rows are on their way.

The partial sums are a transposed filter (Oppenheim and Schafer, Discrete-Time Signal Processing,
section 6.3): a row of the image completes the oldest sum and each other one moves up a place while
its multiply-add is done, so that no register is copied and an image row is loaded once for all its
taps. A finished row of column sums goes to shared memory, where the row pass finds its neighbours.
Only the columns of the halo are summed twice, by neighbouring strips, and its rows loaded twice, by
strips below each other.

Order of additions, whatever the tile: as in ``general``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from numbasep import boundary as boundaries
from numbasep.cuda.elements import multiply_add, narrow, numba_type, pack, raw_type, widen, zero
from numbasep.cuda.launch import VERSION, Kernel, cuda, device_function, types
from numbasep.cuda.primitives import (
    advance,
    i32,
    i64,
    load_bytes,
    load_vector,
    step_to,
    store_bytes,
    store_vector,
    u32,
    unroll,
)
from numbasep.plan.cuda_tiles import StreamShape

map_index = device_function(boundaries.map_index)


@lru_cache(maxsize=256)
def stream_kernel(shape: StreamShape, storage: str, compute: str, output: str) -> Kernel:
    """Return the kernel of a shape and three real dtypes."""
    element = numba_type(compute)
    return Kernel(
        _stream(shape, storage, compute, output),
        [
            types.CPointer(types.uint8),
            types.CPointer(types.uint8),
            element,
            types.UniTuple(element, shape.rank * shape.taps_y),
            types.UniTuple(element, shape.rank * shape.taps_x),
            *[types.int64] * 2,
            *[types.int32] * 18,
        ],
        shape.threads,
        shape.blocks,
    )


def _column_sums(shape: StreamShape, compute: str, term: int) -> Any:
    """Return ``add(state, values, taps, sums, at)``: the rows of a step into the sums of a term."""
    columns, steps, rank, pitch = shape.columns, shape.steps, shape.rank, shape.pitch
    taps_y, pending = shape.taps_y, shape.taps_y - 1
    first, taps_at = term * pending * columns, term * taps_y
    element, nothing, step = numba_type(compute), zero(compute), multiply_add(compute)
    store_sums, packed = store_vector(columns, element), pack(columns)

    def add(state: Any, values: Any, taps: Any, sums: Any, at: int) -> None:
        done = cuda.local.array(columns, element)
        for r in range(steps):
            unroll()
            for v in range(columns):
                unroll()
                value = values[r * columns + v]
                tap = taps[taps_at + pending]
                if pending == 0:
                    done[v] = step(nothing, tap, value)
                else:
                    done[v] = step(state[first + v], tap, value)
                    for k in range(pending - 1):
                        unroll()
                        state[first + k * columns + v] = step(
                            state[first + (k + 1) * columns + v],
                            taps[taps_at + pending - 1 - k],
                            value,
                        )
                    state[first + (pending - 1) * columns + v] = step(nothing, taps[taps_at], value)
            store_sums(sums, at + (r * rank + term) * pitch, packed(done, 0))

    return device_function(add)


def _row_sums(shape: StreamShape, compute: str, term: int) -> Any:
    """Return ``add(results, window, taps, sums, at)``: a term's part of a vector of results."""
    vector, taps_x, shift, spacing = shape.vector, shape.taps_x, shape.shift, shape.spacing
    loads, taps_at, sums_at = shape.loads, term * shape.taps_x, term * shape.pitch
    step, load_sums = multiply_add(compute), load_vector(vector, numba_type(compute))

    def add(results: Any, window: Any, taps: Any, sums: Any, at: int) -> None:
        for q in range(loads):
            unroll()
            part = load_sums(sums, at + (sums_at + vector * q))
            for j in range(vector):
                unroll()
                window[q * vector + j] = part[j]
        for k in range(taps_x):
            unroll()
            for j in range(vector):
                unroll()
                results[j] = step(results[j], taps[taps_at + k], window[shift + k * spacing + j])

    return device_function(add)


def _terms(make: Callable[[int], Any], count: int) -> Any:
    """Return a function that calls those of each term in turn.

    Each has its own, for its constants: of a loop over terms, the compiler finds no registers for
    the sums before it is unrolled, and takes minutes over that.
    """
    own = make(count - 1)
    if count == 1:
        return own
    before = _terms(make, count - 1)

    def both(held: Any, values: Any, taps: Any, sums: Any, at: int) -> None:
        before(held, values, taps, sums, at)
        own(held, values, taps, sums, at)

    return device_function(both)


def _stream(shape: StreamShape, storage: str, compute: str, output: str) -> Callable[..., None]:
    taps_y, taps_x, rank, threads = shape.taps_y, shape.taps_x, shape.rank, shape.threads
    spacing, shift, extra = shape.spacing, shape.shift, shape.extra
    columns, vector, steps, loads = shape.columns, shape.vector, shape.steps, shape.loads
    pending = taps_y - 1
    per_pass = vector // columns
    passes = steps // per_pass
    held = steps * columns
    states = max(1, rank * pending * columns)
    window_size = loads * vector
    element, nothing = numba_type(compute), zero(compute)
    raw_in, raw_out = raw_type(storage), raw_type(output)
    in_size, out_size = raw_in.bitwidth // 8, raw_out.bitwidth // 8
    widened, narrowed = widen(storage, compute), narrow(compute, output)
    # Shared memory, in elements: what was loaded, column sums, then places of columns and of rows.
    pitch = shape.pitch
    stage_size = steps * pitch
    sums_size = rank * stage_size
    sums_at = 2 * stage_size
    columns_at = (sums_at + 2 * sums_size) * (element.bitwidth // 32)
    rows_at = columns_at + pitch
    load_piece = load_bytes(vector, raw_in)
    load_one = load_bytes(1, raw_in)
    load_places = load_vector(held, types.int32)
    load_own = load_vector(columns, element)
    store_values = store_vector(held, element)
    store_results = store_bytes(vector, raw_out)
    store_one = store_bytes(1, raw_out)
    column_sums = _terms(lambda term: _column_sums(shape, compute, term), rank)
    row_sums = _terms(lambda term: _row_sums(shape, compute, term), rank)
    packed_values = pack(held)
    packed_results = pack(vector, narrowed)
    version = VERSION

    def kernel(
        image: Any,
        out: Any,
        fill: Any,
        column_taps: Any,
        row_taps: Any,
        image_plane: int,
        out_plane: int,
        image_row: int,
        out_row: int,
        tiles_x: int,
        tiles_y: int,
        width: int,
        height: int,
        in_height: int,
        in_width: int,
        out_height: int,
        out_width: int,
        channels: int,
        origin_y: int,
        start_x: int,
        dilation_y: int,
        boundary: int,
        image_aligned: int,
        out_aligned: int,
        warm: int,
    ) -> None:
        t = i32(cuda.threadIdx.x)
        tile = u32(cuda.blockIdx.x)
        strips = u32(tile // u32(tiles_x))
        strip = i32(tile - strips * u32(tiles_x))
        planes = u32(strips // u32(tiles_y))
        first_row = i32(i32(strips - planes * u32(tiles_y)) * height)
        plane = u32(planes // u32(dilation_y))
        # Dilated rows fall into phases that never meet: each is an image of its own.
        phase = i32(planes - plane * u32(dilation_y))
        rows = i32(i32(out_height - phase + dilation_y - 1) // dilation_y)
        rows = i32(min(height, i32(rows - first_row)))
        # A version below 0 never is; its place is in the key of Numba's cache.
        count = i32(warm + i32(rows + steps - 1) // steps) if version >= 0 else i32(0)

        # Where the boundary rule finds this strip's columns and rows in the image; -1: nowhere.
        # One step of rows more than there is, so that the last may load what it does not need.
        places = cuda.shared.array(0, types.int32)
        row_size = i32(in_width * channels)
        left = i32(strip * width + start_x)
        needed = i32(start_x + out_width * channels + shift + (taps_x - 1) * spacing)
        for i in range(t, pitch, threads):
            at = i32(left + i)
            if at < 0 or at >= row_size:
                pixel = i64(at) // i64(channels)
                found = i64(map_index(pixel, i64(in_width), boundary))
                channel = i64(at - pixel * channels)
                at = i32(found * channels + channel) if found >= 0 else i32(-1)
            places[columns_at + i] = at if left + i < needed else i32(-1)
        for i in range(t, i32((count + 2) * steps), threads):
            # The first step works on zeros while the first rows are loaded.
            y = i64(origin_y + phase) + i64(first_row - extra + i) * i64(dilation_y)
            found = i64(map_index(y, i64(in_height), boundary))
            places[rows_at + i] = i32(found) if i < rows + extra + pending else i32(-1)
        cuda.syncthreads()

        # Loads: a thread's elements lie side by side in one of the rows of a step.
        line = i32(t // (threads // steps))
        at = i32(i32(t - line * (threads // steps)) * held)
        place = load_places(places, i64(columns_at + at))
        x = i32(left + at)
        inside = image_aligned != 0 and x >= 0 and x + held <= min(row_size, needed)
        base = advance(image, i64(plane) * image_plane)
        start = advance(base, i64(x) * in_size)
        staged_at = i32(line * pitch + at)
        group = i32(t // (threads // per_pass))
        unit = i32(t - group * (threads // per_pass))
        out_x = i32(strip * width + vector * unit)
        left_out = i32(out_width * channels - out_x)
        writes = vector * unit < width and left_out > 0
        whole = out_aligned != 0 and left_out >= vector
        target = advance(
            out,
            i64(plane) * out_plane
            + i64(phase + (first_row + group) * dilation_y) * i64(out_row)
            + i64(out_x) * out_size,
        )
        out_step = i32(out_row * dilation_y)

        sums = cuda.shared.array(0, element)
        values = cuda.local.array(held, element)
        taken = cuda.local.array(held, element)
        state = cuda.local.array(states, element)
        window = cuda.local.array(window_size, element)
        results = cuda.local.array(vector, element)
        for k in range(states):
            unroll()
            state[k] = nothing
        for k in range(held):
            unroll()
            values[k] = nothing
        for s in range(i32(-1), i32(count + 1)):
            odd = i32(s & 1)
            store_values(sums, i64(staged_at + odd * stage_size), packed_values(values, 0))
            y = i32(places[u32(rows_at + (s + 1) * steps + line)])
            if inside and y >= 0:
                row_start = step_to(start, y, image_row)
                for piece in range(held // vector):
                    unroll()
                    loaded = load_piece(row_start, piece * vector * in_size)
                    for v in range(vector):
                        unroll()
                        values[piece * vector + v] = widened(loaded[v])
            else:
                row_start = step_to(base, y, image_row)
                for v in range(held):
                    unroll()
                    values[v] = fill
                    if y >= 0 and place[v] >= 0:
                        single = load_one(step_to(row_start, place[v], in_size), 0)
                        values[v] = widened(single[0])
            if s >= 0:
                cuda.syncthreads()
                own = i64(odd * stage_size + columns * t)
                summed = i64(sums_at + odd * sums_size + columns * t)
                for r in range(steps):
                    unroll()
                    part = load_own(sums, own + r * pitch)
                    for v in range(columns):
                        unroll()
                        taken[r * columns + v] = part[v]
                column_sums(state, taken, column_taps, sums, summed)
            if s > warm and writes:
                before = i64(
                    sums_at + i32(1 - odd) * sums_size + group * (rank * pitch) + vector * unit
                )
                for p in range(passes):
                    unroll()
                    row = i32((s - warm - 1) * steps + p * per_pass)
                    for j in range(vector):
                        unroll()
                        results[j] = nothing
                    near = before + p * (per_pass * rank * pitch)
                    row_sums(results, window, row_taps, sums, near)
                    if i32(row + group) < rows:
                        place_out = step_to(target, row, out_step)
                        if whole:
                            store_results(place_out, 0, packed_results(results, 0))
                        else:
                            for j in range(vector):
                                unroll()
                                if j < left_out:
                                    store_one(place_out, j * out_size, (narrowed(results[j]),))

    return kernel

"""The CUDA depthwise kernel for few taps in planes (NCHW): image rows stream through registers.

A thread owns some columns of outputs and walks down a strip of rows. It loads its own columns of
each image row once, by vectors, a step before they are needed; those beside them come from the
neighbouring lanes, or, at the ends of a warp and of a row, from memory::

    lane - 1    lane        lane + 1          sums that wait for rows below
    x x x[x] -> X X X X <- [x]x x x     ->    s s s s    -> outputs of the oldest row
                                              s s s s

A row adds to the sums of all outputs that it has taps for; the oldest are then complete, and each
other row of sums moves up a place while its first multiply-add is done. With a vertical stride a
step takes that many rows. Dilated rows fall into phases that never meet: each is walked by itself.
Threads are numbered through columns, strips and planes, so that small planes share a block.

The sum starts from zero and goes by ky, then kx, ascending, as in ``depthwise_tile``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from numbasep import boundary as boundaries
from numbasep.cuda.activations import epilogue
from numbasep.cuda.depthwise_tile import divided
from numbasep.cuda.elements import loader, multiply_add, numba_type, pack, raw_type, widen, zero
from numbasep.cuda.launch import VERSION, Kernel, cuda, device_function, types
from numbasep.cuda.primitives import (
    advance,
    i32,
    i64,
    load_bytes,
    load_vector,
    step_to,
    store_bytes,
    u32,
    unroll,
)
from numbasep.plan.cuda_depthwise import VECTOR, RowShape

map_any = device_function(boundaries.map_index)

ALL_LANES = 0xFFFFFFFF


@lru_cache(maxsize=256)
def rows_kernel(
    shape: RowShape, boundary: int, storage: str, compute: str, output: str, activation: str
) -> Kernel:
    """Return the kernel of a shape, boundary, dtypes and activation."""
    return Kernel(
        _rows(shape, boundary, storage, compute, output, activation),
        [
            types.CPointer(types.uint8),
            types.CPointer(types.uint8),
            *[types.CPointer(raw_type(compute))] * 2,
            *[types.int64] * 2,
            *[types.int32] * 17,
        ],
        shape.threads,
        shape.blocks,
    )


def _rows(
    shape: RowShape, boundary: int, storage: str, compute: str, output: str, activation: str
) -> Callable[..., None]:
    taps_y, taps_x, stride_y, stride_x = shape.taps_y, shape.taps_x, shape.stride_y, shape.stride_x
    vector, own, left, right = shape.vector, shape.own, shape.left, shape.right
    first_tap, dilation_x = shape.shift + left, shape.dilation_x
    pending, held = shape.pending, shape.own * shape.stride_y
    sides = left + right
    states, edges = (pending + 2) * vector, max(1, sides * stride_y)
    lanes_before, lanes_behind = -(-left // own), -(-right // own)
    place_count, window_size = max(1, sides), left + own + right
    loads, stores = own // shape.load, vector // shape.store
    per_load, per_store = shape.load, shape.store
    shared_taps, tap_pitch, filter_pitch = shape.shared_taps, shape.tap_pitch, shape.filter_pitch
    tap_count = tap_pitch if shared_taps else taps_y * taps_x
    tap_loads = tap_pitch // VECTOR
    element, nothing = numba_type(compute), zero(compute)
    raw_in, raw_out = raw_type(storage), raw_type(output)
    in_size, out_size = raw_in.bitwidth // 8, raw_out.bitwidth // 8
    raw_zero = zero("uint16" if storage in ("float16", "bfloat16") else storage)
    widened, finish = widen(storage, compute), epilogue(activation, compute, output)
    step, load_tap = multiply_add(compute), loader(compute, compute)
    load_taps = load_vector(VECTOR, element)
    load_own, load_one = load_bytes(per_load, raw_in), load_bytes(1, raw_in)
    store_results, packed = store_bytes(per_store, raw_out), pack(per_store)
    maps = boundary != boundaries.FILL
    map_index = device_function(lambda i, n: map_any(i, n, boundary))

    def fetch(
        raw: Any, edge: Any, place: Any, present: int, plane_start: Any, line: Any, y: int,
        bottom: int, x: int, in_height: int, in_width: int, image_row: int, at_edge: bool, j: int,
    ) -> None:  # fmt: skip
        """Load a thread's columns of image row y, and those beside them at the ends of a warp."""
        for k in range(own):
            unroll()
            raw[j * own + k] = raw_zero
        for k in range(sides):
            unroll()
            edge[j * sides + k] = raw_zero
        # Beyond ``bottom`` nothing needs a row.
        if maps:
            mapped = i32(map_index(y, in_height)) if y < bottom else i32(-1)
            plane_line = step_to(plane_start, mapped, image_row)
            line = advance(plane_line, i64(x) * in_size)
        seen = present if y >= 0 and y < bottom else i32(0)
        for q in range(loads):
            unroll()
            if maps:
                at = i32(x + q * per_load)
                if mapped >= 0:
                    if at >= 0 and at < in_width:
                        part = load_own(line, q * per_load * in_size)
                        for k in range(per_load):
                            unroll()
                            raw[j * own + q * per_load + k] = part[k]
                    else:
                        for k in range(per_load):
                            unroll()
                            at = i32(map_index(i32(x + (q * per_load + k)), in_width))
                            single = load_one(step_to(plane_line, at, in_size), 0)
                            raw[j * own + q * per_load + k] = single[0]
            elif seen & i32(1 << (sides + q)):
                part = load_own(line, q * per_load * in_size)
                for k in range(per_load):
                    unroll()
                    raw[j * own + q * per_load + k] = part[k]
        if maps:
            if sides > 0 and at_edge and mapped >= 0:
                for k in range(sides):
                    unroll()
                    if place[k] >= 0:
                        single = load_one(step_to(plane_line, place[k], in_size), 0)
                        edge[j * sides + k] = single[0]
        elif seen & i32((1 << sides) - 1):
            for k in range(sides):
                unroll()
                if seen & i32(1 << k):
                    offset = k - left if k < left else k - left + own
                    single = load_one(line, offset * in_size)
                    edge[j * sides + k] = single[0]

    fetch = device_function(fetch)
    version = VERSION

    def kernel(
        image: Any,
        out: Any,
        taps: Any,
        bias: Any,
        image_plane: int,
        out_plane: int,
        image_row: int,
        out_row: int,
        units: int,
        across: int,
        strips: int,
        strips_phase: int,
        height: int,
        in_height: int,
        in_width: int,
        out_height: int,
        out_width: int,
        filters: int,
        multiplier: int,
        channels: int,
        origin_y: int,
        start_x: int,
        dilation_y: int,
    ) -> None:
        t = i32(cuda.threadIdx.x)
        block = u32(cuda.blockIdx.x) * u32(cuda.blockDim.x)
        unit = u32(block + u32(t))
        # A version below 0 never is; its place is in the key of Numba's cache.
        alive = unit < u32(units) and version >= 0
        rest, column = divided(unit, across)
        plane, strip = divided(u32(rest), strips)
        phase, strip = divided(u32(strip), strips_phase)
        n, f = divided(u32(plane), filters)
        channel = i32(u32(f) // u32(multiplier))

        tap = cuda.local.array(tap_count, element)
        shared = cuda.shared.array(0, element)
        tap_at = i32(0)
        if shared_taps:
            first_plane = i32(u32(u32(block) // u32(across)) // u32(strips))
            last = u32(min(u32(block + u32(cuda.blockDim.x)), u32(units)) - u32(1))
            count = i32(i32(u32(last // u32(across)) // u32(strips)) - first_plane + 1)
            tap_at = i32((plane - first_plane) * filter_pitch) if alive else i32(0)
            s = t
            while s < i32(count * filter_pitch):
                q, k = divided(u32(s), filter_pitch)
                ky, kx = divided(u32(k), tap_pitch)
                value = nothing
                if ky < taps_y and kx < taps_x:
                    _, g = divided(u32(first_plane + q), filters)
                    value = load_tap(taps, i64(g) * (taps_y * taps_x) + ky * taps_x + kx)
                shared[s] = value
                s = i32(s + i32(cuda.blockDim.x))
            cuda.syncthreads()
        else:
            for k in range(taps_y * taps_x):
                unroll()
                tap[k] = load_tap(taps, i64(f) * (taps_y * taps_x) + k)
        added = load_tap(bias, f)

        # Output rows of this strip, and image rows that they take.
        first_row = i32(strip * height)
        rows = i32(i32(out_height - phase + dilation_y - 1) // dilation_y - first_row)
        rows = i32(min(height, rows)) if alive else i32(0)
        y = i32((phase + first_row * dilation_y) * stride_y + origin_y)
        bottom = i32(y + ((rows - 1) * stride_y + taps_y) * dilation_y) if rows > 0 else y
        if not maps:
            bottom = i32(min(bottom, in_height))
        x = i32(column * i32(vector * stride_x) + start_x)
        plane_start = advance(image, (i64(n) * channels + channel) * image_plane)
        line = advance(plane_start, i64(x) * in_size + i64(y) * i64(image_row))
        line_step = i64(image_row) * dilation_y
        out_step = i64(out_row) * dilation_y
        target = advance(
            out,
            i64(plane) * out_plane
            + (i64(phase) - i64(pending) * dilation_y) * i64(out_row)
            + i64(first_row) * out_step
            + i64(column) * (vector * out_size),
        )
        out_x = i32(column * vector)
        # Columns beside its own that no lane of this warp has, in the image; -1: nowhere.
        lane = i32(t & i32(31))
        before = i32(min(lane, column))
        behind = i32(min(i32(31) - lane, i32(across - 1) - column))
        at_edge = before < lanes_before or behind < lanes_behind
        place = cuda.local.array(place_count, types.int32)
        # Of zeros around the image only which columns are in it matters: a bit for each access,
        # those beside its own first.
        present = i32(0)
        for q in range(loads):
            unroll()
            at = i32(x + q * per_load)
            if at >= 0 and at < in_width:
                present = i32(present | i32(1 << (sides + q)))
        for k in range(sides):
            unroll()
            offset = k - left if k < left else k - left + own
            missing = before < (-offset + own - 1) // own if k < left else behind < offset // own
            place[k] = i32(-1)
            if missing:
                place[k] = i32(map_index(i32(x + offset), in_width))
            if place[k] >= 0:
                present = i32(present | i32(1 << k))

        state = cuda.local.array(states, element)
        total = cuda.local.array(vector, element)
        window = cuda.local.array(window_size, element)
        raw = cuda.local.array(held, raw_in)
        edge = cuda.local.array(edges, raw_in)
        results = cuda.local.array(vector, raw_out)
        for k in range(states):
            unroll()
            state[k] = nothing
        for j in range(stride_y):
            unroll()
            fetch(
                raw,
                edge,
                place,
                present,
                plane_start,
                line,
                y,
                bottom,
                x,
                in_height,
                in_width,
                image_row,
                at_edge,
                j,
            )
            y = i32(y + dilation_y)
            line = advance(line, line_step)
        row = i32(-pending)
        while row < height:
            if shared_taps:
                # So that taps stay in shared memory and do not fill the registers.
                cuda.syncwarp()
            for j in range(stride_y):
                unroll()
                for k in range(own):
                    unroll()
                    window[left + k] = widened(raw[j * own + k])
                for k in range(left):
                    unroll()
                    away = (left - k + own - 1) // own
                    beside = cuda.shfl_up_sync(ALL_LANES, window[k + away * own], away)
                    window[k] = widened(edge[j * sides + k]) if before < away else beside
                for k in range(right):
                    unroll()
                    away = 1 + k // own
                    beside = cuda.shfl_down_sync(ALL_LANES, window[left + k % own], away)
                    at = left + own + k
                    window[at] = widened(edge[j * sides + left + k]) if behind < away else beside
                for e in range(pending + 1):
                    unroll()
                    # Sums of the row of outputs that is d above the newest, in place d + 1 after
                    # the row's first multiply-add; in place 0 are zeros.
                    d = pending - e
                    ky = j + d * stride_y
                    if ky < taps_y:
                        base = ky * taps_x
                        if shared_taps:
                            base = 0
                            for q in range(tap_loads):
                                unroll()
                                four = load_taps(
                                    shared, i64(i32(tap_at + ky * tap_pitch + q * VECTOR))
                                )
                                for k in range(VECTOR):
                                    unroll()
                                    tap[q * VECTOR + k] = four[k]
                        held_at, kept_at = (d + min(j, 1)) * vector, (d + 1) * vector
                        for o in range(vector):
                            unroll()
                            total[o] = state[held_at + o]
                        for kx in range(taps_x):
                            unroll()
                            for o in range(vector):
                                unroll()
                                value = window[first_tap + o * stride_x + kx * dilation_x]
                                total[o] = step(total[o], tap[base + kx], value)
                        for o in range(vector):
                            unroll()
                            state[kept_at + o] = total[o]
            for j in range(stride_y):
                unroll()
                fetch(
                    raw, edge, place, present, plane_start, line, y, bottom, x, in_height, in_width,
                    image_row, at_edge, j,
                )  # fmt: skip
                y = i32(y + dilation_y)
                line = advance(line, line_step)
            if row >= 0 and row < rows:
                for o in range(vector):
                    unroll()
                    results[o] = finish(state[(pending + 1) * vector + o], added)
                for q in range(stores):
                    unroll()
                    if q == 0 or i32(out_x + q * per_store) < out_width:
                        store_results(
                            target, q * per_store * out_size, packed(results, q * per_store)
                        )
            target = advance(target, out_step)
            row = i32(row + 1)

    return kernel

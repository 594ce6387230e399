"""The CUDA depthwise kernel for few taps in pixels (NHWC): threads side by side along channels.

A thread owns some channels of one or two columns of outputs and walks down a strip of rows; its
accesses are vectors of channels. Sums wait for the rows below them as in ``depthwise_rows``::

    image row            taps in shared memory      sums that wait for rows below
    p0 p1 p2 p3     x    k0 k1 k2                ->  s s  -> outputs of the oldest row
                         ...                         s s

A tap's vector is loaded once for all columns of outputs, a pixel once for all rows of taps.
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
from numbasep.plan.cuda_depthwise import PixelShape, taps_apart

map_any = device_function(boundaries.map_index)


@lru_cache(maxsize=256)
def pixels_kernel(
    shape: PixelShape, boundary: int, storage: str, compute: str, output: str, activation: str
) -> Kernel:
    """Return the kernel of a shape, boundary, dtypes and activation."""
    return Kernel(
        _pixels(shape, boundary, storage, compute, output, activation),
        [
            types.CPointer(types.uint8),
            types.CPointer(types.uint8),
            *[types.CPointer(raw_type(compute))] * 2,
            *[types.int64] * 2,
            *[types.int32] * 18,
        ],
        shape.threads,
        shape.blocks,
    )


def _pixels(
    shape: PixelShape, boundary: int, storage: str, compute: str, output: str, activation: str
) -> Callable[..., None]:
    taps_y, taps_x, stride_y, stride_x = shape.taps_y, shape.taps_x, shape.stride_y, shape.stride_x
    vector, pixels, dilation_x, pending = (
        shape.vector,
        shape.pixels,
        shape.dilation_x,
        shape.pending,
    )
    back, ahead = taps_apart(stride_x, dilation_x)
    span = (pixels - 1) * stride_x + (taps_x - 1) * dilation_x + 1
    width = shape.lanes * vector
    window_size, row_size = span * vector, pixels * vector
    states = (pending + 2) * row_size
    loads, per_load = vector // shape.load, shape.load
    stores, per_store = vector // shape.store, shape.store
    element, nothing = numba_type(compute), zero(compute)
    raw_in, raw_out = raw_type(storage), raw_type(output)
    in_size, out_size = raw_in.bitwidth // 8, raw_out.bitwidth // 8
    widened, finish = widen(storage, compute), epilogue(activation, compute, output)
    step, load_tap = multiply_add(compute), loader(compute, compute)
    load_taps = load_vector(vector, element)
    load_some = load_bytes(per_load, raw_in)
    store_results, packed = store_bytes(per_store, raw_out), pack(per_store)
    map_index = device_function(lambda i, n: map_any(i, n, boundary))
    maps = boundary != boundaries.FILL
    version = VERSION

    def kernel(
        image: Any,
        out: Any,
        taps: Any,
        bias: Any,
        image_bytes: int,
        out_bytes: int,
        image_row: int,
        out_row: int,
        pixel_in: int,
        units: int,
        across: int,
        strips: int,
        strips_phase: int,
        chunks: int,
        lanes: int,
        height: int,
        in_height: int,
        in_width: int,
        out_height: int,
        out_width: int,
        channels: int,
        origin_y: int,
        origin_x: int,
        dilation_y: int,
    ) -> None:
        t = i32(cuda.threadIdx.x)
        group, chunk = divided(u32(cuda.blockIdx.x), chunks)
        near, lane = divided(u32(t), lanes)
        share = i32(u32(cuda.blockDim.x) // u32(lanes))
        unit = i32(i32(group * share) + near)
        c = i32((i32(chunk * lanes) + lane) * vector)
        # A version below 0 never is; its place is in the key of Numba's cache.
        alive = near < share and unit < units and c < channels and version >= 0
        rest, column = divided(u32(unit), across)
        n, strip = divided(u32(rest), strips)
        phase, strip = divided(u32(strip), strips_phase)

        shared = cuda.shared.array(0, element)
        s = t
        while s < i32((taps_y * taps_x + 1) * width):
            k, at = divided(u32(s), width)
            f = i32(chunk * lanes * vector + at)
            value = nothing
            if f < channels and at < lanes * vector:
                if k < taps_y * taps_x:
                    value = load_tap(taps, i64(k) * channels + f)
                else:
                    value = load_tap(bias, f)
            shared[s] = value
            s = i32(s + i32(cuda.blockDim.x))
        cuda.syncthreads()

        first_row = i32(strip * height)
        rows = i32(i32(out_height - phase + dilation_y - 1) // dilation_y - first_row)
        rows = i32(min(height, rows)) if alive else i32(0)
        y = i32((phase + first_row * dilation_y) * stride_y + origin_y)
        bottom = i32(y + ((rows - 1) * stride_y + taps_y) * dilation_y) if rows > 0 else y
        if not maps:
            bottom = i32(min(bottom, in_height))
        out_x = i32(column * pixels)
        x = i32(out_x * stride_x + origin_x)
        start = advance(image, i64(n) * image_bytes + i64(x) * pixel_in + i64(c) * in_size)
        pixel_out = i64(channels) * out_size
        target = advance(
            out,
            i64(n) * out_bytes
            + (i64(phase) + (i64(first_row) - pending) * dilation_y) * out_row
            + i64(out_x) * pixel_out
            + i64(c) * out_size,
        )
        state = cuda.local.array(states, element)
        window = cuda.local.array(window_size, element)
        results = cuda.local.array(vector, raw_out)
        for k in range(states):
            unroll()
            state[k] = nothing
        tap_at = i32(lane * vector)
        # Of zeros around the image only which columns are in it matters: a bit each.
        present = i32(0)
        if not maps:
            for q in range(taps_x * pixels):
                unroll()
                at = i32(x + (q % pixels * stride_x + q // pixels * dilation_x))
                if at >= 0 and at < in_width:
                    present = i32(present | i32(1 << q))
        row = i32(-pending)
        while row < height:
            # So that taps stay in shared memory and do not fill the registers.
            cuda.syncwarp()
            for j in range(stride_y):
                unroll()
                seen = i32(y < bottom) if maps else present if y >= 0 and y < bottom else i32(0)
                line = step_to(start, i32(map_index(y, in_height)) if maps else y, image_row)
                y = i32(y + dilation_y)
                for kx in range(taps_x):
                    unroll()
                    for p in range(pixels):
                        unroll()
                        if kx < back or p + ahead >= pixels:
                            q = p * stride_x + kx * dilation_x
                            for k in range(vector):
                                unroll()
                                window[q * vector + k] = nothing
                            # Elsewhere than in the image a boundary rule knows a column.
                            at = i32(map_index(i32(x + q), in_width)) - x if maps else i32(q)
                            if seen & i32(1 if maps else 1 << (kx * pixels + p)):
                                source = step_to(line, i32(at), pixel_in)
                                for part in range(loads):
                                    unroll()
                                    if part == 0 or i32(c + part * per_load) < channels:
                                        some = load_some(source, part * per_load * in_size)
                                        for k in range(per_load):
                                            unroll()
                                            place = q * vector + part * per_load + k
                                            window[place] = widened(some[k])
                    for e in range(pending + 1):
                        unroll()
                        # Sums in place d + 1 after their first multiply-add, as in the rows kernel.
                        d = pending - e
                        ky = j + d * stride_y
                        if ky < taps_y:
                            tap = load_taps(shared, i64(tap_at) + (ky * taps_x + kx) * width)
                            before = (d + min(j + kx, 1)) * row_size
                            after = (d + 1) * row_size
                            for p in range(pixels):
                                unroll()
                                q = (p * stride_x + kx * dilation_x) * vector
                                for k in range(vector):
                                    unroll()
                                    state[after + p * vector + k] = step(
                                        state[before + p * vector + k], tap[k], window[q + k]
                                    )
            if row >= 0 and row < rows:
                added = load_taps(shared, i64(tap_at) + taps_y * taps_x * width)
                for p in range(pixels):
                    unroll()
                    if p == 0 or i32(out_x + p) < out_width:
                        place = advance(target, p * pixel_out)
                        for k in range(vector):
                            unroll()
                            total = state[(pending + 1) * row_size + p * vector + k]
                            results[k] = finish(total, added[k])
                        for part in range(stores):
                            unroll()
                            if part == 0 or i32(c + part * per_store) < channels:
                                store_results(
                                    place, part * per_store * out_size,
                                    packed(results, part * per_store),
                                )  # fmt: skip
            target = step_to(target, out_row, dilation_y)
            row = i32(row + 1)

    return kernel

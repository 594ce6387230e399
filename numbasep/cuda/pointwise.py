"""Pointwise convolution on CUDA: the launcher, and the kernel of single multiply-adds.

``out[o, p] = activation(bias[o] + sum_c weight[o, c] * image[c, p])``

A block computes a tile of outputs by pixels. ``depth`` channels of weights and image at a time go
through registers to shared memory, channel by channel, two buffers in turn; a thread multiplies
vectors of both into a square of sums::

    image    channels x pixels            o .  . |  . |      one thread's 8 x 8 sums: two vectors
    weights  channels x outputs      ->   u .--+---+--.      down, two across, each next to those
             (shared memory)              t .  | * |         of its neighbours
                                             pixels

In NCHW rows of the result are outputs and in NHWC pixels: columns are what is side by side in
memory, so that vectors across are stored as they are. Pixels of a batch count on through its
images. The weights come from the host channel by channel, padded to whole tiles.

Order of additions, whatever the tile: channels ascending, from zero, then the bias.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbasep.cuda import launch
from numbasep.cuda.activations import epilogue
from numbasep.cuda.elements import multiply_add, numba_type, pack, raw_type, widen, zero
from numbasep.cuda.launch import VERSION, Kernel, cuda, types
from numbasep.cuda.pieces import locator
from numbasep.cuda.pointwise_mma import mma_kernel
from numbasep.cuda.primitives import (
    advance,
    i32,
    i64,
    load_bytes,
    load_vector,
    store_bytes,
    store_vector,
    unroll,
)
from numbasep.plan.channelwise import ITEMSIZE, PointwisePlan
from numbasep.plan.cuda_pointwise import FmaTile, MmaTile, alignments, choose

Array = NDArray[Any]


def run_pointwise(
    plan: PointwisePlan,
    image: Any,
    weight: Array,
    bias: Array,
    out: Any,
    stream: Any = None,
    tile: FmaTile | MmaTile | None = None,
) -> None:
    """Mix the channels of a device array, in one launch; arguments as in ``plan.channelwise``.

    stream: of numba.cuda, cuda.core, CuPy or torch, or a handle; the default stream without.
    tile: what a block computes, in place of ``choose``'s. Results by single multiply-adds do not
        depend on it.
    """
    source, target = launch.view(image), launch.view(out)
    if tile is None:
        aligned = alignments(plan, source.address, target.address)
        tile = choose(plan, *aligned, launch.tensor_cores())
    else:
        tile.check()
    if isinstance(tile, MmaTile):
        kernel = mma_kernel(tile, plan.output, plan.activation)
        shared = tile.shared
    else:
        kernel = fma_kernel(tile, plan.storage, plan.compute, plan.output, plan.activation)
        shared = tile.shared(ITEMSIZE[plan.compute])
    arranged = launch.upload(weight, stream, (_arranged, tile.outputs, tile.depth, _form(tile)))
    padded = launch.upload(bias, stream, (_padded, tile.outputs))
    pixels = plan.batch * plan.pixels
    tiles = -(-plan.outputs // tile.outputs)
    kernel.launch(
        -(-pixels // tile.pixels) * tiles,
        tile.threads,
        shared,
        stream,
        (
            source.pointer("uint8"),
            target.pointer("uint8"),
            launch.view(arranged).pointer("uint8"),
            launch.view(padded).pointer("uint8"),
            np.int64(pixels),
            np.int64(plan.pixels),
            *map(np.int32, (plan.channels, plan.outputs, tiles)),
        ),
    )


def _form(tile: FmaTile | MmaTile) -> str:
    return tile.operand if isinstance(tile, MmaTile) else "channels"


def _padded(bias: Array, outputs: int) -> Array:
    return np.pad(bias, (0, -len(bias) % outputs))


def _arranged(weight: Array, outputs: int, depth: int, form: str) -> Array:
    """Return weights as the kernels read them, padded to whole tiles.

    form: "channels": (channels, outputs); else, for tensor cores, the operand type, in bits of
        which they are, (outputs, channels).
    """
    rows, columns = weight.shape
    shape = rows + -rows % outputs, columns + -columns % depth
    # A sum plus the product -0.0 * 0.0 keeps its bits, -0.0 too.
    whole = np.full(shape, -0.0 if weight.dtype.kind == "f" else 0, weight.dtype)
    whole[:rows, :columns] = weight
    if form == "channels":
        return np.ascontiguousarray(whole.T)
    if form == "float16":
        return whole.astype(np.float16).view(np.uint16)
    bits = np.ascontiguousarray(whole).view(np.uint32)
    if form == "bfloat16":
        return (bits >> np.uint32(16)).astype(np.uint16)
    # To tf32: the nearest, halves away from zero, as the device does it; infinity and NaN stay.
    special = bits & np.uint32(0x7F800000) == 0x7F800000
    return np.where(special, bits, (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000))


@lru_cache(maxsize=256)
def fma_kernel(tile: FmaTile, storage: str, compute: str, output: str, activation: str) -> Kernel:
    """Return the kernel of a tile, three dtypes and an activation."""
    pointer = types.CPointer(types.uint8)
    return Kernel(
        _fma(tile, storage, compute, output, activation),
        [*[pointer] * 4, *[types.int64] * 2, *[types.int32] * 3],
        tile.threads,
        tile.blocks,
    )


def _fma(
    tile: FmaTile, storage: str, compute: str, output: str, activation: str
) -> Callable[..., None]:
    planar, vector, depth = tile.planar, tile.vector, tile.depth
    groups_down, groups_across = tile.groups
    lanes_down, lanes_across = tile.lanes
    warps_across = tile.warps[1]
    lanes = lanes_down * lanes_across
    # From one of a thread's vectors to the next.
    next_down, next_across = tile.rows // groups_down, tile.columns // groups_across
    rows, columns = vector * groups_down, vector * groups_across
    sums_count = rows * columns
    tile_outputs, tile_pixels, threads = tile.outputs, tile.pixels, tile.threads
    pitch = tile.pitch
    # Shared memory: two buffers, in each the weights, then the image.
    image_at = depth * tile_outputs
    buffer_size = image_at + depth * pitch
    first_down, pitch_down = (0, tile_outputs) if planar else (image_at, pitch)
    first_across, pitch_across = (image_at, pitch) if planar else (0, tile_outputs)

    spread, weights = tile.image, tile.weights
    piece, pieces, bases = spread.piece, spread.count, spread.bases
    next_pixel, next_channel = spread.next_pixel, spread.next_channel
    image_all, weights_all = spread.total >= threads, weights.total >= threads
    image_total, weights_total = spread.total, weights.total
    weight_pieces, weight_inner, weight_bases = weights.count, weights.inner, weights.bases
    weight_next, weight_channel = weights.next_pixel, weights.next_channel
    held, weights_held = pieces * piece, weight_pieces * vector
    image_vector, out_vector = tile.image_vector, tile.out_vector

    element, raw_in, raw_out = numba_type(compute), raw_type(storage), raw_type(output)
    size, in_size, out_size = (kind.bitwidth // 8 for kind in (element, raw_in, raw_out))
    nothing = zero(compute)
    empty = np.dtype(str(raw_in)).type(0)
    locate, widened = locator(spread, in_size), widen(storage, compute)
    step, finish = multiply_add(compute), epilogue(activation, compute, output)
    load_piece, load_weights = load_bytes(piece, raw_in), load_bytes(vector, element)
    # Plain indices would be tested for being negative.
    store_number = store_vector(1, element)
    load_numbers, store_numbers = load_vector(vector, element), store_vector(vector, element)
    store_whole, store_one = store_bytes(vector, raw_out), store_bytes(1, raw_out)
    packed = pack(vector)
    version = VERSION

    def kernel(
        image: Any,
        out: Any,
        weight: Any,
        bias: Any,
        pixels: int,
        plane: int,
        channels: int,
        outputs: int,
        tiles: int,
    ) -> None:
        shared = cuda.shared.array(0, element)
        t = i32(cuda.threadIdx.x)
        # A version below 0 never is; its place is in the key of Numba's cache.
        block = i64(cuda.blockIdx.x) if version >= 0 else pixels
        pixel_tile = i64(block // tiles)
        first_output = i32(i32(block - pixel_tile * tiles) * tile_outputs)
        first_pixel = i64(pixel_tile * tile_pixels)

        places = cuda.local.array(bases, types.int64)
        limits = cuda.local.array(bases, types.int32)
        channel, near = locate(t, first_pixel, pixels, plane, channels, places, limits)
        channel_size = i64(plane * in_size) if planar else i64(in_size)
        pixel_size = i64(channels) * in_size
        image_to = i64(image_at + i32(channel * pitch + near))
        # Of the weights all are there.
        weight_k = i32(t // weight_inner)
        weight_o = i32(i32(t - weight_k * weight_inner) * vector)
        padded = i32(tiles * tile_outputs)
        weight_place = (i64(weight_k) * padded + first_output + weight_o) * size
        weight_step = i64(padded) * size
        weights_to = i64(weight_k * tile_outputs + weight_o)

        image_values = cuda.local.array(held, raw_in)
        weight_values = cuda.local.array(weights_held, element)
        sums = cuda.local.array(sums_count, element)
        down = cuda.local.array(rows, element)
        across = cuda.local.array(columns, element)
        for i in range(sums_count):
            unroll()
            sums[i] = nothing

        warp = i32(t // lanes)
        lane = i32(t - warp * lanes)
        warp_down = i32(warp // warps_across)
        lane_down = i32(lane // lanes_across)
        my_down = i32(vector * i32(warp_down * lanes_down + lane_down))
        my_across = i32(
            vector
            * i32(
                i32(warp - warp_down * warps_across) * lanes_across
                + i32(lane - lane_down * lanes_across)
            )
        )

        steps = i32(i32(channels + depth - 1) // depth)
        for s in range(i32(steps + 1)):
            if s < steps:
                # The next channels: on their way to registers while this one's are multiplied.
                for j in range(pieces):
                    unroll()
                    if planar:
                        b = j % bases
                        k = (j // bases) * next_channel
                        there = i32(s * depth + channel) + k < limits[b]
                        source = advance(image, places[b] + k * channel_size)
                    else:
                        there = i32(s * depth + channel) < channels and j * next_pixel < limits[0]
                        source = advance(image, places[0] + j * next_pixel * pixel_size)
                    for v in range(piece):
                        unroll()
                        image_values[j * piece + v] = empty
                    if there:
                        found = load_piece(source, 0)
                        for v in range(piece):
                            unroll()
                            image_values[j * piece + v] = found[v]
                for b in range(bases):
                    unroll()
                    places[b] += depth * channel_size
                if weights_all or t < weights_total:
                    for j in range(weight_pieces):
                        unroll()
                        at = (
                            weight_place
                            + (j // weight_bases) * weight_channel * weight_step
                            + (j % weight_bases) * weight_next * size
                        )
                        taps = load_weights(advance(weight, at), 0)
                        for v in range(vector):
                            unroll()
                            weight_values[j * vector + v] = taps[v]
                weight_place += depth * weight_step
            if s > 0:
                buffer = i64((s - 1) & 1) * buffer_size
                down_at = i64(buffer + first_down + my_down)
                across_at = i64(buffer + first_across + my_across)
                for k in range(depth):
                    unroll()
                    for g in range(groups_down):
                        unroll()
                        numbers = load_numbers(shared, down_at + (k * pitch_down + g * next_down))
                        for v in range(vector):
                            unroll()
                            down[g * vector + v] = numbers[v]
                    for g in range(groups_across):
                        unroll()
                        numbers = load_numbers(
                            shared, across_at + (k * pitch_across + g * next_across)
                        )
                        for v in range(vector):
                            unroll()
                            across[g * vector + v] = numbers[v]
                    for i in range(rows):
                        unroll()
                        for j in range(columns):
                            unroll()
                            if planar:
                                sums[i * columns + j] = step(
                                    sums[i * columns + j], down[i], across[j]
                                )
                            else:
                                sums[i * columns + j] = step(
                                    sums[i * columns + j], across[j], down[i]
                                )
            if s < steps:
                buffer = i64(s & 1) * buffer_size
                if image_all or t < image_total:
                    for j in range(pieces):
                        unroll()
                        if planar:
                            b = j % bases
                            k = (j // bases) * next_channel
                            at = buffer + image_to + (k * pitch + b * next_pixel)
                            if image_vector:
                                for v in range(vector):
                                    unroll()
                                    across[v] = widened(image_values[j * piece + v])
                                store_numbers(shared, at, packed(across, 0))
                            else:
                                store_number(shared, at, (widened(image_values[j]),))
                        else:
                            at = buffer + image_to + j * next_pixel
                            for v in range(piece):
                                unroll()
                                value = widened(image_values[j * piece + v])
                                store_number(shared, at + v * pitch, (value,))
                if weights_all or t < weights_total:
                    for j in range(weight_pieces):
                        unroll()
                        at = (
                            buffer
                            + weights_to
                            + (j // weight_bases) * weight_channel * tile_outputs
                            + (j % weight_bases) * weight_next
                        )
                        store_numbers(shared, at, packed(weight_values, j * vector))
                cuda.syncthreads()

        # Biases, padded to whole tiles, take the place of the factors.
        if planar:
            for g in range(groups_down):
                unroll()
                at = i64(first_output + my_down + g * next_down) * size
                numbers = load_weights(advance(bias, at), 0)
                for v in range(vector):
                    unroll()
                    down[g * vector + v] = numbers[v]
        else:
            for g in range(groups_across):
                unroll()
                at = i64(first_output + my_across + g * next_across) * size
                numbers = load_weights(advance(bias, at), 0)
                for v in range(vector):
                    unroll()
                    across[g * vector + v] = numbers[v]
        results = cuda.local.array(vector, raw_out)
        for g in range(groups_across):
            unroll()
            for u in range(1 if out_vector else vector):
                unroll()
                # A column, or the first of a vector of them, and where it is in the first row.
                c = i32(my_across + (g * next_across + u))
                if planar:
                    pixel = i64(first_pixel + i64(c))
                    column_ok = pixel < pixels
                    place = i64(pixel + i64(pixel // plane) * plane * i64(outputs - 1))
                else:
                    column_ok = first_output + c < outputs
                    place = i64(first_output + c)
                for i in range(rows):
                    unroll()
                    r = i32(my_down + ((i // vector) * next_down + i % vector))
                    if planar:
                        o = i32(first_output + r)
                        row_ok = o < outputs
                        at = i64(place + i64(o) * plane)
                    else:
                        row_ok = first_pixel + i64(r) < pixels
                        at = i64(place + (first_pixel + i64(r)) * outputs)
                    if column_ok and row_ok:
                        line = advance(out, at * out_size)
                        for v in range(vector if out_vector else 1):
                            unroll()
                            j = g * vector + u + v
                            added = down[i] if planar else across[j]
                            results[v] = finish(sums[i * columns + j], added)
                        if out_vector:
                            store_whole(line, 0, packed(results, 0))
                        else:
                            store_one(line, 0, (results[0],))

    return kernel

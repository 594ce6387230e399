"""The stages of the fused CUDA kernel (see ``fused``), as functions that it calls."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbasep import boundary as boundaries
from numbasep.cuda.activations import biased
from numbasep.cuda.elements import multiply_add, narrow, numba_type, raw_type, widen, zero
from numbasep.cuda.launch import device_function, types
from numbasep.cuda.primitives import (
    copy_async,
    i32,
    i64,
    load_bytes,
    load_vector,
    mma,
    store_bytes,
    store_vector,
    to_tf32,
    u32,
    unroll,
)
from numbasep.plan.cuda_fused import FusedShape, taps_held

map_index = device_function(boundaries.map_index)


def staging(shape: FusedShape, storage: str) -> Any:
    """Return what copies the halo of a chunk's channels into shared memory, ``[channel][y][x]``.

    Of ``count`` channels from element ``start`` of the image, whose neighbours are ``plane``
    elements apart, the rows from ``y`` and columns from ``x``, to element ``at`` of ``halo``. The
    thread's ``place``: its first channel and how many are between its own, its first row and
    column, and how many rows and columns it goes on by.
    """
    raw = raw_type(storage)
    size, unit = raw.bitwidth // 8, max(shape.unit, 1)
    copied = shape.unit > 0
    load_one, store_raw = load_bytes(1, raw), store_vector(1, raw)
    nothing = np.uint16(0) if raw == types.uint16 else np.dtype(storage).type(0)

    def single(halo: Any, to: int, image: Any, at: int, present: bool) -> None:
        value = nothing
        if present:
            value = load_one(image, at)[0]
        store_raw(halo, to, (value,))

    single = device_function(single)
    place_of = device_function(
        (lambda y, x, width, pitch: i64(y) * width + x)
        if shape.planar
        else (lambda y, x, width, pitch: (i64(y) * width + x) * pitch)
    )
    put = copy_async(size * unit) if copied else single

    def stage(
        halo: Any, image: Any, at: int, start: int, plane: int, count: int, y: int, x: int,
        height: int, width: int, pitch: int, boundary: int, rows: int, columns: int,
        row_pitch: int, channel_pitch: int, place: Any,
    ) -> None:  # fmt: skip
        first, groups, row, column, more_rows, more_columns = place
        while row < rows:
            my = i32(map_index(i32(y + row), height, boundary))
            mx = i32(x + column)
            whole = True
            if unit == 1:
                mx = i32(map_index(mx, width, boundary))
            else:
                whole = mx >= 0 and mx + unit <= width
            to = i32(at + row * row_pitch + column)
            row = i32(row + more_rows)
            column = i32(column + more_columns)
            if column >= columns:
                column = i32(column - columns)
                row = i32(row + 1)
            if whole:
                source = i64(start + place_of(my, mx, width, pitch)) * size
                present = my >= 0 and mx >= 0
                k = first
                while k < count:
                    put(
                        halo, i64(to + k * channel_pitch), image,
                        i64(source + i64(k) * plane * size), present,
                    )  # fmt: skip
                    k = i32(k + groups)
            else:
                for j in range(unit):
                    near = i32(map_index(i32(mx + j), width, boundary))
                    source = i64(start + place_of(my, near, width, pitch)) * size
                    present = my >= 0 and near >= 0
                    k = first
                    while k < count:
                        single(
                            halo, i64(to + j + k * channel_pitch), image,
                            i64(source + i64(k) * plane * size), present,
                        )  # fmt: skip
                        k = i32(k + groups)

    return device_function(stage)


def copying(size: int, elements: int, threads: int) -> Any:
    """Return what copies ``count`` times ``size`` bytes, that many elements of ``array``."""
    copy = copy_async(size)

    def copies(array: Any, at: int, pointer: Any, offset: int, count: int, t: int) -> None:
        i = i32(t)
        while i < count:
            copy(array, i64(at + elements * i), pointer, i64(offset + i64(i) * size), True)
            i = i32(i + threads)

    return device_function(copies)


def packer(multiply: str, storage: str, compute: str) -> Any:
    """Return ``pack(one, other) -> word`` of one or two channels' results."""
    if multiply == "fma":
        return device_function(lambda one, other: one)
    if multiply == "tf32":
        return device_function(lambda one, other: to_tf32(one))
    convert = narrow(compute, storage)
    return device_function(
        lambda one, other: u32(u32(convert(one)) | u32(u32(convert(other)) << u32(16)))
    )


def filtering(shape: FusedShape, storage: str, compute: str, activation: str) -> Any:
    """Return what filters ``rows`` pixels below each other of one filter into ``results``.

    at: of the first pixel's window in ``halo``; tap_at: of the filter's taps, then its bias.
    """
    raw, element = raw_type(storage), numba_type(compute)
    load_raw, load_tap, load_taps = (
        load_vector(count, kind) for count, kind in ((1, raw), (1, element), (4, element))
    )
    quantity = taps_held(shape.taps_y * shape.taps_x)
    value_of, step, nothing = widen(storage, compute), multiply_add(compute), zero(compute)
    finish = biased(activation, compute)
    rows, taps_y, taps_x = shape.rows, shape.taps_y, shape.taps_x
    stride, dilation_y, dilation_x = shape.stride_y, shape.dilation_y, shape.dilation_x
    window_rows = (rows - 1) * stride + (taps_y - 1) * dilation_y + 1

    def few(
        halo: Any, taps: Any, at: int, tap_at: int, row_pitch: int, results: Any, first: int,
        strides: Any, registers: Any,
    ) -> None:  # fmt: skip
        window, held = registers
        for k in range(0, quantity, 4):
            unroll()
            part = load_taps(taps, i64(tap_at) + k)
            for j in range(4):
                unroll()
                held[k + j] = part[j]
        for r in range(rows):
            unroll()
            results[first + r] = nothing
        for j in range(window_rows):
            unroll()
            for k in range(taps_x):
                unroll()
                near = i64(i32(at + j * row_pitch)) + k * dilation_x
                window[k] = value_of(load_raw(halo, near)[0])
            for r in range(rows):
                unroll()
                for ky in range(taps_y):
                    unroll()
                    if r * stride + ky * dilation_y == j:
                        for k in range(taps_x):
                            unroll()
                            tap = held[ky * taps_x + k]
                            results[first + r] = step(results[first + r], tap, window[k])
        for r in range(rows):
            unroll()
            results[first + r] = finish(results[first + r], held[taps_y * taps_x])

    def many(
        halo: Any, taps: Any, at: int, tap_at: int, row_pitch: int, results: Any, first: int,
        strides: Any, registers: Any,
    ) -> None:  # fmt: skip
        pitch, down, across, high, wide = strides
        for r in range(rows):
            unroll()
            results[first + r] = nothing
        for ky in range(high):
            near = i32(at + ky * down)
            for _ in range(wide):
                tap = load_tap(taps, i64(tap_at))[0]
                for r in range(rows):
                    unroll()
                    value = value_of(load_raw(halo, i64(i32(near + r * pitch)))[0])
                    results[first + r] = step(results[first + r], tap, value)
                near = i32(near + across)
                tap_at = i32(tap_at + 1)
        bias = load_tap(taps, i64(tap_at))[0]
        for r in range(rows):
            unroll()
            results[first + r] = finish(results[first + r], bias)

    return device_function(few if taps_y else many)


def multiplying(shape: FusedShape, compute: str) -> Any:
    """Return what adds one chunk's products to a lane's sums."""
    groups_m, groups_n = shape.groups_m, shape.groups_n
    m_pitch, n_pitch = shape.m_pitch, shape.n_pitch
    if shape.multiply == "fma":
        element = numba_type(compute)
        step = multiply_add(compute)
        load = load_vector(4, element)
        high, wide = 4 * groups_m, 4 * groups_n

        def product(sums: Any, words: Any, m_at: int, n_at: int, registers: Any) -> None:
            column, row = registers
            for i in range(groups_m):
                unroll()
                part = load(words, m_at + 16 * i)
                for j in range(4):
                    unroll()
                    column[4 * i + j] = part[j]
            for i in range(groups_n):
                unroll()
                part = load(words, n_at + 32 * i)
                for j in range(4):
                    unroll()
                    row[4 * i + j] = part[j]
            for i in range(high):
                unroll()
                for j in range(wide):
                    unroll()
                    sums[i * wide + j] = step(sums[i * wide + j], column[i], row[j])

        product = device_function(product)

        def add(sums: Any, words: Any, m_at: int, n_at: int, count: int, registers: Any) -> None:
            m_next, n_next = i64(m_at), i64(n_at)
            left = i32(count)
            while left >= 4:
                product(sums, words, m_next, n_next, registers)
                product(sums, words, m_next + m_pitch, n_next + n_pitch, registers)
                product(sums, words, m_next + 2 * m_pitch, n_next + 2 * n_pitch, registers)
                product(sums, words, m_next + 3 * m_pitch, n_next + 3 * n_pitch, registers)
                m_next += 4 * m_pitch
                n_next += 4 * n_pitch
                left = i32(left - 4)
            while left > 0:
                product(sums, words, m_next, n_next, registers)
                m_next += m_pitch
                n_next += n_pitch
                left = i32(left - 1)

        return device_function(add)
    multiply = mma(shape.multiply)
    load_words = load_vector(4, types.uint32)
    wide = 8 * groups_n
    shape_words = shape.words

    def add_matrices(
        sums: Any, words: Any, m_at: int, n_at: int, count: int, registers: Any
    ) -> None:
        _, right = registers
        for k in range(0, shape_words, 8):
            unroll()
            if k < count:
                for j in range(groups_n):
                    unroll()
                    for half in range(2):
                        unroll()
                        part = load_words(words, i64(n_at) + ((k + 4 * half) * n_pitch + 32 * j))
                        for c in range(4):
                            unroll()
                            right[8 * j + 2 * c + half] = part[c]
                for i in range(groups_m):
                    unroll()
                    low = load_words(words, i64(m_at) + (k * m_pitch + 32 * i))
                    high = load_words(words, i64(m_at) + ((k + 4) * m_pitch + 32 * i))
                    for r in range(0, 4, 2):
                        unroll()
                        left = (low[r], low[r + 1], high[r], high[r + 1])
                        for j in range(groups_n):
                            unroll()
                            for c in range(4):
                                unroll()
                                # Of a fragment's columns 2 q and 2 q + 1: element c of two quads.
                                at = (4 * i + r) * wide + 8 * j + c
                                done = multiply(
                                    left,
                                    (right[8 * j + 2 * c], right[8 * j + 2 * c + 1]),
                                    (sums[at], sums[at + 4], sums[at + wide], sums[at + wide + 4]),
                                )
                                sums[at] = done[0]
                                sums[at + 4] = done[1]
                                sums[at + wide] = done[2]
                                sums[at + wide + 4] = done[3]

    return device_function(add_matrices)


def writing(output: str) -> Any:
    """Return what stores the first ``count`` of four neighbours from an element of ``out``."""
    raw = raw_type(output)
    size = raw.bitwidth // 8
    store_four, store_one = store_bytes(4, raw), store_bytes(1, raw)

    def write(out: Any, at: int, values: Any, count: int, aligned: int) -> None:
        place = i64(at) * size
        if aligned != 0 and count >= 4:
            store_four(out, place, values)
        else:
            for j in range(4):
                unroll()
                if j < count:
                    store_one(out, place + j * size, (values[j],))

    return device_function(write)

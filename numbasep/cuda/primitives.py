"""Hardware primitives under one name each, with plain-Python twins for the simulator.

A pointer is a ``types.CPointer`` on a device and a ``HostPointer`` in the simulator; both are
indexed in elements, relative to where the array starts, negative indices included. One to bytes is
also moved by ``advance`` and read and written by ``load_bytes`` and ``store_bytes``. Vectors are
accessed by up to 16 bytes at once and have to be aligned to that; the twins check it, and bounds.

The arithmetic is pinned: ``fma`` is one rounding wherever it runs, so that kernels of different
shapes give equal bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from numbasep.cuda.launch import SIMULATOR, types

if SIMULATOR:
    i32 = u32 = i64 = int

    def fma(a: Any, b: Any, c: Any) -> Any:
        """Return a * b + c with one rounding (float64: two, in the simulator only)."""
        kind = type(c)
        return kind(float(a) * float(b) + float(c))

    def half_to_float(bits: Any) -> Any:
        return np.float32(np.uint16(bits).view(np.float16))

    def float_to_half(value: Any) -> Any:
        return np.float16(value).view(np.uint16)

    double_to_half = integer_to_half = float_to_half

    def bits_to_float(bits: Any) -> Any:
        return np.uint32(int(bits) & 0xFFFFFFFF).view(np.float32)

    def float_to_bits(value: Any) -> int:
        return int(np.float32(value).view(np.uint32))

    def truncate_to_float(value: Any) -> Any:
        """Return a float64 or int64 as float32, rounded towards zero."""
        near = np.float32(value)
        exact = int(value) if isinstance(value, (int, np.integer)) else float(value)
        if np.isfinite(exact) and abs(_exact(near)) > abs(exact):
            near = np.nextafter(near, np.float32(0))
        return near

    def _exact(value: Any) -> Any:
        number = float(value)
        return int(number) if number.is_integer() else number

    def round_even(value: Any) -> Any:
        return np.rint(value)

    def wrapping_fma(a: Any, b: Any, c: Any) -> Any:
        """Return a * b + c of 32-bit integers, modulo 2**32."""
        exact = int(a) * int(b) + int(c)
        return np.int32((exact + 2**31) % 2**32 - 2**31)

    def exp(value: Any) -> Any:
        return np.exp(value)

    def erf(value: Any) -> Any:
        return type(value)(math.erf(value))

    def unroll() -> None:
        """Mark the loop around this call to be unrolled in full."""

    def advance(pointer: Any, count: int) -> Any:
        """Return a byte pointer moved by ``count`` bytes."""
        return pointer.advanced(count)

    def step_to(pointer: Any, index: int, step: int) -> Any:
        """Return a byte pointer moved by ``index * step``, two 32-bit integers."""
        return pointer.advanced(int(index) * int(step))

    def load_bytes(count: int, dtype: Any) -> Callable[..., Any]:
        """Return ``load(byte pointer, byte offset) -> count elements``: see the device's."""

        def load(pointer: Any, offset: int) -> tuple[Any, ...]:
            return tuple(pointer.vector(offset, count, str(dtype)))

        return load

    def store_bytes(count: int, dtype: Any) -> Callable[..., None]:
        """Return ``store(byte pointer, byte offset, elements)``: see the device's."""

        def store(pointer: Any, offset: int, values: Sequence[Any]) -> None:
            assert len(values) == count
            pointer.vector(offset, count, str(dtype))[:] = values

        return store

    def load_vector(count: int, dtype: Any) -> Callable[..., Any]:
        """Return ``load(shared array, index) -> count elements``: see the device's."""

        def load(array: Any, index: int) -> tuple[Any, ...]:
            return tuple(_vector(array, index, count))

        return load

    def store_vector(count: int, dtype: Any) -> Callable[..., None]:
        """Return ``store(shared array, index, elements)``: see the device's."""

        def store(array: Any, index: int, values: Sequence[Any]) -> None:
            assert len(values) == count
            _vector(array, index, count)[:] = values

        return store

    def _vector(array: Any, index: int, count: int) -> Any:
        if not 0 <= index <= len(array) - count:
            raise IndexError(f"elements {index} to {index + count - 1} of {len(array)}")
        size = min(count * array.itemsize, 16)
        if index * array.itemsize % size:
            raise ValueError(f"misaligned access of {size} bytes at element {index}")
        return array[index : index + count]

    def round_to_integer(name: str) -> Callable[[Any], Any]:
        """Return ``convert(float32)`` to an integer of at most 32 bits: see the device's."""
        limits = np.iinfo(name)
        kind = np.dtype(name).type

        def convert(value: Any) -> Any:
            if value != value:
                return kind(0)
            return kind(min(max(int(limits.min), np.rint(float(value))), int(limits.max)))

        return convert

else:
    from numbasep.cuda.intrinsics import (
        advance,
        bits_to_float,
        double_to_half,
        erf,
        exp,
        float_to_bits,
        float_to_half,
        fma,
        half_to_float,
        integer_to_half,
        load_bytes,
        load_vector,
        round_even,
        round_to_integer,
        step_to,
        store_bytes,
        store_vector,
        truncate_to_float,
        unroll,
        wrapping_fma,
    )

    i32, u32, i64 = types.int32, types.uint32, types.int64

__all__ = [
    "advance",
    "bits_to_float",
    "double_to_half",
    "erf",
    "exp",
    "float_to_bits",
    "float_to_half",
    "fma",
    "half_to_float",
    "i32",
    "i64",
    "integer_to_half",
    "load_bytes",
    "load_vector",
    "round_even",
    "round_to_integer",
    "step_to",
    "store_bytes",
    "store_vector",
    "truncate_to_float",
    "u32",
    "unroll",
    "wrapping_fma",
]

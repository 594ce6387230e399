"""Hardware primitives under one name each, with plain-Python twins for the simulator.

A pointer is a ``types.CPointer`` on a device and a ``HostPointer`` in the simulator; both are
indexed in elements, relative to where the array starts, negative indices included. Vector accesses
need an index whose element is aligned to the whole vector; the twins check that, and bounds.

The arithmetic is pinned: ``fma`` is one rounding wherever it runs, so that kernels of different
shapes give equal bits.
"""

from __future__ import annotations

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

    def unroll() -> None:
        """Mark the loop around this call to be unrolled in full."""

    def load_vector(count: int, dtype: Any) -> Callable[..., Any]:
        """Return ``load(pointer, index) -> count elements``, one access of up to 16 bytes."""

        def load(pointer: Any, index: int) -> tuple[Any, ...]:
            if isinstance(pointer, np.ndarray):
                assert index % count == 0, f"misaligned vector access at element {index}"
                assert 0 <= index <= len(pointer) - count, f"element {index} of {len(pointer)}"
                return tuple(pointer[index : index + count])
            return tuple(pointer.vector(index, count))

        return load

    load_global_vector = load_vector

    def store_vector(count: int, dtype: Any) -> Callable[..., None]:
        """Return ``store(pointer, index, elements)``, one access of up to 16 bytes."""

        def store(pointer: Any, index: int, values: Sequence[Any]) -> None:
            assert len(values) == count
            if isinstance(pointer, np.ndarray):
                assert index % count == 0, f"misaligned vector access at element {index}"
                assert 0 <= index <= len(pointer) - count, f"element {index} of {len(pointer)}"
                pointer[index : index + count] = values
            else:
                pointer.vector(index, count)[:] = values

        return store

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
        bits_to_float,
        double_to_half,
        float_to_bits,
        float_to_half,
        fma,
        half_to_float,
        integer_to_half,
        load_global_vector,
        load_vector,
        round_even,
        round_to_integer,
        store_vector,
        truncate_to_float,
        unroll,
    )

    i32, u32, i64 = types.int32, types.uint32, types.int64

__all__ = [
    "bits_to_float",
    "double_to_half",
    "float_to_bits",
    "float_to_half",
    "fma",
    "half_to_float",
    "i32",
    "i64",
    "integer_to_half",
    "load_global_vector",
    "load_vector",
    "round_even",
    "round_to_integer",
    "store_vector",
    "truncate_to_float",
    "u32",
    "unroll",
]

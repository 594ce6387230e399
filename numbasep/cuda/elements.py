"""Elements of an array to the accumulator's dtype and back, for kernels of every dtype.

float16 and bfloat16 travel as their 16 bits, complex elements as two real ones. Integers are
rounded half to even and saturated, once; NaN becomes 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from numbasep.cuda.launch import SIMULATOR, device_function, types
from numbasep.cuda.primitives import (
    bits_to_float,
    double_to_half,
    float_to_bits,
    float_to_half,
    fma,
    half_to_float,
    integer_to_half,
    round_even,
    round_to_integer,
    truncate_to_float,
    u32,
    wrapping_fma,
)

REAL_PARTS = {"complex64": "float32", "complex128": "float64"}


def real_name(name: str) -> str:
    """Return the dtype of an element's parts: itself, or a complex number's half."""
    return REAL_PARTS.get(name, name)


def parts(name: str) -> int:
    """Return how many real elements make one: 2 for complex."""
    return 2 if name in REAL_PARTS else 1


def numba_type(name: str) -> Any:
    return getattr(types, name)


def raw_type(name: str) -> Any:
    """Return the type that a pointer to elements of a dtype points to."""
    return types.uint16 if name in ("float16", "bfloat16") else numba_type(real_name(name))


def caster(name: str) -> Any:
    """Return the type that converts a number to a dtype, on the device or in the simulator."""
    return np.dtype(name).type if SIMULATOR else numba_type(name)


def zero(compute: str) -> Any:
    return caster(compute)(0) if SIMULATOR else np.dtype(compute).type(0)


@lru_cache
def widen(storage: str, compute: str) -> Any:
    """Return ``convert(raw) -> value`` for real dtypes."""
    cast = caster(compute)
    if storage == compute:
        return device_function(lambda raw: raw)
    if storage == "float16":

        def convert(raw: Any) -> Any:
            return cast(half_to_float(raw))

    elif storage == "bfloat16":

        def convert(raw: Any) -> Any:
            return cast(bits_to_float(u32(u32(raw) << u32(16))))

    else:

        def convert(raw: Any) -> Any:
            return cast(raw)

    return device_function(convert)


@device_function
def _bfloat16_bits(value: Any) -> Any:
    """Return a float32 rounded half to even to bfloat16; a NaN stays one."""
    bits = float_to_bits(value)
    if value != value:
        return u32(0x7FC0)
    return u32((u32(bits) + u32(0x7FFF) + u32((bits >> u32(16)) & u32(1))) >> u32(16))


@lru_cache
def narrow(compute: str, output: str) -> Any:
    """Return ``convert(value) -> raw`` for real dtypes: one rounding, saturating."""
    if compute == output:
        return device_function(lambda value: value)
    if output == "bfloat16":
        return device_function(_to_bfloat16(compute))
    if output == "float16":
        return {"float32": float_to_half, "float64": double_to_half, "int64": integer_to_half}[
            compute
        ]
    cast = caster(output)
    if output in ("float32", "float64"):
        return device_function(lambda value: cast(value))
    if compute == "float32" and not output.endswith("64"):
        return round_to_integer(output)
    return device_function(_to_integer(compute, output))


def _to_bfloat16(compute: str) -> Callable[[Any], Any]:
    raw = caster("uint16")
    back = caster(compute)
    if compute == "float32":
        return lambda value: raw(_bfloat16_bits(value))

    def convert(value: Any) -> Any:
        # Rounding to odd first keeps what decides the second rounding (Boldo and Melquiond,
        # Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd).
        near = truncate_to_float(value)
        if near == near and back(near) != value:
            near = bits_to_float(u32(float_to_bits(near) | u32(1)))
        return raw(_bfloat16_bits(near))

    return convert


def _to_integer(compute: str, output: str) -> Callable[[Any], Any]:
    limits = np.iinfo(output)
    low, high = int(limits.min), int(limits.max)
    cast = caster(output)
    lowest, highest = np.dtype(output).type(low), np.dtype(output).type(high)
    if compute == "int64":
        least = np.int64(max(low, -(2**63)))
        most = np.int64(min(high, 2**63 - 1))

        def clamp(value: Any) -> Any:
            return cast(min(max(value, least), most))

        return clamp
    # The least value above the range is a power of two: exact, as ``high`` itself need not be.
    below, above = (np.dtype(compute).type(limit) for limit in (low, high + 1))
    nothing = np.dtype(output).type(0)

    def convert(value: Any) -> Any:
        if value != value:
            return nothing
        near = round_even(value)
        if near < below:
            return lowest
        if near >= above:
            return highest
        return cast(near)

    return convert


@lru_cache
def multiply_add(compute: str) -> Any:
    """Return ``step(total, tap, value) -> total + tap * value``."""
    if compute == "int64":
        return device_function(lambda total, tap, value: total + tap * value)
    if compute == "int32":
        return device_function(lambda total, tap, value: wrapping_fma(tap, value, total))
    if compute not in REAL_PARTS:
        return device_function(lambda total, tap, value: fma(tap, value, total))
    join = joiner(compute)

    def step(total: Any, tap: Any, value: Any) -> Any:
        real = fma(-tap.imag, value.imag, fma(tap.real, value.real, total.real))
        imag = fma(tap.imag, value.real, fma(tap.real, value.imag, total.imag))
        return join(real, imag)

    return device_function(step)


@lru_cache
def joiner(compute: str) -> Any:
    """Return ``join(real, imag) -> complex``."""
    if SIMULATOR:
        kind = np.dtype(compute).type
        return lambda real, imag: kind(complex(real, imag))
    return device_function(lambda real, imag: complex(real, imag))


@lru_cache
def loader(storage: str, compute: str) -> Any:
    """Return ``load(pointer, index) -> value`` of the element whose first part is at ``index``."""
    convert = widen(real_name(storage), real_name(compute))
    if compute not in REAL_PARTS:
        return device_function(lambda pointer, index: convert(pointer[index]))
    join = joiner(compute)
    if storage in REAL_PARTS:

        def load(pointer: Any, index: Any) -> Any:
            return join(convert(pointer[index]), convert(pointer[index + 1]))

    else:
        nothing = zero(real_name(compute))

        def load(pointer: Any, index: Any) -> Any:
            return join(convert(pointer[index]), nothing)

    return device_function(load)


@lru_cache
def storer(compute: str, output: str) -> Any:
    """Return ``store(pointer, index, value)`` of the element whose first part is at ``index``."""
    convert = narrow(real_name(compute), real_name(output))
    if compute not in REAL_PARTS:

        def store(pointer: Any, index: Any, value: Any) -> None:
            pointer[index] = convert(value)

    else:

        def store(pointer: Any, index: Any, value: Any) -> None:
            pointer[index] = convert(value.real)
            pointer[index + 1] = convert(value.imag)

    return device_function(store)


@lru_cache
def pack(count: int, convert: Any = None) -> Any:
    """Return ``pack(array, at) -> tuple`` of ``count`` elements, as vector stores take them.

    convert: applied to each; nothing without.
    """
    change = device_function(lambda value: value) if convert is None else convert
    if count == 1:
        return device_function(lambda a, i: (change(a[i]),))
    if count == 2:
        return device_function(lambda a, i: (change(a[i]), change(a[i + 1])))
    half = pack(count // 2, convert)
    return device_function(lambda a, i: half(a, i) + half(a, i + count // 2))

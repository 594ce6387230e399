"""Hardware primitives under one name each, with plain-Python twins for the simulator.

A pointer is a ``types.CPointer`` on a device and a ``HostPointer`` in the simulator; both are
indexed in elements, relative to where the array starts, negative indices included. One to bytes is
also moved by ``advance`` and read and written by ``load_bytes`` and ``store_bytes``. Vectors are
accessed by up to 16 bytes at once and have to be aligned to that; the twins check it, and bounds.
The twins of what a whole warp does exchange values by shuffles.

The arithmetic is pinned: ``fma`` is one rounding wherever it runs, so that kernels of different
shapes give equal bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np

from numbasep.cuda.launch import SIMULATOR, cuda, types

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

    # Of each thread: copies that it started, as (target, bytes), and groups of them not waited for.
    _copies: ContextVar[tuple[list[Any], list[list[Any]]]] = ContextVar("copies")

    def _started() -> tuple[list[Any], list[list[Any]]]:
        if _copies.get(None) is None:
            _copies.set(([], []))
        return _copies.get()

    def copy_async(size: int) -> Callable[..., None]:
        """Return ``copy(shared array, index, byte pointer, byte offset, present)``.

        As the device's; what is copied can be seen by who waited for it, and poison before.
        """

        def copy(array: Any, index: int, pointer: Any, offset: int, present: Any) -> None:
            target = _vector(array, index, size // array.itemsize).view(np.uint8)
            source = np.zeros(size, np.uint8)
            if present:
                source[:] = pointer.vector(offset, size, "uint8")
            target[:] = 0xFF
            _started()[0].append((target, source))

        return copy

    def commit_copies() -> None:
        """Make a group of the copies that this thread has started since the last one."""
        single, groups = _started()
        groups.append(list(single))
        single.clear()

    def wait_copies(pending: int) -> Callable[[], None]:
        """Return ``wait()`` until at most ``pending`` of the last groups are unfinished."""

        def wait() -> None:
            _, groups = _started()
            while len(groups) > pending:
                for target, source in groups.pop(0):
                    target[:] = source

        return wait

    # As a device function of the simulator, which lends these the namespace of the running kernel.
    @cuda.jit(device=True)
    def _together(value: Any) -> tuple[int, list[Any]]:
        """Return the lane, and a list of what each lane passes and of one thing more for all."""
        lane = cuda.laneid
        # Each gets the list that lane 0 made.
        board = cuda.shfl_sync(0xFFFFFFFF, [None] * 33, 0)
        board[lane] = value
        cuda.syncwarp()
        return lane, board

    def load_matrices(count: int, transposed: bool) -> Callable[..., Any]:
        """Return ``load(shared array, index) -> count registers``: see the device's."""

        def load(array: Any, index: int) -> tuple[int, ...]:
            # Lanes whose rows are not wanted may point anywhere.
            lane, board = _together(lambda: _vector(array, index, 16 // array.itemsize))
            if board[32] is None:
                rows = [row().view(np.uint16) for row in board[: 8 * count]]
                matrices = np.array(rows).reshape(count, 8, 8)
                if transposed:
                    matrices = matrices.transpose(0, 2, 1)
                board[32] = np.ascontiguousarray(matrices).view(np.uint32)
            return tuple(int(one[lane // 4, lane % 4]) for one in board[32])

        return load

    def to_tf32(value: Any) -> int:
        """Return the bits of a float32 rounded to tf32, halves away from zero."""
        bits = float_to_bits(value)
        if bits & 0x7F800000 == 0x7F800000:
            # Infinity; a NaN, as the hardware has it.
            return bits if bits & 0x7FFFFF == 0 else 0x7FFFFFFF
        return (bits + 0x1000) & 0xFFFFE000

    def mma(name: str) -> Callable[..., Any]:
        """Return ``step(a, b, c) -> a @ b + c`` of a whole warp: see the device's for who has what.

        Here the sum is rounded once; hardware adds several products at once and truncates.
        """

        def operand(registers: list[Any]) -> Any:
            bits = np.array(registers, np.uint32)
            if name == "tf32":
                # The lower bits do not count.
                return (bits & np.uint32(0xFFFFE000)).view(np.float32)[..., None]
            if name == "float16":
                return bits.view(np.float16).reshape(*bits.shape, 2)
            halves = bits.view(np.uint16).reshape(*bits.shape, 2).astype(np.uint32)
            return (halves << np.uint32(16)).view(np.float32)

        def product(board: list[Any]) -> Any:
            a, b, c = (
                [[lane[i][j] for j in range(n)] for lane in board[:32]]
                for i, n in enumerate((4, 2, 4))
            )
            # Lane = (g, q); a's registers = (half of k, half of the rows), b's = half of k.
            left = operand(a).reshape(8, 4, 2, 2, -1).transpose(3, 0, 2, 1, 4).reshape(16, -1)
            right = operand(b).reshape(8, 4, 2, -1).transpose(2, 1, 3, 0).reshape(-1, 8)
            added = np.array(c).reshape(8, 4, 2, 2).transpose(2, 0, 1, 3).reshape(16, 8)
            total = left.astype(np.float64) @ right.astype(np.float64) + added
            parts = total.astype(np.float32).reshape(2, 8, 4, 2)
            return parts.transpose(1, 2, 0, 3).reshape(32, 4)

        def step(a: Any, b: Any, c: Any) -> tuple[Any, ...]:
            lane, board = _together((a, b, c))
            if board[32] is None:
                board[32] = product(board)
            return tuple(board[32][lane])

        return step

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
        commit_copies,
        copy_async,
        double_to_half,
        erf,
        exp,
        float_to_bits,
        float_to_half,
        fma,
        half_to_float,
        integer_to_half,
        load_bytes,
        load_matrices,
        load_vector,
        mma,
        round_even,
        round_to_integer,
        step_to,
        store_bytes,
        store_vector,
        to_tf32,
        truncate_to_float,
        unroll,
        wait_copies,
        wrapping_fma,
    )

    i32, u32, i64 = types.int32, types.uint32, types.int64

__all__ = [
    "advance",
    "bits_to_float",
    "commit_copies",
    "copy_async",
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
    "load_matrices",
    "load_vector",
    "mma",
    "round_even",
    "round_to_integer",
    "step_to",
    "store_bytes",
    "store_vector",
    "to_tf32",
    "truncate_to_float",
    "u32",
    "unroll",
    "wait_copies",
    "wrapping_fma",
]

"""Memory that threads share, and calls by address, as Numba intrinsics. Addresses are integers."""

from __future__ import annotations

import os
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

I64 = ir.IntType(64)


@intrinsic
def take(context: Any, counter: Any) -> Any:
    """Add one to the int64 at an address and return what it was, as one step for all threads."""

    def generate(ctx: Any, b: Any, signature: Any, args: Any) -> Any:
        pointer = b.inttoptr(args[0], I64.as_pointer())
        return b.atomic_rmw("add", pointer, ir.Constant(I64, 1), "acq_rel")

    return types.int64(types.int64), generate


@intrinsic
def peek(context: Any, counter: Any) -> Any:
    """Read the int64 at an address that other threads write."""

    def generate(ctx: Any, b: Any, signature: Any, args: Any) -> Any:
        return b.load_atomic(b.inttoptr(args[0], I64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), generate


@intrinsic
def poke(context: Any, address: Any, value: Any) -> Any:
    """Write an int64 to an address."""

    def generate(ctx: Any, b: Any, signature: Any, args: Any) -> Any:
        b.store(args[1], b.inttoptr(args[0], I64.as_pointer()))
        return ctx.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def pause(context: Any) -> Any:
    """Tell the processor that the thread waits."""

    def generate(ctx: Any, b: Any, signature: Any, args: Any) -> Any:
        if binding.get_process_triple().startswith(("x86_64", "i686")):
            kind = ir.FunctionType(ir.VoidType(), [])
            b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.x86.sse2.pause"), [])
        return ctx.get_dummy_value()

    return types.void(), generate


@intrinsic
def give_way(context: Any) -> Any:
    """Let another thread have the processor, where the system has a call for that."""

    def generate(ctx: Any, b: Any, signature: Any, args: Any) -> Any:
        if hasattr(os, "sched_yield"):
            kind = ir.FunctionType(ir.IntType(32), [])
            b.call(cgutils.get_or_insert_function(b.module, kind, "sched_yield"), [])
        return ctx.get_dummy_value()

    return types.void(), generate


@intrinsic
def exchange(context: Any, address: Any, expected: Any, value: Any) -> Any:
    """Write an int64 if the one there is as expected; return the one that was there."""

    def generate(ctx: Any, b: Any, signature: Any, args: Any) -> Any:
        pointer = b.inttoptr(args[0], I64.as_pointer())
        pair = b.cmpxchg(pointer, args[1], args[2], "acq_rel", "acquire")
        return b.extract_value(pair, 0)

    return types.int64(types.int64, types.int64, types.int64), generate


@intrinsic
def publish(context: Any, address: Any, value: Any) -> Any:
    """Write an int64 after everything written before."""

    def generate(ctx: Any, b: Any, signature: Any, args: Any) -> Any:
        b.store_atomic(args[1], b.inttoptr(args[0], I64.as_pointer()), "release", 8)
        return ctx.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def _call(arguments: int) -> Any:
    """The code of a call of a C function ``void (int64, ...)`` at an address."""

    def generate(ctx: Any, b: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64] * arguments)
        b.call(b.inttoptr(args[0], kind.as_pointer()), args[1:])
        return ctx.get_dummy_value()

    return types.void(*[types.int64] * (arguments + 1)), generate


@intrinsic
def call3(context: Any, function: Any, a: Any, b: Any, c: Any) -> Any:
    """Call the C function at an address with three int64."""
    return _call(3)


@intrinsic
def call4(context: Any, function: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Call the C function at an address with four int64."""
    return _call(4)


@intrinsic
def call5(context: Any, function: Any, a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
    """Call the C function at an address with five int64."""
    return _call(5)


@intrinsic
def call7(
    context: Any, function: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any
) -> Any:
    """Call the C function at an address with seven int64."""
    return _call(7)


@intrinsic
def call8(
    context: Any, function: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any
) -> Any:
    """Call the C function at an address with eight int64."""
    return _call(8)


@intrinsic
def call9(
    context: Any, function: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any,
    i: Any,
) -> Any:  # fmt: skip
    """Call the C function at an address with nine int64."""
    return _call(9)


@intrinsic
def call10(
    context: Any, function: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any,
    i: Any, j: Any,
) -> Any:  # fmt: skip
    """Call the C function at an address with ten int64."""
    return _call(10)


@intrinsic
def processor(context: Any) -> Any:
    """Return the number of the processor that the caller runs on, by the C library."""

    def generate(ctx: Any, b: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        number = b.call(cgutils.get_or_insert_function(b.module, kind, "sched_getcpu"), [])
        return b.sext(number, I64)

    return types.int64(), generate


@intrinsic
def ask(context: Any, function: Any) -> Any:
    """Call the C function ``int ()`` at an address."""

    def generate(ctx: Any, b: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        return b.sext(b.call(b.inttoptr(args[0], kind.as_pointer()), []), I64)

    return types.int64(types.int64), generate


def _copy(bits: int) -> Any:
    def generate(ctx: Any, b: Any, signature: Any, args: Any) -> Any:
        kind = ir.IntType(bits).as_pointer()
        b.store(b.load(b.inttoptr(args[0], kind)), b.inttoptr(args[1], kind))
        return ctx.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def copy4(context: Any, src: Any, dst: Any) -> Any:
    """Copy four aligned bytes."""
    return _copy(32)


@intrinsic
def copy8(context: Any, src: Any, dst: Any) -> Any:
    """Copy eight aligned bytes."""
    return _copy(64)

"""The device's side of ``primitives``: LLVM instructions and inline PTX as Numba intrinsics.

Imported by ``primitives`` alone, and only where kernels are compiled.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from llvmlite import ir

from numbasep.cuda.launch import device_function, intrinsic, signature, types

F32, F64 = ir.FloatType(), ir.DoubleType()
I16, I32, I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)

# LLVM type and inline-assembly constraint of a Numba type.
REGISTERS = {
    types.float32: (F32, "f"),
    types.float64: (F64, "d"),
    types.uint16: (I16, "h"),
    types.int32: (I32, "r"),
    types.uint32: (I32, "r"),
    types.int64: (I64, "l"),
}


def _assembly(text: str, result: Any, *arguments: Any) -> Any:
    """Return an intrinsic of one PTX instruction without side effects."""
    constraints = ",".join(
        ["=" + REGISTERS[result][1], *(REGISTERS[argument][1] for argument in arguments)]
    )
    function = ir.FunctionType(
        REGISTERS[result][0], [REGISTERS[argument][0] for argument in arguments]
    )

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.asm(function, text, constraints, list(args), side_effect=False)

    if len(arguments) != 1:
        raise NotImplementedError(f"{len(arguments)} operands")

    def typing(typingctx: Any, value: Any) -> Any:
        return signature(result, *arguments), codegen

    return intrinsic(text, typing)


half_to_float = _assembly("cvt.f32.f16 $0, $1;", types.float32, types.uint16)
float_to_half = _assembly("cvt.rn.f16.f32 $0, $1;", types.uint16, types.float32)
double_to_half = _assembly("cvt.rn.f16.f64 $0, $1;", types.uint16, types.float64)
integer_to_half = _assembly("cvt.rn.f16.s64 $0, $1;", types.uint16, types.int64)


def _bits_to_float(typingctx: Any, bits: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], F32)

    return signature(types.float32, types.uint32), codegen


def _float_to_bits(typingctx: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], I32)

    return signature(types.uint32, types.float32), codegen


def _fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c, rounded once."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.fma(*args)

    return signature(c, c, c, c), codegen


bits_to_float = intrinsic("bits_to_float", _bits_to_float)
float_to_bits = intrinsic("float_to_bits", _float_to_bits)
fma = intrinsic("fma", _fma)


def _truncate_to_float(typingctx: Any, value: Any) -> Any:
    """Return a float64 or int64 as float32, rounded towards zero."""
    source, constraint = ("f64", "d") if value == types.float64 else ("s64", "l")

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        function = ir.FunctionType(F32, [REGISTERS[value][0]])
        text = f"cvt.rz.f32.{source} $0, $1;"
        return builder.asm(function, text, f"=f,{constraint}", list(args), side_effect=False)

    return signature(types.float32, value), codegen


def _round_even(typingctx: Any, value: Any) -> Any:
    """Return the nearest integral value, halves to even."""
    bits, constraint = ("f64", "d") if value == types.float64 else ("f32", "f")

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = REGISTERS[value][0]
        function = ir.FunctionType(kind, [kind])
        text = f"cvt.rni.{bits}.{bits} $0, $1;"
        return builder.asm(
            function, text, f"={constraint},{constraint}", list(args), side_effect=False
        )

    return signature(value, value), codegen


truncate_to_float = intrinsic("truncate_to_float", _truncate_to_float)
round_even = intrinsic("round_even", _round_even)


@lru_cache
def round_to_integer(name: str) -> Any:
    """Return ``convert(float32)`` to an integer of at most 32 bits.

    Rounds half to even and saturates; NaN becomes 0 (PTX ISA, cvt: for sources other than f64 and
    results of at most 32 bits).
    """
    kind = getattr(types, name)
    suffix = ("u" if name.startswith("u") else "s") + name.lstrip("uint")

    def convert(typingctx: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            function = ir.FunctionType(I32, [F32])
            text = f"cvt.rni.{suffix}.f32 $0, $1;"
            wide = builder.asm(function, text, "=r,f", list(args), side_effect=False)
            width = context.get_value_type(kind)
            return wide if width == I32 else builder.trunc(wide, width)

        return signature(kind, types.float32), codegen

    return intrinsic(f"round_to_{name}", convert)


def _parts(count: int, dtype: Any) -> tuple[int, int]:
    """Return how many accesses of at most 16 bytes make a vector, and elements in each."""
    accesses = max(1, dtype.bitwidth // 8 * count // 16)
    return accesses, count // accesses


def _words(dtype: Any, elements: int) -> int:
    """Return how many elements share a 32-bit word, in vectors of which LLVM would halve."""
    return max(1, 32 // dtype.bitwidth) if elements * dtype.bitwidth >= 64 else 1


def _load(context: Any, builder: Any, start: Any, count: int, dtype: Any) -> tuple[Any, Any]:
    """Emit the load of a vector; return the instructions and its elements."""
    accesses, elements = _parts(count, dtype)
    kind, shared = context.get_data_type(dtype), _words(dtype, elements)
    vector = ir.VectorType(I32 if shared > 1 else kind, elements // shared)
    loads, values = [], []
    for access in range(accesses):
        part = builder.gep(start, [I32(access * elements)], inbounds=True)
        pointer = builder.bitcast(part, vector.as_pointer(part.type.addrspace))
        loads.append(builder.load(pointer, align=elements * dtype.bitwidth // 8))
        for j in range(elements):
            value = builder.extract_element(loads[-1], I32(j // shared))
            if shared > 1:
                value = builder.lshr(value, I32(j % shared * dtype.bitwidth))
                value = builder.trunc(value, kind)
            values.append(value)
    return loads, values


def _store(context: Any, builder: Any, start: Any, values: Any, count: int, dtype: Any) -> None:
    """Emit the store of a tuple of ``count`` elements."""
    accesses, elements = _parts(count, dtype)
    shared = _words(dtype, elements)
    vector = ir.VectorType(I32 if shared > 1 else context.get_data_type(dtype), elements // shared)
    for access in range(accesses):
        packed = ir.Constant(vector, ir.Undefined)
        for j in range(0, elements, shared):
            value = builder.extract_value(values, access * elements + j)
            if shared > 1:
                value = builder.zext(value, I32)
            for k in range(1, shared):
                more = builder.zext(builder.extract_value(values, access * elements + j + k), I32)
                value = builder.or_(value, builder.shl(more, I32(k * dtype.bitwidth)))
            packed = builder.insert_element(packed, value, I32(j // shared))
        part = builder.gep(start, [I32(access * elements)], inbounds=True)
        pointer = builder.bitcast(part, vector.as_pointer(part.type.addrspace))
        builder.store(packed, pointer, align=elements * dtype.bitwidth // 8)


def _global(context: Any, builder: Any, pointer: Any, offset: Any, dtype: Any) -> Any:
    """Return a byte pointer moved by an offset, to elements in global memory."""
    moved = builder.gep(pointer, [offset])
    kind = context.get_data_type(dtype).as_pointer()
    return builder.addrspacecast(builder.bitcast(moved, kind), kind.pointee.as_pointer(1))


@lru_cache
def load_bytes(count: int, dtype: Any) -> Any:
    """Return ``load(byte pointer, byte offset) -> count elements`` that no kernel writes."""
    result = types.UniTuple(dtype, count)

    def load(typingctx: Any, pointer: Any, offset: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            start = _global(context, builder, args[0], args[1], dtype)
            loads, values = _load(context, builder, start, count, dtype)
            for load in loads:
                load.set_metadata("invariant.load", builder.module.add_metadata([]))
            return context.make_tuple(builder, result, values)

        return signature(result, pointer, offset), codegen

    return intrinsic(f"load_bytes_{count}_{dtype}", load)


@lru_cache
def store_bytes(count: int, dtype: Any) -> Any:
    """Return ``store(byte pointer, byte offset, count elements)``."""

    def store(typingctx: Any, pointer: Any, offset: Any, values: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            start = _global(context, builder, args[0], args[1], dtype)
            _store(context, builder, start, args[2], count, dtype)
            return context.get_dummy_value()

        return signature(types.none, pointer, offset, types.UniTuple(dtype, count)), codegen

    return intrinsic(f"store_bytes_{count}_{dtype}", store)


@lru_cache
def load_vector(count: int, dtype: Any) -> Any:
    """Return ``load(shared array, index) -> count elements``."""
    result = types.UniTuple(dtype, count)

    def load(typingctx: Any, array: Any, index: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            data = context.make_array(array)(context, builder, value=args[0]).data
            start = builder.gep(data, [args[1]], inbounds=True)
            _, values = _load(context, builder, start, count, dtype)
            return context.make_tuple(builder, result, values)

        return signature(result, array, index), codegen

    return intrinsic(f"load_vector_{count}_{dtype}", load)


@lru_cache
def store_vector(count: int, dtype: Any) -> Any:
    """Return ``store(shared array, index, count elements)``."""

    def store(typingctx: Any, array: Any, index: Any, values: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            data = context.make_array(array)(context, builder, value=args[0]).data
            start = builder.gep(data, [args[1]], inbounds=True)
            _store(context, builder, start, args[2], count, dtype)
            return context.get_dummy_value()

        return signature(types.none, array, index, types.UniTuple(dtype, count)), codegen

    return intrinsic(f"store_vector_{count}_{dtype}", store)


def _advance(typingctx: Any, pointer: Any, count: Any) -> Any:
    """Return a pointer moved by ``count`` of its elements."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.gep(args[0], [args[1]])

    return signature(pointer, pointer, count), codegen


def _step_to(typingctx: Any, pointer: Any, index: Any, step: Any) -> Any:
    """Return a pointer moved by ``index * step`` bytes in one instruction.

    LLVM takes a product of sign-extended integers apart where it knows a sign.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address = builder.ptrtoint(args[0], I64)
        function = ir.FunctionType(I64, [I32, I32, I64])
        operands = [args[1], args[2], address]
        moved = builder.asm(
            function, "mad.wide.s32 $0, $1, $2, $3;", "=l,r,r,l", operands, side_effect=False
        )
        return builder.inttoptr(moved, args[0].type)

    return signature(pointer, pointer, types.int32, types.int32), codegen


advance = intrinsic("advance", _advance)
step_to = intrinsic("step_to", _step_to)


def _mark_unrolled(function: Any) -> None:
    """Make ``function`` print ``llvm.loop.unroll.full`` on the loops around its marks.

    llvmlite gives a loop its back edge only when the whole function is built, so the metadata is
    set just before the function is printed.
    """
    print_body = function.descr_body
    marks: dict[str, bool] = {}
    function.unroll_marks = marks

    def descr_body(buffer: Any) -> Any:
        position = {block.name: i for i, block in enumerate(function.blocks)}
        edges = [
            (position[target.name], i, block.terminator)
            for i, block in enumerate(function.blocks)
            if block.terminator is not None
            for target in block.terminator.operands
            if isinstance(target, ir.Block) and position[target.name] <= i
        ]
        for name in marks:
            at = position[name]
            headers = [edge[0] for edge in edges if edge[0] <= at <= edge[1]]
            if not headers:
                raise RuntimeError("unroll() stands outside of a loop")
            # `continue` gives a loop several latches; they share one identity.
            latches = [edge[2] for edge in edges if edge[0] == max(headers)]
            if "llvm.loop" not in latches[0].metadata:
                module = function.module
                full = module.add_metadata(["llvm.loop.unroll.full"])
                label = ir.MetaDataString(module, f"{function.name[-40:]}-{max(headers)}")
                loop = module.add_metadata([full, label])
                loop.operands = (loop, full)
                for latch in latches:
                    latch.set_metadata("llvm.loop", loop)
        return print_body(buffer)

    function.descr_body = descr_body


def _unroll(typingctx: Any) -> Any:
    """Mark the loop around this call to be unrolled in full."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if not hasattr(builder.function, "unroll_marks"):
            _mark_unrolled(builder.function)
        builder.function.unroll_marks[builder.block.name] = True
        return context.get_dummy_value()

    return signature(types.none), codegen


unroll = intrinsic("unroll", _unroll)


def _wrapping_fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c of 32-bit integers, modulo 2**32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.add(builder.mul(args[0], args[1]), args[2])

    return signature(*[types.int32] * 4), codegen


wrapping_fma = intrinsic("wrapping_fma", _wrapping_fma)

# libdevice's, of the argument's own precision.
exp = device_function(lambda value: math.exp(value))
erf = device_function(lambda value: math.erf(value))


def _shared(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """Return the 32-bit address of an element of a shared array."""
    data = context.make_array(kind)(context, builder, value=array).data
    start = builder.gep(data, [index], inbounds=True)
    near = builder.addrspacecast(start, start.type.pointee.as_pointer(3))
    return builder.trunc(builder.ptrtoint(near, I64), I32)


def _statement(key: str, text: str) -> Any:
    """Return an intrinsic of one PTX instruction that orders memory accesses."""

    def typing(typingctx: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            function = ir.FunctionType(ir.VoidType(), [])
            builder.asm(function, text, "~{memory}", [], side_effect=True)
            return context.get_dummy_value()

        return signature(types.none), codegen

    return intrinsic(key, typing)


@lru_cache
def copy_async(size: int) -> Any:
    """Return ``copy(shared array, index, byte pointer, byte offset, present)``.

    Starts copying ``size`` bytes (4, 8 or 16; aligned to that) from global to shared memory, or
    zeros where ``present`` is 0 or False: then nothing is read.
    """
    text = f"cp.async.c{'g' if size == 16 else 'a'}.shared.global [$0], [$1], {size}, $2;"

    def typing(typingctx: Any, array: Any, index: Any, pointer: Any, offset: Any, ok: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            target = _shared(context, builder, array, args[0], args[1])
            moved = builder.gep(args[2], [args[3]])
            source = builder.addrspacecast(moved, moved.type.pointee.as_pointer(1))
            condition = context.cast(builder, args[4], ok, types.boolean)
            count = builder.select(condition, I32(size), I32(0))
            function = ir.FunctionType(ir.VoidType(), [I32, I64, I32])
            operands = [target, builder.ptrtoint(source, I64), count]
            builder.asm(function, text, "r,l,r,~{memory}", operands, side_effect=True)
            return context.get_dummy_value()

        return signature(types.none, array, index, pointer, offset, ok), codegen

    return intrinsic(f"copy_async_{size}", typing)


commit_copies = _statement("commit_copies", "cp.async.commit_group;")


@lru_cache
def wait_copies(pending: int) -> Any:
    """Return ``wait()`` until at most ``pending`` of this thread's last groups are unfinished."""
    return _statement(f"wait_copies_{pending}", f"cp.async.wait_group {pending};")


@lru_cache
def load_matrices(count: int, transposed: bool) -> Any:
    """Return ``load(shared array, index) -> count 32-bit registers``, of a whole warp.

    Of ``count`` matrices of 8 x 8 16-bit elements (1, 2 or 4), lane l gives the index of where row
    ``l % 8`` of matrix ``l // 8`` starts, 16 bytes aligned; it receives of each matrix elements
    ``(l // 4, 2 * (l % 4))`` and the next, or of its transpose.
    """
    kind = ir.LiteralStructType([I32] * count)
    result = types.UniTuple(types.uint32, count)
    registers = ", ".join(f"${i}" for i in range(count))
    text = (
        f"ldmatrix.sync.aligned.m8n8.x{count}{'.trans' if transposed else ''}.shared.b16 "
        f"{{{registers}}}, [${count}];"
    )
    constraints = ",".join(["=r"] * count + ["r", "~{memory}"])

    def typing(typingctx: Any, array: Any, index: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            address = _shared(context, builder, array, args[0], args[1])
            function = ir.FunctionType(kind if count > 1 else I32, [I32])
            found = builder.asm(function, text, constraints, [address], side_effect=True)
            values = (
                [builder.extract_value(found, i) for i in range(count)] if count > 1 else [found]
            )
            return context.make_tuple(builder, result, values)

        return signature(result, array, index), codegen

    return intrinsic(f"load_matrices_{count}_{transposed}", typing)


to_tf32 = _assembly("cvt.rna.tf32.f32 $0, $1;", types.uint32, types.float32)

# Shape and operand type of each matrix multiply-add.
MATRICES = {
    "tf32": "m16n8k8.row.col.f32.tf32.tf32.f32",
    "float16": "m16n8k16.row.col.f32.f16.f16.f32",
    "bfloat16": "m16n8k16.row.col.f32.bf16.bf16.f32",
}


@lru_cache
def mma(name: str) -> Any:
    """Return ``step(a, b, c) -> a @ b + c`` of a whole warp, in float32; name: tf32 or 16 bits.

    a is 16 x k, b k x 8 and c 16 x 8, with k = 8 for tf32 and 16 otherwise. With g, q =
    divmod(lane, 4) a lane holds, each 32-bit register one tf32 or two neighbours along k, of which
    the first is in the low half::

        tf32      a = A[g, q], A[g + 8, q], A[g, q + 4], A[g + 8, q + 4]
                  b = B[q, g], B[q + 4, g]
        16 bits   a = A[g, 2q:], A[g + 8, 2q:], A[g, 2q + 8:], A[g + 8, 2q + 8:]
                  b = B[2q:, g], B[2q + 8:, g]
        both      c = C[g, 2q], C[g, 2q + 1], C[g + 8, 2q], C[g + 8, 2q + 1]
    """
    result = types.UniTuple(types.float32, 4)
    four, two = types.UniTuple(types.uint32, 4), types.UniTuple(types.uint32, 2)
    text = (
        f"mma.sync.aligned.{MATRICES[name]} "
        "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
    )
    constraints = ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4)

    def typing(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            kind = ir.LiteralStructType([F32] * 4)
            function = ir.FunctionType(kind, [I32] * 6 + [F32] * 4)
            operands = [
                builder.extract_value(tuple_, i)
                for tuple_, count in zip(args, (4, 2, 4), strict=True)
                for i in range(count)
            ]
            # Convergent, but without memory: only its results tie it down.
            found = builder.asm(function, text, constraints, operands, side_effect=True)
            values = [builder.extract_value(found, i) for i in range(4)]
            return context.make_tuple(builder, result, values)

        return signature(result, four, two, result), codegen

    return intrinsic(f"mma_{name}", typing)

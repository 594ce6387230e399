"""What register blocks are made of: vectors of a compute dtype, as LLVM instructions.

Addresses are integers. Dtypes are known at compile time by tags: empty arrays whose dtype, and
whose number of axes for the 16-bit floats that Numba lacks, name the elements (``tag``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
HALF, FLOAT, DOUBLE = ir.HalfType(), ir.FloatType(), ir.DoubleType()

LINE = 64  # bytes of a cache line

_FEATURES = binding.get_host_cpu_features()
# Bytes of a vector register, and how many there are.
VECTOR, REGISTERS = (
    (64, 32) if _FEATURES.get("avx512f") else (32, 16) if _FEATURES.get("avx2") else (16, 16)
)

# Whether two registers can be permuted by an index known at run time only.
PERMUTES = VECTOR == 64

# Whether the row pass takes neighbouring taps together (``spatial_blocks``).
RUNS = VECTOR >= 32

# Whether every other vector of a row is read from a copy of it that lies half a cache line further,
# so that no load reaches into the next line (it takes twice as long, and a load goes with each
# multiply-add). Wider registers permute; narrower ones have too little to gain.
COPIES = VECTOR == LINE // 2

# Whether to store some lanes of a register costs no more than to store all (AVX2: many times more).
MASKS = VECTOR == 64

PAIR = 16  # bytes of two int64

_AXES = {"float16": 2, "bfloat16": 3}


def tag(dtype: str) -> NDArray[Any]:
    """Return the empty array that names a dtype to the kernels."""
    axes = _AXES.get(dtype, 1)
    return np.empty((0,) * axes, "uint16" if axes > 1 else dtype)


def name_of(array: Any) -> str:
    """The dtype that a tag names."""
    if array.ndim > 1:
        return {2: "float16", 3: "bfloat16"}[array.ndim]
    return str(array.dtype)


_SIZE = {"bfloat16": 2}


def itemsize(name: str) -> int:
    return _SIZE.get(name) or np.dtype(name).itemsize


class Emitter:
    """Emits arithmetic on values of one compute dtype, ``lanes`` elements at a time.

    A value is a list of LLVM vectors: one, or the real and the imaginary parts.
    """

    def __init__(self, builder: Any, compute: str, lanes: int) -> None:
        self.b = builder
        self.module = builder.module
        self.compute = compute
        self.lanes = lanes
        self.complex = compute.startswith("complex")
        self.integer = compute == "int64"
        self.part = {
            "float32": FLOAT, "float64": DOUBLE, "int64": I64, "complex64": FLOAT,
            "complex128": DOUBLE,
        }[compute]  # fmt: skip
        self.type = ir.VectorType(self.part, lanes)
        self.bits = 32 if self.part is FLOAT else 64

    def const(self, value: int) -> Any:
        return ir.Constant(I64, value)

    def zero(self) -> list[Any]:
        single = ir.Constant(self.type, [0 if self.integer else 0.0] * self.lanes)
        return [single] * (2 if self.complex else 1)

    def call(self, name: str, result: Any, args: list[Any]) -> Any:
        kind = ir.FunctionType(result, [arg.type for arg in args])
        return self.b.call(cgutils.get_or_insert_function(self.module, kind, name), args)

    def suffix(self, vector: Any) -> str:
        element = vector.element
        code = {HALF: "f16", FLOAT: "f32", DOUBLE: "f64"}.get(element) or f"i{element.width}"
        return f"v{vector.count}{code}"

    def _vector(self, element: Any) -> Any:
        return ir.VectorType(element, self.lanes)

    def _raw(self, address: Any, element: Any, size: int, count: int | None = None) -> Any:
        vector = ir.VectorType(element, count or self.lanes)
        loaded = self.b.load(self.b.inttoptr(address, vector.as_pointer()))
        loaded.align = size
        return loaded

    def load(self, address: Any, storage: str) -> list[Any]:
        """Load elements of a storage dtype, converted to the compute dtype."""
        b, size = self.b, itemsize(storage)
        if storage.startswith("complex"):
            part = FLOAT if storage == "complex64" else DOUBLE
            both = self._raw(address, part, size // 2, 2 * self.lanes)
            parts = [
                b.shuffle_vector(
                    both, both, ir.Constant(self._vector(I32), list(range(k, 2 * self.lanes, 2)))
                )
                for k in (0, 1)
            ]
            return [self._to_part(value, part) for value in parts]
        if storage in ("float16", "float32", "float64"):
            part = {2: HALF, 4: FLOAT, 8: DOUBLE}[size]
            return [self._to_part(self._raw(address, part, size), part)]
        raw = self._raw(address, ir.IntType(8 * size), size)
        if storage == "bfloat16":
            wide = b.shl(b.zext(raw, self._vector(I32)), self._all(I32, 16))
            return [self._to_part(b.bitcast(wide, self._vector(FLOAT)), FLOAT)]
        signed = storage.startswith("int")
        if self.integer:
            if size == 8:
                return [raw]
            return [(b.sext if signed else b.zext)(raw, self.type)]
        if size < 4:
            raw, signed = (b.sext if signed else b.zext)(raw, self._vector(I32)), True
        return [(b.sitofp if signed else b.uitofp)(raw, self.type)]

    def _all(self, element: Any, value: Any) -> Any:
        return ir.Constant(self._vector(element), [value] * self.lanes)

    def _to_part(self, value: Any, part: Any) -> Any:
        if part is self.part:
            return value
        wider = {HALF: 2, FLOAT: 4, DOUBLE: 8}
        if wider[self.part] > wider[part]:
            return self.b.fpext(value, self.type)
        return self.b.fptrunc(value, self.type)

    def broadcast(self, address: Any) -> list[Any]:
        """Load one element of the compute dtype into every lane."""
        b, result = self.b, []
        size = self.bits // 8
        for k in range(2 if self.complex else 1):
            where = b.add(address, self.const(k * size))
            scalar = b.load(b.inttoptr(where, self.part.as_pointer()))
            scalar.align = size
            undefined = ir.Constant(self.type, ir.Undefined)
            first = b.insert_element(undefined, scalar, ir.Constant(I32, 0))
            lanes = ir.Constant(self._vector(I32), [0] * self.lanes)
            result.append(b.shuffle_vector(first, undefined, lanes))
        return result

    def multiply_add(self, x: Any, y: Any, z: Any) -> Any:
        if self.integer:
            return self.b.add(self.b.mul(x, y), z)
        return self.call(f"llvm.fma.{self.suffix(self.type)}", self.type, [x, y, z])

    def fma(self, w: list[Any], x: list[Any], total: list[Any]) -> list[Any]:
        """Return ``total + w * x``; a real ``x`` has no imaginary part to multiply."""
        if not self.complex:
            return [self.multiply_add(w[0], x[0], total[0])]
        real, imag = (
            self.multiply_add(w[0], x[0], total[0]),
            self.multiply_add(w[1], x[0], total[1]),
        )
        if len(x) == 2:
            minus = self.b.fneg(w[1])
            real, imag = self.multiply_add(minus, x[1], real), self.multiply_add(w[0], x[1], imag)
        return [real, imag]

    def prefetch(self, address: Any) -> None:
        """Ask for the cache line at an address; any address will do."""
        pointer = self.b.inttoptr(address, I8.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
        function = cgutils.get_or_insert_function(self.module, kind, "llvm.prefetch.p0")
        # For reading, into every level, data.
        self.b.call(function, [pointer, *(ir.Constant(I32, v) for v in (0, 3, 1))])

    def load_compute(self, address: Any) -> list[Any]:
        return self.load(address, self.compute)

    def store(self, value: list[Any], address: Any, output: str) -> None:
        """Convert to the output dtype, rounding once and saturating integers, and store."""
        b, size = self.b, itemsize(output)
        if output.startswith("complex"):
            part = FLOAT if output == "complex64" else DOUBLE
            if part is not self.part:
                value = [b.fptrunc(v, self._vector(part)) for v in value]
            order = [k // 2 + (k % 2) * self.lanes for k in range(2 * self.lanes)]
            lanes = ir.Constant(ir.VectorType(I32, 2 * self.lanes), order)
            self._put(b.shuffle_vector(value[0], value[1], lanes), address, size // 2)
            return
        (v,) = value
        if self.integer:
            v = self._from_integer(v, output)
        elif output in ("float32", "float64"):
            part = FLOAT if output == "float32" else DOUBLE
            if part is not self.part:
                v = (b.fpext if part is DOUBLE else b.fptrunc)(v, self._vector(part))
        elif output in ("float16", "bfloat16"):
            v = self._narrow(v, output)
        else:
            v = self._to_integer(v, output)
        self._put(v, address, size)

    def _put(self, value: Any, address: Any, align: int) -> None:
        stored = self.b.store(value, self.b.inttoptr(address, value.type.as_pointer()))
        stored.align = align

    def _from_integer(self, v: Any, output: str) -> Any:
        b = self.b
        if output in ("float32", "float64"):
            return b.sitofp(v, self._vector(FLOAT if output == "float32" else DOUBLE))
        if output in ("float16", "bfloat16"):
            return self._narrow(b.sitofp(v, self._vector(DOUBLE)), output)
        limits = np.iinfo(output)
        if limits.min > -(2**63) or output == "uint64":
            low = self._all(I64, limits.min)
            v = b.select(b.icmp_signed(">", v, low), v, low)
        if limits.max < 2**63 - 1:
            high = self._all(I64, limits.max)
            v = b.select(b.icmp_signed("<", v, high), v, high)
        return v if limits.bits == 64 else b.trunc(v, self._vector(ir.IntType(limits.bits)))

    def _to_integer(self, v: Any, output: str) -> Any:
        """Round half to even, saturate, NaN to 0."""
        b, limits = self.b, np.iinfo(output)
        v = self.call(f"llvm.rint.{self.suffix(self.type)}", self.type, [v])
        result = self._vector(ir.IntType(limits.bits))
        if limits.bits > 16:
            kind = "s" if limits.min < 0 else "u"
            name = f"llvm.fpto{kind}i.sat.{self.suffix(result)}.{self.suffix(self.type)}"
            return self.call(name, result, [v])
        low, high = (self._all(self.part, float(x)) for x in (limits.min, limits.max))
        if limits.min < 0:
            v = b.select(b.fcmp_ordered("==", v, v), v, self._all(self.part, 0.0))
        v = b.select(b.fcmp_ordered(">", v, low), v, low)
        v = b.select(b.fcmp_ordered("<", v, high), v, high)
        return b.trunc(b.fptosi(v, self._vector(I32)), result)

    def _narrow(self, v: Any, output: str) -> Any:
        """Round to a 16-bit float, once: from double by way of float rounded to odd."""
        b = self.b
        if v.type.element is DOUBLE:
            near = b.fptrunc(v, self._vector(FLOAT))
            back = b.fpext(near, self._vector(DOUBLE))
            bits = b.bitcast(near, self._vector(I32))
            absolute = f"llvm.fabs.{self.suffix(v.type)}"
            larger = b.fcmp_ordered(
                ">", self.call(absolute, v.type, [back]), self.call(absolute, v.type, [v])
            )
            towards = b.sub(bits, b.zext(larger, self._vector(I32)))
            odd = b.or_(towards, self._all(I32, 1))
            inexact = b.fcmp_ordered("!=", back, v)
            v = b.bitcast(b.select(inexact, odd, bits), self._vector(FLOAT))
        if output == "float16":
            return b.fptrunc(v, self._vector(HALF))
        bits = b.bitcast(v, self._vector(I32))
        top = b.lshr(bits, self._all(I32, 16))
        even = b.and_(top, self._all(I32, 1))
        rounded = b.lshr(b.add(bits, b.add(even, self._all(I32, 0x7FFF))), self._all(I32, 16))
        quiet = b.or_(top, self._all(I32, 0x40))
        return b.trunc(b.select(b.fcmp_unordered("uno", v, v), quiet, rounded), self._vector(I16))


def lanes_of(compute: str) -> int:
    """Elements of a vector register; a complex value takes two."""
    return VECTOR // {"float32": 4, "complex64": 4}.get(compute, 8)


def unknown(b: Any, values: list[Any], registers: list[str], *, ordered: bool = False) -> list[Any]:
    """Return values as they are, unknown to the compiler; registers: their kinds, for x86.

    ordered: the compiler computes nothing after it that stands before.
    """
    kinds = [value.type for value in values]
    kind = ir.LiteralStructType(kinds) if len(kinds) > 1 else kinds[0]
    places = [f"={one}" for one in registers] + [str(i) for i in range(len(values))]
    nothing = ir.InlineAsm(ir.FunctionType(kind, kinds), "", ",".join(places), side_effect=ordered)
    made = b.call(nothing, values)
    return [b.extract_value(made, i) for i in range(len(values))] if len(kinds) > 1 else [made]


def loop(
    e: Emitter, first: Any, last: Any, values: list[Any], body: Callable[..., Any]
) -> list[Any]:
    """``for j in range(first, last)`` (last > first) over loop-carried values."""
    b = e.b
    before = b.block
    loop, done = b.append_basic_block("loop"), b.append_basic_block("done")
    b.branch(loop)
    b.position_at_end(loop)
    j = b.phi(I64)
    j.add_incoming(first, before)
    carried = []
    for value in values:
        phis = [b.phi(part.type) for part in value]
        for phi, part in zip(phis, value, strict=True):
            phi.add_incoming(part, before)
        carried.append(phis)
    results: list[Any] = body(j, carried)
    end = b.block
    following = b.add(j, e.const(1))
    j.add_incoming(following, end)
    for phis, value in zip(carried, results, strict=True):
        for phi, part in zip(phis, value, strict=True):
            phi.add_incoming(part, end)
    b.cbranch(b.icmp_signed("<", following, last), loop, done)
    b.position_at_end(done)
    return results


@intrinsic
def vector_lanes(context: Any, compute: Any) -> Any:
    """Return the number of elements of a vector register."""
    count = lanes_of(name_of(compute))

    def generate(ctx: Any, b: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(I64, count)

    return types.int64(compute), generate


@intrinsic
def size_of(context: Any, array: Any) -> Any:
    """Return the bytes of one element of a tag's dtype."""
    size = itemsize(name_of(array))

    def generate(ctx: Any, b: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(I64, size)

    return types.int64(array), generate


@intrinsic
def as_pointer(context: Any, address: Any) -> Any:
    """Return an address as a pointer to int64, for ``numba.carray``."""

    def generate(ctx: Any, b: Any, signature: Any, args: Any) -> Any:
        return b.inttoptr(args[0], I64.as_pointer())

    # Numba's types are made when it is imported.
    return types.CPointer(types.int64)(types.int64), generate  # type: ignore[attr-defined]


@intrinsic
def as_bytes(context: Any, address: Any) -> Any:
    """Return an address as a pointer to bytes, for ``numba.carray``."""

    def generate(ctx: Any, b: Any, signature: Any, args: Any) -> Any:
        return b.inttoptr(args[0], I8.as_pointer())

    return types.CPointer(types.uint8)(types.int64), generate  # type: ignore[attr-defined]  # as above


@intrinsic
def as_elements(context: Any, address: Any, array: Any) -> Any:
    """Return an address as a pointer to floats of a tag's dtype, for ``numba.carray``."""
    name = name_of(array)
    element, kind = (FLOAT, types.float32) if name == "float32" else (DOUBLE, types.float64)

    def generate(ctx: Any, b: Any, signature: Any, args: Any) -> Any:
        return b.inttoptr(args[0], element.as_pointer())

    return types.CPointer(kind)(types.int64, array), generate  # type: ignore[attr-defined]  # as above

"""Vector micro-kernels as Numba intrinsics, from LLVM instructions.

Addresses are integers: rows come from a table of addresses, so that an image's boundary is only
other addresses. Dtypes are known at compile time by tags: empty arrays whose dtype, and whose
number of axes for the 16-bit floats that Numba lacks, name the elements (``tag``).

Every sum starts from zero and is taken tap by tap with fused multiply-adds, in vectors and in
single elements alike, so that an element's bits do not depend on where it stands in a vector.
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

# Whether the row pass takes neighbouring taps together (``make_run``, ``make_aligned_run``).
RUNS = VECTOR >= 32

RUN = 4  # taps that ``make_aligned_run`` takes at a time

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


def _name(array: Any) -> str:
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

    def _call(self, name: str, result: Any, args: list[Any]) -> Any:
        kind = ir.FunctionType(result, [arg.type for arg in args])
        return self.b.call(cgutils.get_or_insert_function(self.module, kind, name), args)

    def _suffix(self, vector: Any) -> str:
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

    def _fma(self, x: Any, y: Any, z: Any) -> Any:
        if self.integer:
            return self.b.add(self.b.mul(x, y), z)
        return self._call(f"llvm.fma.{self._suffix(self.type)}", self.type, [x, y, z])

    def fma(self, w: list[Any], x: list[Any], total: list[Any]) -> list[Any]:
        """Return ``total + w * x``; a real ``x`` has no imaginary part to multiply."""
        if not self.complex:
            return [self._fma(w[0], x[0], total[0])]
        real, imag = self._fma(w[0], x[0], total[0]), self._fma(w[1], x[0], total[1])
        if len(x) == 2:
            minus = self.b.fneg(w[1])
            real, imag = self._fma(minus, x[1], real), self._fma(w[0], x[1], imag)
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
        v = self._call(f"llvm.rint.{self._suffix(self.type)}", self.type, [v])
        result = self._vector(ir.IntType(limits.bits))
        if limits.bits > 16:
            kind = "s" if limits.min < 0 else "u"
            name = f"llvm.fpto{kind}i.sat.{self._suffix(result)}.{self._suffix(self.type)}"
            return self._call(name, result, [v])
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
            absolute = f"llvm.fabs.{self._suffix(v.type)}"
            larger = b.fcmp_ordered(
                ">", self._call(absolute, v.type, [back]), self._call(absolute, v.type, [v])
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


def _loop(
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


def make_columns(rows: int, vectors: int, lanes: int | None = None, taps: int | None = None) -> Any:
    """Make the column pass of ``rows`` neighbouring output rows.

    ``dst[r][x] = sum_k taps[k] * table[(r + k) * step][offset + x]`` for ``vectors`` vectors of
    x, into rows of the compute dtype and, unless ``copied`` is None, once more ``copy`` bytes
    further (``COPIES``). A row that several outputs share is loaded once. The table goes on for
    ``rows`` entries more, of rows to ask memory for.
    lanes: 1 for single elements. taps: the number of them, if fixed; else at least ``rows``.
    """

    @intrinsic
    def columns(
        context: Any, table: Any, step: Any, offset: Any, coefficients: Any, count: Any,
        dst: Any, pitch: Any, copy: Any, copied: Any, compute: Any,
    ) -> Any:  # fmt: skip
        computed = _name(compute)
        signature = types.void(*[types.int64] * 8, copied, compute)

        def generate(ctx: Any, b: Any, _: Any, args: Any) -> Any:
            table, step, offset, coefficients, count, dst, pitch, copy = args[:8]
            e = Emitter(b, computed, lanes or lanes_of(computed))
            wide = itemsize(computed)

            def sources(j: Any) -> list[Any]:
                entry = b.add(table, b.mul(j, step))
                row = b.add(b.load(b.inttoptr(entry, I64.as_pointer())), offset)
                return [
                    e.load_compute(b.add(row, e.const(v * e.lanes * wide))) for v in range(vectors)
                ]

            def ahead(j: Any) -> None:
                """Ask for the row that the next group of rows loads first."""
                entry = b.add(table, b.mul(b.add(j, e.const(rows)), step))
                row = b.add(b.load(b.inttoptr(entry, I64.as_pointer())), offset)
                for line in range(0, vectors * e.lanes * wide, LINE):
                    e.prefetch(b.add(row, e.const(line)))

            def weight(k: Any) -> list[Any]:
                return e.broadcast(b.add(coefficients, b.mul(k, e.const(wide))))

            sums = [e.zero() for _ in range(rows * vectors)]

            def add(sums: list[Any], j: Any, xs: list[Any], chosen: Any) -> list[Any]:
                sums = list(sums)
                for r in chosen:
                    w = weight(b.sub(j, e.const(r)))
                    for v in range(vectors):
                        sums[r * vectors + v] = e.fma(w, xs[v], sums[r * vectors + v])
                return sums

            if rows > 1:
                for extra in range(-1, rows - 1):
                    ahead(b.add(count, e.const(extra)))
            if taps is not None:
                for j in range(taps + rows - 1):
                    chosen = [r for r in range(rows) if 0 <= j - r < taps]
                    sums = add(sums, e.const(j), sources(e.const(j)), chosen)
            else:
                for j in range(rows - 1):
                    sums = add(sums, e.const(j), sources(e.const(j)), range(j + 1))
                sums = _loop(
                    e, e.const(rows - 1), count, sums,
                    lambda j, carried: add(carried, j, sources(j), range(rows)),
                )  # fmt: skip
                for extra in range(rows - 1):
                    j = b.add(count, e.const(extra))
                    sums = add(sums, j, sources(j), range(extra + 1, rows))
            for r in range(rows):
                row = b.add(dst, b.mul(pitch, e.const(r)))
                for v in range(vectors):
                    where = b.add(row, e.const(v * e.lanes * wide))
                    e.store(sums[r * vectors + v], where, computed)
                    if copied != types.none:
                        e.store(sums[r * vectors + v], b.add(where, copy), computed)
            return ctx.get_dummy_value()

        return signature, generate

    return columns


def make_row(vectors: int, lanes: int | None = None, taps: int | None = None) -> Any:
    """Make the row pass: ``dst[x] = sum_i weights[i] * src[offsets[i] + x]``, i ascending.

    taps: the number of them, if fixed.

    Offsets are bytes, from a table of pairs of int64: for the even vectors of x, and for the odd
    ones, which may be read from a copy (``COPIES``). ``src`` holds the compute dtype.
    """

    @intrinsic
    def row(
        context: Any, src: Any, offsets: Any, weights: Any, count: Any, dst: Any,
        compute: Any, output: Any,
    ) -> Any:  # fmt: skip
        computed, out = _name(compute), _name(output)
        signature = types.void(*[types.int64] * 5, compute, output)

        def generate(ctx: Any, b: Any, _: Any, args: Any) -> Any:
            src, offsets, weights, count, dst = args[:5]
            e = Emitter(b, computed, lanes or lanes_of(computed))
            wide, size = itemsize(computed), itemsize(out)

            def body(j: Any, sums: list[Any]) -> list[Any]:
                entry = b.add(offsets, b.mul(j, e.const(PAIR)))
                bases = [
                    b.add(src, b.load(b.inttoptr(b.add(entry, e.const(k)), I64.as_pointer())))
                    for k in ((0, 8) if COPIES and vectors > 1 else (0,))
                ]
                w = e.broadcast(b.add(weights, b.mul(j, e.const(wide))))
                xs = [
                    e.load_compute(b.add(bases[v % len(bases)], e.const(v * e.lanes * wide)))
                    for v in range(vectors)
                ]
                return [e.fma(w, x, total) for x, total in zip(xs, sums, strict=True)]

            sums = [e.zero() for _ in range(vectors)]
            if taps is None:
                sums = _loop(e, e.const(0), count, sums, body)
            else:
                for i in range(taps):
                    sums = body(e.const(i), sums)
            for v in range(vectors):
                e.store(sums[v], b.add(dst, e.const(v * e.lanes * size)), out)
            return ctx.get_dummy_value()

        return signature, generate

    return row


def make_run(vectors: int) -> Any:
    """Make the row pass for neighbouring taps.

    ``dst[x] = sum_g sum_k weights[g, k] * src_g[x + k]``

    Groups g of ``run`` taps, each with its offset in bytes; order of the sums as in ``make_row``.
    What lies between two aligned vectors is taken from their registers for every other vector and
    loaded for the rest, so that neither shuffles nor unaligned loads are the bottleneck. Reads up
    to a vector beyond the last element used. Needs ``PERMUTES``.
    """

    @intrinsic
    def run(
        context: Any, src: Any, offsets: Any, weights: Any, groups: Any, taps: Any, dst: Any,
        compute: Any, output: Any,
    ) -> Any:  # fmt: skip
        computed, out = _name(compute), _name(output)
        signature = types.void(*[types.int64] * 6, compute, output)

        def generate(ctx: Any, b: Any, _: Any, args: Any) -> Any:
            src, offsets, weights, groups, taps, dst = args[:6]
            e = Emitter(b, computed, lanes_of(computed))
            wide, size = itemsize(computed), itemsize(out)
            index = ir.IntType(e.bits)
            lanes = ir.VectorType(index, e.lanes)
            ascending = ir.Constant(lanes, list(range(e.lanes)))
            permute = f"llvm.x86.avx512.vpermi2var.{'ps' if wide == 4 else 'pd'}.512"

            def group(g: Any, sums: list[Any]) -> list[Any]:
                entry = b.add(offsets, b.mul(b.mul(g, taps), e.const(PAIR)))
                base = b.add(src, b.load(b.inttoptr(entry, I64.as_pointer())))
                first = b.add(weights, b.mul(b.mul(g, taps), e.const(wide)))
                chunks = b.sdiv(b.add(taps, e.const(e.lanes - 1)), e.const(e.lanes))

                def chunk(c: Any, sums: list[Any]) -> list[Any]:
                    start = b.mul(c, e.const(e.lanes))
                    here = b.add(base, b.mul(start, e.const(wide)))
                    near = [
                        e.load_compute(b.add(here, e.const(v * e.lanes * wide)))[0]
                        for v in range(vectors + 1)
                    ]
                    left = b.sub(taps, start)
                    few = b.icmp_signed("<", left, e.const(e.lanes))
                    count = b.select(few, left, e.const(e.lanes))

                    def tap(k: Any, values: list[Any]) -> list[Any]:
                        shift, sums = values[0][0], values[1:]
                        at = b.mul(b.add(start, k), e.const(wide))
                        w = e.broadcast(b.add(first, at))
                        moved = b.add(here, b.mul(k, e.const(wide)))
                        added = []
                        for v in range(vectors):
                            if v % 2:
                                x = [e._call(permute, e.type, [near[v], shift, near[v + 1]])]
                            else:
                                x = e.load_compute(b.add(moved, e.const(v * e.lanes * wide)))
                            added.append(e.fma(w, x, sums[v]))
                        following = b.add(shift, ir.Constant(lanes, [1] * e.lanes))
                        return [[following], *added]

                    return _loop(e, e.const(0), count, [[ascending], *sums], tap)[1:]

                return _loop(e, e.const(0), chunks, sums, chunk)

            sums = _loop(e, e.const(0), groups, [e.zero() for _ in range(vectors)], group)
            for v in range(vectors):
                e.store(sums[v], b.add(dst, e.const(v * e.lanes * size)), out)
            return ctx.get_dummy_value()

        return signature, generate

    return run


def make_aligned_run(vectors: int, count: int | None = None) -> Any:
    """Make what ``make_run`` makes, for registers of 32 bytes and at least ``RUN`` taps.

    A load of 32 bytes that reaches into the next cache line takes twice as long. Where ``src``
    begins on a line these are loads of every other vector: what they would load is shifted out of
    what begins half a register before and after.

    count: the taps of a group, if fixed; one group then.
    """

    @intrinsic
    def run(
        context: Any, src: Any, offsets: Any, weights: Any, groups: Any, taps: Any, dst: Any,
        compute: Any, output: Any,
    ) -> Any:  # fmt: skip
        computed, out = _name(compute), _name(output)
        signature = types.void(*[types.int64] * 6, compute, output)

        def generate(ctx: Any, b: Any, _: Any, args: Any) -> Any:
            src, offsets, weights, groups, taps, dst = args[:6]
            e = Emitter(b, computed, lanes_of(computed))
            wide, size, half = itemsize(computed), itemsize(out), e.lanes // 2

            def load(where: Any, v: int, k: int) -> Any:
                return e.load_compute(b.add(where, e.const((v * e.lanes + k) * wide)))[0]

            def coefficient(where: Any, k: int) -> list[Any]:
                return e.broadcast(b.add(where, e.const(k * wide)))

            def shifted(low: Any, high: Any, shift: int) -> Any:
                """In each half of a register: low without its first elements, then high's."""
                if shift == 0:
                    return low
                raw = ir.VectorType(I8, VECTOR)
                places = [
                    lane + k if k < 16 else VECTOR + lane + k - 16
                    for lane in (0, 16)
                    for k in range(wide * shift, wide * shift + 16)
                ]
                mask = ir.Constant(ir.VectorType(I32, VECTOR), places)
                both = b.shuffle_vector(b.bitcast(low, raw), b.bitcast(high, raw), mask)
                return b.bitcast(both, e.type)

            def add(here: Any, v: int, ws: list[Any], total: list[Any]) -> list[Any]:
                """The taps ``ws`` of vector v."""
                halves = {}
                for k, w in enumerate(ws):
                    if v % 2 == 0:
                        x = load(here, v, k)
                    else:
                        first = k // half * half
                        last = first + half if k % half else first
                        for at in (first, last):
                            if at not in halves:
                                halves[at] = load(here, v, at)
                        x = shifted(halves[first], halves[last], k % half)
                    total = e.fma(w, [x], total)
                return total

            def group(g: Any, sums: list[Any]) -> list[Any]:
                entry = b.add(offsets, b.mul(b.mul(g, taps), e.const(PAIR)))
                base = b.add(src, b.load(b.inttoptr(entry, I64.as_pointer())))
                first = b.add(weights, b.mul(b.mul(g, taps), e.const(wide)))
                chunks = b.sdiv(taps, e.const(RUN))

                def chunk(c: Any, sums: list[Any]) -> list[Any]:
                    start = b.mul(c, e.const(RUN * wide))
                    here, there = b.add(base, start), b.add(first, start)
                    ws = [coefficient(there, k) for k in range(RUN)]
                    return [add(here, v, ws, sums[v]) for v in range(vectors)]

                def tap(k: Any, sums: list[Any]) -> list[Any]:
                    start = b.mul(k, e.const(wide))
                    here, w = b.add(base, start), coefficient(b.add(first, start), 0)
                    return [e.fma(w, [load(here, v, 0)], sums[v]) for v in range(vectors)]

                sums = _loop(e, e.const(0), chunks, sums, chunk)
                before, rest, done = b.block, *map(b.append_basic_block, ("rest", "all"))
                b.cbranch(b.icmp_signed("<", b.mul(chunks, e.const(RUN)), taps), rest, done)
                b.position_at_end(rest)
                more = _loop(e, b.mul(chunks, e.const(RUN)), taps, sums, tap)
                end = b.block
                b.branch(done)
                b.position_at_end(done)
                totals = [b.phi(e.type) for _ in range(vectors)]
                for total, (old,), (new,) in zip(totals, sums, more, strict=True):
                    total.add_incoming(old, before)
                    total.add_incoming(new, end)
                return [[total] for total in totals]

            if count is None:
                zeros = [e.zero() for _ in range(vectors)]
                sums = _loop(e, e.const(0), groups, zeros, group)
            else:
                base = b.add(src, b.load(b.inttoptr(offsets, I64.as_pointer())))
                ws = [coefficient(weights, k) for k in range(count)]
                sums = [add(base, v, ws, e.zero()) for v in range(vectors)]
            for v in range(vectors):
                e.store(sums[v], b.add(dst, e.const(v * e.lanes * size)), out)
            return ctx.get_dummy_value()

        return signature, generate

    return run


def make_convert(vectors: int, lanes: int | None = None) -> Any:
    """Make the conversion of ``vectors`` vectors from the storage to the compute dtype.

    ``ahead`` is the address of as many elements to ask memory for.
    """

    @intrinsic
    def convert(context: Any, src: Any, dst: Any, ahead: Any, storage: Any, compute: Any) -> Any:
        stored, computed = _name(storage), _name(compute)
        signature = types.void(types.int64, types.int64, types.int64, storage, compute)

        def generate(ctx: Any, b: Any, _: Any, args: Any) -> Any:
            e = Emitter(b, computed, lanes or lanes_of(computed))
            if vectors > 1:
                for line in range(0, vectors * e.lanes * itemsize(stored), LINE):
                    e.prefetch(b.add(args[2], e.const(line)))
            for v in range(vectors):
                source = b.add(args[0], e.const(v * e.lanes * itemsize(stored)))
                value = e.load(source, stored)
                if e.complex and len(value) == 1:
                    value = [value[0], e.zero()[1]]
                e.store(value, b.add(args[1], e.const(v * e.lanes * itemsize(computed))), computed)
            return ctx.get_dummy_value()

        return signature, generate

    return convert


@intrinsic
def vector_lanes(context: Any, compute: Any) -> Any:
    """Return the number of elements of a vector register."""
    count = lanes_of(_name(compute))

    def generate(ctx: Any, b: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(I64, count)

    return types.int64(compute), generate


@intrinsic
def size_of(context: Any, array: Any) -> Any:
    """Return the bytes of one element of a tag's dtype."""
    size = itemsize(_name(array))

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

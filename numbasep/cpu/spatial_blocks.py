"""Register blocks of the separable passes as Numba intrinsics.

As ``simd``: addresses are integers, so that an image's boundary is only other addresses in a table,
and dtypes are tags. Every sum starts from zero and is taken tap by tap with fused multiply-adds, in
vectors and in single elements alike, so that an element's bits do not depend on where it stands in
a vector.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numbasep.cpu.simd import (
    COPIES,
    I8,
    I32,
    I64,
    LINE,
    PAIR,
    VECTOR,
    Emitter,
    itemsize,
    lanes_of,
    loop,
    name_of,
)

RUN = 4  # taps that ``make_aligned_run`` takes at a time


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
        computed = name_of(compute)
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
                sums = loop(
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
        computed, out = name_of(compute), name_of(output)
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
                sums = loop(e, e.const(0), count, sums, body)
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
        computed, out = name_of(compute), name_of(output)
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
                                x = [e.call(permute, e.type, [near[v], shift, near[v + 1]])]
                            else:
                                x = e.load_compute(b.add(moved, e.const(v * e.lanes * wide)))
                            added.append(e.fma(w, x, sums[v]))
                        following = b.add(shift, ir.Constant(lanes, [1] * e.lanes))
                        return [[following], *added]

                    return loop(e, e.const(0), count, [[ascending], *sums], tap)[1:]

                return loop(e, e.const(0), chunks, sums, chunk)

            sums = loop(e, e.const(0), groups, [e.zero() for _ in range(vectors)], group)
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
        computed, out = name_of(compute), name_of(output)
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

                sums = loop(e, e.const(0), chunks, sums, chunk)
                before, rest, done = b.block, *map(b.append_basic_block, ("rest", "all"))
                b.cbranch(b.icmp_signed("<", b.mul(chunks, e.const(RUN)), taps), rest, done)
                b.position_at_end(rest)
                more = loop(e, b.mul(chunks, e.const(RUN)), taps, sums, tap)
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
                sums = loop(e, e.const(0), groups, zeros, group)
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
        stored, computed = name_of(storage), name_of(compute)
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

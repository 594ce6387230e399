"""Sums of products with the taps' shifts, in registers: blocks of the weight gradients.

As ``blocks``: addresses are integers, dtypes are tags. A block adds to ``BLOCK`` sums of a vector
each, in memory before and after, the products of one gradient with as many shifted images.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numbasep.cpu import simd
from numbasep.cpu.blocks import Emitter, _loop, lanes_of
from numbasep.cpu.simd import itemsize

# Taps of a 3 x 3 kernel: so many sums fit in the registers of every machine.
BLOCK = 9

# Vectors that are summed side by side.
SUMS = 4


def _sums(e: Any, acc: Any, step: Any, mask: Any) -> tuple[list[Any], list[Any]]:
    """Return where sums are, and what they are."""
    places = [e.b.add(acc, e.b.mul(step, e.const(i))) for i in range(BLOCK)]
    return places, [e.load(place, e.compute, mask) for place in places]


def make_rows(*, masked: bool) -> Any:
    """Make the block of planes: sums are vectors of columns.

    ``acc[i] += grad[r][v] * image[r * x_row + v * x_step + offsets[i]]`` for ``rows`` r and
    ``count`` vectors v; masked: for the first ``count`` elements of one vector.
    """

    @intrinsic
    def rows_block(
        context: Any, acc: Any, step: Any, grad: Any, g_row: Any, x: Any, x_row: Any, x_step: Any,
        offsets: Any, rows: Any, count: Any, storage: Any, compute: Any,
    ) -> Any:  # fmt: skip
        stored, computed = simd.name_of(storage), simd.name_of(compute)
        signature = types.void(*[types.int64] * 10, storage, compute)

        def generate(ctx: Any, b: Any, _: Any, args: Any) -> Any:
            acc, step, grad, g_row, x, x_row, x_step, offsets, rows, count = args[:10]
            e = Emitter(b, computed, lanes_of(computed))
            mask = e.mask(count, 0) if masked else None
            shifts = [e.at(offsets, i) for i in range(BLOCK)]
            # What is beyond the sums' elements is zero: vectors of them are whole.
            places, sums = _sums(e, acc, step, None)

            def row(r: Any, carried: Any) -> Any:
                line, image = b.add(grad, b.mul(g_row, r)), b.add(x, b.mul(x_row, r))

                def vector(v: Any, carried: Any) -> Any:
                    at = b.add(line, b.mul(v, e.const(e.lanes * itemsize(stored))))
                    g = e.load(at, stored, mask)
                    here = b.add(image, b.mul(v, x_step))
                    return [
                        e.fma(g, e.load(b.add(here, shift), computed, mask), total)
                        for shift, total in zip(shifts, carried, strict=True)
                    ]

                if masked:
                    return vector(e.const(0), carried)
                return _loop(e, count, carried, vector)

            for place, total in zip(places, _loop(e, rows, sums, row), strict=True):
                e.store(total, place, computed)
            return ctx.get_dummy_value()

        return signature, generate

    return rows_block


def make_pixels(*, masked: bool) -> Any:
    """Make the block of pixels: sums are vectors of channels.

    ``acc[i] += grad[p] * image[p, i]`` for ``count`` pixels p, the image's by a table of addresses,
    to which ``x`` is added; masked: for the first n channels of a vector.
    """

    @intrinsic
    def pixels_block(
        context: Any, acc: Any, step: Any, grad: Any, g_step: Any, table: Any, t_step: Any,
        offsets: Any, x: Any, count: Any, n: Any, storage: Any, compute: Any,
    ) -> Any:  # fmt: skip
        stored, computed = simd.name_of(storage), simd.name_of(compute)
        signature = types.void(*[types.int64] * 10, storage, compute)

        def generate(ctx: Any, b: Any, _: Any, args: Any) -> Any:
            acc, step, grad, g_step, table, t_step, offsets, x, count, n = args[:10]
            e = Emitter(b, computed, lanes_of(computed))
            mask = e.mask(n, 0) if masked else None
            shifts = [e.at(offsets, i) for i in range(BLOCK)]
            places, sums = _sums(e, acc, step, mask)

            def pixel(p: Any, carried: Any) -> Any:
                g = e.load(b.add(grad, b.mul(g_step, p)), stored, mask)
                entry = b.add(table, b.mul(t_step, p))
                return [
                    e.fma(
                        g,
                        e.load(b.add(e.entry(b.add(entry, shift), e.const(0)), x), stored, mask),
                        total,
                    )
                    for shift, total in zip(shifts, carried, strict=True)
                ]

            for place, total in zip(places, _loop(e, count, sums, pixel), strict=True):
                e.store(total, place, computed, mask)
            return ctx.get_dummy_value()

        return signature, generate

    return pixels_block


def make_sums(vectors: int, *, masked: bool) -> Any:
    """Make the block of sums: ``acc[v] += src[i * step + v]`` for ``count > 0`` i, vectors v.

    masked: for the first n elements of the last vector.
    """

    @intrinsic
    def sums_block(
        context: Any, acc: Any, src: Any, step: Any, count: Any, n: Any, storage: Any, compute: Any
    ) -> Any:
        stored, computed = simd.name_of(storage), simd.name_of(compute)
        signature = types.void(*[types.int64] * 5, storage, compute)

        def generate(ctx: Any, b: Any, _: Any, args: Any) -> Any:
            acc, src, step, count, n = args[:5]
            e = Emitter(b, computed, lanes_of(computed))
            mask = e.mask(n, 0) if masked else None
            apart, size = e.lanes * itemsize(computed), e.lanes * itemsize(stored)
            places = [b.add(acc, e.const(v * apart)) for v in range(vectors)]
            sums = [e.load(place, computed, mask) for place in places]

            def row(i: Any, carried: Any) -> Any:
                at = b.add(src, b.mul(step, i))
                return [
                    [b.fadd(total[0], e.load(b.add(at, e.const(v * size)), stored, mask)[0])]
                    for v, total in enumerate(carried)
                ]

            for place, total in zip(places, _loop(e, count, sums, row), strict=True):
                e.store(total, place, computed, mask)
            return ctx.get_dummy_value()

        return signature, generate

    return sums_block


@intrinsic
def total(context: Any, src: Any, vectors: Any, dst: Any, compute: Any) -> Any:
    """Write the sum of all elements of neighbouring vectors: of vectors, then of halves of one."""
    computed = simd.name_of(compute)
    signature = types.void(*[types.int64] * 3, compute)

    def generate(ctx: Any, b: Any, _: Any, args: Any) -> Any:
        src, vectors, dst = args[:3]
        e = Emitter(b, computed, lanes_of(computed))

        def vector(v: Any, carried: Any) -> Any:
            at = b.add(src, b.mul(v, e.const(e.lanes * e.size)))
            return [[b.fadd(carried[0][0], e.load(at, computed)[0])]]

        ((value,),) = _loop(e, vectors, [e.zero()], vector)
        lanes = e.lanes
        while lanes > 1:
            lanes //= 2
            kind = ir.VectorType(ir.IntType(32), lanes)
            low, high = (
                b.shuffle_vector(value, value, ir.Constant(kind, list(range(k, k + lanes))))
                for k in (0, lanes)
            )
            value = b.fadd(low, high)
        one = b.extract_element(value, ir.Constant(ir.IntType(32), 0))
        b.store(one, b.inttoptr(dst, one.type.as_pointer())).align = e.size
        return ctx.get_dummy_value()

    return signature, generate


def make_zip(*, masked: bool) -> Any:
    """Make what writes a vector of even elements and one of odd ones as two of neighbours.

    masked: the first n elements of those.
    """

    @intrinsic
    def zipped(
        context: Any, even: Any, odd: Any, dst: Any, n: Any, compute: Any, output: Any
    ) -> Any:
        computed, out = simd.name_of(compute), simd.name_of(output)
        signature = types.void(*[types.int64] * 4, compute, output)

        def generate(ctx: Any, b: Any, _: Any, args: Any) -> Any:
            e = Emitter(b, computed, lanes_of(computed))
            pair = []
            for half, place in enumerate(args[:2]):
                count = b.ashr(b.sub(b.add(args[3], e.const(1)), e.const(half)), e.const(1))
                pair.append(e.load(place, computed, e.mask(count, 0) if masked else None)[0])
            kind = ir.VectorType(ir.IntType(32), e.lanes)
            for half in range(2):
                start = half * e.lanes // 2
                order = [start + i // 2 + i % 2 * e.lanes for i in range(e.lanes)]
                value = b.shuffle_vector(*pair, ir.Constant(kind, order))
                where = b.add(args[2], e.const(half * e.lanes * itemsize(out)))
                e.store([value], where, out, e.mask(args[3], half) if masked else None)
            return ctx.get_dummy_value()

        return signature, generate

    return zipped

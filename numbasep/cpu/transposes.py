"""Square blocks of as many rows and columns as a vector has elements, transposed in registers."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numbasep.cpu import simd
from numbasep.cpu.blocks import Emitter, lanes_of
from numbasep.cpu.simd import I32


def _transposed(e: Emitter, src: Any, pitch: Any) -> list[Any]:
    """Load rows that are ``pitch`` bytes apart; return the block's columns."""
    b, half, kind = e.b, e.lanes // 2, ir.VectorType(I32, e.lanes)
    front, back = (
        ir.Constant(kind, [start + i // 2 + i % 2 * e.lanes for i in range(e.lanes)])
        for start in (0, half)
    )
    rows = [e.load(b.add(src, b.mul(pitch, e.const(i))), e.compute)[0] for i in range(e.lanes)]
    # Each round interleaves the rows of the first half with those of the second.
    for _round in range(half.bit_length()):
        rows = [
            b.shuffle_vector(rows[i], rows[i + half], part)
            for i in range(half)
            for part in (front, back)
        ]
    return rows


@intrinsic
def transpose(
    context: Any, src: Any, src_pitch: Any, dst: Any, dst_pitch: Any, compute: Any
) -> Any:
    """``dst[j][i] = src[i][j]`` for as many rows and columns as a vector has elements."""
    computed = simd.name_of(compute)
    signature = types.void(*[types.int64] * 4, compute)

    def generate(ctx: Any, b: Any, _: Any, args: Any) -> Any:
        src, src_pitch, dst, dst_pitch = args[:4]
        e = Emitter(b, computed, lanes_of(computed))
        for j, column in enumerate(_transposed(e, src, src_pitch)):
            e.store([column], b.add(dst, b.mul(dst_pitch, e.const(j))), computed)
        return ctx.get_dummy_value()

    return signature, generate


def make_mix_columns(columns: int) -> Any:
    """Make some columns of a product, as many rows as a vector has elements: ``make_mix``, spec 1.

    A row of ``a`` has its elements side by side, ``count`` of them, a multiple of a vector's.
    """

    @intrinsic
    def mix_columns(
        context: Any, a: Any, a_row: Any, b: Any, b_step: Any, count: Any, c: Any, c_row: Any,
        bias: Any, bounds: Any, compute: Any,
    ) -> Any:  # fmt: skip
        computed = simd.name_of(compute)
        signature = types.void(*[types.int64] * 9, compute)

        def generate(ctx: Any, b: Any, _: Any, args: Any) -> Any:
            left, a_row, right, b_step, count, c, c_row, bias, bounds = args[:9]
            e = Emitter(b, computed, lanes_of(computed))
            lanes, wide = e.const(e.lanes), e.const(e.size)

            def term(k: Any, sums: list[Any]) -> list[Any]:
                first = b.mul(k, lanes)
                at = b.add(right, b.mul(first, b_step))
                weights = _transposed(e, b.add(left, b.mul(first, wide)), a_row)
                for j, weight in enumerate(weights):
                    row = b.add(at, b.mul(b_step, e.const(j)))
                    sums = [
                        e.fma(e.broadcast(b.add(row, e.const(x * e.size))), [weight], total)
                        for x, total in enumerate(sums)
                    ]
                return sums

            zeros = [e.zero() for _ in range(columns)]
            sums = simd.loop(e, e.const(0), b.udiv(count, lanes), zeros, term)
            (low,), (high,) = e.broadcast(bounds), e.broadcast(b.add(bounds, wide))
            (shift,) = e.load(bias, computed)
            for x, total in enumerate(sums):
                (result,) = e.finish(total[0], shift, low, high)
                for i in range(e.lanes):
                    to = b.add(b.add(c, b.mul(c_row, e.const(i))), e.const(x * e.size))
                    value = b.extract_element(result, ir.Constant(I32, i))
                    b.store(value, b.inttoptr(to, e.part.as_pointer())).align = e.size
            return ctx.get_dummy_value()

        return signature, generate

    return mix_columns

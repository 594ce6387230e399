"""Register blocks of the channelwise convolutions as Numba intrinsics.

As ``simd``: addresses are integers, dtypes are tags, sums start from zero and go by fused
multiply-adds in a fixed order, so that an element's bits do not depend on the block it is in. Every
block ends alike: the bias is added, then the result is clamped to [low, high].

Masked blocks write, and of the image read, only what is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from numbasep.cpu import simd
from numbasep.cpu.activations import activate
from numbasep.cpu.simd import I1, I32, I64, itemsize

# Places in the geometry of a depthwise filter, all int64: bytes between the input rows of two
# output rows, between those of two vertical taps; address of the offsets of the horizontal taps;
# numbers of taps; outputs in a row; address of the two bounds; for pixels of channels also bytes
# between the inputs of neighbouring outputs, between taps, and between output pixels.
ROW_STEP, TAP_STEP, OFFSETS, KH, KW, WIDTH, BOUNDS, X_STEP, TAP_PITCH, OUT_PIXEL = range(10)
GEOMETRY = 10


def number_tag(number: int) -> NDArray[Any]:
    """Return the empty array that names a number to the kernels when they are compiled."""
    return np.empty(0, f"S{number + 1}")


def tagged(array: Any) -> int:
    """Return the number that a tag names, of its Numba type."""
    return int(array.dtype.count) - 1


def lanes_of(compute: str) -> int:
    """Elements of a vector register."""
    return simd.VECTOR // itemsize(compute)


class Emitter(simd.Emitter):
    """``simd.Emitter`` with int32 sums and masks."""

    def __init__(self, builder: Any, compute: str, lanes: int) -> None:
        super().__init__(builder, "int64" if compute == "int32" else compute, lanes)
        if compute == "int32":
            self.compute, self.part, self.bits = compute, I32, 32
            self.type = ir.VectorType(I32, lanes)
        self.size = self.bits // 8

    def fill(self, value: float) -> Any:
        return self._all(self.part, value)

    def mask(self, n: Any, vector: int) -> Any:
        """Return which lanes of a vector of a block are among its first n elements."""
        lanes = ir.VectorType(I32, self.lanes)
        first = vector * self.lanes
        numbers = ir.Constant(lanes, list(range(first, first + self.lanes)))
        undefined = ir.Constant(lanes, ir.Undefined)
        if simd.MASKS:
            # Of a store of narrowed elements under a constant mask of one lane, LLVM 22.1 makes a
            # store of that element before it was narrowed (its issue 179489, since mended).
            (n,) = simd.unknown(self.b, [n], ["r"])
        count = self.b.insert_element(undefined, self.b.trunc(n, I32), ir.Constant(I32, 0))
        zero = ir.Constant(lanes, [0] * self.lanes)
        count = self.b.shuffle_vector(count, undefined, zero)
        return self.b.icmp_signed("<", numbers, count)

    _masked: Any = None

    def _raw(self, address: Any, element: Any, size: int, count: int | None = None) -> Any:
        if self._masked is None:
            return super()._raw(address, element, size, count)
        vector = ir.VectorType(element, self.lanes)
        zeros = ir.Constant(vector, None)
        pointer = self.b.inttoptr(address, vector.as_pointer())
        name = f"llvm.masked.load.{self.suffix(vector)}.p0"
        kind = ir.FunctionType(vector, [pointer.type, I32, ir.VectorType(I1, self.lanes), vector])
        function = cgutils.get_or_insert_function(self.module, kind, name)
        return self.b.call(function, [pointer, ir.Constant(I32, size), self._masked, zeros])

    def _put(self, value: Any, address: Any, align: int) -> None:
        if self._masked is None:
            super()._put(value, address, align)
            return
        pointer = self.b.inttoptr(address, value.type.as_pointer())
        name = f"llvm.masked.store.{self.suffix(value.type)}.p0"
        kind = ir.FunctionType(
            ir.VoidType(), [value.type, pointer.type, I32, ir.VectorType(I1, self.lanes)]
        )
        function = cgutils.get_or_insert_function(self.module, kind, name)
        self.b.call(function, [value, pointer, ir.Constant(I32, align), self._masked])

    def load(self, address: Any, storage: str, mask: Any = None) -> list[Any]:
        self._masked = mask
        if self.compute == "int32":
            size = itemsize(storage)
            raw = self._raw(address, ir.IntType(8 * size), size)
            result = [raw if size == 4 else self.b.sext(raw, self.type)]
        else:
            result = super().load(address, storage)
        self._masked = None
        return result

    def store(self, value: list[Any], address: Any, output: str, mask: Any = None) -> None:
        self._masked = mask
        if self.compute == "int32":
            self._put(value[0], address, 4)
        else:
            super().store(value, address, output)
        self._masked = None

    def store_some(self, value: list[Any], address: Any, n: Any) -> None:
        """Store the first n elements of the compute dtype, of a whole vector or at least half.

        Twice half a vector, from the front and to the back: what is between is stored twice.
        """
        b, half = self.b, self.lanes // 2
        (v,) = value
        memory = cgutils.alloca_once(b, v.type)
        memory.align = half * 2 * self.size
        b.store(v, memory).align = half * 2 * self.size
        base = b.ptrtoint(memory, I64)
        rest = b.mul(b.sub(n, self.const(half)), self.const(self.size))
        first = self._raw(base, self.part, self.size, half)
        last = self._raw(b.add(base, rest), self.part, self.size, half)
        self._put(first, address, self.size)
        self._put(last, b.add(address, rest), self.size)

    def at(self, address: Any, index: int) -> Any:
        """Return the int64 at a place in a table that nothing changes meanwhile."""
        where = self.b.add(address, self.const(8 * index))
        loaded = self.b.load(self.b.inttoptr(where, I64.as_pointer()))
        loaded.set_metadata("invariant.load", self.module.add_metadata([]))
        return loaded

    def entry(self, address: Any, index: Any) -> Any:
        """Return the int64 at an index known at run time."""
        where = self.b.add(address, self.b.mul(index, self.const(8)))
        return self.b.load(self.b.inttoptr(where, I64.as_pointer()))

    def below(self, x: Any, y: Any) -> Any:
        return self.b.icmp_signed("<", x, y) if self.integer else self.b.fcmp_ordered("<", x, y)

    def finish(self, total: Any, bias: Any, low: Any, high: Any) -> list[Any]:
        """Add the bias and clamp; NaN stays."""
        b = self.b
        total = b.add(total, bias) if self.integer else b.fadd(total, bias)
        total = b.select(self.below(total, low), low, total)
        return [b.select(self.below(high, total), high, total)]


def _loop(e: Emitter, last: Any, values: list[Any], body: Callable[..., Any]) -> Any:
    return simd.loop(e, e.const(0), last, values, body)


WHOLE, SOME, FEW = range(3)


def make_plane(rows: int, vectors: int, *, ends: int, shared: bool) -> Any:
    """Make a depthwise filter of ``rows`` x ``vectors`` vectors of a plane.

    ``dst[r][x] = sum_ky sum_kx taps[ky][kx] * src[r * ROW_STEP + ky * TAP_STEP + OFFSETS[kx] + x]``
    from rows of the compute dtype. ``apart`` is the bytes between vectors.
    ends: which of n elements are written: WHOLE, all of the vectors; SOME, at least half of the
    single vector; FEW, any number.
    shared: a row that several outputs need is loaded once. ``spec`` names kh, kw and the stride of
    output rows in tap steps as 100 kh + 10 kw + stride; 0 stands for any kh >= rows and stride 1.
    """

    @intrinsic
    def plane(
        context: Any, g: Any, src: Any, taps: Any, bias: Any, dst: Any, pitch: Any, apart: Any,
        n: Any, compute: Any, spec: Any,
    ) -> Any:  # fmt: skip
        computed, number = simd.name_of(compute), tagged(spec)
        signature = types.void(*[types.int64] * 8, compute, spec)

        def generate(ctx: Any, b: Any, _: Any, args: Any) -> Any:
            g, src, taps, bias, dst, pitch, apart, n = args[:8]
            e = Emitter(b, computed, lanes_of(computed))
            wide = e.size
            shifts = [b.mul(apart, e.const(v)) for v in range(vectors)]
            offsets, tap_step = e.at(g, OFFSETS), e.at(g, TAP_STEP)
            sums = [e.zero() for _ in range(rows * vectors)]

            def sources(base: Any) -> list[Any]:
                return [e.load(b.add(base, shift), computed) for shift in shifts]

            def weight(index: Any) -> list[Any]:
                return e.broadcast(b.add(taps, b.mul(index, e.const(wide))))

            def add(sums: list[Any], r: int, w: list[Any], xs: list[Any]) -> None:
                for v in range(vectors):
                    sums[r * vectors + v] = e.fma(w, xs[v], sums[r * vectors + v])

            if shared and number:
                kh, kw, stride = number // 100, number // 10 % 10, number % 10
                places = [e.at(offsets, kx) for kx in range(kw)]
                for j in range((rows - 1) * stride + kh):
                    base = b.add(src, b.mul(tap_step, e.const(j)))
                    for kx in range(kw):
                        xs = sources(b.add(base, places[kx]))
                        for r in range(rows):
                            ky = j - r * stride
                            if 0 <= ky < kh:
                                add(sums, r, weight(e.const(ky * kw + kx)), xs)
            elif shared:
                kh, kw = e.at(g, KH), e.at(g, KW)

                def row(j: Any, sums: list[Any], chosen: Any) -> Any:
                    base = b.add(src, b.mul(tap_step, j))

                    def tap(kx: Any, carried: list[Any]) -> Any:
                        sums = list(carried)
                        xs = sources(b.add(base, e.entry(offsets, kx)))
                        for r in chosen:
                            index = b.add(b.mul(b.sub(j, e.const(r)), kw), kx)
                            add(sums, r, weight(index), xs)
                        return sums

                    return _loop(e, kw, sums, tap)

                for j in range(rows - 1):
                    sums = row(e.const(j), sums, range(j + 1))
                sums = simd.loop(
                    e, e.const(rows - 1), kh, sums, lambda j, s: row(j, s, range(rows))
                )
                for extra in range(rows - 1):
                    sums = row(b.add(kh, e.const(extra)), sums, range(extra + 1, rows))
            else:
                kh, kw, row_step = e.at(g, KH), e.at(g, KW), e.at(g, ROW_STEP)

                def line(ky: Any, sums: list[Any]) -> Any:
                    base = b.add(src, b.mul(tap_step, ky))

                    def tap(kx: Any, carried: list[Any]) -> Any:
                        sums = list(carried)
                        w = weight(b.add(b.mul(ky, kw), kx))
                        start = b.add(base, e.entry(offsets, kx))
                        for r in range(rows):
                            add(sums, r, w, sources(b.add(start, b.mul(row_step, e.const(r)))))
                        return sums

                    return _loop(e, kw, sums, tap)

                sums = _loop(e, kh, sums, line)
            bounds = e.at(g, BOUNDS)
            (shift,), (low,) = e.broadcast(bias), e.broadcast(bounds)
            (high,) = e.broadcast(b.add(bounds, e.const(wide)))
            for r in range(rows):
                row_of = b.add(dst, b.mul(pitch, e.const(r)))
                for v in range(vectors):
                    value = e.finish(sums[r * vectors + v][0], shift, low, high)
                    where = b.add(row_of, shifts[v])
                    if ends == SOME:
                        e.store_some(value, where, n)
                    else:
                        e.store(value, where, computed, e.mask(n, v) if ends == FEW else None)
            return ctx.get_dummy_value()

        return signature, generate

    return plane


def make_pixels(pixels: int, vectors: int, *, masked: bool, pointed: bool = False) -> Any:
    """Make a depthwise filter of ``pixels`` neighbouring outputs x ``vectors`` of channels.

    ``dst[i][c] = sum_ky sum_kx taps[ky][kx][c] * table[ky * TAP_STEP][x + i * X_STEP + OFFSETS[kx]
    + c]``: rows by a table of addresses, x a byte offset, rows of the compute dtype.
    ``spec`` names kw and the stride as 10 kw + stride, where taps are neighbours, so that a pixel
    is loaded once for all outputs; 0 stands for any.
    pointed: ``table`` holds the address of each pixel, 8 bytes a pixel, to which x is added.
    """

    @intrinsic
    def pixel_block(
        context: Any, g: Any, table: Any, x: Any, taps: Any, bias: Any, dst: Any, n: Any,
        compute: Any, spec: Any,
    ) -> Any:  # fmt: skip
        computed, number = simd.name_of(compute), tagged(spec)
        signature = types.void(*[types.int64] * 7, compute, spec)

        def generate(ctx: Any, b: Any, _: Any, args: Any) -> Any:
            g, table, x, taps, bias, dst, n = args[:7]
            e = Emitter(b, computed, lanes_of(computed))
            wide = e.size
            offsets, tap_step, kh, kw = (e.at(g, k) for k in (OFFSETS, TAP_STEP, KH, KW))
            x_step, tap_pitch, out_pixel = (e.at(g, k) for k in (X_STEP, TAP_PITCH, OUT_PIXEL))
            masks = [e.mask(n, v) if masked else None for v in range(vectors)]
            sums = [e.zero() for _ in range(pixels * vectors)]

            def vector(base: Any, v: int) -> list[Any]:
                return e.load(b.add(base, e.const(v * e.lanes * wide)), computed, masks[v])

            def line(ky: Any, carried: list[Any]) -> Any:
                entry = b.add(table, b.mul(tap_step, ky))
                row = entry if pointed else b.add(e.entry(entry, e.const(0)), x)
                first = b.add(taps, b.mul(tap_pitch, b.mul(ky, kw)))

                def pixel(start: Any, step: Any, count: int) -> Any:
                    place = b.add(start, b.mul(step, e.const(count)))
                    return b.add(e.entry(place, e.const(0)), x) if pointed else place

                if number:
                    across, stride = number // 10, number % 10
                    sums = list(carried)
                    step = e.at(offsets, 1) if across > 1 else x_step
                    places = [pixel(row, step, q) for q in range((pixels - 1) * stride + across)]
                    for v in range(vectors):
                        ws = [
                            vector(b.add(first, b.mul(tap_pitch, e.const(kx))), v)
                            for kx in range(across)
                        ]
                        for q, place in enumerate(places):
                            value = vector(place, v)
                            for i in range(pixels):
                                kx = q - i * stride
                                if 0 <= kx < across:
                                    k = i * vectors + v
                                    sums[k] = e.fma(ws[kx], value, sums[k])
                    return sums

                def tap(kx: Any, carried: list[Any]) -> Any:
                    sums = list(carried)
                    here = b.add(first, b.mul(tap_pitch, kx))
                    start = b.add(row, e.entry(offsets, kx))
                    places = [pixel(start, x_step, i) for i in range(pixels)]
                    for v in range(vectors):
                        w = vector(here, v)
                        for i in range(pixels):
                            k = i * vectors + v
                            sums[k] = e.fma(w, vector(places[i], v), sums[k])
                    return sums

                return _loop(e, kw, carried, tap)

            sums = _loop(e, kh, sums, line)
            bounds = e.at(g, BOUNDS)
            (low,) = e.broadcast(bounds)
            (high,) = e.broadcast(b.add(bounds, e.const(wide)))
            for v in range(vectors):
                (shift,) = vector(bias, v)
                for i in range(pixels):
                    value = e.finish(sums[i * vectors + v][0], shift, low, high)
                    shifted = e.const(v * e.lanes * wide)
                    where = b.add(b.add(dst, b.mul(out_pixel, e.const(i))), shifted)
                    e.store(value, where, computed, masks[v])
            return ctx.get_dummy_value()

        return signature, generate

    return pixel_block


# Rows and vectors of a block of a product: as many sums as registers hold beside a row of the right
# factor and one weight.
MIX_ROWS, MIX_VECTORS = (8, 3) if simd.REGISTERS == 32 else (6, 2)


def make_mix(rows: int, vectors: int, *, masked: bool = False) -> Any:
    """Make a block of a matrix product.

    ``c[r][x] = sum_k a[r * a_row + k * a_step] * b[k * b_step + x]`` for ``count`` k, ascending.
    ``spec`` 1: a bias for each row; 2: for each column.
    """

    @intrinsic
    def mix(
        context: Any, a: Any, a_row: Any, a_step: Any, b: Any, b_step: Any, count: Any, c: Any,
        c_row: Any, bias: Any, bounds: Any, n: Any, compute: Any, spec: Any,
    ) -> Any:  # fmt: skip
        computed, number = simd.name_of(compute), tagged(spec)
        signature = types.void(*[types.int64] * 11, compute, spec)

        def generate(ctx: Any, b: Any, _: Any, args: Any) -> Any:
            left, a_row, a_step, right, b_step, count, c, c_row, bias, bounds, n = args[:11]
            e = Emitter(b, computed, lanes_of(computed))
            wide = e.size
            starts = [b.mul(a_row, e.const(r)) for r in range(rows)]
            masks = [e.mask(n, v) if masked else None for v in range(vectors)]
            shifted = [e.const(v * e.lanes * wide) for v in range(vectors)]

            def term(k: Any, carried: list[Any]) -> Any:
                base, column = b.add(right, b.mul(k, b_step)), b.add(left, b.mul(k, a_step))
                xs = [e.load(b.add(base, shifted[v]), computed, masks[v]) for v in range(vectors)]
                sums = []
                for r in range(rows):
                    w = e.broadcast(b.add(column, starts[r]))
                    sums += [e.fma(w, xs[v], carried[r * vectors + v]) for v in range(vectors)]
                return sums

            sums = _loop(e, count, [e.zero() for _ in range(rows * vectors)], term)
            (low,) = e.broadcast(bounds)
            (high,) = e.broadcast(b.add(bounds, e.const(wide)))
            shifts = [
                e.load(b.add(bias, shifted[v]), computed, masks[v])[0]
                for v in range(vectors if number == 2 else 0)
            ]
            for r in range(rows):
                row = b.add(c, b.mul(c_row, e.const(r)))
                if number == 1:
                    shifts = e.broadcast(b.add(bias, e.const(r * wide))) * vectors
                for v in range(vectors):
                    value = e.finish(sums[r * vectors + v][0], shifts[v], low, high)
                    e.store(value, b.add(row, shifted[v]), computed, masks[v])
            return ctx.get_dummy_value()

        return signature, generate

    return mix


def make_move(*, masked: bool, padded: bool = False) -> Any:
    """Make the conversion of neighbours through the compute dtype; ``spec`` names an activation.

    padded: a whole vector is written, zeros after the n elements.
    """

    @intrinsic
    def move(
        context: Any, src: Any, dst: Any, n: Any, storage: Any, compute: Any, output: Any, spec: Any
    ) -> Any:
        stored, computed, out = (simd.name_of(one) for one in (storage, compute, output))
        signature = types.void(*[types.int64] * 3, storage, compute, output, spec)
        number = tagged(spec)

        def generate(ctx: Any, b: Any, _: Any, args: Any) -> Any:
            src, dst, n = args[:3]
            e = Emitter(b, computed, lanes_of(computed))
            mask = e.mask(n, 0) if masked else None
            (x,) = e.load(src, stored, mask)
            e.store([activate(e, x, number)], dst, out, None if padded else mask)
            return ctx.get_dummy_value()

        return signature, generate

    return move


def make_split(*, masked: bool) -> Any:
    """Make the conversion of two vectors of neighbours into even and odd ones."""

    @intrinsic
    def split(
        context: Any, src: Any, even: Any, odd: Any, n: Any, storage: Any, compute: Any
    ) -> Any:
        stored, computed = simd.name_of(storage), simd.name_of(compute)
        signature = types.void(*[types.int64] * 4, storage, compute)

        def generate(ctx: Any, b: Any, _: Any, args: Any) -> Any:
            src, even, odd, n = args[:4]
            e = Emitter(b, computed, lanes_of(computed))
            parts = [
                e.load(
                    b.add(src, e.const(v * e.lanes * itemsize(stored))), stored,
                    e.mask(n, v) if masked else None,
                )[0]
                for v in (0, 1)
            ]  # fmt: skip
            lanes = ir.VectorType(I32, e.lanes)
            for phase, dst in enumerate((even, odd)):
                chosen = ir.Constant(lanes, list(range(phase, 2 * e.lanes, 2)))
                e.store([b.shuffle_vector(parts[0], parts[1], chosen)], dst, computed)
            return ctx.get_dummy_value()

        return signature, generate

    return split


@intrinsic
def vector_lanes(context: Any, compute: Any) -> Any:
    """Return the number of elements of a vector register."""
    count = lanes_of(simd.name_of(compute))

    def generate(ctx: Any, b: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(I64, count)

    return types.int64(compute), generate


@intrinsic
def number_of(context: Any, spec: Any) -> Any:
    """Return the number that a tag names."""
    count = tagged(spec)

    def generate(ctx: Any, b: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(I64, count)

    return types.int64(spec), generate

"""Depthwise correlation of planes (NCHW) on the CPU that are read where they are.

What a block reads outside the image is zeros: rows from a row of zeros, columns by masked loads, so
that nothing is packed. For stride 2 each pair of loads is parted into even and odd columns, within
the halves of a register only; the result's elements are put in order when they are stored.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import binding, ir
from numba import njit
from numba.core import types
from numba.extending import intrinsic

from numbasep.cpu import atomics, blocks, compiled, simd
from numbasep.cpu.blocks import Emitter, lanes_of
from numbasep.cpu.simd import I32

# Places of the numbers of a window: bytes of an image row; the image's size; the row and column of
# the first tap of output 0; rows and columns between taps, which is also what the outputs are apart
# that need the same rows; outputs in a row; the output step; a row of zeros; the bounds.
ROW, HEIGHT, WIDTH, FIRST_ROW, FIRST_COLUMN, DOWN, ACROSS, COUNT, STEP, ZEROS, BOUNDS = range(11)
NUMBERS = 11

# Rows by vectors of a block, and rows of one of a single vector.
ROWS, VECTORS, TALL = 4, 2, 7


def make_window(rows: int, vectors: int, *, masked: bool) -> Any:
    """Make a block of a plane, ``apart`` elements between its vectors.

    ``spec`` names kh, kw and the stride, as for ``blocks.make_plane``. ``row``: of the image, that
    of the first tap of the first output. masked: columns outside the image are zeros. A block of
    one vector may be wider than the n outputs of a row: rows are written from the first on, each
    over what the one before left there, the last one up to its end only.
    """

    @intrinsic
    def window(
        context: Any, g: Any, src: Any, row: Any, taps: Any, bias: Any, dst: Any, pitch: Any,
        x: Any, apart: Any, n: Any, compute: Any, spec: Any,
    ) -> Any:  # fmt: skip
        computed, number = simd.name_of(compute), blocks._number(spec)
        kh, kw, stride = number // 100, number // 10 % 10, number % 10
        signature = types.void(*[types.int64] * 10, compute, spec)

        def generate(ctx: Any, b: Any, _: Any, args: Any) -> Any:
            g, src, row, taps, bias, dst, pitch, x, apart, n = args[:10]
            e = Emitter(b, computed, lanes_of(computed))
            wide, lanes = e.size, e.lanes
            columns = [
                b.add(
                    e.at(g, FIRST_COLUMN),
                    b.mul(b.add(x, b.mul(apart, e.const(v))), e.const(stride)),
                )
                for v in range(vectors)
            ]
            across, width = e.at(g, ACROSS), e.at(g, WIDTH)

            def place(v: int, kx: int, half: int) -> Any:
                """The first column of what tap kx multiplies, or of the pair it is parted from."""
                if stride == 1:
                    return b.add(columns[v], b.mul(across, e.const(kx)))
                return b.add(columns[v], e.const(kx // 2 * 2 + half * lanes))

            keys = [
                (v, kx, half)
                for v in range(vectors)
                for kx in range(0, kw, stride)
                for half in range(stride)
            ]
            places = {key: place(*key) for key in keys}
            inside = {key: within(e, places[key], width) if masked else None for key in keys}
            shifts = {key: b.mul(places[key], e.const(wide)) for key in keys}

            def load(base: Any, v: int, kx: int, half: int) -> Any:
                key = v, kx, half
                return e.load(b.add(base, shifts[key]), computed, inside[key])[0]

            def pick(parts: list[Any], odd: int) -> Any:
                order = [i + odd + k for i in range(0, lanes, 4) for k in (0, 2, lanes, lanes + 2)]
                kind = ir.VectorType(I32, lanes)
                return b.shuffle_vector(parts[0], parts[1], ir.Constant(kind, order))

            row_bytes, height, down = e.at(g, ROW), e.at(g, HEIGHT), e.at(g, DOWN)
            zeros = e.at(g, ZEROS)
            sums = [e.zero() for _ in range(rows * vectors)]
            top = (rows - 1) * stride + kh
            if vectors > 1:
                # The rows that the block below this one reads first.
                for j in range(top, top + rows * stride):
                    base = b.add(src, b.mul(b.add(row, b.mul(down, e.const(j))), row_bytes))
                    for v in range(stride):
                        e.prefetch(b.add(base, shifts[v, 0, 0]))
            for j in range(top):
                y = b.add(row, b.mul(down, e.const(j)))
                base = b.select(
                    b.icmp_unsigned("<", y, height), b.add(src, b.mul(y, row_bytes)), zeros
                )
                pairs: list[Any] = []
                for kx in range(kw):
                    sums, taps = settled(e, sums, taps)
                    if stride == 1:
                        xs = [load(base, v, kx, 0) for v in range(vectors)]
                    else:
                        if kx % 2 == 0:
                            pairs = [
                                [load(base, v, kx, half) for half in (0, 1)] for v in range(vectors)
                            ]
                        xs = [pick(pairs[v], kx % 2) for v in range(vectors)]
                    for r in range(rows):
                        ky = j - r * stride
                        if 0 <= ky < kh:
                            w = e.broadcast(b.add(taps, e.const((ky * kw + kx) * wide)))
                            for v in range(vectors):
                                k = r * vectors + v
                                sums[k] = e.fma(w, [xs[v]], sums[k])
            bounds = e.at(g, BOUNDS)
            (shift,), (low,) = e.broadcast(bias), e.broadcast(bounds)
            (high,) = e.broadcast(b.add(bounds, e.const(wide)))
            for r in range(rows):
                for v in range(vectors):
                    (value,) = e.finish(sums[r * vectors + v][0], shift, low, high)
                    if stride == 2:
                        value = in_order(e, value)
                    to = b.add(x, b.mul(apart, e.const(v)))
                    where = b.add(b.add(dst, b.mul(pitch, e.const(r))), b.mul(to, e.const(wide)))
                    if vectors > 1 or r < rows - 1:
                        e.store([value], where, computed)
                        continue
                    with b.if_else(b.icmp_signed("<", n, e.const(lanes))) as (part, whole):
                        with part:
                            e.store_some([value], where, n)
                        with whole:
                            e.store([value], where, computed)
            return ctx.get_dummy_value()

        return signature, generate

    return window


def settled(e: Emitter, sums: list[Any], address: Any) -> tuple[list[Any], Any]:
    """Return sums and an address as they are, unknown to the compiler.

    It would take one row's sum after the other, and keep all taps: of which registers hold few.
    """
    if not binding.get_process_triple().startswith("x86_64"):
        return sums, address
    values = [*(one for (one,) in sums), address]
    kinds = [value.type for value in values]
    places = ["=" + ("v" if simd.MASKS else "x")] * len(sums) + ["=r"]
    nothing = ir.InlineAsm(
        ir.FunctionType(ir.LiteralStructType(kinds), kinds),
        "",
        ",".join(places + [str(i) for i in range(len(values))]),
        side_effect=True,
    )
    made = e.b.call(nothing, values)
    parts = [e.b.extract_value(made, i) for i in range(len(values))]
    return [[part] for part in parts[:-1]], parts[-1]


def within(e: Emitter, column: Any, width: Any) -> Any:
    """Return which of the columns from one on are in an image."""
    b, kind = e.b, ir.VectorType(I32, e.lanes)
    undefined, zero = ir.Constant(kind, ir.Undefined), ir.Constant(kind, [0] * e.lanes)

    def spread(value: Any) -> Any:
        one = b.insert_element(undefined, b.trunc(value, I32), ir.Constant(I32, 0))
        return b.shuffle_vector(one, undefined, zero)

    place = b.add(spread(column), ir.Constant(kind, list(range(e.lanes))))
    return b.and_(
        b.icmp_signed(">", place, ir.Constant(kind, [-1] * e.lanes)),
        b.icmp_signed("<", place, spread(width)),
    )


def in_order(e: Emitter, value: Any) -> Any:
    """Undo the order of elements in which pairs are parted."""
    groups = e.lanes // 4
    kind = ir.VectorType(I32, e.lanes)
    places = [4 * (i % groups) + 2 * (i // groups) + k for i in range(2 * groups) for k in (0, 1)]
    return e.b.shuffle_vector(value, value, ir.Constant(kind, places))


window_whole = make_window(ROWS, VECTORS, masked=False)
window_edge = make_window(ROWS, VECTORS, masked=True)
window_tall = make_window(TALL, 1, masked=True)


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def filter_window(
    g: int, src: int, taps: int, bias: int, dst: int, pitch: int, y0: int, rows: int,
    compute: Any, spec: Any,
) -> None:  # fmt: skip
    """Filter ``rows`` rows of the result from row y0 on; there are at least ``least`` of them."""
    down, step = atomics.peek(g + 8 * DOWN), atomics.peek(g + 8 * STEP)
    n = atomics.peek(g + 8 * COUNT)
    first, width = atomics.peek(g + 8 * FIRST_COLUMN), atomics.peek(g + 8 * WIDTH)
    lanes = blocks.vector_lanes(compute)
    kw = blocks.number_of(spec) // 10 % 10
    # Columns that a block of one vector reads, from that of its first output on.
    span = 2 * lanes + (kw - 1) // 2 * 2
    if step == 1:
        span = lanes + (kw - 1) * atomics.peek(g + 8 * ACROSS)
    for phase in range(down):
        count = rows if down == 1 else (rows - phase + down - 1) // down
        row = (y0 + phase) * step + atomics.peek(g + 8 * FIRST_ROW)
        out = dst + phase * pitch
        x = 0
        if n > lanes:
            y = 0
            while y < count:
                y = min(y, count - ROWS)
                to = out + y * down * pitch
                x = 0
                # What is left after this is at most a vector.
                while x + lanes < n:
                    apart, at = lanes, x
                    if x + VECTORS * lanes > n:
                        at = max(n - VECTORS * lanes, 0)
                        apart = min(lanes, n - lanes)
                    left = at * step + first
                    if left >= 0 and left + apart * step + span <= width:
                        window_whole(
                            g, src, row + y * step * down, taps, bias, to, down * pitch, at, apart,
                            n, compute, spec,
                        )  # fmt: skip
                    else:
                        window_edge(
                            g, src, row + y * step * down, taps, bias, to, down * pitch, at, apart,
                            n, compute, spec,
                        )  # fmt: skip
                    x += VECTORS * lanes
                y += ROWS
        if x < n:
            y = 0
            while y < count:
                y = min(y, count - TALL)
                window_tall(
                    g, src, row + y * step * down, taps, bias, out + y * down * pitch, down * pitch,
                    max(n - lanes, 0), 0, n, compute, spec,
                )  # fmt: skip
                y += TALL


@cache
def windows_of(compute: str, number: int) -> Any:
    """Return ``void (g, src, taps, bias, dst, pitch, y0, rows, unused)``."""
    computed, spec = simd.tag(compute), blocks.number_tag(number)

    @compiled.cfunc("void(" + ", ".join(["int64"] * 9) + ")")
    def windows(
        g: int, src: int, taps: int, bias: int, dst: int, pitch: int, y0: int, rows: int,
        unused: int,
    ) -> None:  # fmt: skip
        filter_window(g, src, taps, bias, dst, pitch, y0, rows, computed, spec)

    return windows

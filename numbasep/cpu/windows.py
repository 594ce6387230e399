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
VECTORS, TALL = 2, 7
ROWS = TALL if simd.REGISTERS == 32 else 4

# Bytes by which memory is asked for what blocks read, before they do.
AHEAD = 6 << 10

# Taps that registers hold beside the sums.
KEPT = 9 if simd.REGISTERS == 32 else 0
# In ``spec``: the taps of a row reach further than the register after the first.
FAR = 1000


def make_window(rows: int, vectors: int, *, masked: bool, single: bool = False) -> Any:
    """Make a block of a plane, ``apart`` elements between its vectors.

    ``spec`` names kh, kw and the stride, as for ``blocks.make_plane``, and FAR. ``row``: of the
    image, that of the first tap of the first output. masked: columns outside the image are zeros.
    single: a register holds all columns that n outputs need; PERMUTES, not FAR.
    ahead: from what is read here, bytes to what will be read for the first time some blocks later.
    A block of one vector may be wider than the n outputs of a row. Without MASKS rows are written
    from the first on, each over what the one before left there, the last one up to its end only.
    """

    @intrinsic
    def window(
        context: Any, g: Any, src: Any, row: Any, taps: Any, bias: Any, dst: Any, pitch: Any,
        x: Any, apart: Any, n: Any, ahead: Any, compute: Any, spec: Any,
    ) -> Any:  # fmt: skip
        computed, number = simd.name_of(compute), blocks.tagged(spec)
        kh, kw, stride = number // 100 % 10, number // 10 % 10, number % 10
        near = simd.PERMUTES and not number // FAR
        signature = types.void(*[types.int64] * 11, compute, spec)

        def generate(ctx: Any, b: Any, _: Any, args: Any) -> Any:
            g, src, row, taps, bias, dst, pitch, x, apart, n, ahead = args[:11]
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
                """The first column of what tap kx multiplies, or of the pair it is taken from."""
                if stride == 1 and not near:
                    return b.add(columns[v], b.mul(across, e.const(kx)))
                return b.add(columns[v], e.const(kx // 2 * 2 + half * lanes))

            halves = range(stride + (not (single and stride == 1)) if near else stride)
            keys = [
                (v, kx, half)
                for v in range(vectors)
                for kx in range(0, 1 if near else kw, stride)
                for half in halves
            ]
            places = {key: place(*key) for key in keys}
            inside = {key: within(e, places[key], width) if masked else None for key in keys}
            shifts = {key: b.mul(places[key], e.const(wide)) for key in keys}
            steps = [moved(e, across, kx) for kx in range(kw)] if near and stride == 1 else []

            def load(base: Any, v: int, kx: int, half: int) -> Any:
                key = v, kx, half
                return e.load(b.add(base, shifts[key]), computed, inside[key])[0]

            def pick(parts: list[Any], odd: int) -> Any:
                order = [i + odd + k for i in range(0, lanes, 4) for k in (0, 2, lanes, lanes + 2)]
                kind = ir.VectorType(I32, lanes)
                return b.shuffle_vector(parts[0], parts[1], ir.Constant(kind, order))

            def sources(base: Any, kx: int, pairs: list[list[Any]]) -> list[Any]:
                """What tap kx multiplies; pairs: of the taps before, and of this one."""
                if stride == 1 and not near:
                    return [load(base, v, kx, 0) for v in range(vectors)]
                if kx % stride == 0 and not (near and kx):
                    pairs[:] = [[load(base, v, kx, h) for h in halves] for v in range(vectors)]
                if near and stride == 2:
                    return [every_other(e, parts, kx) for parts in pairs]
                if stride == 2:
                    return [pick(pair, kx % 2) for pair in pairs]
                return [shifted(e, pair, steps[kx]) if kx else pair[0] for pair in pairs]

            row_bytes, height, down = e.at(g, ROW), e.at(g, HEIGHT), e.at(g, DOWN)
            zeros = e.at(g, ZEROS)
            sums = [e.zero() for _ in range(rows * vectors)]
            top = (rows - 1) * stride + kh
            if vectors > 1:
                line = b.add(b.add(src, ahead), shifts[0, 0, 0])
                for j in range(rows * stride):
                    base = b.add(line, b.mul(b.add(row, b.mul(down, e.const(j))), row_bytes))
                    for at in range(0, vectors * stride * lanes * wide, simd.LINE):
                        e.prefetch(b.add(base, e.const(at)))
            kept = kh * kw <= KEPT
            weights = [
                e.broadcast(b.add(taps, e.const(k * wide))) for k in range(kh * kw if kept else 0)
            ]
            y, here = row, b.add(src, b.mul(row, row_bytes))
            below = b.mul(down, row_bytes)
            for j in range(top):
                base = b.select(b.icmp_unsigned("<", y, height), here, zeros)
                y, here = b.add(y, down), b.add(here, below)
                pairs: list[list[Any]] = []
                for kx in range(kw):
                    sums, taps = settled(e, sums, taps)
                    xs = sources(base, kx, pairs)
                    for r in range(rows):
                        ky = j - r * stride
                        if 0 <= ky < kh:
                            k = ky * kw + kx
                            w = weights[k] if kept else e.broadcast(b.add(taps, e.const(k * wide)))
                            for v in range(vectors):
                                i = r * vectors + v
                                sums[i] = e.fma(w, [xs[v]], sums[i])
            bounds = e.at(g, BOUNDS)
            (shift,), (low,) = e.broadcast(bias), e.broadcast(bounds)
            (high,) = e.broadcast(b.add(bounds, e.const(wide)))
            written = e.mask(n, 0) if simd.MASKS and vectors == 1 else None
            for r in range(rows):
                for v in range(vectors):
                    (value,) = e.finish(sums[r * vectors + v][0], shift, low, high)
                    if stride == 2 and not near:
                        value = in_order(e, value)
                    to = b.add(x, b.mul(apart, e.const(v)))
                    where = b.add(b.add(dst, b.mul(pitch, e.const(r))), b.mul(to, e.const(wide)))
                    if simd.MASKS or vectors > 1 or r < rows - 1:
                        e.store([value], where, computed, written)
                        continue
                    with b.if_else(b.icmp_signed("<", n, e.const(lanes))) as (part, whole):
                        with part:
                            e.store_some([value], where, n)
                        with whole:
                            e.store([value], where, computed)
            return ctx.get_dummy_value()

        return signature, generate

    return window


def moved(e: Emitter, across: Any, taps: int) -> Any:
    """Return the lanes that lie ``taps`` taps on."""
    kind = ir.VectorType(I32, e.lanes)
    by = spread(e, e.b.mul(across, e.const(taps)))
    return e.b.add(by, ir.Constant(kind, list(range(e.lanes))))


def shifted(e: Emitter, pair: list[Any], lanes: Any) -> Any:
    """Return lanes of a pair of registers; of a single one, with zeros after it."""
    values = [pair[0], lanes, pair[-1] if len(pair) > 1 else e.zero()[0]]
    return e.call("llvm.x86.avx512.vpermi2var.ps.512", e.type, values)


def every_other(e: Emitter, parts: list[Any], first: int) -> Any:
    """Return every other lane of three registers, from one of the first on.

    parts: beside them, the even and the odd lanes of the first two, once they are there.
    """
    kind = ir.VectorType(I32, e.lanes)
    if first < 2:
        lanes = range(first, 2 * e.lanes, 2)
        parts.append(shifted(e, parts[:2], ir.Constant(kind, list(lanes))))
        return parts[-1]
    here = [*range(first // 2, e.lanes)]
    beyond = [e.lanes + 2 * i + first % 2 for i in range(first // 2)]
    return shifted(e, [parts[3 + first % 2], parts[2]], ir.Constant(kind, here + beyond))


def settled(e: Emitter, sums: list[Any], address: Any) -> tuple[list[Any], Any]:
    """Return sums and an address as they are, unknown to the compiler.

    It would take one row's sum after the other, and keep all taps: of which registers hold few.
    """
    if not binding.get_process_triple().startswith("x86_64"):
        return sums, address
    register = "v" if simd.MASKS else "x"
    values = [*(one for (one,) in sums), address]
    *parts, address = simd.unknown(e.b, values, [register] * len(sums) + ["r"], ordered=True)
    return [[part] for part in parts], address


def spread(e: Emitter, value: Any) -> Any:
    """Return an int64 in all lanes, as int32."""
    kind = ir.VectorType(I32, e.lanes)
    undefined, zero = ir.Constant(kind, ir.Undefined), ir.Constant(kind, [0] * e.lanes)
    one = e.b.insert_element(undefined, e.b.trunc(value, I32), ir.Constant(I32, 0))
    return e.b.shuffle_vector(one, undefined, zero)


def within(e: Emitter, column: Any, width: Any) -> Any:
    """Return which of the columns from one on are in an image."""
    b, kind = e.b, ir.VectorType(I32, e.lanes)
    place = b.add(spread(e, column), ir.Constant(kind, list(range(e.lanes))))
    return b.and_(
        b.icmp_signed(">", place, ir.Constant(kind, [-1] * e.lanes)),
        b.icmp_signed("<", place, spread(e, width)),
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
window_single = make_window(TALL, 1, masked=True, single=True)

if simd.PERMUTES:

    @njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
    def window_last(
        g: int, src: int, row: int, taps: int, bias: int, dst: int, pitch: int, n: int,
        single: bool, compute: Any, spec: Any,
    ) -> None:  # fmt: skip
        """Filter the last vector of columns; single: there is no other, and it holds all."""
        if single:
            window_single(g, src, row, taps, bias, dst, pitch, 0, 0, n, 0, compute, spec)
        else:
            x = max(n - blocks.vector_lanes(compute), 0)
            window_tall(g, src, row, taps, bias, dst, pitch, x, 0, n, 0, compute, spec)

else:

    @njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
    def window_last(
        g: int, src: int, row: int, taps: int, bias: int, dst: int, pitch: int, n: int,
        single: bool, compute: Any, spec: Any,
    ) -> None:  # fmt: skip
        """Filter the last vector of columns."""
        x = max(n - blocks.vector_lanes(compute), 0)
        window_tall(g, src, row, taps, bias, dst, pitch, x, 0, n, 0, compute, spec)


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def filter_windows(
    g: int, src: int, taps: int, bias: int, dst: int, pitch: int, y0: int, rows: int, planes: int,
    between: int, compute: Any, spec: Any,
) -> None:  # fmt: skip
    """Filter ``rows`` rows of results from row y0 on; there are at least ``least`` of them.

    planes: that many images, each with taps and a bias of its own. between: bytes from the first
    row of a result to that of the next.
    """
    down, step = atomics.peek(g + 8 * DOWN), atomics.peek(g + 8 * STEP)
    n = atomics.peek(g + 8 * COUNT)
    first, width = atomics.peek(g + 8 * FIRST_COLUMN), atomics.peek(g + 8 * WIDTH)
    lanes, wide = blocks.vector_lanes(compute), simd.size_of(compute)
    line = atomics.peek(g + 8 * ROW)
    # Bytes of an image, and of what is read of it.
    size, part = line * atomics.peek(g + 8 * HEIGHT), line * rows * step
    number = blocks.number_of(spec)
    kh, kw = number // 100 % 10, number // 10 % 10
    reach = (kw - 1) * atomics.peek(g + 8 * ACROSS)
    near = simd.PERMUTES and number < FAR
    single = near and step == 1 and n + reach <= lanes
    # Columns that a block of one vector reads, from that of its first output on.
    span = 2 * lanes + (0 if near else reach // 2 * 2 if step > 1 else reach - lanes)
    if near and step > 1:
        span = 3 * lanes
    for _ in range(planes):
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
                    ahead, x = AHEAD, 0
                    if y * step * down * line + AHEAD >= part:
                        ahead += size - part
                    # What is left after this is at most a vector.
                    while x + lanes < n:
                        apart, at = lanes, x
                        if x + VECTORS * lanes > n:
                            at = max(n - VECTORS * lanes, 0)
                            apart = min(lanes, n - lanes)
                        left = at * step + first
                        if left >= 0 and left + apart * step + span <= width:
                            window_whole(
                                g, src, row + y * step * down, taps, bias, to, down * pitch, at,
                                apart, n, ahead, compute, spec,
                            )  # fmt: skip
                        else:
                            window_edge(
                                g, src, row + y * step * down, taps, bias, to, down * pitch, at,
                                apart, n, ahead, compute, spec,
                            )  # fmt: skip
                        x += VECTORS * lanes
                    y += ROWS
            if x < n:
                y = 0
                while y < count:
                    y = min(y, count - TALL)
                    to = out + y * down * pitch
                    window_last(
                        g, src, row + y * step * down, taps, bias, to, down * pitch, n, single,
                        compute, spec,
                    )  # fmt: skip
                    y += TALL
        src += size
        taps += kh * kw * wide
        bias += wide
        dst += between


@cache
def windows_of(compute: str, number: int) -> Any:
    """Return ``void (g, src, taps, bias, dst, pitch, y0, rows, planes, between)``."""
    computed, spec = simd.tag(compute), blocks.number_tag(number)

    @compiled.cfunc("void(" + ", ".join(["int64"] * 10) + ")")
    def windows(
        g: int, src: int, taps: int, bias: int, dst: int, pitch: int, y0: int, rows: int,
        planes: int, between: int,
    ) -> None:  # fmt: skip
        filter_windows(g, src, taps, bias, dst, pitch, y0, rows, planes, between, computed, spec)

    return windows

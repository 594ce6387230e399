"""Plans of the channelwise convolutions: every check and every decision, from shapes and dtypes.

What each backend implements, in ``numbasep.<backend>.depthwise``, ``.pointwise`` and ``.fused``:

``run_depthwise(plan: DepthwisePlan, image, weight, bias, out)``
``run_pointwise(plan: PointwisePlan, image, weight, bias, out)``
``run_fused(plan: FusedPlan, image, depthwise_weight, depthwise_bias, pointwise_weight,
pointwise_bias, out)``

Arrays are C-contiguous, aligned, in native byte order, never empty, and ``out`` overlaps nothing.
Those of the CUDA backend are device arrays but for weights and biases, which are NumPy's, and each
function takes ``stream=`` too. With ``plan.layout`` "NCHW" or "NHWC":

=================  =========================================  ================================
array              NCHW                                       NHWC
=================  =========================================  ================================
depthwise image    (batch, channels, y.size, x.size)          (batch, y.size, x.size, channels)
depthwise out      (batch, channels * multiplier, y.out,      (batch, y.out, x.out,
                   x.out)                                     channels * multiplier)
pointwise image    (batch, channels, pixels)                  (batch, pixels, channels)
pointwise out      (batch, outputs, pixels)                   (batch, pixels, outputs)
fused image, out   as depthwise image; as pointwise out, its pixels y.out * x.out
=================  =========================================  ================================

Weights and biases have the compute dtype in every layout. Depthwise ``weight``: (filters, kh, kw)
with filters = channels * multiplier; filter f reads channel f // multiplier. Where ``rank`` > 0 it
is a pair (columns (filters, rank, kh), rows (filters, rank, kw)), whose kernel is
``sum_r outer(columns[r], rows[r])``. Pointwise ``weight``: (outputs, channels). A bias is
(filters,) or (outputs,), zeros where the caller gave none.

Every element of a result is ``activation(sum + bias)``, rounded once into the output dtype; the sum
starts from zero and goes by fused multiply-adds in the compute dtype: ky, then kx, ascending (dense
depthwise), channels ascending (pointwise). With a rank, each term's column sums ky ascending first,
then terms and kx ascending. Activations are formulas of ``ACTIVATIONS``; NaN stays NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from numbasep import boundary as boundaries
from numbasep.plan import checks, cuda_fused, traffic
from numbasep.plan.geometry import FARTHEST, Axis, check_extent

# relu: max(x, 0). relu6: min(max(x, 0), 6). silu: x / (1 + exp(-x)). hardswish: x relu6(x + 3) / 6.
# gelu: x (1 + erf(x / sqrt 2)) / 2.
ACTIVATIONS = ("none", "relu", "relu6", "silu", "hardswish", "gelu")
LAYOUTS = ("NCHW", "NHWC")
DTYPES = ("float32", "float64", "float16", "bfloat16", "int8")
COMPUTE = {
    "float32": "float32", "float64": "float64", "float16": "float32", "bfloat16": "float32",
    "int8": "int32",
}  # fmt: skip
PADDING_MODES = {
    "zeros": boundaries.FILL,
    "reflect": boundaries.MIRROR,
    "replicate": boundaries.NEAREST,
    "circular": boundaries.WRAP,
}
ITEMSIZE = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "int8": 1, "int32": 4}


@dataclass(frozen=True, slots=True)
class DepthwisePlan:
    """A depthwise correlation. Axes as in ``geometry.Axis``; padding is in their origins.

    boundary: what stands outside the image, of ``numbasep.boundary``; the fill value is zero.
    rank: terms of the low-rank form; 0 for dense weights.
    storage, compute, output: dtype names of ``image``, of weights and accumulators, and of ``out``.
        (storage, compute, output) is one of float32 or float64 three times; float16 or bfloat16,
        float32, the same 16-bit one (where fused, float32 too); int8, int32, int32.
    activation: one of ``ACTIVATIONS``.
    """

    batch: int
    channels: int
    multiplier: int
    y: Axis
    x: Axis
    boundary: int
    layout: str
    rank: int
    storage: str
    compute: str
    output: str
    activation: str

    @property
    def filters(self) -> int:
        return self.channels * self.multiplier


@dataclass(frozen=True, slots=True)
class PointwisePlan:
    """A 1x1 convolution; dtypes as in ``DepthwisePlan``.

    weights: the dtype in which the caller gave the weights: they are exact in it. Where it is the
        storage dtype, products of 16-bit floats can be formed from 16-bit factors.
    tf32: products may be formed from operands cut or rounded to tf32.
    """

    batch: int
    pixels: int
    channels: int
    outputs: int
    layout: str
    storage: str
    compute: str
    output: str
    weights: str
    activation: str
    tf32: bool


@dataclass(frozen=True, slots=True)
class FusedPlan:
    """A depthwise correlation and the pointwise convolution of its result.

    fused: in one launch, the intermediate never in memory; else one after the other.
        The intermediate has the dtype ``pointwise.storage``: the image's, but where fused the
        compute dtype, unless CUDA's tensor cores multiply 16-bit factors. For tf32 products it is
        rounded to tf32. float32 (without tf32) and float64 have the same bits either way.
    tile: pixels of one tile, where fused.
    why: the reason for the choice.
    """

    depthwise: DepthwisePlan
    pointwise: PointwisePlan
    fused: bool
    tile: int
    why: str


def layout_of(shape: tuple[int, ...], layout: object) -> tuple[str, tuple[int, int, int, int]]:
    """Return a layout and (N, C, H, W) of an image's shape, N = 1 for an unbatched image."""
    name = checks.choice("layout", layout, LAYOUTS)
    if len(shape) not in (3, 4):
        raise ValueError(
            f"x: shape {shape} arrived; pass four dimensions {tuple(name)}, or three without N"
        )
    n, *rest = shape if len(shape) == 4 else (1, *shape)
    c, h, w = rest if name == "NCHW" else (rest[2], rest[0], rest[1])
    if min(c, h, w) == 0:
        raise ValueError(f"x: shape {shape} arrived; pass at least one channel, row and column")
    return name, (n, c, h, w)


def storage_of(dtype: str) -> str:
    """Return an image's dtype if the kernels take it."""
    if dtype not in DTYPES:
        raise TypeError(
            f"x: dtype {dtype} arrived; convert to one of {', '.join(DTYPES)} (int8 gives int32)"
        )
    return dtype


def activation_of(argument: str, value: object, compute: str) -> str:
    """Return an activation's name, ``"none"`` for None."""
    name = "none" if value is None else checks.choice(argument, value, ACTIVATIONS)
    if compute == "int32" and name in ("silu", "hardswish", "gelu"):
        raise ValueError(
            f"{argument}: {name!r} of an int8 image's int32 sums is no integer; pass None, 'relu' "
            "or 'relu6', or convert x to float32"
        )
    return name


def sides(
    padding: object,
    size: tuple[int, int],
    extent: tuple[int, int],
    stride: tuple[int, int],
) -> tuple[int, int, int, int]:
    """Return the padding (top, bottom, left, right).

    "same" is TensorFlow's rule: ``ceil(size / stride)`` outputs, and of the padding that this
    takes the larger half after the image. For stride 1 it is torch's.
    """
    if isinstance(padding, str):
        if checks.choice("padding", padding, ("same", "valid")) == "valid":
            return 0, 0, 0, 0
        result: list[int] = []
        for length, span, step in zip(size, extent, stride, strict=True):
            total = max((-(-length // step) - 1) * step + span - length, 0)
            result += [total // 2, total - total // 2]
        return result[0], result[1], result[2], result[3]
    if isinstance(padding, (tuple, list)) and len(padding) == 4:
        top, bottom, left, right = (checks.integer("padding", side, 0) for side in padding)
        _check_padding(top, bottom, left, right)
        return top, bottom, left, right
    if isinstance(padding, (tuple, list)) and len(padding) != 2:
        raise ValueError(
            f"padding: {padding!r} arrived; pass one integer, (vertical, horizontal), (top, "
            "bottom, left, right), 'same' or 'valid'"
        )
    vertical, horizontal = checks.pair("padding", padding, 0)
    _check_padding(vertical, horizontal)
    return vertical, vertical, horizontal, horizontal


def _check_padding(*sides: int) -> None:
    if max(sides) > FARTHEST:
        raise ValueError(f"padding: got {max(sides)}; pass at most {FARTHEST}")


def _axis(
    argument: str,
    name: str,
    size: int,
    taps: int,
    stride: int,
    dilation: int,
    before: int,
    after: int,
) -> Axis:
    extent = check_extent(taps, dilation)
    padded = size + before + after
    if padded < extent:
        raise ValueError(
            f"{argument}: {taps} taps at dilation {dilation} span {extent} {name} and x has "
            f"{padded} with its padding; pad more, or pass a smaller kernel"
        )
    out = (padded - extent) // stride + 1
    # What no second output or tap uses may be any number; kernels have 64 bits for it.
    return Axis(size, out, taps, stride if out > 1 else 1, dilation if taps > 1 else 1, -before)


def depthwise(
    shape: tuple[int, ...],
    dtype: str,
    filters: int,
    taps: tuple[int, int],
    rank: int,
    *,
    stride: object = 1,
    padding: object = 0,
    dilation: object = 1,
    padding_mode: object = "zeros",
    layout: object = "NCHW",
    activation: object = None,
    argument: str = "weight",
    activation_argument: str = "activation",
) -> DepthwisePlan:
    """Check the arguments of a depthwise convolution and plan it.

    filters, taps, rank: of the weights; rank 0 for dense ones.
    """
    name, (n, c, h, w) = layout_of(shape, layout)
    storage = storage_of(dtype)
    compute = COMPUTE[storage]
    if min(taps) == 0:
        raise ValueError(f"{argument}: a kernel of {taps} taps arrived; pass at least one")
    if filters == 0 or filters % c:
        raise ValueError(
            f"{argument}: {filters} filters arrived and x has {c} channels in layout {name}; pass "
            "M filters for each channel, (C * M, 1, kh, kw), or another layout"
        )
    step = checks.pair("stride", stride, 1)
    apart = checks.pair("dilation", dilation, 1)
    extent = (taps[0] - 1) * apart[0] + 1, (taps[1] - 1) * apart[1] + 1
    top, bottom, left, right = sides(padding, (h, w), extent, step)
    mode = checks.choice("padding_mode", padding_mode, tuple(PADDING_MODES))
    return DepthwisePlan(
        batch=n,
        channels=c,
        multiplier=filters // c,
        y=_axis(argument, "rows", h, taps[0], step[0], apart[0], top, bottom),
        x=_axis(argument, "columns", w, taps[1], step[1], apart[1], left, right),
        boundary=PADDING_MODES[mode],
        layout=name,
        rank=rank,
        storage=storage,
        compute=compute,
        output="int32" if storage == "int8" else storage,
        activation=activation_of(activation_argument, activation, compute),
    )


def pointwise(
    shape: tuple[int, ...],
    dtype: str,
    weight: tuple[int, int],
    weight_dtype: str,
    *,
    layout: object = "NCHW",
    activation: object = None,
    precision: object = None,
    argument: str = "weight",
) -> PointwisePlan:
    """Check the arguments of a pointwise convolution and plan it. weight: (Cout, C)."""
    name, (n, c, h, w) = layout_of(shape, layout)
    storage = storage_of(dtype)
    compute = COMPUTE[storage]
    if weight[0] == 0:
        raise ValueError(f"{argument}: no filters arrived; pass at least one")
    if weight[1] != c:
        grouped = weight[1] > 0 and c % weight[1] == 0
        hint = (
            "; grouped pointwise convolution is not offered: split x and weight by group and call "
            "once for each"
            if grouped
            else "; pass (Cout, C), or another layout"
        )
        raise ValueError(
            f"{argument}: filters of {weight[1]} channels arrived and x has {c} in layout "
            f"{name}{hint}"
        )
    if precision is not None:
        checks.choice("precision", precision, ("tf32",))
        if storage != "float32":
            raise ValueError(
                f"precision: 'tf32' is for a float32 x and {storage} arrived; leave it out"
            )
    return PointwisePlan(
        batch=n,
        pixels=h * w,
        channels=c,
        outputs=weight[0],
        layout=name,
        storage=storage,
        compute=compute,
        output="int32" if storage == "int8" else storage,
        weights=weight_dtype,
        activation=activation_of("activation", activation, compute),
        tf32=precision == "tf32",
    )


# The fewest tiles that keep a machine busy: one for each multiprocessor, or thread at least.
FEWEST_TILES = {"cuda": cuda_fused.MULTIPROCESSORS, "cpu": 2}
# Bytes in which a tile of all channels must fit on the CPU, half of L2; and pointwise weights that
# are read for one tile after the other.
TILE_BYTES, WEIGHT_BYTES = 512 << 10, 640 << 10
# Rows of the result that a thread takes at least.
FEWEST_ROWS = 7
# Pixels for each output channel up to which a CPU is faster in two passes; NHWC.
CACHED_PIXELS = 4


def _least(first: DepthwisePlan, second: PointwisePlan) -> int:
    """Return the pixels of a tile from which rereading the pointwise weights for it pays.

    Less than the intermediate in memory, written and read: P >= 0.78 C Cout / (C s^2 + Cout).
    """
    c, outputs = first.filters, second.outputs
    steps = first.y.stride * first.x.stride
    return -(-78 * c * outputs // (100 * (c * steps + outputs)))


@lru_cache(maxsize=1024)
def separable(
    first: DepthwisePlan,
    second: PointwisePlan,
    fuse: bool | None,
    backend: str,
    threads: int = FEWEST_TILES["cpu"],
) -> FusedPlan:
    """Plan a depthwise convolution followed by a pointwise one, in one launch where that pays.

    Fusing pays when P pixels of all channels fit beside the machine's arithmetic, when they are
    enough that reading the pointwise weights again for each tile costs less than the intermediate
    in memory, and when there are tiles for every processor; on a CPU only where the pointwise
    weights stay in a cache from tile to tile, or an image has one tile for each of its ``threads``,
    and NHWC has several pixels for each output channel. Where the bits depend on it, the choice
    does not depend on ``threads``.
    On CUDA the weights of small layers are not read again, and neither low-rank weights nor a
    window too large for shared memory are fused, whatever ``fuse`` is.
    """
    if backend == "cuda":
        return _on_cuda(first, second, fuse)
    c = first.filters
    pixels = second.batch * second.pixels
    most = TILE_BYTES // (c * ITEMSIZE[first.compute])
    least = _least(first, second)
    tiles = min(pixels // max(least, 1), first.batch * first.y.out // FEWEST_ROWS)
    weights = c * second.outputs * ITEMSIZE[first.compute]
    fewest = FEWEST_TILES["cpu"]
    if first.storage == first.compute:
        fewest = max(fewest, threads)
    if fuse is not None:
        fused, why = fuse, f"fuse={fuse} was asked for"
    elif weights > WEIGHT_BYTES and (first.batch > 1 or first.layout == "NHWC"):
        fused = False
        why = f"two passes: the pointwise weights, {weights:,} bytes, leave the cache between tiles"
    elif first.layout == "NHWC" and pixels < CACHED_PIXELS * second.outputs:
        fused = False
        why = (
            f"two passes: {pixels} pixels of {c} channels stay in the caches, and two passes read "
            f"the weights of {second.outputs} outputs in larger shares"
        )
    elif most < least:
        fused = False
        why = (
            f"two passes: {most} pixels of {c} channels fit in a tile, and rereading the pointwise "
            f"weights pays from {least}"
        )
    elif tiles < fewest:
        fused = False
        why = f"two passes: {tiles} tiles leave processors idle"
    else:
        fused = True
        why = f"one launch: {most} pixels of {c} channels fit in a tile, {least} pay"
    if not fused:
        return FusedPlan(first, second, False, 0, why)
    tile = max(1, min(most, -(-pixels // fewest)))
    return FusedPlan(*_unrounded(first, second), True, tile, why)


def _unrounded(first: DepthwisePlan, second: PointwisePlan) -> tuple[DepthwisePlan, PointwisePlan]:
    """Return plans whose intermediate stays in the accumulator's dtype."""
    return replace(first, output=first.compute), replace(second, storage=first.compute)


def _halos_outweigh(first: DepthwisePlan, tile: cuda_fused.FusedTile) -> bool:
    """Whether tiles read more again than two launches write and read in between."""
    y, x = first.y, first.x
    read = traffic.spanned(y, tile.height) * traffic.spanned(x, tile.width)
    again = (read - y.size * x.size) * first.channels
    return again >= 2 * first.filters * y.out * x.out


def _on_cuda(first: DepthwisePlan, second: PointwisePlan, fuse: bool | None) -> FusedPlan:
    halves = cuda_fused.multiply_of(first, second) in cuda_fused.HALVES
    one, two = (first, second) if halves else _unrounded(first, second)
    tile = None if first.rank else cuda_fused.choose(one, two)
    asked = "" if fuse is None else f"fuse={fuse} was asked for"
    if fuse is False:
        return FusedPlan(first, second, False, 0, asked)
    if tile is None:
        why = (
            "two passes: low-rank weights filter whole columns first, which no tile shares"
            if first.rank
            else "two passes: shared memory has no room for the window of a tile"
        )
        return FusedPlan(first, second, False, 0, f"{asked}, but {why}" if asked else why)
    covered = tile.width * tile.height
    tiles = first.batch * cuda_fused.tiles_of(first, tile)
    least = _least(first, second)
    if not asked and not tile.resident and covered < least:
        why = (
            f"two passes: tiles have {covered} pixels, and rereading the pointwise weights pays "
            f"from {least}"
        )
    elif not asked and _halos_outweigh(first, tile):
        why = (
            f"two passes: the halos of tiles of {tile.height} x {tile.width} pixels are more than "
            "the intermediate, written and read"
        )
    elif not asked and tiles < FEWEST_TILES["cuda"]:
        why = f"two passes: {tiles} tiles of {covered} pixels leave multiprocessors idle"
    else:
        reread = (
            "all weights stay in shared memory"
            if tile.resident
            else f"rereading the pointwise weights pays from {least} pixels"
        )
        why = asked or f"one launch: {tiles} tiles of {covered} pixels, {reread}"
        return FusedPlan(one, two, True, covered, why)
    return FusedPlan(first, second, False, 0, why)

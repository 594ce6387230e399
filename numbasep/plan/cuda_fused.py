"""What one block of the fused CUDA kernel computes: chosen from plans by arithmetic alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numbasep.plan.channelwise import DepthwisePlan, PointwisePlan

SIZES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
HALVES = ("float16", "bfloat16")

# Of an H100 or H200. A block may have this much shared memory; with more than one, each takes 1 KiB
# more. Kernels of at most 128 registers leave room for this many threads.
MULTIPROCESSORS = 132
SHARED = 227 << 10
MOST_THREADS = 512
# Multiply-adds in the time of one byte from memory: peak rates, of tensor cores the half.
RATES = {"fma": 7.5, "tf32": 30.0, "float16": 60.0, "bfloat16": 60.0}
# Kernels of at most this many taps are unrolled, their window in registers.
MOST_TAPS = 25


@dataclass(frozen=True, slots=True)
class FusedShape:
    """What a fused kernel is compiled for; everything else is given at run time.

    multiply: how products are formed: "fma", or by tensor cores "tf32", "float16" or "bfloat16".
    planar: whether the layout is NCHW: then outputs are m and pixels n, else the other way round.
    warps_m, warps_n: of a block.
    groups_m, groups_n: of 16 by 32 (fma) or 32 by 32 sums that a warp has in each direction.
    words: of a chunk of channels; a tensor core's have 8 each time.
    rows: outputs below each other that a thread filters.
    taps_y, taps_x: of unrolled kernels; 0 for any.
    stride_y, dilation_y, dilation_x: of unrolled kernels.
    unit: elements in one asynchronous copy of the image; 0 where they go through registers.
    multiplier: filters of an image channel.
    blocks: to fit on a multiprocessor.
    """

    multiply: str
    planar: bool
    warps_m: int
    warps_n: int
    groups_m: int
    groups_n: int
    words: int
    rows: int
    taps_y: int = 0
    taps_x: int = 0
    stride_y: int = 1
    dilation_y: int = 1
    dilation_x: int = 1
    unit: int = 1
    multiplier: int = 1
    blocks: int = 1

    @property
    def pack(self) -> int:
        """Channels in a word."""
        return 2 if self.multiply in HALVES else 1

    @property
    def channels(self) -> int:
        """Filters in a chunk."""
        return self.words * self.pack

    @property
    def threads(self) -> int:
        return 32 * self.warps_m * self.warps_n

    @property
    def m(self) -> int:
        return self.warps_m * self.groups_m * (16 if self.multiply == "fma" else 32)

    @property
    def n(self) -> int:
        return self.warps_n * self.groups_n * 32

    @property
    def outputs(self) -> int:
        return self.m if self.planar else self.n

    @property
    def pixels(self) -> int:
        return self.n if self.planar else self.m

    # From one word of channels to the next: fragments of neighbours fall in different banks.
    @property
    def m_pitch(self) -> int:
        return self.m + 4

    @property
    def n_pitch(self) -> int:
        return self.n + 4

    @property
    def output_pitch(self) -> int:
        return self.m_pitch if self.planar else self.n_pitch

    @property
    def pixel_pitch(self) -> int:
        return self.n_pitch if self.planar else self.m_pitch


@dataclass(frozen=True, slots=True)
class FusedTile:
    """What one block computes.

    shape: of its kernel.
    width, height: output pixels; ``width`` a multiple of 4, ``height`` of ``shape.rows``, and
        ``width * height`` at most ``shape.pixels``.
    resident: whether all weights stay in shared memory.
    grid: the most blocks of a launch; they go on to further tiles.
    """

    shape: FusedShape
    width: int
    height: int
    resident: bool
    grid: int

    def __str__(self) -> str:
        s = self.shape
        return (
            f"{self.height} x {self.width} pixels by {s.outputs} outputs, {s.threads} threads, "
            f"{s.multiply}"
        )


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Where a tile's data stand in shared memory. Pitches and sizes are in elements of each kind.

    shift: image columns between where the copies of a row start and the first one needed.
    rows, units: of the halo; ``row_pitch`` and ``channel_pitch`` elements apart.
    chunks, output_tiles: that make all channels, and all outputs.
    slots: chunks of the intermediate that are kept.
    word: bytes of one.
    taps_at, halo_at, middle_at, weights_at: in bytes, after the biases; ``shared`` bytes in all.
    """

    shift: int
    rows: int
    units: int
    row_pitch: int
    channel_pitch: int
    chunks: int
    output_tiles: int
    slots: int
    word: int
    taps_at: int
    halo_at: int
    middle_at: int
    weights_at: int
    shared: int


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def taps_held(count: int) -> int:
    """Return the elements of a filter's taps and its bias, whole vectors of them."""
    return _up(count + 1, 4)


@lru_cache(maxsize=4096)
def arrange(first: DepthwisePlan, second: PointwisePlan, tile: FusedTile) -> Arrangement:
    """Return where a tile's data stand in shared memory."""
    shape = tile.shape
    area = tile.width * tile.height
    if area > min(shape.pixels, shape.threads * shape.rows) or tile.height % shape.rows:
        raise ValueError(f"tile: {tile}, {shape.rows} rows in a thread, does not cover its pixels")
    size, wide = SIZES[first.storage], SIZES[first.compute]
    word = wide if shape.multiply == "fma" else 4
    unit = max(shape.unit, 1)
    planar = shape.planar
    shift = first.x.origin % unit if planar else 0
    rows = (tile.height - 1) * first.y.stride + first.y.extent
    needed = shift + (tile.width - 1) * first.x.stride + first.x.extent
    units = -(-needed // unit)
    row_pitch = units * unit
    if tile.width < 32:
        # Neighbouring strips of a warp's lanes in different banks, where a few columns more do it.
        step = shape.rows * first.y.stride
        for more in range(0, 32, max(unit, 4 if size < 4 else 1)):
            if step * (row_pitch + more) * size // 4 % 32 in (tile.width, 32 - tile.width):
                row_pitch += more if more <= row_pitch // 4 else 0
                break
    channel_pitch = _up(rows * row_pitch, 16 // size)
    if not planar:
        # Copies of neighbouring channels go to different banks.
        lanes = max(1, 128 // size // shape.channels)
        channel_pitch = _up(rows * row_pitch - lanes, 128 // size) + lanes
    chunks = -(-first.filters // shape.channels)
    output_tiles = -(-second.outputs // shape.outputs)
    slots = max(2, chunks if output_tiles > 1 else 2)
    filters = first.filters if tile.resident else 2 * shape.channels
    taps = filters * taps_held(first.y.taps * first.x.taps) * wide
    taps_at = _up(output_tiles * shape.outputs * wide, 16)
    halo_at = _up(taps_at + taps, 16)
    middle_at = _up(halo_at + 2 * shape.channels * channel_pitch * size, 16)
    weights_at = middle_at + slots * shape.words * shape.pixel_pitch * word
    held = chunks * output_tiles if tile.resident else 2
    shared = weights_at + held * shape.words * shape.output_pitch * word
    return Arrangement(
        shift, rows, units, row_pitch, channel_pitch, chunks, output_tiles, slots, word,
        taps_at, halo_at, middle_at, weights_at, shared,
    )  # fmt: skip


def multiply_of(first: DepthwisePlan, second: PointwisePlan) -> str:
    """Return how a fused kernel forms products."""
    if second.tf32:
        return "tf32"
    halves = first.storage in HALVES and second.weights == first.storage
    return first.storage if halves else "fma"


def _unit(first: DepthwisePlan, width: int) -> int:
    """Return the elements of one copy: the most that bring at most a fifth more than needed."""
    size = SIZES[first.storage]
    if first.layout == "NHWC":
        return 1 if size >= 4 else 0
    columns = (width - 1) * first.x.stride + first.x.extent
    for bytes_ in (16, 8, 4):
        unit = bytes_ // size
        if unit and first.x.size % unit == 0 and width * first.x.stride % unit == 0:
            brought = _up(first.x.origin % unit + columns, unit)
            if unit == 1 or 5 * brought <= 6 * columns:
                return unit
    return 1 if size >= 4 else 0


def _warps(
    first: DepthwisePlan, second: PointwisePlan, multiply: str
) -> Iterator[tuple[int, int, int, int]]:
    """Yield warps and groups, of m and n: 64 sums a thread (float64: 16), and the least block."""
    planar = first.layout == "NCHW"
    high = 16 if multiply == "fma" else 32
    groups = 1 if first.compute == "float64" else 4 if multiply == "fma" else 2
    yield 1, 1, 1, 1
    for outputs, pixels in product((32, 64, 96, 128, 192, 256), (64, 128, 256)):
        m, n = (outputs, pixels) if planar else (pixels, outputs)
        # A tensor core's fragments of m are loaded one by one, those of n are held.
        groups_n = 2 if groups == 4 and n % 64 == 0 else 1
        groups_m = groups // groups_n
        warps_m, warps_n = m // (high * groups_m), n // (32 * groups_n)
        exact = m % (high * groups_m) == 0 and n % (32 * groups_n) == 0
        if exact and 2 <= warps_m * warps_n <= MOST_THREADS // 32:
            yield warps_m, warps_n, groups_m, groups_n


def _widths(first: DepthwisePlan) -> set[int]:
    most = _up(first.x.out, 4)
    return {min(width, most) for width in (8, 16, 32, 64)} | ({most} if most <= 64 else set())


def _candidates(first: DepthwisePlan, second: PointwisePlan) -> Iterator[FusedTile]:
    multiply = multiply_of(first, second)
    few = first.y.taps * first.x.taps <= MOST_TAPS
    for warps, width, words in product(
        _warps(first, second, multiply), sorted(_widths(first)), (8, 16)
    ):
        shape = FusedShape(
            multiply,
            first.layout == "NCHW",
            *warps,
            words,
            1,
            *((first.y.taps, first.x.taps) if few else (0, 0)),
            *((first.y.stride, first.y.dilation, first.x.dilation) if few else (1, 1, 1)),
            _unit(first, width),
            first.multiplier,
            MOST_THREADS // (32 * warps[0] * warps[1]),
        )
        most = min(shape.pixels // width, first.y.out)
        rows = 4 if most >= 4 else 2 if most >= 2 else 1
        height = min(shape.pixels // width // rows * rows, _up(first.y.out, rows))
        columns = width * height // rows
        if height == 0 or columns > shape.threads or shape.threads % shape.channels:
            continue
        for resident in (True, False):
            tile = FusedTile(replace(shape, rows=rows), width, height, resident, 1)
            shared = arrange(first, second, tile).shared
            tile = replace(tile, grid=MULTIPROCESSORS * blocks_of(shape, shared))
            if shared <= SHARED and _small(first, second, tile):
                yield tile


def grid_of(first: DepthwisePlan, tile: FusedTile) -> tuple[int, int]:
    """Return how many tiles lie below each other and side by side in one image."""
    return -(-first.y.out // tile.height), -(-first.x.out // tile.width)


def tiles_of(first: DepthwisePlan, tile: FusedTile) -> int:
    """Return how many tiles an image has."""
    down, across = grid_of(first, tile)
    return down * across


def _small(first: DepthwisePlan, second: PointwisePlan, tile: FusedTile) -> bool:
    """Return whether the kernel's 32-bit numbers suffice."""
    y, x = first.y, first.x
    largest = max(
        (y.out + 2 * tile.height) * y.stride + y.extent + abs(y.origin) + y.size,
        (x.out + 2 * tile.width) * x.stride + x.extent + abs(x.origin) + x.size,
        first.batch * tiles_of(first, tile) + 2 * tile.grid,
        first.filters * taps_held(y.taps * x.taps),
        second.outputs + 256,
    )
    return largest < 2**31


def cost(first: DepthwisePlan, second: PointwisePlan, tile: FusedTile) -> float:
    """Return modelled bytes of memory traffic for one output pixel that take as long as it does."""
    shape = tile.shape
    a = arrange(first, second, tile)
    down, across = grid_of(first, tile)
    pixels = first.y.out * first.x.out
    size = SIZES[first.storage]
    halo = down * across * a.rows * a.units * max(shape.unit, 1) / pixels * first.channels
    slots = down * across * shape.pixels / pixels
    reread = 0.0 if tile.resident else second.outputs * first.filters * down * across / pixels
    bytes_ = size * (halo + second.outputs) + SIZES[second.storage] * reread
    rate = RATES[shape.multiply] / (2 if first.compute == "float64" else 1)
    products = slots * first.filters * a.output_tiles * shape.outputs / rate
    if shape.groups_m * shape.groups_n == 1:
        # Each operand is loaded for few products.
        products *= 2
    # What a turn takes beside its products: some 250 instructions of each thread.
    turns = slots * a.chunks * a.output_tiles * shape.threads * 250 / shape.pixels / RATES["fma"]
    # Fewer threads than registers allow, or a block alone, leave waits uncovered.
    blocks = blocks_of(shape, a.shared)
    busy = sqrt(min(1.0, blocks * shape.threads / MOST_THREADS))
    busy *= min(1.0, max(1, first.batch) * down * across / MULTIPROCESSORS)
    return (bytes_ + products + turns) / busy * (1.05 if blocks == 1 else 1.0)


def blocks_of(shape: FusedShape, shared: int) -> int:
    """Return how many blocks fit on a multiprocessor."""
    return max(1, min(MOST_THREADS // shape.threads, (SHARED + 1024) // (shared + 1024)))


def placed(first: DepthwisePlan, tile: FusedTile, address: int) -> FusedTile:
    """Return a tile for an image at an address: without the copies that are not aligned there."""
    size = SIZES[first.storage]
    if address % (max(tile.shape.unit, 1) * size):
        return replace(tile, shape=replace(tile.shape, unit=1 if size >= 4 else 0))
    return tile


@lru_cache(maxsize=1024)
def choose(first: DepthwisePlan, second: PointwisePlan) -> FusedTile | None:
    """Return the tile of least modelled cost, None where shared memory has room for none.

    ``second.storage`` is the dtype of the intermediate.
    """
    fitting = _candidates(first, second)
    return min(fitting, key=lambda tile: cost(first, second, tile), default=None)

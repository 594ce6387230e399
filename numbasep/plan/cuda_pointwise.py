"""What one block of a pointwise CUDA kernel computes: chosen from a plan by arithmetic alone.

The result is a matrix whose columns are neighbours in memory: outputs by pixels in NCHW, pixels by
outputs in NHWC, the pixels of a whole batch side by side. A block computes a tile of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from numbasep.plan.channelwise import FEWEST_TILES, ITEMSIZE, PointwisePlan
from numbasep.plan.cuda_depthwise import alignment


@dataclass(frozen=True, slots=True)
class Spread:
    """How the threads of a block share the pieces of an image tile of ``depth`` channels.

    planar: whether pixels are neighbours in memory, and a piece is of one channel; else channels
        are, and a piece is of one pixel.
    piece: elements that are moved at once.

    Planar, piece j of a thread is ``(j % bases) * next_pixel`` pixels and ``(j // bases) *
    next_channel`` channels after its first; else ``j * next_pixel`` pixels.
    """

    planar: bool
    pixels: int
    depth: int
    piece: int
    threads: int

    @property
    def inner(self) -> int:
        """Pieces side by side in memory."""
        return (self.pixels if self.planar else self.depth) // self.piece

    @property
    def total(self) -> int:
        return self.pixels * self.depth // self.piece

    @property
    def count(self) -> int:
        """Pieces of a thread; where there are fewer pieces than threads, the last have none."""
        return max(1, self.total // self.threads)

    @property
    def bases(self) -> int:
        return max(1, self.inner // self.threads) if self.planar else 1

    @property
    def next_pixel(self) -> int:
        """Pixels from one of a thread's places to the next."""
        return self.threads * self.piece if self.planar else self.threads // self.inner

    @property
    def next_channel(self) -> int:
        """Channels from the pieces of a thread's places to the next ones."""
        return max(1, self.threads // self.inner) if self.planar else 0

    def check(self) -> None:
        """Refuse what the kernels' index arithmetic does not cover."""
        extent = self.pixels if self.planar else self.depth
        whole = extent % self.piece == 0
        if self.total > self.threads:
            whole &= self.total % self.threads == 0
        if self.planar:
            whole &= self.threads % self.inner == 0 or self.inner % self.threads == 0
        else:
            whole &= self.threads % self.inner == 0
        if not whole:
            raise ValueError(f"{self!r}: the pieces cannot be shared evenly")


@dataclass(frozen=True, slots=True)
class FmaTile:
    """A tile by multiply-adds of single numbers, in the compute dtype.

    vector: numbers in 16 bytes of the compute dtype.
    groups: vectors of a thread down the rows, and across the columns of the tile.
    lanes: threads down and across that are neighbours (of one warp, if they are 32).
    warps: such sets of threads down and across.
    depth: channels between two barriers.
    image_vector, out_vector: whether rows of image and out are aligned for whole vectors.
    """

    planar: bool
    vector: int
    groups: tuple[int, int]
    lanes: tuple[int, int]
    warps: tuple[int, int]
    depth: int
    image_vector: bool
    out_vector: bool

    @property
    def threads(self) -> int:
        return self.lanes[0] * self.lanes[1] * self.warps[0] * self.warps[1]

    @property
    def reach(self) -> tuple[int, int]:
        """Sums of a thread that a number goes into when it is read: down and across."""
        return self.vector * self.groups[1], self.vector * self.groups[0]

    @property
    def rows(self) -> int:
        return self.vector * self.groups[0] * self.lanes[0] * self.warps[0]

    @property
    def columns(self) -> int:
        return self.vector * self.groups[1] * self.lanes[1] * self.warps[1]

    @property
    def outputs(self) -> int:
        return self.rows if self.planar else self.columns

    @property
    def pixels(self) -> int:
        return self.columns if self.planar else self.rows

    @property
    def image(self) -> Spread:
        piece = self.vector if self.image_vector else 1
        return Spread(self.planar, self.pixels, self.depth, piece, self.threads)

    @property
    def weights(self) -> Spread:
        # Arranged channel by channel: as pixels of a planar image.
        return Spread(True, self.outputs, self.depth, self.vector, self.threads)

    @property
    def pitch(self) -> int:
        """Numbers from one channel of the image tile to the next in shared memory.

        Where channels are neighbours in the image they part here: a vector more per channel, and
        the threads of a warp store into different banks.
        """
        return self.pixels + (0 if self.planar else self.vector)

    @property
    def blocks(self) -> int:
        """Blocks to fit on a multiprocessor: 128 registers a thread, 256 for 8-byte numbers."""
        return max(1, (512 if self.vector == 4 else 256) // self.threads)

    def shared(self, size: int) -> int:
        """Return the bytes of two buffers of weights and image."""
        return 2 * self.depth * (self.outputs + self.pitch) * size

    def __str__(self) -> str:
        return f"{self.outputs} outputs by {self.pixels} pixels, {self.threads} threads"

    def check(self) -> None:
        """Refuse what the kernel does not cover."""
        self.image.check()
        self.weights.check()


# What the operands of a tensor core's multiply-add are: bytes of each, and how many along k.
OPERANDS = {"tf32": (4, 8), "float16": (2, 16), "bfloat16": (2, 16)}


@dataclass(frozen=True, slots=True)
class MmaTile:
    """A tile by matrix multiply-adds of tensor cores, 16 rows by 8 columns each.

    operand: of ``OPERANDS``.
    fragments: such matrices of a warp down the rows and across the columns; those across are
        loaded by twos, or there is one.
    warps: down and across.
    depth: channels between two barriers; a multiple of those of one multiply-add.
    stages: tiles of so many channels in shared memory, all but one on their way.
    copy: bytes that are copied at once from the image: 16, 8 or 4 as its rows are aligned, or one
        element that goes through a register.
    store: bytes that are stored at once: 16, 8 or 4 as rows of out are aligned, or one element.
    """

    planar: bool
    operand: str
    fragments: tuple[int, int]
    warps: tuple[int, int]
    depth: int
    stages: int
    copy: int
    store: int

    @property
    def threads(self) -> int:
        return 32 * self.warps[0] * self.warps[1]

    @property
    def size(self) -> int:
        return OPERANDS[self.operand][0]

    @property
    def reach(self) -> tuple[int, int]:
        """Sums of a warp that a number goes into when it is read: down and across."""
        return 8 * self.fragments[1], 16 * self.fragments[0]

    @property
    def rows(self) -> int:
        return 16 * self.fragments[0] * self.warps[0]

    @property
    def columns(self) -> int:
        return 8 * self.fragments[1] * self.warps[1]

    @property
    def outputs(self) -> int:
        return self.rows if self.planar else self.columns

    @property
    def pixels(self) -> int:
        return self.columns if self.planar else self.rows

    @property
    def image(self) -> Spread:
        piece = max(1, self.copy // self.size)
        return Spread(self.planar, self.pixels, self.depth, piece, self.threads)

    @property
    def weights(self) -> Spread:
        # Arranged output by output: as pixels whose channels are neighbours.
        return Spread(False, self.outputs, self.depth, 16 // self.size, self.threads)

    @property
    def chunks(self) -> int:
        """Pieces of 16 bytes in a row of channels in shared memory.

        Chunk c of row r is at place ``c ^ (r // (8 // chunks) % chunks)`` of the row: equal chunks
        of 8 rows are in different banks, as 8 neighbours are.
        """
        return self.depth * self.size // 16

    @property
    def image_pitch(self) -> int:
        """Elements from one channel (planar) or pixel to the next in shared memory.

        Planar rows are padded: matrices of 2-byte elements are read by 8 rows at once, single tf32
        numbers from 4 channels by 8 pixels.
        """
        return self.pixels + 8 if self.planar else self.depth

    @property
    def stage(self) -> int:
        """Elements of one stage: the weights, then the image."""
        rows = self.depth if self.planar else self.pixels
        return self.outputs * self.depth + rows * self.image_pitch

    @property
    def result_pitch(self) -> int:
        """Elements from row to row where a warp gathers 16 rows of results."""
        return 8 * self.fragments[1] + 8

    @property
    def shared(self) -> int:
        """Bytes of all stages, where the results of all warps find room afterwards."""
        gathered = 16 * self.result_pitch * self.threads // 32
        return max(self.stages * self.stage, gathered) * self.size

    @property
    def blocks(self) -> int:
        """Blocks to fit on a multiprocessor: 256 registers a thread for 128 sums, else 128."""
        sums = 4 * self.fragments[0] * self.fragments[1]
        return max(1, (256 if sums > 64 else 512) // self.threads)

    def __str__(self) -> str:
        return f"{self.outputs} outputs by {self.pixels} pixels, {self.threads} threads"

    def check(self) -> None:
        """Refuse what the kernel does not cover."""
        if self.fragments[1] not in (1, 2, 4, 8):
            raise ValueError(f"{self!r}: {self.fragments[1]} fragments across")
        if self.depth % OPERANDS[self.operand][1]:
            raise ValueError(f"{self!r}: part of a multiply-add")
        if self.chunks not in (2, 4, 8) or self.threads < 8 * self.chunks:
            raise ValueError(f"{self!r}: rows of {self.chunks} times 16 bytes")
        self.image.check()
        self.weights.check()


def alignments(plan: PointwisePlan, image: int, out: int) -> tuple[int, int]:
    """Return the bytes, at most 16, to which all rows are aligned of arrays at two addresses."""
    planar = plan.layout == "NCHW"
    image |= (plan.pixels if planar else plan.channels) * ITEMSIZE[plan.storage]
    out |= (plan.pixels if planar else plan.outputs) * ITEMSIZE[plan.output]
    return alignment(image), alignment(out)


def operand(plan: PointwisePlan) -> str | None:
    """Return the tensor cores' operand type for a plan; None: multiply-adds of single numbers.

    16-bit images whose weights are exact in 16 bits have exact products there; tf32 is asked for.
    """
    if plan.tf32:
        return "tf32"
    if plan.storage in ("float16", "bfloat16") and plan.weights == plan.storage:
        return plan.storage
    return None


# (fragments, warps) and (groups, lanes, warps) that are tried, down and across; see ``choose``.
_MMA = (
    ((4, 8), (2, 2)),
    ((2, 8), (2, 2)),
    ((2, 4), (2, 2)),
    ((2, 8), (1, 4)),
    ((4, 4), (4, 1)),
    ((2, 4), (1, 4)),
    ((1, 2), (1, 1)),
)
_FMA = (
    ((2, 2), (4, 8), (4, 2)),
    ((2, 2), (4, 8), (2, 2)),
    ((2, 2), (4, 8), (4, 1)),
    ((2, 2), (4, 8), (1, 4)),
    ((2, 1), (4, 8), (4, 1)),
    ((1, 1), (4, 8), (4, 2)),
    ((1, 1), (4, 8), (1, 1)),
)


def candidates(
    plan: PointwisePlan, image_aligned: int, out_aligned: int, tensor_cores: bool = True
) -> list[FmaTile] | list[MmaTile]:
    """Return the tiles among which ``choose`` does."""
    name = operand(plan) if tensor_cores else None
    planar = plan.layout == "NCHW"
    if name is not None:
        size, k = OPERANDS[name]
        copy, store = (step if step >= 4 else size for step in (image_aligned, out_aligned))
        return [
            MmaTile(planar, name, fragments, warps, 2 * k, 4, copy, store)
            for fragments, warps in _MMA
        ]
    vector = 16 // ITEMSIZE[plan.compute]
    return [
        FmaTile(
            planar,
            vector,
            groups if vector == 4 else (2 * groups[0], groups[1]),
            lanes,
            warps,
            16 if groups == (1, 1) else 8,
            image_aligned >= vector * ITEMSIZE[plan.storage],
            out_aligned >= vector * ITEMSIZE[plan.output],
        )
        for groups, lanes, warps in _FMA
    ]


@lru_cache(maxsize=1024)
def choose(
    plan: PointwisePlan, image_aligned: int, out_aligned: int, tensor_cores: bool = True
) -> FmaTile | MmaTile:
    """Return the tile for a plan.

    image_aligned, out_aligned: the power of two, up to 16, that divides the addresses (in bytes) of
        all rows of image and out.
    tensor_cores: whether the device has them; single multiply-adds are more exact, if anything.

    The tile with the least work in the longest queue of a multiprocessor, in multiply-adds: those
    for what hangs over the edge included, and 16 (single numbers) or 128 (tensor cores) for a
    number's way into shared memory, 2 or 16 each time it is read there.
    """
    tiles: Sequence[FmaTile | MmaTile] = candidates(plan, image_aligned, out_aligned, tensor_cores)
    write, read = (128, 16) if isinstance(tiles[0], MmaTile) else (16, 2)
    pixels = plan.batch * plan.pixels

    def work(tile: FmaTile | MmaTile) -> int:
        blocks = -(-pixels // tile.pixels) * -(-plan.outputs // tile.outputs)
        queue = -(-blocks // FEWEST_TILES["cuda"])
        sums = tile.pixels * tile.outputs
        reads = sum(sums // reach for reach in tile.reach)
        return queue * (sums + read * reads + write * (tile.pixels + tile.outputs))

    return min(tiles, key=work)

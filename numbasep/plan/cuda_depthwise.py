"""What one block of a CUDA depthwise kernel computes: chosen from a plan by arithmetic alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd

from numbasep import boundary as boundaries
from numbasep.plan.channelwise import ITEMSIZE, DepthwisePlan

# Places in an axis, and threads of a launch, are 32-bit numbers; offsets in memory are not.
LONGEST = 2**31

# Outputs of a thread side by side in the tile kernel.
VECTOR = 4

# Threads that keep a multiprocessor busy, half of what it takes, and an H200's 132 of them.
BUSY_THREADS = 1024
BUSY = 132 * BUSY_THREADS

# Registers of sums, pixels and taps that leave room for so many threads, found by compiling:
# of the pixels kernel and of the rows kernel.
HALF, ROOMY = 40, 50

# Of one thread, while the memory moves a byte: an H200 issues some 28.7 T and copies 4.3 TB/s.
INSTRUCTIONS_A_BYTE = 28.7 / 4.3


@dataclass(frozen=True, slots=True)
class Tile:
    """Outputs of one block of the tile kernel, for any case.

    width, height, channels: of one block; ``width`` a multiple of ``VECTOR``.
    rows: of one thread, below each other; above 1 only where neither stride nor dilation is.
    slides: whether neighbours' windows are one element apart (no stride or dilation of columns).
    terms, taps: terms of the sum (rows of a dense kernel; those of low rank), and taps of each,
        in shared memory at a time; ``taps`` is all of them where ``terms`` is above 1.
    staged: rows in shared memory for ``terms``.
    pitch, plane: elements from one of them to the next, and from one channel to the next.
    lanes: neighbouring threads that load neighbouring elements.
    """

    width: int
    height: int
    channels: int
    rows: int
    slides: bool
    terms: int
    taps: int
    staged: int
    pitch: int
    plane: int
    lanes: int
    threads: int
    shared: int

    def __str__(self) -> str:
        return (
            f"{self.height} x {self.width} outputs of {self.channels} channels, "
            f"{self.threads} threads"
        )

    @property
    def tap_pitch(self) -> int:
        return whole(self.taps, VECTOR)


@dataclass(frozen=True, slots=True)
class RowShape:
    """What a rows kernel is compiled for; everything else is given at run time.

    shift: columns from the first of a thread's own to the one under its first tap.
    vector: outputs of one thread, side by side.
    load, store: elements of one access.
    shared_taps: whether taps stay in shared memory, else in registers.
    threads, blocks: the most threads of a block, and blocks to fit on a multiprocessor.
    """

    taps_y: int
    taps_x: int
    stride_y: int
    stride_x: int
    dilation_x: int
    shift: int
    vector: int
    load: int
    store: int
    shared_taps: bool
    threads: int
    blocks: int | None

    @property
    def own(self) -> int:
        """Image columns of one thread."""
        return self.vector * self.stride_x

    @property
    def left(self) -> int:
        """Columns of the lane before that a thread needs too."""
        return max(0, -self.shift)

    @property
    def right(self) -> int:
        """Columns of the lane behind that a thread needs too."""
        last = (self.vector - 1) * self.stride_x + (self.taps_x - 1) * self.dilation_x
        return max(0, self.shift + last + 1 - self.own)

    @property
    def pending(self) -> int:
        """Rows of outputs that wait for image rows below."""
        return -(-self.taps_y // self.stride_y) - 1

    @property
    def tap_pitch(self) -> int:
        return whole(self.taps_x, VECTOR)

    @property
    def filter_pitch(self) -> int:
        """Elements between filters in shared memory: an odd number of vectors."""
        return (self.taps_y * self.tap_pitch // VECTOR | 1) * VECTOR


@dataclass(frozen=True, slots=True)
class Rows:
    """A block of the rows kernel: ``height`` rows of outputs of each thread, ``threads`` of them.

    start: the image column of the first thread's first own one.
    """

    shape: RowShape
    height: int
    threads: int
    start: int

    def __str__(self) -> str:
        return f"{self.height} x {self.shape.vector} outputs a thread, {self.threads} threads"


@dataclass(frozen=True, slots=True)
class PixelShape:
    """What a pixels kernel is compiled for; everything else is given at run time.

    vector: channels of one thread.
    pixels: outputs of one thread, side by side.
    lanes: the most vectors of channels in a block.
    load, store: elements of one access.
    threads, blocks: of a block, and blocks to fit on a multiprocessor.
    """

    taps_y: int
    taps_x: int
    stride_y: int
    stride_x: int
    dilation_x: int
    vector: int
    pixels: int
    lanes: int
    load: int
    store: int
    threads: int
    blocks: int | None

    @property
    def pending(self) -> int:
        """Rows of outputs that wait for image rows below."""
        return -(-self.taps_y // self.stride_y) - 1


@dataclass(frozen=True, slots=True)
class Pixels:
    """A block of the pixels kernel: ``lanes`` vectors of channels, ``height`` rows of outputs."""

    shape: PixelShape
    height: int
    lanes: int

    def __str__(self) -> str:
        s = self.shape
        own = f"{self.height} x {s.pixels} outputs of {s.vector} channels"
        return f"{own} a thread, {s.threads} threads"


def whole(size: int, step: int) -> int:
    """Return the least multiple of ``step`` from ``size`` on."""
    return -(-size // step) * step


def tile(
    plan: DepthwisePlan,
    width: int = 64,
    height: int = 32,
    channels: int = 32,
    threads: int = 256,
    budget: int = 46 * 1024,
) -> Tile:
    """Return a tile of at most the sizes given; ``threads`` is exceeded by no block.

    Raises ValueError where an axis is too long for the kernels' places in it.
    """
    for axis in (plan.y, plan.x):
        longest = max(axis.size, (axis.out - 1) * axis.stride + axis.extent)
        if longest >= LONGEST:
            raise ValueError(
                f"x: {longest} rows or columns arrived with their padding; on CUDA there may be "
                f"{LONGEST - 1}: split x, overlapping by the kernel"
            )
    planar = plan.layout == "NCHW"
    size = ITEMSIZE[plan.compute]
    x, y, terms = plan.x, plan.y, plan.rank or plan.y.taps
    slides = x.stride == x.dilation == 1
    joined = slides and (plan.rank > 0 or y.stride == y.dilation == 1)
    width = min(whole(width, VECTOR), whole(x.out, VECTOR), VECTOR * threads)
    channels = 1 if planar else min(channels, plan.channels, threads)
    channels = max(1, min(channels, threads * VECTOR // width)) if not planar else 1
    rows = 4 if joined and not plan.rank and terms >= 4 and y.out >= 4 and planar else 1
    high = max(
        1, min(whole(min(height, y.out), rows), threads * VECTOR // (width * channels) * rows)
    )
    high = max(rows, high // rows * rows)
    # Tiles of one size that fill the result.
    width = whole(-(-x.out // -(-x.out // width)), VECTOR)
    high = whole(-(-y.out // -(-y.out // high)), rows)
    count, taps = terms, x.taps
    while True:
        found = _sizes(plan, width, high, channels, count, taps, slides)
        if found[3] * size <= budget:
            break
        # What costs reuse least goes first: terms at a time, rows, channels, taps at a time.
        if count > 1 and (plan.rank or count > 8 or high <= rows):
            count = (count + 1) // 2
        elif high > rows:
            high = max(rows, high // 2 // rows * rows)
        elif rows > 1:
            high = rows = 1
        elif count > 1:
            count = (count + 1) // 2
        elif channels > 1:
            channels //= 2
        elif width > VECTOR:
            width = whole(width // 2, VECTOR)
        elif taps > 1:
            taps = (taps + 1) // 2
        else:
            break
    if planar:
        # Small planes: several in a block.
        fill = threads * VECTOR * rows // (width * high)
        fits = max(1, budget // (found[3] * size))
        channels = max(1, min(plan.channels, fill, fits))
    staged, pitch, plane, _ = _sizes(plan, width, high, channels, count, taps, slides)
    shared = channels * (plane + count * whole(taps, VECTOR)) * size
    used = width // VECTOR * (high // rows) * channels
    lanes = 32 if planar else channels
    return Tile(
        width, high, channels, rows, slides, count, taps, staged, pitch, plane,
        min(lanes, used), used, shared,
    )  # fmt: skip


def _sizes(
    plan: DepthwisePlan, width: int, height: int, channels: int, terms: int, taps: int, slides: bool
) -> tuple[int, int, int, int]:
    """Return staged rows, pitch, plane, and all elements of shared memory."""
    x, y = plan.x, plan.y
    if plan.rank:
        staged = terms * height
    else:
        # One term or tap at a time takes only what it needs, whatever the stride.
        apart = y.stride if terms > 1 else 1
        staged = (height - 1) * apart + (terms - 1) * y.dilation + 1
    pitch = (width - 1) * (x.stride if taps > 1 else 1) + (taps - 1) * x.dilation + 1
    if slides:
        pitch = whole(pitch, VECTOR)
    plane = staged * pitch
    if plan.layout == "NHWC":
        # Neighbouring channels in different banks: an odd number of vectors apart.
        plane = (whole(plane, VECTOR) // VECTOR | 1) * VECTOR
    return staged, pitch, plane, channels * (plane + terms * whole(taps, VECTOR))


def alignment(address: int) -> int:
    """Return the bytes, at most 16, to which an address is aligned."""
    return address & -address & 15 or 16


def width_of(size: int, itemsize: int, alignment: int, most: int) -> int:
    """Return how many elements one access takes where rows of ``size`` follow each other.

    A power of two up to ``most``, of at most 16 bytes, aligned in every row.
    """
    result = 1
    while (
        2 * result <= most
        and 2 * result * itemsize <= 16
        and size % (2 * result) == 0
        and alignment % (2 * result * itemsize) == 0
    ):
        result *= 2
    return result


def rows(
    plan: DepthwisePlan,
    alignment: tuple[int, int] = (16, 16),
    height: int = 0,
    threads: int = 256,
    vector: int = 0,
) -> Rows | None:
    """Return a tile of the rows kernel; None where that kernel does not take the plan.

    alignment: bytes to which image and out are aligned.
    height, vector: as in ``Rows`` and ``RowShape``; chosen where 0.
    """
    x, y = plan.x, plan.y
    size, narrow = ITEMSIZE[plan.storage], ITEMSIZE[plan.output]
    taps = y.taps * x.taps
    if plan.layout != "NCHW" or plan.rank or max(y.taps, x.taps) > 7:
        return None
    if max(y.stride, x.stride) > 3 or (y.stride > 1 and y.dilation > 1):
        return None
    # As many outputs as one access takes: then neighbouring lanes' accesses are neighbours too.
    most = 8 if size == 2 and taps <= 9 else 4
    load = width_of(x.size, size, alignment[0], 8)
    store = width_of(x.out, narrow, alignment[1], 8)
    widest = max(1, min(load // x.stride, store, most))
    shape, start, held = _row_shape(plan, alignment, threads, vector or widest)
    binds = memory_binds(plan)
    while binds and not vector and held > ROOMY and shape.vector * size > 8:
        shape, start, held = _row_shape(plan, alignment, threads, shape.vector // 2)
    sides = shape.left + shape.right
    # A bit for each access of a row.
    if (
        held > 120
        or sides + shape.own // shape.load > 31
        or max(shape.left, shape.right) > 8 * shape.own
    ):
        return None
    room = BUSY_THREADS if held <= ROOMY or (binds and size == 8) else BUSY_THREADS // 2
    shape = replace(shape, blocks=room // threads)
    across = -(-x.out // shape.vector)
    if not height:
        # As few rows twice as keep the device's threads busy.
        height = min(64, -(-y.out // y.dilation))
        planes = plan.batch * plan.filters * y.dilation
        while height > 16 and planes * across * -(-y.out // (y.dilation * height)) < BUSY:
            height = -(-height // 2)
        strips = -(-y.out // (y.dilation * height))
        height = -(-y.out // (y.dilation * strips))
    units = plan.batch * plan.filters * strips_of(plan, height) * y.dilation * across
    if max(x.size * size, x.out * narrow, y.size, units) >= LONGEST:
        return None
    while threads > 32 and shared_bytes(plan, shape, height, threads) > 46 * 1024:
        threads //= 2
    return Rows(shape, height, threads, start)


def _row_shape(
    plan: DepthwisePlan, alignment: tuple[int, int], threads: int, vector: int
) -> tuple[RowShape, int, float]:
    """Return a shape, where its first thread's own columns start, and registers, roughly."""
    x, y = plan.x, plan.y
    size, narrow = ITEMSIZE[plan.storage], ITEMSIZE[plan.output]
    taps = y.taps * x.taps
    own = vector * x.stride
    load = width_of(x.size, size, alignment[0], own & -own)
    store = width_of(x.out, narrow, alignment[1], vector)
    # The thread's own columns start where an access may; so that it needs few of its neighbours'.
    span = own + x.extent
    shape, start = min(
        (
            (
                RowShape(
                    y.taps, x.taps, y.stride, x.stride, x.dilation, x.origin - start, vector, load,
                    store, taps > 9 or plan.compute == "float64", threads, None,
                ),
                start,
            )
            for start in range(x.origin // load * load - whole(span, load), span, load)
        ),
        key=lambda found: (max(found[0].left, found[0].right), abs(found[1])),
    )  # fmt: skip
    # Sums, a window and taps; what is loaded ahead, and places.
    sides = shape.left + shape.right
    held = (shape.pending + 1) * vector + shape.own + sides
    held += shape.tap_pitch if shape.shared_taps else taps
    held *= 2 if plan.compute == "float64" else 1
    return shape, start, held + (shape.own + 2 * sides) * y.stride * size / 4


def strips_of(plan: DepthwisePlan, height: int) -> int:
    """Return the strips below each other in one phase of dilated rows."""
    phase = -(-plan.y.out // plan.y.dilation)
    return -(-phase // height)


def shared_bytes(plan: DepthwisePlan, shape: RowShape, height: int, threads: int) -> int:
    """Return the bytes of taps of all filters that a block can meet."""
    if not shape.shared_taps:
        return 0
    each = -(-plan.x.out // shape.vector) * strips_of(plan, height) * plan.y.dilation
    filters = (threads - 2) // each + 2
    return filters * shape.filter_pitch * ITEMSIZE[plan.compute]


def pixels(
    plan: DepthwisePlan,
    alignment: tuple[int, int] = (16, 16),
    height: int = 0,
    lanes: int = 32,
    threads: int = 256,
    side: int = 0,
    vector: int = 0,
) -> Pixels | None:
    """Return a tile of the pixels kernel; None where that kernel does not take the plan.

    alignment, height, vector: as for ``rows``. lanes: the most in a block. side: outputs of one
        thread, chosen where 0.
    """
    x, y = plan.x, plan.y
    size, narrow = ITEMSIZE[plan.storage], ITEMSIZE[plan.output]
    if plan.layout != "NHWC" or plan.rank or plan.multiplier > 1 or max(y.taps, x.taps) > 7:
        return None
    if max(y.stride, x.stride) > 3 or (y.stride > 1 and y.dilation > 1):
        return None
    if not side:
        side = 2 if x.stride == 1 else 1
    # Registers of a channel, roughly: its sums, and the pixels of an image row.
    fresh = taps_apart(x.stride, x.dilation)[1]
    held = side * -(-y.taps // y.stride) + x.taps * side - (x.taps - 1) * max(0, side - fresh)
    held *= 2 if plan.compute == "float64" else 1
    # Boundary rules take registers too.
    half = HALF if plan.boundary == boundaries.FILL else HALF - 8
    if not vector:
        # Where memory binds, threads go before wide accesses.
        vector = 2 if size == 8 else VECTOR
        while vector > 1 and vector * held > half and memory_binds(plan):
            vector //= 2
    load = width_of(plan.channels, size, alignment[0], vector)
    store = width_of(plan.channels, narrow, alignment[1], vector)
    blocks = (BUSY_THREADS if vector * held <= half else BUSY_THREADS // 2) // threads
    each = (y.taps * x.taps + 1) * vector * ITEMSIZE[plan.compute]
    while lanes > 1 and lanes * each > 46 * 1024:
        lanes //= 2
    shape = PixelShape(
        y.taps, x.taps, y.stride, x.stride, x.dilation, vector, side, lanes, load, store, threads,
        blocks,
    )  # fmt: skip
    groups = -(-plan.channels // vector)
    lanes = -(-groups // -(-groups // lanes))
    if not height:
        height = min(64, -(-y.out // y.dilation))
        columns = plan.batch * -(-x.out // side) * groups * y.dilation
        while height > 16 and columns * -(-y.out // (y.dilation * height)) < BUSY:
            height = -(-height // 2)
        strips = -(-y.out // (y.dilation * height))
        height = -(-y.out // (y.dilation * strips))
    units = plan.batch * strips_of(plan, height) * y.dilation * -(-x.out // side)
    row = max(x.size * size, x.out * narrow) * plan.channels
    if max(row, y.size, units * -(-groups // lanes)) >= LONGEST:
        return None
    return Pixels(shape, height, lanes)


def taps_apart(stride: int, dilation: int) -> tuple[int, int]:
    """Return ``(back, ahead)``: the pixel under tap k of an output is under tap k - back of the
    output that is ``ahead`` further along its axis."""
    shared = gcd(stride, dilation)
    return stride // shared, dilation // shared


def memory_binds(plan: DepthwisePlan) -> bool:
    """Return whether a kernel of few taps waits for memory, not for instructions; roughly."""
    x, y = plan.x, plan.y
    moved = ITEMSIZE[plan.storage] * y.stride * x.stride + ITEMSIZE[plan.output]
    each = 2.6 if plan.compute == "float64" else 1.3
    return each * y.taps * x.taps + 10 <= INSTRUCTIONS_A_BYTE * moved


@lru_cache(maxsize=1024)
def choose(plan: DepthwisePlan, alignment: tuple[int, int]) -> Tile | Rows | Pixels:
    """Return the tile of a plan, for arrays aligned to so many bytes (image, out)."""
    return rows(plan, alignment) or pixels(plan, alignment) or tile(plan)

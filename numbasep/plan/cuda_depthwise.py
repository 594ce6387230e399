"""What one block of a CUDA depthwise kernel computes: chosen from a plan by arithmetic alone."""

from __future__ import annotations

from dataclasses import dataclass

from numbasep.plan.channelwise import ITEMSIZE, DepthwisePlan

# Outputs of a thread side by side in the tile kernel.
VECTOR = 4


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

    @property
    def tap_pitch(self) -> int:
        return whole(self.taps, VECTOR)


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
    """Return a tile of at most the sizes given; ``threads`` is exceeded by no block."""
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

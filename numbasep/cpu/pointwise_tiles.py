"""What a thread takes of a pointwise convolution at a time, on the CPU: by a model of the time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from numbasep.cpu import blocks
from numbasep.cpu.channels import ACTIVATED, rounded
from numbasep.plan import cpu_tiles
from numbasep.plan.channelwise import PointwisePlan

ROWS, VECTORS = blocks.MIX_ROWS, blocks.MIX_VECTORS

# Bytes of pixels that are read again from the last cache for each share of the outputs.
NEAR_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Tile:
    """A work item: ``pixels`` pixels of ``share`` output channels.

    turns: weights for NHWC are turned by the thread that takes their share, not all before.
    """

    pixels: int
    share: int
    threads: int
    turns: bool = False

    def __str__(self) -> str:
        return f"{self.share} outputs by {self.pixels} pixels, {self.threads} threads"


# Costs in the time that ``ROWS`` rows by a vector take for one channel: of a block of rows beside
# its multiply-adds, of a channel of a block of columns that is packed or fetched, of a work item;
# of a channel of a vector of weights that is turned; until a second thread has begun.
BLOCK_COST, FETCH_COST, ITEM_COST, TURN_COST, LATE_COST = 8, 3, 500, 2, 3000


def _split(size: int, unit: int, most: int) -> set[int]:
    """Return sizes, multiples of a unit, that cut ``size`` into 1, 2, ... ``most`` even parts."""
    return {rounded(-(-size // count), unit) for count in range(1, most + 1)}


def left_over(plan: PointwisePlan) -> int:
    """Return the last pixels of an image that are taken together with those of others: NCHW.

    A vector of few pixels takes as long as one of many.
    """
    left = plan.pixels % blocks.lanes_of(plan.compute)
    together = (
        plan.layout == "NCHW"
        and plan.batch > 1
        and plan.storage == plan.compute == plan.output
        and plan.activation not in ACTIVATED
        and plan.outputs >= ROWS
        and left < plan.pixels
    )
    return left if together and 2 * left <= blocks.lanes_of(plan.compute) else 0


def _cost(rows: int, columns: int, channels: int, lanes: int, again: bool) -> int:
    """Return what a product costs; again: whether the last columns can be taken again."""
    full, rest = divmod(columns, VECTORS * lanes)
    vectors = -(-rest // lanes)
    if rest and not (columns >= vectors * lanes if again else rest % lanes == 0):
        # Masks are slow.
        vectors = 2 * VECTORS
    row_blocks = -(-rows // ROWS) if rows >= ROWS else rows
    each = (full * VECTORS + vectors) * channels + BLOCK_COST * (full + 1)
    return row_blocks * each + FETCH_COST * channels * -(-columns // (VECTORS * lanes)) + ITEM_COST


def _parts(size: int, part: int) -> list[int]:
    """Return the parts that ``size`` is cut into."""
    return [min(part, size - start) for start in range(0, size, part)]


# Items for each thread from which on a thread's last one is of no account.
MANY = 8


def _time(costs: list[int], threads: int) -> int:
    """Return when the threads have done items of these costs, queued as ``queues`` does.

    All threads but the first are late. Of many items it is the mean, and a third of an item.
    """
    if len(costs) > MANY * threads:
        return sum(costs) // threads + max(costs) // 3
    if threads == 1:
        return sum(costs)
    waiting = [
        costs[len(costs) * k // threads : len(costs) * (k + 1) // threads] for k in range(threads)
    ]
    at = [(LATE_COST * (k > 0), k) for k in range(threads)]
    while any(waiting):
        now, k = min(at)
        other = next(j % threads for j in range(k, k + threads) if waiting[j % threads])
        at[k] = now + waiting[other].pop(0), k
    # Whoever is held up leaves items to others, but not the one that he is at.
    return max(at)[0] + max(costs) // 16


@lru_cache(maxsize=1024)
def choose(plan: PointwisePlan, threads: int) -> Tile:
    """Return the tile for a plan: the one whose items take the threads least time, by a model."""
    lanes = blocks.lanes_of(plan.compute)
    block = VECTORS * lanes
    if plan.batch * plan.pixels * plan.channels * plan.outputs < 2 * cpu_tiles.ALONE:
        threads = 1
    planar = plan.layout == "NCHW"
    images, whole = 1, plan.batch * plan.pixels
    if planar:
        images, whole = plan.batch, plan.pixels - left_over(plan)
    unit, least = (block, ROWS) if planar else (ROWS, block)
    # Of NHWC a tile's pixels stay in L2 while the outputs go by; of NCHW what is converted does.
    converts = plan.storage != plan.compute
    row = plan.channels * np.dtype(plan.compute).itemsize
    most = max(cpu_tiles.L2_BYTES // 2 // row // unit, 1) * unit
    # Weights that a thread turns are in L2 beside the pixels, which all shares of the outputs read.
    fits = max(cpu_tiles.L2_BYTES // 2 // row // block, 1) * block
    near = whole * row <= NEAR_BYTES
    turns = not planar and not converts and (near or plan.outputs <= fits)
    turning = TURN_COST * plan.channels * -(-plan.outputs // lanes) if turns else 0
    shares = {min(share, plan.outputs) for share in _split(plan.outputs, least, 4 * threads)}
    if turns and not near:
        shares = {plan.outputs}
    elif turns:
        shares = {share for share in shares if share <= fits} or {
            rounded(-(-plan.outputs // -(-plan.outputs // fits)), block)
        }

    @cache
    def cost(n: int, outputs: int) -> int:
        rows, columns = (outputs, n) if planar else (n, outputs)
        return _cost(rows, columns, plan.channels, lanes, planar)

    found = []
    for size in _split(whole, unit, 16 * threads):
        pixels = min(size, most, whole) if not planar or converts else min(size, whole)
        for share in shares:
            costs = [
                each
                for n in _parts(whole, pixels)
                for each in [cost(n, outputs) for outputs in _parts(plan.outputs, share)]
            ]
            turned = min(-(-whole // pixels), threads) * turning // threads
            found.append((_time(costs * images, threads) + turned, -share, pixels))
    _, share, pixels = min(found)
    return Tile(pixels, -share, threads, turns)

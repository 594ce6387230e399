"""Pictures larger than memory: blocks of the result, one after the other.

The result is computed in bands of rows, each as wide as the memory allows, mostly the whole width.
A band of the picture is read once and kept until the bands after it no longer need its last rows;
while one is filtered, the next is read and the one before is written, in a thread each.

    read       |  band 0  |  band 1  |  band 2  |  band 3 ...
    filter          0          1          2           with some rows of the bands beside it
    write                     0          1

Where the bands are narrower than the picture, the columns beside them are read twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbasep.boundary import NAMES as BOUNDARIES
from numbasep.cli.filter import Filter
from numbasep.cli.tables import size as in_words
from numbasep.lazy import Part, _window
from numbasep.plan.spatial import axis as spatial_axis

Array = NDArray[Any]
Index = tuple[slice, ...]

# Bytes of a band below which its handling shows in the time.
WORTHWHILE = 64_000_000
# Bytes of the window that one call filters, and of its result where that has another dtype.
WINDOW = 32_000_000
# Chunks that are decoded at a time, each of them there twice.
DECODED = 4


@dataclass(frozen=True)
class Grid:
    """How a result is cut.

    y, x: the picture's axes. steps: size of a block along each axis. rows: of one call.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    y: int
    x: int
    steps: tuple[int, ...]
    rows: int

    @property
    def blocks(self) -> int:
        """How many blocks the result has."""
        count = 1
        for size, step in zip(self.shape, self.steps, strict=True):
            count *= -(-size // step)
        return count


def cut(
    shape: Sequence[int],
    dtype: np.dtype[Any],
    axes: tuple[int, int],
    unit: Sequence[int],
    chunk: Sequence[int],
    made: Filter,
    memory: int,
    *,
    whole_rows: bool = False,
) -> Grid:
    """Choose the blocks of a result so that all that is held at a time takes ``memory`` bytes.

    axes: (y, x). unit: what is written at a time. chunk: what is read at a time. whole_rows: blocks
    must be as wide as the picture.

    Raises:
        ValueError: if the smallest blocks take more.
    """
    y, x = axes
    height, width = made.kernel.shape[-2:]
    item = dtype.itemsize
    steps = [min(step, max(size, 1)) for step, size in zip(unit, shape, strict=True)]
    planes = int(np.prod([s for i, s in enumerate(steps) if i not in axes], dtype=object))
    decoded = DECODED * 2 * item * int(np.prod(chunk, dtype=object))
    # Results that are shown otherwise pass through some float64 arrays.
    element = item if made.shown.plain else item + 32

    def rows_of(columns: int) -> int:
        return max(1, WINDOW // (columns * planes * element))

    def needed(rows: int, columns: int) -> int:
        wide = min(columns + width - 1, 2 * shape[x] + width)
        kept = -(-(rows + height - 1) // rows) + 2
        line = planes * wide * item
        calls = min(rows_of(columns), rows)
        return (
            line * rows * kept
            + 2 * planes * columns * item * rows
            + planes * wide * element * 2 * (calls + height - 1)
            + decoded
        )

    down, across = steps[y], steps[x]
    columns = shape[x]
    if needed(down, columns) > memory and not whole_rows:
        while columns > across and needed(down, columns) > memory:
            columns = max(across, -(-columns // 2 // across) * across)
    least = needed(down, columns)
    if least > memory:
        raise ValueError(
            f"--memory: blocks of {down} x {columns} pixels take {in_words(least)}, which is more "
            f"than {in_words(memory)}; add --memory {-(-least // 10**6)}MB"
        )
    # Chunks that do not end with a band are read again by the next one.
    worthwhile = max(WORTHWHILE // (planes * columns * item), 4 * min(chunk[y], shape[y]))
    if chunk[y] <= down and down % chunk[y] == 0:
        worthwhile = WORTHWHILE // (planes * columns * item)
    rows = down
    while rows < min(worthwhile, shape[y]) and needed(rows + down, columns) <= memory:
        rows += down
    steps[y], steps[x] = min(rows, shape[y]), columns
    return Grid(tuple(shape), dtype, y, x, tuple(steps), rows_of(columns))


class _Bands:
    """Bands of rows of a picture, each read once, ahead of its use."""

    def __init__(
        self, read: Callable[[int, int], Array], rows: int, height: int, pool: ThreadPoolExecutor
    ) -> None:
        self.read, self.rows, self.height, self.pool = read, rows, height, pool
        self.there: dict[int, Future[Array]] = {}

    def ask(self, band: int) -> Future[Array]:
        """Begin to read a band."""
        if band not in self.there:
            begin = band * self.rows
            end = min(begin + self.rows, self.height)
            self.there[band] = self.pool.submit(self.read, begin, end)
        return self.there[band]

    def get(self, begin: int, end: int, y: int) -> Array:
        """Return rows ``begin`` to ``end``."""
        first, last = begin // self.rows, max(end - 1, begin) // self.rows
        parts = []
        for band in range(first, last + 1):
            start = band * self.rows
            chosen = slice(max(begin - start, 0), min(end - start, self.rows))
            parts.append(_along(self.ask(band).result(), y, chosen))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=y)

    def forget(self, first: int, last: int) -> None:
        """Drop all bands but those from ``first`` to ``last``."""
        for band in list(self.there):
            if not first <= band <= last:
                del self.there[band]


def _along(array: Array, axis: int, chosen: slice) -> Array:
    index = [slice(None)] * array.ndim
    index[axis] = chosen
    return array[tuple(index)]


def _assemble(part: Part, axis: int, get: Callable[[int, int], Array], fill: Any) -> Array:
    """Return what a part of a result reads along an axis: pieces of it, and what is outside."""
    pieces: list[Array] = []
    for _, what in part.pieces:
        if isinstance(what, slice):
            pieces.append(get(what.start, what.stop))
        else:
            low = int(what.min())
            pieces.append(get(low, int(what.max()) + 1).take(what - low, axis))
    shape = list(pieces[0].shape)
    for place, count in ((0, part.before), (len(pieces) + 1, part.after)):
        if count:
            shape[axis] = count
            pieces.insert(place, np.full(shape, fill, pieces[0].dtype))
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=axis)


class Run:
    """One filtering of a picture; ``blocks`` yields the result.

    low, high: the least and the largest value of what was read so far.
    """

    def __init__(self, read: Callable[[Index], Array], grid: Grid, made: Filter) -> None:
        self.read, self.grid, self.made = read, grid, made
        self.low, self.high = np.inf, -np.inf
        self.boundary = BOUNDARIES.index(made.boundary)
        kernel_height, kernel_width = made.kernel.shape[-2:]
        height, width = grid.shape[grid.y], grid.shape[grid.x]
        self.rows = spatial_axis("same", height, kernel_height, 1, 1)
        self.columns = spatial_axis("same", width, kernel_width, 1, 1)

    def blocks(self) -> Generator[tuple[Index, Array]]:
        """Yield where a block stands in the result, and the block; rows in turn."""
        grid = self.grid
        along = [
            [slice(i, min(i + step, size)) for i in range(0, size, step)]
            for size, step in zip(grid.shape, grid.steps, strict=True)
        ]
        others = [
            [slice(None)] if axis == grid.y else along[axis] for axis in range(len(grid.shape))
        ]
        with ThreadPoolExecutor(1, "numbasep-read") as pool:
            try:
                for index in itertools.product(*others):
                    yield from self._strip(index, along[grid.y], pool)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _strip(
        self, index: Index, rows: list[slice], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[Index, Array]]:
        grid, made = self.grid, self.made
        y, x, height = grid.y, grid.x, grid.shape[grid.y]
        step = grid.steps[y]
        chosen = index[x]
        wide = _window(self.columns, chosen.start, chosen.stop, (self.columns.size,), self.boundary)

        def read(begin: int, end: int) -> Array:
            def columns(left: int, right: int) -> Array:
                place = list(index)
                place[y], place[x] = slice(begin, end), slice(left, right)
                return self.read(tuple(place))

            found = _assemble(wide, x, columns, made.fillvalue)
            if found.size:
                self.low = np.minimum(self.low, found.min())
                self.high = np.maximum(self.high, found.max())
            return found

        bands = _Bands(read, step, height, pool)
        for number, band in enumerate(rows):
            first = max(band.start + self.rows.origin, 0) // step
            last = min(band.stop + self.rows.origin + self.rows.extent - 2, height - 1) // step
            bands.forget(first, last + 1)
            for ahead in range(number, min(last + 2, len(rows))):
                bands.ask(ahead)
            result = None
            for begin in range(band.start, band.stop, grid.rows):
                end = min(begin + grid.rows, band.stop)
                part = _window(self.rows, begin, end, (height,), self.boundary)
                window = _assemble(part, y, lambda a, b: bands.get(a, b, y), made.fillvalue)
                piece = made.inner(np.ascontiguousarray(window), (y, x))
                if end - begin == band.stop - band.start:
                    result = piece
                    break
                if result is None:
                    shape = list(piece.shape)
                    shape[y] = band.stop - band.start
                    result = np.empty(shape, piece.dtype)
                _along(result, y, slice(begin - band.start, end - band.start))[...] = piece
            assert result is not None
            place = list(index)
            place[y] = band
            yield tuple(place), result


def written(
    run: Run, write: Callable[[Index, Array], None], advance: Callable[[int], None]
) -> None:
    """Write every block, each in a thread while the next one is filtered."""
    with ThreadPoolExecutor(1, "numbasep-write") as pool, closing(run.blocks()) as blocks:
        writing: Future[None] | None = None
        for index, block in blocks:
            if writing is not None:
                writing.result()
            writing = pool.submit(write, index, block)
            advance(block.size)
        if writing is not None:
            writing.result()

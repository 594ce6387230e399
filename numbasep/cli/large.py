"""``numbasep filter`` of pictures larger than memory."""

from __future__ import annotations

import contextlib
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbasep.cli import bands, filter, stacks
from numbasep.cli.files import MAX_PIXELS, check_folder, check_output, whole, whole_folder
from numbasep.cli.tables import quantity, size
from numbasep.factorise import SeparableKernel

Array = NDArray[Any]

TIFFS = (".tif", ".tiff")
PREFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def memory_of(text: str) -> int:
    """Return a number of bytes such as 800MB or 1.5GB."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([kKMGT]?)i?B?", text)
    if found is None:
        raise ValueError(f"--memory: got {text!r}; pass bytes, such as 800MB or 2GB")
    return int(float(found[1]) * PREFIXES[found[2].replace("K", "k")])


def takes(
    source: Path, target: Path, chunked: bool, page: int | None, memory: int, most: int | None
) -> bool:
    """Whether a picture is filtered in parts: a Zarr store, or a TIFF too large for memory."""
    if stacks.is_zarr(source):
        return True
    to_zarr = target.suffix.lower() == ".zarr"
    if not stacks.is_tiff(source):
        if to_zarr or chunked:
            which = "--chunked" if chunked else str(target)
            raise ValueError(f"{which}: only TIFF and Zarr pictures are filtered in parts")
        return False
    if chunked or to_zarr:
        return True
    if target.suffix.lower() not in TIFFS or most is not None:
        return False
    try:
        with stacks.open_tiff(source, page, None) as stack:
            pixels = int(np.prod(stack.shape, dtype=object))
    except (ValueError, OSError):
        return False  # for the reader of pictures to say why
    return pixels > MAX_PIXELS or pixels * stack.dtype.itemsize > memory


def filter_stack(
    source: Path,
    target: Path,
    kernel: str,
    taps: Array | SeparableKernel,
    *,
    memory: int,
    axes: str | None,
    page: int | None,
    max_pixels: int | None,
    overwrite: bool,
    quiet: bool,
    options: dict[str, Any],
) -> None:
    """Filter a picture in parts; say what was done."""
    from numbasep.cli.commands import print_filtered

    to_zarr = target.suffix.lower() == ".zarr"
    if to_zarr:
        check_folder(target, overwrite, stacks.holds_zarr)
        _check_apart(source, target)
    elif target.suffix.lower() in TIFFS:
        check_output(target, overwrite)
    else:
        raise ValueError(f"{target}: what is filtered in parts is written as .zarr, .tif or .tiff")
    if stacks.is_zarr(source):
        if page is not None:
            raise ValueError("--page: is for TIFF files; name the array, as in PATH/NAME")
        opened: Any = contextlib.nullcontext(stacks.open_zarr(source, axes, max_pixels))
    else:
        if axes is not None:
            raise ValueError("--axes: is for Zarr arrays")
        opened = stacks.open_tiff(source, page, max_pixels)
    with opened as stack, _quiet_libraries():
        begin = time.perf_counter()
        made = filter.prepared(stack.dtype, taps, **options)
        _check_call(stack, made)
        unit = stack.unit
        if not to_zarr:
            if "S" not in stack.axes[-1:] and stack.y != len(stack.axes) - 2:
                raise ValueError(f"{target}: a TIFF holds axes that end in YX or YXS, not those of "
                                 f"{source}, {stack.axes}; write .zarr")  # fmt: skip
            tile = stack.options.get("tile", (stacks.TILE, stacks.TILE))
            sizes = {"Y": tile[0], "X": tile[1]}
            last = len(stack.axes) - 1
            unit = tuple(
                sizes.get(a, n if a == "S" and i == last else 1)
                for i, (a, n) in enumerate(zip(stack.axes, stack.shape, strict=True))
            )
        grid = bands.cut(
            stack.shape, stack.dtype, (stack.y, stack.x), unit, stack.chunks, made, memory,
            whole_rows=not to_zarr,
        )  # fmt: skip
        run = bands.Run(stack.read, grid, made)
        with _progress(source.name, int(np.prod(stack.shape, dtype=object)), quiet) as advance:
            if to_zarr:
                with whole_folder(target, overwrite, stacks.holds_zarr) as folder:
                    array = stacks.create_zarr(folder, stack)
                    bands.written(run, array.__setitem__, advance)
            else:
                ome = stack.ome or target.stem.lower().endswith(".ome")
                with whole(target, overwrite) as file, contextlib.closing(run.blocks()) as blocks:
                    stacks.write_tiff(file, stack, ome, blocks, advance)
        seconds = time.perf_counter() - begin
    if quiet:
        return
    done = filter.Filtered(
        np.empty(0, stack.dtype), made.kernel, made.shown,
        made.error(float(run.low), float(run.high)), seconds,
    )  # fmt: skip
    shape = " x ".join(map(str, stack.shape))
    rate = int(np.prod(stack.shape, dtype=object)) / seconds
    print_filtered(
        target, f"{shape} ({stack.axes}), {stack.dtype}", kernel, done,
        f"{quantity(rate)}pixels/s, reading and writing included",
        blocks=f"{grid.blocks} of {' x '.join(map(str, grid.steps))}, within {size(memory)}",
    )  # fmt: skip


def _check_apart(source: Path, target: Path) -> None:
    """Refuse to write into the store that is read, or to replace more than it."""
    inner, outer = source.resolve(), target.parent.resolve() / target.name
    if inner != outer and (inner in outer.parents or outer in inner.parents):
        raise ValueError(f"{target}: one of it and {source} holds the other; name another output")


def _check_call(stack: stacks.Stack, made: filter.Filter) -> None:
    """Check all arguments of the call as for the whole picture."""
    from numbasep import spatial
    from numbasep.plan import checks
    from numbasep.plan.layout import contiguous
    from numbasep.plan.spatial import Buffer

    strides = contiguous(stack.shape, stack.dtype.itemsize, tuple(range(len(stack.shape))))
    spatial.prepare(
        Buffer(stack.shape, strides, checks.dtype("x", stack.dtype), True),
        made.kernel,
        boundary=made.boundary,
        fillvalue=made.fillvalue,
        axes=(stack.y, stack.x),
        dtype=made.result,
        backend=made.backend,
    )


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Few chunks at a time, and no warnings about what is no harm."""
    import zarr

    from numbasep.cli.zarr_chunks import PIPELINE

    # Two copies of so many chunks are all that decoding holds.
    decoding: dict[str, object] = {
        "async.concurrency": bands.DECODED,
        "threading.max_workers": bands.DECODED,
    }
    # The inner chunks of shards have codecs of their own, found when they are read.
    decoding |= PIPELINE
    with zarr.config.set(decoding), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _progress(name: str, total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal; yield what moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, markup=False)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %", markup=False),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=quiet or not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task(name, total=total)
        yield lambda count: bar.advance(task, count)

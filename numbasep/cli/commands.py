"""The commands, from checked arguments to files and printed tables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from numbasep.cli.files import MAX_PIXELS, check_output
from numbasep.cli.filter import Filtered
from numbasep.cli.kernel_files import read_kernel, write_factors
from numbasep.cli.tables import console, duration, pairs, percent
from numbasep.factorise import SeparableKernel

Array = NDArray[Any]

# Factors this close are all of the kernel; float32 arithmetic rounds more than they leave out.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Parts:
    """How a picture is filtered in parts: whether unless it must, within what, with which axes."""

    chunked: bool
    memory: str
    axes: str | None


def filter_picture(
    source: Path,
    target: Path,
    kernel: str,
    *,
    page: int | None,
    max_pixels: int | None,
    quality: int,
    overwrite: bool,
    quiet: bool,
    parts: Parts,
    options: dict[str, Any],
) -> None:
    """Read, filter and write a picture; say what was done."""
    from numbasep.cli import filter, images, large

    memory = large.memory_of(parts.memory)
    if large.takes(source, target, parts.chunked, page, memory, max_pixels):
        taps = read_kernel(kernel)
        _check_backend(options["backend"])
        large.filter_stack(
            source, target, kernel, taps, memory=memory, axes=parts.axes, page=page,
            max_pixels=max_pixels, overwrite=overwrite, quiet=quiet, options=options,
        )  # fmt: skip
        return
    if parts.axes is not None:
        raise ValueError("--axes: is for Zarr arrays")
    images.format_of(target)
    check_output(target, overwrite)
    taps = read_kernel(kernel)
    _check_backend(options["backend"])
    picture = images.read(source, page=page, max_pixels=max_pixels or MAX_PIXELS)
    images.check_writable(target, picture)
    done = filter.apply(picture.colour, taps, **options)
    images.write(
        target, images.with_colour(picture, done.image), overwrite=overwrite, quality=quality
    )
    if quiet:
        return
    height, width, _ = done.image.shape
    what = f"{width} x {height} pixels, {picture.kind}, {done.image.dtype}"
    print_filtered(target, what, kernel, done, "loading or compilation included")


def print_filtered(
    target: Path, what: str, kernel: str, done: Filtered, time: str, **more: str
) -> None:
    """Say what was done. more: further rows."""
    made = pairs()
    made.add_row(str(target), what)
    made.add_row("kernel", f"{kernel}, {_words(done.kernel)}")
    if math.isnan(done.error):
        made.add_row("promised", "nothing, as the picture holds NaN or infinity")
    elif isinstance(done.kernel, SeparableKernel) and done.kernel.error > ROUNDING:
        unit = "levels" if done.dtype.kind in "iu" else "units"
        made.add_row("promised", f"within {done.error:.2g} {unit} of the whole kernel's result")
    if not done.shown.plain:
        made.add_row("pixels", str(done.shown))
    made.add_row("time", f"{duration(done.seconds)}, {time}")
    for name, text in more.items():
        made.add_row(name, text)
    console().print(made)


def _words(kernel: SeparableKernel | Array) -> str:
    size = " x ".join(map(str, kernel.shape))
    if isinstance(kernel, SeparableKernel):
        terms = f"{kernel.rank} separable term{'' if kernel.rank == 1 else 's'}"
        return f"{size}, {terms}, error {percent(kernel.error)}"
    return f"{size}, directly"


def _check_backend(backend: str | None) -> None:
    if backend == "cuda":
        from numbasep.cli.info import cuda

        works, reason = cuda()
        if not works:
            raise ValueError(f"--backend cuda: {reason}")


def factorise_kernel(
    text: str,
    tol: float | None,
    rank: int | None,
    out: Path | None,
    picture: Path | None,
    overwrite: bool,
) -> None:
    """Factorise a kernel, print it, keep it, draw it."""
    from numbasep.cli import factors
    from numbasep.factorise import factorise

    for path, suffix in ((out, ".npz"), (picture, ".png")):
        if path is not None:
            if path.suffix.lower() != suffix:
                raise ValueError(f"{path}: is written as {suffix}; name it so")
            check_output(path, overwrite)
    kernel = read_kernel(text)
    if isinstance(kernel, SeparableKernel):
        kernel = kernel.dense() + kernel.residual
    made = factorise(kernel, tol=tol, rank=rank)
    screen = console()
    screen.print(factors.summary(text, made))
    screen.print(factors.singular_values(made))
    if out is not None:
        write_factors(out, made, overwrite)
        screen.print(f"factors in {out}")
    if picture is not None:
        factors.draw(picture, text, made, overwrite)
        screen.print(f"picture in {picture}")


def info() -> None:
    """Print versions, devices and backends."""
    from numbasep.cli.info import information

    console().print(information())


def demo(folder: Path) -> None:
    """Run the demonstration."""
    from numbasep.cli.demo import run

    run(folder, console())


def cost(path: Path, rank: int | None, dtype: str) -> None:
    """Print what layers cost."""
    from numbasep.cli.cost import cost_table, read_layers

    console().print(cost_table(read_layers(path, rank, dtype), rank, dtype))

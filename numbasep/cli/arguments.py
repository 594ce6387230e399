"""The arguments of ``numbasep``: what there is, what it is called, where it goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from numbasep.boundary import NAMES as BOUNDARIES
from numbasep.cli.files import MAX_PIXELS
from numbasep.plan.spatial import BACKENDS

app = typer.Typer(
    name="numbasep",
    help="Filter pictures with kernels that factor, and look into the factors.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

KERNEL = (
    "gaussian:SIGMA, disk:RADIUS, box:N, sobel-x, log:SIGMA, gabor:FREQUENCY,DEGREES, "
    "motion:LENGTH,DEGREES and others; or FILE.npy (a 2-D array), FILE.npz (from factorise --out)."
)
Tolerance = Annotated[
    float | None,
    typer.Option(help="Fewest terms that keep the output within TOL x sum|K| x max|x|."),
]
Rank = Annotated[int | None, typer.Option(help="At most so many separable terms.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]


def run(arguments: Sequence[str]) -> int:
    """Parse the arguments, run the command, return its exit code."""
    command = typer.main.get_command(app)
    code = command.main(args=list(arguments), prog_name="numbasep", standalone_mode=False)
    return code if isinstance(code, int) else 0


def _version(asked: bool) -> None:
    if asked:
        from numbasep.cli.info import version

        typer.echo(f"numbasep {version('numbasep') or 'from a source tree'}")
        raise typer.Exit


@app.callback()
def numbasep(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("filter")
def filter_picture(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="A PNG, JPEG or TIFF picture, or a Zarr store.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Its name says the format.")],
    kernel: Annotated[str, typer.Option("--kernel", "-k", help=KERNEL)],
    tol: Tolerance = None,
    rank: Rank = None,
    boundary: Annotated[
        str, typer.Option(metavar="|".join(BOUNDARIES), help="What stands outside the picture.")
    ] = "mirror",
    fillvalue: Annotated[
        float, typer.Option(help="Outside with --boundary fill, in the picture's own units.")
    ] = 0.0,
    scale: Annotated[
        float | None,
        typer.Option(
            help="Pixels become OFFSET + SCALE x result. Without --scale, --offset and --absolute: "
            "the result itself; but of kernels whose taps cancel (sobel-x, gabor, log), in "
            "unsigned pixels, middle grey + result / sum|K|, which spans the range exactly."
        ),
    ] = None,
    offset: Annotated[float | None, typer.Option(help="See --scale.")] = None,
    absolute: Annotated[
        bool, typer.Option("--absolute", help="Show |result| in place of the result.")
    ] = False,
    backend: Annotated[
        str | None, typer.Option(metavar="|".join(BACKENDS), help="Where to run.")
    ] = None,
    page: Annotated[int | None, typer.Option(help="Which of a file of several, from 1.")] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of a JPEG.")] = 95,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"Refuse larger ones; by default {MAX_PIXELS:,} where all is in memory."
        ),
    ] = None,
    chunked: Annotated[
        bool,
        typer.Option(
            "--chunked", help="Filter a TIFF in parts, all its planes; done unasked if it is large."
        ),
    ] = False,
    memory: Annotated[
        str, typer.Option(help="What a picture filtered in parts may take at a time.")
    ] = "1GB",
    axes: Annotated[
        str | None, typer.Option(help="Of a Zarr array that does not say it: TCZYX, YXS, ...")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Filter a picture.

    Each colour channel is convolved as the viewer sees it (an EXIF orientation is honoured, and
    kept); alpha stays as it is. The result is rounded once, half to even, and saturated to the
    picture's own dtype. Orientation, colour profile and resolution are kept.

    A Zarr array (of OME-Zarr the full level) and a large TIFF are filtered in parts, plane by
    plane, into a Zarr store or a tiled BigTIFF, within --memory.
    """
    from numbasep.cli import commands

    commands.filter_picture(
        source,
        target,
        kernel,
        page=page,
        max_pixels=max_pixels,
        quality=quality,
        overwrite=overwrite,
        quiet=quiet,
        parts=commands.Parts(chunked, memory, axes),
        options={
            "tol": tol,
            "rank": rank,
            "boundary": boundary,
            "fillvalue": fillvalue,
            "scale": scale,
            "offset": offset,
            "absolute": absolute,
            "backend": backend,
        },
    )


@app.command()
def factorise(
    kernel: Annotated[str, typer.Argument(metavar="KERNEL", help=KERNEL)],
    tol: Tolerance = None,
    rank: Rank = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the factors, as .npz, which --kernel takes.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw kernel, reconstruction and residual, as .png.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Factorise a kernel: rank, singular values, error, speedup."""
    from numbasep.cli import commands

    commands.factorise_kernel(kernel, tol, rank, out, picture, overwrite)


@app.command()
def info() -> None:
    """Say what is installed, which devices answer, and where calls run."""
    from numbasep.cli import commands

    commands.info()


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder to write into; made if need be.")] = Path(
        "numbasep-demo"
    ),
) -> None:
    """Filter a photograph with a disk and a Gabor kernel, next to scipy and OpenCV."""
    from numbasep.cli import commands

    commands.demo(out)


@app.command()
def cost(
    layers: Annotated[
        Path,
        typer.Argument(
            metavar="LAYERS.csv", help="With columns name,N,C,H,W,k,stride,pad,dilation,Cout."
        ),
    ],
    rank: Annotated[
        int | None, typer.Option(help="Also with depthwise kernels of so many separable terms.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of input, weights and output.")] = "float32",
) -> None:
    """Compare layers as standard and as depthwise-separable convolution."""
    from numbasep.cli import commands

    commands.cost(layers, rank, dtype)

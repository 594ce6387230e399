"""A kernel's factors, printed and drawn."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from numbasep.cli.files import whole
from numbasep.cli.tables import pairs, percent, table
from numbasep.factorise import SeparableKernel

Array = NDArray[Any]

# Singular values in a table; the rest is summed up.
SHOWN = 12


def summary(text: str, factors: SeparableKernel) -> Table:
    """Return what a factorisation comes to."""
    kh, kw = factors.shape
    made = pairs()
    made.add_row("kernel", f"{text}, {kh} x {kw}")
    made.add_row("rank", f"{factors.rank} of {min(kh, kw)}")
    made.add_row("error", f"{percent(factors.error)}{_promise(factors)}")
    dense, terms = kh * kw, factors.rank * (kh + kw)
    pays = f"{dense} -> {terms} multiply-adds a pixel, {factors.speedup:.3g}x fewer"
    if not factors.worth_separating:
        pays = f"does not pay: {dense} -> {terms} multiply-adds a pixel"
    made.add_row("speedup", pays)
    made.add_row("taps", f"{factors.dtype}, largest {_largest(factors):.3g}")
    return made


def _promise(factors: SeparableKernel) -> str:
    return ": K == columns.T @ rows" if factors.error == 0 else " of sum|K| max|x|, at most"


def _largest(factors: SeparableKernel) -> float:
    return max(
        (float(np.abs(t).max()) for t in (factors.columns, factors.rows) if t.size), default=0
    )


def singular_values(factors: SeparableKernel) -> Table:
    """Return the singular values, which terms are kept, and what those left out amount to."""
    made = table("term", "singular value", "of the first", "energy left", "")
    sigma = factors.singular_values
    energy = np.sum(sigma**2) or 1.0
    for i, value in enumerate(sigma[:SHOWN]):
        made.add_row(
            str(i + 1),
            f"{value:.6g}",
            f"{value / (sigma[0] or 1.0):.2e}",
            f"{np.sum(sigma[i + 1 :] ** 2) / energy:.2e}",
            "kept" if i < factors.rank else "",
        )
    if len(sigma) > SHOWN:
        rest = sigma[SHOWN:]
        made.add_row(f"{SHOWN + 1} to {len(sigma)}", f"{rest[0]:.6g} and less", "", "", "")
    return made


def draw(path: Path, text: str, factors: SeparableKernel, overwrite: bool) -> None:
    """Draw the kernel, its sum of terms, and the residual, as a PNG file."""
    figure = new_figure(11, 3.6)
    kernel = factors.dense() + factors.residual
    pays = f"{factors.speedup:.3g}x fewer multiply-adds"
    if not factors.worth_separating:
        pays = "does not pay"
    parts = (
        (f"{text}, {' x '.join(map(str, factors.shape))}", kernel, kernel),
        (f"rank {factors.rank}, {pays}", factors.dense(), kernel),
        (f"residual, {percent(factors.error)} of sum|K|", factors.residual, factors.residual),
    )
    for ax, (title, part, scale) in zip(figure.subplots(1, 3), parts, strict=True):
        show_kernel(figure, ax, title, part, scale)
    with whole(path, overwrite) as file:
        file.write(png_of(figure))


def new_figure(width: float, height: float) -> Any:
    """Return a figure without a window system; inches."""
    import logging

    # Its first run on a machine looks for fonts, and says so.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def show_kernel(
    figure: Any, ax: Any, title: str, part: Array, scale: Array, bar: bool = True
) -> None:
    """Show taps in the colours of ``scale``'s range: from white, or around it for two signs."""
    shown, scale = (
        np.abs(a) if a.dtype.kind == "c" else a.astype(np.float64) for a in (part, scale)
    )
    limit = float(np.abs(scale).max()) or 1.0
    # The sum of the terms may miss a zero by its rounding.
    signed = float(scale.min()) < -1e-9 * limit
    image = ax.imshow(
        shown,
        cmap="RdBu_r" if signed else "Blues",
        vmin=-limit if signed else 0,
        vmax=limit,
        interpolation="nearest",
    )
    ax.set_title(title, fontsize=10)
    ax.set_xticks([])
    ax.set_yticks([])
    if bar:
        figure.colorbar(image, ax=ax, shrink=0.85, format="%.2g")


def png_of(figure: Any) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()

"""The pictures of the README: before and after, kernels and their factors.

    python -m perf.gallery perf/results/gallery

The roofline and the other plots are ``perf.report``'s.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from numbasep import factorise, kernels
from numbasep.cli import demo, factors

# Name of the file, kernel, tol: one that compresses, one that is exact, one that does not pay.
FACTORISED = (
    ("factors-disk", "disk:15", 0.02),
    ("factors-log", "log:3", None),
    ("factors-motion", "motion:15,30", None),
)


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    p = argparse.ArgumentParser(
        prog="python -m perf.gallery",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("folder", type=Path)
    folder = p.parse_args(arguments).folder
    demo.run(folder, Console())
    for name, text, tol in FACTORISED:
        made = factorise(kernels.named(text), tol=tol)
        factors.draw(folder / f"{name}.png", text, made, overwrite=True)
    # What the demonstration writes for looking at in full; the page shows them side by side.
    for name in ("photograph", *(subject.name for subject in demo.SUBJECTS)):
        (folder / f"{name}.png").unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())

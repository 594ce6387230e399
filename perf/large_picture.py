"""Filter a 40,000 x 40,000 uint16 Zarr array, 3.2 GB, on the command line: memory and time.

    python -m perf.large_picture --out perf/results/NAME.jsonl

Each contender runs in a process of its own, whose largest resident memory the kernel counts. What
else the machine does shows in ``load``, the mean number of processes that ran in the minute before
and in the one that ends with the run; ``off`` is the largest difference, in grey levels, from the
result in float64, in windows at corners and in the middle: rounded once it is half a level.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from perf import machine
from perf.run import emit

KERNEL = "gaussian:2.5"
CHUNK = 1000

NUMBASEP = "import sys; from numbasep.cli import main; sys.exit(main())"
SCIPY = """
import sys, scipy.ndimage, zarr
source = zarr.open_array(sys.argv[1], mode="r")
target = zarr.create_array(sys.argv[2], shape=source.shape, dtype=source.dtype,
                           chunks=source.chunks)
target[:] = scipy.ndimage.gaussian_filter(source[:], 2.5, mode="mirror", truncate=4)
"""
DASK_IMAGE = """
import sys, dask.array as da
from dask_image.ndfilters import gaussian_filter
if __name__ == "__main__":
    source = da.from_zarr(sys.argv[1])
    gaussian_filter(source, 2.5, mode="mirror", truncate=4).to_zarr(sys.argv[2])
"""


def create(path: Path, side: int) -> None:
    """Write a picture of smooth structure and sensor noise, chunk by chunk."""
    import zarr

    chunks = min(CHUNK, side), min(CHUNK, side)
    array = zarr.create_array(path, shape=(side, side), dtype="uint16", chunks=chunks)
    rng = np.random.default_rng(0)
    along = np.arange(side) / 300
    for top in range(0, side, CHUNK):
        for left in range(0, side, CHUNK):
            rows, columns = along[top : top + CHUNK], along[left : left + CHUNK]
            smooth = 2000 + 1500 * np.outer(np.sin(rows), np.cos(columns))
            noise = rng.normal(0, 20, smooth.shape)
            array[top : top + CHUNK, left : left + CHUNK] = (smooth + noise).astype(np.uint16)


def off(source: Path, target: Path) -> float:
    """Return the largest difference from the result in float64."""
    import scipy.ndimage
    import zarr

    image, found = (zarr.open_array(path, mode="r") for path in (source, target))
    side, most = image.shape[0], 0.0
    for top, left in ((0, 0), (side // 2, side // 2), (side - 600, side - 600), (side - 600, 0)):
        size = 600
        # With a margin that keeps the part's own edges out of the window's reach.
        low = [max(0, at - 50) for at in (top, left)]
        high = [min(side, at + size + 50) for at in (top, left)]
        part = image[low[0] : high[0], low[1] : high[1]].astype(np.float64)
        exact = scipy.ndimage.gaussian_filter(part, 2.5, mode="mirror", truncate=4)
        inner = tuple(slice(at - a, at - a + size) for at, a in zip((top, left), low, strict=True))
        there = found[top : top + size, left : left + size].astype(np.float64)
        most = max(most, float(np.abs(there - exact[inner]).max()))
    return most


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=40_000)
    parser.add_argument("--contenders", nargs="*", default=["numbasep", "dask-image", "scipy"])
    parser.add_argument("--folder", help="where the array is made, or found, and kept")
    parser.add_argument("--out", help="JSON lines are appended here")
    options = parser.parse_args()
    common = machine.host() | {"machine": "cpu", "case": "large_picture", "op": "large_picture"}
    with (
        open(options.out, "a") if options.out else nullcontext() as out,
        tempfile.TemporaryDirectory(dir=options.folder) as folder,
    ):
        source = Path(options.folder or folder) / f"source-{options.side}.zarr"
        if not source.exists():
            create(source, options.side)
        # What is still to be written of it would be counted as the contender's.
        os.sync()
        for name in options.contenders:
            target = Path(folder) / f"{name}.zarr"
            arguments = {
                "numbasep": [NUMBASEP, "filter", str(source), str(target), "-k", KERNEL],
                "dask-image": [DASK_IMAGE, str(source), str(target)],
                "scipy": [SCIPY, str(source), str(target)],
            }[name]
            before = os.getloadavg()[0]
            begin = time.perf_counter()
            process = subprocess.Popen([sys.executable, "-c", *arguments])
            status = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - begin
            usage: resource.struct_rusage = status[2]
            row = {
                "contender": name,
                "side": options.side,
                "exit": status[1],
                "seconds": {"p50": seconds},
                "mpixels_per_second": options.side**2 / seconds / 1e6,
                "peak_resident_mb": usage.ru_maxrss / 1e3,
                "load": [before, os.getloadavg()[0]],
                "off": off(source, target) if status[1] == 0 else None,
            }
            shutil.rmtree(target, ignore_errors=True)
            print(row, flush=True)
            emit(out, common | row)
    return 0


if __name__ == "__main__":
    sys.exit(main())

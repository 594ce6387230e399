"""What the tests of the command line share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from numbasep.cli import images, main
from numbasep.cli.filter import rounded

Array = npt.NDArray[Any]

ROOT = Path(__file__).parent.parent.parent
LAYERS = ROOT / "tests" / "layers.csv"
# A job in the background of a shell without job control inherits that interrupts are ignored.
HEARS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
COMMAND = "import sys; from numbasep.cli import main; sys.exit(main())"


def photograph(channels: int, dtype: Any, seed: int = 0) -> Array:
    """Return a rough picture that uses a dtype's whole range, (23, 31, channels)."""
    random = np.random.default_rng(seed)
    values = random.random((23, 31, channels))
    if np.dtype(dtype).kind == "f":
        return values.astype(dtype)
    return (values * np.iinfo(dtype).max).astype(dtype)


def store(path: Path, pixels: Array, **belongings: Any) -> None:
    """Write pixels as the viewer sees them, alpha last."""
    colours = 1 if pixels.shape[2] < 3 else 3
    alpha = pixels[:, :, colours:] if pixels.shape[2] > colours else None
    images.write(path, images.Picture(pixels[:, :, :colours], alpha, **belongings))


def load(path: Path) -> images.Picture:
    return images.read(path, page=None, max_pixels=1 << 22)


def run(*arguments: object) -> int:
    return main([str(a) for a in arguments])


def exact(pixels: Array, kernel: Array, mode: str = "mirror") -> Array:
    """Convolve each channel in float64."""
    return np.stack(
        [
            scipy.ndimage.convolve(pixels[:, :, c].astype(np.float64), kernel, mode=mode)
            for c in range(pixels.shape[2])
        ],
        axis=-1,
    )


def check_rounded(found: Array, value: Array, slack: float) -> None:
    """Each pixel is the value's rounding, of a value that is off by at most ``slack``."""
    near = [rounded(value + side, found.dtype) for side in (-slack, slack)]
    assert (found >= near[0]).all()
    assert (found <= near[1]).all()
    # In most places only one rounding is possible, and that one it is.
    assert (near[0] == near[1]).mean() > 0.5


def contents(folder: Path) -> dict[str, object]:
    return {p.name: p.read_bytes() if p.is_file() else p.is_dir() for p in sorted(folder.iterdir())}

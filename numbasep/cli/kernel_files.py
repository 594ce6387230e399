"""Kernels as the command line takes and keeps them: names, .npy arrays, .npz factors."""

from __future__ import annotations

import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbasep.cli.files import whole
from numbasep.factorise import SeparableKernel
from numbasep.kernels import named

Array = NDArray[Any]

FIELDS = [field.name for field in fields(SeparableKernel)]


def read_kernel(text: str) -> Array | SeparableKernel:
    """Return the 2-D kernel of a name such as ``disk:15``, or of a .npy or .npz file.

    A .npz file holds what ``write_factors`` has written.

    Raises:
        ValueError: naming what is wrong with the text or the file.
    """
    path = Path(text)
    if path.suffix not in (".npy", ".npz"):
        try:
            return named(text)
        except ValueError:
            if not path.is_file():
                raise
        raise ValueError(
            f"kernel {text!r} is a file of an unknown kind; save the kernel with numpy.save as .npy"
        )
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            if found.ndim != 2:
                raise ValueError(f"holds an array of shape {found.shape}, not a 2-D kernel")
            return found
        with found:
            return _factors({name: found[name] for name in found.files})
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        message = str(error)
        if "allow_pickle" in message:
            message = "holds Python objects, or is no NumPy file; save numbers with numpy.save"
        raise ValueError(f"{text}: {message or 'is no NumPy file'}") from None


def _factors(found: dict[str, Array]) -> SeparableKernel:
    missing = [name for name in FIELDS if name not in found]
    if missing:
        raise ValueError(
            f"lacks {', '.join(missing)}; write factors with numbasep factorise KERNEL --out FILE"
        )
    if found["columns"].ndim != 2:
        raise ValueError(f"holds a stack of kernels, columns {found['columns'].shape}; save one")
    made = SeparableKernel.from_taps(found["columns"], found["rows"])
    if made.shape != found["residual"].shape:
        raise ValueError(
            f"has taps of a {made.shape} kernel and a residual of {found['residual'].shape}"
        )
    return SeparableKernel(**{name: found[name] for name in FIELDS})


def write_factors(path: Path, factors: SeparableKernel, overwrite: bool) -> None:
    """Keep every field of a ``SeparableKernel`` in a .npz file."""
    with whole(path, overwrite) as file:
        np.savez(file, **{name: getattr(factors, name) for name in FIELDS})

"""What is installed, which devices answer, and where a call would run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

from rich.table import Table

from numbasep.cli.tables import pairs

PACKAGES = ("numba", "llvmlite", "numba-cuda", "numpy", "scipy")
EXTRAS = {
    "images": (
        *("typer", "rich", "pillow", "tifffile", "imagecodecs", "scikit-image", "matplotlib"),
    ),
    "cuda12 or cuda13": ("cuda-core", "cuda-bindings"),
    "others": ("opencv-python-headless", "dask", "nvtx", "ml_dtypes"),
}


def version(package: str) -> str | None:
    """Return the version of a package, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cuda() -> tuple[bool, str]:
    """Return whether the CUDA backend can run, and why or why not. Never raises."""
    try:
        from numbasep.cuda import launch
    except Exception as error:  # a half-installed toolkit fails in many ways
        return False, f"{type(error).__name__}: {' '.join(str(error).split())}"
    return launch.available()


def processor() -> str:
    """Return the processor's name and how many of them this process may use."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
                break
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {allowed} of {os.cpu_count()} logical processors"


def information() -> Table:
    """Return all of it as a table."""
    made = pairs()
    made.add_row("numbasep", f"{version('numbasep') or 'from a source tree'}")
    made.add_row("python", f"{platform.python_version()}, {platform.platform()}")
    for package in PACKAGES:
        made.add_row(package, version(package) or "not installed")
    for extra, packages in EXTRAS.items():
        found = [f"{name} {version(name) or '-'}" for name in packages]
        made.add_row(extra, ", ".join(found))
    made.add_section()
    works, reason = cuda()
    made.add_row("processor", processor())
    made.add_row("cuda", f"{'ready' if works else 'not available'}: {reason}")
    made.add_section()
    made.add_row("arrays on the host", "run on the cpu backend, where they are")
    there = "are copied there and back" if works else "are refused, for the reason above"
    made.add_row("with backend='cuda'", there)
    made.add_row(
        "arrays on a device",
        "run on the cuda backend, where they are" if works else "are refused, for the reason above",
    )
    return made

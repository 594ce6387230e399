"""What a result row says about where it was measured, and the two ceilings of the host."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from perf.contenders import THREADS

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "numba", "numba-cuda", "numpy", "scipy", "opencv-python-headless", "opencv-python", "torch",
    "onnxruntime", "triton", "cupy-cuda12x", "cupy-cuda13x", "cucim-cu12", "cucim-cu13", "jax",
    "jaxlib", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "cuda-bindings",
)  # fmt: skip


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def commit() -> tuple[str, bool | None]:
    """Return the commit and whether the package or the bench differs from it.

    ("", None) outside a git checkout. Results and plots do not count.
    """
    head = _git("rev-parse", "HEAD")
    if not head:
        return "", None
    changed = _git("status", "--porcelain", "--", "numbasep", "perf", ":!perf/results")
    return head, bool(changed)


def versions() -> dict[str, str]:
    """Return the versions of Python and of every installed package that takes part."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """Return the processor's name, family and model."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        return platform.processor()
    family, model = fields.get("cpu family", "?"), fields.get("model", "?")
    widest = next((f for f in ("avx512f", "avx2") if f in fields.get("flags", "").split()), "")
    return f"{fields.get('model name', platform.machine())} (family {family}, model {model})" + (
        f", {widest}" if widest else ""
    )


def host() -> dict[str, Any]:
    """Return the columns that every row carries about the host, the code and the time."""
    head, dirty = commit()
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": head,
        "dirty": dirty,
        "cpu": processor(),
        "threads": THREADS,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
    }


def gpu_answers() -> bool:
    """Ask the driver, without Numba, whether there is a GPU."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return (
        driver.cuInit(0) == 0
        and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        and count.value > 0
    )


def _fastest(call: Any, rounds: int) -> float:
    best = np.inf
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return float(best)


def copy_rate(mebibytes: int = 256, rounds: int = 12) -> float:
    """Return the host's copy bandwidth in GB/s, bytes read plus bytes written, all threads."""
    source = np.ones(mebibytes * 2**20 // 4, np.float32)
    target = np.zeros_like(source)
    parts = list(zip(np.array_split(target, THREADS), np.array_split(source, THREADS), strict=True))
    with ThreadPoolExecutor(THREADS) as pool:
        seconds = _fastest(lambda: list(pool.map(lambda p: np.copyto(*p), parts)), rounds)
    return 2 * source.nbytes / seconds / 1e9


def matrix_rate(size: int = 2048, rounds: int = 5) -> float:
    """Return the host's float32 matrix product rate in GFLOP/s."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((size, size), dtype=np.float32) for _ in range(2))
    out = np.empty_like(a)
    return 2 * size**3 / _fastest(lambda: np.matmul(a, b, out=out), rounds) / 1e9

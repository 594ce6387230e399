"""What a newcomer feels: import, cold compile, first result; and the memory of one large call.

Each figure is taken in a fresh process; the cold ones with an empty Numba cache.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from perf.machine import ROOT

_FIRST = """
import time, json
start = time.perf_counter()
import numpy as np
numpy_done = time.perf_counter()
import numbasep
imported = time.perf_counter()
x = np.random.default_rng(0).standard_normal({shape}, dtype=np.float32).astype({dtype!r})
taps = np.full({taps}, 1 / {taps}, np.float32)
out = np.empty_like(x)
before = time.perf_counter()
numbasep.separable_conv2d(x, (taps, taps), boundary="mirror", out=out, backend="cpu")
first = time.perf_counter()
other = np.full({taps} + 4, 1 / ({taps} + 4), np.float32)
numbasep.separable_conv2d(x, (other, other), boundary="mirror", out=out, backend="cpu")
again = time.perf_counter()
print(json.dumps(dict(import_s=imported - numpy_done, first_call_s=first - before,
                      other_taps_s=again - first)))
"""

_MEMORY = """
import json, resource
import numpy as np
import numbasep

def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024

def now():
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024

taps = np.full(15, 1 / 15, np.float32)
small = np.zeros((64, 64), np.float32)
numbasep.separable_conv2d(small, (taps, taps), boundary="mirror", backend="cpu")
x = np.random.default_rng(0).standard_normal({shape}, dtype=np.float32)
open("/proc/self/clear_refs", "w").write("5")  # the peak starts from here
before = now()
y = numbasep.separable_conv2d(x, (taps, taps), boundary="mirror", backend="cpu")
print(json.dumps(dict(output_mb=y.nbytes / 2**20, additional_mb=(peak() - before) / 2**20)))
"""


def _python(code: str, cache: str) -> tuple[dict[str, Any], float]:
    """Run code in a fresh process; return its last line's JSON and the wall-clock seconds."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"NUMBA_CACHE_DIR": cache},
        capture_output=True,
        text=True,
        timeout=300,
    )
    elapsed = time.perf_counter() - start
    if done.returncode != 0:
        raise RuntimeError(f"the measured process failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1]), elapsed


def startup(repeats: int = 5) -> dict[str, Any]:
    """Return cold compile, warm first result and import times, in seconds.

    cold: process start to first result with an empty cache, per dtype. warm: the same again,
    median of ``repeats``. other_taps: the next call with another tap count, which compiles nothing.
    """
    found: dict[str, Any] = {}
    for dtype in ("float32", "uint8", "float64"):
        code = _FIRST.format(shape=(512, 512), dtype=dtype, taps=9)
        with tempfile.TemporaryDirectory() as cache:
            cold, cold_process = _python(code, cache)
            warm = [_python(code, cache) for _ in range(repeats)]
        found[dtype] = {
            "cold_first_call_s": cold["first_call_s"],
            "cold_process_s": cold_process,
            "warm_first_call_s": statistics.median(w["first_call_s"] for w, _ in warm),
            "warm_process_s": statistics.median(seconds for _, seconds in warm),
            "import_s": statistics.median(w["import_s"] for w, _ in warm),
            "other_taps_s": statistics.median(w["other_taps_s"] for w, _ in warm),
        }
    return found


def memory(size: int = 8192) -> dict[str, Any]:
    """Return the peak additional memory of one float32 call that allocates its output, in MiB."""
    with tempfile.TemporaryDirectory() as cache:
        code = _MEMORY.format(shape=(size, size))
        _python(code, cache)  # the compiler's own memory is not the call's
        found, _ = _python(code, cache)
    return {"shape": [size, size], "dtype": "float32", "taps": 15, **found}


def overhead(calls: int = 2000) -> dict[str, Any]:
    """Return the microseconds of a call beyond its arithmetic.

    cpu: 3 taps on an 8x8 image. cuda: from call to launch, the driver's parts stood in for.
    """
    import numbasep
    from perf import launch_cost

    x = np.zeros((8, 8), np.float32)
    taps, out = np.full(3, 1 / 3, np.float32), np.empty((8, 8), np.float32)

    def call() -> None:
        numbasep.separable_conv2d(x, (taps, taps), boundary="mirror", out=out, backend="cpu")

    return {"cpu": launch_cost.microseconds(call, calls), "cuda": launch_cost.measure()}

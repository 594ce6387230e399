"""The pool of threads: many callers at once, and children of fork."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from numbasep.cpu.separable import run_separable
from numbasep.plan.cpu_tiles import CpuTile
from numbasep.plan.geometry import Axis, SpatialPlan

AXIS = Axis(size=300, out=300, taps=9, origin=-4)
PLAN = SpatialPlan(1, 1, AXIS, AXIS, 1, False, 0, 0, "float32", "float32", "float32")
TAPS = np.linspace(0.1, 0.9, 9, dtype=np.float32)[None]


def filtered(image: Any, threads: int) -> bytes:
    out = np.full(image.shape, np.nan, np.float32)
    run_separable(PLAN, image, out, TAPS, TAPS, tile=CpuTile(128, 16, threads))
    return out.tobytes()


def images(count: int) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.random((1, 300, 300, 1), dtype=np.float32) for _ in range(count)]


def test_eight_callers_at_once_get_what_each_gets_alone() -> None:
    inputs = images(8) * 25
    alone = [filtered(image, 1) for image in inputs[:8]] * 25
    with ThreadPoolExecutor(8) as callers:
        assert list(callers.map(lambda image: filtered(image, 3), inputs)) == alone


def test_a_forked_child_starts_threads_of_its_own() -> None:
    (image,) = images(1)
    expected = filtered(image, 3)
    with warnings.catch_warnings():
        # Python 3.12 warns of what is tested here: fork beside threads.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os._exit(0 if filtered(image, 3) == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

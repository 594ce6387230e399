"""Compile the CUDA kernels of the measured cases ahead, on all processors, into Numba's disk cache.

    python -m perf.warm [--jobs N] [--list]

A kernel takes seconds of one thread, the cases need about two hundred of them, and a GPU waits
meanwhile. Calls are made on stand-ins for arrays and launch nothing; a kernel that several cases
share is compiled for the first of them. ``--list`` only counts, and needs no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from math import prod
from typing import Any

import ml_dtypes  # noqa: F401  (NumPy's name for bfloat16)
import numpy as np

import numbasep
from numbasep import devices
from perf import cases, contenders, launch_cost, run, sanitize
from perf.cases import Case, Channelwise, Separable


def every() -> list[Case]:
    """Return all cases whose kernels a GPU will need."""
    measured = [case for group in run.GROUPS for case in cases.cases(group, "gpu")]
    return [*measured, *sanitize.selection()]


def calls(case: Case) -> Iterator[Callable[[], Any]]:
    """Yield numbasep's calls of a case, between tensors that are not there."""

    def tensor(shape: tuple[int, ...], place: int) -> Any:
        return launch_cost.TorchTensor(shape, case.dtype, place << 40)

    if isinstance(case, Separable):
        planes = (1, prod(case.shape[:-2]), *case.shape[-2:])
        kernel: Any = contenders.separable_taps(case)
        if case.rank == 1:
            kernel = tuple(taps[0] for taps in kernel)
        x, out = tensor(planes, 1), tensor(planes, 2)
        yield lambda: numbasep.separable_conv2d(x, kernel, boundary="mirror", out=out)
        return
    yield from _layer_calls(case, tensor)


def _layer_calls(case: Channelwise, tensor: Callable[..., Any]) -> Iterator[Callable[[], Any]]:
    shapes = case.shape, case.out_shape
    if case.layout == "NHWC":
        shapes = tuple((n, height, width, c) for n, c, height, width in shapes)  # type: ignore[assignment]  # two now
    image, out = tensor(shapes[0], 1), tensor(shapes[1], 2)
    taps = np.ones((case.shape[1], 1, *case.kernel), case.dtype)
    mix = np.ones((case.out_channels, case.shape[1], 1, 1), case.dtype)
    weights = {"depthwise": (taps,), "pointwise": (mix,), "fused": (taps, mix)}[case.op]
    function = getattr(numbasep, contenders.FUNCTIONS[case.op])
    settings: dict[str, Any] = {"layout": case.layout, "out": out}
    if case.op != "pointwise":
        settings |= {k: getattr(case, k) for k in ("stride", "padding", "dilation")}
    yield lambda: function(image, *weights, **settings)
    if case.op != "depthwise" and case.dtype == "float32":
        yield lambda: function(image, *weights, precision="tf32", **settings)


@contextlib.contextmanager
def pretended(*, compiles: bool = False) -> Iterator[None]:
    """Let calls be made without arrays, those that they make for themselves included."""
    kept = devices.Torch.empty

    def empty(self: Any, shape: tuple[int, ...], dtype: str, *more: Any) -> Any:
        return launch_cost.TorchTensor(shape, dtype, 3 << 40)

    devices.Torch.empty = empty  # type: ignore[method-assign]  # for a while
    try:
        with launch_cost.stand_ins(compiles=compiles):
            yield
    finally:
        devices.Torch.empty = kept  # type: ignore[method-assign]  # back


def distinct(found: list[Case]) -> tuple[list[Case], int]:
    """Return cases that need all kernels between them, and the number of kernels."""
    from numbasep.cuda import launch

    needed: dict[int, launch.Kernel] = {}

    def noted(kernel: launch.Kernel, device: int) -> object:
        needed.setdefault(id(kernel), kernel)
        return kernel

    chosen = []
    with pretended():
        launch.Kernel._compile = noted  # type: ignore[method-assign]  # this process only compiles
        for case in found:
            before = len(needed)
            for call in calls(case):
                call()
            if len(needed) > before:
                chosen.append(case)
    return chosen, len(needed)


def compiled(case: Case) -> tuple[float, str]:
    """Compile a case's kernels for the device; return the seconds, and what went wrong."""
    started, wrong = time.monotonic(), ""
    with pretended(compiles=True):
        try:
            for call in calls(case):
                call()
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
    return time.monotonic() - started, wrong


def main(arguments: list[str] | None = None) -> int:
    """Entry point: 0 if everything compiled."""
    p = argparse.ArgumentParser(
        prog="python -m perf.warm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes; 0: none but this")
    p.add_argument("--select", nargs="*", default=[], help="shell patterns of case names")
    p.add_argument("--list", action="store_true", help="count the kernels and stop")
    options = p.parse_args(arguments)
    found, kernels = distinct(cases.select(every(), options.select))
    print(f"{kernels} kernels, of {len(found)} cases", flush=True)
    failed = 0
    if options.list:
        return 0

    def said(done: Iterator[tuple[float, str]]) -> int:
        wrong = 0
        for case, (seconds, text) in zip(found, done, strict=True):
            wrong += bool(text)
            print(f"{seconds:5.1f} s  {case.name}  {text}", flush=True)
        return wrong

    if not options.jobs:
        failed = said(map(compiled, found))
    else:
        # A driver's context does not survive a fork.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
            failed = said(pool.map(compiled, found))
    print(f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""A short selection of small cases for compute-sanitizer: every kind of CUDA kernel, checked.

    compute-sanitizer --tool memcheck --error-exitcode 3 python -m perf.sanitize

Shapes are ragged and small: the tool slows a kernel by one to two orders of magnitude. Host arrays
go in and come out, so that no other library's kernels run. Without a GPU the host backend runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from perf import contenders
from perf.cases import Case, Channelwise, Separable
from perf.contenders import Refused
from perf.machine import gpu_answers


def selection() -> Iterator[Case]:
    """Yield the cases."""
    # One of each, so that compiling them all fits in the time: about 15 kernels.
    image = (3, 131, 157)
    yield from (Separable(image, "float32", 3), Separable(image, "float32", 31))
    yield from (Separable(image, "float16", 15), Separable(image, "uint8", 15))
    yield from (Separable(image, "float64", 5), Separable((67, 259), "float32", 9, 4))
    for op, k, stride, out, dtype, layout in (
        ("depthwise", 3, 1, 10, "float32", "NCHW"),
        ("depthwise", 5, 2, 10, "float32", "NHWC"),
        ("depthwise", 3, 1, 10, "float16", "NHWC"),
        ("pointwise", 1, 1, 37, "float32", "NCHW"),
        ("pointwise", 1, 1, 37, "float16", "NHWC"),
        ("fused", 3, 1, 37, "float32", "NCHW"),
        ("fused", 5, 2, 24, "float16", "NHWC"),
        ("depthwise", 13, 1, 10, "float32", "NCHW"),
    ):
        size = (2, 10, 29, 35)
        label = f"k{k}s{stride}"
        yield Channelwise(label, op, size, (k, k), stride, k // 2, 1, out, dtype, layout)


def main(arguments: list[str] | None = None) -> int:
    """Entry point: 0 if every case agrees with its reference."""
    p = argparse.ArgumentParser(prog="python -m perf.sanitize", description=__doc__)
    p.add_argument("--backend", choices=("cpu", "cuda"), default="cuda" if gpu_answers() else "cpu")
    options = p.parse_args(arguments)
    failed = 0
    for case in selection():
        contender = contenders.numbasep_alone(case, options.backend)
        if isinstance(contender, Refused):
            print(case.name, "absent:", contender.reason, flush=True)
            continue
        try:
            verdict = contenders.check(case, contender, contenders.expected(case))
        except (NotImplementedError, TypeError, ValueError) as error:
            print(case.name, "refused:", error, flush=True)
            failed += 1
            continue
        failed += not verdict.passed
        print(case.name, verdict.reason or f"ok, {verdict.worst:.2f} of the bound", flush=True)
    print(f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

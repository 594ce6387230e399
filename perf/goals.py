# ruff: noqa: E501  (one goal a line)
"""What the measurements are meant to reach, and which cells do not.

    python -m perf.goals perf/results/*.jsonl

A goal is a least value of a geometric mean or of every cell. Those of a GPU were set for an H200.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perf import report

Row = dict[str, Any]
Cells = dict[str, float]


@dataclass(frozen=True)
class Goal:
    """cells: case to value. mean: hold the geometric mean to ``least``, not every cell."""

    text: str
    least: float
    cells: Callable[[list[Row]], Cells]
    mean: bool = False


def ratio(machine: str, op: str, kind: str, *peers: str, case: str = "") -> Callable[..., Cells]:
    """Return the peers' least time over numbasep's, for cases whose name contains ``case``."""

    def cells(rows: list[Row]) -> Cells:
        found: Cells = {}
        for (m, o, k, peer), values in report.ratios(rows).items():
            if (m, o, k) == (machine, op, kind) and peer in peers:
                for name, value in values.items():
                    if case in name:
                        found[name] = min(value, found.get(name, value))
        return found

    return cells


def share(machine: str, *parts: str, taps: tuple[int, int] = (0, 1000)) -> Callable[..., Cells]:
    """Return numbasep's percent of the copy bandwidth, for cases whose name has all the parts."""

    def cells(rows: list[Row]) -> Cells:
        return {
            row["case"]: row["percent_of_copy"]
            for row in report.latest(rows)
            if row["machine"] == machine
            and row.get("contender") == "numbasep"
            and "percent_of_copy" in row
            and all(part in row["case"] for part in parts)
            and taps[0] <= row.get("taps", taps[0]) <= taps[1]
        }

    return cells


def both(
    machine: str, op: str, *peers: str, dtype: str = "float32", case: str = ""
) -> Callable[..., Cells]:
    """Return ``ratio`` over NCHW and NHWC together."""
    planar = ratio(machine, op, dtype, *peers, case=case)
    pixels = ratio(machine, op, f"{dtype} NHWC", *peers, case=case)
    return lambda rows: planar(rows) | pixels(rows)


CV, TORCH = ("opencv",), ("torch", "torch_channels_last")
GOALS = (
    Goal("CPU separable float32 over OpenCV, mean", 2.3, ratio("cpu", "separable", "float32", *CV), True),
    Goal("CPU separable float32 over OpenCV, cells", 0.9, ratio("cpu", "separable", "float32", *CV)),
    Goal("CPU separable float32 over scipy, mean", 20, ratio("cpu", "separable", "float32", "scipy"), True),
    Goal("CPU separable uint8 over OpenCV, mean", 1.6, ratio("cpu", "separable", "uint8", *CV), True),
    Goal("CPU separable float64 over OpenCV, mean", 2.8, ratio("cpu", "separable", "float64", *CV), True),
    Goal("CPU depthwise NCHW over torch NCHW, mean", 1.6, ratio("cpu", "depthwise", "float32", "torch"), True),
    Goal("CPU depthwise NHWC over torch channels_last, mean", 1.0, ratio("cpu", "depthwise", "float32 NHWC", "torch_channels_last"), True),
    Goal("CPU pointwise over np.matmul, mean", 1.0, both("cpu", "pointwise", "matmul"), True),
    Goal("CPU fused over torch NCHW, mean", 2.0, ratio("cpu", "fused", "float32", "torch"), True),
    Goal("CPU fused over the faster torch layout, mean", 1.2, ratio("cpu", "fused", "float32", *TORCH), True),
    Goal("CPU depthwise stride 2 over the faster torch layout, cells", 0.8, ratio("cpu", "depthwise", "float32", *TORCH, case="_s2/")),
    Goal("CPU fused stride 2 over the faster torch layout, cells", 0.8, ratio("cpu", "fused", "float32", *TORCH, case="_s2/")),
    Goal("GPU separable float32 8192x8192 to 15 taps, percent of copy", 85, share("gpu", "separable/float32/8192x8192", taps=(3, 15))),
    Goal("GPU separable float32 8192x8192 31 taps, percent of copy", 65, share("gpu", "separable/float32/8192x8192", taps=(31, 31))),
    Goal("GPU separable float32 8192x8192 over CuPy and cuCIM, cells", 3, ratio("gpu", "separable", "float32", "cupy", "cucim", case="8192x8192")),
    Goal("GPU separable float32 8192x8192 over torch, cells", 2, ratio("gpu", "separable", "float32", *TORCH, case="8192x8192")),
    Goal("GPU depthwise float32 KernelBench 82, percent of copy", 85, share("gpu", "depthwise/float32/NCHW/82_")),
    Goal("GPU depthwise float16 KernelBench 82, percent of copy", 80, share("gpu", "depthwise/float16/NCHW/82_")),
    Goal("GPU depthwise float32 NHWC KernelBench 82, percent of copy", 80, share("gpu", "depthwise/float32/NHWC/82_")),
    Goal("GPU depthwise float16 NHWC KernelBench 82, percent of copy", 80, share("gpu", "depthwise/float16/NHWC/82_")),
    Goal("GPU pointwise float16 over cuBLAS, cells", 0.85, both("gpu", "pointwise", "cublas", dtype="float16")),
    Goal("GPU pointwise bfloat16 over cuBLAS, cells", 0.85, both("gpu", "pointwise", "cublas", dtype="bfloat16")),
    Goal("GPU fused KernelBench 86 over torch eager and compiled", 2.5, ratio("gpu", "fused", "float32", *TORCH, "torch_compile", case="/86_")),
)  # fmt: skip


def lines(rows: list[Row]) -> Iterator[str]:
    """Yield a line a goal, and the cells that fall short of it."""
    for goal in GOALS:
        cells = goal.cells(rows)
        if not cells:
            yield f"  not measured  {goal.text}: at least {goal.least:g}"
            continue
        value = report.geometric_mean(cells.values()) if goal.mean else min(cells.values())
        word = "reached" if value >= goal.least else "SHORT"
        yield f"  {word:<12}  {goal.text}: {value:.2f}, at least {goal.least:g}"
        short = {name: v for name, v in cells.items() if v < goal.least}
        if short and not goal.mean:
            for name, v in sorted(short.items(), key=lambda cell: cell[1]):
                yield f"                  {v:.2f}  {name}"


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    p = argparse.ArgumentParser(
        prog="python -m perf.goals",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("results", nargs="+", type=Path, help="JSON-lines files of perf.run")
    p.add_argument("--rehearsal", action="store_true", help="rows of a rehearsal as well")
    options = p.parse_args(arguments)
    print("\n".join(lines(report.read(options.results, rehearsed=options.rehearsal))))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The README's table of what separation and fusing save, computed, not measured."""

from __future__ import annotations

from typing import Any

from numbasep import cost
from numbasep.plan import channelwise
from perf import cases
from perf.cases import Channelwise

DTYPE = "float16"


def plan(case: Channelwise) -> channelwise.FusedPlan:
    """Return the plan of a depthwise-separable layer on a GPU."""
    first = channelwise.depthwise(
        case.shape,
        DTYPE,
        case.shape[1],
        case.kernel,
        0,
        stride=case.stride,
        padding=case.padding,
        dilation=case.dilation,
    )
    middle = first.batch, first.filters, first.y.out, first.x.out
    second = channelwise.pointwise(middle, DTYPE, (case.out_channels, first.filters), DTYPE)
    return channelwise.separable(first, second, None, "cuda")


def lines() -> list[list[str]]:
    """Return a line of cells for each layer of the networks, at its published batch."""
    found = []
    for case in cases.layers("fused"):
        layer = cost(
            case.shape,
            case.out_channels,
            case.kernel,
            stride=case.stride,
            padding=case.padding,
            dilation=case.dilation,
            dtype=DTYPE,
        )
        dense, separable = layer.standard, layer.separable
        two = layer.two_launches.bytes
        found.append(
            [
                case.label,
                f"{case.kernel[0]}x{case.kernel[1]}, {case.shape[1]} to {case.out_channels}",
                f"{dense.multiply_adds / separable.multiply_adds:.1f}x",
                f"{dense.bytes / 1e6:.0f}",
                f"{two / 1e6:.0f}",
                f"{separable.bytes / 1e6:.0f}",
                f"{two / separable.bytes:.2f}x",
                "one launch" if plan(case).fused else "two",
            ]
        )
    return found


HEAD = [
    "layer",
    "kernel, channels",
    "multiply-adds and parameters saved",
    "MB, dense",
    "MB, two launches",
    "MB, one launch",
    "fusing saves",
    "the plan takes",
]


def table(rows: list[Any], markdown: Any) -> str:
    """Return the table; result rows are not looked at."""
    return markdown(HEAD, lines()) + (
        f"\n\nComputed by `numbasep.cost` and the planner, not measured: {DTYPE}, batch as "
        "published (64, 32 or 8). MB: the least that crosses memory. Dense convolution has as many "
        "more multiply-adds as parameters, 1 / (1 / Cout + 1 / k^2)."
    )

"""Layers of networks as PyTorch modules: forward, and forward with backward, in turn with torch's.

    python -m perf.torch_layers --out perf/results/NAME.jsonl
    python -m perf.torch_layers --select 'fused/*/mbv2*' --rounds 5

The contenders are the package's module and torch's own, each with its image contiguous and
channels_last; ratios are to the package's contiguous one. One JSON line per contender and case, as
perf.run writes them; a module whose result or gradient leaves the float64 reference's bound gets no
time.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import numbasep.torch as nt
from perf import cases, machine, report
from perf.cases import Channelwise
from perf.run import done, emit, rates, say, timed_rows
from perf.timing import Interleaved

LAYOUTS = {"": torch.contiguous_format, "_channels_last": torch.channels_last}
PASSES = ("forward", "forward_backward")
# Multiply-adds of a backward pass over those of its forward: to the image, and to the weights.
BACKWARD = 2
Row = dict[str, Any]


def modules(case: Channelwise) -> dict[str, nn.Module]:
    """Return the layer as the package's and as torch's, with equal weights."""
    c, step = case.shape[1], case.stride
    pad, apart = case.padding, case.dilation
    torch.manual_seed(0)
    if case.op == "depthwise":
        theirs: nn.Module = nn.Conv2d(c, c, case.kernel, step, pad, apart, groups=c, bias=False)
        ours: nn.Module = nt.DepthwiseConv2d(c, c, case.kernel, step, pad, apart, bias=False)
    else:
        theirs = nn.Sequential()
        theirs.depthwise = nn.Conv2d(c, c, case.kernel, step, pad, apart, groups=c, bias=False)
        theirs.pointwise = nn.Conv2d(c, case.out_channels, 1, bias=False)
        ours = nt.DepthwiseSeparableConv2d(
            c, case.out_channels, case.kernel, step, pad, apart, bias=False
        )
    ours.load_state_dict(theirs.state_dict())
    return {"numbasep": ours, "torch": theirs}


def step(module: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], Any]:
    """Return a call that computes result and every gradient."""

    def call() -> list[Tensor]:
        y = module(x)
        return [y, *torch.autograd.grad(y, [x, *module.parameters()], grad)]

    return call


def forward(module: nn.Module, x: Tensor) -> Callable[[], Any]:
    """Return a call that computes the result."""

    def call() -> list[Tensor]:
        with torch.no_grad():
            return [module(x)]

    return call


def wrong(found: list[Tensor], exact: list[Tensor], absolute: list[Tensor], n: int) -> str:
    """Return in what results leave the bound, or nothing.

    ``gamma(n) * s``: n the longest chain of roundings, s the same sums of absolute values.
    """
    bound = n * 2.0**-24 / (1 - n * 2.0**-24)
    for index, (one, other, size) in enumerate(zip(found, exact, absolute, strict=True)):
        if ((one.double() - other).abs() > bound * size).any():
            return f"result {index} leaves {bound:.2g} times its sum of absolute values"
    return ""


def measure(case: Channelwise, timer: Interleaved, training: bool) -> Iterator[Row]:
    """Check and time the four contenders; yield their rows."""
    layers = modules(case)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(case.shape, generator=generator)
    grad = torch.randn(layers["torch"](x).shape, generator=generator)
    reference = copy.deepcopy(layers["torch"]).double()
    absolute = copy.deepcopy(reference)
    for one in absolute.parameters():
        one.data.abs_()

    def call(module: nn.Module, image: Tensor, given: Tensor) -> Callable[[], Any]:
        if not training:
            return forward(module, image)
        return step(module, image.requires_grad_(), given)

    exact = call(reference, x.double(), grad.double())()
    sizes = call(absolute, x.double().abs(), grad.double().abs())()
    # Sums over taps, channels in and out, and, for weights, pixels: the longest path of each.
    n = 4 + case.kernel[0] * case.kernel[1] + case.shape[1]
    if training:
        n += case.out_channels + grad.shape[0] * grad.shape[2] * grad.shape[3]
    calls, verdicts = {}, {}
    for library, module in layers.items():
        for suffix, layout in LAYOUTS.items():
            name = library + suffix
            image = x.clone(memory_format=layout)
            made = call(module, image, grad.contiguous(memory_format=layout))
            reason = wrong(made(), exact, sizes, n)
            if reason:
                yield {"contender": name, "refused": reason}
            else:
                calls[name], verdicts[name] = made, {}
    yield from timed_rows(timer(calls), verdicts)


def select(patterns: list[str]) -> Iterator[Channelwise]:
    """Yield the layers: float32, contiguous; both layouts of memory are contenders."""
    for group in ("depthwise", "fused"):
        for case in cases.select(cases.cases(group, "cpu"), patterns):
            if isinstance(case, Channelwise) and (case.dtype, case.layout) == ("float32", "NCHW"):
                yield case


def run_layers(options: argparse.Namespace, out: Any) -> None:
    """Measure every selected layer."""
    common = machine.host() | {"machine": "cpu"}
    timer = Interleaved(rounds=options.rounds, budget=options.budget)
    finished = done(Path(options.out)) if options.out and options.resume else set()
    for case in select(options.select):
        case = cases.small(case) if options.rehearse else case
        for passes in options.passes:
            name = f"torch_{passes}/{case.name}"
            if name in finished:
                continue
            print(name, flush=True)
            work = 1 + BACKWARD * (passes != "forward")
            rows = list(measure(case, timer, passes != "forward"))
            for index, row in enumerate(rows):
                if "seconds" in row:
                    found = rates(case, row["contender"], row["seconds"]["p50"], {})
                    row |= {key: work * rate for key, rate in found.items()}
                print(say(row), flush=True)
                columns = cases.describe(case) | {"case": name, "op": f"torch_{passes}"}
                last = {"last": True} if index + 1 == len(rows) else {}
                emit(out, common | columns | row | last)


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    p = argparse.ArgumentParser(
        prog="python -m perf.torch_layers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--select", nargs="*", default=[], help="shell patterns of case names")
    p.add_argument("--passes", nargs="*", default=list(PASSES), choices=PASSES)
    p.add_argument("--out", help="JSON lines are appended here")
    p.add_argument("--resume", action="store_true", help="skip the cases that --out already has")
    p.add_argument("--rounds", type=int, default=9)
    p.add_argument("--budget", type=float, default=0.02, help="seconds a visit lasts")
    p.add_argument("--rehearse", action="store_true", help="shrunken shapes: times mean nothing")
    options = p.parse_args(arguments)
    torch.set_num_threads(machine.THREADS)
    with open(options.out, "a") if options.out else nullcontext() as out:
        run_layers(options, out)
    if options.out:
        print(report.summary(report.read([Path(options.out)])))
    return 0


if __name__ == "__main__":
    sys.exit(main())

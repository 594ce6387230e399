"""Networks of timm before and after ``swap``: equal outputs, and times in turn with torch's.

    python -m perf.torch_models --passes check --out perf/results/NAME.jsonl
    python -m perf.torch_models --models mobilenetv2_100 --passes forward --batch 1 --out ...

Random weights, and batch norms that are no identities. ``check`` compares outputs, in float64 and
float32, with the model's own in float64, within what rounding can make of them. The other passes
time the whole network, and its swapped layers alone: each depthwise layer with what ``swap`` has it
compute, on the image that it gets in the network. ``forward`` and ``forward_backward`` are in eval
mode, where batch norms fold into the convolutions (``forward_backward`` takes gradients to all
parameters); in ``training`` norms take their statistics from the batch and nothing folds. Each
library's images are contiguous and channels_last in turn.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

import numbasep.torch as nt
from perf import machine
from perf.run import emit, timed_rows
from perf.timing import UNIT_ROUNDOFF, Interleaved
from perf.torch_layers import LAYOUTS

MODELS = ("mobilenetv2_100", "efficientnet_b0", "convnext_tiny")
PASSES = ("check", "forward", "forward_backward", "training")
PARTS = ("layers", "model")
Row = dict[str, Any]


def made(name: str) -> nn.Module:
    """Return a network with random weights, in eval mode."""
    import timm

    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, pretrained=False)
    generator = torch.Generator().manual_seed(0)
    for key, one in model.named_parameters():
        if key.endswith(".gamma"):
            # ConvNeXt's scales of its blocks, 1e-6 before training: nothing would be compared.
            one.data.fill_(0.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for one, low in (
                (module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.5),
                (module.running_var, 0.5),
            ):  # fmt: skip
                assert isinstance(one, Tensor)
                with torch.no_grad():
                    one.copy_(torch.rand(one.shape, generator=generator) + low)
    return model.eval()


def response(model: nn.Module, x: Tensor, exact: Tensor) -> float:
    """Return by how much the outputs of a float64 model move for a change of all its parameters.

    Relative, of random sign, and so small that the answer is linear.
    """
    moved, change = 0.0, 1e-8
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        other = copy.deepcopy(model)
        for one in other.parameters():
            signs = torch.randint(0, 2, one.shape, generator=generator).double() * 2 - 1
            one.mul_(1 + change * signs)
        moved = max(moved, float((other(x) - exact).abs().max()) / change)
    return moved


@torch.no_grad()
def check(model: nn.Module, report: nt.Report) -> Iterator[Row]:
    """Compare outputs before and after ``swap``; yield the errors as shares of their bounds.

    The bound: ten times what a change of every parameter by ``gamma(n)``, n the longest sum of a
    convolution and a norm's six roundings, makes of the outputs.
    """
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1)).double()
    wide = copy.deepcopy(model).double()
    exact = wide(x)
    n = max(one[0].numel() for one in model.parameters() if one.dim() > 1) + 6
    moved = response(wide, x, exact)
    swapped = copy.deepcopy(wide)
    nt.swap(swapped)
    narrow = copy.deepcopy(model)
    nt.swap(narrow)
    for name, one, dtype in (
        ("numbasep", swapped, torch.float64),
        ("numbasep", narrow, torch.float32),
        ("torch", model, torch.float32),
    ):
        bound = 10 * n * UNIT_ROUNDOFF[str(dtype).removeprefix("torch.")] * moved
        for suffix, layout in LAYOUTS.items():
            image = x.to(dtype).contiguous(memory_format=layout)
            error = float((one.to(memory_format=layout)(image).double() - exact).abs().max())
            yield {
                "case": f"check/{dtype}".replace("torch.", ""), "contender": name + suffix,
                "dtype": str(dtype).removeprefix("torch."),
                "error": error, "largest": float(exact.abs().max()), "bound": bound,
                "equal": error <= bound, "layers": len(report.layers),
                "swapped": len(report.swapped),
                "pairs": sum(layer.pointwise is not None for layer in report.layers),
            }  # fmt: skip


class Chains:
    """The swapped layers of a network, each with its input, one after another."""

    def __init__(self, model: nn.Module, report: nt.Report, swapped: bool) -> None:
        modules = dict(model.named_modules())
        self.parts: list[tuple[nn.Module, list[nn.Parameter], str]] = []
        for layer in report.swapped:
            names = (layer.name, *layer.takes)
            chain = nn.Sequential(*[modules[name] for name in names])
            call = modules[layer.name] if swapped else chain
            self.parts.append((call, list(chain.parameters()), layer.name))
        self.images: list[Tensor] = []

    def take(self, images: dict[str, Tensor]) -> None:
        """Take the image of each layer, and a gradient of each result."""
        self.images = [images[name] for _, _, name in self.parts]
        with torch.no_grad():
            self.grads = [
                torch.randn_like(call(image))
                for (call, _, _), image in zip(self.parts, self.images, strict=True)
            ]

    def forward(self) -> None:
        with torch.no_grad():
            for (call, _, _), image in zip(self.parts, self.images, strict=True):
                call(image)

    def step(self) -> None:
        for (call, parameters, _), image, grad in zip(
            self.parts, self.images, self.grads, strict=True
        ):
            image.requires_grad_()
            torch.autograd.grad(call(image), [image, *parameters], grad)


def images_of(model: nn.Module, report: nt.Report, x: Tensor) -> dict[str, Tensor]:
    """Return the image that each swapped layer gets."""
    found: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(layer.name).register_forward_pre_hook(
            lambda _, given, name=layer.name: found.update({name: given[0].detach().clone()})
        )
        for layer in report.swapped
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def calls(
    model: nn.Module, swapped: nn.Module, report: nt.Report, part: str, passes: str, batch: int
) -> dict[str, Callable[[], Any]]:
    """Return the four contenders."""
    x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    found: dict[str, Callable[[], Any]] = {}
    for suffix, layout in LAYOUTS.items():
        image = x.contiguous(memory_format=layout)
        images: dict[str, Tensor] = {}
        for library, given in (("torch", model), ("numbasep", swapped)):
            one = copy.deepcopy(given).to(memory_format=layout)
            if part == "layers" and not images:
                images = images_of(one, report, image)
            one.train(passes == "training")
            if part == "model":
                found[library + suffix] = whole(one, image, passes)
            else:
                chains = Chains(one, report, library == "numbasep")
                chains.take(images)
                found[library + suffix] = chains.forward if passes == "forward" else chains.step
    return found


def whole(model: nn.Module, x: Tensor, passes: str) -> Callable[[], Any]:
    """Return a call of a whole network."""
    parameters = list(model.parameters())

    def forward() -> None:
        with torch.no_grad():
            model(x)

    def step() -> None:
        torch.autograd.grad(model(x).square().sum(), parameters)

    return forward if passes == "forward" else step


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    p = argparse.ArgumentParser(
        prog="python -m perf.torch_models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--models", nargs="*", default=list(MODELS), help="their names in timm")
    p.add_argument("--passes", nargs="*", default=list(PASSES), choices=PASSES)
    p.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    p.add_argument("--batch", nargs="*", type=int, default=[1, 8])
    p.add_argument("--report", action="store_true", help="print what swap says")
    p.add_argument("--out", help="JSON lines are appended here")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--budget", type=float, default=0.1, help="seconds a visit lasts")
    options = p.parse_args(arguments)
    torch.set_num_threads(machine.THREADS)
    common = machine.host() | {"machine": "cpu", "timm": importlib.metadata.version("timm")}
    timer = Interleaved(rounds=options.rounds, budget=options.budget)
    wrong = False
    with open(options.out, "a") if options.out else nullcontext() as out:
        for name in options.models:
            model = made(name)
            swapped = copy.deepcopy(model)
            report = nt.swap(swapped, example=torch.zeros(1, 3, 224, 224))
            print(name, report if options.report else str(report).splitlines()[0], flush=True)
            if "check" in options.passes:
                for row in check(model, report):
                    wrong |= not row["equal"]
                    print(
                        f"  {row['contender']:<24}{row['dtype']:<9}largest {row['largest']:.3g}, "
                        f"error {row['error']:.3g}, bound {row['bound']:.3g}", flush=True,
                    )  # fmt: skip
                    case = f"model/{name}/{row['case']}"
                    emit(out, common | row | {"case": case, "op": "model_check"})
            for batch in options.batch:
                for passes in options.passes:
                    for part in options.parts if passes != "check" else ():
                        found = calls(model, swapped, report, part, passes, batch)
                        case = f"model/{name}/{part}/{passes}/n{batch}"
                        rows = list(timed_rows(timer(found), {}))
                        print(case, said(rows), flush=True)
                        for index, row in enumerate(rows):
                            last = {"last": True} if index + 1 == len(rows) else {}
                            columns = {"case": case, "op": f"model_{part}", "dtype": "float32"}
                            emit(out, common | columns | row | last)
    return int(wrong)


def said(rows: list[Row]) -> str:
    """Return times, and the ratio of the faster layouts of both libraries, in one line."""
    times = {row["contender"]: row["seconds"]["p50"] for row in rows}
    best = {
        library: min(times[library + suffix] for suffix in LAYOUTS)
        for library in ("numbasep", "torch")
    }
    text = ", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in times.items())
    return f"{text}: faster torch / faster numbasep {best['torch'] / best['numbasep']:.2f}"


if __name__ == "__main__":
    sys.exit(main())

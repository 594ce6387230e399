"""Train a small MobileNet on scikit-learn's digits, with the package's modules: a minute's example.

    python -m perf.digits

1,437 images of 8x8 pixels to train on, 360 held out; all seeds are fixed.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from torch import Tensor, nn

import numbasep.torch as nt
from perf import machine

BATCH, RATE = 64, 0.02


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images and labels to train on, and those held out: every fifth of a shuffle."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    y = torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held, kept = order[::5], order[torch.arange(len(order)) % 5 != 0]
    return x[kept], y[kept], x[held], y[held]


def block(channels: int, out: int, stride: int = 1) -> nn.Module:
    """Return MobileNetV1's block: depthwise and pointwise in one operator, then norm and clamp."""
    return nn.Sequential(
        nt.DepthwiseSeparableConv2d(
            channels, out, 3, stride, 1, bias=False, depthwise_activation="relu6"
        ),
        nn.BatchNorm2d(out),
        nn.ReLU6(),
    )


def network() -> nn.Module:
    """Return five convolutions and a linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
        block(16, 32), block(32, 64, 2), block(64, 64), block(64, 128, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def train(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> list[float]:
    """Train in batches of a fixed order; return the losses."""
    optimiser = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 10 * RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        some = torch.randint(0, len(x), (BATCH,), generator=generator)
        loss = nn.functional.cross_entropy(model(x[some]), y[some])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    p = argparse.ArgumentParser(prog="python -m perf.digits", description=__doc__.splitlines()[0])
    p.add_argument("--steps", type=int, default=600)
    options = p.parse_args(arguments)
    torch.set_num_threads(machine.THREADS)
    x, y, held_x, held_y = digits()
    model = network()
    start = time.perf_counter()
    losses = train(model, x, y, options.steps)
    seconds = time.perf_counter() - start
    model.eval()
    with torch.no_grad():
        right = (model(held_x).argmax(1) == held_y).float().mean()
    parameters = sum(one.numel() for one in model.parameters())
    print(f"{options.steps} steps of {BATCH} images, {parameters:,} parameters: {seconds:.0f} s")
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.4f} at last")
    print(f"{right:.1%} of {len(held_y)} held-out images right")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Modules against those of ``torch.nn`` whose equals they are; and a run of training."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import numbasep
import numbasep.torch as nt
from numbasep import kernels


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": (2, 1), "padding": 1, "dilation": 2, "bias": False},
        {"padding": "same", "padding_mode": "circular"},
        {"padding": (1, 0), "padding_mode": "reflect", "stride": 3},
        {"padding": "valid", "dtype": torch.float64},
    ],
    ids=str,
)
def test_depthwise_is_torchs(options: dict[str, Any]) -> None:
    torch.manual_seed(3)
    theirs = nn.Conv2d(4, 8, (3, 2), groups=4, **options)
    torch.manual_seed(3)
    ours = nt.DepthwiseConv2d(4, 8, (3, 2), **options)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    dtype = options.get("dtype", torch.float32)
    # Integers are exact in every order.
    with torch.no_grad():
        for one in (*ours.parameters(), *theirs.parameters()):
            one.mul_(32).round_()
    x = torch.randint(-8, 8, (2, 4, 9, 7)).to(dtype)
    for image in (x, x.contiguous(memory_format=torch.channels_last), x[0]):
        assert torch.equal(ours(image), theirs(image))


def test_separable_is_two_of_torchs() -> None:
    torch.manual_seed(4)
    theirs = nn.Sequential(
        OrderedDict(depthwise=nn.Conv2d(3, 6, 3, 2, 1, groups=3), pointwise=nn.Conv2d(6, 5, 1))
    )
    torch.manual_seed(4)
    ours = nt.DepthwiseSeparableConv2d(3, 5, 3, 2, 1, depth_multiplier=2)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
    with torch.no_grad():
        for one in (*ours.parameters(), *theirs.parameters()):
            one.mul_(8).round_()
    x = torch.randint(-8, 8, (2, 3, 9, 7)).float()
    assert torch.equal(ours(x), theirs(x))
    assert ours.saved_bytes((2, 3, 9, 7)) == 4 * 2 * 6 * 5 * 4


def test_bytes_that_are_not_kept() -> None:
    module = nt.DepthwiseSeparableConv2d(2, 3, 3, depthwise_activation="relu")
    kept: list[Tensor] = []
    x = torch.randn(1, 2, 6, 6)

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    given = {one.data_ptr() for one in (x, *module.parameters())}
    assert {one.data_ptr() for one in kept} <= given
    smooth = nt.saved_bytes((1, 2, 6, 6), (2, 1, 3, 3), depthwise_activation="silu")
    assert smooth == 2 * module.saved_bytes((1, 2, 6, 6)) == 2 * 4 * 2 * 4 * 4


def test_spatial_is_the_packages() -> None:
    image = torch.randn(2, 3, 12, 10)
    disk = kernels.disk(2)
    for kernel in (disk, torch.tensor(disk), numbasep.factorise(disk), ([1.0, 2.0], [3.0, 1.0])):
        module = nt.SeparableConv2d(kernel, stride=2, boundary="mirror")
        factors = numbasep.SeparableKernel.from_taps(module.columns.numpy(), module.rows.numpy())
        expected = numbasep.separable_conv2d(image, factors, stride=2, boundary="mirror")
        assert torch.equal(module(image), expected)
    assert not list(module.parameters())
    learnt = nt.SeparableConv2d(disk, learnable=True)
    assert {name for name, _ in learnt.named_parameters()} == {"columns", "rows"}
    learnt.load_state_dict(nt.SeparableConv2d(disk).state_dict())


def test_what_they_say_of_themselves() -> None:
    module = nt.DepthwiseSeparableConv2d(
        4, 8, 3, 2, padding=1, bias=False, depthwise_activation="relu6", activation="silu"
    )
    text = repr(module)
    for part in ("4, 4, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), bias=False",
                 "activation=relu6", "activation=silu"):  # fmt: skip
        assert part in text
    assert "rank=2, mode=same, boundary=fill" in repr(nt.SeparableConv2d(torch.eye(2)))


# Training --------------------------------------------------------------------------------------

STEPS = 50
U = 2.0**-53


def network(ours: bool) -> nn.Module:
    """Return a small network, with the same weights from either library's modules."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(1, 4, 3, 2, 1)]
    for stride in (1, 2):
        if ours:
            layers.append(
                nt.DepthwiseSeparableConv2d(
                    4, 4, 3, stride, 1, depthwise_activation="silu", activation="relu"
                )
            )
        else:
            layers += [nn.Conv2d(4, 4, 3, stride, 1, groups=4), nn.SiLU()]
            layers += [nn.Conv2d(4, 4, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 3)).double()


def train(model: nn.Module, noise: float = 0.0, seed: int = 0) -> list[float]:
    """Return the loss of each step; noise: by how much of its largest each gradient is off."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 1, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (8,), generator=generator)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    shaker = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        for one in model.parameters():
            assert one.grad is not None
            signs = torch.randint(0, 2, one.shape, generator=shaker) * 2 - 1
            one.grad += noise * one.grad.abs().max() * signs
        optimiser.step()
        losses.append(loss.item())
    return losses


def test_training_follows_torchs() -> None:
    expected = train(network(False))
    assert expected[-1] < 0.75 * expected[0]
    found = train(network(True))
    # The longest sum of a gradient, 8 images of 4x4 pixels, and those before it: what rounding can
    # do to one gradient, gamma(n) of sums whose terms cancel to no less than a thousandth. The
    # run's own response to such noise, far above its rounding, tells what becomes of it.
    n = 8 * 16 + 9 + 4 + 16
    far = 1e-7
    shaken = [train(network(False), far, seed) for seed in range(3)]
    response = [
        max(abs(losses[step] - expected[step]) / far for losses in shaken) for step in range(STEPS)
    ]
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        bound = 1000 * n * U * max(response[: step + 1]) + n * U * other
        assert abs(one - other) <= bound, (step, one, other, bound)


def test_two_runs_have_equal_bits() -> None:
    first, second = network(True), network(True)
    assert train(first) == train(second)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)

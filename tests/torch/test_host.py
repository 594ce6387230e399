"""Weights in host memory: what is kept of them is never of old values."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn

import numbasep.torch as nt
from numbasep.torch import host
from numbasep.torch.host import Kept, copied


class Counted:
    """``copied``, and what it was called with."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        self.calls += 1
        return copied(tensor)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Weights on the meta device, say, are on another; what is copied of them is this."""
    made = Counted()
    monkeypatch.setattr(host, "copied", lambda tensor: made(torch.ones(tensor.shape)))
    return made


def test_a_copy_is_made_once_for_each_version() -> None:
    kept, make = Kept(), Counted()
    weight = nn.Parameter(torch.ones(3))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    for step in range(3):
        for _ in range(2):
            assert torch.equal(kept.by_version(None, make, weight), weight.detach())
        assert make.calls == step + 1
        weight.sum().backward()
        optimiser.step()
    # Memory exchanged, and what only a call of clear() tells.
    weight.data = torch.full((3,), 7.0)
    assert kept.by_version(None, make, weight).tolist() == [7, 7, 7]
    weight.data.zero_()
    kept.clear()
    assert kept.by_version(None, make, weight).tolist() == [0, 0, 0]


def test_content_shows_every_write() -> None:
    kept, make = Kept(), Counted()
    weight = nn.Parameter(torch.ones(3))
    for value in (1.0, 2.0):
        weight.data.fill_(value)  # raises no version counter
        for _ in range(2):
            assert kept.by_content(None, make, weight).tolist() == [value] * 3
    assert make.calls == 2
    weight.numpy(force=True)[1] = 5
    assert kept.by_content(None, make, weight).tolist() == [2, 5, 2]
    weight.data.fill_(float("nan"))
    assert kept.by_content(None, make, weight).isnan().all()
    weight.data = torch.ones(3, dtype=torch.float64)
    assert kept.by_content(None, make, weight).dtype == torch.float64
    assert kept.by_content("another", make, weight).tolist() == [1, 1, 1]
    assert make.calls == 6


def test_weights_on_a_device_are_kept_only_where_promised(counted: Counted) -> None:
    weight = nn.Parameter(torch.empty(3, device="meta"))
    # A meta tensor has no memory: one that has stands in.
    host.host(weight)
    host.host(weight)
    assert counted.calls == 2
    assert not host.promised()
    with nt.kept_weights(), nt.kept_weights():
        assert host.promised()
    assert not host.promised()


def test_promises_end_with_what_was_kept() -> None:
    weight = torch.ones(2)
    with nt.kept_weights():
        host._copies.by_version(None, copied, weight)
        assert len(host._copies._found) == 1
    assert len(host._copies._found) == 0


def test_tensors_without_a_version_are_copied_each_time() -> None:
    kept = Kept()
    with torch.inference_mode():
        weight = torch.ones(2)
        assert kept.by_version(None, copied, weight).tolist() == [1, 1]
        weight.zero_()
        assert kept.by_version(None, copied, weight).tolist() == [0, 0]


def test_copies_go_with_their_tensors() -> None:
    kept = Kept()
    weight = torch.ones(2)
    kept.by_version(None, copied, weight)
    assert len(kept._found) == 1
    del weight
    gc.collect()
    assert len(kept._found) == 0


def test_writes_through_data_show_in_every_module() -> None:
    """In place and by exchange, without a version counter: the next call computes with them."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nt.DepthwiseConv2d(2, 2, 3, bias=False),
        nt.DepthwiseSeparableConv2d(2, 3, 3, depthwise_activation="relu"),
        nn.Conv2d(3, 3, 3, groups=3),
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 2, 1),
        nn.BatchNorm2d(2),
        nt.SeparableConv2d(([1.0, 2.0], [1.0, 1.0]), learnable=True),
        nt.LowRankDepthwiseConv2d.of(nn.Conv2d(2, 2, 7, groups=2, padding=3), tol=0.5),
    ).double()
    nt.swap(model.eval())
    x = torch.randint(-4, 5, (1, 2, 12, 12)).double()
    named = [*model.named_parameters(), ("3.running_mean", model[3].running_mean)]
    for trains in (False, True):
        with torch.set_grad_enabled(trains):
            before = model(x).detach()
            for name, one in named:
                held = one.data.clone()
                one.data.add_(1)
                after = model(x).detach()
                assert not torch.equal(after, before), name
                one.data = held
                assert torch.equal(model(x).detach(), before), name


def test_what_inference_mode_left_can_be_trained_with() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3, groups=2), nn.BatchNorm2d(2)).eval()
    nt.swap(model)
    model.requires_grad_(False)
    x = torch.randn(1, 2, 5, 5)
    with torch.inference_mode():
        expected = model(x)
    x.requires_grad_()
    y = model(x)
    y.sum().backward()
    assert torch.equal(y.detach(), expected)
    assert x.grad is not None

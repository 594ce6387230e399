"""Copies of weights: made once for each value."""

from __future__ import annotations

import gc

import torch

from numbasep.torch.host import Kept, copied


def test_a_copy_is_made_once_for_each_value() -> None:
    kept, made = Kept(), []

    def make(weight: torch.Tensor) -> torch.Tensor:
        made.append(copied(weight))
        return made[-1]

    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    for step in range(3):
        for _ in range(2):
            assert torch.equal(kept.get(None, make, weight), weight.detach())
        assert len(made) == step + 1
        weight.sum().backward()
        optimiser.step()
    # Memory exchanged, and what only a call of clear() tells.
    weight.data = torch.full((3,), 7.0)
    assert kept.get(None, make, weight).tolist() == [7, 7, 7]
    weight.data.zero_()
    kept.clear()
    assert kept.get(None, make, weight).tolist() == [0, 0, 0]


def test_tensors_without_a_version_are_copied_each_time() -> None:
    kept = Kept()
    with torch.inference_mode():
        weight = torch.ones(2)
        assert kept.get(None, copied, weight).tolist() == [1, 1]
        weight.zero_()
        assert kept.get(None, copied, weight).tolist() == [0, 0]


def test_copies_go_with_their_tensors() -> None:
    kept = Kept()
    weight = torch.ones(2)
    kept.get(None, copied, weight)
    assert len(kept._found) == 1
    del weight
    gc.collect()
    assert len(kept._found) == 0

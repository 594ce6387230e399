"""Memory of large results: used again when its tensor is gone, and not before."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import numbasep.torch as nt
from numbasep.torch import memory
from numbasep.torch.arguments import fresh

SIDE = 1 << 10
X = torch.zeros(1, 1, SIDE, SIDE)


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    gc.collect()
    memory._free.clear()
    yield
    memory._free.clear()


def large(rows: int = SIDE) -> Tensor:
    made = fresh(X, 1, 1, rows, SIDE)
    assert made.numel() * made.itemsize >= memory.LARGE
    return made


def test_it_is_used_again() -> None:
    one = large()
    place = one.data_ptr()
    assert memory.kept() == 0
    del one
    assert memory.kept() == memory.LARGE
    assert large().data_ptr() == place


def test_whatever_refers_to_it_keeps_it() -> None:
    """Views, arrays, and what autograd has saved."""
    for keep in (
        lambda one: one[0, 0, 5:],
        lambda one: one.numpy(),
        lambda one: one.requires_grad_().square(),
        lambda one: one.untyped_storage(),
    ):
        one = large()
        place = one.data_ptr()
        kept = keep(one)
        del one
        assert memory.kept() == 0
        assert large().data_ptr() != place
        del kept
        gc.collect()
        memory._free.clear()


def test_other_sizes_are_others() -> None:
    place = large().data_ptr()
    other = large(SIDE + 1)
    assert other.data_ptr() != place
    assert memory.kept() == memory.LARGE


def test_no_more_than_it_says() -> None:
    many = [large(SIDE + k) for k in range(40)]
    last = many[-1].data_ptr()
    while many:
        del many[0]
    assert memory.MOST - 2 * memory.LARGE < memory.kept() <= memory.MOST
    # Those used longest ago are let go first.
    assert large(SIDE + 39).data_ptr() == last


def test_threads() -> None:
    """Every result is its own while it lives."""
    conv = nt.DepthwiseConv2d(1, 1, 1, bias=False)
    wrong: list[float] = []

    def run(value: float) -> None:
        x = torch.full((1, 1, SIDE, SIDE), value)
        for _ in range(20):
            with torch.no_grad():
                y = conv(x)
            if not bool((y == value).all()):
                wrong.append(value)

    with torch.no_grad():
        conv.weight.fill_(1)
    threads = [threading.Thread(target=run, args=(float(k),)) for k in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong

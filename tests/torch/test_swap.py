"""Networks before and after ``swap``: outputs, state dicts, training, and what the report says."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import numbasep.torch as nt
from numbasep import factorise
from tests.torch import networks
from tests.torch.networks import depthwise, shaken

U = 2.0**-53
U_FLOAT32 = 2.0**-24

# A model of float64, its images' channels, and what becomes of each depthwise layer.
MODELS: dict[str, tuple[Any, int, dict[str, tuple[str | None, str]]]] = {
    "mobilenet_v1": (networks.mobilenet_v1, 3, {"3": ("6", ""), "9": ("12", "")}),
    "mobilenet_v2": (
        lambda: networks.InvertedResidual(4, 8), 4, {"conv_dw": ("conv_pw", "")},
    ),
    "efficientnet": (
        lambda: networks.Excited(4, 8), 4, {"conv_dw": (None, "squeeze-excite")},
    ),
    "convnext": (lambda: networks.ConvNeXtBlock(4), 4, {"conv_dw": (None, "permute")}),
    "replknet": (
        lambda: networks.LargeKernels(4),
        4,
        {"large.conv": (None, "add stands after"), "small.conv": (None, "add stands after")},
    ),
    "untraceable": (
        networks.Untraceable, 4, {"body.dw": ("body.pw", ""), "alone": (None, "not known")},
    ),
}  # fmt: skip


def made(name: str) -> tuple[nn.Module, Tensor]:
    build, channels, _ = MODELS[name]
    torch.manual_seed(0)
    return shaken(build().double()), torch.randn(2, channels, 9, 8, dtype=torch.float64)


def bounded(model: nn.Module, x: Tensor, swapped: nn.Module) -> None:
    """Compare outputs: within what rounding anywhere before them can make of them.

    The bound is measured on the model itself, in double: each parameter and input, moved by
    ``gamma(n)`` with n the longest sum (and a norm's six roundings), in a random direction; an
    order of magnitude for the number of places where the model rounds.
    """
    with torch.no_grad():
        expected = model(x)
        longest = max(one[0].numel() for one in model.parameters() if one.dim() == 4) + 6
        moved, generator = 0.0, torch.Generator().manual_seed(1)
        for _ in range(4):
            other = copy.deepcopy(model)
            for one in other.parameters():
                signs = torch.randint(0, 2, one.shape, generator=generator) * 2 - 1
                # Far above rounding, so that the difference is the change and not its rounding.
                one.mul_(1 + 1e-6 * signs)
            moved = max(moved, float((other(x) - expected).abs().max()) / 1e-6)
        difference = float((swapped(x) - expected).abs().max())
    assert difference <= 10 * longest * U * moved, (difference, longest * U * moved)


@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_report(name: str) -> None:
    model, x = made(name)
    swapped = copy.deepcopy(model)
    report = nt.swap(swapped, example=x)
    expected = MODELS[name][2]
    assert {layer.name: layer.pointwise for layer in report.layers} == {
        layer: pointwise for layer, (pointwise, _) in expected.items()
    }
    for layer in report.layers:
        assert layer.swapped
        assert expected[layer.name][1] in layer.why, layer.why
        assert layer.cost is not None or layer.name == "alone"
        assert layer.after[0] <= layer.before[0]
        assert layer.after[1] == layer.before[1]
    assert ("torch.fx cannot trace" in str(report)) == (name == "untraceable")
    assert not swapped.training
    bounded(model, x, swapped)
    last = x.contiguous(memory_format=torch.channels_last)
    bounded(model, last, swapped)


@pytest.mark.parametrize("name", MODELS)
def test_state_dicts_go_both_ways(name: str) -> None:
    model, x = made(name)
    swapped = copy.deepcopy(model)
    nt.swap(swapped)
    assert list(swapped.state_dict()) == list(model.state_dict())
    other, _ = made(name)
    for one in other.parameters():
        one.data.mul_(1.25)
    swapped.load_state_dict(other.state_dict())
    bounded(other, x, swapped)
    back, _ = made(name)
    back.load_state_dict(swapped.state_dict())
    with torch.no_grad():
        assert torch.equal(back(x), other(x))


def test_gradients_and_training_mode() -> None:
    """In float64 to float32's roundoff: what batch norms amplify has 2**29 of room, and a term that
    is missing or double would show."""
    model, x = made("mobilenet_v1")
    swapped = copy.deepcopy(model)
    nt.swap(swapped)
    for training in (False, True):
        found = []
        for one in (model, swapped):
            one.train(training)
            one.zero_grad()
            one(x).square().sum().backward()
            found.append({name: value.grad.clone() for name, value in one.named_parameters()})
        for name, expected in found[0].items():
            scale = float(expected.abs().max())
            difference = float((found[1][name] - expected).abs().max())
            assert difference <= U_FLOAT32 * max(scale, 1), name
    for one, other in zip(model.buffers(), swapped.buffers(), strict=True):
        assert float((one - other).abs().max()) <= U_FLOAT32 * (1 + float(one.abs().max()))


def test_folded_norms_follow_their_values() -> None:
    model, x = made("mobilenet_v1")
    swapped = copy.deepcopy(model)
    nt.swap(swapped)
    with torch.no_grad():
        swapped(x)
        for one in (model, swapped):
            one[4].running_mean.add_(1)
            one[7].weight.mul_(2)
    bounded(model, x, swapped)


def test_copies_and_files() -> None:
    model, x = made("mobilenet_v2")
    nt.swap(model)
    memory = io.BytesIO()
    torch.save(model, memory)
    memory.seek(0)
    loaded = torch.load(memory, weights_only=False)
    again = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
        again.bn1.bias.add_(1)
        assert not torch.equal(again(x), model(x))
    # Swapped once: a second time finds nothing.
    assert not nt.swap(model).layers


def test_compiled_in_one_graph() -> None:
    model, x = made("mobilenet_v2")
    nt.swap(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), model(x))


def test_training_norm_between_is_not_swapped_over() -> None:
    model, x = made("mobilenet_v1")
    swapped = copy.deepcopy(model).train()
    report = nt.swap(swapped)
    for layer in report.layers:
        assert layer.pointwise is None
        assert "batch norm in training mode" in layer.why
        assert "model.eval()" in layer.why
        assert "\n" not in layer.why
    bounded(model, x, swapped.eval())


def test_low_rank() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        depthwise(4, 9, bias=True), nn.BatchNorm2d(4), nn.ReLU(), depthwise(4, 3)
    ).double()
    shaken(model)
    line = torch.linspace(-1, 1, 9, dtype=torch.float64)
    with torch.no_grad():
        # Two terms, and noise of a hundredth.
        smooth = torch.exp(-line[:, None].square() - 2 * line.square()) + torch.outer(line, line)
        model[0].weight.mul_(0.01).add_(smooth)
    tol = 0.05
    swapped = copy.deepcopy(model)
    x = torch.randn(1, 4, 20, 17, dtype=torch.float64)
    report = nt.swap(swapped, low_rank_tol=tol, example=x)
    first, second = report.layers
    assert first.rank == 2
    assert second.rank is None
    assert first.error is not None
    assert 0 < first.error <= tol
    assert first.after[1] < first.before[1]
    assert first.takes == ("1", "2")
    assert "rank 2" in str(report)
    weight = model[0].weight.detach()[:, 0]
    exact = factorise(weight.numpy(), tol=tol)
    assert first.error == float(exact.errors.max())
    with torch.no_grad():
        # With the norm and the activation, which brings values no further apart.
        difference = (swapped[0](x) - model[:3](x)).abs().amax((0, 2, 3))
        norm = model[1]
        scale = norm.weight.abs() / (norm.running_var + norm.eps).sqrt()
        promise = tol * weight.abs().sum((1, 2)) * x.abs().max() * scale
        # Both ways round: the bound of the passes, whose taps are rounded too, and torch's sum.
        columns, rows = torch.tensor(exact.columns), torch.tensor(exact.rows)
        terms = (columns.abs().sum(-1) * rows.abs().sum(-1)).sum(-1)
        kh, kw = weight.shape[1:]
        # Six roundings of a norm, in double, in either.
        n, dense = kh + kw + columns.shape[-2] + 4 + 6, kh * kw + 1 + 6
        bias = model[0].bias.abs() + norm.running_mean.abs() + norm.bias.abs() / scale
        largest = x.abs().max()
        rounding = n * U / (1 - n * U) * (terms * largest + bias)
        rounding += dense * U / (1 - dense * U) * (weight.abs().sum((1, 2)) * largest + bias)
        assert (difference <= promise + rounding * scale).all()
        assert (difference > rounding * scale).all()
    # Its state dict is a dense convolution's, to which its kernels are equal to the last bits.
    state = swapped.state_dict()
    assert set(state) == set(model.state_dict())
    back = copy.deepcopy(model)
    back.load_state_dict(state)
    with torch.no_grad():
        near = (back[:3](x) - swapped[0](x)).abs().amax((0, 2, 3))
        assert (near <= rounding * scale).all()
    again = copy.deepcopy(swapped)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(x), swapped(x))
    # In training mode the norm takes the batch's statistics, as torch's does after the passes.
    swapped.train()
    with torch.no_grad():
        y = nn.functional.batch_norm(
            nn.functional.conv2d(x, swapped[0].dense(), swapped[0].bias, padding=4, groups=4),
            None, None, norm.weight, norm.bias, training=True, eps=norm.eps,
        ).relu()  # fmt: skip
        assert float((swapped[:3](x) - y).abs().max()) <= U_FLOAT32 * float(y.abs().max())
    assert not torch.equal(swapped[1].running_mean, norm.running_mean)


def refusals() -> dict[str, tuple[nn.Module, str]]:
    class Own(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    integer = depthwise(4, 3)
    integer.weight = nn.Parameter(torch.zeros(4, 1, 3, 3, dtype=torch.int8), requires_grad=False)
    hooked = depthwise(4, 3)
    hooked.register_forward_hook(lambda *_: None)
    return {
        "own forward": (Own(4, 4, 3, groups=4), "in its own way"),
        "integer weights": (integer, "torch.int8"),
        "hooks": (hooked, "hooks"),
    }


@pytest.mark.parametrize("name", refusals())
def test_what_is_left_as_it_was(name: str) -> None:
    conv, part = refusals()[name]
    model = nn.Sequential(conv, nn.Conv2d(4, 2, 1))
    (layer,) = nt.swap(model).layers
    assert not layer.swapped
    assert model[0] is conv
    assert part in layer.why
    assert "\n" not in layer.why


def between() -> dict[str, tuple[list[nn.Module], str]]:
    shared = nn.Conv2d(4, 4, 1)
    return {
        "unknown activation": ([nn.Tanh(), nn.Conv2d(4, 2, 1)], "Tanh stands after"),
        "gelu by tanh": ([nn.GELU("tanh"), nn.Conv2d(4, 2, 1)], "GELU stands after"),
        "groups": ([nn.Conv2d(4, 4, 1, groups=2)], "no plain pointwise"),
        "wide": ([nn.Conv2d(4, 4, 3)], "no plain pointwise"),
        "stride": ([nn.Conv2d(4, 4, 1, 2)], "no plain pointwise"),
        "two dtypes": ([nn.Conv2d(4, 4, 1).double()], "torch.float64"),
        "shared": ([shared, shared], "more than once"),
        "nothing": ([], "output"),
    }


@pytest.mark.parametrize("name", between())
def test_pointwise_that_stays(name: str) -> None:
    after, part = between()[name]
    model = nn.Sequential(depthwise(4, 3), *after)
    (layer,) = nt.swap(model).layers
    assert layer.swapped
    assert layer.pointwise is None
    assert part in layer.why
    assert "\n" not in layer.why


def test_wrong_use() -> None:
    mixed = nn.Sequential(depthwise(4, 3), nn.Conv2d(4, 2, 1, device="meta"))
    for call, kind, parts in (
        (lambda: nt.swap(mixed), ValueError, ("model:", "cpu and meta", "move")),
        (lambda: nt.swap(torch.zeros(3)), TypeError, ("model:", "Tensor", "Module")),  # type: ignore[arg-type]
        (lambda: nt.swap(mixed, low_rank_tol=2), ValueError, ("low_rank_tol:", "2", "[0, 1)")),
    ):
        with pytest.raises(kind) as caught:
            call()
        assert all(part in str(caught.value) for part in parts)
        assert "\n" not in str(caught.value)
    assert type(mixed[0]) is nn.Conv2d

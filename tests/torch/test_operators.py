"""The operators under torch's own checks, its compiler, its transforms, and autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import numbasep.torch as nt
from numbasep.torch import memory
from tests.torch import grid

OPTIONS: list[Any] = [[2, 1], [1, 0, 2, 1], [1, 2], "reflect"]
LAYOUTS = grid.LAYOUTS


def f32(*shape: int, layout: Any = torch.contiguous_format) -> Tensor:
    return grid.leaf(*shape, layout=layout, dtype=torch.float32)


def samples(layout: Any) -> dict[str, tuple[Any, ...]]:
    """Return arguments for each operator."""
    x, weight, bias = grid.depthwise(2, layout, dtype=torch.float32)
    y = f32(2, 4, 3, 6, layout=layout)
    matrix = f32(3, 4, 1, 1)
    return {
        "depthwise_conv2d": (x, weight, bias, *OPTIONS, "silu"),
        "depthwise_input_gradient": (y, weight, x.shape[1:], *OPTIONS),
        "depthwise_weight_gradient": (x, y, [3, 2], *OPTIONS),
        "bias_gradient": (y,),
        "pointwise_conv2d": (y, matrix, None, "relu"),
        "pointwise_input_gradient": (f32(2, 3, 3, 6, layout=layout), matrix),
        "pointwise_weight_gradient": (y, f32(2, 3, 3, 6, layout=layout)),
        "depthwise_separable_conv2d": (
            x, weight, matrix, bias, None, *OPTIONS, "relu6", "hardswish", None,
        ),
        "low_rank_depthwise_conv2d": (x, f32(4, 2, 3), f32(4, 2, 2), bias, *OPTIONS, "none"),
        "separable_conv2d": (
            x, f32(2, 3), f32(2, 4), "same", "symm", 0.0, [1, 2], [2, 1],
        ),
    }  # fmt: skip


def test_every_operator_has_a_sample() -> None:
    names = torch._C._dispatch_get_all_op_names()
    defined = {name.split("::")[1] for name in names if name.startswith("numbasep::")}
    assert set(samples(LAYOUTS[0])) == defined


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", samples(LAYOUTS[0]))
def test_opcheck(name: str, layout: Any) -> None:
    found = opcheck(getattr(torch.ops.numbasep, name), samples(layout)[name])
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_mapped_equals_a_loop(layout: Any) -> None:
    for name, given in samples(layout).items():
        operator = getattr(torch.ops.numbasep, name)
        tensors = [i for i, one in enumerate(given) if isinstance(one, Tensor)]
        for mapped in ([tensors[0]], tensors):
            dims = tuple(0 if i in mapped else None for i in range(len(given)))
            many = tuple(
                torch.stack([one, 2 * one, one - 1]).detach() if i in mapped else one
                for i, one in enumerate(given)
            )
            made = torch.func.vmap(operator, dims)(*many)
            for index in range(3):
                one = [value[index] if i in mapped else value for i, value in enumerate(many)]
                assert torch.equal(made[index], operator(*one)), name


def small() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        nt.DepthwiseConv2d(2, 4, 3, padding="same", activation="hardswish"),
        nt.DepthwiseSeparableConv2d(
            4, 3, 3, stride=2, depthwise_activation="relu", padding_mode="reflect", padding=1
        ),
        nt.SeparableConv2d(torch.ones(3, 3), learnable=True),
    )


def gradients(model: Callable[[Tensor], Tensor], module: torch.nn.Module, x: Tensor) -> list[Any]:
    module.zero_grad()
    x = x.detach().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *[one.grad.clone() for one in module.parameters()]]


def test_compiled_in_one_graph() -> None:
    module = small()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for shape in ((2, 2, 8, 9), (1, 2, 6, 6)):
        x = torch.randn(shape)
        for one, other in zip(
            gradients(module, module, x), gradients(compiled, module, x), strict=True
        ):
            assert torch.equal(one, other)


def test_exported() -> None:
    module = small()
    x = torch.randn(2, 2, 8, 9)
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (x,), dynamic_shapes=({0: batch},))
    more = torch.randn(5, 2, 8, 9)
    assert torch.equal(program.module()(more), module(more))


def test_gradients_of_torch_func_are_refused_by_torch() -> None:
    """Its custom operators have no such gradients, and it says so."""
    module = small()
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda x: module(x).sum())(torch.randn(1, 2, 8, 9))


def test_autocast_computes_in_its_dtype() -> None:
    module = small()
    x = torch.randn(2, 2, 8, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    expected = module.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert torch.equal(y, expected)
    module.to(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module(x).float().sum().backward()
    assert {one.grad.dtype for one in module.parameters()} == {torch.float32}
    # float64 stays, as torch's own convolutions have it.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module.double()(x.double()).dtype == torch.float64


def test_results_stand_as_their_images_do() -> None:
    x = torch.randn(2, 4, 7, 6)
    module = nt.DepthwiseSeparableConv2d(4, 5, 3)
    last = x.contiguous(memory_format=torch.channels_last)
    for image in (x, last, x[:, :, 1:, 2:], last[:, :, 1:, 2:]):
        y = module(image)
        standing = image.is_contiguous(memory_format=torch.channels_last)
        assert y.is_contiguous(memory_format=torch.channels_last) == standing
    assert torch.equal(module(x), module(last))
    assert torch.equal(module(x)[1], module(x[1]))


X = torch.zeros(1, 4, 5, 5)
W = torch.zeros(4, 1, 3, 3)
M = torch.zeros(2, 4, 1, 1)
META = torch.device("meta")
# The call, the exception, and the parts its message must have: argument, what arrived, remedy.
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = {
    "x on a device": (
        lambda: nt.depthwise_conv2d(X.to(META), W), ValueError, ("weight:", "meta", "move"),
    ),
    "pointwise weight on a device": (
        lambda: nt.depthwise_separable_conv2d(X, W, M.to(META)),
        ValueError, ("pointwise_weight:", "meta", "move"),
    ),
    "bias on a device": (
        lambda: nt.pointwise_conv2d(X, M, torch.zeros(2, device=META)),
        ValueError, ("bias:", "meta", "move"),
    ),
    "integer weight": (
        lambda: nt.depthwise_conv2d(X, W.long()), TypeError, ("weight:", "int64", "floating"),
    ),
    "integer image": (lambda: nt.depthwise_conv2d(X.int(), W), TypeError, ("x:", "int32")),
    "two dtypes": (
        lambda: nt.depthwise_conv2d(X, W.double()), TypeError, ("weight:", "float64", "autocast"),
    ),
    "wrong groups": (
        lambda: nt.depthwise_conv2d(X[:, :3], W), ValueError, ("weight:", "3 channels", "groups"),
    ),
    "dense weight": (
        lambda: nt.depthwise_conv2d(X, torch.zeros(4, 4, 3, 3)), ValueError, ("weight:", "groups"),
    ),
    "grouped pointwise": (
        lambda: nt.pointwise_conv2d(X, M[:, :2]), ValueError, ("weight:", "4 channels", "groups=1"),
    ),
    "bias": (
        lambda: nt.depthwise_conv2d(X, W, torch.zeros(3)), ValueError, ("bias:", "(3,)", "(4,)"),
    ),
    "large kernel": (
        lambda: nt.depthwise_conv2d(X[..., :2, :2], W), ValueError, ("weight:", "pad more"),
    ),
    "two dimensions": (lambda: nt.depthwise_conv2d(X[0, 0], W), ValueError, ("x:", "(5, 5)")),
    "activation": (
        lambda: nt.depthwise_conv2d(X, W, activation="tanh"), ValueError, ("activation:", "tanh"),
    ),
    "groups of a module": (
        lambda: nt.DepthwiseConv2d(4, 4, 3, groups=2), ValueError, ("groups:", "2", "Conv2d"),
    ),
    "multiple": (
        lambda: nt.DepthwiseConv2d(4, 6, 3), ValueError, ("out_channels:", "6", "multiple"),
    ),
    "integer module": (
        lambda: nt.DepthwiseConv2d(4, 4, 3, dtype=torch.int8), TypeError, ("dtype:", "int8"),
    ),
    "same with a stride": (
        lambda: nt.DepthwiseConv2d(4, 4, 3, 2, "same"), ValueError, ("padding:", "same", "stride"),
    ),
    "complex kernel": (
        lambda: nt.SeparableConv2d(torch.ones(3, 3) * 1j), ValueError, ("kernel:", "complex"),
    ),
    "taps of another dtype": (
        lambda: nt.SeparableConv2d(torch.ones(3, 3))(X.double()), TypeError, ("columns:", "float"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str) -> None:
    call, kind, parts = REFUSED[name]
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_results_are_as_small_ones(layout: Any, dtype: torch.dtype) -> None:
    """Their memory is NumPy's: activations in place, gradients and compilers take it as any."""
    x = torch.randint(-2, 3, (1, 4, 768, 768)).to(dtype).contiguous(memory_format=layout)
    conv = nt.DepthwiseConv2d(4, 4, 3, padding=1, dtype=dtype)
    with torch.no_grad():
        conv.weight.copy_(torch.randint(-2, 3, conv.weight.shape))
        conv.bias.zero_()
    model = torch.nn.Sequential(conv, torch.nn.ReLU(inplace=True))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert x.numel() * x.itemsize >= memory.LARGE
    found = []
    for one, image in ((model, x), (compiled, x), (model, x[:, :, :64])):
        y = one(image)
        assert y.is_contiguous(memory_format=layout)
        (grad,) = torch.autograd.grad(y.sum(), [conv.weight])
        found.append((y.detach(), grad))
    (y, grad), (again, equal), (small, _) = found
    assert torch.equal(y, again)
    assert torch.equal(grad, equal)
    assert torch.equal(y[:, :, :63], small[:, :, :63])

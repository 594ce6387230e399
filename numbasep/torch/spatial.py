"""``separable_conv2d`` as an operator, with gradients to the images and to both factors.

y = K * extend(x), and each gradient is one of the same kind: that to the extended image is the
gradient, with zeros between its elements where there was a stride, convolved in full with the
flipped factors; what the boundary copied then goes back to where it came from, in a fixed order.
The dense kernel's gradient G is a depthwise weight gradient of one channel; those of the factors
are its products with the other side: G rows and G' columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from numbasep import boundary as boundaries
from numbasep import spatial
from numbasep.plan import checks
from numbasep.plan.spatial import MODES
from numbasep.torch.arguments import FLOATS, fresh
from numbasep.torch.host import host, seen
from numbasep.torch.registry import define, operators


def _extent(taps: int, dilation: int) -> int:
    return (taps - 1) * dilation + 1


def _ends(mode: str, extent: int) -> tuple[int, int]:
    """Return how many elements a mode reads before and after an axis."""
    if mode == "full":
        return extent - 1, extent - 1
    if mode == "same":
        return extent // 2, (extent - 1) // 2
    return 0, 0


def _result(
    x: Tensor,
    columns: Tensor,
    rows: Tensor,
    mode: str,
    boundary: str,
    fillvalue: float,
    stride: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Check the arguments and return the result, unfilled."""
    checks.choice("mode", mode, MODES)
    checks.choice("boundary", boundary, boundaries.NAMES)
    if x.dim() < 2 or x.dtype not in FLOATS:
        raise ValueError(f"x: {x.dtype} {tuple(x.shape)} arrived; pass floats (..., H, W)")
    if columns.dim() != 2 or rows.dim() != 2 or columns.shape[0] != rows.shape[0]:
        raise ValueError(
            f"columns, rows: shapes {tuple(columns.shape)} and {tuple(rows.shape)} arrived; pass "
            "(R, kh) and (R, kw)"
        )
    for name, taps in (("columns", columns), ("rows", rows)):
        if taps.dtype != x.dtype:
            raise TypeError(f"{name}: {taps.dtype} arrived and x is {x.dtype}; convert one of them")
        if taps.device != x.device:
            raise ValueError(
                f"{name}: on {taps.device} and x is on {x.device}; move one of them there"
            )
    sizes = []
    for axis, taps in enumerate((columns, rows)):
        size, extent = x.shape[axis - 2], _extent(taps.shape[1], dilation[axis])
        if mode == "valid" and size < extent:
            raise ValueError(
                f"{('columns', 'rows')[axis]}: {extent} taps wide and x has {size}; use mode "
                "'same' or 'full'"
            )
        before, after = _ends(mode, extent)
        sizes.append((size + before + after - extent) // stride[axis] + 1)
    if x.dim() == 4:
        return fresh(x, *x.shape[:2], *sizes)
    return x.new_empty((*x.shape[:-2], *sizes))


@lru_cache(maxsize=256)
def _sources(size: int, before: int, after: int, boundary: str) -> tuple[tuple[Any, Any], ...]:
    """Return, for each turn, elements of an axis and the places outside it that repeat them.

    No element comes twice in a turn: sums have one order.
    """
    code = boundaries.NAMES.index(boundary)
    found = [boundaries.map_index(i, size, code) for i in range(-before, size + after)]
    turns: list[tuple[list[int], list[int]]] = []
    count = [0] * size
    for place, source in enumerate(found):  # place: of the extended axis
        if before <= place < before + size or source < 0:
            continue
        while len(turns) <= count[source]:
            turns.append(([], []))
        turns[count[source]][0].append(source)
        turns[count[source]][1].append(place)
        count[source] += 1
    return tuple(turns)


def _extended(x: Tensor, axis: int, before: int, after: int, boundary: str, fill: float) -> Tensor:
    """Return images with what stands outside them along an axis, -1 or -2."""
    if before == after == 0:
        return x
    pads = [before, after] if axis == -1 else [0, 0, before, after]
    wide = torch.nn.functional.pad(x, pads, value=fill if boundary == "fill" else 0.0)
    if boundary == "fill":
        return wide
    for sources, places in _sources(int(x.shape[axis]), before, after, boundary):
        first, second = (torch.tensor(one, device=x.device) for one in (sources, places))
        wide = wide.index_copy(axis, second, x.index_select(axis, first))
    return wide


def _folded(wide: Tensor, axis: int, size: int, before: int, after: int, boundary: str) -> Tensor:
    """Return the sums of what ``_extended`` copied: its transpose."""
    x = wide.narrow(axis, before, size)
    if boundary == "fill":
        return x
    for sources, places in _sources(int(size), before, after, boundary):
        first, second = (torch.tensor(one, device=wide.device) for one in (sources, places))
        sums = x.index_select(axis, first) + wide.index_select(axis, second)
        x = x.index_copy(axis, first, sums)
    return x


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, columns, rows, ctx.mode, ctx.boundary, ctx.fillvalue, ctx.stride, ctx.dilation = inputs
    ctx.save_for_backward(x, columns, rows)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, columns, rows = ctx.saved_tensors
    extents = [
        _extent(int(taps.shape[1]), apart)
        for taps, apart in zip((columns, rows), ctx.dilation, strict=True)
    ]
    sides = [_ends(ctx.mode, extents[axis]) for axis in range(2)]
    asked = ctx.needs_input_grad
    to_x = to_columns = to_rows = None
    if asked[0]:
        wide = _spread(grad, ctx.stride)
        wide = operators.separable_conv2d(
            wide, columns.flip(1), rows.flip(1), "full", "fill", 0.0, [1, 1], ctx.dilation
        )
        # Of the last rows and columns a stride may have used none.
        missing = [x.shape[axis - 2] + sum(sides[axis]) - wide.shape[axis - 2] for axis in range(2)]
        wide = torch.nn.functional.pad(wide, [0, missing[1], 0, missing[0]])
        for axis in (-2, -1):
            before, after = sides[axis + 2]
            wide = _folded(wide, axis, x.shape[axis], before, after, ctx.boundary)
        to_x = wide
    if asked[1] or asked[2]:
        wide = x
        for axis in (-2, -1):
            before, after = sides[axis + 2]
            wide = _extended(wide, axis, before, after, ctx.boundary, ctx.fillvalue)
        size = columns.shape[1], rows.shape[1]
        kernel = operators.depthwise_weight_gradient(
            wide.reshape(-1, 1, *wide.shape[-2:]),
            grad.reshape(-1, 1, *grad.shape[-2:]),
            size, ctx.stride, [0, 0, 0, 0], ctx.dilation, "zeros",
        )[0, 0].flip(0, 1)  # fmt: skip
        to_columns = rows @ kernel.T if asked[1] else None
        to_rows = columns @ kernel if asked[2] else None
    return to_x, to_columns, to_rows, None, None, None, None, None


def _spread(grad: Tensor, stride: Sequence[int]) -> Tensor:
    """Return a gradient with stride - 1 zeros between its elements."""
    if tuple(stride) == (1, 1):
        return grad
    sizes = [(grad.shape[axis - 2] - 1) * stride[axis] + 1 for axis in range(2)]
    wide = grad.new_zeros((*grad.shape[:-2], *sizes))
    wide[..., :: stride[0], :: stride[1]] = grad
    return wide


@define(
    "separable_conv2d",
    "Tensor x, Tensor columns, Tensor rows, str mode, str boundary, float fillvalue, "
    "int[] stride, int[] dilation",
    result=_result,
    setup=_setup,
    backward=_backward,
    folds=True,
)
def separable_conv2d(
    x: Tensor,
    columns: Tensor,
    rows: Tensor,
    mode: str,
    boundary: str,
    fillvalue: float,
    stride: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    out = _result(x, columns, rows, mode, boundary, fillvalue, stride, dilation)
    # In a dtype that every factor may have.
    taps = [host(one).astype(np.float64) for one in (columns, rows)]
    spatial.separable_conv2d(
        seen(x),
        (taps[0], taps[1]),
        mode=mode,
        boundary=boundary,
        fillvalue=fillvalue,
        stride=(stride[0], stride[1]),
        dilation=(dilation[0], dilation[1]),
        out=seen(out),
    )
    return out

"""Modules with the constructor arguments and the state dicts of their ``torch.nn`` equals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from numbasep.factorise import SeparableKernel, factorise
from numbasep.plan import checks
from numbasep.plan.channelwise import ACTIVATIONS
from numbasep.torch import functional
from numbasep.torch.functional import Padding
from numbasep.torch.ops import operators

Pair = int | tuple[int, int]


def _activation(argument: str, name: str | None) -> str:
    return "none" if name is None else checks.choice(argument, name, ACTIVATIONS)


class DepthwiseConv2d(nn.Module):
    """A filter for each channel: ``torch.nn.Conv2d`` with ``groups=in_channels``, and activation.

    Arguments, their order, initial weights (for the same seed) and state dict are those of
    ``torch.nn.Conv2d``; ``groups`` may be left out. ``out_channels``: a multiple of
    ``in_channels``. activation: None, "relu", "relu6", "silu", "hardswish" or "gelu", computed with
    the sums. Images (N, C, H, W) or (C, H, W), contiguous or channels_last, computed as they stand.

    Raises:
        TypeError, ValueError: naming the argument, what arrived and the remedy.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Padding = 0,
        dilation: Pair = 1,
        groups: int | None = None,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str | None = None,
    ) -> None:
        super().__init__()
        checks.integer("in_channels", in_channels, 1)
        checks.integer("out_channels", out_channels, 1)
        if groups not in (None, in_channels):
            raise ValueError(
                f"groups: {groups} arrived and in_channels is {in_channels}; leave it out, or use "
                "torch.nn.Conv2d"
            )
        if out_channels % in_channels:
            raise ValueError(
                f"out_channels: {out_channels} arrived; pass a multiple of in_channels "
                f"{in_channels}"
            )
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype: {dtype} arrived; pass a floating dtype")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = checks.pair("kernel_size", kernel_size, 1)
        self.stride, self.dilation = stride, dilation
        self.padding, self.padding_mode = padding, padding_mode
        self.activation = _activation("activation", activation)
        self._options = functional.settle(
            stride, padding, dilation, padding_mode, self.kernel_size
        )  # fmt: skip
        made = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(out_channels, 1, *self.kernel_size, **made))
        self.bias = nn.Parameter(torch.empty(out_channels, **made)) if bias else None
        self.reset_parameters()

    @classmethod
    def of(cls, conv: nn.Conv2d, activation: str | None = None) -> Any:
        """Return the equal of a depthwise ``torch.nn.Conv2d``; the parameters are shared."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.in_channels, made.out_channels = conv.in_channels, conv.out_channels
        made.kernel_size = checks.pair("kernel_size", conv.kernel_size, 1)
        made.stride, made.dilation = _two(conv.stride), _two(conv.dilation)
        made.padding = conv.padding if isinstance(conv.padding, str) else _two(conv.padding)
        made.padding_mode = conv.padding_mode
        made.activation = _activation("activation", activation)
        made._options = functional.settle(
            made.stride, made.padding, made.dilation, made.padding_mode, made.kernel_size
        )
        made.weight, made.bias = conv.weight, conv.bias
        made.training = conv.training
        return made

    def reset_parameters(self) -> None:
        """Draw weights and bias as ``torch.nn.Conv2d`` does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.kernel_size[0] * self.kernel_size[1])
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_channels, OH, OW), standing as ``x`` does."""
        images, weight, bias = functional.cast(functional.batched(x), self.weight, self.bias)
        made: Tensor = operators.depthwise_conv2d(
            images, weight, bias, *self._options, self.activation
        )
        return made if x.dim() == 4 else made[0]

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        for name, usual in (("stride", (1, 1)), ("padding", (0, 0)), ("dilation", (1, 1))):
            value = getattr(self, name)
            value = (value, value) if isinstance(value, int) else value
            if value != usual:
                text += f", {name}={value}"
        if self.bias is None:
            text += ", bias=False"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode}"
        if self.activation != "none":
            text += f", activation={self.activation}"
        return text


def _two(value: Any) -> tuple[int, int]:
    first, second = value
    return int(first), int(second)


class LowRankDepthwiseConv2d(DepthwiseConv2d):
    """A depthwise convolution by row and column passes; its parameters are the factors.

    ``columns`` (C * M, R, kh) and ``rows`` (C * M, R, kw), with the kernels
    ``sum_r outer(columns[f, r], rows[f, r])``. The state dict holds the dense ``weight`` of the
    ``torch.nn.Conv2d`` that this stands for, and one with such a weight loads: it is factorised to
    ``tol`` again. rank: R. error: the largest ``sum|K - K_R| / sum|K|`` of the kernels.
    """

    columns: Tensor
    rows: Tensor

    @classmethod
    def of(
        cls, conv: nn.Conv2d, activation: str | None = None, *, tol: float = 0.0
    ) -> LowRankDepthwiseConv2d:
        """Return a depthwise ``torch.nn.Conv2d`` with its kernels factorised to a promise."""
        made: LowRankDepthwiseConv2d = super().of(conv, activation)
        made.tol = tol
        made._take(made.__dict__["_parameters"].pop("weight"))
        return made

    def _take(self, weight: Tensor) -> None:
        kernels = factorise(weight.detach().to("cpu", torch.float64).numpy()[:, 0], tol=self.tol)
        self.rank, self.error = int(kernels.columns.shape[1]), float(kernels.errors.max())
        for name in ("columns", "rows"):
            taps = torch.tensor(getattr(kernels, name)).to(weight)
            setattr(self, name, nn.Parameter(taps, requires_grad=weight.requires_grad))

    tol: float

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_channels, OH, OW), standing as ``x`` does."""
        images, columns, rows, bias = functional.cast(
            functional.batched(x), self.columns, self.rows, self.bias
        )
        made: Tensor = operators.low_rank_depthwise_conv2d(
            images, columns, rows, bias, *self._options, self.activation
        )
        return made if x.dim() == 4 else made[0]

    def dense(self) -> Tensor:
        """Return the kernels, (C * M, 1, kh, kw)."""
        return torch.einsum("fri,frj->fij", self.columns, self.rows)[:, None]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in ("columns", "rows"):
            del destination[prefix + name]
        destination[prefix + "weight"] = self.dense() if keep_vars else self.dense().detach()

    def _load_from_state_dict(self, state: Any, prefix: str, *more: Any) -> None:
        weight = state.get(prefix + "weight")
        if weight is not None:
            with torch.no_grad():
                self._take(nn.Parameter(weight.to(self.columns), self.columns.requires_grad))
            state = {key: one for key, one in state.items() if key != prefix + "weight"}
            state |= {prefix + "columns": self.columns, prefix + "rows": self.rows}
        super()._load_from_state_dict(state, prefix, *more)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, error={self.error:.2g}"


class DepthwiseSeparableConv2d(nn.Module):
    """Depthwise, activation, pointwise, activation, in one operator.

    Equal to ``Sequential(depthwise=Conv2d(C, C * M, kernel_size, ..., groups=C), pointwise=Conv2d(C
    * M, out_channels, 1))``, whose state dict it has: ``depthwise.weight``, ``depthwise.bias``,
    ``pointwise.weight``, ``pointwise.bias``. For the same seed the weights are equal too.
    Arguments as of ``torch.nn.Conv2d``; bias: of both. The intermediate is neither written to
    memory where the forward fuses, nor kept for the backward, which computes it again.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Padding = 0,
        dilation: Pair = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        depth_multiplier: int = 1,
        depthwise_activation: str | None = None,
        activation: str | None = None,
        fuse: bool | None = None,
    ) -> None:
        super().__init__()
        checks.integer("depth_multiplier", depth_multiplier, 1)
        _activation("depthwise_activation", depthwise_activation)
        self.activation = _activation("activation", activation)
        self.fuse = fuse
        self.depthwise = DepthwiseConv2d(
            in_channels,
            in_channels * depth_multiplier,
            kernel_size,
            stride,
            padding,
            dilation,
            None,
            bias,
            padding_mode,
            device,
            dtype,
            activation=depthwise_activation,
        )
        self.pointwise = nn.Conv2d(
            in_channels * depth_multiplier, out_channels, 1, bias=bias, device=device, dtype=dtype
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_channels, OH, OW), standing as ``x`` does."""
        first, second = self.depthwise, self.pointwise
        images, *weights = functional.cast(
            functional.batched(x), first.weight, second.weight, first.bias, second.bias
        )
        made: Tensor = operators.depthwise_separable_conv2d(
            images, *weights, *first._options, first.activation, self.activation, self.fuse
        )
        return made if x.dim() == 4 else made[0]

    def saved_bytes(self, shape: tuple[int, int, int, int]) -> int:
        """Return the bytes not kept between forward and backward for an input of this shape."""
        first = self.depthwise
        stride, padding, dilation, _ = first._options
        top, bottom, left, right = padding
        return functional.saved_bytes(
            shape,
            tuple(first.weight.shape),
            stride=(stride[0], stride[1]),
            padding=(top, bottom, left, right),
            dilation=(dilation[0], dilation[1]),
            depthwise_activation=first.activation,
            dtype=first.weight.dtype,
        )

    def extra_repr(self) -> str:
        parts = [] if self.activation == "none" else [f"activation={self.activation}"]
        return ", ".join(parts + ([] if self.fuse is None else [f"fuse={self.fuse}"]))


class SeparableConv2d(nn.Module):
    """Each image convolved with one kernel, a sum of separable ones: fixed, or learnt.

    Equal to ``numbasep.separable_conv2d(x, (columns, rows), ...)``: it convolves (flips), and
    channels do not mix. kernel: a SeparableKernel, a pair of taps, or a dense (kh, kw) array,
    factorised to its own precision. learnable: ``columns`` (R, kh) and ``rows`` (R, kw) are
    parameters; else buffers. Images (..., H, W).
    """

    columns: Tensor
    rows: Tensor

    def __init__(
        self,
        kernel: Any,
        stride: Pair = 1,
        dilation: Pair = 1,
        device: Any = None,
        dtype: Any = None,
        *,
        mode: str = "same",
        boundary: str = "fill",
        fillvalue: float = 0.0,
        learnable: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(kernel, Tensor):
            kernel = kernel.detach().cpu().numpy()
        if isinstance(kernel, tuple) and len(kernel) == 2:
            kernel = SeparableKernel.from_taps(*(np.asarray(one) for one in kernel))
        elif not isinstance(kernel, SeparableKernel):
            kernel = factorise(kernel)
        if kernel.columns.ndim != 2 or kernel.columns.dtype.kind == "c":
            raise ValueError(
                f"kernel: {kernel.columns.dtype} factors of shape {kernel.columns.shape} arrived; "
                "pass one real kernel"
            )
        self.mode, self.boundary, self.fillvalue = mode, boundary, float(fillvalue)
        self.stride = checks.pair("stride", stride, 1)
        self.dilation = checks.pair("dilation", dilation, 1)
        for name in ("columns", "rows"):
            taps = torch.tensor(getattr(kernel, name), device=device).to(
                dtype or torch.get_default_dtype()
            )
            if learnable:
                self.register_parameter(name, nn.Parameter(taps))
            else:
                self.register_buffer(name, taps)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., OH, OW)."""
        images, columns, rows = functional.cast(x, self.columns, self.rows)
        made: Tensor = operators.separable_conv2d(
            images,
            columns,
            rows,
            self.mode,
            self.boundary,
            self.fillvalue,
            list(self.stride),
            list(self.dilation),
        )
        return made

    def extra_repr(self) -> str:
        size = f"{self.columns.shape[1]}x{self.rows.shape[1]}"
        learnt = isinstance(self.columns, nn.Parameter)
        return (
            f"{size}, rank={len(self.columns)}, mode={self.mode}, boundary={self.boundary}, "
            f"stride={self.stride}, dilation={self.dilation}, learnable={learnt}"
        )

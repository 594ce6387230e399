"""Depthwise and pointwise convolution, and both: the channelwise functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbasep import lazy, nvtx, repeats
from numbasep.calls import Call, DeviceCall, HostCall, planned
from numbasep.layer_weights import (
    Taps,
    bias_of,
    cast,
    joined,
    matrix_of,
    taps_of,
    zeros_of,
)
from numbasep.plan import channelwise as planner
from numbasep.plan.channelwise import DepthwisePlan, FusedPlan, PointwisePlan

Array = NDArray[Any]


def depthwise_conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, int] = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    activation: str | None = None,
    out: Any = None,
    backend: str | None = None,
    stream: Any = None,
) -> Any:
    """Correlate each channel of images with its own kernels.

    Equal to ``torch.nn.functional.conv2d(x, weight, bias, stride, padding, dilation, groups=C)``
    and then the activation. Like it this correlates; ``separable_conv2d`` convolves (flips).

    Parameters
    ----------
    x : array of shape (N, C, H, W) or (C, H, W); (N, H, W, C) or (H, W, C) for layout "NHWC"
        float32, float64, float16, bfloat16 (the 16-bit ones accumulate in float32), or int8, which
        gives exact int32 sums (modulo 2**32). Arrays as for ``separable_conv2d``. A memory order
        other than C's is copied, but for torch's channels_last with layout "NCHW", which is
        computed, and returned, as it stands.
    weight : array of shape (C * M, 1, kh, kw), (C, kh, kw), or a stack of SeparableKernel
        M filters for each channel: filter f reads channel f // M. int8 for an int8 ``x``. The
        stack from ``numbasep.factorise(weight, tol=...)``, of shape (C, ...), (C * M, ...) or
        (C * M, 1, ...), or a sequence of C * M single ones, runs column and row passes. Weights
        and bias are host arrays; for an ``x`` on a device they are kept there.
    bias : array of shape (C * M,), optional
    stride, dilation : int or (vertical, horizontal), default 1
    padding : int, (vertical, horizontal), (top, bottom, left, right), "same" or "valid", default 0
        "same" gives ceil(H / stride) rows by TensorFlow's rule: of an odd padding the larger half
        is after the image, and it depends on H. For stride 1 it is torch's "same".
    padding_mode : "zeros", "reflect", "replicate" or "circular"
        What the padding holds, as in ``torch.nn.Conv2d``; it may be wider than the image.
    layout : "NCHW" or "NHWC"
    activation : None, "relu", "relu6", "silu", "hardswish" or "gelu" (by erf)
    out : array, optional
        Where the result goes; may overlap ``x``. Of ``x``'s library and device.
    backend, stream
        As for ``separable_conv2d``.

    Returns
    -------
    array
        Of ``x``'s kind and layout, (N, C * M, OH, OW) with
        ``OH = (H + top + bottom - ((kh - 1) * dilation + 1)) // stride + 1``.

    Raises
    ------
    ValueError, TypeError
        An argument is wrong; the message names it. Nothing is computed, ``out`` is untouched.
    MemoryError
        As for ``separable_conv2d``.

    Notes
    -----
    Before the activation each element is within ``gamma(kh kw + 1)`` times the same sum of absolute
    values of the exact one, in units of the accumulator (see ``separable_conv2d``); low-rank
    weights: ``gamma(kh + kw + R + 1)``. The bits do not depend on layout or number of threads.
    """
    if lazy.is_dask(x):
        return lazy.depthwise_conv2d(
            x, weight, bias, stride=stride, padding=padding, dilation=dilation,
            padding_mode=padding_mode, layout=layout, activation=activation, out=out,
            backend=backend, stream=stream,
        )  # fmt: skip
    options = stride, padding, dilation, padding_mode, activation
    with nvtx.range("numbasep.depthwise_conv2d"):
        return repeats.run(
            _depthwise, _depthwise_again, x, (weight, bias), options, layout, out, backend, stream
        )


def plan_depthwise(
    call: Call,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    padding_mode: Any,
    activation: Any,
) -> tuple[DepthwisePlan, Taps, Array]:
    """Check the arguments of ``depthwise_conv2d``; return the plan, the weights and the bias."""
    taps = taps_of("weight", weight, call.dtype)
    plan = planned(
        planner.depthwise,
        call.shape,
        call.dtype,
        taps.filters,
        taps.size,
        taps.rank,
        stride=stride,
        padding=padding,
        dilation=dilation,
        padding_mode=padding_mode,
        layout=call.layout,
        activation=activation,
    )
    return plan, taps, bias_of("bias", bias, plan.filters, plan.compute)


def _depthwise(call: HostCall | DeviceCall, *arguments: Any) -> Any:
    plan, taps, bias = plan_depthwise(call, *arguments)

    def work(part: DepthwisePlan, image: Any, result: Any, more: dict[str, Any]) -> None:
        call.module("depthwise").run_depthwise(
            part, image, taps.of(plan.compute), bias, result, **more
        )

    return call.compute(plan, plan.filters, (plan.y.out, plan.x.out), plan.output, work)


def _depthwise_again(call: Call, *arguments: Any) -> tuple[repeats.Work, str]:
    """Return what a repeated call does; see ``repeats.run``."""
    plan, _, _ = plan_depthwise(call, *arguments)
    found, zeros = call.module("depthwise").repeated(plan), zeros_of(plan.filters, plan.compute)

    def work(x: Array, weights: tuple[Any, ...], result: Array) -> None:
        weight, bias = weights
        found().run(x, result, weight, weight, zeros if bias is None else bias)

    return work, plan.compute


def pointwise_conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    layout: str = "NCHW",
    activation: str | None = None,
    precision: str | None = None,
    out: Any = None,
    backend: str | None = None,
    stream: Any = None,
) -> Any:
    """Mix the channels of images, pixel by pixel: 1x1 convolution.

    Equal to ``torch.nn.functional.conv2d(x, weight, bias)`` with a 1x1 kernel, and then the
    activation.

    Parameters
    ----------
    x, bias, layout, activation, out, backend, stream
        As for ``depthwise_conv2d``.
    weight : array of shape (Cout, C) or (Cout, C, 1, 1)
        Groups are refused: split by group and call once for each.
    precision : None or "tf32"
        None computes a float32 ``x`` in float32. "tf32" lets a GPU use its tensor cores, whose
        operands have 11 significant bits (u = 2**-11); the CPU computes it in float32.

    Returns
    -------
    array
        Of ``x``'s kind and layout, (N, Cout, H, W).

    Raises
    ------
    ValueError, TypeError
        An argument is wrong; the message names it. Nothing is computed, ``out`` is untouched.
    MemoryError
        As for ``separable_conv2d``.

    Notes
    -----
    Before the activation each element is within ``gamma(C + 1)`` times the same sum of absolute
    values of the exact one. The sum over channels is ascending, whatever layout and threads.
    """
    if lazy.is_dask(x):
        return lazy.pointwise_conv2d(
            x, weight, bias, layout=layout, activation=activation, precision=precision, out=out,
            backend=backend, stream=stream,
        )  # fmt: skip
    with nvtx.range("numbasep.pointwise_conv2d"):
        options = activation, precision
        return repeats.run(
            _pointwise, _pointwise_again, x, (weight, bias), options, layout, out, backend, stream
        )


def plan_pointwise(
    call: Call, weight: Any, bias: Any, activation: Any, precision: Any
) -> tuple[PointwisePlan, Array, Array]:
    """Check the arguments of ``pointwise_conv2d``; return the plan, the weights and the bias."""
    matrix, weights = matrix_of("weight", weight, call.dtype)
    plan = planned(
        planner.pointwise,
        call.shape,
        call.dtype,
        matrix.shape,
        weights,
        layout=call.layout,
        activation=activation,
        precision=precision,
    )
    return plan, matrix, bias_of("bias", bias, plan.outputs, plan.compute)


def _pointwise(call: HostCall | DeviceCall, *arguments: Any) -> Any:
    plan, matrix, bias = plan_pointwise(call, *arguments)

    def work(part: PointwisePlan, image: Any, result: Any, more: dict[str, Any]) -> None:
        call.module("pointwise").run_pointwise(
            part,
            joined(image, plan.layout),
            cast(matrix, plan.compute),
            bias,
            joined(result, plan.layout),
            **more,
        )

    return call.compute(plan, plan.outputs, call.spatial, plan.output, work)


def _pointwise_again(call: Call, *arguments: Any) -> tuple[repeats.Work, str]:
    """Return what a repeated call does; see ``repeats.run``."""
    plan, _, _ = plan_pointwise(call, *arguments)
    found, zeros = call.module("pointwise").repeated(plan), zeros_of(plan.outputs, plan.compute)

    def work(x: Array, weights: tuple[Any, ...], result: Array) -> None:
        weight, bias = weights
        found().run(x, result, weight, zeros if bias is None else bias)

    return work, plan.compute


def depthwise_separable_conv2d(
    x: Any,
    depthwise_weight: Any,
    pointwise_weight: Any,
    *,
    depthwise_bias: Any = None,
    depthwise_activation: str | None = None,
    pointwise_bias: Any = None,
    activation: str | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, int] = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    precision: str | None = None,
    fuse: bool | None = None,
    out: Any = None,
    backend: str | None = None,
    stream: Any = None,
) -> Any:
    """Correlate each channel with its own kernels, then mix the channels, in one launch.

    Equal to ``pointwise_conv2d(depthwise_conv2d(x, depthwise_weight, depthwise_bias, ...,
    activation=depthwise_activation), pointwise_weight, pointwise_bias, activation=activation)``.
    Where it is fused, the depthwise result stays in a cache (CPU) or in shared memory (CUDA) and
    is never written to memory.

    Parameters
    ----------
    x, stride, padding, dilation, padding_mode, layout, activation, out, backend, stream
        As for ``depthwise_conv2d``, but for int8, whose int32 intermediate would have to be scaled.
    depthwise_weight, depthwise_bias, depthwise_activation
        As ``weight``, ``bias`` and ``activation`` of ``depthwise_conv2d``.
    pointwise_weight : array of shape (Cout, C * M) or (Cout, C * M, 1, 1)
    pointwise_bias : array of shape (Cout,), optional
    precision
        As for ``pointwise_conv2d``.
    fuse : bool, optional
        By default the plan decides. float32 and float64 give the same bits either way. float16 and
        bfloat16 round the intermediate where not fused, and in both cases on CUDA's tensor cores,
        which multiply a pointwise weight of ``x``'s dtype; "tf32" rounds it to tf32 there. CUDA
        does not fuse low-rank weights, nor windows too large for shared memory.

    Returns
    -------
    array
        Of ``x``'s kind and layout, (N, Cout, OH, OW).

    Raises
    ------
    ValueError, TypeError
        An argument is wrong; the message names it. Nothing is computed, ``out`` is untouched.
    MemoryError
        As for ``separable_conv2d``.
    """
    if lazy.is_dask(x):
        return lazy.depthwise_separable_conv2d(
            x, depthwise_weight, pointwise_weight, depthwise_bias=depthwise_bias,
            depthwise_activation=depthwise_activation, pointwise_bias=pointwise_bias,
            activation=activation, stride=stride, padding=padding, dilation=dilation,
            padding_mode=padding_mode, layout=layout, precision=precision, fuse=fuse, out=out,
            backend=backend, stream=stream,
        )  # fmt: skip
    with nvtx.range("numbasep.depthwise_separable_conv2d"):
        return repeats.run(
            _separable,
            _separable_again,
            x,
            (depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias),
            (
                stride,
                padding,
                dilation,
                padding_mode,
                depthwise_activation,
                activation,
                precision,
                fuse,
            ),
            layout,
            out,
            backend,
            stream,
        )


@dataclass(frozen=True, slots=True)
class Both:
    """Checked arguments of ``depthwise_separable_conv2d``: two plans, and what they take."""

    first: DepthwisePlan
    second: PointwisePlan
    taps: Taps
    matrix: Array
    biases: tuple[Array, Array]
    fuse: bool | None

    def planned(self, backend: str, *, fuse: bool | None = None) -> FusedPlan:
        """Return the plan of both on a backend; fuse: instead of the caller's."""
        asked = self.fuse if fuse is None else fuse
        if backend == "cuda":
            return planner.separable(self.first, self.second, asked, backend)
        import numba

        threads = numba.get_num_threads()
        return planner.separable(self.first, self.second, asked, backend, threads)


def plan_separable(
    call: Call,
    depthwise_weight: Any,
    depthwise_bias: Any,
    pointwise_weight: Any,
    pointwise_bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    padding_mode: Any,
    depthwise_activation: Any,
    activation: Any,
    precision: Any,
    fuse: Any,
) -> Both:
    """Check the arguments of ``depthwise_separable_conv2d``."""
    if fuse is not None and not isinstance(fuse, (bool, np.bool_)):
        raise TypeError(f"fuse: {fuse!r} arrived; pass None, True or False")
    if call.dtype == "int8":
        raise TypeError(
            "x: int8 arrived, whose int32 intermediate would have to be scaled; call "
            "depthwise_conv2d, requantise, and call pointwise_conv2d"
        )
    taps = taps_of("depthwise_weight", depthwise_weight, call.dtype)
    matrix, weights = matrix_of("pointwise_weight", pointwise_weight, call.dtype)
    first = planned(
        planner.depthwise,
        call.shape,
        call.dtype,
        taps.filters,
        taps.size,
        taps.rank,
        stride=stride,
        padding=padding,
        dilation=dilation,
        padding_mode=padding_mode,
        layout=call.layout,
        activation=depthwise_activation,
        argument="depthwise_weight",
        activation_argument="depthwise_activation",
    )
    middle = (first.batch, first.filters, first.y.out, first.x.out)
    if first.layout == "NHWC":
        middle = middle[0], middle[2], middle[3], middle[1]
    second = planned(
        planner.pointwise,
        middle,
        call.dtype,
        matrix.shape,
        weights,
        layout=first.layout,
        activation=activation,
        precision=precision,
        argument="pointwise_weight",
    )
    biases = (
        bias_of("depthwise_bias", depthwise_bias, first.filters, first.compute),
        bias_of("pointwise_bias", pointwise_bias, second.outputs, second.compute),
    )
    return Both(first, second, taps, matrix, biases, None if fuse is None else bool(fuse))


def _separable(call: HostCall | DeviceCall, *arguments: Any) -> Any:
    both = plan_separable(call, *arguments)
    first, second = both.first, both.second
    matrix = cast(both.matrix, second.compute)

    def work(part: FusedPlan, image: Any, result: Any, more: dict[str, Any]) -> None:
        _run_separable(call, part, both.taps, matrix, both.biases, image, result, more)

    plan = both.planned(call.backend)
    size = first.y.out, first.x.out
    return call.compute(plan, second.outputs, size, second.output, work)


def _run_separable(
    call: HostCall | DeviceCall,
    plan: FusedPlan,
    taps: Taps,
    matrix: Array,
    biases: tuple[Array, Array],
    image: Any,
    result: Any,
    more: dict[str, Any],
) -> None:
    first = plan.depthwise
    filters = taps.of(first.compute)
    if call.backend == "cuda":
        call.module("fused").run_fused(
            plan,
            image,
            filters,
            biases[0],
            matrix,
            biases[1],
            joined(result, first.layout),
            **more,
        )
        return
    call.module("fused").run_fused(plan, image, filters, biases[0], matrix, biases[1], result)


def _separable_again(call: Call, *arguments: Any) -> tuple[repeats.Work, str]:
    """Return what a repeated call does; see ``repeats.run``."""
    both = plan_separable(call, *arguments)
    plan = both.planned("cpu")
    compute, found = plan.pointwise.compute, call.module("fused").repeated(plan)
    zeros = zeros_of(both.first.filters, compute), zeros_of(both.second.outputs, compute)
    del both

    def work(x: Array, weights: tuple[Any, ...], result: Array) -> None:
        taps, first, matrix, second = weights
        found().run(
            x, result, taps, taps, zeros[0] if first is None else first, matrix,
            zeros[1] if second is None else second,
        )  # fmt: skip

    return work, compute

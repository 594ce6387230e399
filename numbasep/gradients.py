"""Gradients of the depthwise and pointwise convolution, to train with.

Each is the exact derivative of its function, or the adjoint, for every stride, dilation, padding,
padding mode, depth multiplier and layout. float16 and bfloat16 accumulate in float32 and are
rounded once. The bits are the same in every run and for every number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbasep import channelwise, devices, nvtx, repeats
from numbasep.calls import LAST, Call, DeviceCall, HostCall, planned
from numbasep.layer_weights import Taps, joined, matrix_of, taps_of
from numbasep.plan import channelwise as planner
from numbasep.plan import checks
from numbasep.plan.channelwise import DepthwisePlan, PointwisePlan

Array = NDArray[Any]


def depthwise_input_gradient(
    grad: Any,
    weight: Any,
    shape: tuple[int, ...],
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, int] = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    out: Any = None,
    backend: str | None = None,
    stream: Any = None,
) -> Any:
    """Return the gradient of ``depthwise_conv2d`` to its input.

    Equal to ``torch.nn.grad.conv2d_input(shape, weight, grad, stride, padding, dilation,
    groups=C)``. Other padding modes than zeros add up what the padding copied.

    Parameters
    ----------
    grad : array of the shape of the convolution's result
        float32, float64, float16 or bfloat16; arrays as ``x`` of ``depthwise_conv2d``.
    weight : array of shape (C * M, 1, kh, kw) or (C, kh, kw)
        The filters, dense, in host memory.
    shape : tuple of int
        The shape of ``x``, in ``layout``.
    stride, padding, dilation, padding_mode, layout
        Those of the convolution.
    out : array, optional
        Where the result goes; may overlap ``grad``.
    backend, stream
        As for ``depthwise_conv2d``.

    Returns
    -------
    array
        Of ``grad``'s kind, layout and dtype, and of ``shape``.

    Raises
    ------
    ValueError, TypeError
        An argument is wrong; the message names it. Nothing is computed, ``out`` is untouched.
    """
    options = _shape("shape", shape), stride, padding, dilation, padding_mode
    with nvtx.range("numbasep.depthwise_input_gradient"):
        return repeats.run(
            _input_gradient, _input_gradient_again, grad, (weight,), options, layout, out, backend,
            stream, "grad",
        )  # fmt: skip


def _shape(argument: str, value: Any) -> tuple[int, ...]:
    try:
        return tuple(checks.integer(argument, size, 0) for size in value)
    except TypeError:
        raise TypeError(f"{argument}: {value!r} arrived; pass a tuple of integers") from None


def _check_float(call: Call, argument: str) -> None:
    if call.dtype == "int8":
        raise TypeError(f"{argument}: int8 arrived, which has no gradient; convert to float32")


def _plan_input(
    call: Call,
    weight: Any,
    shape: tuple[int, ...],
    stride: Any,
    padding: Any,
    dilation: Any,
    padding_mode: Any,
) -> tuple[DepthwisePlan, Taps]:
    _check_float(call, "grad")
    taps = taps_of("weight", weight, call.dtype)
    if taps.dense is None:
        raise TypeError("weight: SeparableKernels arrived; pass their dense() kernels")
    if len(shape) != len(call.shape):
        raise ValueError(
            f"shape: {shape} arrived and grad has {len(call.shape)} dimensions; pass as many"
        )
    if call.turned:
        shape = tuple(shape[axis] for axis in LAST[len(shape)])
    plan: DepthwisePlan = planned(
        planner.depthwise,
        shape,
        call.dtype,
        taps.filters,
        taps.size,
        0,
        stride=stride,
        padding=padding,
        dilation=dilation,
        padding_mode=padding_mode,
        layout=call.layout,
    )
    wanted = (plan.filters, plan.y.out, plan.x.out)
    _check_shape("grad", call, call.shape, wanted, plan.batch)
    return plan, taps


def _input_gradient(call: HostCall | DeviceCall, *arguments: Any) -> Any:
    plan, taps = _plan_input(call, *arguments)
    result = call.place(plan.channels, (plan.y.size, plan.x.size), plan.output)
    if result.size:
        call.module("depthwise_gradient").run_input_gradient(
            plan, call.image(), taps.of(plan.compute), result, **call.more
        )
    return call.finish()


def _input_gradient_again(call: Call, *arguments: Any) -> tuple[repeats.Work, str]:
    """Return what a repeated call does; see ``repeats.run``."""
    plan, taps = _plan_input(call, *arguments)
    size, gradient = (taps.filters, *taps.size), call.module("depthwise_gradient")

    def work(grad: Array, weights: tuple[Any, ...], result: Array) -> None:
        grad, result = (one if call.batched else one[None] for one in (grad, result))
        gradient.run_input_gradient(plan, grad, weights[0].reshape(size), result)

    return work, plan.compute


def _check_shape(
    argument: str,
    call: Call,
    shape: tuple[int, ...],
    wanted: tuple[int, ...],
    batch: int,
) -> None:
    """Refuse a gradient of another shape than that of the convolution's result."""
    c, h, w = wanted
    expected: tuple[int, ...] = (c, h, w) if call.layout == "NCHW" else (h, w, c)
    if call.batched:
        expected = (batch, *expected)
    if shape != expected:
        if call.turned:
            shape, expected = (
                (*one[:-3], one[-1], *one[-3:-1]) if len(one) > 2 else one
                for one in (shape, expected)
            )
        raise ValueError(
            f"{argument}: shape {shape} arrived and the convolution's result has {expected}; pass "
            "its gradient"
        )


def depthwise_weight_gradient(
    x: Any,
    grad: Any,
    size: tuple[int, int],
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, int] = 1,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    out: Any = None,
    backend: str | None = None,
    stream: Any = None,
) -> Any:
    """Return the gradient of ``depthwise_conv2d`` to its weight.

    Equal to ``torch.nn.grad.conv2d_weight(x, (C * M, 1, *size), grad, stride, padding, dilation,
    groups=C)``.

    Parameters
    ----------
    x : array
        The convolution's input: float32, float64, float16 or bfloat16.
    grad : array of the shape of the convolution's result
        Of ``x``'s library, device and dtype.
    size : (kh, kw)
        Taps of the filters.
    stride, padding, dilation, padding_mode, layout
        Those of the convolution.
    out : array, optional
        Where the result goes.
    backend, stream
        As for ``depthwise_conv2d``.

    Returns
    -------
    array
        Of ``x``'s kind and dtype, (C * M, 1, kh, kw). Zeros for an empty batch.

    Raises
    ------
    ValueError, TypeError
        An argument is wrong; the message names it. Nothing is computed, ``out`` is untouched.
    """
    options = checks.pair("size", size, 1), stride, padding, dilation, padding_mode
    with nvtx.range("numbasep.depthwise_weight_gradient"):
        return repeats.run(
            _weight_gradient, _weight_gradient_again, x, (), options, layout, out, backend, stream,
            "x", (("grad", grad),),
        )  # fmt: skip


def _seen(call: Call, argument: str, value: Any) -> tuple[int, ...]:
    """Return the shape of an image beside ``x``, in the layout that the kernels see."""
    if isinstance(call, HostCall):
        devices.refuse(argument, value, "and x is in host memory; pass a host array")
    shape = getattr(value, "shape", None)
    if shape is None or len(shape) != len(call.shape):
        got = type(value).__name__ if shape is None else f"shape {tuple(shape)}"
        raise ValueError(
            f"{argument}: {got} arrived and x has {len(call.shape)} dimensions; pass as many"
        )
    if call.turned:
        return tuple(shape[axis] for axis in LAST[len(shape)])
    return tuple(shape)


def _plan_weight(
    call: Call,
    grad: Any,
    size: tuple[int, int],
    stride: Any,
    padding: Any,
    dilation: Any,
    padding_mode: Any,
) -> DepthwisePlan:
    _check_float(call, "x")
    shape = _seen(call, "grad", grad)
    filters = shape[-3 if call.layout == "NCHW" else -1]
    channels = call.shape[-3 if call.layout == "NCHW" else -1]
    if filters == 0 or filters % channels:
        raise ValueError(
            f"grad: {filters} channels arrived and x has {channels}; pass a multiple of them"
        )
    plan: DepthwisePlan = planned(
        planner.depthwise,
        call.shape,
        call.dtype,
        filters,
        size,
        0,
        stride=stride,
        padding=padding,
        dilation=dilation,
        padding_mode=padding_mode,
        layout=call.layout,
        argument="size",
    )
    _check_shape("grad", call, shape, (filters, plan.y.out, plan.x.out), plan.batch)
    return plan


def _weight_gradient(call: HostCall | DeviceCall, grad: Any, size: Any, *options: Any) -> Any:
    plan = _plan_weight(call, grad, size, *options)
    given = call.companion("grad", grad)
    result = call.place_whole((plan.filters, 1, *size), plan.output)
    call.module("depthwise_gradient").run_weight_gradient(
        plan, call.image(), given, result.reshape((plan.filters, *size)), **call.more
    )
    return call.finish()


def _weight_gradient_again(call: Call, *arguments: Any) -> tuple[repeats.Work, str]:
    """Return what a repeated call does; see ``repeats.run``."""
    plan, gradient = _plan_weight(call, *arguments), call.module("depthwise_gradient")

    def work(x: Array, weights: tuple[Any, ...], result: Array) -> None:
        x, grad = (one if call.batched else one[None] for one in (x, weights[0]))
        gradient.run_weight_gradient(plan, x, grad, result)

    return work, plan.compute


def pointwise_input_gradient(
    grad: Any,
    weight: Any,
    *,
    layout: str = "NCHW",
    precision: str | None = None,
    out: Any = None,
    backend: str | None = None,
    stream: Any = None,
) -> Any:
    """Return the gradient of ``pointwise_conv2d`` to its input.

    Equal to ``pointwise_conv2d(grad, weight.T)``.

    Parameters
    ----------
    grad : array of the shape of the convolution's result
        float32, float64, float16 or bfloat16.
    weight : array of shape (Cout, C) or (Cout, C, 1, 1)
    layout, precision, out, backend, stream
        As for ``pointwise_conv2d``.

    Returns
    -------
    array
        Of ``grad``'s kind, layout and dtype, (N, C, H, W).

    Raises
    ------
    ValueError, TypeError
        An argument is wrong; the message names it. Nothing is computed, ``out`` is untouched.
    """
    matrix, _ = matrix_of("weight", weight, "float32")
    return channelwise.pointwise_conv2d(
        grad, _transposed(matrix, backend), layout=layout, precision=precision, out=out,
        backend=backend, stream=stream,
    )  # fmt: skip


def _transposed(matrix: Array, backend: Any) -> Array:
    flags = matrix.flags
    if (
        backend == "cuda"
        or matrix.dtype.name not in ("float32", "float64")
        or not (flags.c_contiguous and flags.aligned and matrix.dtype.isnative)
    ):
        return np.ascontiguousarray(matrix.T)
    from numbasep.cpu import turning

    # NumPy takes as long for this as the product takes.
    return turning.transposed(matrix)


def pointwise_weight_gradient(
    x: Any,
    grad: Any,
    *,
    layout: str = "NCHW",
    precision: str | None = None,
    out: Any = None,
    backend: str | None = None,
    stream: Any = None,
) -> Any:
    """Return the gradient of ``pointwise_conv2d`` to its weight.

    Equal to ``einsum("nohw,nchw->oc", grad, x)``.

    Parameters
    ----------
    x : array
        The convolution's input: float32, float64, float16 or bfloat16.
    grad : array of the shape of the convolution's result
        Of ``x``'s library, device and dtype.
    layout, precision, backend, stream
        As for ``pointwise_conv2d``; float32 is computed in float32 with "tf32" too.
    out : array, optional
        Where the result goes.

    Returns
    -------
    array
        Of ``x``'s kind and dtype, (Cout, C). Zeros for an empty batch.

    Raises
    ------
    ValueError, TypeError
        An argument is wrong; the message names it. Nothing is computed, ``out`` is untouched.
    """
    with nvtx.range("numbasep.pointwise_weight_gradient"):
        return repeats.run(
            _matrix_gradient, _matrix_gradient_again, x, (), (precision,), layout, out, backend,
            stream, "x", (("grad", grad),),
        )  # fmt: skip


def _plan_matrix(call: Call, grad: Any, precision: Any) -> PointwisePlan:
    _check_float(call, "x")
    shape = _seen(call, "grad", grad)
    outputs, channels = (one[-3 if call.layout == "NCHW" else -1] for one in (shape, call.shape))
    plan: PointwisePlan = planned(
        planner.pointwise, call.shape, call.dtype, (outputs, channels), call.dtype,
        layout=call.layout, precision=precision, argument="grad",
    )  # fmt: skip
    _check_shape("grad", call, shape, (outputs, *call.spatial), plan.batch)
    return plan


def _matrix_gradient(call: HostCall | DeviceCall, grad: Any, precision: Any) -> Any:
    plan = _plan_matrix(call, grad, precision)
    given = call.companion("grad", grad)
    result = call.place_whole((plan.outputs, plan.channels), plan.output)
    call.module("pointwise_gradient").run_weight_gradient(
        plan,
        joined(call.image(), plan.layout),
        joined(given, plan.layout),
        result,
        **call.more,
    )
    return call.finish()


def _matrix_gradient_again(call: Call, *arguments: Any) -> tuple[repeats.Work, str]:
    """Return what a repeated call does; see ``repeats.run``."""
    plan, gradient = _plan_matrix(call, *arguments), call.module("pointwise_gradient")

    def work(x: Array, weights: tuple[Any, ...], result: Array) -> None:
        x, grad = (
            joined(one if call.batched else one[None], plan.layout) for one in (x, weights[0])
        )
        gradient.run_weight_gradient(plan, x, grad, result)

    return work, plan.compute


def bias_gradient(
    grad: Any,
    *,
    layout: str = "NCHW",
    out: Any = None,
    backend: str | None = None,
    stream: Any = None,
) -> Any:
    """Return the gradient of either convolution to its bias.

    Equal to ``grad.sum((0, 2, 3))`` in NCHW.

    Parameters
    ----------
    grad : array of the shape of the convolution's result
        float32, float64, float16 or bfloat16.
    layout, backend, stream
        As for ``depthwise_conv2d``.
    out : array, optional
        Where the result goes.

    Returns
    -------
    array
        Of ``grad``'s kind and dtype, (channels,). Zeros for an empty batch.

    Raises
    ------
    ValueError, TypeError
        An argument is wrong; the message names it. Nothing is computed, ``out`` is untouched.
    """
    with nvtx.range("numbasep.bias_gradient"):
        return repeats.run(
            _bias_gradient, _bias_gradient_again, grad, (), (), layout, out, backend, stream, "grad"
        )


def _plan_bias(call: Call) -> DepthwisePlan:
    _check_float(call, "grad")
    channels = call.shape[-3 if call.layout == "NCHW" else -1]
    plan: DepthwisePlan = planned(
        planner.depthwise, call.shape, call.dtype, channels, (1, 1), 0, layout=call.layout
    )
    return plan


def _bias_gradient(call: HostCall | DeviceCall) -> Any:
    plan = _plan_bias(call)
    result = call.place_whole((plan.filters,), plan.output)
    call.module("depthwise_gradient").run_weight_gradient(
        plan, None, call.image(), result.reshape((plan.filters, 1, 1)), **call.more
    )
    return call.finish()


def _bias_gradient_again(call: Call) -> tuple[repeats.Work, str]:
    """Return what a repeated call does; see ``repeats.run``."""
    plan, gradient = _plan_bias(call), call.module("depthwise_gradient")

    def work(grad: Array, _: tuple[Any, ...], result: Array) -> None:
        gradient.run_weight_gradient(plan, None, grad, result)

    return work, plan.compute

"""Depthwise and pointwise convolution, and both: the channelwise functions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbasep import arrays, devices, lazy, nvtx, repeats
from numbasep.calls import Call, DeviceCall, HostCall
from numbasep.factorise import SeparableKernel
from numbasep.plan import channelwise as planner
from numbasep.plan import checks
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
    taps = _depthwise_weight("weight", weight, call.dtype)
    plan = _planned(
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
    return plan, taps, _bias("bias", bias, plan.filters, plan.compute)


def _depthwise(call: HostCall | DeviceCall, *arguments: Any) -> Any:
    plan, taps, bias = plan_depthwise(call, *arguments)
    result = call.place(plan.filters, (plan.y.out, plan.x.out), plan.output)
    if result.size:
        call.module("depthwise").run_depthwise(
            plan, call.image(), taps.of(plan.compute), bias, result, **call.more
        )
    return call.finish()


def _depthwise_again(call: Call, *arguments: Any) -> tuple[repeats.Work, str]:
    """Return what a repeated call does; see ``repeats.run``."""
    plan, taps, _ = plan_depthwise(call, *arguments)
    size, zeros = (taps.filters, *taps.size), _zeros(plan.filters, plan.compute)
    depthwise = call.module("depthwise")

    def work(x: Array, weights: tuple[Any, ...], result: Array) -> None:
        weight, bias = weights
        depthwise.run_depthwise(
            plan, x, weight.reshape(size), zeros if bias is None else bias, result
        )

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
    matrix, weights = _pointwise_weight("weight", weight, call.dtype)
    plan = _planned(
        planner.pointwise,
        call.shape,
        call.dtype,
        matrix.shape,
        weights,
        layout=call.layout,
        activation=activation,
        precision=precision,
    )
    return plan, matrix, _bias("bias", bias, plan.outputs, plan.compute)


def _pointwise(call: HostCall | DeviceCall, *arguments: Any) -> Any:
    plan, matrix, bias = plan_pointwise(call, *arguments)
    result = call.place(plan.outputs, call.spatial, plan.output)
    if result.size:
        call.module("pointwise").run_pointwise(
            plan,
            _joined(call.image(), plan.layout),
            _cast(matrix, plan.compute),
            bias,
            _joined(result, plan.layout),
            **call.more,
        )
    return call.finish()


def _pointwise_again(call: Call, *arguments: Any) -> tuple[repeats.Work, str]:
    """Return what a repeated call does; see ``repeats.run``."""
    plan, _, _ = plan_pointwise(call, *arguments)
    pointwise, zeros = call.module("pointwise"), _zeros(plan.outputs, plan.compute)

    def work(x: Array, weights: tuple[Any, ...], result: Array) -> None:
        weight, bias = weights
        pointwise.run_pointwise(plan, x, weight, zeros if bias is None else bias, result)

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
    taps = _depthwise_weight("depthwise_weight", depthwise_weight, call.dtype)
    matrix, weights = _pointwise_weight("pointwise_weight", pointwise_weight, call.dtype)
    first = _planned(
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
    second = _planned(
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
        _bias("depthwise_bias", depthwise_bias, first.filters, first.compute),
        _bias("pointwise_bias", pointwise_bias, second.outputs, second.compute),
    )
    return Both(first, second, taps, matrix, biases, None if fuse is None else bool(fuse))


def _separable(call: HostCall | DeviceCall, *arguments: Any) -> Any:
    both = plan_separable(call, *arguments)
    first, second = both.first, both.second
    result = call.place(second.outputs, (first.y.out, first.x.out), second.output)
    if result.size:
        plan = planner.separable(first, second, both.fuse, call.backend)
        matrix = _cast(both.matrix, second.compute)
        _run_separable(call, plan, both.taps, matrix, both.biases, result)
    return call.finish()


def _planned(make: Any, *seen: Any, **options: Any) -> Any:
    """Return a plan, from the cache where there is one: to make it costs as much as a small image.

    The options' types are part of the key: 1, 1.0 and True are equal, and not equally right.
    """
    values = tuple(options.values())
    try:
        return _kept(make, seen, tuple(options), values, checks.types(values))
    except TypeError:
        # Something without a hash: a list, or an option that the checks refuse.
        return make(*seen, **options)


@lru_cache(maxsize=1024)
def _kept(make: Any, seen: Any, names: Any, values: Any, kinds: Any) -> Any:
    return make(*seen, **dict(zip(names, values, strict=True)))


def _run_separable(
    call: HostCall | DeviceCall,
    plan: FusedPlan,
    taps: Taps,
    matrix: Array,
    biases: tuple[Array, Array],
    result: Any,
) -> None:
    first = plan.depthwise
    image = call.image()
    filters = taps.of(first.compute)
    if call.backend == "cuda":
        call.module("fused").run_fused(
            plan,
            image,
            filters,
            biases[0],
            matrix,
            biases[1],
            _joined(result, first.layout),
            **call.more,
        )
        return
    _on_cpu(call, plan, image, filters, matrix, biases, result)


def _on_cpu(
    call: Call,
    plan: FusedPlan,
    image: Any,
    filters: Any,
    matrix: Array,
    biases: tuple[Array, Array],
    result: Any,
) -> None:
    """Fused, or one after the other."""
    if plan.fused:
        call.module("fused").run_fused(plan, image, filters, biases[0], matrix, biases[1], result)
        return
    first, second = plan.depthwise, plan.pointwise
    middle = np.empty((first.batch, first.filters, first.y.out * first.x.out), image.dtype)
    call.module("depthwise").run_depthwise(first, image, filters, biases[0], middle)
    call.module("pointwise").run_pointwise(second, middle, matrix, biases[1], result)


def _separable_again(call: Call, *arguments: Any) -> tuple[repeats.Work, str]:
    """Return what a repeated call does; see ``repeats.run``."""
    both = plan_separable(call, *arguments)
    plan = planner.separable(both.first, both.second, both.fuse, call.backend)
    compute = plan.pointwise.compute
    size = (both.taps.filters, *both.taps.size)
    zeros = _zeros(both.first.filters, compute), _zeros(both.second.outputs, compute)
    del both

    def work(x: Array, weights: tuple[Any, ...], result: Array) -> None:
        taps, first, matrix, second = weights
        biases = zeros[0] if first is None else first, zeros[1] if second is None else second
        _on_cpu(call, plan, x, taps.reshape(size), matrix, biases, result)

    return work, compute


def _joined(array: Any, layout: str) -> Any:
    """Return a view whose rows and columns are one axis of pixels."""
    n, a, b, c = array.shape
    return array.reshape((n, a, b * c) if layout == "NCHW" else (n, a * b, c))


class Taps:
    """Depthwise weights: dense (filters, kh, kw), or the factors of each filter."""

    def __init__(self, dense: Array | None, columns: Array | None, rows: Array | None) -> None:
        self.dense, self.columns, self.rows = dense, columns, rows
        if dense is not None:
            self.filters, self.size, self.rank = len(dense), dense.shape[1:], 0
        else:
            assert columns is not None
            assert rows is not None
            self.filters, self.rank, high = columns.shape
            self.size = high, rows.shape[2]

    def of(self, compute: str) -> Any:
        """Return what the kernels take."""
        if self.dense is not None:
            return _cast(self.dense, compute)
        assert self.columns is not None
        assert self.rows is not None
        return _cast(self.columns, compute), _cast(self.rows, compute)


def _cast(values: Array, compute: str) -> Array:
    return np.ascontiguousarray(values, compute)


def _adopted(argument: str, value: Any, dtype: str) -> Array:
    """Return weights or a bias whose dtype suits the image's."""
    if isinstance(value, (list, tuple)):
        try:
            value = np.asarray(value, np.float64 if dtype != "int8" else None)
        except (TypeError, ValueError):
            raise TypeError(
                f"{argument}: a {type(value).__name__} arrived that is no array of numbers, or a "
                "ragged one; pass an array of one shape"
            ) from None
    devices.refuse(argument, value, "; pass it as a host array, which is kept on the device")
    array, _ = arrays.adopt(argument, value)
    name = checks.dtype(argument, array.dtype)
    if dtype == "int8":
        allowed = ("int8", "int32") if "bias" in argument else ("int8",)
        if name not in allowed:
            raise TypeError(
                f"{argument}: dtype {name} arrived and x is int8; pass {' or '.join(allowed)}, or "
                "convert x to float32"
            )
    elif name.startswith("complex"):
        raise TypeError(f"{argument}: dtype {name} arrived; pass real numbers")
    return array


def _depthwise_weight(argument: str, weight: Any, dtype: str) -> Taps:
    stack = isinstance(weight, (list, tuple)) and len(weight) > 0
    if stack and all(isinstance(one, SeparableKernel) for one in weight):
        sizes = {one.shape[-2:] for one in weight}
        if len(sizes) > 1:
            raise ValueError(
                f"{argument}: kernels of shapes {', '.join(map(str, sorted(sizes)))} arrived; pass "
                "kernels of one size"
            )
        ranks = max((len(one.columns) for one in weight if one.columns.ndim == 2), default=0)
        sides = [
            np.stack([_padded(argument, getattr(one, side), ranks) for one in weight])
            for side in ("columns", "rows")
        ]
        return _factors(argument, sides[0], sides[1], dtype)
    if isinstance(weight, SeparableKernel):
        return _factors(argument, weight.columns, weight.rows, dtype)
    array = _adopted(argument, weight, dtype)
    if array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    elif array.ndim != 3:
        raise ValueError(
            f"{argument}: shape {array.shape} arrived; pass (C * M, 1, kh, kw), (C, kh, kw), or "
            "SeparableKernels"
        )
    return Taps(array, None, None)


def _padded(argument: str, taps: Array, rank: int) -> Array:
    """Return one filter's taps with terms of zeros up to a rank."""
    if taps.ndim != 2:
        raise ValueError(
            f"{argument}: a sequence with a stack of kernels of shape {taps.shape[:-2]} arrived; "
            "pass the stack itself, or single ones"
        )
    return np.pad(taps, ((0, rank - len(taps)), (0, 0)))


def _factors(argument: str, columns: Array, rows: Array, dtype: str) -> Taps:
    if columns.ndim == 4 and columns.shape[1] == 1:
        columns, rows = columns[:, 0], rows[:, 0]
    if columns.ndim != 3:
        raise ValueError(
            f"{argument}: kernels of shape {columns.shape[:-2]} arrived; pass a stack (C * M,) or "
            "(C * M, 1), as factorise makes of such weights"
        )
    if columns.dtype.kind == "c":
        raise TypeError(f"{argument}: complex factors arrived; pass real ones")
    if dtype == "int8":
        if columns.dtype.kind != "i":
            raise TypeError(
                f"{argument}: {columns.dtype} factors arrived and x is int8; pass integer ones "
                "(factorise of an integer kernel), or convert x to float32"
            )
        # Sums modulo 2**32 are exact when the whole sum fits; factors are taken modulo it too.
        gain = np.einsum("fri,frj->f", np.abs(columns).astype(object), np.abs(rows).astype(object))
        if max(gain, default=0) * 128 >= 2**31:
            raise ValueError(f"{argument}: the sums of int8 values could exceed int32; use float32")
    if columns.shape[1] == 0:
        # Zero kernels: one term of zeros.
        columns = np.zeros((len(columns), 1, columns.shape[2]), columns.dtype)
        rows = np.zeros((len(rows), 1, rows.shape[2]), rows.dtype)
    return Taps(None, columns, rows)


def _pointwise_weight(argument: str, weight: Any, dtype: str) -> tuple[Array, str]:
    """Return the matrix (Cout, C) and its dtype's name."""
    array = _adopted(argument, weight, dtype)
    if array.ndim == 4 and array.shape[2:] == (1, 1):
        array = array[:, :, 0, 0]
    elif array.ndim != 2:
        raise ValueError(
            f"{argument}: shape {array.shape} arrived; pass (Cout, C) or (Cout, C, 1, 1)"
        )
    return array, checks.dtype(argument, array.dtype)


@lru_cache(maxsize=64)
def _zeros(count: int, compute: str) -> Array:
    zeros = np.zeros(count, compute)
    zeros.flags.writeable = False
    return zeros


def _bias(argument: str, bias: Any, count: int, compute: str) -> Array:
    """Return a bias in the compute dtype, zeros for None."""
    if bias is None:
        return _zeros(count, compute)
    array = _adopted(argument, bias, "int8" if compute == "int32" else compute)
    if array.shape != (count,):
        raise ValueError(f"{argument}: shape {array.shape} arrived; pass ({count},)")
    return _cast(array, compute)

"""Weights and biases of layers, as the kernels take them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbasep import arrays, devices
from numbasep.factorise import SeparableKernel
from numbasep.plan import checks

Array = NDArray[Any]


def joined(array: Any, layout: str) -> Any:
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
            return cast(self.dense, compute)
        assert self.columns is not None
        assert self.rows is not None
        return cast(self.columns, compute), cast(self.rows, compute)


def cast(values: Array, compute: str) -> Array:
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


def taps_of(argument: str, weight: Any, dtype: str) -> Taps:
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


def matrix_of(argument: str, weight: Any, dtype: str) -> tuple[Array, str]:
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
def zeros_of(count: int, compute: str) -> Array:
    zeros = np.zeros(count, compute)
    zeros.flags.writeable = False
    return zeros


def bias_of(argument: str, bias: Any, count: int, compute: str) -> Array:
    """Return a bias in the compute dtype, zeros for None."""
    if bias is None:
        return zeros_of(count, compute)
    array = _adopted(argument, bias, "int8" if compute == "int32" else compute)
    if array.shape != (count,):
        raise ValueError(f"{argument}: shape {array.shape} arrived; pass ({count},)")
    return cast(array, compute)

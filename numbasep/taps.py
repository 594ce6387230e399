"""What a caller may give as a kernel, as taps that the kernels can take."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbasep import devices
from numbasep.factorise import SeparableKernel, factorise
from numbasep.plan.spatial import TapsInfo

Array = NDArray[Any]

REMEDY = (
    "pass a SeparableKernel (from numbasep.factorise), a pair (column_taps, row_taps) of 1-D "
    "arrays, or a dense 2-D array"
)


@dataclass(frozen=True, eq=False)
class Taps:
    """A kernel ready to be planned: factors, or the dense kernel where that is cheaper.

    columns, rows: (R, kh) and (R, kw) factors, int64, float64 or complex128; None where ``dense``.
    dense: (kh, kw) coefficients that are convolved directly.
    error: the promised output error of the factors, relative to ``sum|K| * max|x|``.
    """

    columns: Array | None
    rows: Array | None
    dense: Array | None
    error: float

    @cached_property
    def shape(self) -> tuple[int, int]:
        if self.dense is not None:
            return self.dense.shape[0], self.dense.shape[1]
        assert self.columns is not None
        assert self.rows is not None
        return self.columns.shape[1], self.rows.shape[1]

    @property
    def direct(self) -> bool:
        return self.dense is not None

    @cached_property
    def rank(self) -> int:
        return 0 if self.columns is None else len(self.columns)

    @property
    def transposed(self) -> Taps:
        """The taps of the transposed kernel."""
        dense = None if self.dense is None else self.dense.T
        return Taps(self.rows, self.columns, dense, self.error)

    @cached_property
    def kind(self) -> str:
        """``i`` (exact integers), ``f`` or ``c``."""
        arrays = [a for a in (self.columns, self.rows, self.dense) if a is not None]
        return np.result_type(*arrays).kind

    @cached_property
    def info(self) -> TapsInfo:
        """What a plan knows of the taps."""
        return TapsInfo(
            self.shape, self.rank, self.direct, self.kind, self.gain if self.kind == "i" else 0
        )

    @cached_property
    def gain(self) -> int:
        """The most that integer taps can multiply ``max|x|`` by, in any intermediate sum."""
        if self.dense is not None:
            return sum(abs(int(tap)) for tap in self.dense.flat)
        assert self.columns is not None
        assert self.rows is not None
        columns = [sum(abs(int(tap)) for tap in taps) for taps in self.columns]
        rows = [sum(abs(int(tap)) for tap in taps) for taps in self.rows]
        # The same for the transposed kernel: either pass may be the first.
        return max(sum(c * r for c, r in zip(columns, rows, strict=True)), *columns, *rows, 1)

    @cached_property
    def _prepared(self) -> dict[tuple[str, bool], tuple[Array, ...]]:
        return {}

    def prepared(self, compute: str, swapped: bool) -> tuple[Array, ...]:
        """Return flipped taps in the accumulator's dtype: ``(columns, rows)`` or ``(dense,)``.

        swapped: the image's axes change roles, so the taps do.
        """
        key = compute, swapped
        if key not in self._prepared:
            if self.dense is not None:
                arrays: tuple[Array, ...] = ((self.dense.T if swapped else self.dense)[::-1, ::-1],)
            else:
                assert self.columns is not None
                assert self.rows is not None
                pair = (self.rows, self.columns) if swapped else (self.columns, self.rows)
                arrays = tuple(taps[:, ::-1] for taps in pair)
            with np.errstate(over="ignore"):
                arrays = tuple(np.ascontiguousarray(taps, dtype=compute) for taps in arrays)
            if not all(np.isfinite(taps).all() for taps in arrays):
                raise ValueError(
                    f"kernel: a tap is too large for {compute}, in which this image is computed; "
                    "scale the kernel, or pass dtype='float64'"
                )
            for taps in arrays:
                taps.flags.writeable = False
            self._prepared[key] = arrays
        return self._prepared[key]


@lru_cache(maxsize=256)
def _from_pair(columns: _Frozen, rows: _Frozen) -> Taps:
    try:
        factors = SeparableKernel.from_taps(columns.array(), rows.array())
    except (TypeError, ValueError) as error:
        raise type(error)(f"kernel: {error}") from None
    return _from_separable(factors)


@lru_cache(maxsize=64)
def _from_dense(kernel: _Frozen) -> Taps:
    dense = kernel.array()
    factors = factorise(dense)
    whole = dense.dtype.kind in "iu"
    if not factors.worth_separating or (whole and factors.dtype.kind != "i"):
        wide = np.int64 if whole else factors.dtype
        return Taps(None, None, dense.astype(wide), 0.0)
    return Taps(factors.columns, factors.rows, None, factors.error)


@lru_cache(maxsize=64)
def _from_separable(kernel: SeparableKernel) -> Taps:
    if kernel.columns.ndim != 2:
        raise ValueError(
            f"kernel: a stack of kernels of shape {kernel.shape} arrived; pass one of them"
        )
    return Taps(kernel.columns, kernel.rows, None, kernel.error)


@dataclass(frozen=True, slots=True)
class _Frozen:
    """An array's values as a dictionary key."""

    data: bytes
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, value: Any) -> _Frozen:
        devices.refuse("kernel", value, "; pass its taps as a host array")
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError("kernel: a masked array arrived; fill it first with .filled(0)")
        try:
            array = np.asarray(value)
        except ValueError:
            raise ValueError(f"kernel: a ragged {type(value).__name__} arrived; {REMEDY}") from None
        if array.dtype.kind in "OSUVMm" and array.dtype.name != "bfloat16":
            raise TypeError(
                f"kernel: an array of dtype {array.dtype}, shape {array.shape} arrived; {REMEDY}"
            )
        return cls(array.tobytes(), array.dtype, array.shape)

    def array(self) -> Array:
        return np.frombuffer(self.data, self.dtype).reshape(self.shape)


def key(kernel: object) -> Hashable:
    """Return what tells a kernel's taps from others, faster than resolving them."""
    if type(kernel) is tuple and len(kernel) == 2:
        columns, rows = kernel
        if type(columns) is np.ndarray and type(rows) is np.ndarray:
            return (
                columns.dtype,
                columns.shape,
                columns.tobytes(),
                rows.dtype,
                rows.shape,
                rows.tobytes(),
            )
    if type(kernel) is np.ndarray:
        return kernel.dtype, kernel.shape, kernel.tobytes()
    return resolve(kernel)


def resolve(kernel: object) -> Taps:
    """Return the taps of anything that ``separable_conv2d`` takes as a kernel."""
    if isinstance(kernel, Taps):
        return kernel
    if isinstance(kernel, SeparableKernel):
        return _from_separable(kernel)
    if isinstance(kernel, list) and len(kernel) == 2:
        raise TypeError(
            "kernel: a list of two arrived, which could be two rows of a dense kernel or a pair of "
            "taps; pass numpy.array(...) for the first, a tuple for the second"
        )
    if isinstance(kernel, tuple) and len(kernel) == 2:
        return _from_pair(_Frozen.of(kernel[0]), _Frozen.of(kernel[1]))
    if kernel is None or isinstance(kernel, (str, bytes, dict, set)):
        shown = repr(kernel) if isinstance(kernel, str) else type(kernel).__name__
        raise TypeError(f"kernel: got {shown}; {REMEDY}")
    frozen = _Frozen.of(kernel)
    if len(frozen.shape) != 2:
        raise ValueError(f"kernel: got shape {frozen.shape}; {REMEDY}")
    return _from_dense(frozen)

"""What a caller may give as a kernel, as taps that the kernels can take."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numbasep.factorise import SeparableKernel, factorise
from numpy.typing import NDArray

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

    @cached_property
    def kind(self) -> str:
        """``i`` (exact integers), ``f`` or ``c``."""
        arrays = [a for a in (self.columns, self.rows, self.dense) if a is not None]
        return np.result_type(*arrays).kind

    @cached_property
    def gain(self) -> int:
        """The most that integer taps can multiply ``max|x|`` by, in any intermediate sum."""
        if self.dense is not None:
            return sum(abs(int(tap)) for tap in self.dense.flat)
        assert self.columns is not None
        assert self.rows is not None
        columns = [sum(abs(int(tap)) for tap in taps) for taps in self.columns]
        rows = [sum(abs(int(tap)) for tap in taps) for taps in self.rows]
        return max(
            sum(c * r for c, r in zip(columns, rows, strict=True)), max(columns, default=0), 1
        )

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


def _taps_1d(name: str, value: object) -> Array:
    try:
        taps = np.asarray(value)
    except ValueError:
        raise ValueError(f"{name}: {value!r} is ragged; pass a 1-D array of numbers") from None
    if taps.ndim not in (1, 2) or taps.size == 0:
        raise ValueError(
            f"{name}: got shape {taps.shape}; pass (k,) taps, or (R, k) for a sum of R terms"
        )
    return _numbers(name, np.atleast_2d(taps))


def _numbers(name: str, taps: Array) -> Array:
    """Return taps as int64, float64 or complex128, finite."""
    kind = "f" if taps.dtype.name == "bfloat16" else taps.dtype.kind
    if kind in "iu":
        if taps.dtype.kind == "u" and taps.size and int(taps.max()) > np.iinfo(np.int64).max:
            raise ValueError(f"{name}: {taps.max()} exceeds int64; scale the taps")
        return taps.astype(np.int64)
    if kind not in "fc" or taps.dtype.itemsize > (16 if kind == "c" else 8):
        raise TypeError(
            f"{name}: dtype {taps.dtype} is not supported; convert to int64, float64 or complex128"
        )
    if not np.isfinite(taps.astype(np.complex128)).all():
        raise ValueError(f"{name}: a tap is NaN or infinite; remove it before filtering")
    return taps.astype(np.complex128 if kind == "c" else np.float64)


def _factored(columns: Array, rows: Array) -> Taps:
    """Factors of one kind: exact integers only where both sides are."""
    kind = np.result_type(columns, rows)
    return Taps(columns.astype(kind), rows.astype(kind), None, 0.0)


@lru_cache(maxsize=256)
def _from_pair(columns: _Frozen, rows: _Frozen) -> Taps:
    c, r = _taps_1d("kernel[0]", columns.array()), _taps_1d("kernel[1]", rows.array())
    if len(c) != len(r):
        raise ValueError(
            f"kernel: {len(c)} column taps and {len(r)} row taps; a sum of R terms needs R of each"
        )
    return _factored(c, r)


@lru_cache(maxsize=64)
def _from_dense(kernel: _Frozen) -> Taps:
    dense = kernel.array()
    factors = factorise(dense)
    exact = _numbers("kernel", np.asarray(dense))
    lost = exact.dtype.kind == "i" and factors.columns.dtype.kind != "i"
    if lost or not factors.worth_separating:
        return Taps(None, None, exact, 0.0)
    return Taps(factors.columns, factors.rows, None, float(factors.error))


@dataclass(frozen=True, slots=True)
class _Frozen:
    """An array's values as a dictionary key."""

    data: bytes
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, value: object) -> _Frozen:
        try:
            array = np.asarray(value)
        except ValueError:
            raise ValueError(f"{name}: {value!r} is ragged; {REMEDY}") from None
        foreign = array.dtype.kind in "OSUVMm" and array.dtype.name != "bfloat16"
        if foreign:
            raise TypeError(f"{name}: got {value!r} of dtype {array.dtype}; {REMEDY}")
        return cls(array.tobytes(), array.dtype, array.shape)

    def array(self) -> Array:
        return np.frombuffer(self.data, self.dtype).reshape(self.shape)


def resolve(kernel: object) -> Taps:
    """Return the taps of anything that ``separable_conv2d`` takes as a kernel."""
    if isinstance(kernel, SeparableKernel):
        if kernel.columns.ndim != 2:
            raise ValueError(
                f"kernel: a stack of kernels {kernel.columns.shape[:-2]} arrived; index one of them"
            )
        return _from_separable(kernel)
    if isinstance(kernel, list) and len(kernel) == 2:
        raise TypeError(
            f"kernel: {kernel!r} is a list of two, which could be two rows of a dense kernel or a "
            "pair of taps; pass numpy.array(...) for the first, a tuple for the second"
        )
    if isinstance(kernel, tuple) and len(kernel) == 2:
        return _from_pair(_Frozen.of("kernel[0]", kernel[0]), _Frozen.of("kernel[1]", kernel[1]))
    if kernel is None or isinstance(kernel, (str, bytes, dict, set)):
        raise TypeError(f"kernel: got {kernel!r} of type {type(kernel).__name__}; {REMEDY}")
    frozen = _Frozen.of("kernel", kernel)
    if len(frozen.shape) != 2:
        raise ValueError(f"kernel: got shape {frozen.shape}; {REMEDY}")
    return _from_dense(frozen)


@lru_cache(maxsize=64)
def _from_separable(kernel: SeparableKernel) -> Taps:
    taps = _factored(np.asarray(kernel.columns), np.asarray(kernel.rows))
    return Taps(taps.columns, taps.rows, None, float(kernel.error))

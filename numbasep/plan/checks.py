"""Checks of single arguments, shared by every public function: each error names the argument,
what arrived and what to do."""

from __future__ import annotations

import difflib
import math
import numbers
import operator
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
FLOATS = ("float16", "bfloat16", "float32", "float64")
COMPLEXES = ("complex64", "complex128")
DTYPES = INTEGERS + FLOATS + COMPLEXES


def choice(argument: str, value: object, options: Sequence[str]) -> str:
    """Return ``value`` if it is one of ``options``; suggest the nearest one otherwise."""
    if not isinstance(value, str):
        raise TypeError(
            f"{argument}: expected a string, got {value!r} of type {type(value).__name__}; "
            f"choose one of {', '.join(map(repr, options))}"
        )
    if value in options:
        return value
    near = difflib.get_close_matches(value.lower(), options, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "choose one of them"
    raise ValueError(f"{argument}: {value!r} is not one of {', '.join(map(repr, options))}; {hint}")


def integer(argument: str, value: object, minimum: int | None = None) -> int:
    """Return ``value`` as an int; booleans and floats are refused."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{argument}: expected an integer, got {value!r}; pass a number")
    try:
        result = operator.index(value)  # type: ignore[arg-type]  # refused below
    except TypeError:
        raise TypeError(
            f"{argument}: expected an integer, got {value!r} of type {type(value).__name__}; "
            "convert it with int() if that is meant"
        ) from None
    if minimum is not None and result < minimum:
        raise ValueError(f"{argument}: got {result}; pass an integer of at least {minimum}")
    return result


def pair(argument: str, value: object, minimum: int | None = None) -> tuple[int, int]:
    """Return one integer, or a pair of integers (vertical, horizontal), as a pair."""
    if isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (str, bytes)):
        items = list(value)
        if len(items) != 2:
            raise ValueError(
                f"{argument}: got {len(items)} values, {value!r}; pass one integer or two "
                "(vertical, horizontal)"
            )
        first, second = (integer(argument, item, minimum) for item in items)
        return first, second
    single = integer(argument, value, minimum)
    return single, single


def axes(argument: str, value: object, ndim: int) -> tuple[int, int]:
    """Return two different axes of an ``ndim``-dimensional array, counted from its front."""
    if not isinstance(value, (Sequence, np.ndarray)) or isinstance(value, (str, bytes)):
        raise TypeError(
            f"{argument}: expected two integers, got {value!r}; pass (vertical axis, horizontal "
            "axis), for example (-2, -1)"
        )
    first, second = pair(argument, value)
    for axis in (first, second):
        if not -ndim <= axis < ndim:
            raise ValueError(
                f"{argument}: {axis} is not an axis of an array of {ndim} dimensions; pass two of "
                f"{-ndim} to {ndim - 1}"
            )
    first, second = first % ndim, second % ndim
    if first == second:
        raise ValueError(f"{argument}: {value!r} names one axis twice; pass two different axes")
    return first, second


def types(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the types of values, and of their items, for keys: 1, 1.0 and True are equal."""
    return tuple([tuple(map(type, v)) if type(v) is tuple else type(v) for v in values])


@lru_cache(maxsize=256)
def name_of(dtype: np.dtype[Any]) -> str:
    """Return a dtype's name, which NumPy composes anew each time."""
    return str(dtype.name)


def dtype(argument: str, value: Any, options: Sequence[str] = DTYPES) -> str:
    """Return the name of a dtype that the kernels take."""
    if value is None:
        raise TypeError(f"{argument}: got None; pass a dtype such as 'float32'")
    try:
        name = name_of(np.dtype(value))
    except TypeError:
        if isinstance(value, str):
            return choice(argument, value, options)
        raise TypeError(
            f"{argument}: {value!r} is not a dtype; pass one of {', '.join(options)}"
        ) from None
    if name not in options:
        raise TypeError(
            f"{argument}: dtype {name} is not supported; convert to one of {', '.join(options)}"
        )
    return name


def scalar(argument: str, value: object) -> complex | float | int:
    """Return a Python number; arrays with more than one element and non-numbers are refused."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (numbers.Complex, np.generic)):
        raise TypeError(
            f"{argument}: expected a number, got {value!r} of type {type(value).__name__}; "
            "pass one number"
        )
    if isinstance(value, numbers.Integral):
        return int(value)
    number = complex(value)
    if isinstance(value, (complex, np.complexfloating)) and (
        number.imag != 0 or math.isnan(number.imag)
    ):
        return number
    return number.real

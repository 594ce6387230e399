"""The activations of ``numbasep.plan.channelwise.ACTIVATIONS``, for the end of a kernel.

Comparisons are false for NaN, which so stays NaN.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from numbasep.cuda.elements import multiply_add, narrow
from numbasep.cuda.launch import device_function
from numbasep.cuda.primitives import erf, exp


@lru_cache
def activate(name: str, compute: str) -> Any:
    """Return ``activation(value) -> value`` in the compute dtype; int32 knows relu and relu6."""
    kind = np.dtype(compute).type
    nothing, six, one = kind(0), kind(6), kind(1)
    three = kind(3)

    if name == "relu":
        return device_function(lambda x: nothing if x < nothing else x)
    if name == "relu6":
        return device_function(lambda x: nothing if x < nothing else (six if six < x else x))
    if name == "silu":
        return device_function(lambda x: x / (one + exp(-x)))
    if name == "hardswish":

        def hardswish(x: Any) -> Any:
            ramp = x + three
            ramp = nothing if ramp < nothing else (six if six < ramp else ramp)
            return x * ramp / six

        return device_function(hardswish)
    if name == "gelu":
        half, root = kind(0.5), kind(2**-0.5)
        return device_function(lambda x: x * half * (one + erf(x * root)))
    return device_function(lambda x: x)


@lru_cache
def biased(name: str, compute: str) -> Any:
    """Return ``finish(total, bias) -> activation(total + bias)`` in the compute dtype."""
    activation, add = activate(name, compute), multiply_add(compute)
    one = np.dtype(compute).type(1)
    return device_function(lambda total, bias: activation(add(total, one, bias)))


@lru_cache
def epilogue(name: str, compute: str, output: str) -> Any:
    """Return ``finish(total, bias) -> raw``: ``biased``, rounded once into the output dtype."""
    finish, convert = biased(name, compute), narrow(compute, output)
    return device_function(lambda total, bias: convert(finish(total, bias)))

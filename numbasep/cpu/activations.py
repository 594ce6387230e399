"""Activations of vectors, as LLVM instructions; ``e`` is a ``blocks.Emitter`` of floats.

To call the C library's functions for one element after the other took up to 40 times as long as the
convolution before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir

from numbasep.cpu.simd import FLOAT, I32, I64

NONE, SILU, HARDSWISH, GELU, RELU, RELU6 = range(6)
# Those whose slope ``sloped`` knows.
SLOPES = {"relu": RELU, "relu6": RELU6, "silu": SILU, "hardswish": HARDSWISH, "gelu": GELU}


@dataclass(frozen=True)
class Format:
    """What the exponential has to know of floats.

    bits of the mantissa, bias of the exponent; where the result is zero and where it is infinite;
    the degree of Taylor's polynomial, whose error on [-log(2) / 2, log(2) / 2], at most
    ``(log(2) / 2) ** (degree + 1) / factorial(degree + 1)`` of the result, is an eighth of a
    rounding's and less.
    """

    integer: Any
    mantissa: int
    bias: int
    low: float
    high: float
    degree: int


FORMATS = {
    "float32": Format(I32, 23, 127, -104.0, 89.0, 7),
    "float64": Format(I64, 52, 1023, -746.0, 710.0, 13),
}
# log(2) in two parts: the first is rounded, the second is what is left.
LOG2 = {
    "float32": (float(np.float32(math.log(2))), math.log(2) - float(np.float32(math.log(2)))),
    # The digits that float64 leaves: log(2) = 0.693147180559945309417232121458176568...
    "float64": (math.log(2), 2.319046813846299558e-17),
}

# erf(x) = 1 - (a1 t + ... + a5 t**5) exp(-x**2) for x >= 0, t = 1 / (1 + p x), within 1.5e-7:
# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
ERF_P = 0.3275911
ERF_A = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def activate(e: Any, x: Any, activation: int) -> Any:
    """Return the activation of a vector."""
    b, one = e.b, e.fill(1.0)
    if activation == SILU:
        return b.fdiv(x, b.fadd(one, exponential(e, b.fneg(x))))
    if activation == HARDSWISH:
        ramp = b.fadd(x, e.fill(3.0))
        ramp = b.select(e.below(ramp, e.fill(0.0)), e.fill(0.0), ramp)
        ramp = b.select(e.below(e.fill(6.0), ramp), e.fill(6.0), ramp)
        return b.fdiv(b.fmul(x, ramp), e.fill(6.0))
    if activation == GELU:
        part = error_function(e, b.fmul(x, e.fill(2**-0.5)))
        return b.fmul(b.fmul(x, e.fill(0.5)), b.fadd(one, part))
    return x


def sloped(e: Any, given: Any, x: Any, activation: int) -> Any:
    """Return a vector of gradients times the slope of an activation.

    x: its results for relu and relu6, which have no slope at 0 and 6; else what it was given.
    """
    b, zero, one = e.b, e.fill(0.0), e.fill(1.0)
    if activation in (RELU, RELU6):
        made = b.select(b.fcmp_ordered("<=", x, zero), zero, given)
        if activation == RELU6:
            made = b.select(b.fcmp_ordered(">=", x, e.fill(6.0)), zero, made)
        return made
    if activation == SILU:
        part = b.fdiv(one, b.fadd(one, exponential(e, b.fneg(x))))
        rest = b.fadd(one, b.fmul(x, b.fsub(one, part)))
        return b.fmul(b.fmul(given, part), rest)
    if activation == HARDSWISH:
        made = b.fmul(given, b.fadd(b.fdiv(x, e.fill(3.0)), e.fill(0.5)))
        made = b.select(b.fcmp_ordered("<", x, e.fill(-3.0)), zero, made)
        return b.select(b.fcmp_ordered(">", x, e.fill(3.0)), given, made)
    # Of x * (1 + erf(x / sqrt(2))) / 2.
    below = b.fmul(e.fill(0.5), b.fadd(one, error_function(e, b.fmul(x, e.fill(2**-0.5)))))
    power = exponential(e, b.fmul(e.fill(-0.5), b.fmul(x, x)))
    density = b.fmul(power, e.fill((2 * math.pi) ** -0.5))
    return b.fmul(given, e.multiply_add(x, density, below))


def exponential(e: Any, x: Any) -> Any:
    """Return e to the power of a vector: ``2**n * exp(r)``, r = x - n log(2)."""
    b, form = e.b, FORMATS[e.compute]
    integers = ir.VectorType(form.integer, e.lanes)

    def whole(value: int) -> Any:
        return ir.Constant(integers, [value] * e.lanes)

    x = b.select(e.below(x, e.fill(form.low)), e.fill(form.low), x)
    x = b.select(e.below(e.fill(form.high), x), e.fill(form.high), x)
    # To add this leaves no room for a fraction: the last bits are then those of n.
    large = e.fill(1.5 * 2**form.mantissa)
    shifted = e.multiply_add(x, e.fill(1 / math.log(2)), large)
    minus = b.fneg(b.fsub(shifted, large))
    rest = x
    for part in LOG2[e.compute]:
        rest = e.multiply_add(minus, e.fill(part), rest)
    total = e.fill(1 / math.factorial(form.degree))
    for k in range(form.degree - 1, -1, -1):
        total = e.multiply_add(total, rest, e.fill(1 / math.factorial(k)))
    # 2**n in two factors: one alone has no subnormal results.
    n = b.sub(b.bitcast(shifted, integers), b.bitcast(large, integers))
    half = b.ashr(n, whole(1))
    for power in (half, b.sub(n, half)):
        exponent = b.shl(b.add(power, whole(form.bias)), whole(form.mantissa))
        total = b.fmul(total, b.bitcast(exponent, e.type))
    return total


def error_function(e: Any, x: Any) -> Any:
    """Return erf of a vector."""
    b = e.b
    if e.part is not FLOAT:
        result = ir.Constant(x.type, ir.Undefined)
        for lane in range(e.lanes):
            place = ir.Constant(I32, lane)
            value = e.call("erf", e.part, [b.extract_element(x, place)])
            result = b.insert_element(result, value, place)
        return result
    one = e.fill(1.0)
    size = e.call(f"llvm.fabs.{e.suffix(x.type)}", x.type, [x])
    t = b.fdiv(one, e.multiply_add(size, e.fill(ERF_P), one))
    total = e.fill(ERF_A[-1])
    for coefficient in ERF_A[-2::-1]:
        total = e.multiply_add(total, t, e.fill(coefficient))
    power = exponential(e, b.fneg(b.fmul(x, x)))
    result = b.fsub(one, b.fmul(b.fmul(total, t), power))
    return e.call(f"llvm.copysign.{e.suffix(x.type)}", x.type, [result, x])

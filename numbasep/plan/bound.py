"""What bounds a kernel, modelled: the time that memory and arithmetic take alone, at peak rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Of a tensor core's operands; everything else is multiplied by single multiply-adds.
OPERANDS = ("tf32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True, eq=False)
class Machine:
    """Rates that are assumed. memory: bytes a second. arithmetic: multiply-adds a second."""

    name: str
    memory: float
    arithmetic: Mapping[str, float]


H200 = Machine(
    "an H200",
    4.3e12,
    {
        "float32": 33.5e12, "float64": 16.75e12, "int32": 16.75e12,
        "tf32": 247e12, "float16": 495e12, "bfloat16": 495e12,
    },
)  # fmt: skip


def cores(threads: int, vector: int) -> Machine:
    """Return a CPU's cores with vectors of so many bytes: two multiply-adds a cycle at 3 GHz."""
    each = {name: 2 * (vector // size) * 3e9 * threads for name, size in
            (("float32", 4), ("float64", 8), ("int32", 4))}  # fmt: skip
    return Machine(f"{threads} cores of 3 GHz and 12 GB/s", threads * 12e9, each)


def bound(machine: Machine, bytes_: int, multiply_adds: Mapping[str, int]) -> tuple[str, float]:
    """Return what takes longest, and how many seconds: "memory", "tensor cores" or an arithmetic.

    bytes_: that cross memory. multiply_adds: by compute dtype, or a tensor core's operands'.
    """
    times = {"memory": bytes_ / machine.memory}
    for kind, count in multiply_adds.items():
        unit = "tensor cores" if kind in OPERANDS else f"{kind} arithmetic"
        times[unit] = times.get(unit, 0.0) + count / machine.arithmetic[kind]
    longest = max(times, key=times.__getitem__)
    return longest, times[longest]

"""What ``explain`` returns, and how it is shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from numbasep.plan import checks


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel launch (CUDA), or one pass over the image (CPU).

    function: "depthwise", "pointwise", or "depthwise and pointwise".
    variant, tile, bytes_moved, bytes_least, multiply_adds: as in ``Explanation``, of it alone.
    binds: what takes longest in the model: "memory", "tensor cores", or "<dtype> arithmetic".
    seconds: that, modelled from ``bytes_least`` and the multiply-adds: no call is faster.
    """

    function: str
    variant: str
    tile: str
    bytes_moved: int
    bytes_least: int
    multiply_adds: int
    binds: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Way:
    """One way of computing a call: its launches, one after the other.

    chosen: whether the call does it. machine: whose rates are modelled.
    why: the reason where there is one: for the choice; without launches, why it cannot be done.
    """

    name: str
    chosen: bool
    launches: tuple[Launch, ...]
    machine: str
    why: str

    @property
    def bytes_moved(self) -> int:
        return sum(launch.bytes_moved for launch in self.launches)

    @property
    def bytes_least(self) -> int:
        return sum(launch.bytes_least for launch in self.launches)

    @property
    def multiply_adds(self) -> int:
        return sum(launch.multiply_adds for launch in self.launches)

    @property
    def seconds(self) -> float:
        return sum(launch.seconds for launch in self.launches)

    def lines(self) -> Iterator[str]:
        """Yield what is shown after the name."""
        if not self.launches:
            yield self.why
            return
        yield (
            f"{'chosen, ' if self.chosen else ''}{self.bytes_moved:,} bytes moved "
            f"(least {self.bytes_least:,}), {self.multiply_adds:,} multiply-adds, at least "
            f"{1e3 * self.seconds:.3g} ms (modelled: {self.machine})"
        )
        for one in self.launches:
            yield (
                f"{one.function}, {one.variant}: {one.tile}; {one.binds} binds, "
                f"{1e3 * one.seconds:.3g} ms (modelled)"
            )


@dataclass(frozen=True, slots=True)
class Explanation:
    """The plan of one call.

    backend: "cpu" or "cuda".
    variant: the kernel that runs.
    tile: what one block (CUDA) or one thread at a time (CPU) computes.
    launches: kernel launches (CUDA) or passes over the image (CPU).
    rank: terms of the separable sum; 0 for a direct 2-D convolution.
    bytes_moved: bytes that the tiles read and write, halos and what is read again included. What a
        cache holds of them is not subtracted.
    bytes_least: the image, the result, and the taps or weights, once each.
    multiply_adds, multiply_adds_dense: of this plan, and of the dense kernel applied directly (for
        depthwise-separable convolution: of the standard convolution that it stands for).
    promised_error: of the factors, relative to ``sum|K| * max|x|``; rounding comes on top.
    notes: copies that the arrays' memory layout forces, and reasons of choices.
    ways: of the channelwise functions, with what binds each: one, or for depthwise-separable
        convolution one launch and two.
    """

    function: str
    backend: str
    variant: str
    tile: str
    launches: int
    rank: int
    shape: tuple[int, ...]
    dtype: str
    bytes_moved: int
    bytes_least: int
    multiply_adds: int
    multiply_adds_dense: int
    promised_error: float
    notes: tuple[str, ...]
    ways: tuple[Way, ...] = ()

    def __str__(self) -> str:
        more = self.bytes_moved / max(self.bytes_least, 1)
        fewer = self.multiply_adds_dense / max(self.multiply_adds, 1)
        shown = {
            "bytes moved": f"{self.bytes_moved:,} ({more:.2f} x the least, {self.bytes_least:,})",
            "multiply-adds": f"{self.multiply_adds:,} "
            f"(dense: {self.multiply_adds_dense:,}, {fewer:.2f} x)",
            "promised error": f"{self.promised_error:.3g} x sum|K| x max|x|",
        }
        hidden = {"bytes_moved", "bytes_least", "multiply_adds", "multiply_adds_dense"}
        lines = {
            field.name: str(getattr(self, field.name))
            for field in fields(self)
            if field.name not in {*hidden, "promised_error", "notes", "ways"}
        } | shown
        width = max(map(len, lines))
        result = [f"{name:<{width}}  {value}" for name, value in lines.items()]
        for way in self.ways:
            first, *rest = way.lines()
            result.append(f"{way.name:<{width}}  {first}")
            result += [f"{'':<{width}}  {line}" for line in rest]
        return "\n".join(result + [f"{'note':<{width}}  {note}" for note in self.notes])


def described(argument: str, value: Any, dtype: str) -> tuple[tuple[int, ...], str] | None:
    """Return the shape and dtype that stand for an array, None for anything else.

    They are a tuple of sizes, of that dtype, or a pair (shape, dtype).
    """
    if not isinstance(value, tuple):
        return None
    shape, name = value if len(value) == 2 and isinstance(value[0], tuple) else (value, dtype)
    return tuple(checks.integer(argument, size, 0) for size in shape), checks.dtype(argument, name)

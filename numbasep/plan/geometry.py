"""What a plan says about one axis and about one spatial problem: frozen, arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass

# Image elements that a kernel or a padding may span: the kernels keep a table of so many positions.
FARTHEST = 2**26


def check_extent(taps: int, dilation: int) -> int:
    """Return the image elements from the first to the last tap."""
    extent = (taps - 1) * dilation + 1
    if extent > FARTHEST:
        raise ValueError(
            f"dilation: {taps} taps at dilation {dilation} span {extent} elements; pass one at "
            f"which they span at most {FARTHEST}"
        )
    return extent


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a correlation.

    ``out[o] = sum_k taps[k] * image[o * stride + origin + k * dilation]`` for ``o < out``, with
    the image's boundary standing in for indices outside ``[0, size)``. Taps are already flipped.
    """

    size: int
    out: int
    taps: int
    stride: int = 1
    dilation: int = 1
    origin: int = 0

    @property
    def extent(self) -> int:
        """Image elements between the first and the last tap, both included."""
        return (self.taps - 1) * self.dilation + 1

    def span(self, begin: int, end: int) -> tuple[int, int]:
        """Return the first index that outputs ``begin`` to ``end`` read, and the one after all."""
        first = begin * self.stride + self.origin
        return first, first + (end - begin - 1) * self.stride + self.extent


@dataclass(frozen=True, slots=True)
class SpatialPlan:
    """A spatial correlation of ``planes`` images, each ``(y.size, x.size, channels)``.

    Both backends take ``image`` of shape ``(planes, y.size, x.size, channels)`` and ``out`` of
    shape ``(planes, y.out, x.out, channels)``. In both the last two axes are dense (strides
    ``channels * itemsize`` and ``itemsize``); the first two have any stride, negative and zero
    (image only) included. A channel is never mixed with another.

    rank: terms of the separable sum; 0 where ``direct``, which takes the dense kernel instead.
    storage, compute, output: dtype names of ``image``, of taps and accumulators, and of ``out``.
        ``compute`` is one of float32, float64, int64, complex64, complex128.
    """

    planes: int
    channels: int
    y: Axis
    x: Axis
    rank: int
    direct: bool
    boundary: int
    fillvalue: complex
    storage: str
    compute: str
    output: str

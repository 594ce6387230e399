"""What convolutions cost, and what a stack of them sees, by arithmetic alone.

Sources: MobileNets (Howard et al., arXiv 1704.04861, section 3.1) for the cost of standard and
depthwise-separable convolution; Araujo, Norris and Sim, Computing Receptive Fields of Convolutional
Neural Networks, Distill 2019, for the fields of stacks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from numbasep.plan import checks, traffic
from numbasep.plan.channelwise import ITEMSIZE, sides
from numbasep.plan.geometry import Axis

__all__ = ["Cost", "LayerCost", "ReceptiveField", "cost", "receptive_field"]

Pads = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one way of computing a layer costs.

    Attributes:
        parameters: weights, and biases where there are any.
        multiply_adds: products with their sums, padding's included, biases' additions not.
        bytes: the least that crosses memory: each needed input, each weight, each output once.
    """

    parameters: int
    multiply_adds: int
    bytes: int

    @property
    def intensity(self) -> float:
        """Floating-point operations (two per multiply-add) per byte."""
        return 2 * self.multiply_adds / self.bytes

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class LayerCost:
    """The costs of one layer, computed in every way.

    Attributes:
        shape: ``(N, C, H, W)`` of the input.
        out_shape: ``(N, Cout, Ho, Wo)``.
        standard: dense convolution, C * kh * kw weights for each output channel.
        depthwise: kh * kw weights for each channel, alone.
        pointwise: 1x1 convolution, alone; None where ``out_channels`` was None.
        separable: depthwise and pointwise in one launch, without the intermediate in memory.
        low_rank: ``separable`` with rank-R depthwise kernels, in a row and a column pass; None
            where ``rank`` was None.
        intermediate_bytes: the output of the depthwise part. Two launches write and read it.
    """

    shape: tuple[int, int, int, int]
    out_shape: tuple[int, int, int, int]
    standard: Cost
    depthwise: Cost
    pointwise: Cost | None
    separable: Cost
    low_rank: Cost | None
    intermediate_bytes: int

    @property
    def two_launches(self) -> Cost:
        """Depthwise, then pointwise, with the intermediate written and read."""
        return self.depthwise if self.pointwise is None else self.depthwise + self.pointwise

    @property
    def ratio(self) -> float:
        """Multiply-adds of ``separable`` over those of ``standard``.

        Equal to:
            ``depth_multiplier * (1 / Cout + 1 / (kh * kw))`` where ``out_channels`` was given
            (MobileNets, section 3.1)
        """
        return self.separable.multiply_adds / self.standard.multiply_adds

    def __str__(self) -> str:
        ways = {
            "standard": self.standard,
            "depthwise": self.depthwise,
            "pointwise": self.pointwise,
            "separable, two launches": self.two_launches,
            "separable, one launch": self.separable,
            "low rank, one launch": self.low_rank,
        }
        if self.pointwise is None:
            del ways["separable, two launches"], ways["separable, one launch"]
        sizes = " -> ".join("x".join(map(str, s)) for s in (self.shape, self.out_shape))
        wide = max(len(sizes), 24)
        lines = [
            f"{sizes:<{wide}}{'parameters':>14}{'multiply-adds':>20}{'bytes':>18}{'flop/B':>9}"
        ]
        lines += [
            f"{name:<{wide}}{c.parameters:>14,}{c.multiply_adds:>20,}{c.bytes:>18,}"
            f"{c.intensity:>9.1f}"
            for name, c in ways.items()
            if c is not None
        ]
        return "\n".join(lines)


def cost(
    shape: Sequence[int],
    out_channels: int | None,
    kernel_size: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | Pads | str = 0,
    dilation: int | tuple[int, int] = 1,
    depth_multiplier: int = 1,
    rank: int | None = None,
    bias: bool = False,
    dtype: Any = "float32",
) -> LayerCost:
    """Return what a layer costs as standard, depthwise-separable and low-rank convolution.

    Args:
        shape: ``(N, C, H, W)`` or ``(C, H, W)`` of the input.
        out_channels: Cout; None for a depthwise layer alone, whose ``standard`` then has as many.
        kernel_size: kh and kw, one number for both.
        stride, dilation: steps between outputs and between taps, vertical and horizontal.
        padding: one number, (vertical, horizontal), (top, bottom, left, right), "valid" or "same"
            (``ceil(size / stride)`` outputs, the odd element after: TensorFlow's rule).
        depth_multiplier: depthwise outputs of each input channel.
        rank: terms of each depthwise kernel in ``low_rank``. The row pass is counted on each image
            row that an output needs, the column pass on each output.
        bias: whether each convolution adds one.
        dtype: of input, weights and outputs.

    Raises:
        TypeError, ValueError: naming the argument, what arrived and the remedy.
    """
    n, c, h, w = _shape(shape)
    kh, kw = checks.pair("kernel_size", kernel_size, 1)
    steps, dilations = checks.pair("stride", stride, 1), checks.pair("dilation", dilation, 1)
    m = checks.integer("depth_multiplier", depth_multiplier, 1)
    if out_channels is not None:
        out_channels = checks.integer("out_channels", out_channels, 1)
    if rank is not None:
        rank = checks.integer("rank", rank, 0)
        if rank > min(kh, kw):
            raise ValueError(f"rank: got {rank}; a {kh}x{kw} kernel has at most {min(kh, kw)}")
    if not isinstance(bias, (bool, np.bool_)):
        raise TypeError(f"bias: expected True or False, got {bias!r}; only its presence counts")
    name = checks.dtype("dtype", dtype)
    itemsize = ITEMSIZE.get(name) or np.dtype(name).itemsize

    extents = (kh - 1) * dilations[0] + 1, (kw - 1) * dilations[1] + 1
    top, bottom, left, right = sides(padding, (h, w), extents, steps)
    outs, needed = [], []
    for axis, (size, before, after) in enumerate(((h, top, bottom), (w, left, right))):
        padded = size + before + after
        if extents[axis] > padded:
            raise ValueError(
                f"kernel_size: {('kh', 'kw')[axis]} reaches over {extents[axis]} elements but the "
                f"padded input has {padded}; pad more, or use a smaller kernel or dilation"
            )
        outs.append((padded - extents[axis]) // steps[axis] + 1)
        line = Axis(size, outs[axis], (kh, kw)[axis], steps[axis], dilations[axis], -before)
        needed.append(traffic.needed(line))
    ho, wo = outs
    between = c * m
    cout = between if out_channels is None else out_channels
    pixels = n * ho * wo
    inputs = n * c * needed[0] * needed[1]

    def counted(weights: int, biases: int, multiply_adds: int, read: int, written: int) -> Cost:
        parameters = weights + (biases if bias else 0)
        return Cost(parameters, multiply_adds, itemsize * (parameters + read + written))

    standard = counted(cout * c * kh * kw, cout, pixels * cout * c * kh * kw, inputs, pixels * cout)
    taps = between * kh * kw
    depthwise = counted(taps, between, pixels * taps, inputs, pixels * between)
    pointwise = None
    mixing = 0
    if out_channels is not None:
        mixing = cout * between
        pointwise = counted(mixing, cout, pixels * mixing, pixels * between, pixels * cout)
    biases = between + (cout if pointwise else 0)
    separable = counted(taps + mixing, biases, pixels * (taps + mixing), inputs, pixels * cout)
    low_rank = None
    if rank is not None:
        # A 1-D pass on the rows, of which each output row needs kh, and one on the columns.
        passes = between * rank * (n * needed[0] * wo * kw + pixels * kh)
        low_rank = counted(
            between * rank * (kh + kw) + mixing,
            biases,
            passes + pixels * mixing,
            inputs,
            pixels * cout,
        )
    return LayerCost(
        shape=(n, c, h, w),
        out_shape=(n, cout, ho, wo),
        standard=standard,
        depthwise=depthwise,
        pointwise=pointwise,
        separable=separable,
        low_rank=low_rank,
        intermediate_bytes=itemsize * pixels * between if pointwise else 0,
    )


def _shape(shape: Sequence[int]) -> tuple[int, int, int, int]:
    if isinstance(shape, (str, bytes)) or not isinstance(shape, (Sequence, np.ndarray)):
        raise TypeError(f"shape: expected (N, C, H, W) or (C, H, W), got {shape!r}")
    if len(shape) not in (3, 4):
        raise ValueError(f"shape: got {len(shape)} values; pass (N, C, H, W) or (C, H, W)")
    sizes = [checks.integer("shape", size, 1) for size in shape]
    n, c, h, w = sizes if len(sizes) == 4 else [1, *sizes]
    return n, c, h, w


@dataclass(frozen=True, slots=True)
class ReceptiveField:
    """What an output of a stack of layers sees of its input; (vertical, horizontal) each.

    Attributes:
        size: input elements from the first to the last that an output may depend on.
        stride: input elements between neighbouring outputs' fields.
        padding: input elements before the image at which the first output's field starts.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def region(self, row: int, column: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return (first, last) input rows and columns that an output sees, padding included.

        Negative indices, and those past the image, lie in the padding.
        """
        spans = []
        for axis, (name, index) in enumerate((("row", row), ("column", column))):
            first = checks.integer(name, index, 0) * self.stride[axis] - self.padding[axis]
            spans.append((first, first + self.size[axis] - 1))
        return spans[0], spans[1]


_LAYER = ("kernel_size", "stride", "padding", "dilation")


def receptive_field(layers: Iterable[Mapping[str, Any] | Sequence[Any] | int]) -> ReceptiveField:
    """Return the receptive field, effective stride and effective padding of layers in a row.

    With the extent ``e = (k - 1) * dilation + 1`` of each kernel and the strides' product before
    it, ``S``: size = 1 + sum (e - 1) S, padding = sum (padding before) S (Araujo et al., eqs. 2
    and 5). Pooling layers count like convolutions; pointwise ones and activations change nothing.

    Args:
        layers: from input to output, each a mapping with ``kernel_size`` and, where they are not
            1, 0 and 1, ``stride``, ``padding`` and ``dilation``; or these in this order; or the
            kernel size alone. Each is one number or (vertical, horizontal), padding also (top,
            bottom, left, right), "valid", or, with stride 1, "same".

    Raises:
        TypeError, ValueError: naming the layer and the argument, what arrived and the remedy.
    """
    if isinstance(layers, (str, bytes, Mapping)) or not isinstance(layers, Iterable):
        raise TypeError(f"layers: expected a sequence of layers, got {layers!r}")
    size, jump, before = [1, 1], [1, 1], [0, 0]
    for number, layer in enumerate(layers):
        try:
            extents, steps, pads = _layer(layer)
        except (TypeError, ValueError) as error:
            raise type(error)(f"layers[{number}]: {error}") from None
        for axis in range(2):
            size[axis] += (extents[axis] - 1) * jump[axis]
            before[axis] += pads[2 * axis] * jump[axis]
            jump[axis] *= steps[axis]
    return ReceptiveField((size[0], size[1]), (jump[0], jump[1]), (before[0], before[1]))


def _layer(layer: object) -> tuple[tuple[int, int], tuple[int, int], Pads]:
    if isinstance(layer, Mapping):
        unknown = [key for key in layer if key not in _LAYER]
        if unknown:
            checks.choice("a key", unknown[0], _LAYER)
        given = dict(layer)
    elif isinstance(layer, (Sequence, np.ndarray)) and not isinstance(layer, (str, bytes)):
        if len(layer) > len(_LAYER):
            raise ValueError(f"got {len(layer)} values, {layer!r}; pass {', '.join(_LAYER)}")
        given = dict(zip(_LAYER, layer, strict=False))
    else:
        given = {"kernel_size": layer}
    if "kernel_size" not in given:
        raise ValueError(f"got {layer!r}, without kernel_size; pass {', '.join(_LAYER)}")
    kernel = checks.pair("kernel_size", given["kernel_size"], 1)
    steps = checks.pair("stride", given.get("stride", 1), 1)
    dilations = checks.pair("dilation", given.get("dilation", 1), 1)
    extents = (kernel[0] - 1) * dilations[0] + 1, (kernel[1] - 1) * dilations[1] + 1
    padding = given.get("padding", 0)
    if isinstance(padding, str) and padding == "same" and steps != (1, 1):
        raise ValueError(
            f"padding: 'same' with stride {steps} depends on the image's size; pass the numbers"
        )
    return extents, steps, sides(padding, extents, extents, steps)

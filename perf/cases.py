"""The measured cases: inputs, floating-point operations, compulsory bytes.

A case says what is computed, never how. Bytes are the least that any implementation moves: each
input read once, each output written once. A multiply-add counts as two operations. A rank-R
separable filter counts 2 R (kh + kw) operations an output; a peer that does more (a dense filter)
is held to the same count, so that rates compare.

Layer shapes are those of the published networks (MobileNetV1/V2, EfficientNet-B0, ConvNeXt-T,
Xception, RepLKNet-31) and of KernelBench level 1, problems 82 to 87, by their published names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import prod
from typing import Any

ITEMSIZE = {"uint8": 1, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Separable:
    """``separable_conv2d`` of ``shape`` by a rank-R kernel of taps x taps, mirrored border."""

    shape: tuple[int, ...]
    dtype: str
    taps: int
    rank: int = 1

    op = "separable"

    @property
    def name(self) -> str:
        """The case's name, unique: it finds the case again."""
        size = "x".join(map(str, self.shape))
        return f"separable/{self.dtype}/{size}/{self.taps}taps/rank{self.rank}"

    @property
    def flops(self) -> int:
        """Floating-point operations."""
        return prod(self.shape) * 2 * self.rank * 2 * self.taps

    @property
    def bytes(self) -> int:
        """Compulsory bytes: the image read, the result written, the taps read."""
        return (2 * prod(self.shape) + 2 * self.rank * self.taps) * ITEMSIZE[self.dtype]


@dataclass(frozen=True)
class Channelwise:
    """A depthwise, pointwise or depthwise-separable layer; the last is "fused" here.

    ``shape`` is (N, C, H, W) also where ``layout`` is NHWC. ``kernel`` is (kh, kw); a pointwise
    layer has (1, 1). ``out_channels`` is C for a depthwise layer.
    """

    label: str
    op: str
    shape: tuple[int, int, int, int]
    kernel: tuple[int, int]
    stride: int
    padding: int
    dilation: int
    out_channels: int
    dtype: str = "float32"
    layout: str = "NCHW"

    @property
    def name(self) -> str:
        """The case's name, unique: it finds the case again."""
        return f"{self.op}/{self.dtype}/{self.layout}/{self.label}/n{self.shape[0]}"

    @property
    def spatial(self) -> tuple[int, int]:
        """Output height and width."""
        if self.op == "pointwise":
            return self.shape[2], self.shape[3]
        height, width = (
            (size + 2 * self.padding - self.dilation * (k - 1) - 1) // self.stride + 1
            for size, k in zip(self.shape[2:], self.kernel, strict=True)
        )
        return height, width

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """(N, channels out, height out, width out)."""
        channels = self.shape[1] if self.op == "depthwise" else self.out_channels
        return self.shape[0], channels, *self.spatial

    @property
    def flops(self) -> int:
        """Floating-point operations."""
        pixels = self.shape[0] * prod(self.spatial)
        depthwise = 2 * pixels * self.shape[1] * prod(self.kernel)
        pointwise = 2 * pixels * self.shape[1] * self.out_channels
        return {
            "depthwise": depthwise,
            "pointwise": pointwise,
            "fused": depthwise + pointwise,
        }[self.op]

    @property
    def bytes(self) -> int:
        """Compulsory bytes: inputs read, outputs written, weights read."""
        channels = self.shape[1]
        depthwise = 0 if self.op == "pointwise" else channels * prod(self.kernel)
        pointwise = 0 if self.op == "depthwise" else channels * self.out_channels
        elements = prod(self.shape) + prod(self.out_shape) + depthwise + pointwise
        return elements * ITEMSIZE[self.dtype]


Case = Separable | Channelwise

TAPS = (3, 5, 9, 15, 31, 63)
CPU_SHAPES = ((512, 512), (2048, 2048), (4096, 4096), (8, 3, 512, 512))
GPU_SHAPES = ((1024, 1024), (4096, 4096), (8192, 8192), (16, 3, 1080, 1920))

# name, N, C, H = W, k, stride, padding, dilation, C out
LAYERS = (
    ("mbv1_dw1", 64, 32, 112, 3, 1, 1, 1, 64),
    ("mbv1_dw2_s2", 64, 64, 112, 3, 2, 1, 1, 128),
    ("mbv1_dw3", 64, 128, 56, 3, 1, 1, 1, 128),
    ("mbv1_dw5", 64, 256, 28, 3, 1, 1, 1, 256),
    ("mbv1_dw7x5", 64, 512, 14, 3, 1, 1, 1, 512),
    ("mbv1_dw13", 64, 1024, 7, 3, 1, 1, 1, 1024),
    ("mbv2_b2_s2", 64, 96, 112, 3, 2, 1, 1, 24),
    ("mbv2_b3", 64, 144, 56, 3, 1, 1, 1, 24),
    ("mbv2_b8", 64, 384, 14, 3, 1, 1, 1, 64),
    ("mbv2_b16", 64, 960, 7, 3, 1, 1, 1, 160),
    ("effb0_b3_s2", 64, 144, 56, 5, 2, 2, 1, 40),
    ("effb0_b4", 64, 240, 28, 5, 1, 2, 1, 40),
    ("effb0_b10", 64, 672, 14, 5, 1, 2, 1, 112),
    ("effb0_b14", 64, 1152, 7, 5, 1, 2, 1, 192),
    ("convnextT_s1", 64, 96, 56, 7, 1, 3, 1, 384),
    ("convnextT_s2", 64, 192, 28, 7, 1, 3, 1, 768),
    ("convnextT_s3", 64, 384, 14, 7, 1, 3, 1, 1536),
    ("convnextT_s4", 64, 768, 7, 7, 1, 3, 1, 3072),
    ("xcep_b1", 32, 128, 147, 3, 1, 1, 1, 128),
    ("xcep_mid", 32, 728, 19, 3, 1, 1, 1, 728),
    ("xcep_deeplab_d2", 8, 728, 33, 3, 1, 2, 2, 728),
    ("replk31_s1", 32, 128, 56, 31, 1, 15, 1, 128),
    ("replk31_s2", 32, 256, 28, 29, 1, 14, 1, 256),
    ("replk31_s3", 32, 512, 14, 27, 1, 13, 1, 512),
)

_KERNELBENCH = (
    Channelwise(
        "82_conv_depthwise_2D_square_input_square_kernel",
        "depthwise", (16, 64, 512, 512), (3, 3), 1, 0, 1, 64,
    ),
    Channelwise(
        "83_conv_depthwise_2D_square_input_asymmetric_kernel",
        "depthwise", (64, 8, 512, 512), (3, 1), 1, 0, 1, 8,
    ),
    Channelwise(
        "84_conv_depthwise_2D_asymmetric_input_square_kernel",
        "depthwise", (64, 128, 256, 512), (3, 3), 1, 0, 1, 128,
    ),
    Channelwise(
        "85_conv_depthwise_2D_asymmetric_input_asymmetric_kernel",
        "depthwise", (32, 128, 128, 256), (3, 7), 1, 0, 1, 128,
    ),
    Channelwise(
        "86_conv_depthwise_separable_2D",
        "fused", (16, 64, 512, 512), (3, 3), 1, 1, 1, 128,
    ),
    Channelwise(
        "87_conv_pointwise_2D",
        "pointwise", (16, 64, 1024, 1024), (1, 1), 1, 0, 1, 128,
    ),
)  # fmt: skip


def layers(
    op: str, batch: int | None = None, *, large_kernels: bool = True
) -> Iterator[Channelwise]:
    """Yield the networks' layers as ``op``; ``batch`` None keeps each layer's own."""
    for label, n, c, size, k, stride, padding, dilation, out in LAYERS:
        if k > 11 and not large_kernels:
            continue
        n = n if batch is None else batch
        if op == "pointwise":
            # The pointwise half sees what the depthwise half produced.
            size = (size + 2 * padding - dilation * (k - 1) - 1) // stride + 1
            yield Channelwise(label, op, (n, c, size, size), (1, 1), 1, 0, 1, out)
        else:
            out_channels = c if op == "depthwise" else out
            yield Channelwise(
                label, op, (n, c, size, size), (k, k), stride, padding, dilation, out_channels
            )


def kernelbench(op: str | None = None) -> Iterator[Channelwise]:
    """Yield KernelBench level 1, problems 82 to 87."""
    return (case for case in _KERNELBENCH if op is None or case.op == op)


def _cpu_separable() -> Iterator[Case]:
    for dtype in ("float32", "uint8", "float64"):
        for shape in CPU_SHAPES:
            for taps in TAPS:
                yield Separable(shape, dtype, taps)
    for rank in (2, 4, 8):
        for taps in (9, 31):
            yield Separable((2048, 2048), "float32", taps, rank)


def _gpu_separable() -> Iterator[Case]:
    large = (8192, 8192)
    for shape in (large, *(shape for shape in GPU_SHAPES if shape != large)):
        for taps in TAPS:
            yield Separable(shape, "float32", taps)
    for rank in (2, 4, 8):
        for taps in (9, 15, 31):
            yield Separable((4096, 4096), "float32", taps, rank)
    for dtype in ("float16", "uint8"):
        for taps in TAPS:
            yield Separable((4096, 4096), dtype, taps)
        for shape in ((1024, 1024), large, (16, 3, 1080, 1920)):
            yield Separable(shape, dtype, 9)


def _cpu_channelwise(op: str) -> Iterator[Case]:
    for batch in (1, 8):
        for case in layers(op, batch, large_kernels=False):
            yield case
            yield replace(case, layout="NHWC")


# One layer at several batches shows how times scale with them; its own batch is among LAYERS.
SCALED, BATCHES = "mbv2_b3", (1, 8, 256)


def _gpu_channelwise(op: str) -> Iterator[Case]:
    kinds = [("float32", "NHWC"), ("float16", "NCHW"), ("float16", "NHWC")]
    if op == "pointwise":
        kinds += [("bfloat16", "NCHW"), ("bfloat16", "NHWC")]
    yield from kernelbench(op)
    for dtype, layout in kinds:
        for case in kernelbench(op):
            yield replace(case, dtype=dtype, layout=layout)
    yield from layers(op)
    for batch in BATCHES:
        yield from (case for case in layers(op, batch) if case.label == SCALED)
    for dtype, layout in kinds:
        for case in layers(op):
            yield replace(case, dtype=dtype, layout=layout)


def cases(group: str, machine: str) -> list[Case]:
    """Return the cases of a group ("separable", "depthwise", "pointwise", "fused") in turn.

    machine: "cpu" or "gpu". The GPU's most telling cases come first, so that a run that is cut
    has them.
    """
    if group == "separable":
        return list(_cpu_separable() if machine == "cpu" else _gpu_separable())
    if group not in ("depthwise", "pointwise", "fused"):
        raise ValueError(f"group: {group!r} arrived; one of separable, depthwise, pointwise, fused")
    return list(_cpu_channelwise(group) if machine == "cpu" else _gpu_channelwise(group))


def small(case: Case) -> Case:
    """Return the case shrunk to a few thousand elements: for a rehearsal of the run."""
    if isinstance(case, Separable):
        lead = tuple(min(n, 2) for n in case.shape[:-2])
        return replace(case, shape=(*lead, 72, 100))
    n, c, height, width = case.shape
    size = (min(n, 2), min(c, 8), min(height, 40), min(width, 44))
    return replace(case, shape=size, out_channels=min(case.out_channels, 8))


def select(found: list[Case], patterns: list[str]) -> list[Case]:
    """Return the cases whose name matches one of the shell patterns (all where there are none)."""
    if not patterns:
        return found
    return [c for c in found if any(fnmatchcase(c.name, f"*{p}*") for p in patterns)]


def describe(case: Case) -> dict[str, Any]:
    """Return the case as the columns of a result row."""
    row: dict[str, Any] = {"case": case.name, "op": case.op}
    row.update({k: v for k, v in vars(case).items() if k != "op"})
    row.update(flops=case.flops, bytes=case.bytes)
    return row

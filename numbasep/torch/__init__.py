"""Train with it: the package's convolutions as PyTorch operators, functions and modules.

``swap`` exchanges the depthwise layers of a network for them. Needs the extra ``torch``.
"""

from numbasep.torch.functional import (
    depthwise_conv2d,
    depthwise_separable_conv2d,
    pointwise_conv2d,
    saved_bytes,
    separable_conv2d,
)
from numbasep.torch.host import kept_weights
from numbasep.torch.modules import (
    DepthwiseConv2d,
    DepthwiseSeparableConv2d,
    LowRankDepthwiseConv2d,
    SeparableConv2d,
)
from numbasep.torch.swap import Layer, Report, swap

__all__ = [
    "DepthwiseConv2d",
    "DepthwiseSeparableConv2d",
    "Layer",
    "LowRankDepthwiseConv2d",
    "Report",
    "SeparableConv2d",
    "depthwise_conv2d",
    "depthwise_separable_conv2d",
    "kept_weights",
    "pointwise_conv2d",
    "saved_bytes",
    "separable_conv2d",
    "swap",
]

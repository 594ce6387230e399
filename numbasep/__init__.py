"""Convolution kernels that factor: fused separable, depthwise and pointwise convolution."""

from numbasep.channelwise import depthwise_conv2d, depthwise_separable_conv2d, pointwise_conv2d
from numbasep.factorise import SeparableKernel, factorise
from numbasep.spatial import separable_conv2d

__all__ = [
    "SeparableKernel",
    "depthwise_conv2d",
    "depthwise_separable_conv2d",
    "factorise",
    "pointwise_conv2d",
    "separable_conv2d",
]

"""Convolution kernels that factor: fused separable, depthwise and pointwise convolution."""

from numbasep.channelwise import depthwise_conv2d, depthwise_separable_conv2d, pointwise_conv2d
from numbasep.cost import cost, receptive_field
from numbasep.explain import explain
from numbasep.factorise import SeparableKernel, factorise
from numbasep.spatial import separable_conv2d

__all__ = [
    "SeparableKernel",
    "cost",
    "depthwise_conv2d",
    "depthwise_separable_conv2d",
    "explain",
    "factorise",
    "pointwise_conv2d",
    "receptive_field",
    "separable_conv2d",
]

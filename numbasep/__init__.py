"""Convolution kernels that factor: fused separable, depthwise and pointwise convolution."""

from numbasep.factorise import SeparableKernel, factorise
from numbasep.spatial import separable_conv2d

__all__ = ["SeparableKernel", "factorise", "separable_conv2d"]

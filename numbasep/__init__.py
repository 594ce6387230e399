"""Convolution kernels that factor: fused separable, depthwise and pointwise convolution."""

"""The channelwise functions and their gradients as operators: ``torch.ops.numbasep``.

Shapes are torch's: images (N, C, H, W), contiguous or channels_last, computed as they stand; of
other strides they are copied. Each result stands as its image does. Every operator is linear in
each of its tensors but for biases and activations, and the gradients of each are others of them:

=========================  ===================================================================
operator                   gradients
=========================  ===================================================================
depthwise_conv2d           depthwise_input_gradient, depthwise_weight_gradient, bias_gradient
depthwise_input_gradient   depthwise_conv2d, depthwise_weight_gradient
depthwise_weight_gradient  depthwise_input_gradient, depthwise_conv2d
pointwise_...              the same three
depthwise_separable_...    all of them; the intermediate is computed again, not kept
low_rank_depthwise_conv2d  those of depthwise_conv2d, of the dense kernel
separable_conv2d           itself, and depthwise_weight_gradient
=========================  ===================================================================

so gradients of gradients come of themselves. padding: (top, bottom, left, right).
"""

from numbasep.torch import depthwise, fused, low_rank, pointwise, spatial
from numbasep.torch.registry import operators

__all__ = ["depthwise", "fused", "low_rank", "operators", "pointwise", "spatial"]

"""The patch embedding of a vision tower as one matrix product.

Qwen's towers cut an image into patches first and then run a 3-D convolution whose kernel is a whole patch, so each
output is one inner product. As a convolution it is far slower, forward and backward, than the same product as a matmul.
"""

from __future__ import annotations

from types import MethodType

from torch import Tensor, nn


def embed_patches_by_product(tower: nn.Module) -> None:
    """Let every such convolution of the tower compute by a matrix product; names and weights stay what they are."""
    for module in tower.modules():
        if isinstance(module, nn.Conv3d) and module.stride == module.kernel_size and not any(module.padding):
            # On the instance, because hooks (ZeRO-3 gathers the weight in one) go on around `forward`.
            module.forward = MethodType(product, module)


def product(convolution: nn.Conv3d, patches_NCTHW: Tensor) -> Tensor:
    """[N, out]: the convolution of N patches that are as large as its kernel."""
    return nn.functional.linear(patches_NCTHW.flatten(1), convolution.weight.flatten(1), convolution.bias)

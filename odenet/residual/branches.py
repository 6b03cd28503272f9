"""The residual of a block that people have already: its branch, where that is known, and block(x) - x otherwise.

To make one more class known, add a line to `BRANCHES`: the layers of its branch in order, and the activation after the
addition, if there is one; or None, for block(x) - x.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from odenet.residual.from_block import FromBlock, from_block


class Branch(NamedTuple):
    """What a block adds to its input: names of its layers in order (one that is None or missing is left out)."""

    layers: str
    last: str | None = None


_LEGACY_SE = Branch("conv1 bn1 relu conv2 bn2 relu conv3 bn3 se_module", "relu")
BRANCHES: dict[str, Branch | None] = {
    "torchvision.models.resnet.BasicBlock": Branch("conv1 bn1 relu conv2 bn2", "relu"),
    "torchvision.models.resnet.Bottleneck": Branch("conv1 bn1 relu conv2 bn2 relu conv3 bn3", "relu"),
    "timm.models.resnet.BasicBlock": Branch("conv1 bn1 drop_block act1 aa conv2 bn2 se drop_path", "act2"),
    "timm.models.resnet.Bottleneck": Branch(
        "conv1 bn1 act1 conv2 bn2 drop_block act2 aa conv3 bn3 se drop_path", "act3"
    ),
    "timm.models.resnetv2.PreActBasic": Branch("norm1 conv1 norm2 conv2 drop_path"),
    "timm.models.resnetv2.PreActBottleneck": Branch("norm1 conv1 norm2 conv2 norm3 conv3 drop_path"),
    "timm.models.resnetv2.Bottleneck": Branch("conv1 norm1 conv2 norm2 conv3 norm3 drop_path", "act3"),
    "timm.models.senet.SEBottleneck": _LEGACY_SE,
    "timm.models.senet.SEResNetBottleneck": _LEGACY_SE,
    "timm.models.senet.SEResNeXtBottleneck": _LEGACY_SE,
    "timm.models.senet.SEResNetBlock": Branch("conv1 bn1 relu conv2 bn2 relu se_module", "relu"),
    "timm.models.byobnet.BasicBlock": Branch("conv1_kxk attn conv2_kxk attn_last drop_path", "act"),
    "timm.models.byobnet.BottleneckBlock": Branch(
        "conv1_1x1 conv2_kxk conv2b_kxk attn conv3_1x1 attn_last drop_path", "act"
    ),
    "timm.models.res2net.Bottle2neck": None,
    "timm.models.resnest.ResNestBottleneck": None,
    "timm.models.sknet.SelectiveKernelBasic": None,
    "timm.models.sknet.SelectiveKernelBottleneck": None,
    "timm.models.convnext.ConvNeXtBlock": None,
    "timm.models.vision_transformer.Block": None,
    "torchvision.models.vision_transformer.EncoderBlock": None,
    "torchvision.models.convnext.CNBlock": None,
}


class PreActivationBranch(FromBlock):
    """F(t, x) = f(x) of a block that computes x + f(x).

    Args:
        block: the block; it is shared, not copied.
        branch: how f is put together.
    """

    def __init__(self, block: nn.Module, branch: Branch):
        super().__init__(block)
        self.branch = branch

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        for name in self.branch.layers.split():
            layer = getattr(self.block, name, None)
            if layer is not None:
                x = layer(x)
        return x


class PostActivationBranch(PreActivationBranch):
    """F(t, x) = max(f(x), -x) of a block that computes relu(x + f(x)), since relu(x + f) - x = max(f, -x).

    An Euler step of size 1 is the block to the last bit but the sign of zeros. A step of size h < 1 gives
    max(x + h f(x), (1 - h) x): states that a ReLU made stay nonnegative.
    """

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.maximum(super().forward(t, x), -x)


def class_path(module: object) -> str:
    """Full name of a module's class, by which it is known without importing the package that it comes from."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def open_block(block: nn.Module) -> FromBlock:
    """The residual function of a shape-preserving block, on the block's own layers.

    An Euler step of size 1 is the block. For the classes in `BRANCHES` the branch itself is evaluated; for any other it
    is F(t, x) = block(x) - x.

    Args:
        block: a module with `forward(x)` that keeps the shape of x: (batch, ...).

    Returns:
        A residual function that holds `block` itself; training one trains the other.

    Raises:
        InputError: `block` is not a module.
    """
    branch = BRANCHES.get(class_path(block))
    if branch is None:
        return from_block(block)
    if branch.last is None:
        return PreActivationBranch(block, branch)
    if type(getattr(block, branch.last, None)) is nn.ReLU:
        return PostActivationBranch(block, branch)
    return from_block(block)

"""The residual of a block that people have already: its branch, where that is known, and block(x) - x otherwise.

To make one more class known, add a line to `BRANCHES`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from odenet.residual.from_block import FromBlock, from_block


class Branch(NamedTuple):
    """What a block adds to its input, and how to tell that it adds it to the input itself.

    Attributes:
        layers: names of the branch's layers in order (one that is None or missing is left out); None for block(x) - x.
        last: name of the activation after the addition, if there is one.
        projection: name of the layers on the shortcut, where it is neither `downsample` nor `shortcut`.
        added: name of what the block has, and is not None or False, if it adds anything to its branch.
    """

    layers: str | None = None
    last: str | None = None
    projection: str = ""
    added: str = ""


_WHOLE = Branch()
_SKIP = Branch(added="has_skip")
_RES_CONNECT = Branch(added="use_res_connect")
_LEGACY_SE = Branch("conv1 bn1 relu conv2 bn2 relu conv3 bn3 se_module", "relu")
_CSP_TWO = Branch("conv1 attn conv2 drop_path")
BRANCHES: dict[str, Branch] = {
    "torchvision.models.resnet.BasicBlock": Branch("conv1 bn1 relu conv2 bn2", "relu"),
    "torchvision.models.resnet.Bottleneck": Branch("conv1 bn1 relu conv2 bn2 relu conv3 bn3", "relu"),
    "torchvision.models.video.resnet.BasicBlock": Branch("conv1 conv2", "relu"),
    "torchvision.models.video.resnet.Bottleneck": Branch("conv1 conv2 conv3", "relu"),
    "torchvision.models.quantization.resnet.QuantizableBasicBlock": _WHOLE,
    "torchvision.models.quantization.resnet.QuantizableBottleneck": _WHOLE,
    "torchvision.models.regnet.ResBottleneckBlock": Branch("f", "activation", projection="proj"),
    "torchvision.models.vision_transformer.EncoderBlock": _WHOLE,
    "torchvision.models.convnext.CNBlock": _WHOLE,
    "torchvision.models.mobilenetv2.InvertedResidual": _RES_CONNECT,
    "torchvision.models.mobilenetv3.InvertedResidual": _RES_CONNECT,
    "torchvision.models.efficientnet.MBConv": _RES_CONNECT,
    "torchvision.models.efficientnet.FusedMBConv": _RES_CONNECT,
    "timm.models.resnet.BasicBlock": Branch("conv1 bn1 drop_block act1 aa conv2 bn2 se drop_path", "act2"),
    "timm.models.resnet.Bottleneck": Branch(
        "conv1 bn1 act1 conv2 bn2 drop_block act2 aa conv3 bn3 se drop_path", "act3"
    ),
    "timm.models.resnetv2.PreActBasic": Branch("norm1 conv1 norm2 conv2 drop_path"),
    "timm.models.resnetv2.PreActBottleneck": Branch("norm1 conv1 norm2 conv2 norm3 conv3 drop_path"),
    "timm.models.resnetv2.Bottleneck": Branch("conv1 norm1 conv2 norm2 conv3 norm3 drop_path", "act3"),
    "timm.models.regnet.Bottleneck": Branch("conv1 conv2 se conv3 drop_path", "act3", added="downsample"),
    "timm.models.regnet.PreBottleneck": Branch(added="downsample"),
    "timm.models.senet.SEBottleneck": _LEGACY_SE,
    "timm.models.senet.SEResNetBottleneck": _LEGACY_SE,
    "timm.models.senet.SEResNeXtBottleneck": _LEGACY_SE,
    "timm.models.senet.SEResNetBlock": Branch("conv1 bn1 relu conv2 bn2 relu se_module", "relu"),
    "timm.models.tresnet.BasicBlock": Branch("conv1 conv2 se drop_path", "act"),
    "timm.models.tresnet.Bottleneck": Branch("conv1 conv2 se conv3 drop_path", "act"),
    "timm.models.byobnet.BasicBlock": Branch("conv1_kxk attn conv2_kxk attn_last drop_path", "act", added="shortcut"),
    "timm.models.byobnet.BottleneckBlock": Branch(
        "conv1_1x1 conv2_kxk conv2b_kxk attn conv3_1x1 attn_last drop_path", "act", added="shortcut"
    ),
    "timm.models.byobnet.DarkBlock": Branch("conv1_1x1 attn conv2_kxk attn_last drop_path", "act", added="shortcut"),
    "timm.models.byobnet.EdgeBlock": Branch("conv1_kxk attn conv2_1x1 attn_last drop_path", "act", added="shortcut"),
    "timm.models.byobnet.SelfAttnBlock": Branch(
        "conv1_1x1 conv2_kxk self_attn post_attn conv3_1x1 drop_path", "act", added="shortcut"
    ),
    "timm.models.byobnet.RepVggBlock": Branch(added="identity"),
    "timm.models.cspnet.BottleneckBlock": Branch("conv1 conv2 attn2 conv3 attn3 drop_path", "act3"),
    "timm.models.cspnet.DarkBlock": _CSP_TWO,
    "timm.models.cspnet.EdgeBlock": _CSP_TWO,
    "timm.models.nfnet.NormFreeBlock": _WHOLE,
    "timm.models.inception_resnet_v2.Block35": _WHOLE,
    "timm.models.inception_resnet_v2.Block17": _WHOLE,
    "timm.models.inception_resnet_v2.Block8": _WHOLE,
    "timm.models.res2net.Bottle2neck": _WHOLE,
    "timm.models.resnest.ResNestBottleneck": _WHOLE,
    "timm.models.sknet.SelectiveKernelBasic": _WHOLE,
    "timm.models.sknet.SelectiveKernelBottleneck": _WHOLE,
    "timm.models.convnext.ConvNeXtBlock": _WHOLE,
    "timm.models.vision_transformer.Block": _WHOLE,
    "timm.models._efficientnet_blocks.ConvBnAct": _SKIP,
    "timm.models._efficientnet_blocks.DepthwiseSeparableConv": _SKIP,
    "timm.models._efficientnet_blocks.InvertedResidual": _SKIP,
    "timm.models._efficientnet_blocks.UniversalInvertedResidual": _SKIP,
    "timm.models._efficientnet_blocks.MobileAttention": _SKIP,
    "timm.models._efficientnet_blocks.EdgeResidual": _SKIP,
    "timm.models._efficientnet_blocks.CondConvResidual": _SKIP,
}
SHORTCUTS = ("downsample", "shortcut")
CHAINS = ("timm.models.regnet.RegStage",)  # call their children one after the other, as nn.Sequential does


class PreActivationBranch(FromBlock):
    """F(t, x) = f(x) of a block that computes x + f(x).

    Args:
        block: the block; it is shared, not copied.
        layers: names of the layers of f in order; one that is None or missing is left out.
    """

    def __init__(self, block: nn.Module, layers: str):
        super().__init__(block)
        self.layers = layers

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        for name in self.layers.split():
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


def is_residual_block(module: nn.Module, extra: tuple[type[nn.Module], ...] = ()) -> bool:
    """Whether a module is a residual block, known or of one of the classes `extra`, whatever its shortcut."""
    return class_path(module) in BRANCHES or (bool(extra) and isinstance(module, extra))


def is_identity_block(module: nn.Module, extra: tuple[type[nn.Module], ...] = ()) -> bool:
    """Whether a residual block, known or of one of the classes `extra`, adds to its input and keeps its shape."""
    if not is_residual_block(module, extra):
        return False
    branch = BRANCHES.get(class_path(module), _WHOLE)
    if branch.added and getattr(module, branch.added, None) in (None, False):
        return False
    if any(_has_layers(getattr(module, name, None)) for name in (*SHORTCUTS, branch.projection)):
        return False
    stride = getattr(module, "stride", 1)
    return all(n == 1 for n in (stride if isinstance(stride, tuple) else (stride,)))


def _has_layers(shortcut: object) -> bool:
    if shortcut is None or isinstance(shortcut, nn.Identity):
        return False
    return not (isinstance(shortcut, nn.Sequential) and len(shortcut) == 0)


def open_block(block: nn.Module) -> FromBlock:
    """The residual function of a shape-preserving block, on the block's own layers.

    An Euler step of size 1 is the block. For blocks of the classes in `BRANCHES` that add to their input the branch
    itself is evaluated; for any other it is F(t, x) = block(x) - x.

    Args:
        block: a module with `forward(x)` that keeps the shape of x: (batch, ...).

    Returns:
        A residual function that holds `block` itself; training one trains the other.

    Raises:
        InputError: `block` is not a module.
    """
    branch = BRANCHES.get(class_path(block), _WHOLE)
    if branch.layers is None or not is_identity_block(block):
        return from_block(block)
    last = None if branch.last is None else getattr(block, branch.last, None)
    if last is None or type(last) is nn.Identity:
        return PreActivationBranch(block, branch.layers)
    return PostActivationBranch(block, branch.layers) if type(last) is nn.ReLU else from_block(block)

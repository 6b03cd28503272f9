"""What stands between the blocks of a classifier: augmentation of the state, and the change of width and resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from odenet.errors import InputError
from odenet.residual.layers import norm_layer


class Augment(nn.Module):
    """Append `extra` zero channels (features), so that paths that would cross have room to pass each other.

    Shape:
        (batch, channels, ...) -> (batch, channels + extra, ...)

    Reference:
        Dupont et al. 2019, Augmented Neural ODEs.
    """

    def __init__(self, extra: int):
        super().__init__()
        if not isinstance(extra, int) or isinstance(extra, bool) or extra < 0:
            raise InputError(f"augment must be a number of extra channels, 0 or more, got {extra!r}")
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        if self.extra == 0:
            return x
        return torch.cat([x, x.new_zeros(x.shape[0], self.extra, *x.shape[2:])], dim=1)

    def extra_repr(self) -> str:
        return f"{self.extra}"


class Downsample(nn.Module):
    """A residual block that halves the resolution and changes the width, with a projection shortcut.

        conv3x3(relu(norm(conv3x3_stride2(relu(norm(x)))))) + conv1x1_stride2(relu(norm(x)))

    Shape:
        (batch, inputs, H, W) -> (batch, outputs, ceil(H/2), ceil(W/2))

    Reference:
        He et al. 2015, Deep Residual Learning (option B shortcut); pre-activation of He et al. 2016.
    """

    def __init__(self, inputs: int, outputs: int, norm: str = "group"):
        super().__init__()
        self.norm1 = norm_layer(norm, inputs, True)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.norm2 = norm_layer(norm, outputs, True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm1(x))
        return self.conv2(functional.relu(self.norm2(self.conv1(x)))) + self.shortcut(x)

"""Functions without sharp turns, on which captured and eager solves differ by rounding."""

import torch
from torch import nn


class Smooth(nn.Module):
    """x' = tanh(x A) sin(3 t) + c x."""

    def __init__(self):
        super().__init__()
        self.A = nn.Parameter(torch.randn(3, 3, dtype=torch.float64))
        self.register_buffer("c", torch.tensor(-0.5, dtype=torch.float64))

    def forward(self, t, x, u=0.0):
        return torch.tanh(x @ self.A) * torch.sin(3 * t) + self.c * x + u


class Image(nn.Module):
    """GroupNorm, tanh, 3x3 convolution, of images whose channels lie together."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, t, x):
        assert x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        return self.conv(torch.tanh(self.norm(x))) * torch.cos(t)

"""A plain network: the same layers without shortcuts, for comparison."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from odenet.depth import weights_over_depth


class Plain(nn.Module):
    """x ← F_n(t_n, x), N times: the layers of a residual network without the shortcuts.

    Args:
        F: residual function.
        steps: N, number of layers.
        weights: as in `ResNet`.
        **walk: the other arguments of a block, not used.

    Reference:
        He et al. 2015, Deep Residual Learning for Image Recognition (plain networks).
    """

    def __init__(self, F: Any, steps: int, weights: Any = "untied", **walk: Any):
        super().__init__()
        self.weights, self.steps = weights_over_depth(F, weights, steps), steps

    def forward(self, x: Tensor) -> Tensor:
        """The state after the last layer, of x's shape."""
        for n in range(self.steps):
            layer = self.weights.piece(n * self.weights.pieces // self.steps)
            x = layer(torch.full((), n / self.steps, dtype=x.dtype, device=x.device), x)
        return x

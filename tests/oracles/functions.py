"""Residual functions to solve with: small ones of every registered kind, and one that keeps a diary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from odenet.residual import residuals

MADE = {
    "mlp": lambda make: make(3, width=8, layers=1, time="concat"),
    "conv": lambda make: make(2, time="concat", activation="tanh"),
    "bottleneck": lambda make: make(4, width=2, time="film", activation="tanh"),
    "from_block": lambda make: make(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))),
    "hamiltonian": lambda make: make(4, width=8),
    "second_order": lambda make: make(4),
    "momentum": lambda make: make(4),
}


def make_residual(name: str) -> nn.Module:
    """A small float64 residual function of a registered kind; a new kind is tried as make(channels)."""
    return MADE.get(name, lambda make: make(3))(residuals[name]).double()


def residual_state(F: nn.Module) -> Tensor:
    """A state that F takes: an image if it has channels, else vectors."""
    channels = getattr(F, "channels", None)
    shape = (2, getattr(F, "dim", 3)) if channels is None else (2, channels, 3, 3)
    return torch.randn(shape, dtype=torch.float64)


class Counted(nn.Module):
    """F with a diary of its calls: their number, and the times it was shown."""

    def __init__(self, F: Any):
        super().__init__()
        self.F, self.times = F, []

    @property
    def calls(self) -> int:
        return len(self.times)

    def forward(self, t: Tensor, x: Tensor, *args: Any) -> Tensor:
        self.times.append(float(t))
        return self.F(t, x, *args)

"""More room than the data has: a residual function on a state with extra features, and the way in and out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from odenet.errors import InputError, UnknownNameError
from odenet.residual.layers import check_size
from odenet.residual.mlp import MLP
from odenet.residual.operators import Operator, per_channel
from odenet.residual.registry import residuals

STARTS = ("zeros", "learned")


@residuals.register("augmented")
class Augmented(nn.Module):
    """F on a state (x, a) whose last `extra` features (channels) are not data: paths of x may cross.

    `lift` makes such a state of x, and `drop` takes x out again: `F.drop(block(F.lift(x)))`. In a classifier the
    network's own `augment` does that, with zeros.

    Args:
        dim: features (channels) of (x, a).
        F: a residual function of `dim` features, or what makes one from that number; default an `MLP`.
        extra: features of a, less than dim.
        start: a at t0: "zeros", or "learned" (a = W x + b).

    Shape:
        t: () or (batch,); (x, a): (batch, dim, ...); result: likewise.

    Raises:
        InputError: a value that cannot be used.

    Reference:
        Dupont et al. 2019, Augmented Neural ODEs; Massaroli et al. 2020, Dissecting Neural ODEs (learned).
    """

    def __init__(self, dim: int, F: Callable[..., Any] = MLP, extra: int = 1, start: str = "zeros"):
        super().__init__()
        check_size("dim", dim)
        check_size("extra", extra)
        if extra >= dim:
            raise InputError(f"extra={extra} of dim={dim} features leaves none for x; give a smaller extra")
        if start not in STARTS:
            raise UnknownNameError("start", start, STARTS)
        self.dim, self.extra, self.start = dim, extra, start
        self.F = F if isinstance(F, nn.Module) else F(dim)
        image = hasattr(self.F, "channels")
        if image:
            self.channels = dim
        if start == "learned":
            self.W = Operator(dim - extra, extra, 1 if image else None)
            self.b = nn.Parameter(torch.zeros(extra))

    def lift(self, x: Tensor) -> Tensor:
        """(x, a) at t0.

        Args:
            x: (batch, dim - extra, ...).

        Returns:
            (batch, dim, ...).

        Raises:
            InputError: x has another number of features.
        """
        if x.dim() < 2 or x.shape[1] != self.dim - self.extra:
            raise InputError(f"lift takes (batch, {self.dim - self.extra}, ...), got {tuple(x.shape)}")
        if self.start == "learned":
            a = self.W(x) + per_channel(self.b, x)
        else:
            a = x.new_zeros(x.shape[0], self.extra, *x.shape[2:])
        return torch.cat([x, a], 1)

    def drop(self, state: Tensor) -> Tensor:
        """x out of (x, a)."""
        return state[:, : self.dim - self.extra]

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.F(t, x)

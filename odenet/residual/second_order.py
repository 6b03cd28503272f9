"""Second order in depth: any residual function as a force, with a velocity beside the state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from odenet.errors import InputError
from odenet.residual.mlp import MLP
from odenet.residual.operators import check_even
from odenet.residual.registry import residuals


class SecondOrder(nn.Module):
    """x' = v, m v' = F(t, x) - γ v for the state (x, v), the two halves of its axis 1.

    Paths of x may cross, because those of (x, v) need not. Without damping the symplectic solvers take it, and if F is
    the slope of a potential, F = -∇V, the energy ½ m |v|² + V(x) is constant.

    Args:
        dim: features (channels) of (x, v), even.
        F: the force: a residual function of dim/2 features, or what makes one from that number; default an `MLP`.
        mass: m, positive.
        damping: γ, at least 0.

    Shape:
        t: () or (batch,); (x, v): (batch, dim, ...); result: likewise.

    Raises:
        InputError: a value that cannot be used.

    Reference:
        Ruthotto and Haber 2020, Deep Neural Networks Motivated by Partial Differential Equations; Norcliffe et al.
        2020, On Second Order Behaviour in Augmented Neural ODEs.
    """

    def __init__(self, dim: int, F: Callable[..., Any] = MLP, mass: float = 1.0, damping: float = 0.0):
        super().__init__()
        check_even("dim", dim)
        if not mass > 0:
            raise InputError(f"mass must be positive, got {mass!r}")
        if not damping >= 0:
            raise InputError(f"damping must be 0 or more, got {damping!r}")
        self.dim, self.mass, self.damping = dim, float(mass), float(damping)
        self.F = F if isinstance(F, nn.Module) else F(dim // 2)
        if hasattr(self.F, "channels"):
            self.channels = dim

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        x, v = x.chunk(2, 1)
        force = self.F(t, x)
        if self.damping:
            force = force - self.damping * v
        return torch.cat([v, force / self.mass], 1)


residuals.add("second_order", SecondOrder)


@residuals.register("momentum")
class Momentum(SecondOrder):
    """x' = v, ε v' = F(t, x) - v: a residual network with momentum, in continuous depth.

    Symplectic Euler with h = 1 is the update of the paper, v ← γ v + (1 - γ) F(x), x ← x + v, with ε = 1/(1 - γ).
    ε → 0 gives back x' = F(t, x).

    Args:
        dim: features (channels) of (x, v), even.
        F: a residual function of dim/2 features, or what makes one from that number; default an `MLP`.
        epsilon: ε, positive.

    Shape:
        t: () or (batch,); (x, v): (batch, dim, ...); result: likewise.

    Raises:
        InputError: a value that cannot be used.

    Reference:
        Sander et al. 2021, Momentum Residual Neural Networks.
    """

    def __init__(self, dim: int, F: Callable[..., Any] = MLP, epsilon: float = 1.0):
        if not epsilon > 0:
            raise InputError(f"epsilon must be positive, got {epsilon!r}")
        super().__init__(dim, F, mass=epsilon, damping=1.0)

"""A residual function that conserves an energy: Hamilton's equations of a learned H."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from odenet.errors import InputError
from odenet.residual.layers import check_size
from odenet.residual.operators import Operator, check_even, per_channel
from odenet.residual.registry import residuals

Energy = Callable[[Tensor, Tensor], Tensor]


class LogCosh(nn.Module):
    """A learned scalar function E(x) = Σ_i w_i log cosh((K x + b)_i), with ∇E = Kᵀ (w tanh(K x + b)).

    Args:
        inputs: features (channels) of x.
        width: terms of the sum (channels of them).
        kernel: odd size of a convolution, for images; None for vectors.
    """

    def __init__(self, inputs: int, width: int, kernel: int | None = None):
        super().__init__()
        self.K = Operator(inputs, width, kernel)
        self.bias, self.weight = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights; all w_i start at 1, so E starts convex."""
        self.K.reset_parameters()
        bound = self.K.weight[0].numel() ** -0.5
        nn.init.uniform_(self.bias, -bound, bound)
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """E of each sample, shape (batch,)."""
        z = self.K(x) + per_channel(self.bias, x)
        log_cosh = z.abs() + torch.nn.functional.softplus(-2 * z.abs()) - torch.log(z.new_tensor(2.0))
        return (per_channel(self.weight, x) * log_cosh).flatten(1).sum(1)

    def slope(self, x: Tensor) -> Tensor:
        """∇E, of x's shape."""
        z = self.K(x) + per_channel(self.bias, x)
        return self.K.transposed(per_channel(self.weight, x) * torch.tanh(z))


@residuals.register("hamiltonian")
class Hamiltonian(nn.Module):
    """q' = ∂H/∂p, p' = -∂H/∂q for the state x = (q, p), the two halves of its axis 1: H is constant along the flow.

    Args:
        dim: features (channels) of x, even.
        width: hidden units of the energy.
        separable: H(q, p) = T(p) + V(q), which the symplectic solvers take; otherwise one function of q and p.
        kernel: odd size of a convolution, for images; None for vectors.
        H: an energy of your own instead, H(t, x) -> (batch,), a module or function of which autograd takes the slope;
            then `width`, `separable` and `kernel` are not used. If H depends on t it is not conserved.

    Shape:
        t: () or (batch,); x: (batch, dim), or (batch, dim, H, W) with a kernel; result: as x.

    Raises:
        InputError: a value that cannot be used.

    Reference:
        Haber and Ruthotto 2017, Stable Architectures for Deep Neural Networks; Greydanus et al. 2019, Hamiltonian
        Neural Networks.
    """

    def __init__(
        self,
        dim: int,
        width: int = 64,
        separable: bool = True,
        kernel: int | None = None,
        H: Energy | None = None,
    ):
        super().__init__()
        check_even("dim", dim)
        check_size("width", width)
        if H is not None and not callable(H):
            raise InputError(f"H must be called as H(t, x) and give one energy a sample, got {type(H).__name__}")
        self.dim, self.separable, self.H = dim, separable and H is None, H
        if kernel is not None:
            self.channels = dim
        half = dim // 2
        if H is None and separable:
            self.kinetic, self.potential = LogCosh(half, width, kernel), LogCosh(half, width, kernel)
        elif H is None:
            self.whole = LogCosh(dim, width, kernel)

    def energy(self, t: Tensor, x: Tensor) -> Tensor:
        """H of each sample, shape (batch,)."""
        if self.H is not None:
            return self.H(t, x)
        if not self.separable:
            return self.whole(x)
        q, p = x.chunk(2, 1)
        return self.kinetic(p) + self.potential(q)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        if self.separable:
            q, p = x.chunk(2, 1)
            return torch.cat([self.kinetic.slope(p), -self.potential.slope(q)], 1)
        H = self.H
        slope = self.whole.slope(x) if H is None else torch.func.grad(lambda y: H(t, y).sum())(x)
        along_q, along_p = slope.chunk(2, 1)
        return torch.cat([along_p, -along_q], 1)

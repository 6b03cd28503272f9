"""A residual function whose flow neither explodes nor forgets: antisymmetric weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from odenet.errors import InputError, UnknownNameError
from odenet.residual.layers import activation_layer, check_size, check_time, time_like
from odenet.residual.operators import Operator, per_channel
from odenet.residual.registry import residuals

MONOTONE = ("relu", "elu", "softplus", "tanh")


@residuals.register("antisymmetric")
class Antisymmetric(nn.Module):
    """F(t, x) = φ((W - Wᵀ - γ I) x + b): all eigenvalues of ∂F/∂x have real parts between -γ and 0.

    φ is monotone with slope at most 1, so ∂F/∂x = D (W - Wᵀ - γ I) with D diagonal, 0 ≤ D ≤ 1, which is similar to an
    antisymmetric matrix minus γ D. With γ = 0 the eigenvalues are imaginary, and Euler steps, whose stability region
    touches the imaginary axis in 0 alone, want a γ > 0.

    Args:
        dim: features (channels) of x.
        gamma: diffusion γ, at least 0.
        kernel: odd size of a convolution, for images; None for vectors.
        activation: φ, one of relu, elu, softplus, tanh.
        time: "none", or "concat" (t as one more input: b + c t).

    Shape:
        t: () or (batch,); x: (batch, dim), or (batch, dim, H, W) with a kernel; result: as x.

    Raises:
        InputError: a value that cannot be used.

    Reference:
        Haber and Ruthotto 2017, Stable Architectures for Deep Neural Networks; Chang et al. 2019, AntisymmetricRNN.
    """

    def __init__(
        self, dim: int, gamma: float = 0.0, kernel: int | None = None, activation: str = "tanh", time: str = "none"
    ):
        super().__init__()
        check_size("dim", dim)
        check_time(time)
        if time == "film":
            raise InputError("time='film' would scale the antisymmetric weights; use time='concat' or 'none'")
        if activation not in MONOTONE:
            raise UnknownNameError("monotone activation", activation, MONOTONE)
        if not isinstance(gamma, int | float) or isinstance(gamma, bool) or not 0 <= gamma < float("inf"):
            raise InputError(f"gamma must be a number, 0 or more, got {gamma!r}")
        self.dim, self.gamma = dim, float(gamma)
        if kernel is not None:
            self.channels = dim
        self.K = Operator(dim, dim, kernel)
        self.bias = nn.Parameter(torch.zeros(dim))
        self.slope = nn.Parameter(torch.zeros(dim)) if time == "concat" else None
        self.activation = activation_layer(activation)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights, as at construction."""
        self.K.reset_parameters()
        bound = self.K.weight[0].numel() ** -0.5
        for p in (self.bias, self.slope):
            if p is not None:
                nn.init.uniform_(p, -bound, bound)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        y = self.K(x) - self.K.transposed(x) + per_channel(self.bias, x)
        if self.gamma:
            y = y - self.gamma * x
        if self.slope is not None:
            y = y + time_like(t, x) * per_channel(self.slope, x)
        return self.activation(y)

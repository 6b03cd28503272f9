"""A residual function with a Lipschitz constant that is known."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from odenet.errors import InputError, UnknownNameError
from odenet.residual.layers import activation_layer, check_size, check_time, time_like
from odenet.residual.operators import Operator, per_channel
from odenet.residual.registry import residuals

ONE_LIPSCHITZ = ("relu", "elu", "softplus", "tanh")


@residuals.register("lipschitz_bounded")
class LipschitzBounded(nn.Module):
    """F(t, x) = W_L φ(... φ(W_1 x + b_1)) + b_L with ‖F(t, x) - F(t, y)‖ ≤ c ‖x - y‖.

    Each W is divided by max(1, ‖W‖ / c^(1/L)) when it is used. For vectors ‖W‖ is the largest singular value itself
    (a power iteration's estimate would come from below); for convolutions it is the sum over the taps, an upper bound.
    With c < 1/h an Euler step can be undone by fixed-point iteration.

    Args:
        dim: features (channels) of x.
        bound: c, positive.
        width: hidden units (channels).
        layers: number of hidden layers.
        kernel: odd size of the convolutions, for images; None for vectors.
        activation: φ, one of relu, elu, softplus, tanh.
        time: "none", or "concat" (t as one more input of the first layer).

    Shape:
        t: () or (batch,); x: (batch, dim), or (batch, dim, H, W) with a kernel; result: as x.

    Raises:
        InputError: a value that cannot be used.

    Reference:
        Miyato et al. 2018, Spectral Normalization; Behrmann et al. 2019, Invertible Residual Networks.
    """

    def __init__(
        self,
        dim: int,
        bound: float = 1.0,
        width: int = 64,
        layers: int = 2,
        kernel: int | None = None,
        activation: str = "tanh",
        time: str = "none",
    ):
        super().__init__()
        for name, value in (("dim", dim), ("width", width), ("layers", layers)):
            check_size(name, value)
        check_time(time)
        if time == "film":
            raise InputError("time='film' would scale past the bound; use time='concat' or 'none'")
        if activation not in ONE_LIPSCHITZ:
            raise UnknownNameError("activation with slope at most 1", activation, ONE_LIPSCHITZ)
        if not isinstance(bound, int | float) or isinstance(bound, bool) or not 0 < bound < float("inf"):
            raise InputError(f"bound must be a positive number, got {bound!r}")
        self.dim, self.bound = dim, float(bound)
        if kernel is not None:
            self.channels = dim
        sizes = [dim, *[width] * layers, dim]
        self.operators = nn.ModuleList(Operator(a, b, kernel) for a, b in pairwise(sizes))
        self.biases = nn.ParameterList(torch.empty(b) for b in sizes[1:])
        self.slope = nn.Parameter(torch.empty(sizes[1])) if time == "concat" else None
        self.activation = activation_layer(activation)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights, as at construction."""
        for operator, bias in zip(self.operators, self.biases, strict=True):
            operator.reset_parameters()  # pyright: ignore[reportCallIssue]
            reach = operator.weight[0].numel() ** -0.5  # pyright: ignore[reportIndexIssue]
            nn.init.uniform_(bias, -reach, reach)
        if self.slope is not None:
            nn.init.uniform_(self.slope, -1, 1)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        share = self.bound ** (1 / len(self.operators))
        for i, (operator, bias) in enumerate(zip(self.operators, self.biases, strict=True)):
            if i:
                x = self.activation(x)
            x = operator(x) / (operator.norm_bound() / share).clamp(min=1)  # pyright: ignore[reportCallIssue]
            x = x + per_channel(bias, x)
            if i == 0 and self.slope is not None:
                x = x + time_like(t, x) * per_channel(self.slope, x)
        return x

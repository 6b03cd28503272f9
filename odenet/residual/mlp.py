"""Multilayer perceptron as a residual function of vectors."""

from __future__ import annotations

from torch import Tensor, nn

from odenet.residual.layers import PreActivation, TimeLinear, check_size, check_time, reset_tree, zero_
from odenet.residual.registry import residuals


@residuals.register("mlp")
class MLP(nn.Module):
    """F(t, x) = W_L φ(norm(... φ(norm(W_1 x + b_1)))) + b_L for vectors x.

    Args:
        dim: features of x.
        width: hidden units of each hidden layer.
        layers: number of hidden layers.
        activation: φ, one of relu, elu, gelu, silu, softplus, tanh.
        norm: "group" (default), "layer", "batch" or "none", on hidden layers.
        time: "none", "concat" (t as one more input of every layer) or "film" (scale and shift by t).
        zero_init: start with a zero last layer, so that F = 0.

    Shape:
        t: () or (batch,); x: (batch, dim); result: (batch, dim).

    Raises:
        InputError: a size that is not positive, or an unknown name.
    """

    def __init__(
        self,
        dim: int,
        width: int = 64,
        layers: int = 2,
        activation: str = "tanh",
        norm: str = "group",
        time: str = "none",
        zero_init: bool = False,
    ):
        super().__init__()
        for name, value in (("dim", dim), ("width", width), ("layers", layers)):
            check_size(name, value)
        check_time(time)
        self.dim, self.width, self.zero_init = dim, width, zero_init
        self.linears = nn.ModuleList(TimeLinear(dim if i == 0 else width, width, time) for i in range(layers))
        self.between = nn.ModuleList(PreActivation(width, norm, activation, time, False) for _ in range(layers))
        self.last = TimeLinear(width, dim, time)
        if zero_init:
            zero_(self.last.linear)

    def reset_parameters(self) -> None:
        """Draw new weights, as at construction."""
        for child in self.children():
            reset_tree(child)
        if self.zero_init:
            zero_(self.last.linear)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        for linear, between in zip(self.linears, self.between, strict=True):
            x = between(t, linear(t, x))
        return self.last(t, x)

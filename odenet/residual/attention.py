"""A pre-norm transformer layer as a residual function of tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from odenet.errors import InputError
from odenet.residual.layers import Film, activation_layer, check_size, check_time, reset_tree
from odenet.residual.registry import residuals


@residuals.register("attention")
class Attention(nn.Module):
    """F(t, x) = a + W₂ φ(W₁ norm(x + a)),  a = attention(norm(x)): block(x) - x of a pre-norm transformer layer.

    Args:
        dim: features of a token (channels of an image).
        heads: attention heads, a divisor of dim; default the largest divisor up to 4.
        width: hidden units of the token-wise network; default 4 dim.
        activation: φ, one of relu, elu, gelu, silu, softplus, tanh.
        time: "none", or "film" (scale and shift of the normalised tokens by t).

    Shape:
        t: () or (batch,); x: (batch, tokens, dim), or an image (batch, dim, H, W), whose pixels are the tokens; or
        (batch, dim), one token; result: as x.

    Raises:
        InputError: a value that cannot be used.

    Reference:
        Vaswani et al. 2017, Attention Is All You Need; Lu et al. 2019, Understanding and Improving Transformer From a
        Multi-Particle Dynamic System Point of View; Xiong et al. 2020 (pre-norm).
    """

    def __init__(
        self,
        dim: int,
        heads: int | None = None,
        width: int | None = None,
        activation: str = "gelu",
        time: str = "none",
    ):
        super().__init__()
        check_size("dim", dim)
        heads = max(n for n in range(1, 5) if dim % n == 0) if heads is None else heads
        width = 4 * dim if width is None else width
        check_size("heads", heads)
        check_size("width", width)
        check_time(time)
        if dim % heads:
            raise InputError(f"heads must divide dim={dim}, got {heads}")
        if time == "concat":
            raise InputError("time='concat' is not for tokens; use time='film' or 'none'")
        self.dim, self.heads = dim, heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.film1, self.film2 = (Film(dim), Film(dim)) if time == "film" else (None, None)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.hidden, self.last = nn.Linear(dim, width), nn.Linear(width, dim)
        self.activation = activation_layer(activation)

    def reset_parameters(self) -> None:
        """Draw new weights, as at construction."""
        for child in self.children():
            reset_tree(child)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        tokens = x.flatten(2).mT if x.dim() == 4 else x.unsqueeze(1) if x.dim() == 2 else x
        a = self._attend(_normed(self.norm1, self.film1, t, tokens))
        y = _normed(self.norm2, self.film2, t, tokens + a)
        y = a + self.last(self.activation(self.hidden(y)))
        return y.mT.reshape(x.shape) if x.dim() == 4 else y.reshape(x.shape)

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


def _normed(norm: nn.LayerNorm, film: Film | None, t: Tensor, x: Tensor) -> Tensor:
    x = norm(x)
    return x if film is None else torch.movedim(film(t, torch.movedim(x, -1, 1)), 1, -1)

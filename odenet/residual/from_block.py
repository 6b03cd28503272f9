"""Any shape-preserving block as a residual function."""

from __future__ import annotations

from torch import Tensor, nn

from odenet.errors import InputError, ResidualError
from odenet.residual.registry import residuals


class FromBlock(nn.Module):
    """F(t, x) = block(x) - x, so that an Euler step of size 1 is the block itself.

    Args:
        block: a module with `forward(x)` that keeps the shape of x; it is shared, not copied. Of a tuple, such as
            (hidden states, attention, cache), the first part counts.
    """

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        y = self.block(x)
        if isinstance(y, tuple) and y:
            y = y[0]
        if not isinstance(y, Tensor) or y.shape != x.shape:
            got = tuple(y.shape) if isinstance(y, Tensor) else f"a {type(y).__name__}"
            raise ResidualError(
                f"a residual block must keep the shape of x, {tuple(x.shape)}, but {type(self.block).__name__} "
                f"returned {got}; leave blocks that change width or resolution between the chains"
            )
        return y - x


def from_block(block: nn.Module) -> FromBlock:
    """Open a residual block: F(t, x) = block(x) - x.

    `ResNet(from_block(block), steps=1)` computes block(x).

    Args:
        block: a module with `forward(x)` that keeps the shape of x: (batch, ...).

    Returns:
        A residual function that holds `block` itself; training one trains the other.

    Raises:
        InputError: `block` is not a module.
    """
    if not isinstance(block, nn.Module):
        raise InputError(f"from_block takes an nn.Module with forward(x), got {type(block).__name__}")
    return FromBlock(block)


residuals.add("from_block", from_block)

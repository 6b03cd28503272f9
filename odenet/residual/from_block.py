"""Any shape-preserving block as a residual function."""

from __future__ import annotations

from torch import Tensor, nn

from odenet.errors import InputError
from odenet.residual.registry import residuals


class FromBlock(nn.Module):
    """F(t, x) = block(x) - x, so that an Euler step of size 1 is the block itself.

    Args:
        block: a module with `forward(x)` that keeps the shape of x; it is shared, not copied.
    """

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.block(x) - x


@residuals.register("from_block")
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

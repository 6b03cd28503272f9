"""Any shape-preserving block as a residual function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from odenet.errors import InputError, ResidualError
from odenet.residual.registry import residuals


class FromBlock(nn.Module):
    """F(t, x, *args) = block(x, *args, **bound) - x, so that an Euler step of size 1 is the block itself.

    Args:
        block: a module with `forward(x)` that keeps the shape of x; it is shared, not copied. Of a tuple, such as
            (hidden states, attention, cache), the first part counts.
        **bound: keyword arguments for every call of the block, such as a mask. Tensors in them, also in tuples, follow
            `.to()`, and are not part of the state_dict; what changes from call to call goes through `args`.
    """

    def __init__(self, block: nn.Module, **bound: Any):
        super().__init__()
        self.block, self.bound = block, bound

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FromBlock:
        self.bound = tree_map(lambda value: fn(value) if isinstance(value, Tensor) else value, self.bound)
        return super()._apply(fn, recurse)

    def forward(self, t: Tensor, x: Tensor, *args: Any) -> Tensor:
        y = self.block(x, *args, **self.bound)
        if isinstance(y, tuple) and y:
            y = y[0]
        if not isinstance(y, Tensor) or y.shape != x.shape:
            got = tuple(y.shape) if isinstance(y, Tensor) else f"a {type(y).__name__}"
            raise ResidualError(
                f"a residual block must keep the shape of x, {tuple(x.shape)}, but {type(self.block).__name__} "
                f"returned {got}; leave blocks that change width or resolution between the chains"
            )
        return y - x


def from_block(block: nn.Module, **bound: Any) -> FromBlock:
    """Open a residual block: F(t, x, *args) = block(x, *args, **bound) - x.

    `ResNet(from_block(block), steps=1)` computes block(x).

    Args:
        block: a module with `forward(x)` that keeps the shape of x: (batch, ...).
        **bound: keyword arguments for every call of the block, such as a mask.

    Returns:
        A residual function that holds `block` itself; training one trains the other.

    Raises:
        InputError: `block` is not a module.
    """
    if not isinstance(block, nn.Module):
        raise InputError(f"from_block takes an nn.Module with forward(x), got {type(block).__name__}")
    return FromBlock(block, **bound)


residuals.add("from_block", from_block)

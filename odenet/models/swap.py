"""A trained network under another solver, its weights untouched."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from odenet.blocks import Block


def swap_blocks(model: nn.Module, replace: Callable[[Block], nn.Module]) -> nn.Module:
    """A model that shares every parameter and buffer with `model`, but has its blocks replaced.

    Args:
        model: any module with blocks in it; it is left as it is.
        replace: makes the new block from the old one, e.g. `lambda b: b.discretize(20, solver="rk4")`.

    Returns:
        The new model. Training one trains the other.
    """
    if isinstance(model, Block):
        return replace(model)
    twin = copy.copy(model)
    twin._modules = {
        name: child if child is None else swap_blocks(child, replace) for name, child in model._modules.items()
    }
    return twin

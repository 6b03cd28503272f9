"""A trained network under another solver, its weights untouched."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from odenet.blocks import Block, ODEBlock
from odenet.depth import DepthWeights, PiecewiseConstant
from odenet.errors import InputError


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


def label_of(walk: Mapping[str, Any]) -> str:
    """A solver as a column's heading: "Euler 8", "dopri5 1e-3"."""
    name = "Euler" if walk["solver"] == "euler" else walk["solver"]
    rtol = walk.get("rtol")
    if walk.get("steps") is not None:
        name = f"{name} {walk['steps']}"
    elif rtol is not None:
        name = f"{name} {rtol:.0e}".replace("e-0", "e-")
    return name if walk.get("pieces") is None else f"{name}, {walk['pieces']} layers"


def rewalk(block: Block, walk: Mapping[str, Any]) -> tuple[Block, str]:
    """A block that shares its weights with `block` and walks them another way.

    Untied weights walked with fewer steps than layers keep every k-th layer: Euler with the weights read at the start
    of each step. Where the walk says `pieces`, the weights are refined or coarsened to as many, best in L2 over depth,
    and those are new weights.

    Args:
        block: the block as trained.
        walk: solver, steps or rtol and atol, backend, and pieces.

    Returns:
        The new block, and a note on what was left out, if anything.

    Raises:
        InputError: a walk that this block cannot take.
    """
    weights, note = block.weights, ""
    walk = dict(walk)
    pieces, steps = walk.pop("pieces", None), walk.get("steps")
    if pieces is not None and pieces != weights.pieces:
        weights, note = weights.coarsen(pieces), f"{weights.pieces} layers made {pieces}"
    if steps is not None and weights.pieces > 1 and steps < weights.pieces:
        weights, note = _every(weights, steps)
    return ODEBlock(weights, t0=block.t0, t1=block.t1, gradient="autograd", **walk), note


def _every(weights: DepthWeights, steps: int) -> tuple[DepthWeights, str]:
    if not isinstance(weights, PiecewiseConstant) or weights.pieces % steps:
        raise InputError(f"{weights.pieces} layers cannot be walked in {steps} steps: {steps} does not divide them")
    stride = weights.pieces // steps
    return weights.every(stride), f"every {stride}{'nd' if stride == 2 else 'th'} layer"

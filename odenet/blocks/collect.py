"""What the blocks of a model have to say together."""

from __future__ import annotations

from torch import Tensor, nn

from odenet.blocks.block import Block
from odenet.solvers import Stats


def blocks_of(module: nn.Module) -> list[Block]:
    """Every block in a module, each once."""
    return [m for m in module.modules() if isinstance(m, Block)]


def collect_stats(module: nn.Module) -> Stats:
    """Sum of the statistics of every block in a module, for its last forward and backward pass."""
    return Stats.total(block.stats for block in blocks_of(module))


def take_penalties(module: nn.Module) -> list[Tensor]:
    """The regularisers of the last forward pass of every block that has some, each once: terms for the loss."""
    taken = [block.penalty for block in blocks_of(module) if block.penalty is not None]
    for block in blocks_of(module):
        block.penalty = None
    return taken

"""A network made of an adaptive solve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from odenet.solvers import backends

if TYPE_CHECKING:
    from odenet.blocks.block import Block
    from odenet.blocks.resnet import ResNet


@dataclass(frozen=True)
class Distillation:
    """A network made of an adaptive solve.

    Attributes:
        grid: ends of its steps.
        change: ||new - old|| / ||old|| of its answer against that of the block it came from.
        nfe: evaluations of F of the network.
        nfe_before: evaluations of F of the block.
    """

    grid: list[float]
    change: float
    nfe: int
    nfe_before: int


@torch.no_grad()
def distill(block: Block, x: Tensor, tol: float, solver: str | None, args: tuple[Any, ...]) -> ResNet:
    """A network whose layers are the steps that an adaptive solve accepts on given data; see `Block.distill`."""
    from odenet.blocks.ode import ODEBlock
    from odenet.blocks.resnet import ResNet

    methods = backends["native"].methods()
    own = block.scheme.solver if block.scheme.backend == "native" else "dopri5"
    solver = solver or (own if methods[own].adaptive and methods[own].fixed else "dopri5")
    picks = solver if solver not in methods or methods[solver].adaptive else "dopri5"
    adaptive = ODEBlock(block.weights, picks, rtol=tol, atol=tol, t0=block.t0, t1=block.t1)
    grid = adaptive.train(block.training).depths(x, args)
    network = ResNet(block.weights, None, solver=solver, t0=block.t0, t1=block.t1, grid=grid).train(block.training)
    before, after = block(x, *args), network(x, *args)
    change = float((after - before).norm() / before.norm())
    network.distillation = Distillation(grid, change, network.stats.nfe, block.stats.nfe)
    return network

"""Changes of depth during training: finer weights, tighter tolerances, another solver, at given epochs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from odenet.blocks import Block, blocks_of
from odenet.depth import DepthWeights
from odenet.depth.moments import move
from odenet.errors import InputError
from odenet.training.objective import CLASSIFICATION, Objective, outputs_of

Change = Callable[[Block], Block]


class Switch(NamedTuple):
    """A change that is due after a number of epochs.

    Attributes:
        epoch: epochs that have been trained before it.
        change: makes a block's successor.
    """

    epoch: int
    change: Change


class Continuation:
    """What becomes of the blocks of a model in the course of its training.

    Args:
        switches: the changes; in the order of their epochs, several may share one.
        label: what they are, with all numbers: part of what tells one run from another.

    Raises:
        InputError: an epoch that is no positive integer.
    """

    def __init__(self, switches: Sequence[Switch], label: str):
        for switch in switches:
            if not isinstance(switch.epoch, int) or isinstance(switch.epoch, bool) or switch.epoch < 1:
                raise InputError(f"depth can be changed after 1 epoch or more, got {switch.epoch!r}")
        self.switches = sorted(switches, key=lambda switch: switch.epoch)
        self.label = label

    def __str__(self) -> str:
        return self.label

    def check(self, model: nn.Module, epochs: int) -> None:
        """Raise `InputError` unless every change can be made to the blocks of `model` within the run."""
        if not blocks_of(model):
            raise InputError(f"{self.label} changes blocks, and the model {type(model).__name__} has none")
        for switch in self.switches:
            if switch.epoch >= epochs:
                raise InputError(f"{self.label} changes depth after {switch.epoch} epochs, and the run has {epochs}")
        self.advance(copy.deepcopy(model), epochs)

    def due(self, epoch: int) -> list[Change]:
        """The changes that come after `epoch` epochs."""
        return [switch.change for switch in self.switches if switch.epoch == epoch]

    def advance(self, model: nn.Module, epochs: int) -> None:
        """Make all changes of the first `epochs` epochs, as before loading what was trained that long."""
        for switch in self.switches:
            if switch.epoch <= epochs:
                apply(switch.change, model)


def apply(change: Change, model: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Let every block of `model` become its successor, in place; the optimizer's moments go along."""
    successors: dict[DepthWeights, DepthWeights] = {}  # weights that two blocks share stay shared
    for block in blocks_of(model):
        successor = change(block)
        weights = successors.setdefault(block.weights, successor.weights)
        block.__class__ = type(successor)
        block.weights, block.scheme = weights, successor.scheme
    if optimizer is not None:
        move(optimizer, nn.ModuleList(successors.keys()), nn.ModuleList(successors.values()))


@torch.no_grad()
def mean_loss(model: nn.Module, x: Tensor, y: Tensor, objective: Objective = CLASSIFICATION) -> float:
    """Mean loss in evaluation mode."""
    training = model.training
    model.eval()
    try:
        return float(objective.loss(outputs_of(model, x), y))
    finally:
        model.train(training)


def depth_doubling(epochs: Sequence[int], factor: int = 2) -> Continuation:
    """Refine the weights over depth (`Block.refine`): `factor` times the pieces, and the steps that they need.

    The function of depth stays the same; a network of untied layers gets `factor` times as many.

    Args:
        epochs: after how many epochs; one refinement for each.
        factor: of the pieces (of a global basis: of the functions).

    Reference:
        Queiruga et al. 2020, Continuous-in-Depth Neural Networks.
    """
    label = f"depth_doubling(epochs={list(epochs)}, factor={factor})"
    return Continuation([Switch(epoch, lambda block: block.refine(factor)) for epoch in epochs], label)


def tolerance_annealing(epochs: Sequence[int], factor: float = 0.1) -> Continuation:
    """Multiply the tolerances of adaptive blocks.

    Args:
        epochs: after how many epochs; one multiplication for each.
        factor: of rtol and atol, positive.

    Raises:
        InputError: the factor is not positive, or (when applied) a block is not adaptive.
    """
    if not factor > 0:
        raise InputError(f"the factor of the tolerances must be positive, got {factor!r}")

    def tighten(block: Block) -> Block:
        if not block.scheme.adaptive:
            raise InputError(f"a block that walks {block.scheme} has no tolerances to anneal; use an adaptive solver")
        rtol, atol = (tolerance * factor for tolerance in block.scheme.tolerances)
        twin = copy.copy(block)
        twin.scheme = block.scheme.but(rtol=rtol, atol=atol)
        return twin

    label = f"tolerance_annealing(epochs={list(epochs)}, factor={factor})"
    return Continuation([Switch(epoch, tighten) for epoch in epochs], label)


def to_adaptive(
    epoch: int,
    solver: str = "dopri5",
    rtol: float = 1e-3,
    atol: float = 1e-3,
    gradient: str = "checkpoint",
) -> Continuation:
    """From a network of steps, such as Euler's, to an ODE with the same weights (`Block.continuous`).

    Args:
        epoch: after how many epochs.
        solver: adaptive method.
        rtol: relative tolerance.
        atol: absolute tolerance.
        gradient: name of the gradient method.
    """
    label = f"to_adaptive(epoch={epoch}, solver={solver}, rtol={rtol}, atol={atol}, gradient={gradient})"
    change = lambda block: block.continuous(solver, rtol=rtol, atol=atol, gradient=gradient)  # noqa: E731
    return Continuation([Switch(epoch, change)], label)


def chain(parts: Mapping[str, Continuation]) -> Continuation:
    """Several continuations in one run.

    Args:
        parts: the continuations, under any names; where two change depth after the same epoch, in this order.
    """
    switches = [switch for part in parts.values() for switch in part.switches]
    return Continuation(switches, " and ".join(part.label for part in parts.values()))

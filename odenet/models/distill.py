"""From an adaptive solve to a network with the same steps, and from that to plain operations for export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from odenet.blocks import Block, Distillation, blocks_of
from odenet.errors import InputError
from odenet.models.swap import swap_blocks
from odenet.solvers import Problem
from odenet.solvers.stepper import NOTHING


@dataclass(frozen=True)
class ModelDistillation:
    """What became of a model whose blocks were distilled.

    Attributes:
        blocks: one report for each block.
        change: ||new - old|| / ||old|| of the model's output on the samples that were given.
        flips: share of them whose largest output is another one; nan unless the output is (batch, classes).
        accuracy: share that is classified rightly afterwards; nan without labels.
        accuracy_before: the same before.
    """

    blocks: list[Distillation]
    change: float
    flips: float
    accuracy: float
    accuracy_before: float


@torch.no_grad()
def distill(
    model: nn.Module, x: Tensor, tol: float, y: Tensor | None = None, solver: str | None = None
) -> tuple[nn.Module, ModelDistillation]:
    """Replace every block of a model by a `ResNet` on the grid that an adaptive solve takes from the block's own input.

    The new model shares all parameters with the old one and takes the same steps for every input, without error
    control. It is evaluated as it is: call `model.eval()` first where that matters.

    Args:
        model: any model with blocks.
        x: samples, the input of the model.
        tol: rtol and atol of the solves.
        y: (batch,) labels, for the accuracy that it costs.
        solver: as in `Block.distill`.

    Returns:
        The new model, and what it costs on these samples.
    """
    inputs: dict[Block, tuple[Any, ...]] = {}

    def remember(block: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(block, Block)
        inputs.setdefault(block, args)

    hooks = [block.register_forward_pre_hook(remember) for block in blocks_of(model)]
    try:
        before = model(x)
    finally:
        for handle in hooks:
            handle.remove()
    networks = {block: block.distill(args[0], tol, solver, args[1:]) for block, args in inputs.items()}
    twin = swap_blocks(model, lambda block: networks.get(block, block))
    after = twin(x)
    nan = float("nan")
    logits = before.dim() == 2
    share: Callable[[Tensor], float] = lambda hit: float(hit.double().mean())  # noqa: E731
    return twin, ModelDistillation(
        [network.distillation for network in networks.values() if network.distillation is not None],
        float((after - before).norm() / before.norm()),
        share(before.argmax(1) != after.argmax(1)) if logits else nan,
        share(after.argmax(1) == y) if y is not None else nan,
        share(before.argmax(1) == y) if y is not None else nan,
    )


class Unrolled(nn.Module):
    """The steps of a block with a fixed grid as plain operations, for `torch.export`, ONNX and the like.

    Nothing is checked or counted on the way, and gradients are those of autograd.

    Args:
        block: a block of the native backend with steps, step_size or grid; its weights are shared.

    Raises:
        InputError: the block is adaptive, or of another backend.
    """

    def __init__(self, block: Block):
        super().__init__()
        scheme = block.scheme
        if scheme.adaptive or scheme.backend != "native":
            raise InputError(
                f"only fixed steps of the native backend can be unrolled, this block walks {scheme}; "
                "make a network of it first: block.distill(x, tol) or block.discretize(steps)"
            )
        self.weights, self.interval = block.weights, (block.t0, block.t1)
        problem = Problem(block.weights, torch.zeros(1), self.interval, scheme)
        self.stepper, self.spans = problem.stepper, problem.spans()
        self.pieces = [piece.weights for piece in problem.field.pieces]

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """x(t1); as the block computes it."""
        piece, first, memory, f = -1, None, NOTHING, None
        for span in self.spans:
            if span.piece != piece or f is None:
                piece, first = span.piece, None
                f = self._field(self.weights.piece(self.pieces[piece], *self.interval), args)
                memory = self.stepper.start(f, span.t, x)
            trial = self.stepper.step(f, span, x, memory, first)
            x, first, memory = trial.x_next, trial.end, trial.memory
        return x

    @staticmethod
    def _field(F: Callable[..., Tensor], args: tuple[Any, ...]) -> Callable[[Any, Tensor], Tensor]:
        return lambda t, x: F(torch.full((), t, dtype=x.dtype, device=x.device), x, *args)


def unrolled(model: nn.Module) -> nn.Module:
    """A model whose blocks are `Unrolled`, with the same parameters: what to give to `torch.export.export`.

    Args:
        model: a model, or a block, with fixed steps; in evaluation mode.

    Raises:
        InputError: a block is adaptive, or of another backend.
    """
    return swap_blocks(model, Unrolled)

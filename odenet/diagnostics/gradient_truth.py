"""What the gradient audit differentiates, and the truth that it compares with."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from odenet.blocks import Block, blocks_of
from odenet.errors import InputError
from odenet.gradients import gradients
from odenet.solvers import Scheme
from odenet.solvers.scheme import ADAPTIVE_ONLY

Loss = Callable[[Tensor], Tensor]
Grads = dict[str, Tensor]


class Task:
    """A network, its input and its loss; every run of it begins with the same random numbers and statistics."""

    def __init__(self, network: nn.Module, x: Tensor, loss: Loss):
        self.network, self.x, self.loss = network, x, loss
        self.blocks: list[Block] = blocks_of(network)
        self.names = {n: p for n, p in network.named_parameters() if p.requires_grad}
        self.device = x.device
        self.seed = torch.initial_seed() % 2**31

    def double(self) -> Task:
        """The same in float64."""
        kind = torch.complex128 if self.x.is_complex() else torch.float64
        task = Task(copy.deepcopy(self.network).double(), self.x.to(kind), self.loss)
        task.seed = self.seed
        return task

    def walk(self, schemes: Sequence[Scheme]) -> None:
        """Give each block its scheme."""
        for block, scheme in zip(self.blocks, schemes, strict=True):
            block.scheme = scheme

    @contextlib.contextmanager
    def fresh(self) -> Iterator[None]:
        """Random numbers and buffers are put back afterwards."""
        buffers = [(b, b.clone()) for b in self.network.buffers()]
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            try:
                yield
            finally:
                for buffer, before in buffers:
                    buffer.data.copy_(before)

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """x as a leaf, the output and the loss."""
        x = self.x.clone().requires_grad_()
        y = self.network(x)
        loss = self.loss(y)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise InputError(f"loss must return a tensor of one number, got {shape}; take its mean or sum")
        return x, y, loss

    def backward(self, x: Tensor, loss: Tensor) -> Grads:
        """The gradients by name, "x" first."""
        leaves = {"x": x, **self.names}
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(leaves.items(), found, strict=True)}


class Truths:
    """Gradients in float64 by backprop through the steps that were taken, each computed once.

    Args:
        task: what is differentiated.
        own: the schemes of its blocks.

    Attributes:
        answer: the output with these, in float64.
    """

    def __init__(self, task: Task, own: list[Scheme]):
        self.task = task
        self._found: dict[str, Grads] = {}
        task.walk(own)
        with task.fresh(), torch.no_grad():
            task.network(task.x)
        key, walked = self._walk(own, False)
        self._found[key], self.answer = self._compute(walked)

    def of(self, name: str, schemes: list[Scheme]) -> Grads:
        """For a method that the network has just been walked with."""
        form = not gradients[name].own_steps
        key, walked = self._walk(schemes, form)
        if key not in self._found:
            self._found[key], _ = self._compute(walked)
        return self._found[key]

    def _walk(self, schemes: list[Scheme], form: bool) -> tuple[str, list[Scheme]]:
        walked, grids = [], []
        for block, scheme in zip(self.task.blocks, schemes, strict=True):
            options = {**scheme.gradient_options, "backward": "autograd"} if form else {}
            scheme = scheme.but(gradient=scheme.gradient if form else "autograd", gradient_options=options)
            walked.append(_on_grid(scheme, block))
            grids.append(f"{scheme.backend} {block.stats.h if walked[-1] is not scheme else scheme}")
        return f"{form and schemes[0].gradient} {grids}", walked

    def _compute(self, walked: list[Scheme]) -> tuple[Grads, Tensor]:
        double = self.task.double()
        double.walk(walked)
        with double.fresh():
            x, y, loss = double.forward()
            return double.backward(x, loss), y.detach()


def _on_grid(scheme: Scheme, block: Block) -> Scheme:
    """A scheme that takes the steps which an adaptive block took, if its solver can take given steps."""
    if not scheme.adaptive or scheme.backend != "native" or not block.stats.h:
        return scheme
    sign, grid = (1.0 if block.t1 >= block.t0 else -1.0), [block.t0]
    for h in block.stats.h:
        grid.append(grid[-1] + sign * h)
    free = {name: getattr(Scheme, name) for name in ADAPTIVE_ONLY}
    try:
        return scheme.but(grid=[*grid[:-1], block.t1], **free)
    except InputError:
        return scheme

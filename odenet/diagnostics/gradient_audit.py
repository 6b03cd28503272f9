"""The gradient methods side by side on the user's own network and batch: how wrong, how large, how slow."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from odenet.blocks import Block, blocks_of, collect_stats
from odenet.diagnostics.gradient_verdict import recommendation, verdict
from odenet.errors import InputError, OdenetError
from odenet.gradients import gradients
from odenet.solvers import Scheme
from odenet.solvers.scheme import ADAPTIVE_ONLY

Loss = Callable[[Tensor], Tensor]
Grads = dict[str, Tensor]


@dataclass
class MethodAudit:
    """What was found about one gradient method.

    Attributes:
        gradient: its name.
        error: ‖g - g*‖ / ‖g*‖ over all parameters and x, g* the gradient of the method's own steps in float64.
        cosine: of the angle between the two.
        groups: (error, cosine) of each group of parameters: "x", and one for each module that holds some.
        output: relative difference of the output from that of the network's own steps, above rounding for methods
            that take another form of them.
        nfe: evaluations of F forward.
        nfe_backward: evaluations of F backward.
        vjps: vector-Jacobian products of F.
        bytes: largest number held for the backward pass: saved tensors, on CUDA what the allocator had to give.
        seconds_forward: of a forward pass with the loss, the best of several.
        seconds_backward: of a backward pass, likewise.
        note: why it was not measured; empty if it was.
    """

    gradient: str
    error: float = math.nan
    cosine: float = math.nan
    groups: dict[str, tuple[float, float]] = field(default_factory=dict)
    output: float = math.nan
    nfe: int = 0
    nfe_backward: int = 0
    vjps: int = 0
    bytes: float = math.nan
    seconds_forward: float = math.nan
    seconds_backward: float = math.nan
    note: str = ""

    @property
    def seconds(self) -> float:
        """Forward and backward."""
        return self.seconds_forward + self.seconds_backward


@dataclass
class Audit:
    """What was found about all of them.

    Attributes:
        methods: those that were measured.
        refused: those that this network cannot be differentiated with, and why.
        used: the network's own method.
        dtype: precision of the network.
    """

    methods: list[MethodAudit]
    refused: list[MethodAudit]
    used: str
    dtype: torch.dtype

    @property
    def verdict(self) -> str:
        """One line about the network's own method."""
        return verdict(self.methods, self.used)

    @property
    def recommendation(self) -> str:
        """One line about what to use."""
        return recommendation(self.methods, self.used)

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a method, with a pair of columns for each group of parameters."""
        keys = ("gradient", "error", "cosine", "output", "nfe", "nfe_backward", "vjps", "bytes")
        return [
            {key: getattr(m, key) for key in (*keys, "seconds_forward", "seconds_backward")}
            | {f"error of {group}": e for group, (e, _) in m.groups.items()}
            | {f"cosine of {group}": c for group, (_, c) in m.groups.items()}
            for m in self.methods
        ]


def audit_gradients(
    network: nn.Module,
    x: Tensor,
    loss: Loss | None = None,
    methods: Sequence[str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    repeats: int = 3,
) -> Audit:
    """Differentiate a network's loss with every gradient method that its blocks admit, and measure.

    The truth is backprop in float64 through the steps that the method took. The network is left as it is: weights,
    running statistics and random numbers.

    Args:
        network: a block, or a module with blocks in it; all of them are given the same method.
        x: (batch, ...) its input.
        loss: output -> 0-d tensor; default the mean square.
        methods: names of gradient methods; default all.
        options: for each method its `gradient_options`; the network's own method keeps those that it has.
        repeats: passes that are timed.

    Returns:
        An `Audit`.

    Raises:
        InputError: the network has no block, or cannot be differentiated at all.
    """
    blocks = blocks_of(network)
    if not blocks:
        raise InputError(f"{type(network).__name__} holds no ResNet and no ODEBlock whose gradient could be audited")
    task = _Task(network, x.detach(), loss or (lambda y: y.abs().square().mean()))
    used, own = blocks[0].scheme.gradient, [block.scheme for block in blocks]
    regularisers = [block.regularisers for block in blocks]  # no part of the loss that is differentiated here
    found: list[MethodAudit] = []
    names = [name for name in methods or gradients if gradients[name]]
    try:
        for block in blocks:
            block.regularisers = {}
        truths = _Truths(task, own)
        for name in names:
            given = (options or {}).get(name)
            try:
                schemes = [_scheme(scheme, name, given) for scheme in own]
                found.append(_measure(task, name, schemes, truths, repeats))
            except (OdenetError, RuntimeError) as error:
                found.append(MethodAudit(name, note=str(error).splitlines()[0]))
    finally:
        for block, scheme, factors in zip(blocks, own, regularisers, strict=True):
            block.scheme, block.regularisers = scheme, factors
    measured = [m for m in found if not m.note]
    if not measured:
        raise InputError(f"no gradient method could be measured: {found[0].note}")
    return Audit(measured, [m for m in found if m.note], used, x.dtype)


class _Task:
    """A network, its input and its loss; every run of it begins with the same random numbers and statistics."""

    def __init__(self, network: nn.Module, x: Tensor, loss: Loss):
        self.network, self.x, self.loss = network, x, loss
        self.blocks: list[Block] = blocks_of(network)
        self.names = {n: p for n, p in network.named_parameters() if p.requires_grad}
        self.device = x.device
        self.seed = torch.initial_seed() % 2**31

    def double(self) -> _Task:
        """The same in float64."""
        kind = torch.complex128 if self.x.is_complex() else torch.float64
        task = _Task(copy.deepcopy(self.network).double(), self.x.to(kind), self.loss)
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
        return x, y, self.loss(y)

    def backward(self, x: Tensor, loss: Tensor) -> Grads:
        """The gradients by name, "x" first."""
        leaves = {"x": x, **self.names}
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(leaves.items(), found, strict=True)}


def _scheme(own: Scheme, name: str, options: Mapping[str, Any] | None) -> Scheme:
    """A block's scheme with another gradient method."""
    method = gradients[name]
    if options is None:
        options = own.gradient_options if name == own.gradient else {}
    backend = own.backend if own.backend in method.backends else method.backends[0]
    scheme = own.but(gradient=name, backend=backend, gradient_options=dict(options))
    method.check(scheme, scheme.gradient_options)
    return scheme


def _measure(task: _Task, name: str, schemes: list[Scheme], truths: _Truths, repeats: int) -> MethodAudit:
    task.walk(schemes)
    with task.fresh():
        held = _bytes_held(task)
    with task.fresh():
        x, y, loss = task.forward()
        got = task.backward(x, loss)
    stats = collect_stats(task.network)
    truth = truths.of(name, schemes)
    plain = truths.answer
    audit = MethodAudit(
        name,
        *_compare(got, truth, list(truth)),
        groups={g: _compare(got, truth, members) for g, members in _groups(truth).items()},
        output=float((y.detach().to(plain.dtype) - plain).norm() / (plain.norm() or 1.0)),
        nfe=stats.nfe,
        nfe_backward=stats.nfe_backward,
        vjps=stats.vjps,
        bytes=held,
    )
    audit.seconds_forward, audit.seconds_backward = _seconds(task, repeats)
    return audit


class _Truths:
    """Gradients in float64 by backprop through the steps that were taken, each computed once.

    Args:
        task: what is differentiated.
        own: the schemes of its blocks.

    Attributes:
        answer: the output with these, in float64.
    """

    def __init__(self, task: _Task, own: list[Scheme]):
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


def _groups(truth: Grads) -> dict[str, list[str]]:
    """Names of parameters by the module that holds them."""
    groups: dict[str, list[str]] = {}
    for name in truth:
        groups.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return groups


def _compare(got: Grads, truth: Grads, names: Sequence[str]) -> tuple[float, float]:
    """Relative error and cosine."""
    a = torch.cat([torch.view_as_real(g.to(torch.complex128)).flatten() for g in (got[name] for name in names)])
    b = torch.cat([torch.view_as_real(g.to(torch.complex128)).flatten() for g in (truth[name] for name in names)])
    size = float(b.norm())
    if size == 0:
        return (0.0, 1.0) if float(a.norm()) == 0 else (math.inf, 0.0)
    return float((a - b).norm()) / size, float(a @ b / ((a.norm() or 1.0) * size))


def _bytes_held(task: _Task) -> float:
    """Peak of what is held for the backward pass."""
    from odenet.training.memory import SavedTensorMeter

    if task.device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated(task.device)
        torch.cuda.reset_peak_memory_stats(task.device)
        x, _, loss = task.forward()
        task.backward(x, loss)
        return float(torch.cuda.max_memory_allocated(task.device) - before)
    meter = SavedTensorMeter(exclude=task.network.parameters())
    with meter:
        x, _, loss = task.forward()
        task.backward(x, loss)
    return float(meter.peak)


def _seconds(task: _Task, repeats: int) -> tuple[float, float]:
    """Seconds forward and backward, the best of `repeats`."""
    times = []
    for _ in range(max(1, repeats)):
        with task.fresh():
            marks = [_clock(task.device)]
            x, _, loss = task.forward()
            marks.append(_clock(task.device))
            task.backward(x, loss)
            marks.append(_clock(task.device))
        times.append((marks[1] - marks[0], marks[2] - marks[1]))
    forward, backward = zip(*times, strict=True)
    return min(forward), min(backward)


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

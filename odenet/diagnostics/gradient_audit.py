"""The gradient methods side by side on the user's own network and batch: how wrong, how large, how slow."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from odenet.blocks import blocks_of, collect_stats
from odenet.diagnostics.gradient_table import text
from odenet.diagnostics.gradient_truth import Grads, Loss, Task, Truths
from odenet.diagnostics.gradient_verdict import recommendation, verdict
from odenet.errors import InputError, OdenetError
from odenet.gradients import gradients
from odenet.solvers import Scheme


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
        vjps: vector-Jacobian products of F that the method takes itself; those of backprop are not counted.
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
    """What was found about all of them; printed, it is a table.

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

    def __str__(self) -> str:
        """A table."""
        return text(self)

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a method, with a pair of columns for each group of parameters."""
        keys = ("gradient", "error", "cosine", "output", "nfe", "nfe_backward", "vjps", "bytes")
        return [
            {key: getattr(m, key) for key in (*keys, "seconds_forward", "seconds_backward")}
            | {f"error of {group}": e for group, (e, _) in m.groups.items()}
            | {f"cosine of {group}": c for group, (_, c) in m.groups.items()}
            for m in self.methods
        ]


@torch.enable_grad()
def audit_gradients(
    network: nn.Module,
    x: Tensor,
    loss: Loss | None = None,
    methods: Sequence[str] | str | None = None,
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
        methods: names of gradient methods, or one name; default all.
        options: for each method its `gradient_options`; the network's own method keeps those that it has.
        repeats: passes that are timed.

    Returns:
        An `Audit`.

    Raises:
        InputError: the network has no block, or cannot be differentiated at all; the loss is not one number.
        UnknownNameError: a name in `methods` or `options` is not that of a gradient method.
    """
    blocks = blocks_of(network)
    if not blocks:
        raise InputError(f"{type(network).__name__} holds no ResNet and no ODEBlock whose gradient could be audited")
    task = Task(network, x.detach(), loss or (lambda y: y.abs().square().mean()))
    used, own = blocks[0].scheme.gradient, [block.scheme for block in blocks]
    regularisers = [block.regularisers for block in blocks]  # no part of the loss that is differentiated here
    found: list[MethodAudit] = []
    wanted = [methods] if isinstance(methods, str) else methods
    names = [name for name in wanted or gradients if gradients[name]]
    _ = [gradients[name] for name in options or ()]  # raises where there is none of that name
    try:
        for block in blocks:
            block.regularisers = {}
        truths = Truths(task, own)
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


def _scheme(own: Scheme, name: str, options: Mapping[str, Any] | None) -> Scheme:
    """A block's scheme with another gradient method."""
    method = gradients[name]
    if options is None:
        options = own.gradient_options if name == own.gradient else {}
    backend = own.backend if own.backend in method.backends else method.backends[0]
    scheme = own.but(gradient=name, backend=backend, gradient_options=dict(options))
    method.check(scheme, scheme.gradient_options)
    return scheme


def _measure(task: Task, name: str, schemes: list[Scheme], truths: Truths, repeats: int) -> MethodAudit:
    task.walk(schemes)
    with task.fresh():
        x, y, loss = task.forward()
        got = task.backward(x, loss)
    with task.fresh():  # after a first pass, in which libraries of a device take their own memory
        held = _bytes_held(task)
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


def _bytes_held(task: Task) -> float:
    """Peak of what is held for the backward pass."""
    from odenet.training.memory import SavedTensorMeter

    if task.device.type == "cuda":
        torch.cuda.synchronize(task.device)
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


def _seconds(task: Task, repeats: int) -> tuple[float, float]:
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

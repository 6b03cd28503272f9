"""The way back of a reversible method: steps are undone, not stored, and each is differentiated as it is undone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, Protocol

import torch
from torch import Tensor

from odenet.errors import GradientError, InputError
from odenet.gradients.checkpoint import StoredStates, step_back
from odenet.gradients.pullback import Pullback, leaf, plus
from odenet.gradients.record import Record
from odenet.gradients.registry import gradients
from odenet.gradients.replay import Cotangents, Gradients, Replayed
from odenet.solvers.control import rms
from odenet.solvers.problem import Problem
from odenet.solvers.scheme import check_options, check_positive
from odenet.solvers.solution import Solution
from odenet.solvers.stepper import Memory, Span, Stepper, Trial

BACKWARD = ("undo", "autograd")
ON_DRIFT = ("warn", "raise", "recompute")
State = list[Tensor]
Cotangent = list[Tensor | None]


class Undo(Protocol):
    """How the steps of one method are undone and differentiated; made for one backward pass.

    A state is (x, memory...), a cotangent has an entry, or None, for each of them.
    """

    def invert(self, span: Span, end: State) -> State:
        """The state at the start of a step from the one at its end."""
        ...

    def step(self, span: Span, end: State, a: Cotangent) -> tuple[State, Cotangent]:
        """The state at the start of a step and its cotangent, from those at its end."""
        ...

    def begin(self, span: Span, start: State, a: Cotangent) -> Tensor | None:
        """The cotangent of x where the memory was made, from those of x and the memory; `span` begins there."""
        ...


class Undone(Replayed):
    """A gradient method that undoes its steps. To add one, say how.

    Watches its own rounding: x0 as it was reconstructed is compared with x0. Options: max_drift, the relative error
    from which something is done (default: the square root of the dtype's resolution), and on_drift, what: "warn"
    (default), "raise", or "recompute" (a warning, and the gradient from states that are stored after all).
    """

    against_drift = "on_drift='recompute' stores states then"

    def check_options(self, options: Mapping[str, Any]) -> None:
        check_options(f"option of gradient={self.name!r}", options, ("max_drift", "on_drift"))
        check_drift(options)

    def undo(self, pullback: Pullback) -> Undo:
        """How to undo the steps, for one backward pass."""
        raise NotImplementedError

    def sweep(self, problem: Problem) -> Reversal:
        return Reversal(self, problem)


class ReversibleForm(Undone):
    """An undone method whose forward pass takes a reversible form of the solver's steps. To add one, say which form."""

    own_steps = False
    own_options: tuple[str, ...] = ()

    def check_options(self, options: Mapping[str, Any]) -> None:
        names = (*self.own_options, "backward", "max_drift", "on_drift")
        check_options(f"option of gradient={self.name!r}", options, names)
        if options.get("backward", "undo") not in BACKWARD:
            raise InputError(f"backward must be one of {', '.join(BACKWARD)}, got {options['backward']!r}")
        check_drift(options)
        self.check_own_options(options)

    def check_own_options(self, options: Mapping[str, Any]) -> None:
        """Raise `InputError` if the method's own options cannot be used."""
        raise NotImplementedError

    def form(self, problem: Problem) -> Stepper:
        """What takes the steps."""
        raise NotImplementedError

    def solve(self, problem: Problem) -> Solution:
        problem.stepper = self.form(problem)
        if problem.scheme.gradient_options.get("backward", "undo") == "autograd":
            return gradients["autograd"].solve(problem)
        return super().solve(problem)


class Reversal:
    """A sweep that keeps the last state, and the memory at the end of each piece of depth.

    Args:
        method: how steps are undone.
        problem: what is being solved.
    """

    def __init__(self, method: Undone, problem: Problem):
        self.method, options = method, problem.scheme.gradient_options
        default = math.sqrt(torch.finfo(problem.x0.dtype).eps)
        self.max_drift, self.on_drift = options.get("max_drift", default), options.get("on_drift", "warn")
        self._last: State = []
        self._ends: list[State] = []
        self._lengths: list[int] = []

    def keep(self, record: Record, start: State, trial: Trial) -> None:
        """Keep the memory where the next step makes it anew."""
        number = len(record.spans) - 1
        if number > 0 and record.begins(number):
            self._ends.append(self._last[1:])
        self._last = [trial.x_next, *trial.memory.tensors]

    def kept(self) -> list[Tensor]:
        """The memory at the end of each piece, and the last state."""
        last = [self._last[0].clone(), *self._last[1:]] if self._last else []
        kept = [*self._ends, last]
        self._last, self._ends, self._lengths = [], [], [len(part) for part in kept]
        return [tensor for part in kept for tensor in part]

    def back(self, record: Record, x0: Tensor, kept: list[Tensor], cotangents: Cotangents) -> Gradients:
        """Step by step from the end; the reconstructed x0 is compared with the true one."""
        pullback, parts = Pullback(record), iter(kept)
        *ends, state = ([next(parts) for _ in range(length)] for length in self._lengths)
        if not state:
            return None, pullback.gradients
        undo, due = self.method.undo(pullback), record.due()
        a: Cotangent = [None] * len(state)
        for number in reversed(range(len(record.spans))):
            span = record.spans[number]
            if len(state) == 1 and ends:
                state = [*state, *ends.pop()]
                a = [*a, *[None] * (len(state) - 1)]
            inside = []
            for i in due[number]:
                if record.times[i] == span.t_next:
                    a[0] = plus(a[0], cotangents[i])
                elif cotangents[i] is not None:
                    inside.append(i)
            more: Cotangent = []
            if inside:
                times, seeds = [record.times[i] for i in inside], [cotangents[i] for i in inside]
                start = undo.invert(span, state)
                found = _inside(pullback, span, start, state, times, seeds)
                more, at_end = found[: len(start)], found[len(start) :]
                a = [plus(p, q) for p, q in zip(a, at_end, strict=True)]
            if record.seed is not None:
                start = undo.invert(span, state)
                at_start, at_end = pullback.through_measure(number, start[0], state[0])
                a[0] = plus(a[0], at_end)
                more = [plus(more[0] if more else None, at_start), *more[1:]]
            state, a = undo.step(span, state, a)
            a = [plus(p, q) for p, q in zip_longest(a, more)]
            record.problem.stats.steps_backward += 1
            if record.begins(number):
                a, state = [undo.begin(span, state, a)], state[:1]
        if self._drifted(record, state[0], x0):
            stored = StoredStates(step_back, len(record.spans), len(record.spans))
            return stored.back(record, x0, [], cotangents)
        return a[0], pullback.gradients

    def _drifted(self, record: Record, reconstructed: Tensor, x0: Tensor) -> bool:
        """Whether the gradient is to be computed again from stored states."""
        drift = rms(reconstructed - x0) / (rms(x0) or 1.0)
        record.problem.stats.drift = drift
        if drift <= self.max_drift:
            return False
        said = (
            f"gradient={self.method.name!r} undid the steps down to a relative error of {drift:.2g} in x0, above "
            f"max_drift={self.max_drift:.2g}, and the gradient is as inexact; "
        )
        if self.on_drift == "raise" or (self.on_drift == "warn" and not math.isfinite(drift)):
            raise GradientError(f"{said}{self.method.against_drift}; or take fewer steps, or gradient='checkpoint'")
        recompute = self.on_drift == "recompute"
        advice = "it is computed again from stored states" if recompute else self.method.against_drift
        warnings.warn(said + advice, stacklevel=2)
        return recompute


def check_drift(options: Mapping[str, Any]) -> None:
    """Raise `InputError` unless the options about drift can be used."""
    if "max_drift" in options:
        check_positive("max_drift", options["max_drift"])
    if options.get("on_drift", "warn") not in ON_DRIFT:
        raise InputError(f"on_drift must be one of {', '.join(ON_DRIFT)}, got {options['on_drift']!r}")


def _inside(
    pullback: Pullback, span: Span, start: State, end: State, times: Sequence[float], seeds: Cotangents
) -> Cotangent:
    """Cotangents of the states at both ends of a step from those of outputs inside it."""
    record, stats = pullback.record, pullback.stats
    f = record.problem.field.piece(span.piece)
    before = stats.nfe_backward
    with torch.enable_grad():
        leaves = [leaf(part) for part in (*start, *end)]
        (x, *given), (x_next, *memory) = leaves[: len(start)], leaves[len(start) :]
        trial = Trial(span, x, x_next, [], given=Memory(tuple(given)), memory=Memory(tuple(memory)))
        outputs = [record.stepper.interpolate(f, trial, t) for t in times]
    stats.vjps += stats.nfe_backward - before
    return pullback.through(span.piece, list(zip(outputs, seeds, strict=True)), leaves)

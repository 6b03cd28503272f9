"""The way back of a reversible method: steps are undone, not stored, and each is differentiated as it is undone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from odenet.errors import GradientError, InputError
from odenet.gradients.checkpoint import StoredStates, step_back
from odenet.gradients.per_sample import replay_samples
from odenet.gradients.pullback import Pullback, leaf, plus
from odenet.gradients.record import Record
from odenet.gradients.registry import gradients
from odenet.gradients.replay import Cotangents, Gradients, Replayed
from odenet.gradients.sample_reversal import SampleReversal
from odenet.solvers.control import rms
from odenet.solvers.per_sample import SampleProblem, SampleSolution, integrate_samples
from odenet.solvers.problem import Problem
from odenet.solvers.scheme import Scheme, check_options, check_positive
from odenet.solvers.solution import Solution
from odenet.solvers.stats import Stats
from odenet.solvers.stepper import Memory, Span, Stepper, Trial

BACKWARD = ("undo", "autograd")
ON_DRIFT = ("warn", "raise", "recompute")
State = list[Tensor]
Cotangent = list[Tensor | None]


class Undo:
    """How the steps of one method are undone and differentiated; made for one backward pass.

    A state is (x, memory...), a cotangent has an entry, or None, for each of them. Where every sample has its own steps
    both are those of some of the samples, and so are the times and sizes of `span`.

    Args:
        pullback: evaluates and differentiates F.

    Attributes:
        times: the numbers that belong to the memory at the start of the step that is undone, `Memory.times`.
    """

    def __init__(self, pullback: Pullback):
        self.pullback = pullback
        self.times: tuple[float, ...] = ()

    def reach(self, span: Any, after: Any, end: State) -> State:
        """The state at the end of a step from what the step after it left, of size `after` (0 if there was none).

        To be overridden by a method that leaves something to be done where the next evaluation of F is.
        """
        return end

    def invert(self, span: Any, end: State) -> State:
        """The state at the start of a step from the one at its end; leaves nothing to be done."""
        raise NotImplementedError

    def step(self, span: Any, end: State, a: Cotangent) -> tuple[State, Cotangent]:
        """What `reach` is to be given for the step before, and its cotangent, from state and cotangent at the end."""
        raise NotImplementedError

    def begin(self, span: Any, start: State, a: Cotangent) -> tuple[Tensor, Tensor | None]:
        """x where the memory was made, and its cotangent, from what `step` gave for the step that begins there."""
        raise NotImplementedError


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

    def solve_samples(self, problem: SampleProblem) -> SampleSolution:
        """Solve `problem`, each sample with its own steps, so that its states can be differentiated."""
        return replay_samples(problem, SampleReversal(self.undo, Drift(self, problem)))


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

    def form(self, scheme: Scheme) -> Stepper:
        """What takes the steps."""
        raise NotImplementedError

    def solve(self, problem: Problem) -> Solution:
        problem.stepper = self.form(problem.scheme)
        if problem.scheme.gradient_options.get("backward", "undo") == "autograd":
            return gradients["autograd"].solve(problem)
        return super().solve(problem)

    def solve_samples(self, problem: SampleProblem) -> SampleSolution:
        problem.stepper = self.form(problem.scheme)
        if problem.scheme.gradient_options.get("backward", "undo") == "autograd":
            return integrate_samples(problem)
        return super().solve_samples(problem)


class Reversal:
    """A sweep that keeps the last state, and the memory at the end of each piece of depth.

    Args:
        method: how steps are undone.
        problem: what is being solved.
    """

    def __init__(self, method: Undone, problem: Problem):
        self.method, self.drift = method, Drift(method, problem)
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
        after = 0.0
        for number in reversed(range(len(record.spans))):
            span, undo.times = record.spans[number], record.memory_times[number]
            if len(state) == 1 and ends:
                state = [*state, *ends.pop()]
                a = [*a, *[None] * (len(state) - 1)]
            state = undo.reach(span, after, state)
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
            after = span.h
            if record.begins(number):
                x, a_x = undo.begin(span, state, a)
                state, a, after = [x], [a_x], 0.0
        drift = rms(state[0] - x0) / (rms(x0) or 1.0)
        if self.drift.found(drift, record.problem.stats):
            stored = StoredStates(step_back, len(record.spans), len(record.spans))
            return stored.back(record, x0, [], cotangents)
        return a[0], pullback.gradients


class Drift:
    """What is done about the rounding of a reconstruction, by the options of a method.

    Args:
        method: the method.
        problem: what is being solved.
    """

    def __init__(self, method: Undone, problem: Any):
        self.method, options = method, problem.scheme.gradient_options
        default = math.sqrt(torch.finfo(problem.x0.dtype).eps)
        self.most, self.then = options.get("max_drift", default), options.get("on_drift", "warn")

    def found(self, drift: float, stats: Stats, whose: str = "the steps") -> bool:
        """Whether the gradient is to be computed again from stored states.

        Args:
            drift: the relative error of x0 as it was reconstructed.
            stats: takes note of it.
            whose: what was undone.

        Raises:
            GradientError: it is above what is accepted, and the options say so, or nothing finite is left.
        """
        stats.drift = drift
        if drift <= self.most:
            return False
        said = (
            f"gradient={self.method.name!r} undid {whose} down to a relative error of {drift:.2g} in x0, above "
            f"max_drift={self.most:.2g}, and the gradient is as inexact; "
        )
        if self.then == "raise" or (self.then == "warn" and not math.isfinite(drift)):
            raise GradientError(f"{said}{self.method.against_drift}; or take fewer steps, or gradient='checkpoint'")
        recompute = self.then == "recompute"
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

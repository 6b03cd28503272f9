"""The loop over steps: fixed grid or adaptive, one piece of depth after the other."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from odenet.errors import (
    NonFiniteFunctionError,
    NonFiniteStateError,
    SolveError,
    StepBudgetError,
    StepUnderflowError,
)
from odenet.solvers.control import LEAST_ERROR, NONFINITE_RETRIES, STRETCH, first_step, rms, scale
from odenet.solvers.events import Hit, Watcher
from odenet.solvers.failures import TOO_MANY, check_finite, first_bad_sample, nonfinite_error, unsolved_error
from odenet.solvers.problem import Problem, transforms
from odenet.solvers.solution import Interpolant, Solution
from odenet.solvers.stats import Stats
from odenet.solvers.stepper import NOTHING, Evaluate, Span, Stepper, Trial

UNSOLVED_SHRINK = 0.25
Walk = Iterator[tuple[Evaluate, Trial]]
Watch = Callable[[Trial], None]


def integrate(problem: Problem, watch: Watch | None = None) -> Solution:
    """Walk depth with the native solver of `problem.scheme`.

    Runs on the tape if gradients are enabled; rejected steps leave nothing there. Step sizes are constants of the
    gradient.

    Args:
        problem: what to solve.
        watch: called with every accepted step.

    Returns:
        The states at `problem.ts`; with `on_failure="status"` and a solve that broke down, those that were reached and
        the last accepted one.

    Raises:
        SolveError: the solve broke down.
    """
    scheme, stats = problem.scheme, problem.stats
    stepper, patient, dense = problem.stepper, scheme.on_failure == "status", problem.dense
    adaptive = scheme.adaptive
    stepper.check(problem.x0)
    outputs = Outputs(problem, problem.ts)
    watcher = Watcher(problem.events, problem.event_value, problem.begins_with) if problem.events else None
    interpolants: list[Interpolant] = []
    t, x, error = problem.start, problem.x0, None
    sign, due, hits = problem.direction, outputs.next, []
    lookers = (watch, watcher, problem.ends, problem.callbacks)
    seen = patient or dense or any(looker is not None for looker in lookers)
    with problem.field.consistency.forward():
        try:
            for f, trial in _adaptive(problem, stepper) if adaptive else _fixed(problem, stepper, outputs, seen):
                span = trial.span
                if patient and not adaptive and first_bad_sample(trial.x_next) is not None:
                    raise nonfinite_error(stepper, trial, stats.nfe, None)
                stats.accepted += 1
                stats.h.append(abs(span.h))
                if watch is not None:
                    watch(trial)
                t, x = span.t_next, trial.x_next
                if watcher is not None:
                    hits = watcher.hits(stepper, f, trial)
                    outputs.insert(hits)
                    due = outputs.next
                if problem.ends is not None:
                    problem.ends.add(span, outputs)
                    due = outputs.next
                if sign * (t - due) >= 0:
                    outputs.pass_over(stepper, f, trial)
                    due = outputs.next
                if dense:
                    stepper.interpolate(f, trial, span.t)
                    interpolants.append((span, partial(stepper.interpolate, f, trial)))
                if hits and problem.events[hits[-1].event].terminal:
                    return outputs.solution(stats, interpolants if dense else None, hits[-1])
            if not (adaptive or patient or transforms()) and x.device.type == "cpu":
                check_finite(problem, stepper, x)
        except SolveError as failure:
            if not patient:
                raise
            error = failure
    if error is not None:
        outputs.end(t, x)
    return outputs.solution(stats, interpolants if dense else None, error=error)


class Outputs:
    """The states at times `ts`, taken as steps pass over them, and at events, which come up on the way."""

    def __init__(self, problem: Problem, ts: list[float]):
        self.ts, self.sign = list(ts), problem.direction
        self.hits: list[Hit | None] = [None] * len(self.ts)
        self.states: list[Tensor] = []
        while len(self.states) < len(self.ts) and self.ts[len(self.states)] == problem.start:
            self.states.append(problem.x0)

    def insert(self, hits: list[Hit]) -> None:
        """Ask for the states at events, each after the outputs at the same time."""
        for hit in hits:
            index = bisect_right(self.ts, self.sign * hit.t, lo=len(self.states), key=lambda t: self.sign * t)
            self.ts.insert(index, hit.t)
            self.hits.insert(index, hit)

    def end(self, t: float, x: Tensor) -> None:
        """Nothing comes after x at time t, where the last accepted step ended."""
        del self.ts[len(self.states) :], self.hits[len(self.states) :]
        if not self.ts or self.ts[-1] != t:
            self.ts.append(t)
            self.hits.append(None)
            self.states.append(x)

    def solution(
        self,
        stats: Stats,
        interpolants: list[Interpolant] | None,
        last: Hit | None = None,
        error: SolveError | None = None,
    ) -> Solution:
        """The answer, up to a terminal event if there is one."""
        if last is not None:
            count = self.hits.index(last) + 1
            del self.ts[count:], self.hits[count:], self.states[count:]
            if interpolants:
                span, interpolant = interpolants[-1]
                interpolants[-1] = span._replace(t_next=last.t), interpolant
        return Solution(self.states, self.ts, stats, interpolants, error, self.hits)

    @property
    def next(self) -> float:
        """The next time to come, or infinity."""
        return self.ts[len(self.states)] if len(self.states) < len(self.ts) else self.sign * math.inf

    def due(self, span: Span) -> list[float]:
        """The times after the start of a step and up to its end."""
        due = []
        for t in self.ts[len(self.states) :]:
            if self.sign * (t - span.t_next) > 0:
                break
            due.append(t)
        return due

    def pass_over(self, stepper: Stepper, f: Evaluate, trial: Trial) -> None:
        """Take the states that are due with an accepted step."""
        self.states += states_at(stepper, f, trial, self.due(trial.span))


def states_at(stepper: Stepper, f: Evaluate, trial: Trial, times: list[float]) -> list[Tensor]:
    """x at times within a step: its end exactly, inside by dense output."""
    end = trial.span.t_next
    return [trial.x_next if t == end else stepper.interpolate(f, trial, t) for t in times]


def _fixed(problem: Problem, stepper: Stepper, outputs: Outputs, seen: bool) -> Walk:
    """Steps over a given grid; no look at the device.

    Args:
        problem: what to solve.
        stepper: takes the steps.
        outputs: whose next time says which step has to be shown.
        seen: whether each step has to be.
    """
    x, first, memory, piece = problem.x0, None, NOTHING, -1
    f, stats, sign = problem.field.piece(0), problem.stats, problem.direction
    advance = None if seen or problem.scheme.max_nfe is not None else stepper.advance
    due, spans, number = sign * outputs.next, problem.spans(), 0
    while number < len(spans):
        span = spans[number]
        if span.piece != piece:
            begins = piece < 0 or not stepper.lasting
            piece, first = span.piece, None
            f = problem.field.piece(piece)
            memory = stepper.start(f, span.t, x) if begins else memory
        if advance is not None and first is None:
            ending = bisect_right(spans, piece, lo=number, key=lambda other: other.piece)
            shown = bisect_left(spans, due, lo=number, hi=ending, key=lambda other: sign * other.t_next)
            if shown > number:
                run = spans[number:shown]
                x, number = advance(f, run, x), shown
                stats.accepted += len(run)
                stats.h += [abs(other.h) for other in run]
                continue
        trial = stepper.step(f, span, x, memory, first)
        if not trial.converged:
            raise unsolved_error(stepper, trial, stats.nfe)
        yield f, trial
        x, first, memory, number = trial.x_next, trial.end, trial.memory, number + 1
        due = sign * outputs.next


def _adaptive(problem: Problem, stepper: Stepper) -> Walk:
    """Steps that hold the local error at the tolerance, one landing exactly at each stop; one look a step."""
    scheme, field, stats = problem.scheme, problem.field, problem.stats
    rtol, atol = scheme.tolerances
    norm, sign, order = scheme.norm or rms, problem.direction, stepper.error_order
    assert order is not None
    control = _StepControl(problem, order)
    x, h, memory = problem.x0, scheme.first_step, None
    for piece, (start, stops) in enumerate(zip(problem.starts(), problem.landings(), strict=True)):
        if start == stops[-1]:
            continue
        t, f = start, field.piece(piece)
        first = f(t, x)
        if memory is None or not stepper.lasting:
            memory = stepper.start(f, t, x, first)
        if stats.accepted == 0:
            control.check_start(t, x, first)
        if h is None:
            field.consistency.mark()
            h = first_step(f, x, first, (t, stops[-1]), stepper.first_order or order, rtol, atol, norm)
            field.consistency.undo()
        for end in stops:
            while t != end:
                h = min(max(h, scheme.h_min), scheme.h_max)
                left = abs(end - t)
                lands = h >= left or (h * STRETCH >= left and left <= scheme.h_max + control.resolution)
                t_next = end if lands else t + sign * h
                span = Span(piece, t, t_next, t_next - t)
                control.check_step(span)
                field.consistency.mark()
                trial = stepper.step(f, span, x, memory, first, error=True)
                first = trial.first
                if trial.converged:
                    with torch.no_grad():
                        weight = scale(x.detach(), rtol, atol, trial.x_next.detach())
                        error = float(stepper.error_ratio(trial.error, weight, norm))
                else:
                    error = trial.residual
                if not trial.converged and math.isfinite(error):
                    control.unsolved(trial)
                    field.consistency.undo()
                    h = abs(span.h) * UNSOLVED_SHRINK
                elif not math.isfinite(error):
                    control.nonfinite(trial, error)
                    field.consistency.undo()
                    h = abs(span.h) * control.controller.shrink
                elif error > 1 and h > scheme.h_min:
                    field.consistency.undo()
                    h = abs(span.h) * control.reject(error)
                else:
                    factor = control.accept(error)
                    h = max(h, abs(span.h) * factor) if lands else abs(span.h) * factor
                    yield f, trial
                    t, x, first, memory = span.t_next, trial.x_next, trial.end, trial.memory


class _StepControl:
    """Counts trials of an adaptive solve and says when to give up."""

    def __init__(self, problem: Problem, order: int):
        self.problem, self.stats, self.order = problem, problem.stats, order
        self.controller = problem.scheme.step_controller
        self.past: list[float] = []
        self.error: float | None = None
        self.broken: Trial | None = None
        self.nonfinite_in_a_row = 0
        self.resolution = problem.resolution

    def accept(self, error: float) -> float:
        """Count an accepted step; what to multiply h with."""
        self.error = error
        self.nonfinite_in_a_row = 0
        self.stats.forced += error > 1
        factor = self.controller.factor([error, *self.past], self.order)
        self.past = [max(error, LEAST_ERROR), *self.past][:2]
        return factor

    def reject(self, error: float) -> float:
        """Count a rejected step; what to multiply h with."""
        self.error = error
        self.stats.rejected += 1
        self.nonfinite_in_a_row = 0
        return self.controller.retry(error, self.order)

    def check_start(self, t: float, x: Tensor, k: Tensor) -> None:
        """Raise if the initial state or F there is not finite."""
        if not math.isfinite(rms(x.detach())):
            raise NonFiniteStateError(
                "the initial state holds NaN or infinity", t=t, h=0.0, sample=first_bad_sample(x), nfe=self.stats.nfe
            )
        if not math.isfinite(rms(k.detach())):
            raise NonFiniteFunctionError(
                "F returned NaN or infinity for the initial state", t=t, h=0.0, sample=first_bad_sample(k),
                nfe=self.stats.nfe,
            )  # fmt: skip

    def check_step(self, span: Span) -> None:
        """Raise if the next step cannot be resolved or afforded."""
        tries = self.stats.accepted + self.stats.rejected
        numbers = {"t": span.t, "h": span.h, "nfe": self.stats.nfe, "error_ratio": self.error}
        if tries >= self.problem.scheme.max_steps:
            raise StepBudgetError(
                f"the budget of {self.problem.scheme.max_steps} steps was used up",
                **numbers,
                advice=self.problem.stepper.weakness or TOO_MANY,
            )
        if abs(span.h) <= self.resolution:
            if self.broken is not None and self.error is not None and not math.isfinite(self.error):
                raise nonfinite_error(self.problem.stepper, self.broken, self.stats.nfe, self.error)
            if self.broken is not None and not self.broken.converged and self.error is None:
                raise unsolved_error(self.problem.stepper, self.broken, self.stats.nfe)
            raise StepUnderflowError(
                "the step became too small to change t",
                **numbers,
                advice="F may be singular or stiff there; loosen rtol and atol or use a fixed-step solver",
            )

    def unsolved(self, trial: Trial) -> None:
        """Count a trial whose equations could not be solved; raise where a smaller step is not allowed."""
        self.broken, self.error = trial, None
        self.stats.rejected += 1
        if abs(trial.span.h) <= self.problem.scheme.h_min:
            raise unsolved_error(self.problem.stepper, trial, self.stats.nfe)

    def nonfinite(self, trial: Trial, error: float) -> None:
        """Count a trial that gave NaN or infinity; raise when smaller steps do not help."""
        self.error, self.broken = error, trial
        self.stats.rejected += 1
        self.nonfinite_in_a_row += 1
        if self.nonfinite_in_a_row <= NONFINITE_RETRIES:
            return
        raise nonfinite_error(self.problem.stepper, trial, self.stats.nfe, error)

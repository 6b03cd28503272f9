"""From a checked scheme to a solution: states of any structure, times with gradients, events and what follows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from odenet import compiled
from odenet.depth import DepthWeights
from odenet.errors import InputError, SolveError, StepUnderflowError
from odenet.gradients import gradients
from odenet.gradients.times import Times, moment, moved
from odenet.run_per_sample import run_per_sample
from odenet.solvers import Problem, Scheme, Solution
from odenet.solvers.callbacks import Callbacks
from odenet.solvers.ends import StepEnds
from odenet.solvers.events import RESOLUTION, STOPS, Hit, events_of
from odenet.solvers.solution import Interpolant, Occurrences
from odenet.solvers.states import Packed, Packing, is_tree, packed_event


def run(
    weights: DepthWeights,
    x0: Any,
    interval: Sequence[Any],
    scheme: Scheme,
    ts: Any = None,
    args: tuple[Any, ...] = (),
    dense: bool = False,
    event: Any = None,
    callbacks: Callbacks | None = None,
    backward_callbacks: Callbacks | None = None,
    ends: StepEnds | None = None,
) -> Solution:
    """Solve with weights and a scheme that have been checked already.

    Args:
        weights: F with its weights over depth.
        x0: initial state, a tensor or a tree of tensors.
        interval: (t0, t1).
        scheme: how it is walked.
        ts: times of the answer, or None for t1.
        args: handed to F after (t, x).
        dense: whether the solution is to be callable.
        event: events to look for.
        callbacks: told of every step of a native solver, with states of x0's structure.
        backward_callbacks: of every step that a native adjoint takes on the way back, with (0, x, a, *θ̄).
        ends: sums over the accepted steps of a native solver without events, or gathers the states at their ends.
    """
    events = events_of(event)
    if scheme.per_sample:
        return run_per_sample(weights, x0, interval, scheme, ts, args, dense, events)
    if events and scheme.backend != "native":
        raise InputError(f"events are looked for by backend='native' only, got backend={scheme.backend!r}")
    packing = None
    if is_tree(x0):
        packing = Packing(x0)
        x0, weights = packing.pack(x0), Packed(weights, packing)
        events = [packed_event(event, packing) for event in events]
        rtol, atol = (packing.tolerance(name, getattr(scheme, name), x0.device) for name in ("rtol", "atol"))
        scheme = scheme.but(rtol=rtol, atol=atol, norm=packing.norm(scheme.norm))
    times = Times(interval, ts)
    problem = Problem(weights, x0, times.interval, scheme, times.ts, args, dense, events)
    problem.x0 = times.start(problem)
    problem.callbacks = callbacks if callbacks is None or packing is None else callbacks.of(packing.unpack)
    problem.backward_callbacks, problem.ends = backward_callbacks, ends
    if ends is not None and packing is not None:
        ends.unpack = packing.unpack
    if callbacks is None and packing is None and not (dense or events) and scheme.on_failure == "raise":
        solution = walk(problem)  # the whole answer, as nothing can come in between
        solution.states = times.finish(problem, solution.states, solution.times)
        return solution
    answer = _Answer(problem)
    try:
        while not answer.add(solution := walk(problem)):
            problem = answer.next_problem(solution)
        if problem.callbacks is not None:
            problem.callbacks.settle()
    except SolveError as error:
        if scheme.on_failure == "raise":
            raise
        answer.break_off(error)
    if dense and scheme.gradient != "autograd" and any(x.requires_grad for x in answer.states):
        raise InputError(
            f"dense=True with gradient={scheme.gradient!r} would lose the gradient of sol(t); "
            "use gradient='autograd', give the times as ts, or solve under torch.no_grad()"
        )
    answer.states = times.finish(problem, answer.states, answer.times)
    return answer.solution(packing)


def walk(problem: Problem) -> Solution:
    """One walk, compiled if that was asked for and is possible."""
    if problem.ends is not None:
        compiled.decline(problem.scheme, "the states at the ends of its steps are wanted")
        ends = problem.ends
        return ends.take(problem, gradients[problem.scheme.gradient].solve(problem))
    solution = compiled.solve(problem)
    return gradients[problem.scheme.gradient].solve(problem) if solution is None else solution


class _Answer:
    """What was asked for and what happened, gathered from one walk after the other.

    Args:
        problem: the first walk.
    """

    def __init__(self, problem: Problem):
        self.problem = problem
        self.states: list[Tensor] = []
        self.times: list[float] = []
        self.found: list[list[tuple[Tensor, Tensor, int]]] = [[] for _ in problem.events]
        self.interpolants: list[Interpolant] | None = [] if problem.dense else None
        self.error: SolveError | None = None
        self.ended = False
        self.stops: list[float] = []
        self.at = problem.t0, problem.x0

    def add(self, solution: Solution) -> bool:
        """Take what a walk brought; whether it was the last one."""
        self.error = solution.error
        if self.interpolants is not None:
            self.interpolants += solution.interpolants or []
        for x, t, hit in zip(solution.states, solution.times, solution.hits, strict=True):
            if hit is None:
                self.states.append(x)
                self.times.append(t)
            else:
                self.found[hit.event].append((*moment(self.problem, hit, x), hit.element))
        last = self._terminal(solution)
        if last is None or (self.problem.events[last.event].update is not None and last.t != self.problem.t1):
            return last is None
        self.ended = True
        self.states.append(self.found[last.event][-1][1])
        self.times.append(last.t)
        return True

    def break_off(self, error: SolveError) -> None:
        """The answer is what was found so far, and the state at the event from which no walk went on."""
        t, x = self.at
        self.error = error
        self.states.append(x)
        self.times.append(t)

    def next_problem(self, solution: Solution) -> Problem:
        """The walk that goes on where an event has changed the state."""
        hit = self._terminal(solution)
        assert hit is not None
        t, x, _ = self.found[hit.event][-1]
        self.at = hit.t, x
        self._check_accumulation(hit)
        time = self.problem.field.time(hit.t) if not t.requires_grad else t.to(x.dtype.to_real())
        changed = self.problem.events[hit.event].changed(time, x, self.problem.args)
        rest = self.problem.after(hit, changed, self.problem.ts[solution.hits.count(None) :])
        if t.requires_grad:
            rest.x0 = moved(rest, changed, hit.t, t, -1)
        self.problem = rest
        return rest

    def _check_accumulation(self, hit: Hit) -> None:
        """Raise if the walk stops again and again at (almost) the same time, as a ball does that comes to rest."""
        self.stops = [*self.stops, hit.t][-STOPS:]
        close = RESOLUTION * abs(self.problem.t1 - self.problem.t0)
        if len(self.stops) == STOPS and abs(self.stops[-1] - self.stops[0]) < close:
            raise StepUnderflowError(
                f"{STOPS} events that change the state follow each other too closely to be told apart",
                t=hit.t,
                h=abs(self.stops[-1] - self.stops[-2]),
                nfe=self.problem.stats.nfe,
                advice="let the update stop the motion, or end the solve earlier",
            )

    def solution(self, packing: Packing | None) -> Solution:
        """The whole answer."""
        unpack = None if packing is None else packing.unpack
        whole = Solution(self.states, self.times, self.problem.stats, self.interpolants, self.error, unpack=unpack)
        whole.events = [Occurrences.of(found, self.problem.x0, unpack) for found in self.found]
        if self.ended:
            whole.status = "event"
        return whole

    def _terminal(self, solution: Solution) -> Hit | None:
        last = solution.hits[-1] if solution.hits else None
        return last if last is not None and self.problem.events[last.event].terminal else None

"""Compiled solves in which every sample has its own steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from odenet import compiled
from odenet.compiled.report import captured
from odenet.compiled.scope import GRADIENTS, MOST_OUTPUTS, SEVERAL, of_state
from odenet.errors import SolveError
from odenet.solvers.explicit import ExplicitRungeKutta
from odenet.solvers.per_sample import SampleProblem, SampleSolution
from odenet.solvers.per_sample.outputs import Outputs
from odenet.solvers.stats import SampleStats

if TYPE_CHECKING:
    from odenet.compiled.per_sample.walk import SampleGraphs

ENOUGH_EVALUATIONS = 60_000


def solve_samples(problem: SampleProblem) -> SampleSolution | None:
    """Solve `problem` by compiled graphs, or return None if it is to be walked eagerly.

    With `compile="auto"` that is so until an F has been called 60,000 times under a scheme, which takes about as long
    as compiling, and for states of more than 65,536 elements.
    """
    scheme = problem.scheme
    if scheme.compile is False:
        return None
    entry = compiled.entry_of(problem)
    if entry is None:
        return None
    if scheme.compile == "auto":
        entry.evaluations += 0 if entry.last is None else entry.last.nfe
        entry.last = problem.stats if entry.evaluations < ENOUGH_EVALUATIONS else None
        if entry.last is not None or problem.x0.numel() > compiled.SMALL:
            return None
    if entry.refusal is not None:
        return compiled.refused(problem, entry, entry.refusal)
    graphs = compiled.graphs_of(problem, entry, _reason(problem), _graphs)
    if graphs is None:
        return None
    try:
        solution = _solved(problem, entry, graphs)
    except SolveError:
        raise
    except Exception as error:  # errors of F itself come again, eagerly
        solution = compiled.refused(problem, entry, captured(error))
    if solution is None:
        problem.field.settle()
        problem.stats.nfe, problem.stats.samples = 0, SampleStats.zeros(len(problem.x0))
    return solution


def _graphs(problem: SampleProblem) -> SampleGraphs:
    from odenet.compiled.per_sample.walk import SampleGraphs

    return SampleGraphs(problem)


def _reason(problem: SampleProblem) -> str | None:
    """Why a problem is not compiled, as the end of a sentence, or None; what F itself does is not looked at."""
    scheme, stepper = problem.scheme, problem.stepper
    if type(stepper) is not ExplicitRungeKutta:
        return f"only explicit Runge-Kutta methods are compiled, not {scheme.solver!r}"
    if not scheme.adaptive:
        return "its rounds pick their steps by a tolerance, which steps that are given do not have"
    if scheme.gradient not in GRADIENTS:
        return f"the compiled way back keeps every state, which is not gradient={scheme.gradient!r}"
    table = problem.field.timetable
    if problem.weights.pieces != 1 or scheme.jumps:
        return SEVERAL
    if table.end.shape[1] > 1:
        return "stops are looked at from the host"
    if problem.events or problem.dense:
        return "events and dense=True look at steps from the host"
    if scheme.norm is not None or any(isinstance(tolerance, torch.Tensor) for tolerance in scheme.tolerances):
        return "norm and tolerances per element are looked at from the host"
    if problem.ts is not None and bool(((problem.ts != problem.t0) & (problem.ts != problem.t1)).any()):
        tableau = stepper.tableau
        if tableau.dense is None or tableau.dense_c or not tableau.fsal or tableau.stages > tableau.used + 1:
            return f"outputs inside the steps of {scheme.solver!r} need more evaluations of F"
        if len(problem.ts) > MOST_OUTPUTS:
            return f"more than {MOST_OUTPUTS} outputs are cheaper eagerly"
    return of_state(problem.x0)


def _solved(problem: SampleProblem, entry: compiled.Entry, graphs: SampleGraphs) -> SampleSolution | None:
    field = problem.field
    walked, leaves = compiled.walked_by(problem, entry, graphs, problem.t0.to(field.device, field.time_dtype))
    if walked is None:
        return None
    outputs = Outputs(problem)
    moving = problem.field.timetable.count > 0
    for number, ts in enumerate(outputs.ts):
        at = (moving & (ts != problem.t0)).nonzero()[:, 0]
        index = at.to(walked.ends.device)
        x = walked.ends.index_select(0, index)
        if number < len(walked.times):
            last = (ts == problem.t1)[at].to(x.device).reshape(-1, *[1] * (x.dim() - 1))
            x = torch.where(last, x, walked.outputs[number].index_select(0, index))
        outputs.at(number, at, x)
    values = torch.cat(outputs.values) if outputs.values else problem.x0
    status, ended = ["success"] * len(problem.x0), outputs.ts[-1].clone()
    solution = SampleSolution(problem, outputs, values, ended, status, {}, None, [])
    if leaves is not None:
        from odenet.compiled.per_sample.gradient import differentiable

        solution.values = differentiable(problem, graphs, walked, leaves, outputs, values)
    return solution


__all__ = ["solve_samples"]

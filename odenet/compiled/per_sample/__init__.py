"""Compiled solves in which every sample has its own steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from odenet import compiled
from odenet.compiled.report import uncaptured
from odenet.compiled.rowwise import NotRowwiseError
from odenet.compiled.scope import GRADIENTS, MOST_OUTPUTS, of_state
from odenet.errors import ResidualError, SolveError
from odenet.solvers.explicit import ExplicitRungeKutta
from odenet.solvers.per_sample import SampleProblem, SampleSolution
from odenet.solvers.per_sample.outputs import Outputs
from odenet.solvers.stats import SampleStats

if TYPE_CHECKING:
    from odenet.compiled.per_sample.walk import SampleGraphs

ENOUGH_EVALUATIONS = 60_000
GIVEN = "steps that are given are compiled on a CPU only, row by row"
VARYING = "weights that vary within pieces of depth are compiled for each sample on a CPU only, row by row"
PIECES = "pieces of depth, stops and jumps of each sample are compiled on a CPU only, row by row"


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
    if not graphs.takes_all and (reason := _reason_in_rounds(problem)) is not None:
        return compiled.refused(problem, entry, reason, lasting=False)
    try:
        try:
            solution = _solved(problem, entry, graphs)
        except NotRowwiseError as refusal:
            if (reason := _reason_in_rounds(problem)) is not None:
                return compiled.refused(problem, entry, f"{reason}, and this F is not: {refusal}")
            entry.graphs = _rounds(problem)
            solution = _solved(problem, entry, entry.graphs)
    except (SolveError, ResidualError):
        raise
    except Exception as error:  # errors of F itself come again, eagerly
        solution = compiled.refused(problem, entry, uncaptured(error))
    if solution is None:
        problem.field.settle()
        problem.stats.nfe, problem.stats.samples = 0, SampleStats.zeros(len(problem.x0))
    return solution


def _graphs(problem: SampleProblem) -> Any:
    """Row by row on a CPU; what cannot be so is found out by the first walk."""
    if problem.x0.device.type == "cpu":
        from odenet.compiled.rowwise.samples import SampleRows

        return SampleRows(problem)
    return _rounds(problem)


def _rounds(problem: SampleProblem) -> SampleGraphs:
    """Rounds over the samples that are on their way."""
    from odenet.compiled.per_sample.walk import SampleGraphs

    return SampleGraphs(problem)


def _reason(problem: SampleProblem) -> str | None:
    """Why a problem is not compiled, as the end of a sentence, or None; what F itself does is not looked at."""
    scheme, stepper = problem.scheme, problem.stepper
    if type(stepper) is not ExplicitRungeKutta:
        return f"only explicit Runge-Kutta methods are compiled, not {scheme.solver!r}"
    if scheme.gradient not in GRADIENTS:
        return f"the compiled way back keeps every state, which is not gradient={scheme.gradient!r}"
    if problem.events or problem.dense:
        return "events and dense=True look at steps from the host"
    if scheme.norm is not None or any(isinstance(tolerance, torch.Tensor) for tolerance in scheme.tolerances):
        return "norm and tolerances per element are looked at from the host"
    tableau = stepper.tableau
    if _inside(problem) and (tableau.dense_c or (scheme.adaptive and not tableau.fsal)):
        return f"outputs inside the steps of {scheme.solver!r} need more evaluations of F"
    return of_state(problem.x0)


def _inside(problem: SampleProblem) -> bool:
    """Whether there are outputs inside steps, as far as that is known before the walk."""
    ts = problem.ts
    if ts is None or not bool(((ts != problem.t0) & (ts != problem.t1)).any()):
        return False
    grids = problem.grids
    return grids is None or not bool((ts[:, None] == grids.times[grids.index].T).any(1).all())


def _reason_in_rounds(problem: SampleProblem) -> str | None:
    """Why a problem is not compiled as rounds over a batch, or None."""
    scheme, stepper = problem.scheme, problem.stepper
    if not scheme.adaptive:
        return GIVEN
    if problem.weights.varies:
        return VARYING
    if problem.weights.pieces > 1 or scheme.jumps or problem.field.timetable.end.shape[1] > 1:
        return PIECES
    assert isinstance(stepper, ExplicitRungeKutta)
    tableau = stepper.tableau
    if _inside(problem) and (tableau.dense is None or tableau.stages > tableau.used + 1):
        return f"outputs inside the steps of {scheme.solver!r} need more evaluations of F"
    if problem.ts is not None and len(problem.ts) > MOST_OUTPUTS:
        return f"more than {MOST_OUTPUTS} outputs are cheaper eagerly"
    return None


def _solved(problem: SampleProblem, entry: compiled.Entry, graphs: Any) -> SampleSolution | None:
    field = problem.field
    walked, leaves = compiled.walked_by(problem, entry, graphs, problem.t0.to(field.device, field.time_dtype))
    if walked is None:
        return None
    outputs, ends = Outputs(problem), walked.ends
    wanted = (problem.field.timetable.count > 0) & (outputs.ts != problem.t0)
    if len(walked.times):
        last = (outputs.ts == problem.t1).to(ends.device).reshape(*outputs.ts.shape, *[1] * (ends.dim() - 1))
        values = torch.where(last, ends, walked.outputs[: len(outputs.ts)])
    else:
        values = ends.expand(len(outputs.ts), *ends.shape)
    places = wanted.flatten().nonzero()[:, 0]
    outputs.at(0, places, values.flatten(0, 1).index_select(0, places.to(ends.device)))
    values = torch.cat(outputs.values) if len(outputs.values) > 1 else outputs.values[0]
    status, ended = ["success"] * len(problem.x0), outputs.ts[-1].clone()
    solution = SampleSolution(problem, outputs, values, ended, status, {}, None, [])
    if leaves is not None:
        from odenet.compiled.per_sample.gradient import differentiable

        solution.values = differentiable(problem, graphs, walked, leaves, outputs, values)
    return solution


__all__ = ["solve_samples"]

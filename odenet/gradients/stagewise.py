"""The symplectic adjoint: explicit Runge-Kutta steps walked back stage by stage, one graph of F at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from odenet.gradients.checkpoint import StoredStates, check_checkpoints, stored_states
from odenet.gradients.per_sample import replay_samples
from odenet.gradients.pullback import Pullback, plus
from odenet.gradients.registry import gradients
from odenet.gradients.replay import Cotangents, Replayed
from odenet.gradients.sample_stages import stage_by_stage
from odenet.gradients.sample_states import StoredRounds
from odenet.gradients.stages import back_through_stages, explicit_runge_kutta, last_stage, stage_values
from odenet.solvers.explicit import ExplicitRungeKutta, combine
from odenet.solvers.per_sample import SampleProblem, SampleSolution
from odenet.solvers.problem import Problem
from odenet.solvers.stepper import Span, Trial


class Stagewise(Replayed):
    """The steps of an explicit Runge-Kutta method, with the states kept and the stages X_i of one step at a time:

        c_i = h (b_i a_{n+1} + Σ_{j>i} a_ji g_j),   g_i = (∂F(X_i)/∂x)ᵀ c_i,   θ̄ += (∂F(X_i)/∂θ)ᵀ c_i
        a_n = a_{n+1} + Σ_i g_i

    from the last stage to the first; a stage whose c_i is zero is left out, and b_i may be zero. Outputs inside a step
    add to c_i, a_n and a_{n+1} through the dense output. Exact for the accepted grid; 2s - 1 evaluations of F and s
    vector-Jacobian products a step of s stages. The option checkpoints=c keeps c states, as for "checkpoint".

    Reference:
        Matsubara et al. 2021, Symplectic Adjoint Method for Exact Gradient of Neural ODE with Minimal Memory.
    """

    name = "stagewise"
    memory = "one state a step (or `checkpoints` of them), the stages of one step, and one evaluation of F"
    reference = "Matsubara et al. 2021 (symplectic adjoint)"

    def solvers(self) -> list[str]:
        return explicit_runge_kutta()

    def check_options(self, options: Mapping[str, Any]) -> None:
        check_checkpoints(self.name, options)

    def sweep(self, problem: Problem) -> StoredStates:
        return stored_states(problem, step_back)

    def solve_samples(self, problem: SampleProblem) -> SampleSolution:
        """Solve `problem`, each sample with its own steps, so that its states can be differentiated."""
        return replay_samples(problem, StoredRounds(stage_by_stage, problem.scheme.gradient_options.get("checkpoints")))


def step_back(
    pullback: Pullback,
    number: int,
    start: list[Tensor],
    due: list[int],
    cotangents: Cotangents,
    a: list[Tensor | None],
) -> list[Tensor | None]:
    """Back over one step, stage by stage."""
    record = pullback.record
    span, (x,) = record.spans[number], start
    stepper = record.stepper
    assert isinstance(stepper, ExplicitRungeKutta)
    end = a[0] if a else None
    inside = []
    for i in due:
        if record.times[i] == span.t_next:
            end = plus(end, cotangents[i])
        else:
            inside.append(i)
    if not inside:
        stages = stage_values(pullback, stepper.tableau, span, x, last_stage(stepper.tableau))
        return [back_through_stages(pullback, stepper.tableau, span, x, stages, end)]
    stages = stage_values(pullback, stepper.tableau, span, x, last_stage(stepper.tableau) + 1)
    with torch.no_grad():
        x_next = combine(x, span.h, stepper.tableau.b, stages)
    times, seeds = [record.times[i] for i in inside], [cotangents[i] for i in inside]
    first, at_end, *on_stages = _dense_output(pullback, span, x, x_next, stages, times, seeds)
    back = back_through_stages(pullback, stepper.tableau, span, x, stages, plus(end, at_end), on_stages)
    return [plus(back, first)]


def _dense_output(
    pullback: Pullback,
    span: Span,
    x: Tensor,
    x_next: Tensor,
    stages: list[Tensor],
    times: list[float],
    seeds: list[Tensor | None],
) -> list[Tensor | None]:
    """Cotangents of x, x_next and the stages from those of outputs inside the step; F at the end of the step, and what
    else the dense output evaluates, is differentiated on the way."""
    record, stats = pullback.record, pullback.stats
    f = record.problem.field.piece(span.piece)
    before = stats.nfe_backward
    with torch.enable_grad():
        leaves = [part.detach().requires_grad_() for part in (x, x_next, *stages)]
        trial = Trial(span, leaves[0], leaves[1], leaves[2:], first=leaves[2])
        outputs = [record.stepper.interpolate(f, trial, t) for t in times]
    stats.vjps += stats.nfe_backward - before
    return pullback.through(span.piece, list(zip(outputs, seeds, strict=True)), leaves)


gradients.add("stagewise", Stagewise())

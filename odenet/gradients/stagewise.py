"""The symplectic adjoint: explicit Runge-Kutta steps walked back stage by stage, one graph of F at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from odenet.gradients.checkpoint import StoredStates, check_checkpoints, stored_states
from odenet.gradients.per_sample import replay_samples
from odenet.gradients.pullback import Evaluation, Pullback, plus
from odenet.gradients.registry import gradients
from odenet.gradients.replay import Cotangents, Replayed
from odenet.gradients.sample_stages import stage_by_stage
from odenet.solvers.explicit import ExplicitRungeKutta, combine
from odenet.solvers.per_sample import SampleProblem, SampleSolution
from odenet.solvers.problem import Problem
from odenet.solvers.registry import solvers
from odenet.solvers.stepper import Span, Trial
from odenet.solvers.tableau import Tableau


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
        return replay_samples(problem, stage_by_stage)


def explicit_runge_kutta() -> list[str]:
    """Names of the native explicit Runge-Kutta methods."""
    return [name for name, stepper in solvers.items() if isinstance(stepper, ExplicitRungeKutta)]


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
        stages = stage_values(pullback, stepper.tableau, span, x, _last(stepper.tableau))
        return [back_through_stages(pullback, stepper.tableau, span, x, stages, end)]
    stages = stage_values(pullback, stepper.tableau, span, x, _last(stepper.tableau) + 1)
    with torch.no_grad():
        x_next = combine(x, span.h, stepper.tableau.b, stages)
    times, seeds = [record.times[i] for i in inside], [cotangents[i] for i in inside]
    first, at_end, *on_stages = _dense_output(pullback, span, x, x_next, stages, times, seeds)
    back = back_through_stages(pullback, stepper.tableau, span, x, stages, plus(end, at_end), on_stages)
    return [plus(back, first)]


def stage_values(pullback: Pullback, tableau: Tableau, span: Span, x: Tensor, count: int) -> list[Tensor]:
    """k_1 ... k_count of the step from x, without a graph."""
    k: list[Tensor] = []
    for c, row in zip(tableau.c[:count], tableau.a, strict=False):
        k.append(pullback.value(span.piece, span.at(c), _stage(x, span.h, row, k)))
    return k


def back_through_stages(
    pullback: Pullback,
    tableau: Tableau,
    span: Span,
    x: Tensor,
    stages: Sequence[Tensor],
    a: Tensor | None,
    on_stages: Sequence[Tensor | None] = (),
) -> Tensor | None:
    """The cotangent of x from that of x_next = x + h Σ b_i k_i, and those of the stages themselves.

    Args:
        pullback: collects θ̄.
        tableau: of the method.
        span: the step.
        x: its start.
        stages: k_1 ..., all but possibly the last that x_next depends on.
        a: cotangent of x_next.
        on_stages: further cotangents of k_1 ...
    """
    return plus(a, _pull_stages(pullback, tableau, span, x, stages, a, on_stages))


def increment_back(
    pullback: Pullback, tableau: Tableau, span: Span, x: Tensor, a: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """x + ψ_h(t, x) and (∂ψ_h/∂x)ᵀ a, from 2s - 1 evaluations of F, one of them with its graph at a time."""
    last = _last(tableau)
    stages = stage_values(pullback, tableau, span, x, last)
    end = pullback.evaluate(span.piece, span.at(tableau.c[last]), _stage(x, span.h, tableau.a[last], stages))
    stages.append(end.value)
    with torch.no_grad():
        x_next = combine(x, span.h, tableau.b, stages)
    return x_next, None if a is None else _pull_stages(pullback, tableau, span, x, stages, a, end=end)


def _pull_stages(
    pullback: Pullback,
    tableau: Tableau,
    span: Span,
    x: Tensor,
    stages: Sequence[Tensor],
    a: Tensor | None,
    on_stages: Sequence[Tensor | None] = (),
    end: Evaluation | None = None,
) -> Tensor | None:
    """Σ_i g_i; `end` is the last stage with its graph, if it is at hand."""
    g: dict[int, Tensor] = {}
    for i in reversed(range(_last(tableau) + 1)):
        c = None if a is None else plus(None, a, span.h * tableau.b[i])
        if i < len(on_stages):
            c = plus(c, on_stages[i])
        for j, g_j in g.items():
            c = plus(c, g_j, span.h * tableau.a[j][i])
        if c is None:
            continue
        if end is None:
            at = _stage(x, span.h, tableau.a[i], stages[:i])
            end = pullback.evaluate(span.piece, span.at(tableau.c[i]), at)
        g_i = pullback.pull(end, c)
        end = None
        if g_i is not None:
            g[i] = g_i
    total: Tensor | None = None
    for part in g.values():
        total = plus(total, part)
    return total


def _last(tableau: Tableau) -> int:
    """The last stage that x_next depends on."""
    return max(i for i, b in enumerate(tableau.b) if b != 0)


@torch.no_grad()
def _stage(x: Tensor, h: float, row: Sequence[float], k: Sequence[Tensor]) -> Tensor:
    return combine(x, h, row, k)


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

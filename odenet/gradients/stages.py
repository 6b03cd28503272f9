"""The stages of an explicit Runge-Kutta step, walked back one graph of F at a time; h may be that of each sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odenet.gradients.pullback import Evaluation, Pullback, plus
from odenet.solvers.explicit import ExplicitRungeKutta, combine
from odenet.solvers.registry import solvers
from odenet.solvers.tableau import Tableau


def explicit_runge_kutta() -> list[str]:
    """Names of the native explicit Runge-Kutta methods."""
    return [name for name, stepper in solvers.items() if isinstance(stepper, ExplicitRungeKutta)]


def stage_values(pullback: Pullback, tableau: Tableau, span: Any, x: Tensor, count: int) -> list[Tensor]:
    """k_1 ... k_count of the step from x, without a graph."""
    k: list[Tensor] = []
    for c, row in zip(tableau.c[:count], tableau.a, strict=False):
        k.append(pullback.value(span.piece, span.at(c), stage(x, span.h, row, k)))
    return k


def back_through_stages(
    pullback: Pullback,
    tableau: Tableau,
    span: Any,
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
    pullback: Pullback, tableau: Tableau, span: Any, x: Tensor, a: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """x + ψ_h(t, x) and (∂ψ_h/∂x)ᵀ a, from 2s - 1 evaluations of F, one of them with its graph at a time."""
    last = last_stage(tableau)
    stages = stage_values(pullback, tableau, span, x, last)
    end = pullback.evaluate(span.piece, span.at(tableau.c[last]), stage(x, span.h, tableau.a[last], stages))
    stages.append(end.value)
    with torch.no_grad():
        x_next = combine(x, span.h, tableau.b, stages)
    return x_next, None if a is None else _pull_stages(pullback, tableau, span, x, stages, a, end=end)


def _pull_stages(
    pullback: Pullback,
    tableau: Tableau,
    span: Any,
    x: Tensor,
    stages: Sequence[Tensor],
    a: Tensor | None,
    on_stages: Sequence[Tensor | None] = (),
    end: Evaluation | None = None,
) -> Tensor | None:
    """Σ_i g_i; `end` is the last stage with its graph, if it is at hand."""
    g: dict[int, Tensor] = {}
    for i in reversed(range(last_stage(tableau) + 1)):
        c = None if tableau.b[i] == 0 else plus(None, a, span.h * tableau.b[i])
        if i < len(on_stages):
            c = plus(c, on_stages[i])
        for j, g_j in g.items():
            if tableau.a[j][i] != 0:
                c = plus(c, g_j, span.h * tableau.a[j][i])
        if c is None:
            continue
        if end is None:
            at = stage(x, span.h, tableau.a[i], stages[:i])
            end = pullback.evaluate(span.piece, span.at(tableau.c[i]), at)
        g_i = pullback.pull(end, c)
        end = None
        if g_i is not None:
            g[i] = g_i
    total: Tensor | None = None
    for part in g.values():
        total = plus(total, part)
    return total


def last_stage(tableau: Tableau) -> int:
    """The last stage that x_next depends on."""
    return max(i for i, b in enumerate(tableau.b) if b != 0)


@torch.no_grad()
def stage(x: Tensor, h: Any, row: Sequence[float], k: Sequence[Tensor]) -> Tensor:
    """x + h Σ_j a_ij k_j, where F is evaluated for a stage."""
    return combine(x, h, row, k) if any(row[: len(k)]) else x

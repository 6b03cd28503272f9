"""The symplectic adjoint where every sample had its own steps: one graph of F at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from odenet.gradients.per_sample import Round, SampleRecord, of_take, pull
from odenet.solvers.explicit import ExplicitRungeKutta, combine
from odenet.solvers.per_sample.outputs import Interior, Step
from odenet.solvers.stepper import Trial


def stage_by_stage(
    record: SampleRecord,
    number: int,
    start: list[Tensor],
    seeds: list[Tensor],
    cotangent: Tensor,
    found: list[Tensor | None],
) -> list[Tensor | None]:
    """As `odenet.gradients.per_sample.whole_step`, by the formulas of `Stagewise`, h being that of each sample."""
    done, stepper, stats = record.rounds[number], record.stepper, record.problem.stats
    assert isinstance(done, Round) and isinstance(stepper, ExplicitRungeKutta)
    tableau, (x,), (a,) = stepper.tableau, start, seeds
    f, span = record.where(done, x)
    h, last = span.h, max(i for i, b in enumerate(tableau.b) if b != 0)
    inside = [take for take in done.takes if take.t is not None]
    k: list[Tensor] = []
    with torch.no_grad():
        points = []
        for i in range(last + 1):
            points.append(combine(x, h, tableau.a[i][:i], k) if any(tableau.a[i][:i]) else x)
            if i < last or inside:
                k.append(f(span.at(tableau.c[i]), points[i]))
    total, on_stages = a, [None] * (last + 1)
    if inside:
        before = stats.nfe_backward
        with torch.enable_grad():
            parts = (x, combine(x, h, tableau.b, k), *k)
            leaves = [part.detach().requires_grad_() for part in parts]
            trial = Trial(span, leaves[0], leaves[1], leaves[2:], first=leaves[2])
            own, _ = record.where(done, x)
            step = Step(own, trial, torch.zeros(len(done.samples), dtype=torch.bool))
            interior = Interior(stepper, step, torch.cat([take.rows for take in inside]).unique())
            pairs = [(interior.at(take.rows, _time(take.t)), of_take(cotangent, take)) for take in inside]
        stats.vjps += stats.nfe_backward - before
        at_start, at_end, *on_stages = pull(record, f.pieces, pairs, leaves, found)
        a = a if at_end is None else a + at_end
        total = a if at_start is None else a + at_start
    g: dict[int, Tensor] = {}
    for i in reversed(range(last + 1)):
        c: Any = on_stages[i]
        terms = [(a, tableau.b[i]), *((g_j, tableau.a[j][i]) for j, g_j in g.items())]
        weighed = [part * weight for part, weight in terms if weight != 0]
        if weighed:
            c = h * sum(weighed[1:], start=weighed[0]) + (0 if c is None else c)
        if c is None:
            continue
        with torch.enable_grad():
            leaf = points[i].detach().requires_grad_()
            own, _ = record.where(done, x)  # arguments of the samples are cut to the rows with a graph
            slope = own(span.at(tableau.c[i]), leaf)
        if not slope.requires_grad:
            continue
        stats.vjps += 1
        (g_i,) = pull(record, f.pieces, [(slope, c)], [leaf], found)
        if g_i is not None:
            g[i] = g_i
            total = total + g_i
    return [total]


def _time(t: Tensor | None) -> Tensor:
    assert t is not None
    return t

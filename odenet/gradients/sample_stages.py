"""The symplectic adjoint where every sample had its own steps: one graph of F at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from odenet.gradients.pullback import plus
from odenet.gradients.sample_record import Round, SamplePullback, inside, of_take
from odenet.gradients.stages import back_through_stages, last_stage, stage, stage_values
from odenet.solvers.explicit import ExplicitRungeKutta, combine
from odenet.solvers.per_sample.rows import put, select
from odenet.solvers.stepper import Trial


def stage_by_stage(
    pullback: SamplePullback, done: Round, start: list[Tensor], a: list[Tensor | None], cotangent: Tensor
) -> list[Tensor | None]:
    """As `odenet.gradients.sample_states.whole_step`, by the formulas of `Stagewise`, h being that of each sample."""
    record, stats = pullback.record, pullback.stats
    stepper, (x,), (end,) = record.stepper, start, a
    assert isinstance(stepper, ExplicitRungeKutta)
    span, tableau, takes = record.where(done, x), stepper.tableau, done.inside
    last = last_stage(tableau)
    stages = stage_values(pullback, tableau, span, x, last)
    if not takes:
        return [back_through_stages(pullback, tableau, span, x, stages, end)]
    rows = torch.cat([take.rows for take in takes]).unique()
    index = rows.to(x.device)
    part = span.rows(rows, index)
    with torch.no_grad():
        at = stage(x.index_select(0, index), part.h, tableau.a[last], select(stages, index))
        k = pullback.value(part.piece, part.at(tableau.c[last]), at)
    stages += put([], index, [k], len(x))
    before = stats.nfe_backward
    with torch.no_grad():
        x_next = combine(x, span.h, tableau.b, stages)
    with torch.enable_grad():
        span = record.where(done, x)  # the samples' rows of arguments are to belong to the graph
        leaves = [part.detach().requires_grad_() for part in (x, x_next, *stages)]
        found = inside(record, takes, Trial(span, leaves[0], leaves[1], leaves[2:], first=leaves[2]))
    stats.vjps += stats.nfe_backward - before
    pairs: Any = [(value, of_take(cotangent, take)) for take, value in found]
    first, at_end, *on_stages = pullback.through(span.piece, pairs, leaves)
    back = back_through_stages(pullback, tableau, span, x, stages, plus(end, at_end), on_stages)
    return [plus(back, first)]

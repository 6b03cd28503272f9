"""The step of an implicit method some of whose stages lie behind the end of a step, where every sample has its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from odenet.solvers.implicit import ImplicitRungeKutta
from odenet.solvers.per_sample.field import Rows
from odenet.solvers.per_sample.implicit import SampleImplicit
from odenet.solvers.stepper import NOTHING, Evaluate, Memory, Span, Trial

if TYPE_CHECKING:
    from odenet.solvers.per_sample.problem import SampleProblem
    from odenet.solvers.per_sample.spans import Spans


class SampleCompanied(SampleImplicit):
    """`SampleImplicit` for a method with a companion, which takes the steps of those samples for whom a stage would lie
    behind the end of their piece of depth. Their stages stand first among the method's, the others are zero.

    Args:
        method: the method.
        problem: says tolerances, and the norm.
    """

    def __init__(self, method: ImplicitRungeKutta, problem: SampleProblem):
        super().__init__(method, problem)
        assert method.companion is not None
        self.other = SampleImplicit(method.companion, problem)

    def check(self, x0: Tensor) -> None:
        """As both methods'."""
        super().check(x0)
        self.other.check(x0)

    def step(
        self,
        f: Evaluate,
        span: Span,
        x: Tensor,
        memory: Memory = NOTHING,
        first: Tensor | None = None,
        error: bool = False,
    ) -> Trial:
        """One step of each sample."""
        rows, spans, beyond = cast(Rows, f), cast(Any, span), self._beyond(f, span)
        if not bool(beyond.any()):
            return super().step(f, span, x, memory, first, error)
        k = self._first(memory, first)
        if bool(beyond.all()):
            return self._by_other(f, span, x, memory, k, error)
        assert k is not None
        parts: list[Trial] = []
        groups = [mine.nonzero()[:, 0] for mine in (~beyond, beyond)]
        for group, step in zip(groups, (super().step, self._by_other), strict=True):
            index = group.to(x.device)
            pick = lambda part, index=index: part.index_select(0, index)  # noqa: E731
            given = Memory(tuple(map(pick, memory.tensors)))
            own, where = cast(Any, rows.select(group)), spans.rows(group, index)
            parts.append(step(own, where, x.index_select(0, index), given, pick(k), error))
        order = torch.cat(groups).argsort().to(x.device)
        join = lambda both: torch.cat(both).index_select(0, order)  # noqa: E731
        stages = [join(both) for both in zip(*(part.stages for part in parts), strict=True)]
        trial = Trial(span, x, join([part.x_next for part in parts]), stages, given=memory, first=k)
        trial.end = join([part.memory.tensors[0] for part in parts])
        trial.memory = Memory((trial.end,))
        if error:
            trial.error = join([part.error for part in parts])
        if any(part.unsolved is not None for part in parts):
            left = [torch.zeros(len(p.x)).double() if p.unsolved is None else p.unsolved for p in parts]
            trial.unsolved = torch.cat(left)[order.cpu()]
        return trial

    def _by_other(self, f: Evaluate, span: Span, x: Tensor, memory: Memory, first: Tensor | None, error: bool) -> Trial:
        """A step of the companion, with this method's memory and as many stages."""
        trial = self.other.step(f, span, x, NOTHING, first, error)
        last = trial.stages[-1]
        trial.stages = [*trial.stages, *[torch.zeros_like(x)] * (self.tableau.stages - len(trial.stages))]
        trial.given, trial.memory, trial.end = memory, Memory((last,)), last
        return trial

    def interpolate(self, f: Evaluate, trial: Trial, t: Any) -> Tensor:
        """x(t) inside a step, by the dense output of the method that took it."""
        beyond = self._beyond(f, trial.span)
        own = super().interpolate(f, trial, t)
        if not bool(beyond.any()):
            return own
        mask = beyond.to(own.device).reshape(-1, *(1,) * (own.dim() - 1))
        return torch.where(mask, self.other.interpolate(f, trial, t), own)

    def _beyond(self, f: Evaluate, span: Span) -> Tensor:
        """For whom a stage would lie behind the end of the piece, (rows,) on the host."""
        rows, (t, _, step) = cast(Rows, f), cast("Spans", span).host
        end = rows.field.timetable.piece_end[rows.samples, rows.segments]
        return (t + max(self.tableau.c) * step - end) * step > 0

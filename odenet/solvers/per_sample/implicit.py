"""The step of an implicit Runge-Kutta method where every sample has its own."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from odenet.errors import InputError
from odenet.solvers.explicit import combine
from odenet.solvers.implicit import ImplicitRungeKutta, standing
from odenet.solvers.implicit_function import DENSE, attach
from odenet.solvers.implicit_tableaus import ImplicitTableau
from odenet.solvers.jacobian import size
from odenet.solvers.newton import known
from odenet.solvers.per_sample.field import Rows
from odenet.solvers.per_sample.newton import (
    Factors,
    SampleEquations,
    SamplePrecision,
    flat_rows,
    jacobians,
    newton_rows,
    shaped_rows,
    stacked,
    stacked_jacobians,
    unstacked,
)
from odenet.solvers.reach import reachable
from odenet.solvers.stepper import NOTHING, Evaluate, Memory, Span, Trial

if TYPE_CHECKING:
    from odenet.solvers.per_sample.problem import SampleProblem
    from odenet.solvers.per_sample.spans import Spans


class SampleImplicit(ImplicitRungeKutta):
    """`ImplicitRungeKutta` with h, Jacobian and convergence of each sample; `Trial.unsolved` says who did not converge.

    Args:
        method: the method.
        problem: says tolerances, and the norm.
    """

    def __init__(self, method: ImplicitRungeKutta, problem: SampleProblem):
        super().__init__(method.tableau)
        scheme = problem.scheme
        self._tolerances = scheme.tolerances if scheme.adaptive else None
        self._own, self._batch, self._dim = scheme.norm, problem.x0.shape[0], problem.x0.dim()

    def check(self, x0: Tensor) -> None:
        """Raise `InputError` if the Jacobian of a sample would be too large."""
        unknowns = size(x0) // max(1, len(x0)) * (self.tableau.stages if self.tableau.coupled else 1)
        if unknowns > DENSE:
            raise InputError(
                f"with per_sample=True solver {self.name!r} takes a dense Jacobian of each sample, up to {DENSE} "
                f"unknowns, got {unknowns}; leave out per_sample, or use an explicit solver"
            )

    def start(self, f: Evaluate, t: float, x: Tensor, first: Tensor | None = None) -> Memory:
        """F(t, x) where the first stage is that. Where stages are solved together, what `step` keeps of them: those of
        a step of size 0, the last one F(t, x) if it is that of every step."""
        if not self._at_once:
            return super().start(f, t, x, first)
        with torch.no_grad():
            stages = x.new_zeros(len(x), self.tableau.used, *x.shape[1:])
            if self.tableau.stiffly_accurate:
                stages[:, -1] = f(t, x) if first is None else first
            none = torch.zeros(len(x), *(1,) * (x.dim() - 1), dtype=x.dtype.to_real(), device=x.device)
            return Memory((stages, none))

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
        tableau, rows, spans = self.tableau, cast(Rows, f), cast("Spans", span)
        first = self._first(memory, first)
        if first is None and self._needs_first:
            first = f(span.t, x)
        stages = _Stages(rows, spans, x, first, self._precision_of(rows), Factors(len(x)))
        guess = self._begun(spans, memory) if self._at_once and memory.tensors else None
        k: list[Tensor] = [first] if tableau.explicit_first and first is not None else []
        for group in self._groups(range(len(k), tableau.used)):
            k += stages.solve(tableau, group, k, self._rings, guess)
        x_next = combine(x, span.h, tableau.b, k)
        trial = Trial(span, x, x_next, k, given=memory, first=first)
        if self._carries_slope:
            trial.memory = Memory((k[-1],))
        elif self._at_once:
            trial.memory = Memory((torch.stack([part.detach() for part in k], 1), spans.h))
        if tableau.stiffly_accurate:
            trial.end = k[-1]
        if error and tableau.b_error is not None:
            trial.error = self._error(stages, k)
        if bool((stages.left != 0).any()):
            trial.unsolved = stages.left
        return trial

    def _first(self, memory: Memory, first: Tensor | None) -> Tensor | None:
        at_once = self._at_once and memory.tensors and self.tableau.stiffly_accurate
        return memory.tensors[0][:, -1] if at_once else super()._first(memory, first)

    @torch.no_grad()
    def _begun(self, spans: Spans, memory: Memory) -> Tensor:
        """`_predicted` for each sample; where none has a former step, its last stage."""
        c, (former, h) = self.tableau.c, memory.tensors
        k, ratio = list(former.unbind(1)), spans.h / h
        ends = [1 + ci * ratio for ci in c]
        rows = [[math.prod((end - cm) / (cj - cm) for cm in c if cm != cj) for cj in c] for end in ends]
        predicted = torch.stack([combine(None, torch.ones_like(h), row, k) for row in rows])
        return torch.where(h != 0, predicted, k[-1])

    @torch.no_grad()
    def _error(self, stages: _Stages, k: Sequence[Tensor]) -> Tensor:
        """The local errors, for which there may be further stages."""
        tableau, h, k = self.tableau, stages.spans.h, [part.detach() for part in k]
        assert tableau.b_error is not None
        for group in self._groups(range(tableau.used, tableau.stages)):
            k += stages.solve(tableau, group, k, self._rings)
        estimate = combine(None, h, tableau.b_error, k)
        if tableau.error_first:
            assert stages.first is not None
            estimate = torch.addcmul(estimate, stages.first, h * tableau.error_first)
        if tableau.filter is None:
            return estimate
        assert stages.factors.first is not None
        matrix = -h.reshape(-1, 1, 1) * tableau.filter * stages.factors.first
        matrix.diagonal(dim1=1, dim2=2).add_(1)
        solved, _ = torch.linalg.solve_ex(matrix, flat_rows(estimate).to(matrix.dtype)[..., None])
        return shaped_rows(solved[..., 0], estimate)

    def _leaves_the_piece(self, span: Span) -> bool:
        return False

    def _precision_of(self, f: Rows) -> SamplePrecision:
        tolerances: Any = self._tolerances
        if tolerances is not None and f.index is not None:
            tolerances = tuple(self._selected(part, f.index) for part in tolerances)
        return SamplePrecision(tolerances, self._own)

    def _selected(self, tolerance: Any, index: Tensor) -> Any:
        own = isinstance(tolerance, Tensor) and tolerance.dim() == self._dim and len(tolerance) == self._batch
        return tolerance.index_select(0, index) if own else tolerance


class _Stages:
    """The stages of a step of each sample, solved one group after the other.

    Attributes:
        left: what was left of each sample's equations, 0 where they were solved, (rows,) on the host.
    """

    def __init__(
        self, f: Rows, spans: Spans, x: Tensor, first: Tensor | None, precision: SamplePrecision, factors: Factors
    ):
        self.f, self.spans, self.x, self.first = f, spans, x, first
        self.precision, self.factors = precision, factors
        self.left = torch.zeros(len(x), dtype=torch.float64)

    def solve(
        self,
        tableau: ImplicitTableau,
        group: range,
        k: Sequence[Tensor],
        rings: bool,
        predicted: Tensor | None = None,
    ) -> list[Tensor]:
        """The stages of a group from those before them; zero where they, or stages before, could not be solved.

        Args:
            tableau: of the method.
            group: which stages.
            k: those before them.
            rings: whether the search is to begin again at the state where it leads nowhere.
            predicted: where it begins, if not on the polynomial through `k`.
        """
        x, spans, left = self.x, self.spans, self.left
        row = tableau.a[group[0]][: len(k)]
        base = combine(x, spans.h, row, k) if any(row) else x
        a = [tableau.a[i][group[0] : group[-1] + 1] for i in group]
        equations = SampleEquations(self.f, [spans.at(tableau.c[i]) for i in group], base, spans.h, a)
        with torch.no_grad():
            before = torch.zeros_like(x) if self.first is None else self.first
            if k:
                before = combine(None, 1.0, tableau.guesses[group[0]], k)
            slope = torch.stack([before.detach()] * len(group))
            plain = equations._replace(base=base.detach())
            begun = slope if predicted is None else predicted
            fixed, rows = self.precision.tolerances is None, (left == 0).nonzero()[:, 0]
            K, found = newton_rows(plain, begun, self.factors, self.precision, rows, doubted=fixed)
            where = standing(x, base, spans.h, a)
            for guess in (where, slope) if fixed else (where,) if rings else ():  # as `ImplicitRungeKutta` does
                again = (found != 0) & (found.isfinite() | fixed)
                rows = again.nonzero()[:, 0]
                if len(rows):
                    self.factors.stale[rows] = True
                    at = rows.to(x.device)
                    K = K.index_copy(1, at, guess.index_select(1, at))
                    K, then = newton_rows(plain, K, self.factors, self.precision, rows)
                    found = torch.where(again, then, found)
            left = self.left = torch.where(left == 0, found, left)
            if bool((left != 0).any()):  # nothing of what did not converge is to come near the tape
                bad = (left != 0).to(x.device).reshape(1, -1, *(1,) * (x.dim() - 1))
                K = K.masked_fill(bad, 0)
        return list(_attached(equations, K) if torch.is_grad_enabled() else K)


def _attached(equations: SampleEquations, K: Tensor) -> Tensor:
    """K as a function of what its equations depend on, by the implicit function theorem, sample by sample."""
    f, at = equations.f, known(K, equations.base)
    points = [equations.point(i, at) for i in range(len(equations.times))]
    values = [f(t, point) for t, point in zip(equations.times, points, strict=True)]
    first = torch.stack(values)

    def again(K: Tensor, base: Tensor) -> Tensor:
        own = f.field.on(f.samples, f.segments)  # the samples' rows of arguments, with their graph
        with contextlib.nullcontext() if f.field.recomputing else f.field.recompute():
            return equations._replace(f=own, base=base)(K)

    def solve(value: Tensor, at: Tensor, g: Tensor) -> Tensor:
        if value is first:  # the stages by themselves: a product for one of them need not walk the graphs of all
            J = [jacobians(part, point).detach() for part, point in zip(values, points, strict=True)]
            matrix = equations._replace(h=equations.h.detach()).matrix(J)
        else:
            matrix = -stacked_jacobians(value, at)
            matrix.diagonal(dim1=1, dim2=2).add_(1)
        y = torch.linalg.solve(matrix.transpose(1, 2), stacked(g.detach()).to(matrix.dtype)[..., None])[..., 0]
        return unstacked(y, g)

    found = [thing for piece in f.pieces for thing in f.field.found[piece]]
    used = {id(t): t for t in (*found, *reachable(f.field.args)) if isinstance(t, Tensor) and t.requires_grad}
    return attach(again, K, at, first, equations.base, list(used.values()), solve)

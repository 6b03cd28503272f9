"""The step of an implicit Runge-Kutta method where every sample has its own."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from odenet.errors import InputError
from odenet.solvers.explicit import combine
from odenet.solvers.implicit import ImplicitRungeKutta
from odenet.solvers.implicit_function import DENSE, attach
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
        tableau, h, spans, rows = self.tableau, cast(Any, span.h), cast(Any, span), cast(Rows, f)
        explicit = tableau.explicit_first
        if first is None and (explicit or tableau.error_first):
            first = f(span.t, x)
        factors, precision = Factors(len(x)), self._precision_of(rows)
        left = torch.zeros(len(x), dtype=torch.float64)
        k: list[Tensor] = []
        for group in [range(tableau.stages)] if tableau.coupled else [range(i, i + 1) for i in range(tableau.stages)]:
            if explicit and not k:
                assert first is not None
                k.append(first)
                continue
            row = tableau.a[group[0]][: len(k)]
            base = combine(x, h, row, k) if any(row) else x
            a = [tableau.a[i][group[0] : group[-1] + 1] for i in group]
            equations = SampleEquations(rows, [spans.at(tableau.c[i]) for i in group], base, h, a)
            with torch.no_grad():
                before = k[-1] if k else torch.zeros_like(x) if first is None else first
                guess = torch.stack([before.detach()] * len(group))
                plain = equations._replace(base=base.detach())
                K, found = newton_rows(plain, guess, factors, precision, (left == 0).nonzero()[:, 0])
                left = torch.where(left == 0, found, left)
                if bool((left != 0).any()):  # nothing of what did not converge is to come near the tape
                    bad = (left != 0).to(x.device).reshape(1, -1, *(1,) * (x.dim() - 1))
                    K = K.masked_fill(bad, 0)
            k += list(_attached(equations, K) if torch.is_grad_enabled() else K)
        x_next = combine(x, h, tableau.b, k)
        estimate = self._filtered(k, h, first, factors) if error else None
        trial = Trial(span, x, x_next, k, estimate, given=memory, first=first)
        if bool((left != 0).any()):
            trial.unsolved = left
        return trial

    @torch.no_grad()
    def _filtered(self, k: list[Tensor], h: Tensor, first: Tensor | None, factors: Factors) -> Tensor | None:
        """The local errors."""
        tableau = self.tableau
        if tableau.b_error is None:
            return None
        estimate = combine(None, h, tableau.b_error, k)
        if tableau.error_first:
            assert first is not None
            estimate = torch.addcmul(estimate, first, h * tableau.error_first)
        if tableau.filter is None:
            return estimate
        assert factors.first is not None
        matrix = -h.reshape(-1, 1, 1) * tableau.filter * factors.first
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

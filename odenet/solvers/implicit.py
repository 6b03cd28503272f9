"""The step of an implicit Runge-Kutta method, for any tableau."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._C._functorch import get_interpreter_stack

from odenet.errors import InputError
from odenet.solvers.control import rms
from odenet.solvers.explicit import combine
from odenet.solvers.implicit_function import attach
from odenet.solvers.implicit_tableaus import IMPLICIT, ImplicitTableau
from odenet.solvers.newton import Dense, Equations, Krylov, Precision, Solved, linear_solver, newton
from odenet.solvers.reach import reachable
from odenet.solvers.stepper import NOTHING, Evaluate, Memory, Span, Stepper, Trial

if TYPE_CHECKING:
    from odenet.solvers.problem import Problem


class ImplicitRungeKutta(Stepper):
    """x_next from x, for the tableau it was given, by Newton's method.

    Stages are solved one after the other where the tableau is lower triangular, else together. An adaptive solve solves
    them to 1e-4 of its tolerance, a fixed step to rounding. Gradients are those of the solved equations. Stages that
    are solved together are carried to the next step, so that the search begins on the polynomial through them. The last
    stage of a stiffly accurate method is F(t + h, x⁺), and the next step's F(t, x): F itself, evaluated there, would
    magnify what is left of its equation.

    Args:
        tableau: of the method.
        companion: takes the steps of which a stage would lie outside of the piece of depth; of no lower order.
    """

    per_sample = True

    def __init__(self, tableau: ImplicitTableau, companion: ImplicitRungeKutta | None = None):
        self.tableau, self.companion = tableau, companion
        self.name, self.order, self.reference = tableau.name, tableau.order, tableau.reference
        self.error_order, self.controller = tableau.error_order, tableau.controller
        self._problem: Problem | None = None
        self._precision = Precision(None, rms)
        self._at_once = tableau.coupled or tableau.stages == 1
        self._carries_slope = tableau.explicit_first and tableau.stiffly_accurate
        self._needs_first = tableau.explicit_first or (self._at_once and tableau.stiffly_accurate)
        self._rings = self._carries_slope and not tableau.damps

    def prepare(self, problem: Problem) -> ImplicitRungeKutta:
        """This method with what a solve asks for: its tolerances, and the tensors that F uses.

        Raises:
            InputError: inside of a transform of torch.func.
        """
        if get_interpreter_stack():
            raise InputError(
                f"solver {self.name!r} cannot be transformed by torch.func: its equations are solved with "
                "torch.autograd; use torch.autograd.grad, or an explicit solver"
            )
        prepared, scheme = copy.copy(self), problem.scheme
        prepared._problem = problem
        prepared._precision = Precision(scheme.tolerances if scheme.adaptive else None, scheme.norm or rms)
        if self.companion is not None:
            prepared.companion = self.companion.prepare(problem)
        return prepared

    def start(self, f: Evaluate, t: float, x: Tensor, first: Tensor | None = None) -> Memory:
        """F(t, x), where the first stage is that."""
        return Memory((f(t, x) if first is None else first,)) if self._carries_slope else NOTHING

    def step(
        self,
        f: Evaluate,
        span: Span,
        x: Tensor,
        memory: Memory = NOTHING,
        first: Tensor | None = None,
        error: bool = False,
    ) -> Trial:
        """One step over `span`; `converged` is False if its equations could not be solved."""
        if self.companion is not None and self._leaves_the_piece(span):
            trial = self.companion.step(f, span, x, NOTHING, self._first(memory, first), error)
            return replace(trial, given=memory, memory=Memory((trial.stages[-1],)))
        tableau, linear = self.tableau, linear_solver(x)
        first = self._first(memory, first)
        if first is None and self._needs_first:
            first = f(span.t, x)
        k: list[Tensor] = []
        for group in self._groups(range(tableau.used)):
            if tableau.explicit_first and not k:
                assert first is not None
                k.append(first)
                continue
            solved, equations = self._solve(f, span, x, k, group, linear, first, memory)
            if not solved.converged:
                return self._unsolved(span, x, solved, equations, memory, first)
            k += self._attached(equations, solved, span)
        x_next = combine(x, span.h, tableau.b, k)
        trial = Trial(span, x, x_next, k, given=memory, memory=self._kept(span, k), first=first)
        return self._estimated(f, trial, linear) if error and self.adaptive else trial

    def _kept(self, span: Span, k: list[Tensor]) -> Memory:
        """What the next step is given."""
        if self._carries_slope:
            return Memory((k[-1],))
        return Memory((torch.stack([part.detach() for part in k]),), (span.h,)) if self._at_once else NOTHING

    def _groups(self, stages: range) -> list[range]:
        """Stages that are solved together."""
        return [stages] if self.tableau.coupled and stages else [range(i, i + 1) for i in stages]

    def _first(self, memory: Memory, first: Tensor | None) -> Tensor | None:
        """F(t, x) if it is known: what the step was given, or the last stage of the step before."""
        if memory.tensors and self._carries_slope:
            return memory.tensors[0]
        if memory.tensors and self.tableau.stiffly_accurate:
            return memory.tensors[0][-1]
        return first

    def _unsolved(
        self, span: Span, x: Tensor, solved: Solved, equations: Equations, memory: Memory, first: Tensor | None
    ) -> Trial:
        """A step whose equations could not be solved."""
        reached = combine(equations.base.detach(), span.h, equations.a[-1], list(solved.K))
        stages, residual = list(solved.value.detach()), solved.residual
        return Trial(span, x, reached, stages, given=memory, first=first, converged=False, residual=residual)

    def _solve(
        self,
        f: Evaluate,
        span: Span,
        x: Tensor,
        k: Sequence[Tensor],
        group: range,
        linear: Dense | Krylov,
        first: Tensor | None,
        memory: Memory,
    ) -> tuple[Solved, Equations]:
        """The stages of a group, from those before them.

        The search begins where the former step's polynomial goes, or that through the stages before. A fixed step,
        whose error nobody looks at, doubts that: the equations may have other solutions near a guess that is far off.
        It begins anew at the state in which the step begins, as does an adaptive method that does not damp, whose
        slopes alternate where F is stiff, if its search leads nowhere.
        """
        tableau = self.tableau
        base = combine(x, span.h, tableau.a[group[0]][: len(k)], k)
        rows = [tableau.a[i][group[0] : group[-1] + 1] for i in group]
        equations = Equations(f, [span.at(tableau.c[i]) for i in group], base, span.h, rows)
        fixed = self._precision.tolerances is None
        with torch.no_grad():
            before = torch.zeros_like(x) if first is None else first
            if k:
                before = combine(None, 1.0, tableau.guesses[group[0]], k)
            slope = torch.stack([before.detach()] * len(group))
            begun = self._predicted(span, memory) if memory.times else slope
        solved = newton(equations, begun, linear, self._precision, doubted=fixed)
        for guess in (standing(x, base, span.h, rows), slope) if fixed else ():
            if not solved.converged:
                linear.forget()
                solved = newton(equations, guess, linear, self._precision)
        if self._rings and not fixed and not solved.converged and math.isfinite(solved.residual):
            linear.forget()
            solved = newton(equations, standing(x, base, span.h, rows), linear, self._precision)
        return solved, equations

    @torch.no_grad()
    def _predicted(self, span: Span, memory: Memory) -> Tensor:
        """The stages by the former step's slopes k' = x'(t' + c h'): Σ_j k'_j ℓ_j(1 + c_i h/h') with Lagrange's ℓ_j.

        Reference:
            Hairer and Wanner 1996, Solving Ordinary Differential Equations II, section IV.8.
        """
        c, (former,), (h,) = self.tableau.c, memory.tensors, memory.times
        k = list(former.detach())
        ends = [1 + ci * span.h / h for ci in c]
        rows = [[math.prod((end - cm) / (cj - cm) for cm in c if cm != cj) for cj in c] for end in ends]
        return torch.stack([combine(None, 1.0, row, k) for row in rows])

    def _attached(self, equations: Equations, solved: Solved, span: Span) -> list[Tensor]:
        """The stages with their gradient."""
        if not torch.is_grad_enabled():
            return list(solved.K)

        def again(K: Tensor, base: Tensor) -> Tensor:
            with self._recomputation():
                return equations._replace(base=base)(K)

        tensors = self._tensors(span)
        return list(attach(again, solved.K, solved.at, solved.value, equations.base, tensors))

    @torch.no_grad()
    def _estimated(self, f: Evaluate, trial: Trial, linear: Dense | Krylov) -> Trial:
        """A step with its local error, for which there may be further stages."""
        tableau, span, x, first = self.tableau, trial.span, trial.x.detach(), trial.first
        assert tableau.b_error is not None
        k = [part.detach() for part in trial.stages]
        for group in self._groups(range(tableau.used, tableau.stages)):
            solved, equations = self._solve(f, span, x, k, group, linear, first, NOTHING)
            if not solved.converged:
                return self._unsolved(span, trial.x, solved, equations, trial.given, first)
            k += list(solved.K)
        estimate = combine(None, span.h, tableau.b_error, k)
        if tableau.error_first:
            assert first is not None
            estimate = torch.add(estimate, first, alpha=span.h * tableau.error_first)
        if tableau.filter is not None:
            equations = Equations(f, [span.t], x, span.h, ((tableau.filter,),))
            estimate = linear.filtered(equations, tableau.filter, estimate)
        trial.error = estimate
        return trial

    def interpolate(self, f: Evaluate, trial: Trial, t: float) -> Tensor:
        """x(t) inside a step, by the collocation polynomial, else by Hermite's cubic."""
        if self.companion is not None and len(trial.stages) != self.tableau.stages:
            return self.companion.interpolate(f, trial, t)
        if self.tableau.dense is None:
            return super().interpolate(f, trial, t)
        theta = trial.span.fraction(t)
        weights = [sum(p * theta ** (j + 1) for j, p in enumerate(row)) for row in self.tableau.dense]
        return combine(trial.x, trial.span.h, weights, trial.stages)

    def end_slope(self, f: Evaluate, trial: Trial) -> Tensor:
        """The last stage where it is the slope there: F itself would magnify what is left of its equation."""
        return trial.stages[-1] if self.tableau.stiffly_accurate else super().end_slope(f, trial)

    def _leaves_the_piece(self, span: Span) -> bool:
        end = span.t_next if self._problem is None else self._problem.pieces()[span.piece][1]
        furthest = span.t + max(self.tableau.c) * span.h
        return (furthest - end) * span.h > 0

    def _tensors(self, span: Span) -> list[Tensor]:
        """What F uses on this piece of depth and a gradient is wanted of."""
        problem = self._problem
        if problem is None:
            return []
        found: dict[int, Any] = {id(t): t for t in (*problem.field.found[span.piece], *reachable(problem.args))}
        return [t for t in found.values() if isinstance(t, Tensor) and t.requires_grad]

    def _recomputation(self) -> AbstractContextManager[None]:
        if self._problem is None or self._problem.field.recomputing:
            return contextlib.nullcontext()
        return self._problem.field.recompute()


@torch.no_grad()
def standing(x: Tensor, base: Tensor, h: Any, a: Sequence[Sequence[float]]) -> Tensor:
    """Stages that leave x where it is: base + h Σ_j a_ij K_j = x."""
    return ((x - base) / (h * a[0][0]))[None] if len(a) == 1 else torch.zeros_like(torch.stack([x] * len(a)))


_companions = {"kvaerno4": "radau5", "kvaerno5": "radau5"}
METHODS = [
    ImplicitRungeKutta(tableau, ImplicitRungeKutta(IMPLICIT[_companions[name]]) if name in _companions else None)
    for name, tableau in IMPLICIT.items()
]

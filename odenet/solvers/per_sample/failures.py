"""Samples that cannot go on: why, and what becomes of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from odenet.errors import FunctionBudgetError, NonlinearSolveError, SolveError, StepBudgetError, StepUnderflowError
from odenet.solvers.control import NONFINITE_RETRIES
from odenet.solvers.failures import TOO_MANY
from odenet.solvers.newton import SINGULAR
from odenet.solvers.per_sample.control import nonfinite_error
from odenet.solvers.per_sample.outputs import Outputs, Step, Take
from odenet.solvers.per_sample.problem import SampleProblem
from odenet.solvers.per_sample.walkers import Walkers
from odenet.solvers.stepper import Trial

Watch = Callable[[Step | None, Sequence[Take]], None]


class Fallible(Walkers):
    """Walkers of which each may break down: it raises, or stays where it is while the others go on.

    Args:
        problem: what is solved.
        watch: called with every round of accepted steps, and with what was taken from them.

    Attributes:
        outputs: the values of the answer so far.
        status: what became of each sample of the batch.
        errors: why samples broke down.
        ended: the time of the last value of each sample.
        tried: how many steps each has tried in walks before this one.
        unsolved: for samples whose last step's equations were not solved, what is said of that.
        broken: for samples whose last step gave NaN or infinity, how often in a row, and why.
    """

    def __init__(self, problem: SampleProblem, watch: Watch | None):
        super().__init__(problem)
        assert problem.stats.samples is not None
        self.each, self.watch = problem.stats.samples, watch
        self.outputs = Outputs(problem)
        self.status, self.errors = ["success"] * len(problem.t0), dict[int, SolveError]()
        self.ended = self.outputs.ts[-1].clone()
        self.broken: dict[int, tuple[int, SolveError]] = {}
        self.unsolved: dict[int, SolveError] = {}
        self.rounds, self.cost = 0, 1
        self.tried = self.each.accepted + self.each.rejected
        self.most = int(self.tried.max()) if len(self.tried) else 0

    def _check(self, size: Tensor) -> bool:
        """Give up the samples whose next step cannot be resolved or afforded; whether there were any."""
        scheme = self.scheme
        over = None
        if self.rounds + self.most >= scheme.max_steps:
            over = self.tried[self.samples] + self.rounds >= scheme.max_steps
        if over is not None and bool(over.any()):
            what = f"the budget of {scheme.max_steps} steps was used up"
            advice = self.stepper.weakness or TOO_MANY
            make = lambda row: StepBudgetError(what, **self._numbers(row, size), advice=advice)  # noqa: E731
            return self._give_up(over, make)
        if self._check_budget(size):
            return True
        tiny = size <= self.resolution
        return bool(tiny.any()) and self._give_up(tiny, lambda row: self._underflow(row, size))

    def _check_budget(self, size: Tensor) -> bool:
        """Give up the samples whose next step would take more evaluations than they have left."""
        if self.scheme.max_nfe is None:
            return False
        self.field.settle()
        over = self.each.nfe[self.samples] + self.cost > self.scheme.max_nfe
        what = f"the budget of {self.scheme.max_nfe} evaluations of F was used up"
        advice = (
            "raise max_nfe, or take fewer steps" if self.problem.grids else "raise max_nfe, or loosen rtol and atol"
        )
        return bool(over.any()) and self._give_up(
            over, lambda row: FunctionBudgetError(what, **self._numbers(row, size), advice=advice)
        )

    def _underflow(self, row: int, size: Tensor) -> SolveError:
        broken = self.broken.get(int(self.samples[row]))
        if broken is not None:
            return broken[1]
        if int(self.samples[row]) in self.unsolved:
            return self.unsolved[int(self.samples[row])]
        advice = "F may be singular or stiff there; loosen rtol and atol or use a fixed-step solver"
        return StepUnderflowError("the step became too small to change t", **self._numbers(row, size), advice=advice)

    def _note_nonfinite(self, worst: float, trial: Trial, size: Tensor) -> None:
        """Remember which samples gave NaN or infinity, how often in a row, and where it came from."""
        before, self.broken = self.broken, {}
        if math.isfinite(worst) or self.error is None:
            return
        self.field.settle()
        bad = ~self.error.isfinite()
        for row in bad.nonzero()[:, 0].tolist():
            sample = int(self.samples[row])
            count = before.get(sample, (0, None))[0] + 1
            self.broken[sample] = count, nonfinite_error(self.stepper, trial, row, self._numbers(row, size))

    def _note_unsolved(self, unsolved: Tensor | None, size: Tensor) -> None:
        """Remember whose equations could not be solved in the last step that each tried."""
        self.unsolved = {}
        if unsolved is None:
            return
        self.field.settle()
        for row in ((unsolved > 0) & unsolved.isfinite()).nonzero()[:, 0].tolist():
            self.unsolved[int(self.samples[row])] = self._unsolved(row, float(unsolved[row]), size)

    def _unsolved(self, row: int, left: float, size: Tensor) -> SolveError:
        what = "Newton's method could not solve the equations of the step"
        if left == SINGULAR:
            what, left = "the matrix of the step's equations is singular", math.inf
        advice = "take smaller steps or an adaptive solver, or look for kinks in F"
        numbers = self._numbers(row, size)
        numbers.pop("error_ratio")
        return NonlinearSolveError(what, **numbers, residual=left, advice=advice)

    def _stop_broken(self) -> None:
        """Give up the samples for which smaller steps did not help against NaN or infinity."""
        over = [s for s, (count, _) in self.broken.items() if count > NONFINITE_RETRIES]
        if over:
            self._give_up(
                torch.isin(self.samples, torch.tensor(over)), lambda row: self.broken[int(self.samples[row])][1]
            )

    def _give_up(self, mask: Tensor, error: Callable[[int], SolveError]) -> bool:
        """Raise for the first of these samples, or leave them where they are."""
        self.field.settle()
        rows = mask.nonzero()[:, 0]
        for row in rows.tolist():
            failure, sample = error(row), int(self.samples[row])
            if self.scheme.on_failure == "raise":
                raise failure
            self.errors[sample], self.status[sample] = failure, failure.status
            self.ended[sample] = self.t[row]
        samples = self.samples[rows]
        first = self.outputs.stop(samples, self.x.index_select(0, self._device(rows)))
        if self.watch is not None:
            self.watch(None, [Take(samples, None, first)])
        self._keep(~mask)
        return True

    def _numbers(self, row: int, size: Tensor | None = None) -> dict[str, Any]:
        """What an error says of a sample; its counts have to be settled."""
        sample = int(self.samples[row])
        return {
            "t": float(self.t[row]),
            "h": 0.0 if size is None else float(self.sign[row] * size[row]),
            "nfe": int(self.each.nfe[sample]),
            "sample": sample,
            "error_ratio": None if self.error is None else float(self.error[row]),
        }

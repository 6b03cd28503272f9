"""The continuous adjoint where every sample has its own steps: each is walked back by itself, from output to output."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from odenet.errors import GradientError, SolveError
from odenet.gradients.backsolve import Once, backward_scheme
from odenet.gradients.inputs import Inputs
from odenet.gradients.sample_augmented import AugmentedSamples, segments_back
from odenet.gradients.sample_record import SamplePullback
from odenet.solvers.explicit import ExplicitRungeKutta, combine
from odenet.solvers.per_sample import SampleProblem, SampleSolution, integrate_samples
from odenet.solvers.per_sample.control import rms_each
from odenet.solvers.per_sample.outputs import Step
from odenet.solvers.registry import solvers
from odenet.solvers.stats import SampleStats, Stats


def adjoint_samples(problem: SampleProblem) -> SampleSolution:
    """Solve `problem` so that the equations of the gradient can be solved backwards, each sample with its own steps."""
    if not torch.is_grad_enabled():
        return integrate_samples(problem)
    inputs = Inputs(problem)  # pyright: ignore[reportArgumentType]
    problem.field.observe(inputs.observe)
    with torch.no_grad():
        solution = integrate_samples(problem)
    problem.field.observe(None)
    if not (problem.x0.requires_grad or inputs.tensors):
        return solution
    problem.field.hold()
    moments = _moments(problem, solution)
    values = _Backsolve.apply(problem, inputs, moments, solution.values, problem.x0, *inputs.tensors)
    solution.values = values  # pyright: ignore[reportAttributeAccessIssue]
    return solution


def _moments(problem: SampleProblem, solution: SampleSolution) -> tuple[Tensor, Tensor]:
    """Whose each value of an answer is, and of what time; on the host."""
    outputs = solution.outputs
    places = torch.cat(outputs.places) if outputs.places else torch.zeros(0, dtype=torch.long)
    number, samples = places.div(max(1, outputs.batch), rounding_mode="floor"), places % max(1, outputs.batch)
    t = outputs.ts[number.clamp(0, outputs.stopped - 1), samples]
    t = torch.where(number >= outputs.stopped, solution.ended[samples], t)
    for hit, place in solution.hits_found:
        samples[place], t[place] = hit.sample, hit.t
    return samples, t


class _Backsolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        problem: SampleProblem,
        inputs: Inputs,
        moments: tuple[Tensor, Tensor],
        values: Tensor,
        x0: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.problem, ctx.inputs, ctx.moments = problem, inputs, moments
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(values, *tensors)
        return values.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> Any:
        values, *tensors = ctx.saved_tensors
        if cotangent is None:
            return (None,) * (5 + len(tensors))
        with torch.no_grad():
            samples, t = ctx.moments
            found = SampleWayBack(ctx.problem, ctx.inputs).gradients(samples, t, values, cotangent)
        if torch.is_grad_enabled():
            found = Once.apply(len(found), *found, ctx.problem.x0, *tensors, cotangent)
        return None, None, None, None, *found


class SampleWayBack:
    """One backward pass. The parameters' gradient is no part of the state: it is added up by the quadrature that the
    method is, over the accepted backward steps of each sample.

    Args:
        problem: what was solved.
        inputs: the tensors that F uses.
    """

    def __init__(self, problem: SampleProblem, inputs: Inputs):
        self.problem, self.inputs = problem, inputs
        self.scheme = backward_scheme(problem.scheme, problem.scheme.gradient_options)
        self.stepper: Any = solvers[self.scheme.solver]
        self.pullback = SamplePullback(self)

    def gradients(self, samples: Tensor, t: Tensor, values: Tensor, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients with respect to x0 and to each of the inputs.

        Args:
            samples: whose each value of the answer is, (values,).
            t: of what time, (values,).
            values: states, (values, ...).
            cotangent: theirs.
        """
        problem = self.problem
        a = torch.zeros_like(problem.x0)
        way = t * problem.sign[samples]
        order = way.argsort(descending=True, stable=True)
        order = order[samples[order].argsort(stable=True)]
        counts = samples.bincount(minlength=len(a))
        first = counts.cumsum(0) - counts
        with problem.field.recompute():
            for level in range(int(counts.max()) if len(counts) else 0):
                mine = (counts > level).nonzero()[:, 0]
                at = order[first[mine] + level]
                more = (counts[mine] > level + 1).nonzero()[:, 0]
                until = problem.begin[mine]
                until[more] = t[order[first[mine[more]] + level + 1]]
                index, rows = mine.to(a.device), at.to(a.device)
                a.index_add_(0, index, cotangent.index_select(0, rows))
                self._walk(mine, t[at], until, values.index_select(0, rows), a)
        return a, *self.pullback.gradients

    def _walk(self, samples: Tensor, t: Tensor, until: Tensor, x: Tensor, a: Tensor) -> None:
        """Walk some samples back from states x; changes their rows of `a`, and adds to θ̄."""
        index = samples.to(a.device)
        part = a.index_select(0, index)
        wanted = (
            (t != until) & part.flatten(1).ne(0).any(1).cpu() if part.dim() > 1 else (t != until) & part.ne(0).cpu()
        )
        rows = wanted.nonzero()[:, 0]
        if not len(rows):
            return
        samples, t, until, x = samples[rows], t[rows], until[rows], x.index_select(0, rows.to(a.device))
        index = samples.to(a.device)
        backward = self._problem(samples, t, until, x, a.index_select(0, index))
        try:
            z = integrate_samples(backward, lambda step, takes: self._add(backward, step)).last
        except SolveError as error:
            raise GradientError(
                f"the backward solve of gradient='adjoint' broke down: {error}. Walked backwards this ODE may be "
                "unstable; use gradient='checkpoint'"
            ) from error
        self.problem.stats.steps_backward += backward.stats.accepted
        a.index_copy_(0, index, backward.field.unpack(z.index_select(0, index))[1])

    def _problem(self, samples: Tensor, t: Tensor, until: Tensor, x: Tensor, a: Tensor) -> Any:
        """The walk back of some samples from t to `until`, of states [x, a]."""
        whole, scheme = self.problem, self.scheme
        back: Any = copy.copy(whole)
        back.__dict__.pop("stepper", None)
        batch, like = len(whole.x0), whole.x0
        back.t0, back.t1 = torch.zeros(batch, dtype=torch.float64), torch.zeros(batch, dtype=torch.float64)
        back.t0[samples], back.t1[samples] = t, until
        back.sign, back.begin = -whole.sign, back.t0
        back.stats = Stats(samples=SampleStats.zeros(batch))
        table, segments = segments_back(whole.field.timetable, whole.sign, back.t0, back.t1, samples)
        field = back.field = AugmentedSamples(whole, self.inputs, table, segments)
        z = field.pack(x, a)
        back.x0 = z.new_zeros(batch, z.shape[1]).index_copy(0, samples.to(z.device), z)
        back.walking, back.segments, back.passed, back.begins_with = (
            samples,
            torch.zeros(batch, dtype=torch.long),
            None,
            (),
        )
        back.ts, back.shared, back.events, back.args, back.dense = None, False, (), (), False
        back.weights = SimpleNamespace(pieces=0, knots=(), varies=False)
        back.grids = None
        if scheme.adaptive:
            rtol, atol = (field.tolerance(value) for value in scheme.tolerances)
            back.scheme = scheme.but(rtol=rtol, atol=atol, norm=self._norm(field, like))
            return back
        assert whole.grids is not None
        back.scheme, back.grids = scheme, whole.grids.back(samples, t, until, batch)
        return back

    def _norm(self, field: AugmentedSamples, like: Tensor) -> Any:
        """Of each sample the larger of the sizes of x and a, or what the options say."""
        wanted, of_state = self.problem.scheme.gradient_options.get("norm"), self.problem.scheme.norm or rms_each

        def size(z: Tensor) -> Any:
            x, a = field.unpack(z)
            return wanted((x, a)) if callable(wanted) else torch.maximum(of_state(x), of_state(a))

        return size

    def _add(self, backward: Any, step: Step | None) -> None:
        """θ̄ += h Σ_i b_i (-aᵢᵀ ∂F/∂θ) over accepted steps, at their stages."""
        if step is None or not self.inputs.tensors:
            return
        stepper, trial, spans, field = self.stepper, step.trial, step.spans, backward.field
        assert isinstance(stepper, ExplicitRungeKutta)
        tableau = stepper.tableau
        for i, weight in enumerate(tableau.b):
            if weight == 0:
                continue
            row = tableau.a[i][:i]
            z = combine(trial.x, spans.h, row, trial.stages) if any(row) else trial.x
            x, a = field.unpack(z)
            scale = -weight * spans.h.reshape(-1, *(1,) * (a.dim() - 1))
            f: Any = step.f
            self.pullback.pull(self.pullback.evaluate(f.f, spans.at(tableau.c[i]), x), a * scale)

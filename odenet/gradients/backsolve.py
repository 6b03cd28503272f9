"""The way back of the continuous adjoint: from output to output, from piece of depth to piece of depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor

from odenet.errors import GradientError, SolveError
from odenet.gradients.augmented import PLACE, Augmented
from odenet.gradients.inputs import Inputs
from odenet.gradients.pullback import plus
from odenet.gradients.quadrature import Quadrature, totals
from odenet.solvers.explicit import ExplicitRungeKutta
from odenet.solvers.grid import uniform_grid
from odenet.solvers.loop import integrate
from odenet.solvers.problem import Problem
from odenet.solvers.registry import backends
from odenet.solvers.scheme import ADAPTIVE_ONLY, FIXED_BY, Scheme
from odenet.solvers.stepper import Trial

RESOLUTION = 1e-12
KEPT = (0.0, 1.0)  # stands for the grid of the solve
Cotangents = Sequence[Tensor | None]


class Backsolve(torch.autograd.Function):
    """States of a solve that has been made, with the continuous adjoint as their gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        problem: Problem,
        inputs: Inputs,
        times: list[float],
        states: list[Tensor],
        x0: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.problem, ctx.inputs, ctx.times = problem, inputs, times
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*states, *tensors)
        return tuple(state.clone() for state in states)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        count = len(ctx.times)
        if any(is_legacy_batchedtensor(cotangent) for cotangent in cotangents if cotangent is not None):
            raise GradientError(
                "gradient='adjoint' walks back with one cotangent at a time; leave out is_grads_batched and vectorize, "
                "or use gradient='checkpoint'"
            )
        saved = ctx.saved_tensors  # to be unpacked once only
        states, tensors = saved[:count], saved[count:]
        with torch.no_grad():
            found = WayBack(ctx.problem, ctx.inputs, ctx.times, states).gradients(cotangents)
        if torch.is_grad_enabled():
            found = Once.apply(len(found), *found, ctx.problem.x0, *tensors, *cotangents)
        return None, None, None, None, *found


class WayBack:
    """One backward pass.

    Args:
        problem: what was solved.
        inputs: the tensors that F uses.
        times: of the outputs.
        states: at these times.
    """

    def __init__(self, problem: Problem, inputs: Inputs, times: Sequence[float], states: Sequence[Tensor]):
        self.problem, self.inputs, self.times, self.states = problem, inputs, times, states
        self.options = problem.scheme.gradient_options
        self.scheme = backward_scheme(problem.scheme, self.options)
        self.quadrature: bool = self.options.get("quadrature", False)
        self.theta: list[Tensor | None] = [None] * len(inputs.tensors)
        self.h = self.scheme.first_step
        more = self.options.get("adjoint_options") or {}
        self.own_grid = self.options.get("adjoint_steps") is not None or "grid" in more

    def gradients(self, cotangents: Cotangents) -> tuple[Tensor | None, ...]:
        """Gradients with respect to x0 and to each of the inputs from the cotangents of the outputs."""
        left = [i for i, cotangent in enumerate(cotangents) if cotangent is not None]
        if not left:
            return None, *self.theta
        at, sign = left[-1], self.problem.direction
        t, x, a = self.times[at], self.states[at], None
        pieces = list(enumerate(self.problem.pieces()))
        with self.problem.field.recompute():
            for number, (start, end) in reversed(pieces):
                if start == end or sign * t <= sign * start:
                    continue
                while True:
                    while at >= 0 and self.times[at] == t:
                        x, a = self.states[at], plus(a, cotangents[at])
                        at -= 1
                    if t == start:
                        break
                    before = self.times[at] if at >= 0 and sign * self.times[at] > sign * start else start
                    assert a is not None
                    x, a = self._walk(number, t, before, x, a)
                    t = before
        for cotangent in cotangents[: at + 1]:
            a = plus(a, cotangent)
        if self.options.get("adjoint_params") is not None:
            self.theta = [
                torch.zeros_like(tensor) if part is None else part
                for part, tensor in zip(self.theta, self.inputs.tensors, strict=True)
            ]
        return a, *self.theta

    def _walk(self, number: int, t: float, until: float, x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """x and a at `until` from those at t, on one piece of depth; adds to θ̄."""
        field = Augmented(self.problem, self.inputs, number, carried=not self.quadrature)
        theta = [self.theta[i] for i in self.inputs.of[number]]
        z = field.pack([x, a, *(theta if field.carried else [])])
        backward = Problem(PLACE, z, (t, until), self._scheme(field, number, t, until))
        backward.field = field
        if self.problem.backward_callbacks is not None:
            backward.callbacks = self.problem.backward_callbacks.of(field.shown)
        memory = None
        try:
            if self.quadrature:
                method = backward.stepper
                assert isinstance(method, ExplicitRungeKutta)
                backward.stepper = Quadrature(method, field, theta)
                last: list[Trial] = []
                z = integrate(backward, lambda trial: last.__setitem__(slice(None), [trial])).last
                memory = last[0].memory
            else:
                z = backends[self.scheme.backend].integrate(backward).last
        except SolveError as error:
            raise GradientError(
                f"the backward solve of gradient='adjoint' broke down: {error}. Walked backwards this ODE may be "
                "unstable; use gradient='checkpoint'"
            ) from error
        finally:
            if backward.callbacks is not None:
                backward.callbacks.settle()
            self.problem.stats.steps_backward += backward.stats.accepted
        x, a, *theta = field.unpack(z) if memory is None else [*field.unpack(z), *totals(memory)]
        for at, (index, part) in enumerate(zip(self.inputs.of[number], theta, strict=True)):
            if at in field.used:
                self.theta[index] = part
        self.h = max(backward.stats.h[-2:], default=self.h)
        return x, a

    def _scheme(self, field: Augmented, number: int, t: float, until: float) -> Scheme:
        """The scheme of one walk."""
        scheme = self.scheme
        if scheme.adaptive:
            rtol, atol = (field.tolerance(value) for value in scheme.tolerances)
            return scheme.but(rtol=rtol, atol=atol, first_step=self.h, norm=self._norm(field))
        if scheme.step_size is not None:
            return scheme
        t0, t1 = self.problem.t0, self.problem.t1
        if scheme.steps is not None:
            times = uniform_grid(t0, t1, scheme.steps)
        elif self.own_grid:
            times = scheme.grid or ()
        else:
            times = [span.t for span in self.problem.spans() if span.piece == number]
        low, high = min(t, until) + RESOLUTION * abs(t1 - t0), max(t, until) - RESOLUTION * abs(t1 - t0)
        inside = sorted((s for s in times if low < s < high), reverse=t > until)
        return scheme.but(steps=None, grid=[t, *inside, until])

    def _norm(self, field: Augmented) -> Any:
        if self.scheme.backend != "native":
            return None
        return field.norm(self.options.get("norm", "seminorm"), self.problem.scheme.norm)


def backward_scheme(scheme: Scheme, options: Mapping[str, Any]) -> Scheme:
    """The scheme of the way back.

    That of the solve, with what the options of the gradient say instead. A fixed-step solve keeps its grid, unless
    another solver and a tolerance are given.

    Args:
        scheme: of the solve.
        options: of the gradient method.
    """
    solver, more = options.get("adjoint_solver", scheme.solver), dict(options.get("adjoint_options") or {})
    if options.get("adjoint_steps") is not None:
        more["steps"] = options["adjoint_steps"]
    changes: dict[str, Any] = {"gradient": "autograd", "gradient_options": {}, "solver": solver, "max_nfe": None}
    changes |= {"on_failure": "raise", "first_step": None}
    tolerances = {name: options[f"adjoint_{name}"] for name in ("rtol", "atol") if f"adjoint_{name}" in options}
    given = any(more.get(name) is not None for name in FIXED_BY)
    adaptive = not given and (scheme.adaptive or (bool(tolerances) and solver != scheme.solver))
    if not adaptive:
        changes |= {name: getattr(Scheme, name) for name in ADAPTIVE_ONLY}
        changes |= dict.fromkeys(FIXED_BY) if given else {"steps": None, "step_size": None, "grid": KEPT}
    else:
        changes |= dict.fromkeys(FIXED_BY) | tolerances
    return scheme.but(**changes | more)


class Once(torch.autograd.Function):
    """The first gradients as they are, and a clear word when they are to be differentiated."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(None if part is None else part.clone() for part in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        raise GradientError(
            "gradient='adjoint' has no second derivatives; use gradient='checkpoint', 'stagewise' or 'autograd'"
        )

"""The continuous adjoint: the equations of the gradient, solved backwards from the last output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from odenet.errors import GradientError, InputError, UnknownNameError
from odenet.gradients import torchdiffeq_adjoint
from odenet.gradients.backsolve import KEPT, Backsolve, backward_scheme
from odenet.gradients.inputs import Inputs, needs_gradient
from odenet.gradients.registry import check_solver, gradients
from odenet.gradients.sample_adjoint import adjoint_samples
from odenet.solvers.explicit import ExplicitRungeKutta
from odenet.solvers.per_sample import SampleProblem, SampleSolution
from odenet.solvers.problem import Problem, transforms
from odenet.solvers.registry import backends, solvers
from odenet.solvers.scheme import Scheme, check_options, check_tolerance
from odenet.solvers.solution import Solution

NORMS = ("seminorm", "full")
OPTIONS = ("norm", "adjoint_solver", "adjoint_rtol", "adjoint_atol", "adjoint_options")
SAMPLE_OPTIONS = (*OPTIONS, "quadrature")
NATIVE_OPTIONS = (*OPTIONS, "adjoint_steps", "quadrature", "adjoint_params")


class Adjoint:
    """Solve backwards, from the last output to t0, the equations of the state, of its cotangent and of the parameters'
    gradient, starting anew from the stored state at every output:

        d/dt [x, a, θ̄] = [F, -aᵀ ∂F/∂x, -aᵀ ∂F/∂θ]

    Not exact: this discretises the derivative, it does not differentiate the discretisation, and the error shrinks with
    the tolerance or the step. It has no second derivatives. A fixed-step solve is walked back over its own grid.

    Options:
        norm: what the backward steps hold at the tolerance. "seminorm" (default): x and a, each by the norm of the
            solve, and the larger of the two; θ̄ feeds back into nothing. "full": each tensor of θ̄ as well. Or a function
            of the tuple (x, a, *θ̄).
        quadrature: take θ̄ out of the state and add it up with the weights of the method, θ̄ += h Σ_i b_i aᵢᵀ ∂F/∂θ,
            over the accepted backward steps; explicit Runge-Kutta methods.
        adjoint_solver: another solver for the way back.
        adjoint_rtol: relative tolerance of the way back; default that of the solve.
        adjoint_atol: absolute tolerance of the way back; default that of the solve. A cotangent is often smaller than
            the state, and an absolute tolerance above it leaves it without error control.
        adjoint_steps: N equal steps from t1 to t0 on the way back (and one that ends at each output and knot).
        adjoint_options: other arguments of the backward solve, e.g. {"h_max": 0.1, "controller": "PI"}; with
            backend="torchdiffeq" those of its `adjoint_options`.
        adjoint_params: the only tensors, beside x0, that are to get a gradient; zeros where F does not use them.

    The last three, and quadrature, are options of the native way back.

    Reference:
        Chen et al. 2018, Neural Ordinary Differential Equations; Kidger et al. 2021, "Hey, that's not an ODE": Faster
        ODE Adjoints via Seminorms.
    """

    exact = False
    backends: tuple[str, ...] = ("native", "torchdiffeq", "scipy")
    own_steps = True
    memory = "two states, those at the outputs, the parameters' gradient, and one evaluation of F"
    reference = "Chen et al. 2018; Kidger et al. 2021 (seminorm)"

    def solvers(self) -> list[str]:
        """The native solvers that can walk back themselves; after the others, one may be named as adjoint_solver."""
        return [name for name, stepper in solvers.items() if not stepper.partitioned]

    def check(self, scheme: Scheme, options: Mapping[str, Any]) -> None:
        foreign = scheme.backend == "torchdiffeq"
        check_options("option of gradient='adjoint'", options, OPTIONS if foreign else NATIVE_OPTIONS)
        norm = options.get("norm", NORMS[0])
        if norm not in NORMS and not callable(norm):
            raise InputError(f"norm must be 'seminorm', 'full' or a function of the tuple (x, a, *θ̄), got {norm!r}")
        for name in ("adjoint_rtol", "adjoint_atol"):
            check_tolerance(name, options.get(name, 1.0))
        solver = options.get("adjoint_solver")
        other = (options.get("adjoint_options") or {}).get("backend")
        backend = scheme.backend if foreign or other is None else other
        methods = backends[backend].methods()
        if solver is not None and (not isinstance(solver, str) or solver not in methods):
            raise UnknownNameError("adjoint_solver", solver, methods)
        if foreign:
            return torchdiffeq_adjoint.check(scheme, options)
        back = backward_scheme(scheme, options)
        if back.backend == "native":
            if solver is None:
                self._check_partner(scheme)
            else:
                check_solver("adjoint", back, self.solvers())
        self._check_quadrature(back, options)

    def check_samples(self, scheme: Scheme) -> None:
        """Raise `InputError` if samples with their own steps cannot be walked back as the options say."""
        options = scheme.gradient_options
        check_options("option of gradient='adjoint' with per_sample=True", options, SAMPLE_OPTIONS)
        back = backward_scheme(scheme, options)
        if back.backend != "native" or not isinstance(solvers[back.solver], ExplicitRungeKutta):
            raise InputError(
                "with per_sample=True gradient='adjoint' adds the parameters' gradient up over the stages of an "
                f"explicit Runge-Kutta method, which {back.solver!r} is not; name one as adjoint_solver"
            )
        if not back.adaptive and back.grid != KEPT:
            raise InputError(
                "with per_sample=True gradient='adjoint' walks back over the steps of the solve, or adaptively; leave "
                "steps, step_size and grid out of adjoint_options"
            )
        if options.get("norm") == "full" or options.get("quadrature") is False:
            raise InputError(
                "with per_sample=True the parameters' gradient of gradient='adjoint' is a quadrature, so that no "
                "sample's steps depend on the others; leave out norm='full' and quadrature=False"
            )

    def solve_samples(self, problem: SampleProblem) -> SampleSolution:
        """Solve `problem`, each sample with its own steps, forwards and backwards."""
        return adjoint_samples(problem)

    def _check_partner(self, scheme: Scheme) -> None:
        if solvers[scheme.solver].partitioned:
            raise InputError(
                f"solver {scheme.solver!r} walks pairs (q, p), which the state and its cotangent are not; give "
                "gradient_options={'adjoint_solver': 'rk4'}, or use gradient='checkpoint'"
            )

    def _check_quadrature(self, back: Scheme, options: Mapping[str, Any]) -> None:
        quadrature = options.get("quadrature", False)
        if not isinstance(quadrature, bool):
            raise InputError(f"quadrature must be True or False, got {quadrature!r}")
        if not quadrature:
            return
        if back.backend != "native" or not isinstance(solvers[back.solver], ExplicitRungeKutta):
            raise InputError(
                f"quadrature=True adds up the stages of an explicit Runge-Kutta method, which {back.solver!r} is not; "
                "leave it out, or name another adjoint_solver"
            )
        if options.get("norm") == "full":
            raise InputError("norm='full' measures what quadrature=True takes out of the state; leave one of them out")

    def solve(self, problem: Problem) -> Solution:
        scheme = problem.scheme
        if not torch.is_grad_enabled():
            return backends[scheme.backend].integrate(problem)
        if scheme.backend == "torchdiffeq":
            return torchdiffeq_adjoint.solve(problem)
        inputs = Inputs(problem)
        problem.field.observer = inputs.observe
        with torch.no_grad():
            solution = backends[scheme.backend].integrate(problem)
        problem.field.observer = None
        wanted = scheme.gradient_options.get("adjoint_params")
        if wanted is not None:
            inputs.keep(wanted)
        if not needs_gradient(problem, inputs):
            return solution
        if transforms():
            raise GradientError(
                "gradient='adjoint' has a backward pass of its own, which torch.func's grad, vjp, jvp and vmap do not "
                "see; use gradient='checkpoint' there, or torch.no_grad() where no gradient is wanted"
            )
        problem.field.hold()
        states = Backsolve.apply(problem, inputs, solution.times, solution.states, problem.x0, *inputs.tensors)
        return Solution(states, solution.times, solution.stats, error=solution.error, hits=solution.hits)


gradients.add("adjoint", Adjoint())

"""Backprop through the accepted steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from odenet.errors import GradientError, InputError
from odenet.gradients.inputs import Inputs, needs_gradient
from odenet.gradients.registry import gradients
from odenet.solvers.per_sample import SampleProblem, SampleSolution, integrate_samples
from odenet.solvers.problem import Problem
from odenet.solvers.registry import backends, solvers
from odenet.solvers.scheme import Scheme
from odenet.solvers.solution import Solution


def check_no_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise `InputError` if a gradient method that has no options was given some."""
    if options:
        raise InputError(f"gradient={name!r} takes no gradient_options, got {', '.join(map(str, options))}")


class Autograd:
    """Everything that the accepted steps computed is kept: exact, and memory grows with the number of evaluations."""

    exact = True
    backends: tuple[str, ...] = ("native", "torchdiffeq", "scipy")
    own_steps = True
    memory = "all activations of all steps"
    reference = "backpropagation through the solver"

    def solvers(self) -> list[str]:
        return list(solvers)

    def check(self, scheme: Scheme, options: Mapping[str, Any]) -> None:
        check_no_options("autograd", options)

    def solve(self, problem: Problem) -> Solution:
        if not torch.is_grad_enabled():
            return backends[problem.scheme.backend].integrate(problem)
        scheme = problem.scheme
        differentiable = backends[scheme.backend].methods()[scheme.solver].differentiable
        if not differentiable and needs_gradient(problem, Inputs(problem)):
            others = [name for name, other in gradients.items() if scheme.backend in other.backends and not other.exact]
            hint = f"gradient={others[0]!r}, " if others else ""
            raise GradientError(
                f"{scheme.solver} of backend {scheme.backend!r} runs in NumPy and leaves no graph to differentiate; "
                f"use {hint}a native solver, or torch.no_grad()"
            )
        return backends[problem.scheme.backend].integrate(problem)

    def solve_samples(self, problem: SampleProblem) -> SampleSolution:
        """Solve `problem`, each sample with its own steps."""
        return integrate_samples(problem)


gradients.add("autograd", Autograd())

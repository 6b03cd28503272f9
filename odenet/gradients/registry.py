"""The registry of gradient methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from odenet.errors import InputError
from odenet.registry import Registry
from odenet.solvers.problem import Problem
from odenet.solvers.scheme import Scheme
from odenet.solvers.solution import Solution


class GradientMethod(Protocol):
    """How the loss gets back through depth.

    Attributes:
        exact: whether it gives the gradient of the steps that were taken, to rounding.
        backends: the backends it works with.
        own_steps: whether the forward pass takes the solver's own steps, and not another form of them.
        memory: what is held for the backward pass.
        reference: where it comes from.
    """

    exact: bool
    backends: tuple[str, ...]
    own_steps: bool
    memory: str
    reference: str

    def solvers(self) -> list[str]:
        """The native solvers that it is defined for."""
        ...

    def check(self, scheme: Scheme, options: Mapping[str, Any]) -> None:
        """Raise `InputError` if the scheme or the method's own options cannot be used."""
        ...

    def solve(self, problem: Problem) -> Solution:
        """Solve `problem` so that its states can be differentiated."""
        ...


gradients: Registry[GradientMethod] = Registry("gradient")


def check_solver(gradient: str, scheme: Scheme, valid: Sequence[str]) -> None:
    """Raise `InputError` if a gradient method is not defined for the scheme's solver, naming what works."""
    if scheme.solver not in valid:
        raise InputError(
            f"gradient={gradient!r} is not defined for solver {scheme.solver!r}; use solver {' or '.join(valid)}"
            if len(valid) < 3
            else f"gradient={gradient!r} is not defined for solver {scheme.solver!r}; use one of: {', '.join(valid)}, "
            "or gradient='checkpoint'"
        )

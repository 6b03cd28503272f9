"""The registry of gradient methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from odenet.registry import Registry
from odenet.solvers.problem import Problem
from odenet.solvers.scheme import Scheme
from odenet.solvers.solution import Solution


class GradientMethod(Protocol):
    """How the loss gets back through depth.

    Attributes:
        exact: whether it gives the gradient of the steps that were taken, to rounding.
        backends: the backends it works with.
        memory: what is held for the backward pass.
        reference: where it comes from.
    """

    exact: bool
    backends: tuple[str, ...]
    memory: str
    reference: str

    def check(self, scheme: Scheme, options: Mapping[str, Any]) -> None:
        """Raise `InputError` if the scheme or the method's own options cannot be used."""
        ...

    def solve(self, problem: Problem) -> Solution:
        """Solve `problem` so that its states can be differentiated."""
        ...


gradients: Registry[GradientMethod] = Registry("gradient")

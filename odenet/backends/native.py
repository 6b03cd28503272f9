"""Our own loop as a backend."""

from __future__ import annotations

from odenet.solvers.loop import integrate
from odenet.solvers.problem import Problem
from odenet.solvers.registry import Method, solvers
from odenet.solvers.solution import Solution


class Native:
    """The solvers of odenet."""

    refuses: tuple[str, ...] = ()

    def methods(self) -> dict[str, Method]:
        """The native solvers by name."""
        return {name: Method(s.order, True, s.adaptive, s.reference) for name, s in solvers.items()}

    def integrate(self, problem: Problem) -> Solution:
        """Solve `problem` with the native loop.

        Raises:
            SolveError: the solve broke down.
        """
        return integrate(problem)

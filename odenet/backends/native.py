"""Our own loop as a backend."""

from __future__ import annotations

from odenet.solvers.loop import integrate
from odenet.solvers.problem import Problem
from odenet.solvers.registry import Method, solvers
from odenet.solvers.solution import Solution


class Native:
    """The solvers of odenet."""

    refuses: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._methods: dict[str, Method] = {}

    def methods(self) -> dict[str, Method]:
        """The native solvers by name."""
        for name, stepper in solvers.items():
            if name not in self._methods:
                self._methods[name] = Method(stepper.order, True, stepper.adaptive, stepper.reference, stepper.options)
        return self._methods

    def integrate(self, problem: Problem) -> Solution:
        """Solve `problem` with the native loop.

        Raises:
            SolveError: the solve broke down.
        """
        return integrate(problem)

"""The registries of native solvers and of backends."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from odenet.registry import Registry
from odenet.solvers import implicit, multistep, reversible, symplectic
from odenet.solvers.explicit import ExplicitRungeKutta
from odenet.solvers.stepper import Stepper
from odenet.solvers.tableaus import TABLEAUS

if TYPE_CHECKING:
    from odenet.solvers.problem import Problem
    from odenet.solvers.solution import Solution

solvers: Registry[Stepper] = Registry("solver")
for _name, _tableau in TABLEAUS.items():
    solvers.add(_name, ExplicitRungeKutta(_tableau))
for _method in (*multistep.METHODS, *reversible.METHODS, *symplectic.METHODS, *implicit.METHODS):
    solvers.add(_method.name, _method)


class Method(NamedTuple):
    """What a backend says of one of its solvers.

    Attributes:
        order: order of accuracy.
        fixed: can walk N equal steps.
        adaptive: can pick its own steps.
        reference: where it comes from.
        options: names of the options that it takes.
        differentiable: leaves a graph that autograd can walk.
    """

    order: int | None
    fixed: bool
    adaptive: bool
    reference: str = ""
    options: tuple[str, ...] = ()
    differentiable: bool = True


class Backend(Protocol):
    """Who takes the steps.

    Attributes:
        refuses: fields of a scheme that it cannot honour.
    """

    refuses: tuple[str, ...]

    def methods(self) -> dict[str, Method]:
        """Its solvers by name."""
        ...

    def integrate(self, problem: Problem) -> Solution:
        """Solve `problem`, on the tape if gradients are enabled."""
        ...


backends: Registry[Backend] = Registry("backend")

"""Which gradient methods a solver can be asked for with, and what their gradients are to be compared with."""

from __future__ import annotations

from typing import Any

from odenet.gradients import gradients
from odenet.solvers import backends

FEW = ("forward",)  # methods for few parameters: they refuse most F, and are tested with such that they take


def gradients_for(solver: str, backend: str = "native", exact: bool | None = None) -> list[str]:
    """Names of the gradient methods that are defined for a solver of a backend and take its own steps."""
    return [
        name
        for name, method in gradients.items()
        if backend in method.backends
        and method.own_steps
        and name not in FEW
        and (backend != "native" or solver in method.solvers())
        and (backends[backend].methods()[solver].differentiable or not method.exact)
        and exact in (None, method.exact)
    ]


def forms_for(solver: str) -> list[str]:
    """Names of the gradient methods that take another form of a native solver's steps."""
    return [name for name, method in gradients.items() if not method.own_steps and solver in method.solvers()]


def backprop(gradient: str) -> dict[str, Any]:
    """Arguments of `odenet.solve` for backprop through the steps that a gradient method takes."""
    if gradients[gradient].own_steps:
        return {"gradient": "autograd"}
    return {"gradient": gradient, "gradient_options": {"backward": "autograd"}}

"""odenet: residual networks as numerical integrators.

One residual function F(t, x), walked as a ResNet, as a Neural ODE, and everything in between.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from odenet import depth, errors, models, residual
from odenet.backends import list_backends
from odenet.blocks import ODEBlock, ResNet, take_penalties
from odenet.depth import list_depth_weights
from odenet.dropin import odeint, odeint_adjoint, odeint_dense, odeint_event
from odenet.gradients import list_gradients
from odenet.regularisers import list_regularisers
from odenet.residual import list_residuals
from odenet.solve import solve
from odenet.solvers import Event, Solution, Stats, list_solvers

if TYPE_CHECKING:
    from odenet import data, diagnostics, experiments, plotting, training

__version__ = "0.1.0"

__all__ = [
    "Event",
    "ODEBlock",
    "ResNet",
    "Solution",
    "Stats",
    "data",
    "depth",
    "diagnostics",
    "errors",
    "experiments",
    "list_backends",
    "list_depth_weights",
    "list_gradients",
    "list_regularisers",
    "list_residuals",
    "list_solvers",
    "models",
    "odeint",
    "odeint_adjoint",
    "odeint_dense",
    "odeint_event",
    "plotting",
    "residual",
    "solve",
    "take_penalties",
    "training",
]

_WHEN_USED = ("data", "diagnostics", "experiments", "plotting", "training")


def __getattr__(name: str) -> ModuleType:
    """Packages that need more than torch are imported when they are used."""
    if name in _WHEN_USED:
        return import_module(f"odenet.{name}")
    raise AttributeError(f"module 'odenet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHEN_USED})

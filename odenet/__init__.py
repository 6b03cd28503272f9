"""odenet: residual networks as numerical integrators.

One residual function F(t, x), walked as a ResNet, as a Neural ODE, and everything in between.
"""

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

__version__ = "0.1.0"

__all__ = [
    "Event",
    "ODEBlock",
    "ResNet",
    "Solution",
    "Stats",
    "depth",
    "errors",
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
    "residual",
    "solve",
    "take_penalties",
]

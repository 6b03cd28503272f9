"""torchdiffeq's interface over odenet's solvers: a program changes its import and nothing else."""

from odenet.dropin.adjoint import odeint_adjoint
from odenet.dropin.event import odeint_event
from odenet.dropin.odeint import odeint, odeint_dense

__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]

"""Figures, made from results alone: no model, no solver, no pyplot."""

from odenet.plotting.accuracy_nfe import accuracy_nfe
from odenet.plotting.curves import curves
from odenet.plotting.hidden_states import hidden_states
from odenet.plotting.monitor import monitor, monitored
from odenet.plotting.stability_region import stability_region
from odenet.plotting.style import save
from odenet.plotting.swap_matrix import swap_matrix
from odenet.plotting.training_curves import training_curves

__all__ = [
    "accuracy_nfe",
    "curves",
    "hidden_states",
    "monitor",
    "monitored",
    "save",
    "stability_region",
    "swap_matrix",
    "training_curves",
]

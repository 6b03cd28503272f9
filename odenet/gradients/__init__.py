"""Gradient methods: how the loss gets back through depth."""

from odenet.gradients.adjoint import Adjoint
from odenet.gradients.autograd import Autograd
from odenet.gradients.checkpoint import Checkpoint
from odenet.gradients.forward import Forward
from odenet.gradients.mali import MALI
from odenet.gradients.momentum import MomentumGradient
from odenet.gradients.registry import GradientMethod, gradients
from odenet.gradients.reversible import Reversible
from odenet.gradients.reversible_heun import ReversibleHeun
from odenet.gradients.stagewise import Stagewise


def list_gradients() -> list[str]:
    """Names of the gradient methods."""
    return list(gradients)


__all__ = [
    "MALI",
    "Adjoint",
    "Autograd",
    "Checkpoint",
    "Forward",
    "GradientMethod",
    "MomentumGradient",
    "Reversible",
    "ReversibleHeun",
    "Stagewise",
    "gradients",
    "list_gradients",
]

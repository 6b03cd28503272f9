"""Initial value problems with answers that odenet did not compute."""

from tests.oracles.functions import Counted, make_residual, residual_state
from tests.oracles.methods import FEW, backprop, forms_for, gradients_for
from tests.oracles.problems import PROBLEMS, Oracle

__all__ = [
    "FEW",
    "PROBLEMS",
    "Counted",
    "Oracle",
    "backprop",
    "forms_for",
    "gradients_for",
    "make_residual",
    "residual_state",
]

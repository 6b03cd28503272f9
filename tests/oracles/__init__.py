"""Initial value problems with answers that odenet did not compute."""

from tests.oracles.functions import Counted, make_residual, residual_state
from tests.oracles.problems import PROBLEMS, Oracle

__all__ = ["PROBLEMS", "Counted", "Oracle", "make_residual", "residual_state"]

"""What is integrated over depth. To add a regulariser, add a function."""

from __future__ import annotations

from torch import Tensor

from odenet.regularisers.registry import Pull, regularisers


@regularisers.register("kinetic")
def kinetic(k: Tensor, pull: Pull, probe: Tensor) -> Tensor:
    """|F|²: the kinetic energy of a sample, which straight paths at constant speed have least of.

    Reference:
        Finlay et al. 2020, How to Train Your Neural ODE.
    """
    return squares(k)


@regularisers.register("jacobian")
def jacobian(k: Tensor, pull: Pull, probe: Tensor) -> Tensor:
    """|εᵀ ∂F/∂x|², whose mean over ε is the squared Frobenius norm of the Jacobian (Hutchinson).

    Reference:
        Finlay et al. 2020, How to Train Your Neural ODE.
    """
    return squares(pull(probe))


def squares(x: Tensor) -> Tensor:
    """Σ|x|² of each sample, shape (batch,)."""
    return x.abs().square().reshape(len(x), -1).sum(1)

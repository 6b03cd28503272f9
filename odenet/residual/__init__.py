"""Residual functions F(t, x): what one block computes.

F is called with t, a 0-d tensor (or shape (batch,) in per-sample mode), and x, shape (batch, ...), and returns
a tensor of x's shape, dtype and device. Any function or module with `forward(t, x)` will do.
"""

from odenet.residual.antisymmetric import Antisymmetric
from odenet.residual.attention import Attention
from odenet.residual.augmented import Augmented
from odenet.residual.conv import Bottleneck, Conv
from odenet.residual.from_block import FromBlock, from_block
from odenet.residual.hamiltonian import Hamiltonian
from odenet.residual.linear import Linear
from odenet.residual.lipschitz import LipschitzBounded
from odenet.residual.mlp import MLP
from odenet.residual.registry import residuals
from odenet.residual.second_order import Momentum, SecondOrder


def list_residuals() -> list[str]:
    """Names of the residual functions."""
    return list(residuals)


__all__ = [
    "MLP",
    "Antisymmetric",
    "Attention",
    "Augmented",
    "Bottleneck",
    "Conv",
    "FromBlock",
    "Hamiltonian",
    "Linear",
    "LipschitzBounded",
    "Momentum",
    "SecondOrder",
    "from_block",
    "list_residuals",
    "residuals",
]

"""Residual functions F(t, x): what one block computes.

F is called with t, a 0-d tensor (or shape (batch,) in per-sample mode), and x, shape (batch, ...), and returns
a tensor of x's shape, dtype and device. Any function or module with `forward(t, x)` will do.
"""

from odenet.residual.conv import Bottleneck, Conv
from odenet.residual.from_block import FromBlock, from_block
from odenet.residual.mlp import MLP
from odenet.residual.registry import residuals


def list_residuals() -> list[str]:
    """Names of the residual functions."""
    return list(residuals)


__all__ = ["MLP", "Bottleneck", "Conv", "FromBlock", "from_block", "list_residuals", "residuals"]

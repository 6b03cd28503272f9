"""Weights over depth θ(t): tied, untied, or a function of depth in a basis; and the way from one to another."""

from odenet.depth.constant import Constant, PiecewiseConstant, constant, piecewise_constant
from odenet.depth.expansion import Expansion
from odenet.depth.kinds import bspline, chebyshev, fourier, piecewise_linear
from odenet.depth.low_rank import LowRank, low_rank
from odenet.depth.moments import carry_optimizer
from odenet.depth.projection import Residual
from odenet.depth.statistics import reestimate_statistics
from odenet.depth.weights import DepthWeights, Kind, depth_weights, weights_over_depth


def list_depth_weights() -> list[str]:
    """Names of the ways weights can change over depth."""
    return list(depth_weights)


__all__ = [
    "Constant",
    "DepthWeights",
    "Expansion",
    "Kind",
    "LowRank",
    "PiecewiseConstant",
    "Residual",
    "bspline",
    "carry_optimizer",
    "chebyshev",
    "constant",
    "depth_weights",
    "fourier",
    "list_depth_weights",
    "low_rank",
    "piecewise_constant",
    "piecewise_linear",
    "reestimate_statistics",
    "weights_over_depth",
]

"""Weights over depth θ(t): tied (one F for all depths), untied (one F a layer)."""

from odenet.depth.weights import (
    Constant,
    DepthWeights,
    PiecewiseConstant,
    constant,
    depth_weights,
    piecewise_constant,
    weights_over_depth,
)


def list_depth_weights() -> list[str]:
    """Names of the ways weights can change over depth."""
    return list(depth_weights)


__all__ = [
    "Constant",
    "DepthWeights",
    "PiecewiseConstant",
    "constant",
    "depth_weights",
    "list_depth_weights",
    "piecewise_constant",
    "weights_over_depth",
]

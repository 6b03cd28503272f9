"""θ(t): how the weights of F change over depth.

Depth is the interval [t0, t1]. Knots, given as fractions of it, cut it into pieces on which F is smooth in t;
a solver stops at every knot and never steps across one.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

from torch import Tensor, nn

from odenet.errors import InputError
from odenet.registry import Registry
from odenet.residual.layers import reset_tree

ResidualFunction = Callable[..., Tensor]
depth_weights: Registry[Callable[..., DepthWeights]] = Registry("depth weights")


class DepthWeights(nn.Module):
    """F with its weights as a function of depth.

    Attributes:
        knots: interior ends of the pieces, increasing fractions of the depth interval in (0, 1).
    """

    knots: tuple[float, ...] = ()

    @property
    def pieces(self) -> int:
        """Number of pieces: one more than knots."""
        return len(self.knots) + 1

    def piece(self, index: int) -> ResidualFunction:
        """F(t, x, *args) on piece `index`, counted from t0."""
        raise NotImplementedError


class Constant(DepthWeights):
    """One F for all depths: tied weights.

    Args:
        F: a function or module called as F(t, x, *args).
    """

    def __init__(self, F: ResidualFunction):
        super().__init__()
        check_residual(F)
        self.F = F

    def piece(self, index: int) -> ResidualFunction:
        return self.F


class PiecewiseConstant(DepthWeights):
    """N residual functions of the same kind, each holding on an N-th of depth: the untied layers of a ResNet.

    Args:
        layers: F_0 ... F_{N-1}; they are shared, not copied.

    Reference:
        Queiruga et al. 2020, Continuous-in-Depth Neural Networks.
    """

    def __init__(self, layers: Sequence[nn.Module]):
        super().__init__()
        layers = list(layers)
        if not layers:
            raise InputError("piecewise constant weights need at least one layer, got none")
        for layer in layers:
            if not isinstance(layer, nn.Module):
                raise InputError(f"untied weights need F as an nn.Module, got {type(layer).__name__}")
            check_residual(layer)
        self.layers = nn.ModuleList(layers)
        self.knots = tuple(i / len(layers) for i in range(1, len(layers)))

    def piece(self, index: int) -> ResidualFunction:
        return self.layers[index]

    def every(self, stride: int) -> PiecewiseConstant:
        """Keep layers 0, stride, 2 stride, ..., each now holding on a `stride` times longer piece of depth.

        The result shares its parameters with this object. Walked by Euler, it is this object walked with steps
        `stride` times as long and the weights read where a step starts.

        Args:
            stride: a divisor of the number of layers.

        Raises:
            InputError: `stride` does not divide the number of layers.
        """
        if not isinstance(stride, int) or stride < 1 or len(self.layers) % stride:
            raise InputError(f"stride must divide the number of layers, {len(self.layers)}, got {stride!r}")
        return PiecewiseConstant(list(self.layers)[::stride])


def constant() -> Callable[[ResidualFunction], Constant]:
    """Tied weights, to be given as `weights=`: one F for all depths."""
    return Constant


def piecewise_constant(N: int) -> Callable[[ResidualFunction], PiecewiseConstant]:
    """Untied weights, to be given as `weights=`: N layers, each holding on an N-th of depth.

    The first layer is F itself; the others are copies of it with weights drawn anew (`reset_parameters`).

    Args:
        N: number of layers, at least 1.

    Raises:
        InputError: N is not a positive integer, or F is not a module.
    """
    if not isinstance(N, int) or isinstance(N, bool) or N < 1:
        raise InputError(f"the number of layers must be a positive integer, got {N!r}")

    def untie(F: ResidualFunction) -> PiecewiseConstant:
        if not isinstance(F, nn.Module):
            raise InputError(
                f"untied weights need F as an nn.Module, got {type(F).__name__}; use weights='tied' for a function"
            )
        layers = [F]
        for _ in range(N - 1):
            layer = copy.deepcopy(F)
            reset_tree(layer)
            layers.append(layer)
        return PiecewiseConstant(layers)

    return untie


@depth_weights.register("tied")
def _tied(F: ResidualFunction, steps: int | None) -> DepthWeights:
    """One F for all depths."""
    return constant()(F)


@depth_weights.register("untied")
def _untied(F: ResidualFunction, steps: int | None) -> DepthWeights:
    """One F a layer: piecewise constant in depth."""
    if steps is None:
        raise InputError(
            "weights='untied' takes its number of layers from steps, and an adaptive solver has none; "
            "give weights=odenet.depth.piecewise_constant(N), or steps=N with a fixed-step solver"
        )
    return piecewise_constant(steps)(F)


def weights_over_depth(F: Any, weights: Any, steps: int | None) -> DepthWeights:
    """F with its weights over depth, from what a user gives as `weights=`.

    Args:
        F: a residual function, or `DepthWeights`, which are taken as they are (with `weights="tied"`).
        weights: "tied", "untied", or a function of F such as `piecewise_constant(N)`.
        steps: number of steps, from which "untied" takes its number of layers; None if adaptive.

    Raises:
        InputError: F or `weights` is of the wrong kind.
    """
    if isinstance(F, DepthWeights):
        if weights not in ("tied", None):
            raise InputError("F holds its own weights over depth already; leave weights out")
        return F
    if isinstance(weights, str):
        return depth_weights[weights](F, steps)
    if callable(weights) and not isinstance(weights, nn.Module):
        built = weights(F)
        if isinstance(built, DepthWeights):
            return built
    raise InputError(
        f"weights must be one of {', '.join(depth_weights)} or an odenet.depth basis such as "
        f"odenet.depth.piecewise_constant(8), got {weights!r}"
    )


_CHECKED: set[tuple[Any, bool]] = set()  # reading a signature takes longer than a small F


def check_residual(F: Any) -> None:
    """Raise `InputError` unless F can be called as F(t, x)."""
    if isinstance(F, type):
        raise InputError(f"F must be a function or module, got the class {F.__name__}; make an instance of it")
    if not callable(F):
        raise InputError(f"F must be a function or module called as F(t, x), got {type(F).__name__}")
    function = F.forward if isinstance(F, nn.Module) else F
    code = getattr(function, "__code__", None), isinstance(function, MethodType)
    if code in _CHECKED:
        return
    try:
        signature = inspect.signature(function)
    except ValueError:  # no signature to read: builtins, some C functions
        return
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = [p for p in signature.parameters.values() if p.kind in kinds]
    if len(positional) >= 2 or any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()):
        if code[0] is not None and not hasattr(function, "__wrapped__"):
            _CHECKED.add(code)
        return
    raise InputError(
        f"F must be callable as F(t, x), but {getattr(F, '__name__', type(F).__name__)} takes {signature}; "
        "wrap a block with forward(x) in odenet.residual.from_block(block)"
    )

"""θ(t): how the weights of F change over depth.

Depth is the interval [t0, t1]. Knots, given as fractions of it, cut it into pieces on which F is smooth in t;
a solver stops at every knot and never steps across one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any, Protocol

from torch import Tensor, nn

from odenet.depth.bases import Basis
from odenet.depth.coefficients import Coefficients
from odenet.depth.projection import Residual
from odenet.errors import InputError
from odenet.registry import Registry

ResidualFunction = Callable[..., Tensor]
SYNONYMS = {"constant": "tied", "piecewise_constant": "untied"}  # the bases that a ResNet has words of its own for
depth_weights: Registry[Callable[..., DepthWeights]] = Registry("depth weights")


class Kind(Protocol):
    """A way weights can change over depth, to be given as `weights=`: F -> F with its weights over depth."""

    def __call__(self, F: ResidualFunction) -> DepthWeights:
        """F with weights over depth, drawn anew where there are several."""
        ...

    def project(self, weights: DepthWeights) -> DepthWeights:
        """The weights of this kind that are nearest to `weights` in L2 over depth, with their `residual`."""
        ...

    def refined(self, k: int) -> Kind:
        """The same kind with k times the pieces or functions."""
        ...

    def resized(self, n: int) -> Kind:
        """The same kind with n pieces or functions."""
        ...


class DepthWeights(nn.Module):
    """F with its weights as a function of depth.

    Attributes:
        knots: interior ends of the pieces, increasing fractions of the depth interval in (0, 1).
        residual: what was lost, if these weights were made by a projection of others.
        varies: whether the weights vary in t within a piece.
    """

    knots: tuple[float, ...] = ()
    varies: bool = False
    residual: Residual | None = None

    @property
    def pieces(self) -> int:
        """Number of pieces: one more than knots."""
        return len(self.knots) + 1

    def piece(self, index: int, t0: float = 0.0, t1: float = 1.0) -> ResidualFunction:
        """F(t, x, *args) on a piece.

        Args:
            index: of the piece, counted from t0.
            t0: start of depth.
            t1: end of depth.
        """
        raise NotImplementedError

    @property
    def kind(self) -> Kind:
        """What would make weights like these."""
        raise InputError(f"{type(self).__name__} has no basis that could be refined or projected")

    @property
    def basis(self) -> Basis:
        """The functions of depth that the weights are made of."""
        raise InputError(f"{type(self).__name__} has no basis that could be refined or projected")

    @property
    def template(self) -> nn.Module:
        """A module of F's structure, whatever the shapes of its tensors."""
        raise InputError("only the weights of an nn.Module can be refined or projected")

    def coefficients(self) -> Coefficients:
        """For each tensor that changes with depth, its coefficients (basis.size, *shape), without a graph."""
        raise NotImplementedError

    def refine(self, k: int = 2) -> DepthWeights:
        """The same function of depth with k times the pieces (of a global basis: k times the functions).

        Args:
            k: factor, at least 1.

        Returns:
            New weights; nothing is shared with these.
        """
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise InputError(f"refine takes a factor of at least 1, got {k!r}")
        return self.kind.refined(k).project(self)

    def coarsen(self, n: int) -> DepthWeights:
        """The weights of the same kind with n pieces (of a global basis: n functions), best in L2 over depth.

        Args:
            n: number of pieces or functions.

        Returns:
            New weights; `residual` says what was lost.
        """
        return self.kind.resized(n).project(self)

    def project(self, kind: Kind) -> DepthWeights:
        """The weights of another kind that are nearest to these in L2 over depth.

        Args:
            kind: such as `odenet.depth.bspline(3, 4)`.

        Returns:
            New weights; `residual` says what was lost.
        """
        if not hasattr(kind, "project") or isinstance(kind, type):
            raise InputError(f"project takes a kind of weights such as odenet.depth.bspline(3, 4), got {kind!r}")
        return kind.project(self)


def weights_over_depth(F: Any, weights: Any, steps: int | None) -> DepthWeights:
    """F with its weights over depth, from what a user gives as `weights=`.

    Args:
        F: a residual function, or `DepthWeights`, which are taken as they are (with `weights="tied"`).
        weights: "tied" (or "constant"), "untied" (or "piecewise_constant"), the name of another basis, or a function of
            F such as `piecewise_constant(N)`.
        steps: number of steps, from which "untied" takes its number of layers; None if adaptive.

    Raises:
        InputError: F or `weights` is of the wrong kind.
    """
    if isinstance(F, DepthWeights):
        if weights not in ("tied", "constant", None):
            raise InputError("F holds its own weights over depth already; leave weights out")
        return F
    if isinstance(weights, str):
        return depth_weights[SYNONYMS.get(weights, weights)](F, steps)
    if callable(weights) and not isinstance(weights, nn.Module):
        built = weights(F)
        if isinstance(built, DepthWeights):
            return built
    raise InputError(
        f"weights must be one of {', '.join(depth_weights)} or an odenet.depth basis such as "
        f"odenet.depth.piecewise_constant(8), got {weights!r}"
    )


def check_module(F: Any) -> nn.Module:
    """F, if it is a module; its weights can then change over depth."""
    if not isinstance(F, nn.Module):
        raise InputError(
            f"untied weights need F as an nn.Module, got {type(F).__name__}; use weights='tied' for a function"
        )
    return F


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

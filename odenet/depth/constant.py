"""Tied and untied weights: one F for all depths, or one for each of N pieces of depth."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from odenet.depth.bases import Basis, BSpline
from odenet.depth.coefficients import Coefficients, check_buffers, drawn, filled, mapped, stacked
from odenet.depth.projection import Residual, report, residual, transfer
from odenet.depth.weights import (
    DepthWeights,
    Kind,
    ResidualFunction,
    check_module,
    check_residual,
    depth_weights,
)
from odenet.errors import InputError


class Constant(DepthWeights):
    """One F for all depths: tied weights.

    Args:
        F: a function or module called as F(t, x, *args).
    """

    def __init__(self, F: ResidualFunction):
        super().__init__()
        check_residual(F)
        if isinstance(F, nn.Module):
            self._modules["F"] = F  # what `self.F = F` comes to, in a tenth of its time: solves do it each
        else:
            self.F = F

    def piece(self, index: int, t0: float = 0.0, t1: float = 1.0) -> ResidualFunction:
        return self.F

    @property
    def kind(self) -> Kind:
        return PiecewiseConstantKind(1)

    @property
    def basis(self) -> Basis:
        return BSpline(0, 1)

    @property
    def template(self) -> nn.Module:
        return self.F if isinstance(self.F, nn.Module) else super().template

    def coefficients(self) -> Coefficients:
        return stacked([self.template])


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
        self.knots = self.basis.knots

    def piece(self, index: int, t0: float = 0.0, t1: float = 1.0) -> ResidualFunction:
        return self.layers[index]

    @property
    def kind(self) -> Kind:
        return PiecewiseConstantKind(len(self.layers))

    @property
    def basis(self) -> Basis:
        return BSpline(0, len(self.layers))

    @property
    def template(self) -> nn.Module:
        return self.layers[0]

    def coefficients(self) -> Coefficients:
        found = stacked(list(self.layers))
        check_buffers(list(self.layers))
        return found

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


class ConstantKind:
    """Tied weights."""

    def __call__(self, F: ResidualFunction) -> Constant:
        return Constant(F)

    def project(self, weights: DepthWeights) -> Constant:
        layers, lost = _layers(weights, BSpline(0, 1))
        constant = Constant(layers[0])
        constant.residual = lost
        return constant

    def refined(self, k: int) -> Kind:
        return PiecewiseConstantKind(k)

    def resized(self, n: int) -> Kind:
        return PiecewiseConstantKind(n)


class PiecewiseConstantKind:
    """N layers.

    Args:
        N: number of layers.
    """

    def __init__(self, N: int):
        self.basis = BSpline(0, N)

    def __call__(self, F: ResidualFunction) -> PiecewiseConstant:
        return PiecewiseConstant(drawn(check_module(F), self.basis.pieces))

    def project(self, weights: DepthWeights) -> PiecewiseConstant:
        layers, lost = _layers(weights, self.basis)
        untied = PiecewiseConstant(layers)
        untied.residual = lost
        return untied

    def refined(self, k: int) -> PiecewiseConstantKind:
        return PiecewiseConstantKind(k * self.basis.pieces)

    def resized(self, n: int) -> PiecewiseConstantKind:
        return PiecewiseConstantKind(n)


def _layers(weights: DepthWeights, basis: BSpline) -> tuple[list[nn.Module], Residual]:
    """`weights` projected to a module for each piece."""
    template, coefficients = weights.template, weights.coefficients()
    new = mapped(transfer(weights.basis, basis), coefficients)
    layers = [filled(template, {name: C[i] for name, C in new.items()}) for i in range(basis.pieces)]
    return layers, report(residual(weights.basis, basis, coefficients))


def constant() -> ConstantKind:
    """Tied weights, to be given as `weights=`: one F for all depths."""
    return ConstantKind()


def piecewise_constant(N: int) -> PiecewiseConstantKind:
    """Untied weights, to be given as `weights=`: N layers, each holding on an N-th of depth.

    The first layer is F itself; the others are copies of it with weights drawn anew (`reset_parameters`).

    Args:
        N: number of layers, at least 1.

    Raises:
        InputError: N is not a positive integer, or F is not a module.
    """
    return PiecewiseConstantKind(N)


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

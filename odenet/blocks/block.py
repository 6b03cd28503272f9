"""What both kinds of block are: F with its weights over depth, an interval and a scheme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from odenet.blocks.distillation import distill
from odenet.depth import Constant, DepthWeights, Kind
from odenet.errors import InputError
from odenet.regularisers import check_regularisers, penalised
from odenet.run import run
from odenet.solvers import Scheme, Solution, Stats
from odenet.solvers.grid import uniform_grid, with_knots
from odenet.solvers.times import host_time

if TYPE_CHECKING:
    from odenet.blocks.ode import ODEBlock
    from odenet.blocks.resnet import ResNet


class Block(nn.Module):
    """x(t1) from x(t0) = x: F with its weights over depth, an interval and a scheme. The base of both kinds of block.

    Args:
        weights: F with its weights over depth.
        scheme: how depth is walked.
        t0: start of depth.
        t1: end of depth.

    Attributes:
        weights: F with its weights over depth, the only holder of parameters.
        scheme: how depth is walked.
        stats: what the last forward pass did, and its backward pass once that has run.
        regularisers: names and factors; integrated in training mode, where gradients are enabled.
        penalty: their sum over the last such pass, a 0-d tensor, until `take_penalties` takes it.
    """

    def __init__(
        self,
        weights: DepthWeights,
        scheme: Scheme,
        t0: float,
        t1: float,
        regularisers: Mapping[str, float] | None = None,
    ):
        super().__init__()
        self.weights, self.scheme = weights, scheme
        self.t0, self.t1 = host_time("t0", t0), host_time("t1", t1)
        self.stats = Stats()
        self.regularisers = check_regularisers(regularisers, scheme)
        self.penalty: Tensor | None = None
        self.warm_start, self._first_step = False, None
        if scheme.steps is not None and scheme.steps % weights.pieces:
            raise InputError(
                f"steps={scheme.steps} would step across the knots of {weights.pieces} pieces of weights; take a "
                f"multiple of {weights.pieces} steps, or keep every k-th layer: block.weights.every(k)"
            )

    @property
    def F(self) -> Any:
        """The residual function, if its weights are tied; the list of residual functions if they are not.

        With weights that are a function of depth, the list holds F on each piece between knots, called as F(t, x).
        """
        if isinstance(self.weights, Constant):
            return self.weights.F
        return [self.weights.piece(i, self.t0, self.t1) for i in range(self.weights.pieces)]

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """x(t1).

        Args:
            x: (batch, ...) state at t0.
            *args: handed to F after (t, x).

        Returns:
            State at t1, of x's shape.

        Raises:
            ResidualError: F does not keep x's shape, dtype or device.
            SolveError: the solve broke down.
        """
        return self.solution(x, None, args).last

    def trajectory(self, x: Tensor, ts: Sequence[float] | Tensor | None = None, args: tuple[Any, ...] = ()) -> Tensor:
        """States along depth.

        Args:
            x: (batch, ...) state at t0.
            ts: times from t0 towards t1; None for the ends of the steps (of the accepted steps, if adaptive), t0 first.
            args: handed to F after (t, x).

        Returns:
            States, shape (len(ts), *x.shape).
        """
        return self.solution(x, self.depths(x, args) if ts is None else ts, args).ys

    def depths(self, x: Tensor, args: tuple[Any, ...] = ()) -> list[float]:
        """Ends of the steps that the block takes from x, t0 first.

        An adaptive block solves once to find them, which leaves no trace in running statistics or random numbers.
        """
        if self.scheme.per_sample:
            raise InputError(
                "with per_sample=True every sample has steps of its own, and no times that all share: give ts, or read "
                "block.stats.samples.h"
            )
        if self.scheme.grid is not None:
            return [self.t0, *self.scheme.grid[1:-1], self.t1]
        if self.scheme.steps is not None:
            return uniform_grid(self.t0, self.t1, self.scheme.steps) if self.t0 != self.t1 else [self.t0]
        kept = [(buffer, buffer.clone()) for buffer in self.weights.buffers()]
        with torch.no_grad(), torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
            h = run(self.weights, x, (self.t0, self.t1), self._warm(), None, args).stats.h
        for buffer, before in kept:
            buffer.data.copy_(before)
        sign = 1.0 if self.t1 >= self.t0 else -1.0
        depths = [self.t0]
        for step in h:
            depths.append(depths[-1] + sign * step)
        return [*depths[:-1], self.t1] if h else depths

    def solution(self, x: Tensor, ts: Any = None, args: tuple[Any, ...] = (), dense: bool = False) -> Solution:
        """The whole answer of a solve; see `odenet.solve`."""
        interval = self.t0, self.t1
        if self.regularisers and self.training and torch.is_grad_enabled() and not dense:
            solution, self.penalty = penalised(self.weights, x, interval, self._warm(), self.regularisers, ts, args)
        else:
            solution = run(self.weights, x, interval, self._warm(), ts, args, dense)
        self.__dict__["stats"] = solution.stats  # a module's own way to set an attribute is slow beside a small solve
        if self.warm_start and self.stats.h:
            self._first_step = self.stats.h[0]
        return solution

    def _warm(self) -> Scheme:
        """The scheme, with the first step of the last solve if that is to be remembered."""
        known = self._first_step is not None and self.scheme.adaptive
        return self.scheme.but(first_step=self._first_step) if known else self.scheme

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "penalty": None}  # it belongs to a graph, which cannot be copied

    def continuous(
        self,
        solver: str = "dopri5",
        rtol: float | None = None,
        atol: float | None = None,
        gradient: str | None = None,
        **scheme: Any,
    ) -> ODEBlock:
        """The same F and parameters as an ODE.

        Untied weights stay as they are: piecewise constant in depth, and no step crosses a knot.

        Args:
            solver: name of the solver.
            rtol: relative tolerance.
            atol: absolute tolerance.
            gradient: name of the gradient method; default "checkpoint".
            **scheme: as in `ODEBlock`.

        Returns:
            A block that shares `weights` with this one.
        """
        from odenet.blocks.ode import ODEBlock

        return ODEBlock(self.weights, solver, rtol=rtol, atol=atol, t0=self.t0, t1=self.t1, gradient=gradient, **scheme)

    def discretize(self, steps: int, solver: str = "euler", gradient: str | None = None, **scheme: Any) -> ResNet:
        """The same F and parameters as a network of `steps` layers.

        Args:
            steps: number of equal steps; with untied weights a multiple of the number of layers.
            solver: name of the solver.
            gradient: name of the gradient method; default "autograd".
            **scheme: as in `ResNet`.

        Returns:
            A block that shares `weights` with this one.
        """
        from odenet.blocks.resnet import ResNet

        return ResNet(self.weights, steps, solver=solver, t0=self.t0, t1=self.t1, gradient=gradient, **scheme)

    def distill(self, x: Tensor, tol: float = 1e-3, solver: str | None = None, args: tuple[Any, ...] = ()) -> ResNet:
        """A network whose layers are the steps that an adaptive solve accepts on given data.

        Args:
            x: (batch, ...) states at t0 to solve from.
            tol: rtol and atol of that solve.
            solver: method of the solve and of the network; None for this block's, if it is adaptive, else "dopri5". A
                method without an error estimate takes the steps that "dopri5" accepts.
            args: handed to F after (t, x).

        Returns:
            A `ResNet` on that grid with the same weights; its `distillation` says what it is and what it costs.

        Raises:
            InputError: an argument that cannot be used.
            SolveError: the solve broke down.
        """
        return distill(self, x, tol, solver, args)

    def refine(self, k: int = 2, steps: int | None = None) -> Self:
        """This block with k times the pieces of weights (functions, if the basis is global), the same θ(t).

        As an ODE the new block computes the same. A network does too as long as its steps fit the new knots; else it
        takes as many more as they need: an untied Euler network of N layers becomes one of kN layers, each layer k
        times in a row with h/k, which is another network, nearer to the same ODE.

        Args:
            k: factor, at least 1.
            steps: number of steps of the new block; None for the fewest from this block's on that fit the knots.

        Returns:
            A block of the same kind and scheme with weights of its own.

        Reference:
            Queiruga et al. 2020, Continuous-in-Depth Neural Networks.
        """
        return self._with(self.weights.refine(k), steps)

    def coarsen(self, n: int, steps: int | None = None) -> Self:
        """This block with n pieces of weights (n functions, if the basis is global), best in L2 over depth.

        Args:
            n: number of pieces or functions.
            steps: as in `refine`.

        Returns:
            A block of the same kind and scheme with weights of its own; `block.weights.residual` says what was lost.
        """
        return self._with(self.weights.coarsen(n), steps)

    def project(self, kind: Kind, steps: int | None = None) -> Self:
        """This block with weights of another kind, nearest to its own in L2 over depth.

        Args:
            kind: such as `odenet.depth.bspline(3, 4)`.
            steps: as in `refine`.

        Returns:
            A block of the same kind and scheme with weights of its own; `block.weights.residual` says what was lost.
        """
        return self._with(self.weights.project(kind), steps)

    def _with(self, weights: DepthWeights, steps: int | None) -> Self:
        scheme = self.scheme
        if steps is not None and scheme.steps is None:
            raise InputError(f"this block walks {scheme} and has no number of steps to change; leave steps out")
        if scheme.steps is not None:
            fitting = -(-scheme.steps // weights.pieces) * weights.pieces
            scheme = scheme.but(steps=fitting if steps is None else steps)
        elif scheme.grid is not None:
            scheme = scheme.but(grid=with_knots(scheme.grid, weights.knots))
        twin = type(self).__new__(type(self))
        Block.__init__(twin, weights, scheme, self.t0, self.t1, self.regularisers)
        twin.warm_start = self.warm_start
        return twin.train(self.training)

    def extra_repr(self) -> str:
        scheme = self.scheme
        return f"{scheme}, gradient={scheme.gradient}, backend={scheme.backend}, t0={self.t0:g}, t1={self.t1:g}"

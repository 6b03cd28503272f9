"""`ResNet` and `ODEBlock`: one residual function, walked in steps or as an ODE, and the way between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from odenet.depth import Constant, DepthWeights, Kind, weights_over_depth
from odenet.errors import InputError
from odenet.regularisers import check_regularisers, penalised
from odenet.run import run
from odenet.solve import make_scheme
from odenet.solvers import Scheme, Solution, Stats, backends
from odenet.solvers.control import MAX_STEPS
from odenet.solvers.grid import uniform_grid, with_knots
from odenet.solvers.times import host_time


@dataclass(frozen=True)
class Distillation:
    """A network made of an adaptive solve.

    Attributes:
        grid: ends of its steps.
        change: ||new - old|| / ||old|| of its answer against that of the block it came from.
        nfe: evaluations of F of the network.
        nfe_before: evaluations of F of the block.
    """

    grid: list[float]
    change: float
    nfe: int
    nfe_before: int


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
        self.stats = solution.stats
        if self.warm_start and self.stats.h:
            self._first_step = self.stats.h[0]
        return solution

    def _warm(self) -> Scheme:
        """The scheme, with the first step of the last solve if that is to be remembered."""
        return self.scheme if self._first_step is None else self.scheme.but(first_step=self._first_step)

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
        return ResNet(self.weights, steps, solver=solver, t0=self.t0, t1=self.t1, gradient=gradient, **scheme)

    @torch.no_grad()
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
        methods = backends["native"].methods()
        own = self.scheme.solver if self.scheme.backend == "native" else "dopri5"
        solver = solver or (own if methods[own].adaptive and methods[own].fixed else "dopri5")
        picks = solver if solver not in methods or methods[solver].adaptive else "dopri5"
        adaptive = ODEBlock(self.weights, picks, rtol=tol, atol=tol, t0=self.t0, t1=self.t1)
        grid = adaptive.train(self.training).depths(x, args)
        network = ResNet(self.weights, None, solver=solver, t0=self.t0, t1=self.t1, grid=grid).train(self.training)
        before, after = self(x, *args), network(x, *args)
        change = float((after - before).norm() / before.norm())
        network.distillation = Distillation(grid, change, network.stats.nfe, self.stats.nfe)
        return network

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
        Block.__init__(twin, weights, scheme, self.t0, self.t1)
        return twin.train(self.training)

    def extra_repr(self) -> str:
        scheme = self.scheme
        return f"{scheme}, gradient={scheme.gradient}, backend={scheme.backend}, t0={self.t0:g}, t1={self.t1:g}"


class ResNet(Block):
    """A residual network: x ← x + h Φ(F, t, x, h), N times; with Euler x ← x + h F(t, x), h = (t1 - t0)/N.

    Args:
        F: residual function or module, called as F(t, x, *args); or `DepthWeights`, which are shared.
        steps: N, at least 1; None with a grid.
        solver: any method with a fixed step.
        weights: "tied" (one F), "untied" (one F a layer: F itself and N - 1 copies with weights drawn anew), or a
            function of F such as `odenet.depth.piecewise_constant(N)`.
        t0: start of depth.
        t1: end of depth; `t1=steps` gives h = 1, the block x + F(x) of He et al.
        gradient: "autograd" (default), "checkpoint" or "adjoint".
        backend: "native", "torchdiffeq" or "scipy".
        compile: "auto", True or False, as in `odenet.solve`.
        options: handed to torchdiffeq's solver.
        gradient_options: handed to the gradient method.
        regularisers: names (see `odenet.list_regularisers`) and factors, for `take_penalties`.
        grid: ends of the steps, from t0 to t1, instead of `steps`.

    Attributes:
        distillation: what it is, if it was made by `Block.distill`.

    Raises:
        InputError: an argument that cannot be used.

    Reference:
        He et al. 2015, Deep Residual Learning for Image Recognition.
    """

    distillation: Distillation | None = None

    def __init__(
        self,
        F: Any,
        steps: int | None,
        solver: str = "euler",
        weights: Any = "tied",
        t0: float = 0.0,
        t1: float = 1.0,
        gradient: str | None = None,
        backend: str = "native",
        max_nfe: int | None = None,
        compile: str | bool = "auto",
        options: Mapping[str, Any] | None = None,
        gradient_options: Mapping[str, Any] | None = None,
        regularisers: Mapping[str, float] | None = None,
        grid: Sequence[float] | None = None,
    ):
        if steps is None and grid is None:
            raise InputError("a ResNet needs its number of steps; give steps=N, or use ODEBlock with rtol and atol")
        scheme = make_scheme(
            solver,
            gradient,
            backend,
            steps=steps,
            grid=grid,
            max_steps=max(MAX_STEPS, steps if isinstance(steps, int) else 0),
            max_nfe=max_nfe,
            compile=compile,
            options=options or {},
            gradient_options=gradient_options or {},
        )
        super().__init__(weights_over_depth(F, weights, steps), scheme, t0, t1, regularisers)


class ODEBlock(Block):
    """A neural ODE: x(t1) of dx/dt = F(t, x), x(t0) = x.

    Args:
        F: residual function or module, called as F(t, x, *args); or `DepthWeights`, which are shared.
        solver: name of the method, see `odenet.list_solvers`.
        rtol: relative tolerance; default 1e-3. Adaptive solves only.
        atol: absolute tolerance; default 1e-3. Adaptive solves only.
        steps: number of equal steps; None to let an adaptive method pick its own.
        weights: as in `ResNet`; "untied" needs `steps`, `odenet.depth.piecewise_constant(N)` does not.
        t0: start of depth.
        t1: end of depth.
        gradient: "checkpoint" (default: exact, memory of one step's graph), "autograd" or "adjoint".
        backend: "native", "torchdiffeq" or "scipy".
        first_step: size of the first adaptive step; None to have it estimated.
        max_steps: budget of accepted plus rejected steps.
        max_nfe: budget of evaluations of F; None for no limit of its own.
        compile: "auto", True or False, as in `odenet.solve`.
        warm_start: whether a solve begins with the first step that the last one accepted, which saves the estimate (two
            evaluations of F become one); a solve then depends on the one before it.
        options: handed to torchdiffeq's solver.
        gradient_options: handed to the gradient method.
        regularisers: names (see `odenet.list_regularisers`) and factors, for `take_penalties`.
        **numerics: per_sample, per_sample_args, step_size, grid, controller, h_min, h_max, norm, stops and jumps, as in
            `odenet.solve`.

    Raises:
        InputError: an argument that cannot be used.

    Reference:
        Chen et al. 2018, Neural Ordinary Differential Equations.
    """

    def __init__(
        self,
        F: Any,
        solver: str = "dopri5",
        rtol: float | None = None,
        atol: float | None = None,
        steps: int | None = None,
        weights: Any = "tied",
        t0: float = 0.0,
        t1: float = 1.0,
        gradient: str | None = None,
        backend: str = "native",
        first_step: float | None = None,
        max_steps: int = MAX_STEPS,
        max_nfe: int | None = None,
        compile: str | bool = "auto",
        warm_start: bool = False,
        options: Mapping[str, Any] | None = None,
        gradient_options: Mapping[str, Any] | None = None,
        regularisers: Mapping[str, float] | None = None,
        **numerics: Any,
    ):
        scheme = make_scheme(
            solver,
            gradient,
            backend,
            default_gradient="checkpoint",
            steps=steps,
            rtol=rtol,
            atol=atol,
            first_step=first_step,
            max_steps=max_steps,
            max_nfe=max_nfe,
            compile=compile,
            options=options or {},
            gradient_options=gradient_options or {},
            **numerics,
        )
        super().__init__(weights_over_depth(F, weights, steps), scheme, t0, t1, regularisers)
        if warm_start and (not scheme.adaptive or scheme.per_sample or first_step is not None):
            raise InputError(
                "warm_start=True remembers a first step, so it needs an adaptive solve without first_step "
                "and without per_sample"
            )
        self.warm_start = warm_start


def blocks_of(module: nn.Module) -> list[Block]:
    """Every block in a module, each once."""
    return [m for m in module.modules() if isinstance(m, Block)]


def collect_stats(module: nn.Module) -> Stats:
    """Sum of the statistics of every block in a module, for its last forward and backward pass."""
    return Stats.total(block.stats for block in blocks_of(module))


def take_penalties(module: nn.Module) -> list[Tensor]:
    """The regularisers of the last forward pass of every block that has some, each once: terms for the loss."""
    taken = [block.penalty for block in blocks_of(module) if block.penalty is not None]
    for block in blocks_of(module):
        block.penalty = None
    return taken


__all__ = ["Block", "ODEBlock", "ResNet", "blocks_of", "collect_stats", "take_penalties"]

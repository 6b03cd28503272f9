"""A solve that integrates regularisers on the way: quadratures beside the state, which no step control sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from odenet.depth import DepthWeights
from odenet.errors import InputError
from odenet.regularisers.estimates import Estimate
from odenet.regularisers.measured import Estimates, total_of
from odenet.regularisers.registry import regularisers
from odenet.run import run
from odenet.solvers import Scheme, Solution
from odenet.solvers.control import rms
from odenet.solvers.ends import StepEnds
from odenet.solvers.per_sample import SampleSolution
from odenet.solvers.per_sample.control import rms_each
from odenet.solvers.per_sample.field import check_own_args
from odenet.solvers.registry import solvers


class Penalised(DepthWeights):
    """F(t, x) with the rates of the regularisers: F'(t, (x, r)) = (F(t, x), ρ(t, x)), r of shape (batch, regularisers).

    The last of its arguments is no argument of F: it is the probe, ±1 of x's shape.

    Args:
        weights: F with its weights over depth.
        names: of the regularisers.
    """

    def __init__(self, weights: DepthWeights, names: Sequence[str]):
        super().__init__()
        self.weights, self.names = weights, names
        self.knots, self.varies = weights.knots, weights.varies

    def piece(self, index: int, t0: float = 0.0, t1: float = 1.0) -> PenalisedFunction:
        """F' on piece `index`."""
        return PenalisedFunction(self.weights.piece(index, t0, t1), self.names)


class PenalisedFunction:
    """F' on one piece of depth."""

    def __init__(self, F: Callable[..., Tensor], names: Sequence[str]):
        self.F, self.names = F, names

    def __call__(self, t: Tensor, state: tuple[Tensor, Tensor], *given: Any) -> tuple[Tensor, Tensor]:
        (*args, probe), x, taped = given, state[0], torch.is_grad_enabled()
        with torch.enable_grad():
            leaf = x if taped and x.requires_grad else x.detach().requires_grad_()
            k = self.F(t, leaf, *args)

            def pull(v: Tensor) -> Tensor:
                (a,) = torch.autograd.grad(k, leaf, v.to(k.dtype), create_graph=taped, retain_graph=True)
                return a

            rates = torch.stack([regularisers[name](k, pull, probe).to(x.dtype) for name in self.names], 1)
        return (k, rates) if taped else (k.detach(), rates.detach())


def penalised(
    weights: DepthWeights,
    x: Tensor,
    interval: Sequence[Any],
    scheme: Scheme,
    factors: Mapping[str, float],
    ts: Any = None,
    args: tuple[Any, ...] = (),
) -> tuple[Solution, Tensor]:
    """Solve, and integrate regularisers with the solver's own quadrature: Σ_i factor_i mean_b ∫ ρ_i dt.

    Estimates of steps are summed, Σ_i factor_i mean_b Σ_n |h_n| ρ_i(step n): each step is taken again from its start.

    The state takes the steps that it takes without them: they are left out of the error norm. Their gradient is as
    exact as the gradient method, and takes no more of its memory than one step does.

    Args:
        weights: F with its weights over depth.
        x: (batch, ...) state at t0.
        interval: (t0, t1).
        scheme: how depth is walked.
        factors: weight of each regulariser in the sum.
        ts: times of the answer, or None for t1.
        args: handed to F after (t, x).

    Returns:
        The solution for x, and the sum, a 0-d tensor.

    Reference:
        Finlay et al. 2020, How to Train Your Neural ODE (one probe for a solve).
    """
    estimates = {name: regularisers[name] for name in factors if isinstance(regularisers[name], Estimate)}
    integrals = [name for name in factors if name not in estimates]
    for estimate in estimates.values():
        estimate.check(scheme)
    ends = StepEnds(Estimates(list(estimates.values()))) if estimates else None
    t0, t1 = (torch.as_tensor(t, dtype=torch.float64).detach() for t in interval)
    direction = torch.where(t1 >= t0, 1, -1).to(x.device).reshape(-1, 1)  # where samples have intervals, of each
    parts: dict[str, Tensor] = {}
    if integrals:
        probe = torch.randint(0, 2, x.shape, device=x.device).to(x.dtype) * 2 - 1
        state = (x, x.new_zeros(len(x), len(integrals)))
        if scheme.adaptive:
            norm = scheme.norm or (rms_each if scheme.per_sample else rms if scheme.backend == "native" else _rms)
            rtol, atol = ((tol, 1.0) if isinstance(tol, Tensor) else tol for tol in (scheme.rtol, scheme.atol))
            scheme = scheme.but(norm=lambda tree: norm(tree[0]), rtol=rtol, atol=atol)
        if scheme.per_sample:
            scheme = scheme.but(per_sample_args=_with_probe(scheme.per_sample_args, args, len(x)))
        solution = run(Penalised(weights, integrals), state, interval, scheme, ts, (*args, probe), ends=ends)
        parts |= zip(integrals, (direction * solution.last[1]).mean(0), strict=True)
        solution = first_part(solution)
    else:
        solution = run(weights, x, interval, scheme, ts, args, ends=ends)
    if ends is not None:
        parts |= zip(estimates, total_of(ends, len(estimates)).mean(0), strict=True)
    return solution, torch.stack([factor * parts[name] for name, factor in factors.items()]).sum()


def first_part(solution: Solution) -> Solution:
    """A solution of pairs as one of their first parts."""
    if isinstance(solution, SampleSolution):
        unpack = solution.unpack
        solution.unpack = lambda packed, *more: unpack(packed, *more)[0]
        return solution
    states = [solution.unpacked(packed)[0] for packed in solution.states]
    return Solution(states, solution.times, solution.stats, error=solution.error)


def _with_probe(own: Any, args: tuple[Any, ...], batch: int) -> Any:
    """Which arguments hold a row for each sample, the probe after them included."""
    return own if own is True else (*sorted(check_own_args(args, own, batch)), len(args))


def _rms(x: Tensor) -> Tensor:
    """√(mean |x|²) as a tensor, which torchdiffeq asks for."""
    return x.abs().square().mean().sqrt()


def check_regularisers(factors: Mapping[str, float] | None, scheme: Scheme) -> dict[str, float]:
    """The factors, checked.

    Args:
        factors: of the regularisers, by name.
        scheme: how depth is walked.

    Raises:
        UnknownNameError: there is no such regulariser.
        InputError: a factor is not a non-negative number, or the scheme's steps give no such estimate.
    """
    for name, factor in (factors or {}).items():
        regulariser = regularisers[name]
        if isinstance(regulariser, Estimate):
            if scheme.per_sample:
                raise InputError(
                    f"regulariser {name!r} is an estimate of steps that all samples share; with per_sample=True use "
                    "'kinetic' or 'jacobian'"
                )
            if scheme.backend != "native":
                raise InputError(
                    f"regulariser {name!r} is an estimate of each step, which backend='native' knows, "
                    f"got backend={scheme.backend!r}; use 'kinetic' or 'jacobian' with it"
                )
            regulariser.check(scheme)
        else:
            _check_integral(name, scheme)
        if not isinstance(factor, int | float) or isinstance(factor, bool) or not 0 <= factor < float("inf"):
            raise InputError(f"the factor of regulariser {name!r} must be a non-negative number, got {factor!r}")
    return dict(factors or {})


def _check_integral(name: str, scheme: Scheme) -> None:
    """Raise `InputError` if the scheme cannot walk a quadrature beside the state."""
    if scheme.backend == "scipy":
        raise InputError(
            f"regulariser {name!r} is a quadrature that must not change the steps, which backend='scipy' cannot leave "
            "out of its error norm; use backend='native' or 'torchdiffeq'"
        )
    if scheme.backend == "native" and solvers[scheme.solver].partitioned:
        raise InputError(
            f"regulariser {name!r} is a quadrature beside the state, and solver {scheme.solver!r} takes the state as a "
            "pair (q, p); use regulariser 'stiffness', or solver='rk4'"
        )

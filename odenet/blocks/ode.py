"""`ODEBlock`: F walked as an ODE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from odenet.blocks.block import Block
from odenet.depth import weights_over_depth
from odenet.errors import InputError
from odenet.solve import make_scheme
from odenet.solvers.control import MAX_STEPS


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
            options=options or None,
            gradient_options=gradient_options or None,
            **numerics,
        )
        super().__init__(weights_over_depth(F, weights, steps), scheme, t0, t1, regularisers)
        if warm_start and (not scheme.adaptive or scheme.per_sample or first_step is not None):
            raise InputError(
                "warm_start=True remembers a first step, so it needs an adaptive solve without first_step "
                "and without per_sample"
            )
        self.warm_start = warm_start

"""`ResNet`: F walked in steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from odenet.blocks.block import Block
from odenet.blocks.distillation import Distillation
from odenet.depth import weights_over_depth
from odenet.errors import InputError
from odenet.solve import make_scheme
from odenet.solvers.control import MAX_STEPS


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
            options=options or None,
            gradient_options=gradient_options or None,
        )
        super().__init__(weights_over_depth(F, weights, steps), scheme, t0, t1, regularisers)

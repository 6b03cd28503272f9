"""Do the block's steps lie inside the stability region of its solver?"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from odenet.blocks import Block
from odenet.diagnostics.jacobian import lipschitz, ritz_values
from odenet.diagnostics.path import as_time, evaluated, follow, places, slope_on
from odenet.diagnostics.result import Curves, Result, diagnostic
from odenet.errors import InputError
from odenet.gradients.registry import gradients
from odenet.gradients.reversal import ReversibleForm
from odenet.solvers.registry import solvers
from odenet.solvers.scheme import Scheme
from odenet.solvers.stability import stability_roots
from odenet.solvers.stepper import Stepper

PLACES, SAMPLES, ROOM = 8, 8, 1e-3
PARASITES, LARGEST = 10.0, 700.0


@dataclass(frozen=True)
class Stability(Result):
    """Attributes:
    solver: whose roots are meant; the Euler method's where the block's own has none, "reversible rk4" where the
        gradient method walks a form of it.
    method: the same as a stepper.
    depths: where the Jacobian was taken.
    h: size of the step there.
    lipschitz: (places, samples) ‖∂F/∂x‖₂.
    eigenvalues: (places, samples, k) λ of ∂F/∂x, Ritz values.
    z: h λ.
    amplification: largest |R(h λ)| over those with Re λ ≤ 0, which the flow does not amplify; R is the principal root.
    outside: share of these with |R(h λ)| > 1.
    flips: share of the (place, sample) pairs with a real λ and R(h λ) < 0: a step that turns the state inside out,
        which no flow does.
    parasites: what the other roots of a method with memory may have made of an error of size 1 at the end of depth:
        Π_n max(1, |root(h_n λ_n)|) over those with Re λ ≤ 0; 1 for a method without memory.
    h_lipschitz: largest h ‖∂F/∂x‖₂.
    """

    solver: str
    method: Stepper = field(repr=False)
    depths: list[float]
    h: list[float]
    lipschitz: Tensor
    eigenvalues: Tensor
    z: Tensor
    amplification: float
    outside: float
    flips: float
    parasites: float
    h_lipschitz: float

    def numbers(self) -> dict[str, Any]:
        return {name: value for name, value in super().numbers().items() if name != "method"}


def stability_function(solver: str, z: Tensor) -> Tensor:
    """R(z): what one step of size 1 makes of x = 1 under x' = z x.

    Args:
        solver: name of a native one-step method.
        z: complex, any shape.

    Raises:
        InputError: a multistep or symplectic method, whose step is no function of z alone; `stability_roots` has the
            roots of the former.
    """
    roots = stability_roots(solvers[solver], z)
    if roots.shape[-1] > 1:
        raise InputError(
            f"solver {solver!r} has no stability function of one step but {roots.shape[-1]} roots; use stability_roots"
        )
    return roots[..., 0]


def largest_root(method: Stepper, z: Tensor) -> Tensor:
    """The largest |root| of a step under x' = z x; below 1 nothing is amplified."""
    return stability_roots(method, z).abs().amax(-1)


def _taken(scheme: Scheme) -> tuple[str, Stepper]:
    """What takes a block's steps, and its name; Euler's where that is no function of z."""
    gradient = gradients[scheme.gradient]
    if scheme.backend != "native" or solvers[scheme.solver].partitioned:
        return "euler", solvers["euler"]
    if isinstance(gradient, ReversibleForm):
        return f"{scheme.gradient} {scheme.solver}", gradient.form(scheme)
    return scheme.solver, solvers[scheme.solver]


@diagnostic(
    "stability",
    title="Jacobian spectrum and stability region",
    formula="λ ∈ spec ∂F/∂x(t_n, x_n), |R(h λ)| ≤ 1 where Re λ ≤ 0; ‖∂F/∂x‖₂",
    reference="Haber and Ruthotto 2017, Stable Architectures for Deep Neural Networks; Hairer and Wanner 1996, section "
    "IV.2",
)
def stability(
    block: Block, x: Tensor, size: int = 16, most: int = PLACES, samples: int = SAMPLES, seed: int = 0
) -> Stability:
    """Lipschitz constants and eigenvalues of ∂F/∂x along depth, against the solver's stability region.

    No Jacobian is formed: the eigenvalues are Ritz values of Arnoldi's iteration, the Lipschitz constant comes from a
    power iteration on JᵀJ (from below).

    Args:
        block: the block.
        x: (batch, ...) states at t0.
        size: Ritz values of a sample at a place.
        most: places along depth, at most.
        samples: samples of the batch, at most.
        seed: of the first vectors.

    Returns:
        It passes if no decaying mode is amplified by a step and no step turns the state inside out. The parasites of a
        method with memory begin at the size of the error, and may grow tenfold over all of depth.
    """
    path = follow(block, x[:samples])
    at = places(len(path.slopes), most)
    sigmas, eigenvalues = [], []
    with evaluated(block):
        for i in at:
            F, t = slope_on(block, path.ts[i], path.ts[i + 1]), as_time(path.ts[i], x)
            sigmas.append(lipschitz(partial(F, t), path.states[i], seed=seed))
            eigenvalues.append(ritz_values(partial(F, t), path.states[i], size, seed))
    h = torch.tensor([path.h[i] for i in at], dtype=torch.float64)
    sigma, lam = torch.stack(sigmas).double().cpu(), torch.stack(eigenvalues).to(torch.complex128).cpu()
    z = h[:, None, None] * lam
    solver, method = _taken(block.scheme)
    roots = stability_roots(method, z)
    R, parasites = roots[..., 0], roots[..., 1:].abs()
    real = z.imag.abs() <= 1e-6 * z.abs()
    decaying = z.real <= 0
    amplified = R.abs()[decaying]
    amplification = float(amplified.max()) if len(amplified) else 0.0
    outside = float((amplified > 1 + ROOM).double().mean()) if len(amplified) else 0.0
    flips = float((real & (R.real < 0)).any(-1).double().mean())
    growth = _grown(parasites.masked_fill(~decaying[..., None], 1.0), len(path.slopes))
    h_lipschitz = float((h.abs()[:, None] * sigma).max())
    depths, steps = [path.ts[i] for i in at], h.tolist()
    result = Stability(solver, method, depths, steps, sigma, lam, z, amplification, outside, flips, growth, h_lipschitz)
    text = f"h‖∂F/∂x‖ is up to {h_lipschitz:.2g}; a step of {solver} multiplies decaying modes by up to "
    text += f"{amplification:.2g} ({100 * outside:.2g} % lie outside its stability region)"
    if growth > 1 + ROOM:
        text += f", and its other roots multiply errors by up to {growth:.2g} over depth"
    if flips:
        text += f"; {100 * flips:.2g} % of the steps turn a direction inside out"
    result.judged(outside == 0 and flips == 0 and growth <= PARASITES, text, Curves("Re hλ", "Im hλ", []))
    return result


def _grown(parasites: Tensor, steps: int) -> float:
    """Π over all steps of the largest root, at least 1; the places where it is known stand for those around them."""
    if not parasites.numel():
        return 1.0
    logs = parasites.flatten(1).amax(1).clamp(min=1.0).log()
    return math.exp(min(float(logs.mean()) * steps, LARGEST))

"""Do the block's steps lie inside the stability region of its solver?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from odenet.blocks import Block
from odenet.diagnostics.jacobian import lipschitz, ritz_values
from odenet.diagnostics.path import as_time, evaluated, follow, places, slope_on
from odenet.diagnostics.result import Curves, Result, diagnostic
from odenet.errors import InputError
from odenet.solve import solve
from odenet.solvers.registry import solvers
from odenet.solvers.stepper import Span

PLACES, SAMPLES, ROOM = 8, 8, 1e-3


@dataclass(frozen=True)
class Stability(Result):
    """Attributes:
    solver: whose stability function R is meant; the Euler method's where the block's own has none.
    depths: where the Jacobian was taken.
    h: size of the step there.
    lipschitz: (places, samples) ‖∂F/∂x‖₂.
    eigenvalues: (places, samples, k) λ of ∂F/∂x, Ritz values.
    z: h λ.
    amplification: largest |R(h λ)| over those with Re λ ≤ 0, which the flow does not amplify.
    outside: share of these with |R(h λ)| > 1.
    flips: share of the (place, sample) pairs with a real λ and R(h λ) < 0: a step that turns the state inside out,
        which no flow does.
    h_lipschitz: largest h ‖∂F/∂x‖₂.
    """

    solver: str
    depths: list[float]
    h: list[float]
    lipschitz: Tensor
    eigenvalues: Tensor
    z: Tensor
    amplification: float
    outside: float
    flips: float
    h_lipschitz: float


def stability_function(solver: str, z: Tensor) -> Tensor:
    """R(z): what one step of size 1 makes of x = 1 under x' = z x.

    Args:
        solver: name of a native one-step method.
        z: complex, any shape.

    Raises:
        InputError: a multistep or symplectic method, whose step is no function of z alone.
    """
    method = solvers[solver]
    one = torch.ones(2, dtype=torch.complex128)
    memory = method.start(lambda t, x: x, 0.0, one)
    kept = method.step(lambda t, x: x, Span(0, 0.0, 1.0, 1.0), one, memory).memory
    if method.partitioned or memory.tensors or kept.tensors:
        raise InputError(f"solver {solver!r} has no stability function of one step")
    flat = z.to(torch.complex128).reshape(-1)
    with torch.no_grad():
        y = solve(lambda t, x: flat * x, torch.ones_like(flat), (0.0, 1.0), solver=solver, steps=1).last
    return y.reshape(z.shape)


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
        It passes if no decaying mode is amplified by a step and no step turns the state inside out.
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
    solver = block.scheme.solver if block.scheme.backend == "native" else "euler"
    try:
        R = stability_function(solver, z)
    except InputError:
        solver, R = "euler", 1 + z
    real = z.imag.abs() <= 1e-6 * z.abs()
    decaying = z.real <= 0
    amplified = R.abs()[decaying]
    amplification = float(amplified.max()) if len(amplified) else 0.0
    outside = float((amplified > 1 + ROOM).double().mean()) if len(amplified) else 0.0
    flips = float((real & (R.real < 0)).any(-1).double().mean())
    h_lipschitz = float((h.abs()[:, None] * sigma).max())
    depths, steps = [path.ts[i] for i in at], h.tolist()
    result = Stability(solver, depths, steps, sigma, lam, z, amplification, outside, flips, h_lipschitz)
    text = f"h‖∂F/∂x‖ is up to {h_lipschitz:.2g}; a step of {solver} multiplies decaying modes by up to "
    text += f"{amplification:.2g} ({100 * outside:.2g} % lie outside its stability region)"
    if flips:
        text += f"; {100 * flips:.2g} % of the steps turn a direction inside out"
    result.judged(outside == 0 and flips == 0, text, Curves("Re hλ", "Im hλ", []))
    return result

"""What the methods carry beside the state may be off by (-1)^n c: steps begin small and change gently."""

import pytest
import torch

import odenet
from odenet.solvers import solvers
from odenet.solvers.control import first_step
from odenet.solvers.stepper import Span
from tests.oracles.problems import VOLTERRA_X0, lotka_volterra, lotka_volterra_invariant

REVERSIBLE = ["alf", "reversible_heun"]
X = torch.tensor([[0.7, -0.2]], dtype=torch.float64)


def F(t, x):
    return torch.stack([x[:, 1] * (1 + t), -x[:, 0].sin()], 1)


@pytest.mark.parametrize("solver", REVERSIBLE)
def test_the_estimate_is_the_error_of_eulers_step(solver):
    """Of alf h (u - v), of reversible_heun h/2 (f⁺ - f): of a first step both are h²/2 x'' + O(h³)."""
    stepper, errors = solvers[solver], []
    second = torch.func.jvp(F, (torch.tensor(0.3).double(), X), (torch.tensor(1.0).double(), F(0.3, X)))[1]
    for h in (1e-2, 1e-3):
        trial = stepper.step(F, Span(0, 0.3, 0.3 + h, h), X, stepper.start(F, 0.3, X), error=True)
        errors.append(float((trial.error / h**2 - second / 2).abs().max()))
    assert 5 < errors[0] / errors[1] < 20 and errors[1] < 1e-2 * float(second.abs().max())


@pytest.mark.parametrize("solver", REVERSIBLE)
@pytest.mark.parametrize("per_sample", [False, True])
def test_the_first_step_is_the_one_that_eulers_order_asks_for(solver, per_sample):
    solution = odenet.solve(F, X, (0.0, 1.0), solver=solver, rtol=1e-6, atol=1e-6, per_sample=per_sample)
    h = first_step(F, X, F(0.0, X), (0.0, 1.0), 1, 1e-6, 1e-6)
    sizes = solution.stats.samples.h[0] if per_sample else solution.stats.h
    assert float(sizes[0]) == pytest.approx(h, rel=1e-6)
    assert h < 1e-3 < first_step(F, X, F(0.0, X), (0.0, 1.0), 2, 1e-6, 1e-6)


@pytest.mark.parametrize("solver", REVERSIBLE)
@pytest.mark.parametrize("tolerance", [1e-3, 1e-4])
def test_lotka_and_volterras_orbits_are_kept_in_as_many_steps_as_their_curvature_asks_for(solver, tolerance):
    """diffrax 0.7.2's ReversibleHeun takes 6,797 steps at 1e-4, with 1,500 times the tolerance, and 60,000 do not do
    at 1e-3."""
    before = lotka_volterra_invariant(VOLTERRA_X0)
    solution = odenet.solve(lotka_volterra, VOLTERRA_X0, (0, 10), solver=solver, rtol=tolerance, atol=tolerance)
    error = (lotka_volterra_invariant(solution.last) / before - 1).abs().max()
    assert error < 8 * tolerance
    assert solution.stats.accepted + solution.stats.rejected < 1.2 * 13.3 * tolerance**-0.5
    heun = odenet.solve(lotka_volterra, VOLTERRA_X0, (0, 10), solver="adaptive_heun", rtol=tolerance, atol=tolerance)
    assert solution.stats.accepted < 1.2 * heun.stats.accepted

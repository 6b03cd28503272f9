"""Symplectic methods: energy over long times, symplecticity of the step, the state as a pair."""

import math

import pytest
import torch

import odenet
from odenet.solvers import solvers
from tests.oracles import Counted

PARTITIONED = [name for name, solver in solvers.items() if solver.partitioned]


def kepler(t, x):
    q, p = x.chunk(2, -1)
    return torch.cat([p, -q / q.norm(dim=-1, keepdim=True) ** 3], -1)


def kepler_energy(x):
    q, p = x.chunk(2, -1)
    return p.square().sum(-1) / 2 - 1 / q.norm(dim=-1)


def orbit(eccentricity):
    e = torch.as_tensor(eccentricity, dtype=torch.float64)
    zero = torch.zeros_like(e)
    return torch.stack([1 - e, zero, zero, ((1 + e) / (1 - e)).sqrt()], -1)


@pytest.mark.parametrize("solver", PARTITIONED)
def test_the_energy_error_of_an_orbit_stays_bounded_where_that_of_rk4_and_heun_drifts(solver):
    x0, ts = orbit([0.3, 0.5]), torch.linspace(0, 80 * math.pi, 997, dtype=torch.float64).tolist()

    def drift(name, steps=40 * 120):
        ys = odenet.solve(kepler, x0, (0, ts[-1]), solver=name, steps=steps, ts=ts, max_steps=20_000).ys
        return (kepler_energy(ys) - kepler_energy(x0)).abs().amax(1)

    def late_over_early(error):
        return error[-100:].max() / error[:100].max()

    error, drifting = drift(solver), drift({1: "euler", 2: "heun2", 4: "rk4"}[solvers[solver].order])
    assert late_over_early(error) < 1.2
    assert late_over_early(drifting) > 2 or drifting.max() > 10 * error.max()


@pytest.mark.parametrize("solver", PARTITIONED)
def test_the_step_is_symplectic(solver):
    """∂Ψᵀ J ∂Ψ = J."""
    x0 = torch.tensor([0.4, -1.0, 0.3, 0.8], dtype=torch.float64)
    step = lambda x: odenet.solve(kepler, x, (0, 0.3), solver=solver, steps=1).last  # noqa: E731
    jacobian = torch.autograd.functional.jacobian(step, x0)
    eye, zero = torch.eye(2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    J = torch.cat([torch.cat([zero, eye], 1), torch.cat([-eye, zero], 1)])
    torch.testing.assert_close(jacobian.T @ J @ jacobian, J, rtol=0, atol=1e-13)


@pytest.mark.parametrize("solver", ["leapfrog", "yoshida4"])
def test_a_symmetric_step_is_undone_by_the_step_back(solver):
    x0 = orbit([0.3])
    there = odenet.solve(kepler, x0, (0, 5), solver=solver, steps=50).last
    torch.testing.assert_close(odenet.solve(kepler, there, (5, 0), solver=solver, steps=50).last, x0)


@pytest.mark.parametrize(
    ("solver", "each", "once"), [("symplectic_euler", 2, 0), ("leapfrog", 2, 1), ("yoshida4", 6, 1)]
)
def test_a_step_costs_what_is_documented(solver, each, once):
    F = Counted(kepler)
    odenet.solve(F, orbit([0.1]), solver=solver, steps=9)
    assert F.calls == 9 * each + once


@pytest.mark.parametrize("solver", PARTITIONED)
def test_leapfrog_is_the_textbook_velocity_verlet_on_any_axis(solver):
    """Images: (batch, 2 channels, ...); a 1-d state; the same numbers."""
    flat = orbit([0.3, 0.6])

    def image_field(t, x):
        return kepler(t, x.flatten(1)).reshape(x.shape)

    expected = odenet.solve(kepler, flat, (0, 1), solver=solver, steps=7).last
    images = odenet.solve(image_field, flat.reshape(2, 2, 2, 1), (0, 1), solver=solver, steps=7).last
    torch.testing.assert_close(images.reshape(2, 4), expected)
    alone = odenet.solve(kepler, flat[0], (0, 1), solver=solver, steps=7).last
    torch.testing.assert_close(alone, expected[0])


@pytest.mark.parametrize("solver", PARTITIONED)
def test_a_state_without_two_halves_is_refused(solver):
    for shape in [(2, 3), (), (5,), (4, 1, 6)]:
        F = Counted(lambda t, x: x)
        with pytest.raises(odenet.errors.InputError, match=r"pair \(q, p\)"):
            odenet.solve(F, torch.ones(shape), solver=solver, steps=2)
        assert F.calls == 0

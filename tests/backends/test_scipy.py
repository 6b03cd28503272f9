"""SciPy's solvers behind the same call: solve_ivp's numbers, exact landing, statistics, failures, no gradient."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import odenet
from odenet.errors import GradientError, InputError, StepBudgetError
from odenet.solvers import backends
from tests.oracles import PROBLEMS, Counted

METHODS = backends["scipy"].methods()
COMPLEX = ["RK23", "RK45", "DOP853", "BDF"]


@pytest.mark.parametrize("solver", METHODS)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_the_tolerance_governs_the_error(solver, problem):
    t0, t1 = problem.interval
    ts = [t0, 0.37 * t1, t1]
    solution = odenet.solve(
        problem.F, problem.x0, (t0, t1), backend="scipy", solver=solver, rtol=1e-9, atol=1e-9, ts=ts, max_steps=50_000
    )
    truth = torch.stack([problem.answer(t) for t in ts])
    torch.testing.assert_close(solution.ys, truth, rtol=0, atol=2e-6 if solver in ("BDF", "LSODA") else 2e-7)


@pytest.mark.parametrize("solver", METHODS)
def test_it_is_solve_ivp(solver):
    problem = PROBLEMS[1]
    F = Counted(problem.F)
    solution = odenet.solve(F, problem.x0, (0, 2), backend="scipy", solver=solver, rtol=1e-6, atol=1e-6)

    def f(t, y):
        return (
            problem.F(torch.tensor(t, dtype=torch.float64), torch.tensor(y).reshape(problem.x0.shape)).numpy().ravel()
        )

    reference = solve_ivp(f, (0, 2), problem.x0.numpy().ravel(), solver, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(solution.last.numpy().ravel(), reference.y[:, -1], rtol=1e-13)
    assert solution.stats.accepted == len(reference.t) - 1
    assert solution.stats.h == pytest.approx(list(np.diff(reference.t)))
    assert solution.stats.nfe == F.calls >= reference.nfev


@torch.no_grad()
@pytest.mark.parametrize("solver", METHODS)
def test_stops_knots_dense_output_and_backwards(solver):
    layers = [odenet.residual.MLP(2, width=4, layers=1).double() for _ in range(2)]
    flow = odenet.depth.PiecewiseConstant(layers)
    x0 = torch.randn(3, 2, dtype=torch.float64)
    options = {"backend": "scipy", "solver": solver, "rtol": 1e-9, "atol": 1e-9, "max_steps": 50_000}
    there = odenet.solve(flow, x0, (0, 1), stops=[0.3], dense=True, **options)
    reached = np.cumsum([0.0, *there.stats.h])
    for t in (0.3, 0.5, 1.0):
        assert np.abs(reached - t).min() < 1e-12
    fine = odenet.solve(flow, x0, (0, 1), solver="dopri5", rtol=1e-11, atol=1e-11, ts=[0.2, 0.6, 1.0])
    torch.testing.assert_close(torch.stack([there(t) for t in (0.2, 0.6, 1.0)]), fine.ys, rtol=1e-5, atol=1e-6)
    reverse = odenet.depth.PiecewiseConstant(layers[::-1])
    back = odenet.solve(reverse, there.last, (1, 0), **options).last
    torch.testing.assert_close(back, x0, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver", COMPLEX)
def test_complex_and_float32_states_keep_their_dtype(solver):
    x0 = torch.tensor([[1 + 2j]], dtype=torch.complex64)
    last = odenet.solve(lambda t, x: 1.3j * x, x0, backend="scipy", solver=solver, rtol=1e-6, atol=1e-6).last
    torch.testing.assert_close(last, x0 * complex(math.cos(1.3), math.sin(1.3)), rtol=2e-4, atol=2e-4)


def test_what_it_cannot_do_is_said():
    x = torch.ones(2, 2, requires_grad=True)
    with pytest.raises(GradientError, match="RK45 of backend 'scipy' runs in NumPy"):
        odenet.solve(lambda t, x: -x, x, backend="scipy", solver="RK45")
    with pytest.raises(InputError, match="do not take norm"):
        odenet.solve(lambda t, x: -x, x, backend="scipy", solver="RK45", norm=torch.linalg.vector_norm)
    with pytest.raises(InputError, match="LSODA takes real states only"):
        odenet.solve(lambda t, x: -x, x.detach().cfloat(), backend="scipy", solver="LSODA")
    with pytest.raises(InputError, match="picks its own steps"):
        odenet.solve(lambda t, x: -x, x.detach(), backend="scipy", solver="RK45", steps=3)
    with pytest.raises(InputError, match="walks the steps of backend='native'"):
        odenet.solve(lambda t, x: -x, x.detach(), backend="scipy", solver="RK45", gradient="checkpoint")
    with pytest.raises(StepBudgetError, match="budget of 5 steps"):
        odenet.solve(lambda t, x: torch.cos(99 * t) + 0 * x, x.detach(), backend="scipy", solver="RK45", max_steps=5)


def test_options_reach_scipy():
    def stiff(t, x):
        return -1000 * (x - torch.cos(t))

    x0 = torch.zeros(1, 2, dtype=torch.float64)
    jac = -1000 * np.eye(2)
    solve = lambda **more: odenet.solve(stiff, x0, backend="scipy", solver="Radau", **more).stats.nfe  # noqa: E731
    assert solve(options={"jac": jac}) < solve()
    with pytest.raises(InputError, match="unknown option of solver 'Radau' 'lband'"):
        solve(options={"lband": 1})

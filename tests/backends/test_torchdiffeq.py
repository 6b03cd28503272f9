"""The torchdiffeq backend: its methods, called directly, are the oracle."""

import pytest
import torch
import torchdiffeq

import odenet
from odenet.gradients import gradients
from odenet.solvers import backends
from tests.oracles import PROBLEMS

METHODS = backends["torchdiffeq"].methods()
FIXED = [name for name, method in METHODS.items() if method.fixed]
ADAPTIVE = [name for name, method in METHODS.items() if method.adaptive]
STEPPING = [name for name in ADAPTIVE if name != "scipy_solver"]
USABLE = [name for name, method in gradients.items() if "torchdiffeq" in method.backends]


def test_every_method_of_the_installed_torchdiffeq_is_offered():
    from torchdiffeq._impl.odeint import SOLVERS

    assert set(METHODS) == set(SOLVERS) == set(odenet.list_solvers("torchdiffeq"))


@pytest.mark.parametrize("gradient", USABLE)
@pytest.mark.parametrize("solver", FIXED)
def test_a_fixed_method_gives_torchdiffeqs_own_answer_on_the_same_grid(solver, gradient, x):
    F = odenet.residual.MLP(3, width=8, time="concat").double()
    grid = torch.linspace(0.5, 2, 9, dtype=torch.float64)
    expected = torchdiffeq.odeint(F, x, grid, method=solver)
    solution = odenet.solve(
        F, x, (0.5, 2.0), solver=solver, steps=8, backend="torchdiffeq", gradient=gradient, ts=grid.tolist()
    )
    torch.testing.assert_close(solution.ys, expected, rtol=1e-12, atol=1e-12)
    end = odenet.solve(F, x, (0.5, 2.0), solver=solver, steps=8, backend="torchdiffeq", gradient=gradient).last
    torch.testing.assert_close(end, expected[-1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gradient", USABLE)
@pytest.mark.parametrize(
    ("problem", "solver"),
    [
        pytest.param(p, n, id=f"{p.name}-{n}", marks=() if n == "dopri5" or p in PROBLEMS[:2] else pytest.mark.slow)
        for p in PROBLEMS
        for n in ADAPTIVE
        if n != "fehlberg2"  # misses its tolerance 1000-fold
    ],
)
def test_an_adaptive_method_meets_the_truth(problem, solver, gradient):
    tolerance = 1e-5 if METHODS[solver].order == 2 else 1e-8
    if solver == "scipy_solver" and gradient == "autograd":
        gradient = "adjoint"
    solution = odenet.solve(
        problem.F, problem.x0, problem.interval, solver=solver, rtol=tolerance, atol=tolerance,
        backend="torchdiffeq", gradient=gradient,
    )  # fmt: skip
    error = (solution.last - problem.answer(problem.interval[1])).abs().max()
    assert error < 1000 * tolerance


@pytest.mark.parametrize("gradient", USABLE)
@pytest.mark.parametrize("solver", STEPPING)
def test_an_adaptive_method_gives_torchdiffeqs_own_answer_made_to_land_on_the_end(solver, gradient, x):
    F = odenet.residual.MLP(3, width=8, time="concat").double()
    ts = torch.tensor([0.0, 0.3, 1.1], dtype=torch.float64)
    for sign in (1, -1):
        options = {"step_t": sign * ts[-1:]}
        expected = torchdiffeq.odeint(F, x, sign * ts, method=solver, rtol=1e-4, atol=1e-4, options=options)
        got = odenet.solve(
            F, x, (0, sign * 1.1), solver=solver, backend="torchdiffeq", gradient=gradient, rtol=1e-4, atol=1e-4,
            ts=sign * ts,
        )  # fmt: skip
        torch.testing.assert_close(got.ys, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", STEPPING)
def test_the_end_is_landed_on_where_torchdiffeq_alone_interpolates_from_beyond(solver):
    def F(t, x):
        assert 0 <= float(t) <= 1, "outside"
        return torch.cos(t) * x

    x0 = torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(AssertionError, match="outside"):
        torchdiffeq.odeint(F, x0, torch.tensor([0.0, 1.0], dtype=torch.float64), method=solver, rtol=1e-3, atol=1e-3)
    odenet.solve(F, x0, solver=solver, backend="torchdiffeq")


@pytest.mark.parametrize("solver", ["dopri5", "bosh3", "rk4"])
def test_the_adjoint_gives_torchdiffeqs_own_gradient_when_all_is_equal(solver, x):
    # of an F without t: torchdiffeq counts the gradient of t in its error norm, to no purpose
    F = odenet.residual.MLP(3, width=8).double()
    fixed = METHODS[solver].fixed
    options = {"step_t": torch.tensor([1.0], dtype=torch.float64)} if not fixed else {"step_size": 0.25}
    back = {"step_t": torch.tensor([0.0], dtype=torch.float64)} if not fixed else {"step_size": 0.25}
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    y = torchdiffeq.odeint_adjoint(
        F, x, ends, method=solver, rtol=1e-4, atol=1e-4, options=options, adjoint_options=back
    )[-1]
    expected = torch.autograd.grad(y.square().sum(), list(F.parameters()))
    numerics = {"steps": 4} if fixed else {"rtol": 1e-4, "atol": 1e-4}
    got = odenet.solve(
        F, x, solver=solver, gradient="adjoint", backend="torchdiffeq", gradient_options={"norm": "full"}, **numerics
    ).last
    torch.testing.assert_close(got, y, rtol=1e-12, atol=1e-12)
    for a, b in zip(torch.autograd.grad(got.square().sum(), list(F.parameters())), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_options_reach_torchdiffeq(x):
    F = odenet.residual.MLP(3, width=8).double()

    def nfe(options=None, **numerics):
        return odenet.solve(F, x, backend="torchdiffeq", rtol=1e-6, atol=1e-6, options=options, **numerics).stats.nfe

    assert nfe(h_max=0.01) > 500 > nfe()
    assert nfe({"safety": 0.1}) > nfe()


@pytest.mark.parametrize("solver", ["dopri5", "midpoint"])
def test_native_and_torchdiffeq_agree(solver, x):
    F = odenet.residual.MLP(3, width=8, time="concat").double()
    numerics = {"steps": 10} if solver == "midpoint" else {"rtol": 1e-9, "atol": 1e-9}
    a, b = (
        odenet.solve(F, x, (0, 2), solver=solver, backend=backend, **numerics).last
        for backend in ("native", "torchdiffeq")
    )
    limit = 1e-12 if solver == "midpoint" else 1e-7
    torch.testing.assert_close(a, b, rtol=limit, atol=limit)

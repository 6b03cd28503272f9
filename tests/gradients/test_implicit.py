"""Gradients of implicit steps: by a dense matrix, by GMRES, of what F hides, and against a closed form."""

import pytest
import torch

import odenet
from tests.solvers.test_implicit import Heat, bumps


def without_matrices(monkeypatch):
    monkeypatch.setattr("odenet.solvers.newton.DENSE", 0)
    monkeypatch.setattr("odenet.solvers.implicit_function.DENSE", 0)


@pytest.mark.parametrize(("gradient", "solver"), [("autograd", "radau5"), ("checkpoint", "kvaerno3")])
def test_gmres_gives_the_gradients_of_the_dense_matrix_and_their_derivatives(gradient, solver, monkeypatch):
    F = odenet.residual.MLP(3, width=6, layers=1, time="concat").double()
    x0 = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def derivatives():
        last = odenet.solve(F, x0, gradient=gradient, solver=solver, steps=2).last
        first = torch.autograd.grad(last.square().sum(), [x0, *F.parameters()], create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), [x0, *F.parameters()])
        return [*first, *second]

    dense = derivatives()
    without_matrices(monkeypatch)
    for a, b in zip(derivatives(), dense, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("gradient", ["autograd", "checkpoint"])
def test_the_gradient_of_the_heat_equation_is_the_heat_equation(gradient):
    """c -> ∂<c, x(T)>/∂x0 is the solution operator, which is symmetric; 289 unknowns are solved without a matrix."""
    F, x0, c = Heat(17), bumps(17)[None, None].requires_grad_(), bumps(17)[None, None]
    last = odenet.solve(F, x0, (0, 0.01), solver="sdirk2", steps=8, gradient=gradient).last
    by_state, by_rate = torch.autograd.grad((c * last).sum(), [x0, F.rate])
    exact = F.answer(0.01, c)
    torch.testing.assert_close(by_state, exact, rtol=0, atol=0.02 * float(exact.abs().max()))
    h = 1e-4
    truth = float((c * (F.answer(0.01 * (1 + h), x0) - F.answer(0.01 * (1 - h), x0))).sum().detach()) / (2 * h)
    assert float(by_rate) == pytest.approx(truth, rel=0.02)


def test_an_exact_gradient_through_gmres_is_the_same_by_every_method():
    F = Heat(20)
    grads = []
    for gradient in ("autograd", "checkpoint"):
        x0 = bumps_of_seed().requires_grad_()
        last = odenet.solve(F, x0, (0, 0.01), solver="trapezoid", steps=3, gradient=gradient).last
        grads.append(torch.autograd.grad(last.square().sum(), [x0, F.rate]))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * float(b.abs().max()))


@pytest.mark.parametrize("options", [{}, {"checkpoints": 2}], ids=["every state", "two states"])
def test_a_step_taken_again_begins_where_it_began(options):
    """What Newton's method leaves of 1e-3 is the same on the way back: the former stages are part of what is kept."""
    F = odenet.residual.MLP(3, width=6, layers=1, time="concat").double()
    grads = []
    for gradient, chosen in (("autograd", {}), ("checkpoint", options)):
        x0 = torch.linspace(-2, 2, 6, dtype=torch.float64).reshape(2, 3).requires_grad_()
        solution = odenet.solve(
            F, x0, (0, 8), solver="radau5", rtol=1e-3, atol=1e-3, gradient=gradient, gradient_options=chosen
        )
        assert solution.stats.accepted > 4
        grads.append(torch.autograd.grad(solution.last.square().sum(), [x0, *F.parameters()]))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def bumps_of_seed():
    torch.manual_seed(3)
    return bumps(20)[None, None]


def test_the_gradient_of_a_stiff_relaxation():
    """x' = -λ (x - w): x(T) = w whatever x0, so the gradients are 1 and 0."""
    w, x0 = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (2.0, 5.0))
    for scheme in ({"solver": "radau5"}, {"solver": "implicit_euler", "steps": 4}, {"solver": "kvaerno5", "steps": 4}):
        last = odenet.solve(lambda t, x: -1e6 * (x - w), x0, gradient="checkpoint", **scheme).last
        by_w, by_x0 = torch.autograd.grad(last, (w, x0))
        assert float(by_w) == pytest.approx(1, abs=1e-6) and abs(float(by_x0)) < 1e-6

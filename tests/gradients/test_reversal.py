"""Methods that undo their steps: what they cost, and what they say when rounding has spoilt the way back."""

import itertools
import math
import warnings

import pytest
import torch

import odenet
from odenet.errors import GradientError, InputError
from odenet.gradients import gradients
from odenet.gradients.reversal import Undone
from odenet.solvers import solvers
from tests.oracles import FEW, Counted, backprop
from tests.oracles.problems import LINEAR_X0, A, linear

UNDONE = [name for name, method in gradients.items() if isinstance(method, Undone)]


def solver_of(gradient):
    return gradients[gradient].solvers()[0]


@pytest.mark.parametrize("gradient", ["mali", "reversible_heun"])
def test_a_step_back_is_one_evaluation_and_one_product(gradient, x):
    F = Counted(odenet.residual.MLP(3, width=5).double())
    x0 = x.clone().requires_grad_()
    for steps, outputs in ((5, [1.0]), (50, [1.0]), (50, [0.0, 0.2, 0.5, 1.0])):
        solution = odenet.solve(F, x0, solver=solver_of(gradient), steps=steps, gradient=gradient, ts=outputs)
        solution.ys.sum().backward()
        stats = solution.stats
        assert stats.nfe == stats.nfe_backward == stats.vjps == steps + 1
        assert stats.steps_backward == steps
    inside = odenet.solve(F, x0, solver=solver_of(gradient), steps=50, gradient=gradient, ts=[0.111, 0.112, 0.555])
    inside.ys.sum().backward()
    assert inside.stats.nfe_backward == 51 + 2


def diverge(gradient, **options):
    """Undo steps in single precision, with some rounding."""

    def F(t, x):
        return torch.sin(rate * x.flip(0))

    rate = torch.tensor(-1.5, requires_grad=True)
    x0 = torch.linspace(0.1, 1.3, 6, requires_grad=True)
    solution = odenet.solve(
        F, x0, (0, 2), solver=solver_of(gradient), gradient=gradient, steps=400, gradient_options=options
    )
    return solution, torch.autograd.grad(solution.last.sum(), (x0, rate))


@pytest.mark.parametrize("gradient", UNDONE)
def test_no_drift_no_word(gradient, x):
    F = odenet.residual.MLP(3, width=5)
    x0 = x.float().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = odenet.solve(F, x0, solver=solver_of(gradient), steps=30, gradient=gradient)
        solution.last.square().sum().backward()
    assert 0 <= solution.stats.drift < 1e-4


@pytest.mark.parametrize("gradient", UNDONE)
def test_drift_is_measured_and_said(gradient):
    with pytest.warns(UserWarning, match=rf"gradient='{gradient}' undid.*relative error of .* in x0, above max_drift"):
        solution, _ = diverge(gradient, max_drift=1e-12)
    assert solution.stats.drift > 1e-12
    with pytest.raises(GradientError, match="undid the steps down to a relative error"):
        diverge(gradient, max_drift=1e-12, on_drift="raise")
    with pytest.warns(UserWarning, match="computed again from stored states"):
        _, got = diverge(gradient, max_drift=1e-12, on_drift="recompute")
    scheme = {"solver": solver_of(gradient), "steps": 400}
    rate = torch.tensor(-1.5, requires_grad=True)
    x0 = torch.linspace(0.1, 1.3, 6, requires_grad=True)
    last = odenet.solve(lambda t, x: torch.sin(rate * x.flip(0)), x0, (0, 2), **scheme, **backprop(gradient)).last
    for a, b in zip(got, torch.autograd.grad(last.sum(), (x0, rate)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=0)


@pytest.mark.parametrize("gradient", UNDONE)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_drift": 0}, "max_drift must be a positive number"),
        ({"on_drift": "shrug"}, "on_drift must be one of warn, raise, recompute, got 'shrug'"),
        ({"bound": 1}, "unknown option of gradient='{gradient}' 'bound'"),
    ],
)
def test_options_are_checked_when_the_block_is_made(gradient, options, said):
    with pytest.raises(InputError, match=said.format(gradient=gradient)):
        odenet.ResNet(torch.sin, 3, solver=solver_of(gradient), gradient=gradient, gradient_options=options)


@pytest.mark.parametrize("gradient", [name for name in gradients if name not in FEW])
def test_a_block_may_be_followed_by_an_operation_in_place(gradient, x):
    F = odenet.residual.MLP(3, width=5).double()
    block = odenet.ResNet(F, 4, solver=solver_of(gradient), gradient=gradient)
    torch.relu_(block(x)).sum().backward()
    got = [p.grad.clone() for p in F.parameters()]
    F.zero_grad()
    torch.relu(block(x)).sum().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(got, F.parameters(), strict=True))


@pytest.mark.parametrize("solver", ["euler", "midpoint", "rk4", "dopri5"])
@pytest.mark.parametrize("coupling", [0.999, 1.0])
def test_a_coupled_method_keeps_the_order_of_the_method(solver, coupling):
    order = solvers[solver].order
    error = []
    for steps in (8, 16, 32):
        last = odenet.solve(
            linear, LINEAR_X0, (0, 2), solver=solver, steps=steps * (1 if order > 2 else 8),
            gradient="reversible", gradient_options={"coupling": coupling},
        ).last  # fmt: skip
        error.append(float((last - LINEAR_X0 @ torch.linalg.matrix_exp(2 * A).T).norm()))
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(error)]
    assert slopes[-1] > order - 0.2, slopes


@pytest.mark.parametrize("solver", ["euler", "midpoint", "rk4", "dopri5"])
def test_a_coupled_step_back_is_done_stage_by_stage(solver, x):
    """4s - 2 evaluations and 2s products a step of s stages; at the end a_z is zero, and z is only brought back."""
    F, steps = Counted(odenet.residual.MLP(3, width=5).double()), 5
    s = len(solvers[solver].tableau.b) - solvers[solver].tableau.fsal
    solution = odenet.solve(F, x.clone().requires_grad_(), solver=solver, steps=steps, gradient="reversible")
    solution.last.sum().backward()
    stats = solution.stats
    assert stats.nfe == 2 * s * steps
    assert stats.nfe_backward == (4 * s - 2) * steps - (s - 1)
    assert stats.vjps == 2 * s * steps - s


def test_rounding_grows_like_a_power_of_the_coupling():
    """λ^-N over 500 steps is 1.6, 150 and 7e22."""
    drift = {}
    for coupling in (0.999, 0.99, 0.9):
        x0 = torch.linspace(-1, 1, 12).reshape(4, 3).requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            solution = odenet.solve(
                lambda t, x: torch.sin(3 * x.roll(1, 1)), x0, (0, 4), solver="midpoint", steps=500,
                gradient="reversible", gradient_options={"coupling": coupling, "on_drift": "recompute"},
            )  # fmt: skip
            solution.last.sum().backward()
        drift[coupling] = solution.stats.drift
        assert x0.grad.isfinite().all()
    assert 0 < drift[0.999] < 1e-3
    assert drift[0.99] > 10 * drift[0.999]
    assert not drift[0.9] < 1


@pytest.mark.parametrize("coupling", [0, 1.5, "much", True])
def test_the_coupling_is_a_number_up_to_one(coupling):
    with pytest.raises(InputError, match="coupling must be a number above 0 and up to 1"):
        odenet.ODEBlock(torch.sin, gradient="reversible", gradient_options={"coupling": coupling})

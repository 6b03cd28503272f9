"""Running statistics of norms over depth: gathered once a solve, fitted, projected, estimated anew."""

import pytest
import torch
from torch import nn

import odenet
from odenet.depth import bspline, chebyshev, piecewise_constant, piecewise_linear, reestimate_statistics
from odenet.depth.bases import evaluate_basis
from odenet.gradients import gradients
from tests.oracles import gradients_for

KINDS = [piecewise_linear(2), bspline(3, 2), chebyshev(3)]


class Probe(nn.Module):
    """x' = 1 with a norm that looks on: it sees mean x0 + t and the variance of x0."""

    def __init__(self, momentum=0.1):
        super().__init__()
        self.norm = nn.BatchNorm1d(3, momentum=momentum, affine=False)
        self.a = nn.Parameter(torch.ones(3))
        self.double()

    def forward(self, t, x):
        return self.a + 0 * self.norm(x)


def statistics(weights, s):
    phi = evaluate_basis(weights.basis, torch.tensor(s, dtype=torch.float64))
    return [phi @ C for name, C in weights.coefficients().items() if name.startswith("norm")]


@pytest.mark.parametrize("gradient", [g for g in gradients_for("rk4") if gradients[g].exact])
@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_fitted_to_what_the_norm_saw_at_each_depth(kind, gradient):
    weights = kind(Probe(momentum=0.25))
    x = torch.randn(32, 3, dtype=torch.float64, requires_grad=True)
    block = odenet.ODEBlock(weights, "rk4", steps=8, gradient=gradient)
    s = [0.0, 0.2, 0.5, 0.8, 1.0]
    for solves in (1, 2):
        block(x).square().sum().backward()
        assert weights.F.norm.num_batches_tracked == solves and weights.F.norm.momentum == 0.25
        assert weights.F.norm.track_running_stats
    left = 0.75**2
    mean, var = statistics(weights, s)
    expected = x.detach().mean(0) + torch.tensor(s, dtype=torch.float64)[:, None]
    torch.testing.assert_close(mean, (1 - left) * expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(var, (left + (1 - left) * x.detach().var(0)).expand(5, 3), rtol=1e-9, atol=1e-9)


def test_one_solve_with_the_untied_layers_is_that_of_the_basis_of_degree_zero():
    torch.manual_seed(1)
    F = odenet.residual.MLP(3, width=4, norm="batch").double()
    untied = odenet.ResNet(F, 6, solver="heun2", weights=piecewise_constant(3))
    spline = odenet.ResNet(untied.weights.project(bspline(0, 3)), 6, solver="heun2")
    x = torch.randn(16, 3, dtype=torch.float64)
    torch.testing.assert_close(spline(x), untied(x), rtol=1e-12, atol=1e-12)
    expected = untied.weights.coefficients()
    for name, C in spline.weights.coefficients().items():
        torch.testing.assert_close(C, expected[name], rtol=1e-11, atol=1e-12)


def test_rejected_steps_and_solves_that_break_down_leave_the_statistics_alone():
    class Stiff(Probe):
        def forward(self, t, x):
            return 40 * torch.cos(40 * t) * self.a + 0 * self.norm(x)

    weights = piecewise_linear(1)(Stiff(momentum=1.0))
    x = torch.randn(16, 3, dtype=torch.float64)
    seen = []
    weights.F.norm.register_forward_pre_hook(lambda norm, inputs: seen.append(inputs[0].mean(0)))
    solution = odenet.solve(weights, x, rtol=1e-4, atol=1e-4, first_step=0.9)
    assert solution.stats.rejected > 0 and len(seen) == solution.stats.nfe
    mean = statistics(weights, [0.0, 0.5, 1.0])[0]
    assert float((mean - x.mean(0)).abs().max()) < 3  # sin(40 t) and no overshoot of a rejected step
    before = [C.clone() for C in weights.coefficients().values()]
    with pytest.raises(odenet.errors.SolveError):
        odenet.solve(weights, x * float("inf"), solver="euler", steps=2)
    assert all(torch.equal(a, b) for a, b in zip(before, weights.coefficients().values(), strict=True))
    assert weights.F.norm.momentum == 1.0 and weights.F.norm.num_batches_tracked == 1


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_reestimated_statistics_are_those_of_the_new_solver(kind):
    weights = "tied" if kind is None else kind
    model = nn.Sequential(nn.BatchNorm1d(3).double(), odenet.ODEBlock(Probe(), "rk4", steps=8, weights=weights))
    x = 2 + torch.randn(64, 3, dtype=torch.float64)
    model[0].running_mean.fill_(7.0)
    model.eval()
    assert reestimate_statistics(model, [(x[:32], None), (x[32:], None)]) == 2
    assert not model.training and not model[1].weights.F.norm.training
    torch.testing.assert_close(model[0].running_mean, x.mean(0))
    assert model[0].momentum == 0.1 and model[0].num_batches_tracked == 0
    if kind is not None:
        mean, var = statistics(model[1].weights, [0.0, 0.5, 1.0])
        torch.testing.assert_close(mean[1], mean[0] + 0.5, rtol=1e-9, atol=1e-9)
        assert float((var[0] - 1).abs().max()) < 0.05
    with pytest.raises(odenet.errors.InputError, match="at least one batch"):
        reestimate_statistics(model, [])
    assert reestimate_statistics(nn.Linear(2, 2), []) == 0


def test_statistics_estimated_for_the_solver_help_where_it_is_not_that_of_the_training():
    torch.manual_seed(0)
    F = odenet.residual.MLP(4, width=16, norm="batch").double()
    block = odenet.ResNet(F, 2)
    x = torch.randn(256, 4, dtype=torch.float64)
    for _ in range(60):
        block(3 * x)
    fine = block.discretize(32, solver="rk4")
    wrong = fine.eval()(3 * x)
    reestimate_statistics(fine, [3 * x])
    right = fine.eval()(3 * x)
    at_training = fine.train()(3 * x)
    assert (right - at_training).norm() < (wrong - at_training).norm()

"""Tangents pushed forward: the gradient of backprop through the same steps, in the memory of one, for few numbers."""

import pytest
import torch
from torch import nn

import odenet
from odenet.errors import GradientError, InputError
from odenet.solvers import backends
from odenet.training import SavedTensorMeter
from tests.oracles.families import marks

SCHEMES = [
    pytest.param(name, {"steps": 5} if fixed else {"rtol": 1e-3, "atol": 1e-3}, id=f"{name}-{fixed}", marks=marks(name))
    for name, method in backends["native"].methods().items()
    for fixed in (True, False)
    if (method.fixed if fixed else method.adaptive)
]


class Small(nn.Module):
    """F with a few numbers of every kind."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.rates = nn.Parameter(torch.tensor([0.7, -1.2], dtype=dtype))
        self.unused, self.frozen = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4), requires_grad=False)
        self.captured = [torch.tensor(0.4, dtype=dtype, requires_grad=True)]

    def forward(self, t, x, drive):
        return torch.tanh(x.flip(1) * self.rates[0] + drive * torch.cos(3 * t)) + self.rates[1] * self.captured[0] * x


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
@pytest.mark.parametrize(("solver", "scheme"), SCHEMES)
def test_the_gradient_is_that_of_backprop_through_the_same_steps(solver, scheme, dtype, pairs):
    layers = [Small(dtype) for _ in range(1 if solver == "ab5" else 2)]
    weights = odenet.depth.PiecewiseConstant(layers)
    scheme = {"steps": 10} if "steps" in scheme else scheme
    results = []
    for gradient in ("autograd", "forward"):
        x0, drive = pairs[:1].to(dtype).clone().requires_grad_(), torch.tensor(0.3, dtype=dtype, requires_grad=True)
        solution = odenet.solve(
            weights, x0, ts=[0.0, 0.2, 0.5, 0.5, 1.0], solver=solver, gradient=gradient, args=(drive,), **scheme
        )
        leaves = [x0, drive, *(p for layer in layers for p in (layer.rates, layer.captured[0]))]
        w = torch.arange(1.0, 6).reshape(5, 1, 1)
        results.append((solution, torch.autograd.grad((w * solution.ys).abs().square().sum(), leaves)))
    (expected_solution, expected), (solution, got) = results
    assert torch.equal(solution.ys, expected_solution.ys) and solution.stats.h == expected_solution.stats.h
    for a, b in zip(got, expected, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * float(b.abs().max()))


def test_second_derivatives_and_finite_differences():
    rate, x0 = torch.tensor(0.7, dtype=torch.float64), torch.randn(1, 2, dtype=torch.float64)

    def answer(rate, x0):
        scheme = {"solver": "rk4", "steps": 3, "gradient": "forward", "ts": [0.3, 1.0]}
        return odenet.solve(lambda t, x, a: torch.sin(a * x.flip(1)) * (1 + t), x0, args=(rate,), **scheme).ys

    inputs = rate.requires_grad_(), x0.requires_grad_()
    assert torch.autograd.gradcheck(answer, inputs) and torch.autograd.gradgradcheck(answer, inputs)


@pytest.mark.parametrize("steps", [10, 1000])
def test_nothing_is_kept_and_one_step_is_alive(steps):
    rate = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
    x0 = torch.randn(64, 4, dtype=torch.float64)
    with SavedTensorMeter(exclude=[x0, rate]) as meter:
        last = odenet.solve(lambda t, x: rate * torch.tanh(x), x0, solver="euler", steps=steps, gradient="forward").last
        assert meter.live == 0
        (got,) = torch.autograd.grad(last.sum(), rate)
    assert meter.peak <= 12 * x0.numel() * 8
    assert got != 0


def test_the_work_is_that_of_one_product_a_number_and_evaluation(pairs):
    F = Small()
    drive = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    solution = odenet.solve(F, pairs, solver="rk4", steps=6, gradient="forward", args=(drive,))
    assert solution.stats.nfe_backward == 0
    solution.last.sum().backward()
    assert (solution.stats.nfe_backward, solution.stats.vjps) == (4 * 6, 4 * 4 * 6)  # rates (2), captured, drive
    assert F.unused.grad is None and F.frozen.grad is None


def test_many_parameters_are_refused_before_anything_is_solved(x):
    F = odenet.residual.MLP(3, width=64, layers=1, norm="none").double()
    said = r"a tangent for each of the 451 numbers .*shape .*64.*above limit=64; use gradient='checkpoint'"
    with pytest.raises(GradientError, match=said):
        odenet.solve(F, x, gradient="forward")
    odenet.solve(F, x, gradient="forward", gradient_options={"limit": 451})
    with torch.no_grad():
        odenet.solve(F, x, gradient="forward")
    with pytest.raises(InputError, match="limit must be a positive integer, got 0"):
        odenet.ODEBlock(F, gradient="forward", gradient_options={"limit": 0})

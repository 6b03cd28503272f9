"""From an adaptive solve to a network on its grid, and from there to plain operations."""

import pytest
import torch
from torch import nn

import odenet
from odenet.depth import bspline, chebyshev, piecewise_constant
from odenet.models import ImageClassifier, Unrolled, distill
from odenet.residual import MLP
from odenet.solvers import solvers

WEIGHTS = {"tied": "tied", "untied": piecewise_constant(2), "spline": bspline(2, 2), "chebyshev": chebyshev(3)}


class Bump(nn.Module):
    """Fast in the middle of depth, slow elsewhere."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, t, x):
        return self.a * torch.exp(-((t - 0.5) ** 2) * 800) * 20 * torch.cos(x)


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_the_network_takes_the_accepted_steps_and_computes_the_same(weights):
    block = odenet.ODEBlock(MLP(3, width=8).double(), rtol=1e-5, atol=1e-5, weights=weights, t0=0.5, t1=2.0)
    x = torch.randn(6, 3, dtype=torch.float64)
    y = block(x)
    network = block.distill(x, tol=1e-5)
    assert isinstance(network, odenet.ResNet) and network.weights is block.weights
    report = network.distillation
    torch.testing.assert_close(network(x), y, rtol=1e-10, atol=1e-12)
    assert report.change < 1e-10 and len(report.grid) == block.stats.accepted + 1 == network.stats.accepted + 1
    assert report.grid == pytest.approx(block.depths(x)) and network.depths(x) == report.grid
    assert report.nfe == network.stats.nfe < report.nfe_before == block.stats.nfe
    network(x).sum().backward()
    assert all(p.grad is not None for p in block.parameters())


def test_steps_gather_where_F_is_fast_and_the_cost_of_a_looser_tolerance_is_reported():
    block = odenet.ODEBlock(Bump(), rtol=1e-9, atol=1e-9)
    x = torch.randn(4, 2, dtype=torch.float64)
    network = block.distill(x, tol=1e-2)
    gaps = torch.tensor(network.distillation.grid).diff()
    assert float(gaps.max()) > 3 * float(gaps.min())
    error = float((network(x) - block(x)).norm() / block(x).norm())
    assert network.distillation.change == pytest.approx(error, rel=1e-9) and 1e-8 < error < 0.1
    uniform = block.discretize(len(gaps), solver="dopri5")
    assert float((uniform(x) - block(x)).norm() / block(x).norm()) > 3 * error
    euler = odenet.ResNet(Bump(), 5).distill(x, tol=1e-6, solver="euler")  # from a network of steps too
    assert euler.scheme.solver == "euler" and len(euler.distillation.grid) > 6


def test_a_classifier_is_distilled_block_by_block():
    torch.manual_seed(0)
    stage = lambda F: odenet.ODEBlock(F, rtol=1e-3, atol=1e-3)  # noqa: E731
    model = ImageClassifier((1, 8, 8), 3, odenet.residual.Conv, stage, widths=(4, 8)).eval()
    x, y = torch.randn(8, 1, 8, 8), torch.randint(3, (8,))
    twin, report = distill(model, x, 1e-3, y)
    assert len(report.blocks) == 2 and report.change < 1e-5 and report.flips == 0
    assert report.accuracy == report.accuracy_before == float((model(x).argmax(1) == y).double().mean())
    assert all(isinstance(stage, odenet.ResNet) for stage in twin.stages)
    assert {id(p) for p in twin.parameters()} == {id(p) for p in model.parameters()}
    assert all(not block._forward_pre_hooks for block in model.blocks)
    points = nn.Sequential(odenet.ODEBlock(MLP(2), rtol=1e-6, atol=1e-6))
    _, loose = distill(points, torch.randn(3, 2), 0.1)
    assert loose.change > 0 and loose.accuracy != loose.accuracy


@pytest.mark.parametrize("solver", ["euler", "rk4", "ab3", "alf", "leapfrog", "dopri5"])
def test_the_unrolled_network_computes_what_the_block_does(solver):
    assert solver in solvers
    x = torch.randn(3, 4, dtype=torch.float64)
    for weights in WEIGHTS.values():
        block = odenet.ResNet(MLP(4, width=8, time="concat").double(), 4, solver=solver, weights=weights, t1=2.0)
        assert torch.equal(Unrolled(block)(x), block(x))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Unrolled(odenet.ODEBlock(MLP(2))), "only fixed steps.*block.distill"),
        (lambda: odenet.ODEBlock(MLP(2)).distill(torch.randn(2, 2), tol=0.0), "rtol must be a positive number"),
        (lambda: odenet.ODEBlock(MLP(2)).distill(torch.randn(2, 2), solver="rk5"), "unknown solver 'rk5'"),
        (lambda: odenet.ResNet(MLP(2), 2, grid=[0.0, 1.0]), "give one of steps, step_size, grid"),
    ],
)
def test_what_cannot_be_used_is_said(make, said):
    with pytest.raises(odenet.errors.InputError, match=said):
        make()

"""Diagnostics of whole networks: a fine ODE-Net passes, a coarse or shuffled network fails, and nothing is changed."""

import json

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

import odenet
from odenet.data import moons, nested_spheres
from odenet.depth import PiecewiseConstant, piecewise_constant, piecewise_linear
from odenet.diagnostics import (
    Result,
    block_inputs,
    critical_step,
    diagnostics,
    gradient_error,
    nfe_difficulty,
    solver_swap,
    survey,
    verdict_of,
)
from odenet.diagnostics.nfe_difficulty import spearman
from odenet.errors import InputError, UnknownNameError
from odenet.models import VectorClassifier, swap_blocks
from odenet.residual import MLP


def trained(stage, data, epochs=30, width=None, gain=1.0, lr=1e-2):
    torch.manual_seed(0)

    def residual(n):
        F = MLP(n, width=32, norm="none")
        for p in F.parameters():
            p.data *= gain
        return F

    model = VectorClassifier(data.shape, 2, residual, stage, width=width)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(epochs):
        for i in torch.randperm(len(data.train_x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data.train_x[i]), data.train_y[i]).backward()
            optimizer.step()
    return model


@pytest.fixture(scope="module")
def fine():
    data = moons(256, 100)
    return trained(lambda F: odenet.ResNet(F, 8, solver="rk4"), data, 8), data


@pytest.fixture(scope="module")
def coarse():
    data = nested_spheres(n=512, n_test=200)
    return trained(lambda F: odenet.ResNet(F, 1), data, 25, gain=2.0), data


def test_a_finely_discretised_ode_net_passes_every_diagnostic(fine):
    model, data = fine
    findings = survey(model, data.test_x, data.test_y)
    assert {f.diagnostic for f in findings} == set(diagnostics)
    for f in findings:
        assert f.result is not None, f.note
        assert f.result.verdict in (True, None), (f.diagnostic, f.result.sentence)
    assert verdict_of(findings) is True
    judged = {f.diagnostic for f in findings if f.result.verdict is not None}
    assert len(judged) >= 9


def test_a_coarse_euler_network_fails(coarse):
    model, data = coarse
    found = {f.diagnostic: f.result for f in survey(model, data.test_x, data.test_y)}
    assert found["solver_swap"].own > 0.85
    for name in ("solver_swap", "critical_step", "step_halving", "ode_distance", "reversibility"):
        assert found[name].verdict is False, (name, found[name].sentence)


def test_a_trained_network_of_smooth_layers_passes_and_the_same_layers_shuffled_fail():
    data, names = moons(256, 100), ["weight_smoothness", "step_halving", "solver_swap", "residual_norm"]
    smooth = trained(lambda F: odenet.ResNet(F, 12, weights=piecewise_linear(3, init="tied")), data, 3)
    layers = swap_blocks(smooth, lambda b: b.project(piecewise_constant(12)))

    def shuffled(block):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(0)).tolist()
        return odenet.ResNet(PiecewiseConstant([block.weights.layers[i] for i in order]), 12)

    found = survey(layers, data.test_x, data.test_y, names)
    assert verdict_of(found) is True, [f.result.sentence for f in found]
    found = survey(swap_blocks(layers, shuffled), data.test_x, data.test_y, names)
    assert verdict_of(found) is False and not found[names.index("weight_smoothness")].result.verdict


def test_an_untrained_smooth_f_passes():
    block = odenet.ODEBlock(MLP(4, width=16, norm="none", time="concat").double(), rtol=1e-4, atol=1e-4)
    findings = survey(block, torch.randn(16, 4, dtype=torch.float64))
    assert verdict_of(findings) is True, [f.result.sentence for f in findings if f.result.verdict is False]


def test_the_critical_step_is_found_where_accuracy_begins_to_hold(coarse):
    model, data = coarse
    result = critical_step(model, data.test_x, data.test_y)
    assert result.trained == 1 and result.steps == [1, 2, 4, 8, 16, 32]
    assert result.critical is None or result.critical > 1
    for n, a, b in zip(result.steps, result.accuracy, result.better_accuracy, strict=True):
        if result.critical is not None and n >= result.critical:
            assert abs(a - b) <= 0.01 + 1e-9
    assert abs(result.accuracy[0] - result.better_accuracy[0]) > 0.01


def test_without_labels_classes_are_compared_with_the_network_itself(fine):
    model, data = fine
    assert critical_step(model, data.test_x).verdict is True
    result = solver_swap(model, data.test_x)
    assert result.own is None and result.verdict is True and all(c["accuracy"] is None for c in result.cells)


def test_the_swap_of_an_untied_network_says_what_it_leaves_out():
    model = VectorClassifier((2,), 2, lambda n: MLP(n), lambda F: odenet.ResNet(F, 8, weights="untied"))
    cells = {c["label"]: c for c in solver_swap(model, torch.randn(20, 2)).cells}
    assert cells["Euler 4"]["note"] == "every 2nd layer" and cells["Euler 8"]["flips"] == 0


def test_evaluations_go_with_the_stiffness_of_a_sample():
    class Spin(nn.Module):
        def forward(self, t, x):  # turns as fast as the sample is long
            return 8 * x.norm(dim=1, keepdim=True) * torch.stack([-x[:, 1], x[:, 0]], 1)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = odenet.ODEBlock(Spin())

        def forward(self, x):
            return torch.stack([0 * x[:, 0], x.norm(dim=1) + 0 * self.block(x)[:, 0]], 1)

    x = torch.linspace(0.1, 2, 12)[:, None] * torch.tensor([[1.0, 0.0]])
    result = nfe_difficulty(Model(), x, torch.zeros(12, dtype=torch.long))  # the loss grows with the length, too
    assert result.nfe == sorted(result.nfe) and result.nfe[-1] > result.nfe[0]
    assert result.correlation > 0.9 and result.verdict is None
    assert nfe_difficulty(Model(), x).correlation < -0.9  # a long sample has a large margin


@pytest.mark.parametrize("takes_times", [True, False])
def test_each_sample_counts_the_evaluations_that_it_takes_alone(takes_times):
    torch.manual_seed(2)
    A, scale = torch.randn(3, 3).double(), torch.tensor([0.3, 1.0, 2.0, 4.0, 8.0]).double()
    F = (lambda t, x: torch.sin(x @ A)) if takes_times else (lambda t, x: torch.sin(x @ A) * (1 + t))
    model = nn.Sequential(odenet.ODEBlock(F), odenet.ODEBlock(lambda t, x: -x))
    x = scale[:, None] * torch.randn(5, 3).double()
    alone = nn.Sequential(*(block.continuous(rtol=1e-6, atol=1e-6) for block in model))
    expected = []
    for row in x:
        alone(row[None])
        expected.append(sum(block.stats.nfe for block in alone))
    found = nfe_difficulty(model, x, tolerance=1e-6)
    assert found.nfe == expected and len(set(expected)) > 1


def test_diagnostics_of_classes_refuse_numbers_and_those_of_blocks_do_not():
    model, x = nn.Sequential(odenet.ResNet(MLP(2, width=4), 4, solver="rk4")), torch.randn(6, 2)
    for finding in survey(model, x, -x):
        classes = finding.diagnostic in ("solver_swap", "critical_step", "nfe_difficulty")
        assert (finding.result is None) == classes, finding
        assert not classes or "takes labels of shape (batch,)" in finding.note


@pytest.mark.parametrize("labels", [True, False])
def test_an_exact_gradient_passes_and_the_adjoint_of_coarse_steps_fails(labels):
    x, y = torch.randn(8, 2), torch.randint(0, 2, (8,)) if labels else None

    def residual(n):
        F = MLP(n, width=16, norm="none")
        for p in F.parameters():
            p.data *= 3
        return F

    def model(gradient):
        torch.manual_seed(3)
        return VectorClassifier((2,), 2, residual, lambda F: odenet.ODEBlock(F, "euler", steps=4, gradient=gradient))

    exact, adjoint = (gradient_error(model(g), x, y) for g in ("checkpoint", "adjoint"))
    assert exact.verdict is True and exact.error < 1e-5 and exact.gradient == "checkpoint"
    assert adjoint.verdict is False and adjoint.error > 0.01 and adjoint.cosine < 1


def test_rank_correlation_is_that_of_scipy():
    a, b = torch.randint(0, 5, (30,)).double(), torch.randn(30).double()
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert spearman(torch.ones(4), torch.arange(4)) != spearman(torch.ones(4), torch.arange(4))  # NaN


@pytest.mark.parametrize("name", [n for n, d in diagnostics.items() if d.of == "block"])
@pytest.mark.parametrize("kind", ["untied", "adaptive", "image"])
def test_every_diagnostic_takes_every_kind_of_block_and_changes_nothing(name, kind):
    if kind == "image":
        block = odenet.ResNet(odenet.residual.Conv(4, norm="batch", time="film"), 4, weights="untied")
        x = torch.randn(3, 4, 4, 4)
    else:
        block = odenet.ODEBlock(MLP(3, width=8), rtol=1e-3, atol=1e-3)
        if kind == "untied":
            block = odenet.ResNet(MLP(3, width=8), 4, weights="untied", solver="heun2")
        x = torch.randn(3, 3)
    before, state = x.clone(), {k: v.clone() for k, v in block.state_dict().items()}
    result = diagnostics[name].run(block, x)
    assert isinstance(result, Result) and result.verdict in (True, False, None)
    assert result.sentence and (result.curves is not None or name == "weight_smoothness")
    json.dumps(result.numbers())
    assert torch.equal(x, before) and block.training
    for key, value in block.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert all(p.grad is None for p in block.parameters())
    again = diagnostics[name].run(block, x)
    assert again.numbers() == result.numbers() or "nan" in str(result.numbers())


def test_every_diagnostic_says_what_it_computes_and_where_it_comes_from():
    for name, d in diagnostics.items():
        assert d.title and d.formula and any(c.isdigit() for c in d.reference), name
        assert getattr(odenet.diagnostics, name) is d.run


def test_the_inputs_of_the_blocks_are_the_states_they_start_with():
    model = nn.Sequential(odenet.ResNet(MLP(3), 2), nn.Tanh(), odenet.ResNet(MLP(3), 2))
    x = torch.randn(4, 3)
    first, second = block_inputs(model, x)
    assert torch.equal(first, x)
    torch.testing.assert_close(second, model[1](model[0](x)))


def test_what_cannot_be_diagnosed_is_said():
    with pytest.raises(InputError, match="Linear has no blocks to look at"):
        survey(nn.Linear(2, 2), torch.zeros(1, 2))
    for diagnose in (solver_swap, critical_step, nfe_difficulty, gradient_error):
        with pytest.raises(InputError, match="Linear has no blocks"):
            diagnose(nn.Linear(2, 2), torch.zeros(1, 2))
    with pytest.raises(UnknownNameError, match="did you mean 'step_halving'"):
        survey(odenet.ResNet(MLP(2), 2), torch.zeros(1, 2), names=["step_halfing"])

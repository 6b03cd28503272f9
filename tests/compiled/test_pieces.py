"""Compiled solves over several pieces of depth: untied layers, knots, stops and jumps are walked as eagerly."""

import warnings

import pytest
import torch
from torch import nn

import odenet
from odenet import compiled
from odenet.compiled import CompileWarning, record
from odenet.compiled.report import RefusalError
from odenet.compiled.rowwise.library import Code
from odenet.depth import PiecewiseConstant
from odenet.residual import MLP
from tests.compiled.test_compiled import Swirl, same_numbers


class Beside(nn.Module):
    """x' = tanh(x A + t) - the mean of the batch: samples see each other."""

    def __init__(self):
        super().__init__()
        self.A = nn.Parameter(torch.randn(3, 3, dtype=torch.float64))

    def forward(self, t, x):
        return torch.tanh(x @ self.A + t) - x.mean(0)


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(5, 3, dtype=torch.float64)


@pytest.fixture
def rowwise_alone(monkeypatch):
    def none(problem):
        raise AssertionError("not row by row")

    monkeypatch.setattr(compiled, "_whole", none)


def layers(kind, count):
    torch.manual_seed(1)
    return [kind() for _ in range(count)]


def differentiated(weights, x, compile, make, args=(), ts=None):
    block = make(weights, compile)
    inputs = [x.clone().requires_grad_(), *(arg.clone().requires_grad_() for arg in args)]
    solution = block.solution(inputs[0], ts, tuple(inputs[1:]))
    loss = (solution.ys * torch.linspace(1, 2, solution.ys.numel(), dtype=x.dtype).view_as(solution.ys)).sum()
    return solution, torch.autograd.grad(loss, [*inputs, *weights.parameters()])


def agree(weights, x, make, within=1e-12, back=False, **more):
    """Compiled and eager: the same states, gradients and counts."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got, gradients = differentiated(weights, x, True, make, **more)
    expected, truth = differentiated(weights, x, False, make, **more)
    same_numbers(got, gradients, expected, truth, within)
    for count in ("nfe", "accepted", "rejected", "forced", *(("nfe_backward", "vjps") if back else ())):
        assert getattr(got.stats, count) == getattr(expected.stats, count), count
    assert got.stats.h == pytest.approx(expected.stats.h, rel=1e-6)
    return got


def network(steps, solver="euler", **more):
    return lambda weights, compile: odenet.ResNet(weights, steps, solver=solver, compile=compile, **more)


def ode(**more):
    numerics = {"rtol": 1e-4, "atol": 1e-4, "t1": 1.7, "gradient": "checkpoint"} | more
    return lambda weights, compile: odenet.ODEBlock(weights, compile=compile, **numerics)


@pytest.mark.parametrize("solver", ["euler", "rk4"])
def test_untied_layers_are_the_eager_ones(solver, x, rowwise_alone, caplog):
    weights = PiecewiseConstant(layers(Swirl, 3))
    agree(weights, x, network(6, solver))
    agree(weights, x, network(6, solver), args=(torch.tensor(0.3, dtype=torch.float64),), ts=[0.0, 0.5, 1.0])
    assert caplog.text.count("odenet compiled a solve") == 2  # layers of one kind share the code


def test_layers_of_several_kinds_each_have_their_code(x, rowwise_alone):
    torch.manual_seed(1)
    kinds = [MLP(3, width=4, norm="none"), MLP(3, width=5, norm="none"), odenet.residual.Linear(3), MLP(3, width=4)]
    weights = PiecewiseConstant([kind.double() for kind in kinds])
    agree(weights, x, network(4))
    agree(weights, x, ode())


@pytest.mark.parametrize("solver", ["dopri5", "adaptive_heun"])
def test_adaptive_steps_end_at_knots(solver, x, rowwise_alone, monkeypatch):
    monkeypatch.setattr(record, "FIRST_RECORD", 8)  # full within a piece and at its end
    weights = PiecewiseConstant(layers(Swirl, 4))
    tight = {"rtol": 1e-6, "atol": 1e-6} if solver == "dopri5" else {}
    got = agree(weights, x, ode(solver=solver, **tight), within=1e-10, back=solver == "dopri5")
    assert got.stats.accepted > 16 and got.stats.rejected > 0
    ts = [0.0, 0.2, 0.425, 0.43, 1.7] if solver == "dopri5" else [0.0, 1.7]
    agree(weights, x, ode(solver=solver), within=1e-10, ts=ts)
    agree(weights, x, ode(solver=solver, t0=1.7, t1=0.0), within=1e-10)


@pytest.mark.parametrize("solver", ["dopri5", "adaptive_heun"])
def test_stops_and_jumps(solver, x, rowwise_alone):
    weights = odenet.depth.constant()(Swirl())
    agree(weights, x, ode(solver=solver, stops=(0.3, 0.31, 1.2)), within=1e-9)
    agree(weights, x, ode(solver=solver, jumps=(0.7,), stops=(0.3, 0.9)), within=1e-9)
    agree(PiecewiseConstant(layers(Swirl, 2)), x, ode(solver="rk4", jumps=(0.7,), step_size=0.1, rtol=None, atol=None))


def test_a_jump_is_seen_from_its_side_only(x):
    class Switched(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, t, x):
            return torch.where(t < 0.5, x, -3 * x) * self.a

    got = agree(odenet.depth.constant()(Switched()), x, ode(t1=1.0, jumps=(0.5,), rtol=1e-10, atol=1e-10))
    torch.testing.assert_close(got.last, x * torch.e**-1.0, rtol=1e-9, atol=1e-9)


def test_second_derivatives_over_several_pieces(x):
    weights, found = PiecewiseConstant(layers(Swirl, 3)), []
    for compile in (True, False):
        x0 = x.clone().requires_grad_()
        y = ode()(weights, compile)(x0)
        (g,) = torch.autograd.grad(y.sin().sum(), x0, create_graph=True)
        found.append(torch.autograd.grad(g.square().sum(), [x0, *weights.parameters()]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_a_layer_that_is_changed_or_put_in_anew_is_seen(x):
    block = odenet.ResNet(MLP(3, width=4, norm="none").double(), 3, weights="untied", compile=True)
    eager = odenet.ResNet(block.weights, 3, compile=False)
    with torch.no_grad():
        block(x)
        block.weights.layers[1] = MLP(3, width=4, norm="none").double()
        next(block.weights.layers[2].parameters()).mul_(2)
        torch.testing.assert_close(block(x), eager(x), rtol=1e-12, atol=1e-12)


def test_one_layer_that_cannot_be_captured_makes_the_solve_eager(x):
    class Counting(Swirl):
        calls = 0

        def forward(self, t, x):
            self.calls += 1
            return super().forward(t, x)

    weights = PiecewiseConstant([Swirl(), Counting(), Swirl()])
    with pytest.warns(CompileWarning, match="cannot be captured"), torch.no_grad():
        got = odenet.ResNet(weights, 3, compile=True)(x)
    with torch.no_grad():
        assert torch.equal(got, odenet.ResNet(weights, 3, compile=False)(x))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [True, False], ids=["rows", "graphs"])
def test_samples_that_see_each_other_over_several_pieces(x, rows, traced, monkeypatch):
    weights = PiecewiseConstant(layers(Beside if rows else Swirl, 3))
    agree(weights, x, network(6, "rk4"), ts=[0.0, 0.5, 1.0])
    agree(weights, x, ode(), within=1e-10, back=True)
    agree(weights, x, ode(), within=1e-10, ts=[0.0, 0.3, 1.7])
    monkeypatch.setattr(record, "FIRST_RECORD", 8)
    agree(weights, x, ode(rtol=1e-6, atol=1e-6, stops=(0.2, 0.25, 1.1)), within=1e-9)  # h is rounded otherwise


def test_arguments_with_a_row_for_each_sample_in_graphs_of_the_whole_batch(traced, x):
    class Pulled(Beside):
        def forward(self, t, x, pull):
            return super().forward(t, x) + pull * x

    pull = torch.linspace(0, 1, 15, dtype=torch.float64).view(5, 3)
    agree(odenet.depth.constant()(layers(Pulled, 1)[0]), x, network(3), args=(pull,))
    assert len(traced) == 2


def test_a_compiler_that_fails_is_told_once_in_one_sentence(x, monkeypatch):
    calls = []

    def fails(*given):
        calls.append(given)
        raise RefusalError("c++ cannot compile what was written for it: no space left on device")

    monkeypatch.setattr(Code, "of", fails)
    block = odenet.ResNet(Swirl(), 3, compile=True)
    with pytest.warns(CompileWarning, match="walked eagerly: c[+][+] cannot compile what was written for it"):
        block(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        block(x)
    assert len(calls) == 1

"""Samples with their own steps in lanes, where F changes along depth and answers lie inside given steps."""

import math
import warnings

import pytest
import torch
from torch import nn

import odenet
from odenet.compiled import CompileWarning, per_sample, record
from odenet.depth import PiecewiseConstant
from odenet.residual import MLP
from odenet.solvers import solvers
from odenet.solvers.explicit import ExplicitRungeKutta
from tests.compiled.test_compiled import same_numbers

EXPLICIT = [name for name, stepper in solvers.items() if type(stepper) is ExplicitRungeKutta]
ENDS = torch.tensor([1.7, -0.9, 0.0, 0.4, 1.0, 1.7], dtype=torch.float64)
ADAPTIVE = {"rtol": 1e-6, "atol": 1e-6}
LANDINGS = {"jumps": (0.35,), "stops": (0.2,)}


@pytest.fixture(autouse=True)
def rowwise_alone(monkeypatch):
    """No other way to compile."""

    def none(problem):
        raise AssertionError("not row by row")

    monkeypatch.setattr(per_sample, "_rounds", none)


class Forced(nn.Module):
    """x' = tanh(x A) - mu x + sin(3 t), with a mu for each sample, A another one on each piece of depth."""

    def __init__(self):
        super().__init__()
        self.A = nn.Parameter(torch.randn(3, 3, dtype=torch.float64))

    def forward(self, t, x, mu):
        return torch.tanh(x @ self.A) - mu * x + torch.sin(3 * t).reshape(-1, 1)


def layers(count, kind=Forced):
    torch.manual_seed(1)
    return PiecewiseConstant([kind() for _ in range(count)])


def solved(weights, compile, t1=1.7, **how):
    torch.manual_seed(0)
    x0 = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    mu = torch.logspace(0, 1.5, 6, dtype=torch.float64)[:, None].requires_grad_()
    how = {"solver": "dopri5", "gradient": "checkpoint", "per_sample": True, "per_sample_args": (0,)} | how
    solution = odenet.solve(weights, x0, (0.0, t1), args=(mu,), compile=compile, **how)
    wave = torch.linspace(1, 9, solution.ys.numel(), dtype=x0.dtype).cos().view_as(solution.ys)
    return solution, torch.autograd.grad((wave * solution.ys).sum(), [x0, mu, *weights.parameters()])


def agree(weights, within=1e-10, **how):
    """Compiled and eager: the same states, gradients and counts, those of the batch and those of each sample."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got, gradients = solved(weights, True, **how)
    expected, truth = solved(weights, False, **how)
    same_numbers(got, gradients, expected, truth, within)
    for name in ("nfe", "nfe_backward", "vjps", "steps_backward", "accepted", "rejected", "forced"):
        assert getattr(got.stats, name) == getattr(expected.stats, name), name
    for name in ("nfe", "nfe_backward", "accepted", "rejected", "forced"):
        assert torch.equal(getattr(got.stats.samples, name), getattr(expected.stats.samples, name)), name
    for a, b in zip(got.stats.samples.h, expected.stats.samples.h, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
    assert got.stats.samples.evaluated == int(got.stats.samples.nfe.sum())
    return got


@pytest.mark.parametrize("solver", ["dopri5", "adaptive_heun"])
@pytest.mark.parametrize(
    "more",
    [{}, {"stops": (0.2, 0.25, 0.9)}, {"jumps": (0.3, 1.1)}, {"jumps": (0.0, 0.3), "stops": (0.3, 0.7)}],
    ids=str,
)
def test_untied_weights_stops_and_jumps(solver, more):
    numerics = ADAPTIVE if solver == "dopri5" else {"rtol": 1e-3, "atol": 1e-3}
    got = agree(layers(3), solver=solver, within=1e-9, **more, **numerics)
    assert got.stats.rejected > 0
    agree(layers(3), solver=solver, t1=ENDS, within=1e-9, **more, **numerics)


def test_one_piece_with_stops_and_jumps_of_samples_with_their_own_intervals(monkeypatch):
    monkeypatch.setattr(record, "FIRST_RECORD", 2)  # full within a piece and at its end
    weights = odenet.depth.constant()(layers(1).layers[0])
    agree(weights, t1=ENDS, stops=(0.3, 0.31, 1.2), within=1e-9, **ADAPTIVE)
    agree(weights, t1=ENDS, jumps=(0.3, -0.5), stops=(1.2,), within=1e-9, **ADAPTIVE)
    agree(layers(4), t1=ENDS, jumps=(0.3, -0.5), stops=(1.2,), within=1e-9, **ADAPTIVE)


def test_outputs_over_several_pieces():
    ts = torch.tensor([0.0, 0.1, 0.25, 0.5, 0.77, 1.0], dtype=torch.float64)[:, None] * ENDS
    agree(layers(4), t1=ENDS, ts=ts, within=1e-9, **ADAPTIVE)
    agree(layers(2), ts=[0.0, 0.3, 0.85, 1.7], stops=(0.3, 1.0), within=1e-9, **ADAPTIVE)


@pytest.mark.parametrize("solver", ["euler", "dopri5"])
@pytest.mark.parametrize("steps", [{"steps": 6}, {"step_size": 0.07}, {"step_size": 0.07, **LANDINGS}])
def test_given_steps_over_several_pieces(solver, steps):
    agree(layers(3), solver=solver, **steps)
    agree(layers(3), solver=solver, t1=ENDS, **steps)


def test_a_jump_is_seen_from_its_side_only():
    class Switched(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, t, x, mu):
            return torch.where(t[:, None] < 0.5, x, -3 * x) * self.a + 0 * mu

    for how in ({"rtol": 1e-10, "atol": 1e-10}, {"solver": "rk4", "step_size": 0.01}):
        got, _ = solved(odenet.depth.constant()(Switched()), True, t1=1.0, jumps=(0.5,), **how)
        torch.manual_seed(0)
        x0 = torch.randn(6, 3, dtype=torch.float64)
        torch.testing.assert_close(got.last, x0 / math.e, rtol=1e-8, atol=1e-8)


def test_samples_are_what_each_is_alone():
    weights = layers(3)
    torch.manual_seed(0)
    x0, mu = torch.randn(70, 3, dtype=torch.float64), torch.rand(70, 1, dtype=torch.float64) * 20
    how = {"per_sample": True, "per_sample_args": (0,), "compile": True, "jumps": (0.4,), **ADAPTIVE}
    with torch.no_grad():
        whole = odenet.solve(weights, x0, args=(mu,), **how)
        for n in (1, 7):
            part = odenet.solve(weights, x0[:n], args=(mu[:n],), **how)
            assert torch.equal(part.last, whole.last[:n])
            assert torch.equal(part.stats.samples.nfe, whole.stats.samples.nfe[:n])
        alone = odenet.solve(weights, x0[5:6], args=(mu[5:6],), compile=False, jumps=(0.4,), **ADAPTIVE)
    torch.testing.assert_close(whole.last[5:6], alone.last, rtol=1e-10, atol=1e-10)
    assert int(whole.stats.samples.nfe[5]) == alone.stats.nfe


@pytest.mark.parametrize("gradient", ["autograd", "checkpoint"])
def test_blocks_with_untied_layers(gradient):
    torch.manual_seed(0)
    F, x = MLP(3, width=5, norm="none", time="concat").double(), torch.randn(7, 3, dtype=torch.float64)
    found, weights = [], None
    for compile in (True, False):
        block = odenet.ODEBlock(
            weights or F, weights="tied" if weights else odenet.depth.piecewise_constant(4), per_sample=True,
            gradient=gradient, compile=compile, **ADAPTIVE,
        )  # fmt: skip
        weights = block.weights
        x0 = x.clone().requires_grad_()
        y = block(x0)
        found.append((y, *torch.autograd.grad(y.square().sum(), [x0, *weights.parameters()])))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_second_derivatives_over_several_pieces():
    weights, found = layers(3), []
    for compile in (True, False):
        torch.manual_seed(0)
        x0 = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
        how = {"per_sample": True, "gradient": "checkpoint", "jumps": (0.4,), "args": (0.5,), **ADAPTIVE}
        y = odenet.solve(
            weights, x0, (0.0, ENDS), ts=ENDS[None] * torch.tensor([[0.3], [1.0]]), compile=compile, **how
        ).ys
        (g,) = torch.autograd.grad(y.sin().sum(), x0, create_graph=True)
        found.append(torch.autograd.grad(g.square().sum(), [x0, *weights.parameters()]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_what_couples_samples_over_several_pieces_is_walked_eagerly_and_says_so():
    class Beside(Forced):
        def forward(self, t, x, mu):
            return super().forward(t, x, mu) - 0.1 * x.mean(0)

    weights = layers(2, Beside)
    with pytest.warns(CompileWarning, match="compiled on a CPU only, row by row, and this F is not"):
        got, _ = solved(weights, True, **ADAPTIVE)
    assert torch.equal(got.ys, solved(weights, False, **ADAPTIVE)[0].ys)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solved(weights, "auto", **ADAPTIVE)
        solved(weights, True, **ADAPTIVE)  # it is said once


@pytest.mark.parametrize("solver", ["euler", "rk4", "dopri5"])
@pytest.mark.parametrize("steps", [{"steps": 4}, {"step_size": 0.3}, {"step_size": 0.3, **LANDINGS}])
def test_outputs_inside_given_steps(solver, steps):
    ts = torch.tensor([0.0, 0.05, 0.25, 0.26, 0.3, 0.5, 0.99, 1.0], dtype=torch.float64)[:, None] * ENDS
    agree(odenet.depth.constant()(layers(1).layers[0]), solver=solver, t1=ENDS, ts=ts, **steps)
    agree(layers(2), solver=solver, t1=ENDS, ts=ts, **steps)


@pytest.mark.slow
@pytest.mark.parametrize("solver", EXPLICIT)
def test_outputs_inside_steps_of_every_explicit_method(solver):
    tableau = solvers[solver].tableau
    for how in ({"steps": 6}, ADAPTIVE):
        if "rtol" in how and not solvers[solver].adaptive:
            continue
        if tableau.dense_c or ("rtol" in how and not tableau.fsal):
            with pytest.warns(CompileWarning, match="need more evaluations"):
                solved(layers(2), True, solver=solver, ts=[0.3, 0.5, 1.7], **how)
        else:
            agree(layers(2), solver=solver, ts=[0.3, 0.5, 1.7], within=1e-9, **how)


def test_an_answer_inside_an_euler_step_lies_on_its_line():
    x0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    ts = torch.tensor([[0.25, 0.5], [0.75, 1.5]], dtype=torch.float64)
    how = {"ts": ts, "solver": "euler", "steps": 2, "per_sample": True, "compile": True}
    sol = odenet.solve(lambda t, x: -x, x0, (0.0, torch.tensor([1.0, 2.0])), **how)
    # h = 1/2 and 1: x (1 - h/2), then x (1 - h) (1 - h/2)
    torch.testing.assert_close(sol.ys[..., 0], torch.tensor([[0.75, 1.0], [0.375, 0.0]], dtype=torch.float64))

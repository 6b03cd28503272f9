"""Compiled solves of samples with their own steps are the eager ones to rounding: states, gradients, every count.

As in test_compiled.py the quick tests run the graphs as they were traced; the slow ones have code made of them.
"""

import math
import warnings

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn

import odenet
from odenet import compiled
from odenet.compiled import CompileWarning, per_sample
from odenet.compiled.per_sample import walk as phases
from odenet.solvers import solvers
from odenet.solvers.explicit import ExplicitRungeKutta
from tests.compiled.test_compiled import same_numbers

MU = torch.tensor([1.0, 30.0, 4.0, 60.0, 11.0, 2.0], dtype=torch.float64)
HOW = {"rtol": 1e-6, "atol": 1e-6, "per_sample": True, "per_sample_args": (0,), "gradient": "checkpoint"}
EXPLICIT = [name for name, stepper in solvers.items() if type(stepper) is ExplicitRungeKutta and stepper.adaptive]


class Driven(nn.Module):
    """Van der Pol's equation, driven, with a parameter."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.1, dtype=dtype))

    def forward(self, t, x, mu):
        p, v = x[:, 0], x[:, 1]
        return self.w * torch.stack([v, mu * (1 - p * p) * v - p], 1) + 0.1 * torch.sin(t)[:, None]


def solved(F, compile, t1=0.5, batch=6, dtype=torch.float64, **scheme):
    F.zero_grad()
    x0 = torch.tensor([[2.0, 0.0]], dtype=dtype).repeat(batch, 1).requires_grad_()
    mu = MU.to(dtype).repeat(-(-batch // 6))[:batch].requires_grad_()
    solution = odenet.solve(F, x0, (0.0, t1), args=(mu,), compile=compile, **{**HOW, **scheme})
    weights = torch.linspace(1, 2, solution.ys.numel(), dtype=dtype).sin().reshape(solution.ys.shape)
    return solution, torch.autograd.grad((weights * solution.ys).sum(), [x0, mu, *F.parameters()])


def agree(F, within=1e-9, **how):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got, gradients = solved(F, True, **how)
    expected, truth = solved(F, False, **how)
    same_numbers(got, gradients, expected, truth, within)
    counts = ("nfe", "accepted", "rejected", "forced")
    for name in counts if "ts" in how else (*counts, "nfe_backward"):  # outputs need F at the ends of all steps
        assert torch.equal(getattr(got.stats.samples, name), getattr(expected.stats.samples, name)), name
    for name in counts:
        assert getattr(got.stats, name) == getattr(expected.stats, name), name
    for a, b in zip(got.stats.samples.h, expected.stats.samples.h, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=0)
    assert torch.equal(got.ts, expected.ts) and got.status == expected.status
    return got


@pytest.mark.slow
def test_states_gradients_and_counts_are_those_of_eager_rounds(traced, monkeypatch):
    monkeypatch.setattr(phases, "FEW", 2)  # so that the batch shrinks several times
    got = agree(Driven())
    assert int(got.stats.rejected) > 0 and len(traced) == 2
    each = got.stats.samples
    assert int(each.nfe.sum()) < each.evaluated < 2 * int(each.nfe.sum()) < 6 * int(each.nfe.max())
    backwards = agree(Driven(), t1=-0.3)
    assert backwards.stats.vjps == backwards.stats.nfe_backward


@pytest.mark.slow
def test_outputs_of_each_sample_are_those_of_eager_rounds(traced, monkeypatch):
    monkeypatch.setattr(phases, "FIRST_RECORD", 8)  # a record that is full is followed by another
    rooms, phase = [], phases.SampleGraphs._phase
    monkeypatch.setattr(
        phases.SampleGraphs, "_phase",
        lambda self, *given: rooms.append(self.capacity) or phase(self, *given),
    )  # fmt: skip
    t1 = torch.tensor([0.5, -0.2, 0.0, 0.4, 0.1, 0.3], dtype=torch.float64)
    ts = torch.tensor([0.0, 0.21, 0.22, 0.8, 1.0], dtype=torch.float64)[:, None] * t1
    got = agree(Driven(), t1=t1, ts=ts)
    assert rooms[:2] == [8, 8] and int(got.stats.samples.accepted.max()) > 16
    agree(Driven(), t1=0.4, ts=[0.1, 0.4])


def test_van_der_pol_is_what_scipy_says_and_the_batch_shrinks(traced, monkeypatch):
    monkeypatch.setattr(phases, "FEW", 2)
    x0, rows = torch.tensor([[2.0, 0.0]], dtype=torch.float64).repeat(6, 1), []

    def F(t, x, mu):
        p, v = x[:, 0], x[:, 1]
        return torch.stack([v, mu * (1 - p * p) * v - p], 1)

    phase = phases.SampleGraphs._phase
    monkeypatch.setattr(
        phases.SampleGraphs, "_phase",
        lambda self, problem, samples, *rest: rows.append(len(samples)) or phase(self, problem, samples, *rest),
    )  # fmt: skip
    with torch.no_grad():
        solution = odenet.solve(F, x0, (0.0, 0.2), args=(MU,), compile=True, **{**HOW, "rtol": 1e-5})
    assert len(traced) == 1 and rows == sorted(rows, reverse=True) and rows[0] == 6 and rows[-1] < 3
    for i, mu in enumerate(MU.tolist()):
        truth = solve_ivp(
            lambda t, x, mu=mu: [x[1], mu * (1 - x[0] ** 2) * x[1] - x[0]], (0, 0.2), [2.0, 0.0], method="Radau",
            rtol=1e-10, atol=1e-10,
        ).y[:, -1]  # fmt: skip
        torch.testing.assert_close(solution.last[i], torch.tensor(truth), rtol=2e-4, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("solver", EXPLICIT)
def test_every_explicit_method(traced, solver):
    F = Driven()
    for compile in (True, False):
        found = solved(F, compile, t1=0.2, solver=solver, rtol=1e-4, atol=1e-4)
        if compile:
            got, gradients = found
    torch.testing.assert_close(got.ys, found[0].ys, rtol=1e-9, atol=1e-9)
    for a, b in zip(gradients, found[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    for name in ("nfe", "accepted", "rejected"):
        assert torch.equal(getattr(got.stats.samples, name), getattr(found[0].stats.samples, name)), name
    assert got.stats.nfe == found[0].stats.nfe


@pytest.mark.slow
def test_second_derivatives_are_those_of_eager_steps(traced):
    F = Driven()
    found = []
    for compile in (True, False):
        x0 = torch.tensor([[2.0, 0.0]], dtype=torch.float64).repeat(6, 1).requires_grad_()
        last = odenet.solve(F, x0, (0.0, 0.3), ts=[0.1, 0.3], args=(MU,), compile=compile, **HOW).ys
        (a,) = torch.autograd.grad(last.square().sum(), x0, create_graph=True)
        found.append(torch.autograd.grad(a.square().sum(), [x0, F.w]))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.slow
def test_a_sample_that_breaks_down_is_named_as_by_the_eager_loop(traced):
    x0 = torch.tensor([[0.5], [4.0], [0.2]], dtype=torch.float64)
    how = {"per_sample": True, "rtol": 1e-6, "atol": 1e-6}
    F = lambda t, x: x * x  # noqa: E731
    said = []
    for compile in (True, False):
        with pytest.raises(odenet.errors.SolveError) as failure:
            odenet.solve(F, x0, compile=compile, **how)
        solution = odenet.solve(F, x0, compile=compile, on_failure="status", **how)
        said.append((str(failure.value), solution.status, solution.stats.samples.nfe.tolist()))
        with pytest.raises(odenet.errors.StepBudgetError):
            odenet.solve(F, x0, compile=compile, max_steps=3, **how)
        with pytest.raises(odenet.errors.FunctionBudgetError):
            odenet.solve(F, x0, compile=compile, max_nfe=12, **how)
    assert said[0] == said[1] and traced
    bad = torch.tensor([[0.5], [math.nan]], dtype=torch.float64)
    with pytest.raises(odenet.errors.NonFiniteStateError, match="sample 1"):
        odenet.solve(F, bad, compile=True, **how)


REFUSED = {
    "method": ({"solver": "alf", "rtol": 1e-2, "atol": 1e-2}, "explicit Runge-Kutta"),
    "dense": ({"dense": True, "gradient": "autograd"}, "dense"),
    "stops": ({"stops": [0.02]}, "stops"),
    "tolerances": ({"rtol": torch.full((6, 1), 1e-4, dtype=torch.float64)}, "tolerances per element"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compiled_is_walked_eagerly_and_said_once(traced, case):
    scheme, why = REFUSED[case]
    F = Driven()
    x0 = torch.tensor([[2.0, 0.0]], dtype=torch.float64).repeat(6, 1)
    call = lambda compile: odenet.solve(F, x0, (0.0, 0.03), args=(MU,), compile=compile, **{**HOW, **scheme})  # noqa: E731
    with pytest.warns(CompileWarning, match=why):
        got = call(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(True)
    assert torch.equal(got.last, call(False).last) and not traced
    assert got.stats.samples.evaluated == int(got.stats.samples.nfe.sum())


def test_auto_compiles_after_as_many_evaluations_as_compiling_takes(traced, monkeypatch):
    monkeypatch.setattr(per_sample, "ENOUGH_EVALUATIONS", 100)
    block = odenet.ODEBlock(odenet.residual.MLP(3, width=4, norm="none"), per_sample=True, rtol=1e-4, atol=1e-4)
    x, calls = torch.randn(5, 3), 0
    with torch.no_grad():
        while calls < 100:
            y = block(x)
            calls += block.stats.nfe
            assert not traced
        torch.testing.assert_close(block(x), y, rtol=1e-5, atol=1e-6)
    assert len(traced) == 1 and x.numel() < compiled.SMALL


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_code_made_of_the_graphs_is_the_eager_solve_for_every_batch(dtype, caplog, monkeypatch):
    monkeypatch.setattr(per_sample, "_graphs", per_sample._rounds)
    F = Driven(dtype)
    within = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}
    for batch in (7, 1, 70):
        if dtype == torch.float64:
            agree(F, batch=batch, t1=0.2, within=1e-8, **within)
        else:
            got, expected = solved(F, True, 0.2, batch, dtype, **within), solved(F, False, 0.2, batch, dtype, **within)
            torch.testing.assert_close(got[0].ys, expected[0].ys, rtol=1e-3, atol=1e-3)
    assert caplog.text.count("odenet compiled a solve") == 1
    assert caplog.text.count("odenet compiled its gradient") == 1


@pytest.mark.slow
@pytest.mark.parametrize("each", [False, True], ids=["joint", "per_sample"])
def test_one_method_after_another_keeps_all_digits(each, monkeypatch):
    monkeypatch.setattr(per_sample, "_graphs", per_sample._rounds)
    F = Driven() if each else (lambda t, x: torch.tanh(3 * x.flip(1)) - x)
    x0 = torch.tensor([[2.0, 0.0]], dtype=torch.float64).repeat(6, 1)
    how = {**HOW, "args": (MU,)} if each else {"rtol": 1e-9, "atol": 1e-9}
    for solver in ("tsit5", "bosh3", "dopri5"):
        with torch.no_grad():
            got, expected = (odenet.solve(F, x0, (0.0, 0.2), solver=solver, compile=c, **how) for c in (True, False))
        torch.testing.assert_close(got.last, expected.last, rtol=0, atol=1e-13)


def test_compiled_rows_do_not_depend_on_their_batch(traced):
    """To rounding; an eager solve's rows are the same to the last bit."""
    F = Driven()
    with torch.no_grad():
        x0 = torch.tensor([[2.0, 0.0]], dtype=torch.float64).repeat(6, 1)
        whole = odenet.solve(F, x0, (0.0, 0.05), args=(MU,), compile=True, **HOW)
        part = odenet.solve(F, x0[:3], (0.0, 0.05), args=(MU[:3],), compile=True, **HOW)
    assert len(traced) == 1
    torch.testing.assert_close(part.last, whole.last[:3], rtol=1e-12, atol=1e-12)
    assert torch.equal(part.stats.samples.nfe, whole.stats.samples.nfe[:3])

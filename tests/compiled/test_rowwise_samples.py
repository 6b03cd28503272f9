"""Samples with their own steps in lanes: the states, gradients and counts of eager solves, and of each sample alone."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn

import odenet
from odenet.compiled import CompileWarning, per_sample, record
from odenet.compiled.rowwise import NotRowwiseError, samples
from odenet.compiled.rowwise.capture import Captured
from odenet.residual import MLP
from odenet.solvers import solvers
from odenet.solvers.explicit import ExplicitRungeKutta
from tests.compiled.test_per_sample import HOW, MU, Driven, agree, solved

EXPLICIT = [name for name, stepper in solvers.items() if type(stepper) is ExplicitRungeKutta]
COUNTS = ("nfe", "nfe_backward", "accepted", "rejected", "forced")


@pytest.fixture(autouse=True)
def rowwise_alone(monkeypatch):
    """No other way to compile."""

    def none(problem):
        raise AssertionError("not row by row")

    monkeypatch.setattr(per_sample, "_rounds", none)


@pytest.fixture
def threads():
    """Set the number of threads, for the test alone."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def van_der_pol(t, x, mu):
    p, v = x[:, 0], x[:, 1]
    return torch.stack([v, mu * (1 - p * p) * v - p], 1)


class Mixed(nn.Module):
    """Layers, and rows of two shapes that belong to the samples; nothing of the time."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(3)
        self.inner, self.outer = nn.Linear(3, 8, dtype=dtype), nn.Linear(8, 3, dtype=dtype)

    def forward(self, t, x, speed, drive, shared):
        y = self.outer(torch.tanh(self.inner(x) + shared))
        return speed * y - x + torch.einsum("bij,bj->bi", drive, x).sin()


def mixed(batch, dtype=torch.float64):
    torch.manual_seed(5)
    x0 = torch.randn(batch, 3, dtype=dtype)
    args = torch.rand(batch, 1, dtype=dtype) * 4, torch.randn(batch, 3, 3, dtype=dtype), torch.randn(8, dtype=dtype)
    return x0, args


def solve_mixed(F, x0, args, compile, grad=False, t1=1.0, **scheme):
    leaves = [x.clone().requires_grad_(grad) for x in (x0, *args)]
    how = {"rtol": 1e-6, "atol": 1e-6, "gradient": "checkpoint", **scheme}
    solution = odenet.solve(
        F, leaves[0], (0.0, t1), args=tuple(leaves[1:]), per_sample=True, per_sample_args=(0, 1), compile=compile, **how
    )
    return solution, leaves


def test_states_gradients_and_counts_are_the_eager_ones():
    got = agree(Driven())
    each = got.stats.samples
    assert int(got.stats.rejected) > 0 and each.evaluated == int(each.nfe.sum()) <= each.padded
    agree(Driven(), t1=-0.3)


def test_outputs_intervals_and_directions_are_each_samples_own(monkeypatch):
    monkeypatch.setattr(record, "FIRST_RECORD", 2)  # a record that is full is followed by another
    t1 = torch.tensor([0.5, -0.2, 0.0, 0.4, 0.1, 0.3], dtype=torch.float64)
    ts = torch.tensor([0.0, 0.21, 0.22, 0.8, 1.0], dtype=torch.float64)[:, None] * t1
    got = agree(Driven(), t1=t1, ts=ts)
    assert int(got.stats.samples.accepted.max()) > 16
    agree(Driven(), t1=0.4, ts=[0.1, 0.4])
    agree(Driven(), t1=0.4, ts=[0.0, 0.1, 0.2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_samples_are_what_each_is_alone_whatever_the_batch_and_the_threads(dtype, threads):
    F = Mixed(dtype)
    tolerance = 1e-6 if dtype == torch.float64 else 1e-4
    x0, args = mixed(1000, dtype)
    whole = None
    with torch.no_grad():
        for count in (1, 3):
            threads(count)
            for batch in (1000, 64, 3, 1):
                mine = x0[:batch], (args[0][:batch], args[1][:batch], args[2])
                got, _ = solve_mixed(F, *mine, True, rtol=tolerance, atol=tolerance)
                whole = whole or got
                assert torch.equal(got.last, whole.last[:batch])
                for name in ("nfe", "accepted", "rejected"):
                    mine, all_of_them = (getattr(s.stats.samples, name) for s in (got, whole))
                    assert torch.equal(mine, all_of_them[:batch])
                assert all(torch.equal(a, b) for a, b in zip(got.stats.samples.h, whole.stats.samples.h, strict=False))
        eager, _ = solve_mixed(F, x0, args, False, rtol=tolerance, atol=tolerance)
    within = 1e-9 if dtype == torch.float64 else 1e-3
    torch.testing.assert_close(whole.last, eager.last, rtol=within, atol=within)
    if dtype == torch.float64:
        for name in ("nfe", "accepted", "rejected"):
            assert torch.equal(getattr(whole.stats.samples, name), getattr(eager.stats.samples, name))
        assert whole.stats.nfe == eager.stats.nfe
    for i in (0, 17, 999):
        one = x0[i : i + 1], (args[0][i : i + 1], args[1][i : i + 1], args[2])
        with torch.no_grad():
            alone = odenet.solve(
                lambda t, x, one=one: F(t, x, *one[1]), one[0], rtol=tolerance, atol=tolerance, compile=False
            )
        torch.testing.assert_close(whole.last[i], alone.last[0], rtol=10 * within, atol=10 * within)


@pytest.mark.parametrize("batch", [1, 3, 64, 600])
def test_gradients_of_rows_and_of_what_is_shared_are_those_of_eager_steps(batch, threads):
    F = Mixed()
    x0, args = mixed(batch)
    found = []
    for compile, count in ((True, 1), (True, 2), (False, 2)):
        threads(count)
        ts = [0.3, 0.31, 1.0] if batch < 600 else None
        solution, leaves = solve_mixed(F, x0, args, compile, grad=True, ts=ts)
        weights = torch.linspace(0, 9, solution.ys.numel(), dtype=torch.float64).cos().view_as(solution.ys)
        gradients = torch.autograd.grad((weights * solution.ys).sum(), [*leaves, *F.parameters()])
        found.append((solution, gradients))
    for solution, gradients in found[:2]:
        for a, b in zip(gradients, found[2][1], strict=True):
            assert a.shape == b.shape and float((a - b).abs().max()) <= 1e-9 * float(b.abs().max())
        for name in COUNTS:
            a, b = (getattr(s.stats.samples, name) for s in (solution, found[2][0]))
            assert torch.equal(a, b), name
    for a, b in zip(found[0][1][:3], found[1][1][:3], strict=True):
        assert torch.equal(a, b)  # of rows: no sum over the samples


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_gradients_of_a_sample_do_not_depend_on_its_batch(dtype):
    F, found = Mixed(dtype), []
    x0, (speed, drive, shared) = mixed(200, dtype)
    ts = torch.rand(4, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).sort(0).values
    for batch in (200, 7, 1):
        args = speed[:batch], drive[:batch], shared
        solution, leaves = solve_mixed(F, x0[:batch], args, True, grad=True, ts=ts[:, :batch], rtol=1e-4, atol=1e-4)
        found.append(torch.autograd.grad(solution.ys.square().sum(), leaves[:3]))
    for part in found[1:]:
        assert all(
            torch.equal(a, b[: len(a)]) and float(a.abs().min()) > 0 for a, b in zip(part, found[0], strict=True)
        )


def test_van_der_pol_is_what_scipy_says():
    x0 = torch.tensor([[2.0, 0.0]], dtype=torch.float64).repeat(6, 1)
    with torch.no_grad():
        solution = odenet.solve(van_der_pol, x0, (0.0, 0.2), args=(MU,), compile=True, **{**HOW, "rtol": 1e-5})
    for i, mu in enumerate(MU.tolist()):
        truth = solve_ivp(
            lambda t, x, mu=mu: [x[1], mu * (1 - x[0] ** 2) * x[1] - x[0]], (0, 0.2), [2.0, 0.0], method="Radau",
            rtol=1e-10, atol=1e-10,
        ).y[:, -1]  # fmt: skip
        torch.testing.assert_close(solution.last[i], torch.tensor(truth), rtol=2e-4, atol=2e-5)


def test_the_work_is_that_of_each_sample_alone():
    mu = torch.logspace(0, 2, 64, dtype=torch.float64)
    x0 = torch.tensor([[2.0, 0.0]], dtype=torch.float64).repeat(64, 1)
    with torch.no_grad():
        got = odenet.solve(van_der_pol, x0, (0.0, 3.0), args=(mu,), compile=True, **{**HOW, "rtol": 1e-5, "atol": 1e-5})
        alone = [
            odenet.solve(lambda t, x, m=m: van_der_pol(t, x, m), x, (0.0, 3.0), rtol=1e-5, atol=1e-5, compile=False)
            for m, x in zip(mu.split(1), x0.split(1), strict=True)
        ]
    each = got.stats.samples
    assert each.nfe.tolist() == [one.stats.nfe for one in alone]
    assert each.evaluated == sum(one.stats.nfe for one in alone) and each.padded < 1.1 * each.evaluated


STEPS = {
    "steps": {"steps": 7},
    "step_size": {"step_size": 0.003},
    "grid": {"grid": torch.tensor([0.0, 0.01, 0.015, 0.03, 0.04], dtype=torch.float64)},
}


@pytest.mark.parametrize("case", STEPS)
@pytest.mark.parametrize("solver", ["euler", "dopri5"])
def test_steps_that_are_given(case, solver):
    t1 = 0.04 if case == "grid" else torch.tensor([0.04, -0.02, 0.0, 0.04, 0.01, 0.03], dtype=torch.float64)
    got = agree(Driven(), t1=t1, solver=solver, rtol=None, atol=None, **STEPS[case])
    assert got.stats.samples.evaluated == int(got.stats.samples.nfe.sum()) and got.stats.vjps > 0
    if case == "grid":
        agree(Driven(), t1=t1, ts=[0.0, 0.015, 0.04], solver=solver, rtol=None, atol=None, **STEPS[case])


@pytest.mark.slow
@pytest.mark.parametrize("steps", [5, None])
@pytest.mark.parametrize("solver", EXPLICIT)
def test_every_explicit_method_is_the_eager_one(solver, steps):
    if steps is None and not solvers[solver].adaptive:
        pytest.skip("no error estimate")
    numerics = {"steps": steps, "rtol": None, "atol": None} if steps else {"rtol": 1e-4, "atol": 1e-4}
    agree(Driven(), t1=0.03 if steps else 0.2, solver=solver, within=1e-8, **numerics)


def test_second_derivatives_are_those_of_eager_steps():
    F, found = Driven(), []
    for compile in (True, False):
        x0 = torch.tensor([[2.0, 0.0]], dtype=torch.float64).repeat(6, 1).requires_grad_()
        last = odenet.solve(F, x0, (0.0, 0.3), ts=[0.1, 0.3], args=(MU,), compile=compile, **HOW).ys
        (a,) = torch.autograd.grad(last.square().sum(), x0, create_graph=True)
        found.append(torch.autograd.grad(a.square().sum(), [x0, F.w]))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)


def test_a_sample_that_breaks_down_is_named_as_by_the_eager_loop():
    x0 = torch.tensor([[0.5], [4.0], [0.2]], dtype=torch.float64)
    how = {"per_sample": True, "rtol": 1e-6, "atol": 1e-6}
    F = lambda t, x: x * x  # noqa: E731
    said = []
    for compile in (True, False):
        mine = []
        for more in ({}, {"max_steps": 3}, {"max_nfe": 12}, {"steps": 400, "rtol": None, "atol": None}):
            with pytest.raises(odenet.errors.SolveError) as failure:
                odenet.solve(F, x0 if "steps" not in more else 1e3 * x0, compile=compile, **{**how, **more})
            mine.append((type(failure.value), str(failure.value)))
        solution = odenet.solve(F, x0, compile=compile, on_failure="status", **how)
        said.append((mine, solution.status, solution.stats.samples.nfe.tolist()))
    assert said[0] == said[1]
    for bad in (math.nan, math.inf):
        with pytest.raises(odenet.errors.NonFiniteStateError, match="sample 1"):
            odenet.solve(F, torch.tensor([[0.5], [bad]], dtype=torch.float64), compile=True, **how)


def test_a_gradient_that_is_not_written_row_by_row_is_walked_back_in_rounds(monkeypatch):
    class Rounds:
        def __init__(self, problem):
            pass

        def back(self, problem, walked, leaves, a, cotangents):
            (phase,) = walked.phases
            steps = phase.record[0][:, : phase.steps]
            assert torch.equal((steps[1] != steps[0]).sum(0), phase.accepted)
            return torch.zeros_like(a), *(torch.zeros_like(leaf) for leaf in leaves.tensors)

    def joint(self, wanted, one_time=False):
        raise NotRowwiseError("not here")

    monkeypatch.setattr(Captured, "joint", joint)
    monkeypatch.setattr(samples, "SampleGraphs", Rounds)
    assert all(float(g.abs().max()) == 0 for g in solved(Driven(), True)[1])


def test_what_is_no_function_of_single_samples_goes_the_other_way(monkeypatch):
    asked = []

    class Rounds:
        compilations = 0

        def walk(self, problem, keep):
            asked.append(problem)

    monkeypatch.setattr(per_sample, "_rounds", lambda problem: Rounds())
    x, args = mixed(5)
    with torch.no_grad():
        F = lambda t, x, speed, drive, shared: x - x.mean(0)  # noqa: E731
        got, _ = solve_mixed(F, x, args, True)
        torch.testing.assert_close(got.last, solve_mixed(F, x, args, False)[0].last)
        assert len(asked) == 1
        F = lambda t, x, speed, drive, shared: x - x.mean(0) * 1  # noqa: E731
        with pytest.warns(CompileWarning, match="steps that are given"):
            solve_mixed(F, x, args, True, steps=4, rtol=None, atol=None)
    assert len(asked) == 1


def test_one_F_is_compiled_once_for_every_batch(caplog):
    F = MLP(3, width=8, norm="none", time="concat")
    for batch in (7, 1, 2, 70):
        odenet.solve(
            F, torch.randn(batch, 3), compile=True, per_sample=True, rtol=1e-4, atol=1e-4
        ).last.sum().backward()
    assert caplog.text.count("odenet compiled a solve") == 1
    assert caplog.text.count("odenet compiled its gradient") == 1


def test_which_arguments_belong_to_the_samples_is_seen_at_every_call():
    F, x0, w = (lambda t, x, w: -w * x), torch.ones(4, 4, dtype=torch.float64), torch.arange(4.0, dtype=torch.float64)
    how = {"per_sample": True, "rtol": 1e-9, "atol": 1e-9, "compile": True}
    with torch.no_grad():
        shared = odenet.solve(F, x0, args=(w,), per_sample_args=(), **how).last
        own = odenet.solve(F, x0, args=(w[:, None],), per_sample_args=(0,), **how).last
        with pytest.raises(odenet.errors.InputError, match="without one of the samples"), pytest.warns(CompileWarning):
            odenet.solve(F, x0, args=(w[:, None],), per_sample_args=(), **how)
    decay = (-w).exp()
    torch.testing.assert_close(shared, decay.expand(4, 4), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(own, decay[:, None].expand(4, 4), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shape", [(5,), (5, 2, 3)], ids=str)
def test_states_of_any_shape_and_arguments_in_trees(shape):
    torch.manual_seed(0)
    x0, t1 = torch.randn(shape, dtype=torch.float64), torch.tensor([0.0, 1.0, 0.3, 2.0, 1.0], dtype=torch.float64)
    rates = {"a": torch.rand(shape, dtype=torch.float64) * 3, "b": torch.rand(5, dtype=torch.float64)}
    wide = lambda v: v.reshape(-1, *[1] * (len(shape) - 1))  # noqa: E731
    F = lambda t, x, r: -r["a"] * x.sin() + wide(r["b"] * t.cos())  # noqa: E731
    how = {"per_sample": True, "per_sample_args": (0,), "args": (rates,), "rtol": 1e-8, "atol": 1e-8}
    found = []
    for compile in (True, False):
        x = x0.clone().requires_grad_()
        solution = odenet.solve(F, x, (0.0, t1), compile=compile, gradient="checkpoint", **how)
        found.append((solution, torch.autograd.grad(solution.last.cos().sum(), x)[0]))
    (got, a), (expected, b) = found
    torch.testing.assert_close(got.last, expected.last, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert torch.equal(got.stats.samples.nfe, expected.stats.samples.nfe) and int(got.stats.samples.nfe[0]) == 0
    nowhere = odenet.solve(F, x0, (0.5, 0.5), compile=True, **how)
    assert torch.equal(nowhere.last, x0) and nowhere.stats.nfe == 0


def test_steps_that_are_forced_and_first_steps_that_are_given():
    got = agree(Driven(), t1=0.1, h_min=2e-3, first_step=1e-3, h_max=0.02, rtol=1e-9, atol=1e-9)
    assert int(got.stats.forced) > 0

"""The walk for a GPU does what the eager loop does: here on a CPU, where its steps are done as they stand.

Only the capture itself needs a GPU: see test_gpu.py.
"""

from itertools import accumulate
from typing import ClassVar

import pytest
import torch

import odenet
from odenet.compiled import record
from odenet.compiled.captured import adaptive, fixed, graphs
from odenet.solvers import solvers
from tests.compiled.captured.smooth import Smooth
from tests.compiled.test_compiled import (
    EXPLICIT,
    INTERVAL,
    Swirl,
    agree,
    breaks_down_alike,
    compiled_without_warning,
    same_numbers,
    same_steps,
    solved,
    ts,
)

ADAPTIVE = {"solver": "dopri5", "rtol": 1e-7, "atol": 1e-7}
PICKED = [name for name in EXPLICIT if solvers[name].adaptive]


@pytest.mark.parametrize("solver", EXPLICIT)
@pytest.mark.parametrize("interval", [(0.0, 1.5), (1.5, 0.0)], ids=["forwards", "backwards"])
def test_fixed_steps_are_the_eager_ones(solver, interval, x, captures):
    u = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    times = sorted([0.0, 0.25, 0.75, 1.5], reverse=interval[0] > 0)
    got = agree(Swirl(), x, ts=times, interval=interval, args=(u,), solver=solver, steps=6)
    assert captures and got.stats.nfe_masked == 0


@pytest.mark.parametrize("solver", PICKED)
@pytest.mark.parametrize("interval", [(0.0, 2.0), (2.0, 0.0)], ids=["forwards", "backwards"])
def test_adaptive_steps_are_the_eager_ones(solver, interval, x, captures):
    u = torch.full((3,), 0.1, dtype=torch.float64, requires_grad=True)
    got = agree(Smooth(), x, within=1e-10, interval=interval, args=(u,), solver=solver, rtol=1e-5, atol=1e-5)
    assert captures and got.stats.accepted > 4


@pytest.mark.parametrize("solver", PICKED)
def test_rejected_steps_are_the_eager_ones_and_on_the_accepted_ones_so_are_the_numbers(solver, x, captures):
    """As for the graphs: see test_compiled.py."""
    F, numerics = Swirl(), {"rtol": 1e-4, "atol": 1e-4}
    got, gradients = compiled_without_warning(F, x, solver=solver, **numerics)
    same_steps(got, solved(F, x, False, solver=solver, **numerics)[0], ("nfe", "accepted", "rejected", "forced"))
    grid = [INTERVAL[0], *accumulate(got.stats.h)]
    expected, truth = solved(F, x, False, solver=solver, grid=[*grid[:-1], INTERVAL[1]])
    same_numbers(got, gradients, expected, truth, within=1e-12)
    assert captures and got.stats.rejected > 0


@pytest.mark.parametrize("solver", ["dopri5", "tsit5"])
def test_outputs_inside_steps_and_their_gradients_are_the_eager_ones(solver, x):
    dense = {"solver": solver, "rtol": 1e-6, "atol": 1e-6}
    got = agree(Smooth(), x, ts=ts, interval=(0.0, 1.7), **dense)
    assert got.stats.vjps == got.stats.nfe_backward > 6 * got.stats.accepted  # the last stage counts in some steps
    agree(Smooth(), x, ts=ts[::-1], interval=(1.7, 0.0), **dense)
    agree(Smooth(), x, ts=[0.2, 0.21, 0.22], interval=(0.0, 1.7), **dense)  # several in a step, none at the end


def test_a_full_record_is_followed_by_another(x, monkeypatch):
    monkeypatch.setattr(record, "FIRST_RECORD", 8)
    monkeypatch.setattr(record, "LARGEST_RECORD", 1)
    monkeypatch.setattr(graphs, "LARGEST_RECORD", 1)
    got = agree(Swirl(), x, within=1e-9, ts=ts, **ADAPTIVE)
    assert got.stats.accepted > 16
    agree(Swirl(), x, solver="rk4", steps=21, ts=[0.25, 1.0, 2.625], interval=(0.0, 2.625))


def test_more_steps_than_a_graph_holds(x):
    agree(Swirl(), x, solver="heun2", steps=3 * fixed.RUN + 5)


def test_budgets_sizes_and_controllers_are_the_scheme_s(x):
    agree(Smooth(), x, solver="tsit5", rtol=1e-4, atol=1e-6, first_step=0.01, h_max=0.1, controller="PID")
    got = agree(Smooth(), x, solver="dopri5", rtol=1e-9, atol=1e-9, h_min=0.2)
    assert got.stats.forced > 0


def test_f_is_called_inside_the_interval_only_and_the_walk_ends_there_exactly(x):
    """A step after the end is one from t1 to t1; no step depends on how many are taken before somebody looks."""

    class Watched(Smooth):
        seen: ClassVar[list[float]] = []

        def forward(self, t, x):
            self.seen.append(float(t))
            return super().forward(t, x)

    seen = Watched.seen

    t1, last = 1.1 / 3, []
    for look in (1, 5, 50):
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(adaptive, "FIRST_LOOK", look)
            F = Watched()
            F.load_state_dict(last[0][0]) if last else None
            seen.clear()
            solution = odenet.solve(F, x, (0.1, t1), rtol=1e-6, atol=1e-6, compile=True)
            after = len([t for t in seen if t == t1])
            last.append((F.state_dict(), solution.last, after, solution.stats))
            assert min(seen) == 0.1 and max(seen) == t1 and solution.times == [t1]
            assert sum(solution.stats.h) == pytest.approx(t1 - 0.1, rel=1e-15)
    assert torch.equal(last[0][1], last[1][1]) and torch.equal(last[0][1], last[2][1])
    assert last[0][3].h == last[2][3].h and last[0][3].nfe == last[2][3].nfe
    assert last[0][3].nfe_masked < last[1][3].nfe_masked < last[2][3].nfe_masked
    assert last[2][2] > last[1][2] > last[0][2]


def test_the_next_solve_takes_as_many_steps_as_the_last_one_before_it_looks(x, captures):
    F = Smooth()
    with torch.no_grad():
        first = odenet.solve(F, x, INTERVAL, rtol=1e-6, atol=1e-6, compile=True)
        again = odenet.solve(F, x, INTERVAL, rtol=1e-6, atol=1e-6, compile=True)
    assert first.stats.nfe_masked >= again.stats.nfe_masked == 0
    assert first.stats.nfe == again.stats.nfe and torch.equal(first.ys, again.ys)


@pytest.mark.parametrize(
    ("scheme", "error"),
    [
        ({"max_steps": 5, **ADAPTIVE}, "budget of 5 steps"),
        ({"max_nfe": 20, **ADAPTIVE}, "budget of 20 evaluations"),
        ({"late": 0.5, **ADAPTIVE}, "NaN or infinity"),
        ({"late": 0.5, "solver": "rk4", "steps": 5}, "NaN or infinity"),
        ({"late": -1.0, **ADAPTIVE}, "NaN or infinity for the initial state"),
    ],
    ids=["steps", "nfe", "nonfinite", "fixed", "start"],
)
def test_a_solve_that_breaks_down_says_what_the_eager_one_says(scheme, error, x, captures):
    breaks_down_alike(x, error, **scheme)
    assert captures[0].compilations == 1


def test_a_singularity_is_an_underflow(x):
    said = []
    for compile in (True, False):
        with pytest.raises(odenet.errors.StepUnderflowError) as failure:
            odenet.solve(_square, 1 + x.abs(), (0, 5), rtol=1e-6, atol=1e-6, compile=compile)
        said.append(str(failure.value).split(",")[0])
    assert said[0] == said[1]


def _square(t, x):
    return x**2


def test_second_derivatives_are_those_of_eager_steps(x):
    F, found = Smooth(), []
    for compile in (True, False):
        x0 = x.clone().requires_grad_()
        last = odenet.solve(F, x0, INTERVAL, compile=compile, rtol=1e-4, atol=1e-4).last
        (a,) = torch.autograd.grad(last.square().sum(), x0, create_graph=True)
        found.append(torch.autograd.grad(a.square().sum(), [x0, F.A]))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)


def test_two_solves_before_their_gradients_do_not_mix(x):
    F = Smooth()
    starts = [x.clone().requires_grad_(), (2 * x).requires_grad_()]
    ends = [odenet.solve(F, start, INTERVAL, rtol=1e-6, atol=1e-6, compile=True).last for start in starts]
    got = [torch.autograd.grad(end.sum(), start)[0] for end, start in zip(ends, starts, strict=True)]
    for a, start in zip(got, starts, strict=True):
        last = odenet.solve(F, start, INTERVAL, rtol=1e-6, atol=1e-6, compile=False).last
        torch.testing.assert_close(a, torch.autograd.grad(last.sum(), start)[0], rtol=1e-10, atol=1e-10)


def test_under_inference_mode_before_and_after_other_solves(x):
    F, scheme = Smooth(), {"rtol": 1e-5, "atol": 1e-5}
    with torch.inference_mode():
        first = odenet.solve(F, x, compile=True, **scheme).last
    agree(F, x, **scheme)
    with torch.inference_mode():
        assert torch.equal(odenet.solve(F, x, compile=True, **scheme).last, first)

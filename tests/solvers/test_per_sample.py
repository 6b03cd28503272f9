"""Every sample with its own steps: independent of its batch, counted row by row, ended and failed one by one."""

import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torch import nn

import odenet
from odenet.depth import PiecewiseConstant
from odenet.solvers import Controller, solvers
from odenet.solvers.implicit import ImplicitRungeKutta
from tests.oracles.families import marks

ABLE = [  # the implicit ones have tests of their own
    name for name, s in solvers.items() if s.per_sample and s.adaptive and not isinstance(s, ImplicitRungeKutta)
]
EACH = [pytest.param(name, marks=marks(name)) for name in ABLE]
MU = torch.tensor([1.0, 30.0, 4.0, 100.0, 11.0], dtype=torch.float64)
VDP = {"rtol": 1e-6, "atol": 1e-6, "per_sample": True, "per_sample_args": (0,)}


def van_der_pol(t, x, mu):
    return torch.stack([x[:, 1], mu * (1 - x[:, 0] ** 2) * x[:, 1] - x[:, 0]], 1)


def start(batch):
    return torch.tensor([[2.0, 0.0]], dtype=torch.float64).repeat(batch, 1)


class Rows(nn.Module):
    """F with a diary: how many rows it was called with, and at what times."""

    def __init__(self, F):
        super().__init__()
        self.F, self.rows, self.times = F, [], []

    def forward(self, t, x, *args):
        assert t.shape == x.shape[:1]
        self.rows.append(len(x))
        self.times.append(t.clone())
        return self.F(t, x, *args)


def polynomial(t, x, c):
    """Additions and products only, so that a row's value has the same bits in every batch."""
    return c * x * (1 - x * x) + t.reshape(-1, 1) * 0.5


def test_van_der_pol_of_mixed_stiffness_is_what_scipy_says_and_costs_what_each_costs_alone():
    F = Rows(van_der_pol)
    mixed = odenet.solve(F, start(5), (0.0, 2.0), args=(MU,), **VDP)
    for i, mu in enumerate(MU.tolist()):
        truth = solve_ivp(
            lambda t, x, mu=mu: [x[1], mu * (1 - x[0] ** 2) * x[1] - x[0]], (0, 2), [2.0, 0.0], method="Radau",
            rtol=1e-10, atol=1e-10,
        ).y[:, -1]  # fmt: skip
        torch.testing.assert_close(mixed.last[i], torch.tensor(truth), rtol=2e-4, atol=2e-5)
        shared = odenet.solve(lambda t, x, mu=mu: van_der_pol(t, x, mu), start(1), (0.0, 2.0), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(mixed.last[i], shared.last[0], rtol=1e-9, atol=1e-9)
        each = mixed.stats.samples
        assert int(each.nfe[i]) == shared.stats.nfe
        assert (int(each.accepted[i]), int(each.rejected[i])) == (shared.stats.accepted, shared.stats.rejected)
        torch.testing.assert_close(each.h[i], torch.tensor(shared.stats.h, dtype=torch.float64), rtol=1e-6, atol=0)
    assert sum(F.rows) == int(mixed.stats.samples.nfe.sum())
    assert len(F.rows) == mixed.stats.nfe == int(mixed.stats.samples.nfe.max())
    assert min(F.rows) == 1 and max(F.rows) == 5
    assert mixed.status == ["success"] * 5


@pytest.mark.parametrize("solver", EACH)
def test_a_sample_is_the_same_to_the_last_bit_whatever_else_is_in_its_batch(solver):
    c = torch.tensor([[0.5], [8.0], [-2.0], [3.0], [0.1], [20.0], [1.0]], dtype=torch.float64)
    c = c if hasattr(solvers[solver], "tableau") else c / 8  # the reversible ones are not stable on more
    x0 = torch.linspace(0.2, 0.9, 14, dtype=torch.float64).reshape(7, 2)
    how = {"solver": solver, "rtol": 1e-4, "atol": 1e-4, "per_sample": True, "per_sample_args": (0,)}
    ts = [0.0, 0.31, 0.9, 1.5]
    whole = odenet.solve(polynomial, x0, (0.0, 1.5), ts=ts, args=(c,), **how)
    for rows in ([3], [0, 5], [1, 2, 4, 6]):
        part = odenet.solve(polynomial, x0[rows], (0.0, 1.5), ts=ts, args=(c[rows],), **how)
        assert torch.equal(part.ys, whole.ys[:, rows])
        for name in ("nfe", "accepted", "rejected"):
            assert torch.equal(getattr(part.stats.samples, name), getattr(whole.stats.samples, name)[rows])
        assert all(torch.equal(h, whole.stats.samples.h[i]) for h, i in zip(part.stats.samples.h, rows, strict=True))
    plain = odenet.solve(lambda t, x: polynomial(t, x, c[3]), x0[3:4], (0.0, 1.5), ts=ts, solver=solver,
                         rtol=1e-4, atol=1e-4)  # fmt: skip
    torch.testing.assert_close(whole.ys[:, 3], plain.ys[:, 0], rtol=1e-10, atol=1e-10)
    assert plain.stats.nfe == int(whole.stats.samples.nfe[3])


@pytest.mark.parametrize("exponents", [(1, 0, 0), (0.7, 0, 0), (0.8, -0.2, 0)], ids=str)
def test_a_controller_picks_the_steps_that_it_picks_for_the_sample_alone(exponents):
    numerics = {"rtol": 1e-6, "atol": 1e-6, "controller": Controller(exponents, safety=0.85)}
    each = odenet.solve(van_der_pol, start(1), (0.0, 2.0), args=(MU[1:2],), per_sample=True, **numerics).stats
    shared = odenet.solve(lambda t, x: van_der_pol(t, x, MU[1]), start(1), (0.0, 2.0), **numerics).stats
    assert each.rejected == shared.rejected > 0
    torch.testing.assert_close(each.samples.h[0], torch.tensor(shared.h, dtype=torch.float64), rtol=1e-6, atol=0)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_batch_invariance_and_own_intervals_in_any_direction(data):
    batch = data.draw(st.integers(2, 6))
    numbers = lambda low, high: torch.tensor(  # noqa: E731
        data.draw(st.lists(st.floats(low, high), min_size=batch, max_size=batch)), dtype=torch.float64
    )
    c, x0 = numbers(-8, 8)[:, None], numbers(0.05, 0.95)[:, None].repeat(1, 7)  # never as many as samples
    t0, t1 = (numbers(-1, 1) * 100).round() / 100, (numbers(-1, 1) * 100).round() / 100
    controller = data.draw(st.sampled_from(["I", "PI", "PID"]))
    how = {"rtol": 1e-5, "atol": 1e-6, "per_sample": True, "per_sample_args": (0,), "controller": controller}
    F = Rows(polynomial)
    whole = odenet.solve(F, x0, (t0, t1), args=(c,), **how)
    rows = data.draw(st.lists(st.integers(0, batch - 1), min_size=1, unique=True).map(sorted))
    part = odenet.solve(polynomial, x0[rows], (t0[rows], t1[rows]), args=(c[rows],), **how)
    assert torch.equal(part.last, whole.last[rows])
    assert torch.equal(part.stats.samples.nfe, whole.stats.samples.nfe[rows])
    assert torch.equal(whole.ended, t1)
    sums = torch.stack([h.sum() for h in whole.stats.samples.h])
    torch.testing.assert_close(sums, (t1 - t0).abs(), rtol=1e-12, atol=1e-12)
    assert sum(F.rows) == int(whole.stats.samples.nfe.sum())
    if F.times:
        assert min(map(torch.min, F.times)) >= torch.minimum(t0, t1).min()
        assert max(map(torch.max, F.times)) <= torch.maximum(t0, t1).max()


@pytest.mark.parametrize("solver", ["dopri5", "alf"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_knots_stops_and_jumps_end_the_steps_of_each_sample_on_its_own_way(solver, sign):
    """x' = 1, 2, 4 on the thirds of each sample's own interval, with a jump of 8 at |t| = 0.5."""
    seen = [[], [], []]

    class Slope(nn.Module):
        def __init__(self, number):
            super().__init__()
            self.number = number

        def forward(self, t, x):
            seen[self.number].append(t.clone())
            jump = 8.0 * (t * sign > 0.5).to(t)
            return sign * (2.0**self.number + jump).reshape(-1, 1).expand_as(x)

    t1 = sign * torch.tensor([0.3, 3.0, 0.9, 1.2], dtype=torch.float64)
    x0 = torch.zeros(4, 2, dtype=torch.float64)
    solution = odenet.solve(
        PiecewiseConstant([Slope(n) for n in range(3)]), x0, (torch.zeros(4, dtype=torch.float64), t1), solver=solver,
        per_sample=True, jumps=[sign * 0.5], stops=[sign * 0.1], rtol=1e-3, atol=1e-3,
    )  # fmt: skip
    length = t1.abs()
    truth = length * 7 / 3 + 8 * (length - 0.5).clamp(min=0)
    torch.testing.assert_close(solution.last, truth[:, None].expand(4, 2), rtol=1e-12, atol=1e-12)
    for n, times in enumerate(seen):
        assert min(map(torch.min, (t.abs() for t in times))) >= 0.3 * n / 3 - 1e-15
        assert max(map(torch.max, (t.abs() for t in times))) <= 3.0 * (n + 1) / 3 + 1e-15
    for sample, h in enumerate(solution.stats.samples.h):
        ends = h.cumsum(0)
        due = [0.1, 0.5, *(float(length[sample]) * k / 3 for k in (1, 2, 3))]
        for t in (t for t in due if t <= float(length[sample])):
            assert float((ends - t).abs().min()) < 1e-12, (sample, t)


def test_outputs_shared_or_each_its_own_and_dense_output():
    x0 = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    rate = torch.tensor([[1.0], [-3.0], [0.0]], dtype=torch.float64)
    how = {"args": (rate,), "rtol": 1e-9, "atol": 1e-9, "per_sample": True, "per_sample_args": (0,)}
    F = lambda t, x, rate: rate * x  # noqa: E731
    truth = lambda t: x0 * torch.exp(rate * t.reshape(-1, 1))  # noqa: E731
    t1 = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    shared = odenet.solve(F, x0, (0.0, t1), ts=[0.0, 0.2, 0.2, 0.5], **how)
    assert shared.ys.shape == (4, 3, 1) and shared.ts.tolist() == [0.0, 0.2, 0.2, 0.5]
    for t, y in zip(shared.ts, shared.ys, strict=True):
        torch.testing.assert_close(y, truth(t.expand(3)), rtol=1e-7, atol=1e-7)
    assert torch.equal(shared.last, shared.ys[-1])
    ts = torch.stack([0.1 * t1, 0.9 * t1, t1])
    own = odenet.solve(F, x0, (0.0, t1), ts=ts, dense=True, **how)
    assert torch.equal(own.ts, ts)
    for t, y in zip(ts, own.ys, strict=True):
        torch.testing.assert_close(y, truth(t), rtol=1e-7, atol=1e-7)
    for t in (0.0, 0.33, 0.37 * t1, t1, torch.zeros(3)):
        at = torch.as_tensor(t, dtype=torch.float64).expand(3)
        torch.testing.assert_close(own(t), truth(at), rtol=1e-7, atol=1e-7)
    with pytest.raises(odenet.errors.InputError, match=r"between 0 and 0\.5 for sample 1, got 0\.6"):
        own(0.6)
    with pytest.raises(odenet.errors.InputError, match="dense=True"):
        shared(0.1)


@pytest.mark.parametrize("solver", EACH)
def test_outputs_inside_steps_cost_each_sample_what_they_cost_it_alone(solver):
    x0, c = (
        torch.linspace(0.1, 0.9, 4, dtype=torch.float64)[:, None],
        torch.tensor([[1.0], [9.0], [3.0], [0.2]]).double(),
    )
    c = c if hasattr(solvers[solver], "tableau") else c / 8
    how = {"solver": solver, "rtol": 1e-4, "atol": 1e-4}
    ts = [0.05, 0.06, 0.3, 0.95]
    F = Rows(polynomial)
    whole = odenet.solve(F, x0, ts=ts, args=(c,), per_sample=True, per_sample_args=True, **how)
    assert sum(F.rows) == int(whole.stats.samples.nfe.sum())
    for i in range(4):
        alone = odenet.solve(lambda t, x, i=i: polynomial(t, x, c[i]), x0[i : i + 1], ts=ts, **how)
        assert alone.stats.nfe == int(whole.stats.samples.nfe[i])
        torch.testing.assert_close(whole.ys[:, i], alone.ys[:, 0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(6,), (6, 2), (6, 3, 4, 4), (6, 2, 0), (0, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
def test_states_of_any_rank_and_dtype_with_the_batch_first(shape, dtype):
    rate = torch.arange(shape[0], dtype=torch.float32).reshape(-1, *(1,) * (len(shape) - 1)).to(dtype)
    x0 = torch.full(shape, 2.0, dtype=dtype)
    for solver, tolerance in (("dopri5", 1e-5), ("reversible_heun", 1e-3)):
        solution = odenet.solve(
            lambda t, x, rate: -rate * x, x0, args=(rate,), solver=solver, per_sample=True, per_sample_args=(0,),
            rtol=tolerance, atol=tolerance,
        )  # fmt: skip
        assert solution.last.dtype == dtype and solution.last.shape == shape
        torch.testing.assert_close(solution.last, x0 * torch.exp(-rate), rtol=1e-3, atol=30 * tolerance)


def test_an_image_F_with_time_and_a_tree_of_states():
    F = odenet.residual.Conv(3, width=4, time="concat", activation="tanh").double()
    x0 = torch.randn(4, 3, 5, 5, dtype=torch.float64) * torch.tensor([0.1, 3.0, 1.0, 0.5]).double().reshape(4, 1, 1, 1)
    block = odenet.ODEBlock(F, rtol=1e-5, atol=1e-5, per_sample=True)
    whole = block(x0)
    nfe = block.stats.samples.nfe
    assert len(nfe) == 4 and int(nfe.min()) > 0
    for i in range(4):
        alone = odenet.solve(F, x0[i : i + 1], rtol=1e-5, atol=1e-5)
        assert alone.stats.nfe == int(nfe[i])
        torch.testing.assert_close(whole[i], alone.last[0], rtol=1e-9, atol=1e-9)
    with pytest.raises(odenet.errors.InputError, match="steps of its own"):
        block.trajectory(x0)
    assert block.trajectory(x0, ts=[0.0, 1.0]).shape == (2, *x0.shape)

    def pair(t, state):
        return {"q": state["p"], "p": -state["q"] * t.new_tensor(4.0)}

    tree = {"q": torch.ones(3, 2).double(), "p": torch.zeros(3, 2).double()}
    t1 = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)
    solution = odenet.solve(pair, tree, (0.0, t1), per_sample=True, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(solution.last["q"], torch.cos(2 * t1)[:, None].expand(3, 2), rtol=1e-6, atol=1e-6)


def test_each_sample_ends_at_its_own_terminal_event():
    """A stone thrown up with speed v falls back at 2 v / g; it is highest at v / g."""
    v = torch.tensor([1.0, 3.0, 2.0, 9.0], dtype=torch.float64)
    x0 = torch.stack([torch.zeros(4, dtype=torch.float64), v], 1)
    F = lambda t, x: torch.stack([x[:, 1], -10 * torch.ones_like(t)], 1)  # noqa: E731
    ground = odenet.Event(lambda t, x: x[:, 0], terminal=True, direction=-1)
    top = odenet.Event(lambda t, x: x[:, 1], terminal=False)
    solution = odenet.solve(F, x0, (0.0, 1.0), event=[ground, top], per_sample=True, rtol=1e-8, atol=1e-8, dense=True)
    assert solution.status == ["event", "event", "event", "success"]
    torch.testing.assert_close(
        solution.ended, torch.tensor([0.2, 0.6, 0.4, 1.0], dtype=torch.float64), rtol=1e-9, atol=1e-9
    )
    landed, highest = solution.events
    assert sorted(landed.samples.tolist()) == [0, 1, 2] and sorted(highest.samples.tolist()) == [0, 1, 2, 3]
    torch.testing.assert_close(landed.ts, 0.2 * v[landed.samples], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(highest.ts, 0.1 * v[highest.samples], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(landed.ys, torch.stack([0 * v[:3], -v[landed.samples]], 1), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(solution.last[3], torch.tensor([4.0, -1.0]).double(), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(solution(0.5 * solution.ended)[:3, 0], 0.05 * v[:3] ** 2, rtol=1e-8, atol=1e-8)
    with pytest.raises(odenet.errors.InputError, match="sample 0"):
        solution(0.9)
    outputs = odenet.solve(F, x0, (0.0, 1.0), event=ground, per_sample=True, rtol=1e-8, atol=1e-8, ts=[0.1, 0.5, 1.0])
    assert outputs.ys.isnan().any(2).tolist() == [[False] * 4, [True, False, True, False], [True, True, True, False]]
    torch.testing.assert_close(outputs.last, solution.last, rtol=1e-8, atol=1e-8)


def test_a_sample_that_breaks_down_is_named_and_leaves_the_others_alone():
    """x' = x^2 blows up at 1 / x0: only the second sample reaches that; the fourth meets NaN at once."""
    x0 = torch.tensor([[0.5], [4.0], [0.2], [float("nan")]], dtype=torch.float64)
    F = lambda t, x: x * x  # noqa: E731
    how = {"per_sample": True, "rtol": 1e-6, "atol": 1e-6}
    solution = odenet.solve(F, x0, on_failure="status", ts=[0.1, 1.0], **how)
    assert solution.status[0] == solution.status[2] == "success"
    assert solution.status[3] == "nonfinite_state" and solution.status[1] in ("step_underflow", "nonfinite_function")
    assert sorted(solution.errors) == [1, 3] and solution.error is solution.errors[1]
    failure = solution.errors[1]
    assert failure.sample == 1 and failure.t == pytest.approx(0.25, abs=1e-6) and failure.nfe > 0
    assert "sample 1" in str(failure)
    good = torch.tensor([0, 2])
    torch.testing.assert_close(solution.last[good], x0[good] / (1 - x0[good]), rtol=1e-5, atol=1e-5)
    assert solution.ys[1, 1].isnan() and not solution.ys[0, 1].isnan()
    assert solution.ended[1] == pytest.approx(0.25, abs=1e-6) and solution.last[1] > 1e4
    with pytest.raises(odenet.errors.SolveError) as caught:
        odenet.solve(F, x0[:3], **how)
    assert caught.value.sample == 1
    hole = lambda t, x: torch.where(t > 0.5, torch.nan, 1.0).reshape(-1, 1) * torch.where(x > 5, x, 1.0)  # noqa: E731
    mixed = odenet.solve(hole, torch.tensor([[0.0], [9.0]]).double(), (0.0, torch.tensor([0.4, 1.0]).double()),
                         on_failure="status", **how)  # fmt: skip
    assert mixed.status[0] == "success" and mixed.status[1] == "nonfinite_function"


def test_budgets_are_of_each_sample():
    how = {"args": (MU,), "on_failure": "status", **VDP}
    free = odenet.solve(van_der_pol, start(5), (0.0, 2.0), **how)
    limit = int(free.stats.samples.nfe[4])
    held = odenet.solve(van_der_pol, start(5), (0.0, 2.0), max_nfe=limit, **how)
    kept = free.stats.samples.nfe <= limit
    assert 0 < int(kept.sum()) < 5
    assert held.status == ["success" if k else "nfe_budget" for k in kept]
    assert int(held.stats.samples.nfe.max()) <= limit
    assert torch.equal(held.last[kept], free.last[kept])
    tries = int((free.stats.samples.accepted + free.stats.samples.rejected)[4])
    held = odenet.solve(van_der_pol, start(5), (0.0, 2.0), max_steps=tries, **how)
    assert held.status == ["success" if k else "step_budget" for k in kept]
    with pytest.raises(odenet.errors.StepBudgetError) as caught:
        odenet.solve(van_der_pol, start(5), (0.0, 2.0), max_steps=tries, args=(MU,), **VDP)
    assert caught.value.sample == 1


def test_smallest_and_largest_steps_norms_and_tolerances_of_each_sample():
    how = {"args": (MU,), **VDP}
    free = odenet.solve(van_der_pol, start(5), (0.0, 1.0), **how)
    capped = odenet.solve(van_der_pol, start(5), (0.0, 1.0), h_max=0.01, **how)
    assert max(float(h.max()) for h in capped.stats.samples.h) <= 0.0101
    forced = odenet.solve(van_der_pol, start(5), (0.0, 1.0), h_min=0.005, **how)
    assert int(forced.stats.samples.forced[0]) == 0 < int(forced.stats.samples.forced[3])
    tight = torch.tensor([1e-9, 1e-4, 1e-4, 1e-4, 1e-4], dtype=torch.float64)[:, None]
    tuned = odenet.solve(van_der_pol, start(5), (0.0, 1.0), **how | {"rtol": tight, "atol": tight})
    assert (
        tuned.stats.samples.nfe[0] > free.stats.samples.nfe[0]
        and tuned.stats.samples.nfe[3] < free.stats.samples.nfe[3]
    )
    largest = odenet.solve(van_der_pol, start(5), (0.0, 1.0), norm=lambda x: x.abs().amax(1), **how)
    assert (largest.stats.samples.accepted >= free.stats.samples.accepted).all()
    with pytest.raises(odenet.errors.InputError, match="a number for each sample"):
        odenet.solve(van_der_pol, start(5), norm=lambda x: x.abs().max(), **how)


def test_no_way_to_go_is_the_identity_for_those_samples_alone():
    t1 = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    F = Rows(lambda t, x: -x)
    x0 = torch.ones(3, 1, dtype=torch.float64)
    solution = odenet.solve(F, x0, (0.0, t1), per_sample=True, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(solution.last, torch.exp(-t1)[:, None], rtol=1e-7, atol=0)
    assert solution.stats.samples.nfe.tolist() == [0, sum(F.rows), 0] and set(F.rows) == {1}
    nothing = odenet.solve(F, x0, (1.0, 1.0), per_sample=True, ts=[1.0, 1.0])
    assert torch.equal(nothing.ys, x0.expand(2, 3, 1)) and nothing.stats.nfe == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "scipy", "solver": "RK45"}, "backend='native' only"),
        ({"gradient": "mali"}, "not defined for solver 'dopri5'; use solver alf"),
        ({"gradient": "autograd", "gradient_options": {"checkpoints": 3}}, "no gradient_options"),
        ({"per_sample_args": ("a",)}, "indices of args"),
        ({"per_sample_args": (1,)}, "there are 1"),
        ({"per_sample_args": None}, r"say per_sample_args=\(0,\)"),
        ({"args": (torch.ones(4, 2),)}, "a row for each of the 5"),
        ({"t_span": (torch.zeros(3), 1.0)}, "one for each of the 5"),
        ({"t_span": (torch.full((5,), torch.nan), 1.0)}, "finite"),
        ({"ts": torch.zeros(2, 4)}, "a column a sample"),
        ({"ts": [0.5, 0.1]}, "without turning back for sample 0"),
        ({"event": lambda t, x, mu: x.sum()}, "samples first"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(change, message):
    how = {"t_span": (0.0, 0.1), "args": (MU,), "per_sample": True, "per_sample_args": (0,)} | change
    with pytest.raises(odenet.errors.InputError, match=message):
        odenet.solve(van_der_pol, start(5), **how)


HELD = torch.arange(16, dtype=torch.float64).reshape(4, 4)
WRONG = {
    "time": lambda t, x, c: x + t,
    "argument": lambda t, x, c: c[:, 0] * x,
    "held": lambda t, x, c: x * HELD,
    "coupled": lambda t, x, c: x - x.mean(0),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_numbers_of_samples_taken_for_those_of_features_are_noticed_where_there_are_as_many(wrong):
    x0, c = torch.randn(4, 4, dtype=torch.float64), torch.randn(4, 1, dtype=torch.float64)
    how = {"per_sample": True, "per_sample_args": (0,), "args": (c,)}
    with pytest.raises(odenet.errors.InputError, match=r"one by one.*shape \(4,\)"):
        odenet.solve(WRONG[wrong], x0, **how)
    with pytest.raises(odenet.errors.InputError, match=r"one by one.*shape \(4,\)"):
        odenet.solve(lambda t, x, c: x + t[:, None], torch.randn(4, 2, 4, 3, dtype=torch.float64), **how)
    F = Rows(lambda t, x, c: -x + t[:, None] * c)
    first, second = odenet.solve(F, x0, **how), odenet.solve(F, x0, **how)
    assert sum(F.rows) == int(first.stats.samples.nfe.sum() + second.stats.samples.nfe.sum()) + 3  # once for an F
    assert torch.equal(first.stats.samples.nfe, second.stats.samples.nfe)


def test_an_F_that_couples_samples_or_draws_is_refused():
    x = torch.randn(4, 3)
    with pytest.raises(odenet.errors.InputError, match="BatchNorm"):
        odenet.ODEBlock(odenet.residual.MLP(3, norm="batch"), per_sample=True)(x)
    dropout = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    with pytest.raises(odenet.errors.InputError, match="random numbers"):
        odenet.solve(lambda t, x: dropout(x), x, per_sample=True)
    dropout.eval()
    odenet.solve(lambda t, x: dropout(x), x, per_sample=True)
    mu = torch.linspace(1, 9, 4)
    with pytest.raises(RuntimeError) as caught:
        odenet.solve(lambda t, x: torch.einsum("b,bi->bi", mu, torch.sin(x)), x, per_sample=True)
    assert "of 4 samples" in caught.value.__notes__[0]


def test_an_F_made_for_one_time_is_told_about_the_shape_of_t():
    with pytest.raises(RuntimeError) as caught:
        odenet.solve(lambda t, x: -x + t, torch.ones(4, 3), solver="dopri5", rtol=1e-3, atol=1e-3, per_sample=True)
    assert "t of shape (4,)" in caught.value.__notes__[0]


def test_torchode_agrees_on_states_and_statistics():
    torchode = pytest.importorskip("torchode")
    mu = MU[[0, 2, 4]]
    term = torchode.ODETerm(lambda t, y: van_der_pol(t, y, mu))
    control = torchode.IntegralController(atol=1e-6, rtol=1e-6, term=term)
    adjoint = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), control)
    ends = torch.zeros(3, dtype=torch.float64), torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    theirs = adjoint.solve(torchode.InitialValueProblem(start(3), *ends))
    ours = odenet.solve(van_der_pol, start(3), ends, args=(mu,), **VDP)
    torch.testing.assert_close(ours.last, theirs.ys[:, -1], rtol=1e-4, atol=1e-4)
    steps = ours.stats.samples.accepted + ours.stats.samples.rejected
    assert (steps <= 1.3 * theirs.stats["n_steps"] + 3).all()


def test_statistics_of_blocks_add_up_sample_by_sample():
    F = odenet.residual.MLP(3, width=8).double()
    model = nn.Sequential(*(odenet.ODEBlock(F, per_sample=True, rtol=1e-6, atol=1e-6) for _ in range(2)))
    model(torch.randn(5, 3, dtype=torch.float64))
    total = odenet.blocks.collect_stats(model)
    parts = [block.stats.samples for block in model]
    assert torch.equal(total.samples.nfe, parts[0].nfe + parts[1].nfe)
    assert [len(h) for h in total.samples.h] == total.samples.accepted.tolist()
    assert total.accepted == int(total.samples.accepted.sum())
    assert math.isclose(float(total.samples.h[2].sum()), 2.0, rel_tol=1e-12)


def test_what_the_page_shows_runs():
    page = (Path(__file__).parents[2] / "docs" / "per_sample.md").read_text()
    first, second, third = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(compile(first, "per_sample.md", "exec"), names)
    nfe = names["sol"].stats.samples.nfe
    assert int(nfe[-1]) == int(nfe.max()) > 3 * int(nfe.min())  # the stiffest sample costs the most, and only itself
    exec(compile(second, "per_sample.md", "exec"), names)
    nfe = names["block"].stats.samples.nfe
    assert len(nfe) == 32 and int(nfe.min()) < int(nfe.max())
    exec(compile(third, "per_sample.md", "exec"), names)
    assert names["found"].samples.bincount().tolist() == [4, 5, 7]

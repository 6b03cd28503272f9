"""Steps that are given, each sample over its own interval or grid: against each sample in a solve of its own."""

import pytest
import torch

import odenet
from odenet.depth import PiecewiseConstant
from odenet.solvers import solvers
from odenet.solvers.implicit import ImplicitRungeKutta
from tests.oracles.families import marks

FIXED = [  # the implicit ones have tests of their own
    pytest.param(name, marks=marks(name))
    for name, s in solvers.items()
    if s.per_sample and not isinstance(s, ImplicitRungeKutta)
]
T0 = torch.tensor([0.0, 0.2, -0.3, 0.5, 0.1], dtype=torch.float64)
T1 = torch.tensor([1.0, 0.4, -0.7, 0.5, 1.3], dtype=torch.float64)
RATE = torch.tensor([1.0, 0.5, 2.0, 3.0, 0.3], dtype=torch.float64)[:, None]
X0 = torch.tensor([[1.0, 0.1], [0.3, -0.5], [0.2, 0.4], [0.1, 0.1], [-1.0, 0.7]], dtype=torch.float64)
OWN = {"per_sample": True, "per_sample_args": (0,)}


def pendulum(t, x, rate):
    """Separable, for the symplectic methods; additions, products and sines of single numbers."""
    q, p = x[:, :1], x[:, 1:]
    return torch.cat([rate * p, -rate * torch.sin(q) + 0.1 * t.reshape(-1, 1)], 1)


class Rows(torch.nn.Module):
    def __init__(self, F):
        super().__init__()
        self.F, self.rows = F, []

    def forward(self, t, x, *args):
        self.rows.append(len(x))
        return self.F(t, x, *args)


def alone(i, **how):
    rate = RATE[i : i + 1]
    return odenet.solve(lambda t, x: pendulum(t, x, rate), X0[i : i + 1], (float(T0[i]), float(T1[i])), **how)


@pytest.mark.parametrize("solver", FIXED)
def test_n_steps_of_each_samples_own_interval_are_its_steps_alone(solver):
    F = Rows(pendulum)
    part = torch.tensor([0.0, 0.31, 1.0], dtype=torch.float64)[:, None]
    ts = T0 + part * (T1 - T0)
    whole = odenet.solve(F, X0, (T0, T1), args=(RATE,), solver=solver, steps=7, ts=ts, **OWN)
    each = whole.stats.samples
    assert each.accepted.tolist() == [7, 7, 7, 0, 7] and int(each.rejected.sum()) == 0
    assert sum(F.rows) == int(each.nfe.sum()) and whole.status == ["success"] * 5
    for i in range(5):
        shared = alone(i, solver=solver, steps=7, ts=ts[:, i].tolist())
        torch.testing.assert_close(whole.ys[:, i], shared.ys[:, 0], rtol=1e-12, atol=1e-13)
        assert shared.stats.nfe == int(each.nfe[i])
        torch.testing.assert_close(each.h[i], torch.tensor(shared.stats.h, dtype=torch.float64), rtol=1e-14, atol=0)
    for rows in ([2], [0, 4]):
        fewer = odenet.solve(
            pendulum, X0[rows], (T0[rows], T1[rows]), args=(RATE[rows],), solver=solver, steps=7, ts=ts[:, rows], **OWN
        )
        assert torch.equal(fewer.ys, whole.ys[:, rows])


def test_a_step_size_gives_each_its_own_number_of_steps_and_a_grid_its_own_ends():
    F = Rows(pendulum)
    whole = odenet.solve(F, X0, (T0, T1), args=(RATE,), solver="rk4", step_size=0.15, **OWN)
    assert whole.stats.samples.accepted.tolist() == [7, 2, 3, 0, 8]
    assert F.rows[:4] == [4] * 4 and F.rows[-1] == 1 and sum(F.rows) == 4 * 20  # who is done is not evaluated
    parts = torch.tensor([0.0, 0.1, 0.15, 0.7, 1.0], dtype=torch.float64)[:, None] ** torch.arange(1, 5)
    rows = torch.tensor([0, 1, 2, 4])
    grid = T0[rows] + parts * (T1 - T0)[rows]
    own = odenet.solve(pendulum, X0[rows], (T0[rows], T1[rows]), args=(RATE[rows],), solver="heun3", grid=grid, **OWN)
    for n, i in enumerate(rows.tolist()):
        shared = alone(i, solver="rk4", step_size=0.15)
        torch.testing.assert_close(whole.last[i], shared.last[0], rtol=1e-12, atol=1e-13)
        shared = alone(i, solver="heun3", grid=grid[:, n].tolist())
        torch.testing.assert_close(own.last[n], shared.last[0], rtol=1e-12, atol=1e-13)
        assert own.stats.samples.h[n].tolist() == pytest.approx(torch.diff(grid[:, n]).abs().tolist())
    one = odenet.solve(pendulum, X0, (0.0, 1.0), args=(RATE,), solver="rk4", grid=[0.0, 0.3, 1.0], **OWN)
    assert one.stats.samples.accepted.tolist() == [2] * 5


@pytest.mark.parametrize("solver", ["ab3", "abm4"])
def test_adams_methods_have_the_weights_of_each_samples_own_past_with_gradients(solver):
    """On grids of each sample's own, over a knot that each reaches with another step, behind which its past ends."""

    class Layer(torch.nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, t, x, rate):
            return self.factor * pendulum(t, x, rate)

    F = PiecewiseConstant([Layer(1.0), Layer(-0.7)])
    rows = torch.tensor([0, 1, 2, 4])
    unit = lambda n, p: torch.linspace(0, 1, n + 1).double() ** p  # noqa: E731
    halves = [(6, 1.0), (8, 1.5), (9, 0.7), (11, 1.2)]  # steps up to the knot, and how they grow
    parts = torch.stack([torch.cat([unit(n, p), 1 + unit(17 - n, p)[1:]]) / 2 for n, p in halves], 1)
    grid, x0 = T0[rows] + parts * (T1 - T0)[rows], X0[rows].clone().requires_grad_()
    rate = RATE[rows].clone().requires_grad_()
    found = {}
    for gradient in ("autograd", "checkpoint"):
        whole = odenet.solve(
            F, x0, (T0[rows], T1[rows]), args=(rate,), solver=solver, grid=grid, gradient=gradient, **OWN
        )
        found[gradient] = torch.autograd.grad((whole.last**2).sum(), (x0, rate))
    for n, i in enumerate(rows.tolist()):
        shared = odenet.solve(
            F, x0[n : n + 1], (float(T0[i]), float(T1[i])), args=(rate[n : n + 1],), solver=solver,
            grid=grid[:, n].tolist(),
        )  # fmt: skip
        torch.testing.assert_close(whole.last[n], shared.last[0], rtol=1e-12, atol=1e-13)
        assert shared.stats.nfe == int(whole.stats.samples.nfe[n])
        wanted = torch.autograd.grad((shared.last**2).sum(), (x0, rate))
        for grads in found.values():
            for ours, theirs in zip(grads, wanted, strict=True):
                torch.testing.assert_close(ours[n], theirs[n], rtol=1e-11, atol=1e-13)


def test_corrections_go_on_for_the_samples_that_have_not_settled():
    F = Rows(lambda t, x, rate: -rate * torch.sinh(x))
    x0, rate = torch.ones(3, 2, dtype=torch.float64), torch.tensor([[0.1], [8.0], [1.0]], dtype=torch.float64)
    how = {"solver": "abm4", "steps": 12, "options": {"corrections": 30, "settled": (1e-3, 1e-10)}}
    whole = odenet.solve(F, x0, args=(rate,), **how, **OWN)
    calls = [odenet.solve(lambda t, x, i=i: -rate[i] * torch.sinh(x), x0[i : i + 1], **how).stats.nfe for i in range(3)]
    assert whole.stats.samples.nfe.tolist() == calls and calls[1] > calls[0] and sum(F.rows) == sum(calls)
    with pytest.warns(UserWarning, match="did not settle within 2 iterations"):
        odenet.solve(F, x0, args=(rate,), **how | {"options": {"corrections": 2, "settled": (1e-3, 1e-10)}}, **OWN)
    with pytest.raises(odenet.errors.InputError, match="corrections must be a positive integer, got 0"):
        odenet.solve(F, x0, args=(rate,), **how | {"options": {"corrections": 0}}, **OWN)


@pytest.mark.parametrize("solver", ["rk4", "abm4"])
@pytest.mark.parametrize("gradient", ["autograd", "checkpoint"])
def test_knots_stops_jumps_and_events_on_given_grids_with_gradients(gradient, solver):
    """x' = 1, 2, 4 on the thirds of each sample's own way, jumping by 8 at t = 1/2; doubled where it reaches 1/3."""
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)

    class Slope(torch.nn.Module):
        def __init__(self, number):
            super().__init__()
            self.number = number

        def forward(self, t, x):
            return scale * (2.0**self.number + 8.0 * (t > 0.5).to(t)).reshape(-1, 1).expand_as(x)

    t1 = torch.tensor([0.3, 3.0, 0.9], dtype=torch.float64)
    F, x0 = PiecewiseConstant([Slope(n) for n in range(3)]), torch.zeros(3, 1, dtype=torch.float64)
    double = odenet.Event(lambda t, x: x[:, 0] - 1 / 3, direction=1, update=lambda t, x: 2 * x)
    how = {"solver": solver, "step_size": 0.04, "jumps": [0.5], "stops": [0.1], "event": double, "gradient": gradient}
    whole = odenet.solve(F, x0, (0.0, t1), per_sample=True, **how)
    (found,) = torch.autograd.grad(whole.last.sum(), scale)
    wanted = torch.zeros(())
    for i in range(3):
        shared = odenet.solve(F, x0[i : i + 1], (0.0, float(t1[i])), **how)
        torch.testing.assert_close(whole.last[i], shared.last[0], rtol=1e-12, atol=1e-12)
        mine = whole.events[0].ts[whole.events[0].samples == i]
        torch.testing.assert_close(mine, shared.events[0].ts, rtol=1e-12, atol=1e-12)
        assert shared.stats.accepted == int(whole.stats.samples.accepted[i])
        wanted = wanted + torch.autograd.grad(shared.last.sum(), scale)[0]
    assert len(whole.events[0].ts) == 3
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)


def test_what_breaks_down_on_a_given_grid_is_named_and_leaves_the_others_alone():
    """x' = x³ from 3 overflows in a few Euler steps; the last starts with NaN."""
    x0 = torch.tensor([[0.1], [3.0], [0.2], [float("nan")]], dtype=torch.float64, requires_grad=True)
    how = {"solver": "euler", "steps": 12, "per_sample": True}
    F = lambda t, x: x * x * x  # noqa: E731
    solution = odenet.solve(F, x0, on_failure="status", **how)
    assert [s == "success" for s in solution.status] == [True, False, True, False]
    assert sorted(solution.errors) == [1, 3] and solution.errors[1].sample == 1 and 0 < solution.ended[1] < 1
    solution.last[[0, 2]].sum().backward()
    clean = x0.detach()[[0, 2]].requires_grad_()
    odenet.solve(F, clean, **how).last.sum().backward()
    assert torch.equal(x0.grad[[0, 2]], clean.grad) and x0.grad[[1, 3]].tolist() == [[0.0], [0.0]]
    with pytest.raises(odenet.errors.SolveError) as caught:
        odenet.solve(F, x0.detach()[:3], **how)
    assert caught.value.sample == 1 and caught.value.t == pytest.approx(float(solution.ended[1]))
    held = odenet.solve(F, x0.detach()[:1], max_nfe=5, on_failure="status", **how)
    assert held.status == ["nfe_budget"] and held.stats.samples.nfe.tolist() == [5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": None, "grid": torch.zeros(4, 3)}, "a column a sample"),
        ({"steps": None, "grid": torch.linspace(0, 0.9, 4)[:, None].expand(4, 5)}, "must run from t0=0 to t1=1"),
        ({"steps": None, "step_size": 1e-6}, "more than max_steps"),
        ({"rtol": 1e-3}, "belongs to an adaptive solve"),
        ({"solver": "leapfrog", "x0": X0[:, 0]}, r"give \(batch, 2\)"),
    ],
)
def test_grids_that_cannot_be_are_refused(change, message):
    how = {"x0": X0, "solver": "rk4", "steps": 3, "args": (RATE,), **OWN} | change
    with pytest.raises(odenet.errors.InputError, match=message):
        odenet.solve(pendulum, how.pop("x0"), **how)


def test_a_block_of_layers_with_times_of_their_own():
    F = odenet.residual.MLP(3, width=8, time="concat").double()
    block = odenet.ODEBlock(F, solver="euler", steps=4, per_sample=True)
    x = torch.randn(6, 3, dtype=torch.float64)
    torch.testing.assert_close(block(x), odenet.ResNet(F, steps=4)(x), rtol=1e-12, atol=1e-12)
    assert block.stats.samples.nfe.tolist() == [4] * 6 and block.stats.nfe == 4

"""Implicit methods with steps of each sample's own: against SciPy's Radau, and against each sample alone."""

import pytest
import torch
from scipy.integrate import solve_ivp

import odenet
from odenet.depth import PiecewiseConstant
from odenet.solvers import solvers
from odenet.solvers.implicit import ImplicitRungeKutta

METHODS = [n for n, s in solvers.items() if isinstance(s, ImplicitRungeKutta) and s.per_sample]
ADAPTIVE = [n for n in METHODS if solvers[n].adaptive]
MU = torch.tensor([1.0, 300.0, 20.0, 1000.0], dtype=torch.float64)
OWN = {"per_sample": True, "per_sample_args": (0,)}


def van_der_pol(t, x, mu):
    return torch.stack([x[:, 1], mu * (1 - x[:, 0] ** 2) * x[:, 1] - x[:, 0]], 1)


def start(batch):
    return torch.tensor([[2.0, 0.0]], dtype=torch.float64).repeat(batch, 1)


@pytest.mark.parametrize("solver", ["radau5", "kvaerno3"])
def test_van_der_pol_of_very_mixed_stiffness_is_what_scipy_says(solver):
    t1 = torch.tensor([8.0, 250.0, 20.0, 100.0], dtype=torch.float64)
    mixed = odenet.solve(van_der_pol, start(4), (0.0, t1), solver=solver, args=(MU,), rtol=1e-6, atol=1e-6, **OWN)
    for i, mu in enumerate(MU.tolist()):
        truth = solve_ivp(
            lambda t, x, mu=mu: [x[1], mu * (1 - x[0] ** 2) * x[1] - x[0]], (0, float(t1[i])), [2.0, 0.0],
            method="Radau", rtol=1e-10, atol=1e-10,
        ).y[:, -1]  # fmt: skip
        torch.testing.assert_close(mixed.last[i], torch.tensor(truth), rtol=2e-3, atol=2e-4)
    assert mixed.status == ["success"] * 4 and int(mixed.stats.samples.accepted.max()) < 2000


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_a_sample_takes_the_steps_that_it_takes_alone(solver):
    ts = [0.0, 0.4, 2.0]
    how = {"solver": solver, "rtol": 1e-4, "atol": 1e-5, "ts": ts, **OWN}
    whole = odenet.solve(van_der_pol, start(4), (0.0, 2.0), args=(MU,), **how)
    each = whole.stats.samples
    for rows in ([1], [0, 3]):
        part = odenet.solve(van_der_pol, start(len(rows)), (0.0, 2.0), args=(MU[rows],), **how)
        assert torch.equal(part.ys, whole.ys[:, rows])
        for name in ("nfe", "accepted", "rejected"):
            assert torch.equal(getattr(part.stats.samples, name), getattr(each, name)[rows])
    for i, mu in enumerate(MU.tolist()):
        alone = odenet.solve(
            lambda t, x, mu=mu: van_der_pol(t, x, mu), start(1), (0.0, 2.0), solver=solver, rtol=1e-4, atol=1e-5, ts=ts
        )
        assert (alone.stats.accepted, alone.stats.rejected) == (int(each.accepted[i]), int(each.rejected[i]))
        torch.testing.assert_close(whole.ys[:, i], alone.ys[:, 0], rtol=1e-6, atol=1e-7)


TOGETHER = [n for n in METHODS if solvers[n]._at_once]


@pytest.mark.parametrize("solver", TOGETHER)
def test_the_search_begins_on_the_former_polynomial_of_each_sample(solver):
    """Evaluations are those of each sample alone, whose search begins there: through rejections, stops, jumps, and
    another sample that leaves; they would be more if it began at the slope."""
    t1 = torch.tensor([2.0, 1.9, 0.4, 2.0], dtype=torch.float64)
    how = {"solver": solver, "stops": [0.3], "jumps": [0.7, 1.5]}
    how |= {"rtol": 1e-4, "atol": 1e-5} if solver in ADAPTIVE else {"step_size": 0.05}
    with torch.no_grad():
        whole = odenet.solve(van_der_pol, start(4), (0.0, t1), args=(MU,), **how, **OWN)
        for i, mu in enumerate(MU.tolist()):
            F = lambda t, x, mu=mu: van_der_pol(t, x, mu)  # noqa: E731
            alone = odenet.solve(F, start(1), (0.0, float(t1[i])), **how)
            assert alone.stats.nfe == int(whole.stats.samples.nfe[i])
            torch.testing.assert_close(whole.last[i], alone.last[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gradient", ["autograd", "checkpoint", "forward"])
def test_bounces_of_stiff_samples_and_their_gradients_do_not_depend_on_the_batch(gradient):
    """An event in the middle of some samples' ways, behind which no polynomial goes on."""
    bounce = odenet.Event(lambda t, x, rate: x[:, 0], direction=-1, update=lambda t, x, rate: x + 0.5 + x.square())
    rate = torch.tensor([1.0, 200.0, 5.0, 40.0], dtype=torch.float64)

    def F(t, x, rate):
        return torch.stack([x[:, 1], -rate * (x[:, 1] + t.cos()) - x[:, 0].sin()], 1)

    def solved(rows):
        own = rate[rows].clone().requires_grad_()
        x0 = torch.tensor([[0.4, 0.2], [0.3, 0.0], [9.0, 1.0], [0.1, 0.0]], dtype=torch.float64)[rows]
        how = {"solver": "radau5", "rtol": 1e-3, "atol": 1e-4, "event": bounce, "gradient": gradient}
        solution = odenet.solve(F, x0, (0.0, 2.0), args=(own,), **how, **OWN)
        assert rows == [2] or len(solution.events[0].ts) > 1
        return solution, *torch.autograd.grad(solution.last.square().sum(), own)

    whole, found = solved([0, 1, 2, 3])
    for rows in ([1], [0, 3], [2]):
        part, grads = solved(rows)
        torch.testing.assert_close(grads, found[rows], rtol=1e-10, atol=0)
        assert torch.equal(part.last, whole.last[rows])
        assert torch.equal(part.stats.samples.nfe, whole.stats.samples.nfe[rows])


def test_a_method_that_cannot_is_refused(monkeypatch):
    monkeypatch.setattr(solvers["rk4"], "per_sample", False)
    with pytest.raises(odenet.errors.InputError, match="'rk4' cannot give each sample its own steps"):
        odenet.solve(lambda t, x: -x, torch.ones(2, 3), solver="rk4", steps=2, per_sample=True)


@pytest.mark.parametrize("gradient", ["autograd", "checkpoint"])
def test_who_would_look_behind_its_knot_is_taken_by_the_companion_and_the_others_are_not(gradient):
    """kvaerno5, c_3 = 1.2303: samples reach the knot in the middle of their ways in different rounds."""

    class Layer(torch.nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = torch.nn.Parameter(torch.tensor(factor, dtype=torch.float64))

        def forward(self, t, x, rate):
            return -self.factor * rate * x + torch.cos(3 * t).reshape(-1, 1)

    layers = [Layer(1.0), Layer(4.0)]
    F, weights = PiecewiseConstant(layers), [layer.factor for layer in layers]
    rate = torch.tensor([[1.0], [60.0], [5.0]], dtype=torch.float64)
    x0, t1 = torch.ones(3, 2, dtype=torch.float64), torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    ts = t1 * torch.tensor([0.0, 0.21, 0.48, 0.77, 0.97, 1.0], dtype=torch.float64)[:, None]
    how = {"solver": "kvaerno5", "gradient": gradient}
    for steps in ({"step_size": 0.061}, {"rtol": 1e-6, "atol": 1e-6}):
        whole = odenet.solve(F, x0, (0.0, t1), args=(rate,), ts=ts, **steps, **how, **OWN)
        found = torch.autograd.grad(whole.ys.sum(), weights)
        wanted = [torch.zeros((), dtype=torch.float64) for _ in weights]
        for i in range(3):
            own = {"args": (rate[i : i + 1],), "ts": ts[:, i].tolist()}
            alone = odenet.solve(F, x0[i : i + 1], (0.0, float(t1[i])), **own, **steps, **how)
            assert alone.stats.accepted == int(whole.stats.samples.accepted[i])
            torch.testing.assert_close(whole.ys[:, i], alone.ys[:, 0], rtol=1e-8, atol=1e-9)
            grads = torch.autograd.grad(alone.ys.sum(), weights)
            wanted = [a + b for a, b in zip(wanted, grads, strict=True)]
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("solver", METHODS)
def test_given_steps_and_their_gradients_are_those_of_each_alone(solver):
    rate = torch.tensor([[1.0], [30.0], [5.0]], dtype=torch.float64, requires_grad=True)
    x0 = torch.tensor([[0.5, 1.0], [1.0, 2.0], [0.1, -1.0]], dtype=torch.float64, requires_grad=True)
    t1 = torch.tensor([1.0, 0.5, -0.1], dtype=torch.float64)
    F = lambda t, x, rate: -rate * (x + 0.3 * torch.sin(x.flip(1))) + torch.cos(t).reshape(-1, 1)  # noqa: E731
    how = {"solver": solver, "steps": 5}
    found = {}
    for gradient in ("autograd", "checkpoint"):
        whole = odenet.solve(F, x0, (0.0, t1), args=(rate,), gradient=gradient, **how, **OWN)
        found[gradient] = torch.autograd.grad((whole.last**2).sum(), (x0, rate))
    for i in range(3):
        alone = odenet.solve(lambda t, x, i=i: F(t, x, rate[i : i + 1]), x0[i : i + 1], (0.0, float(t1[i])), **how)
        torch.testing.assert_close(whole.last[i], alone.last[0], rtol=1e-10, atol=1e-10)
        wanted = torch.autograd.grad((alone.last**2).sum(), (x0, rate))
        for grads in found.values():
            for ours, theirs in zip(grads, wanted, strict=True):
                torch.testing.assert_close(ours[i], theirs[i], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("gradient", ["autograd", "checkpoint", "forward"])
@pytest.mark.parametrize("solver", METHODS)
def test_second_derivatives_and_forward_mode_are_those_of_each_alone(solver, gradient):
    rate = torch.tensor([[1.0], [8.0], [3.0]], dtype=torch.float64, requires_grad=True)
    w = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    x0 = torch.tensor([[0.5, 1.0], [1.0, 2.0], [0.1, -1.0]], dtype=torch.float64, requires_grad=True)
    t1 = torch.tensor([1.0, 0.5, -0.1], dtype=torch.float64)
    F = lambda t, x, rate: -rate * (x + w * torch.sin(x.flip(1))) + torch.cos(t).reshape(-1, 1)  # noqa: E731

    def derivatives(last):
        first = torch.autograd.grad(last.square().sum(), (x0, rate, w), create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), (x0, rate, w))]

    how = {"solver": solver, "steps": 3}
    found = derivatives(odenet.solve(F, x0, (0.0, t1), args=(rate,), gradient=gradient, **how, **OWN).last)
    parts = [
        odenet.solve(lambda t, x, i=i: F(t, x, rate[i : i + 1]), x0[i : i + 1], (0.0, float(t1[i])), **how).last
        for i in range(3)
    ]
    for ours, theirs in zip(found, derivatives(torch.cat(parts)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)


def test_equations_that_cannot_be_solved_are_those_of_their_sample():
    """|x|' has a kink: x = 1 + h a √(x - 2) has no solution for the second sample."""
    a = torch.tensor([[0.1], [-50.0], [0.2]], dtype=torch.float64)
    x0 = torch.full((3, 1), 2.5, dtype=torch.float64)
    F = lambda t, x, a: a * (x - 2).clamp(min=1e-30).sqrt() - (a < 0) * 20 * torch.sign(x - 2.2)  # noqa: E731
    how = {"solver": "implicit_euler", "steps": 4, "args": (a,), **OWN}
    solution = odenet.solve(F, x0, on_failure="status", **how)
    assert solution.status == ["success", "nonlinear_solve", "success"] and list(solution.errors) == [1]
    good = [0, 2]
    part = odenet.solve(F, x0[good], **how | {"args": (a[good],)})
    assert torch.equal(part.last, solution.last[good])
    assert torch.equal(part.stats.samples.nfe, solution.stats.samples.nfe[good])
    with pytest.raises(odenet.errors.NonlinearSolveError) as caught:
        odenet.solve(F, x0, **how)
    assert caught.value.sample == 1
    with pytest.raises(odenet.errors.InputError, match="up to 256 unknowns"):
        odenet.solve(lambda t, x: -x, torch.ones(2, 400), solver="sdirk2", per_sample=True)


def test_states_of_complex_numbers_of_single_precision_and_of_trees():
    rate = torch.tensor([1.0, 40.0, 5.0], dtype=torch.float64)
    x0 = torch.ones(3, 2, 2, dtype=torch.complex128)
    turn = lambda t, x, rate: (1j - rate.reshape(-1, 1, 1)) * x  # noqa: E731
    solution = odenet.solve(turn, x0, (0.0, 1.0), args=(rate,), solver="radau5", rtol=1e-9, atol=1e-9, **OWN)
    truth = torch.exp(1j - rate).reshape(-1, 1, 1).expand_as(x0)
    torch.testing.assert_close(solution.last, truth, rtol=1e-6, atol=1e-8)
    pair = lambda t, x, rate: {"a": -rate * x["a"], "b": x["a"] - x["b"]}  # noqa: E731
    tree = {"a": torch.ones(3), "b": torch.zeros(3)}
    how = {"args": (rate.float(),), "solver": "trbdf2", "rtol": 1e-4, "atol": 1e-5}
    last = odenet.solve(pair, tree, (0.0, 1.0), **how, **OWN).last
    torch.testing.assert_close(last["a"].double(), torch.exp(-rate), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("solver", METHODS)
def test_looking_for_what_F_uses_costs_no_jacobian(solver):
    """The first evaluation of a solve whose gradient is wanted is one that Newton's method differentiates."""
    w = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    F = lambda t, x: -w * torch.sin(x)  # noqa: E731
    x0 = torch.tensor([[0.5], [1.5]], dtype=torch.float64)
    solve = lambda: odenet.solve(F, x0, solver=solver, steps=2, per_sample=True, gradient="checkpoint")  # noqa: E731
    wanted = solve()
    with torch.no_grad():
        plain = solve()
    assert torch.equal(wanted.last, plain.last)
    assert torch.equal(wanted.stats.samples.nfe, plain.stats.samples.nfe)
    assert float(torch.autograd.grad(wanted.last.sum(), w)[0].abs()) > 0

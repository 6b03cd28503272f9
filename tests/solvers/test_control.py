"""Who picks h: controllers, bounds, grids, forced stops, jumps of F, and what is returned when a solve breaks down."""

import math
from itertools import pairwise

import pytest
import torch
from scipy.integrate._ivp.common import select_initial_step
from torch import nn

import odenet
from odenet.depth import weights_over_depth
from odenet.errors import InputError, SolveError
from odenet.solvers import Controller, controllers, solvers
from odenet.solvers.control import first_step, rms, scale
from odenet.solvers.loop import integrate
from odenet.solvers.per_sample.control import first_steps, rms_each
from odenet.solvers.problem import Problem
from odenet.solvers.scheme import DEFAULT_CONTROLLER, Scheme
from tests.oracles import PROBLEMS, Counted
from tests.oracles.detest import DETEST, reference

ADAPTIVE = [name for name, solver in solvers.items() if solver.adaptive]
FIXED = [name for name, solver in solvers.items() if not solver.partitioned]
LINEAR = PROBLEMS[0]


def ends(solution, t0, sign=1.0):
    reached = [t0]
    for h in solution.stats.h:
        reached.append(reached[-1] + sign * h)
    return reached


@pytest.mark.parametrize("name", controllers)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_every_controller_holds_the_tolerance(name, problem):
    solution = odenet.solve(problem.F, problem.x0, problem.interval, rtol=1e-6, atol=1e-6, controller=name)
    error = (solution.last - problem.answer(problem.interval[1])).abs().max()
    assert error < 3e-5
    usual = odenet.solve(problem.F, problem.x0, problem.interval, rtol=1e-6, atol=1e-6).stats
    assert solution.stats.accepted < 4 * usual.accepted + 10


def test_a_controllers_formula():
    """h_next = h safety Π E_{n-i}^(-β_i/q), clipped."""
    controller = Controller((0.7, -0.4, 0.1), safety=0.8, shrink=0.1, grow=5)
    expected = 0.8 * 0.3 ** (-0.7 / 5) * 0.2 ** (0.4 / 5) * 0.5 ** (-0.1 / 5)
    assert controller.factor([0.3, 0.2, 0.5], 5) == pytest.approx(expected, rel=1e-14)
    assert controller.factor([0.0], 5) == 5
    assert controller.retry(1e9, 5) == 0.1
    assert controller.retry(2.0, 5) == pytest.approx(0.8 * 2 ** (-1 / 5))
    assert controller.retry(1.0 + 1e-12, 1) <= 1


@pytest.mark.parametrize("interval", [(0.2, 3.0), (1.0, -0.5), (0.2, 0.2001)], ids=str)
@pytest.mark.parametrize("order", [1, 2, 5, 8])
def test_the_first_step_is_scipys(order, interval):
    """Hairer's rule, for a state and for each of several."""
    t0, t1 = interval
    x0 = torch.tensor([[0.7, -1.3], [200.0, 0.01]], dtype=torch.float64)

    def evaluate(t, x):
        t = torch.as_tensor(t, dtype=torch.float64)
        return torch.stack([x[..., 1], torch.cos(2 * t) - x[..., 0].sin()], -1)

    slope = lambda t, y: evaluate(t, torch.as_tensor(y)).numpy()  # noqa: E731
    expected = [
        select_initial_step(slope, t0, y, t1, math.inf, slope(t0, y), math.copysign(1, t1 - t0), order, 1e-5, 1e-6)
        for y in x0.numpy()
    ]
    for x, h in zip(x0, expected, strict=True):
        assert first_step(evaluate, x, evaluate(t0, x), interval, order, 1e-5, 1e-6) == pytest.approx(h, rel=1e-12)
    starts, ends = (torch.full((2,), t, dtype=torch.float64) for t in interval)
    each = first_steps(evaluate, starts, ends, x0, evaluate(starts, x0), order, 1e-5, 1e-6, rms_each)
    torch.testing.assert_close(each, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_no_step_is_accepted_whose_error_is_above_the_tolerance(solver):
    """However little smaller the next one would be."""
    problem, seen = PROBLEMS[7], []
    tolerance = 1e-7 if solvers[solver].order > 5 else 1e-4
    scheme = Scheme(solver=solver, rtol=tolerance, atol=tolerance)
    walk = Problem(weights_over_depth(problem.F, "tied", None), problem.x0, problem.interval, scheme)
    with torch.no_grad():
        integrate(walk, seen.append)
    stepper = walk.stepper
    for trial in seen:
        weight = scale(trial.x, tolerance, tolerance, trial.x_next)
        assert float(stepper.error_ratio(trial.error, weight, rms)) <= 1
    assert len(seen) == walk.stats.accepted > 5 and walk.stats.forced == 0


def test_a_controllers_settings_govern_the_steps():
    slow = odenet.solve(LINEAR.F, LINEAR.x0, (0, 2), first_step=1e-3, controller=Controller(grow=1.5))
    ratios = [b / a for a, b in zip(slow.stats.h, slow.stats.h[1:], strict=False)]
    assert max(ratios) <= 1.5 * (1 + 1e-12) and max(ratios[:8]) == pytest.approx(1.5)
    with pytest.raises(InputError, match="0 < least <= 1"):
        Controller(least=0.0)


@pytest.mark.parametrize("per_sample", [False, True])
def test_steps_are_held_until_one_is_rejected(per_sample):
    """With least=1 every step is at least as long as the one before, but for those behind a rejected one."""
    F = lambda t, x: torch.cos(t * t).reshape(-1, *(1,) * (x.dim() - 1)) + 0 * x  # noqa: E731 needs ever shorter steps
    how = {"solver": "bosh3", "rtol": 1e-6, "atol": 1e-6, "per_sample": per_sample}
    x0 = torch.zeros(1, 2, dtype=torch.float64)
    found = {}
    for least in (1.0, 0.2):
        stats = odenet.solve(F, x0, (0.0, 8.0), controller=Controller(least=least), **how).stats
        each = stats.samples.h[0].tolist() if per_sample else stats.h
        found[least] = sum(b < a * (1 - 1e-12) for a, b in pairwise(each[:-1])), stats.rejected
    assert 0 < found[1.0][0] <= found[1.0][1] and found[0.2][0] > 4 * found[0.2][1] > 0


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_no_step_is_larger_than_h_max(solver):
    solution = odenet.solve(LINEAR.F, LINEAR.x0, (0, 2), solver=solver, rtol=0.1, atol=0.1, h_max=0.07)
    assert max(solution.stats.h) <= 0.07 * (1 + 1e-12)
    assert sum(solution.stats.h) == pytest.approx(2)


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_a_step_of_h_min_is_accepted_whatever_its_error_and_counted(solver):
    def fast(t, x):
        return 30 * torch.cos(30 * t) - 0.1 * x

    x0 = torch.zeros(1, 1, dtype=torch.float64)
    free = odenet.solve(fast, x0, (0, 1), solver=solver, rtol=1e-4, atol=1e-4).stats
    h_min = 2 * max(free.h)
    bound = odenet.solve(fast, x0, (0, 1), solver=solver, rtol=1e-4, atol=1e-4, h_min=h_min).stats
    assert free.forced == 0 and bound.forced > 0
    assert min(bound.h[:-1]) >= h_min * (1 - 1e-9)


@pytest.mark.parametrize("solver", FIXED)
@pytest.mark.parametrize("interval", [(0.0, 1.0), (1.0, -0.3)], ids=str)
def test_a_step_size_is_the_steps_it_means(solver, interval, x):
    t0, t1 = interval
    by_size = odenet.solve(LINEAR.F, LINEAR.x0, interval, solver=solver, step_size=abs(t1 - t0) / 8).last
    torch.testing.assert_close(by_size, odenet.solve(LINEAR.F, LINEAR.x0, interval, solver=solver, steps=8).last)
    uneven = odenet.solve(LINEAR.F, LINEAR.x0, interval, solver=solver, step_size=0.3)
    whole = int(abs(t1 - t0) / 0.3 + 1e-9)
    assert uneven.stats.h == pytest.approx([0.3] * whole + [abs(t1 - t0) - 0.3 * whole])


@pytest.mark.parametrize("solver", FIXED)
def test_a_given_grid_is_walked_as_it_is(solver):
    grid = [0.0, 0.1, 0.15, 0.4, 0.9, 1.0]
    solution = odenet.solve(LINEAR.F, LINEAR.x0, (0, 1), solver=solver, grid=grid)
    assert ends(solution, 0.0) == pytest.approx(grid)
    error = (solution.last - LINEAR.answer(1.0)).abs().max()
    assert error < 0.5 ** solvers[solver].order
    uniform = odenet.solve(LINEAR.F, LINEAR.x0, (0, 1), solver=solver, grid=torch.linspace(0, 1, 9))
    torch.testing.assert_close(uniform.last, odenet.solve(LINEAR.F, LINEAR.x0, solver=solver, steps=8).last)


@pytest.mark.parametrize("solver", [name for name in FIXED if solvers[name].order > 1])
def test_a_method_keeps_its_order_on_an_uneven_grid(solver):
    def error(n):
        grid = [2 * (i / n + 0.3 * math.sin(2 * math.pi * i / n) / (2 * math.pi)) for i in range(n + 1)]
        last = odenet.solve(LINEAR.F, LINEAR.x0, (0, 2), solver=solver, grid=[*grid[:-1], 2.0]).last
        return float((last - LINEAR.answer(2.0)).norm())

    order = solvers[solver].order
    assert math.log2(error(32) / error(64)) > order - 0.35 or error(64) < 1e-12


@pytest.mark.parametrize("gradient", ["autograd", "checkpoint"])
@pytest.mark.parametrize(
    "scheme", [{"solver": "dopri5"}, {"solver": "ab3", "step_size": 0.13}, {"solver": "alf"}], ids=str
)
def test_steps_end_at_forced_stops(scheme, gradient):
    stops = [0.777, 0.2, 5.0, -1.0]
    x0 = LINEAR.x0.clone().requires_grad_()
    solution = odenet.solve(LINEAR.F, x0, (0, 1), stops=stops, gradient=gradient, ts=[0.3, 0.777, 1.0], **scheme)
    reached = ends(solution, 0.0)
    for t in (0.2, 0.777, 1.0):
        assert min(abs(t - r) for r in reached) < 1e-12
    solution.ys.square().sum().backward()
    exact = odenet.solve(LINEAR.F, x0, (0, 1), stops=stops, ts=[0.3, 0.777, 1.0], **scheme).ys.square().sum()
    torch.testing.assert_close(x0.grad, torch.autograd.grad(exact, x0)[0], rtol=1e-10, atol=1e-10)


def jumping(t, x):
    """Two smooth functions, one before and one after t = 0.6."""
    return torch.where(t < 0.6, -x, 2 * x + 5)


def jumped(x0):
    at = x0 * math.exp(-0.6)
    return (at + 2.5) * math.exp(2 * 0.7) - 2.5


@pytest.mark.parametrize("solver", FIXED)
def test_a_jump_of_F_costs_no_accuracy_when_it_is_named(solver):
    F, x0 = Counted(jumping), torch.ones(2, 1, dtype=torch.float64)

    def error(h, **more):
        return float((odenet.solve(F, x0, (0, 1.3), solver=solver, step_size=h, **more).last - jumped(x0)).abs().max())

    order = solvers[solver].order
    coarse, fine = error(0.0125, jumps=[0.6]), error(0.00625, jumps=[0.6])
    assert coarse < 1e-11 or math.log2(coarse / fine) == pytest.approx(order, abs=0.3)
    assert 0.6 not in F.times or order == 1


@pytest.mark.parametrize("per_sample", [False, True])
def test_steps_of_the_largest_size_land_on_the_end_although_their_sum_is_rounded(per_sample, x):
    solution = odenet.solve(
        lambda t, x: -1e-3 * x, x, (0.4, 0.0), rtol=1e-3, atol=1e-3, h_max=0.1, first_step=0.1, per_sample=per_sample
    )
    assert solution.stats.accepted == 4 * (len(x) if per_sample else 1)
    torch.testing.assert_close(solution.last, x * math.exp(4e-4), rtol=1e-9, atol=0)


@pytest.mark.parametrize("gradient", ["autograd", "checkpoint"])
@pytest.mark.parametrize("backend", ["native", "torchdiffeq"])
@pytest.mark.parametrize("direction", [1, -1])
def test_an_adaptive_solve_across_a_jump_rejects_nothing_there(direction, backend, gradient):
    if backend == "torchdiffeq" and gradient == "checkpoint":
        gradient = "adjoint"
    x0 = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    F = Counted(jumping if direction == 1 else lambda t, x: -jumping(-t, x))
    interval = (0, 1.3) if direction == 1 else (0, -1.3)
    options = {"rtol": 1e-9, "atol": 1e-9, "backend": backend, "gradient": gradient}
    named = odenet.solve(F, x0, interval, jumps=[direction * 0.6], **options)
    torch.testing.assert_close(named.last, jumped(x0), rtol=1e-7, atol=1e-7)
    plain = odenet.solve(F, x0, interval, **options)
    assert named.stats.nfe < plain.stats.nfe
    (grad,) = torch.autograd.grad(named.last.sum(), x0)
    torch.testing.assert_close(grad, torch.full_like(grad, math.exp(-0.6 + 1.4)), rtol=1e-6, atol=1e-6)
    assert direction * 0.6 not in F.times


def test_at_a_jump_F_is_shown_the_nearest_time_on_its_side_in_the_states_precision():
    for dtype in (torch.float32, torch.float64):
        seen = []

        def F(t, x, seen=seen):
            seen.append(t.clone())
            return jumping(t, x)

        odenet.solve(F, torch.ones(1, 1, dtype=dtype), (0, 1.3), solver="heun2", step_size=0.6, jumps=[0.6])
        at = torch.tensor(0.6, dtype=dtype)
        one, two = torch.tensor([0.0, 1.0], dtype=dtype)
        assert torch.nextafter(at, one) in seen and torch.nextafter(at, two) in seen and at not in seen


def test_dropout_keeps_its_mask_across_a_jump_and_memory_begins_anew():
    drop = nn.Dropout(0.5)
    x0 = torch.ones(1, 64, dtype=torch.float64)
    masks = []

    def F(t, x):
        masks.append(drop(torch.ones_like(x)))
        return masks[-1]

    odenet.solve(F, x0, solver="ab2", steps=4, jumps=[0.5])
    assert all(torch.equal(m, masks[0]) for m in masks)
    assert len(masks) == 2 * (2 + 1)


BAD = [
    ({"steps": 3, "step_size": 0.1}, "one of steps, step_size, grid"),
    ({"step_size": -0.1}, "step_size must be a positive number"),
    ({"grid": [0.0, 0.5]}, r"grid must run from t0=0 to t1=1, got \[0, 0.5\]"),
    ({"grid": [0.0, 0.7, 0.5, 1.0]}, "without turning back"),
    ({"steps": 4, "stops": [0.3]}, "steps=4 would step across t=0.3"),
    ({"grid": [0.0, 0.5, 1.0], "jumps": [0.3]}, "grid would step across t=0.3"),
    ({"steps": 4, "controller": "PI"}, "controller belongs to an adaptive solve"),
    ({"step_size": 0.1, "h_max": 0.1}, "h_max belongs to an adaptive solve, but step_size"),
    ({"step_size": 1e-6}, "more than max_steps"),
    ({"controller": "PD"}, "unknown controller 'PD'; did you mean 'PID'"),
    ({"h_min": 0.2, "h_max": 0.1}, "h_min=0.2 is larger than h_max=0.1"),
    ({"h_max": -1.0}, "h_max must be a positive number"),
    ({"norm": 2}, "norm must be a function"),
    ({"on_failure": "ignore"}, "on_failure must be one of raise, status"),
    ({"stops": 0.3}, "stops must be a list"),
    ({"jumps": [float("nan")]}, "jumps must be finite"),
    ({"backend": "torchdiffeq", "controller": "PI"}, "do not take controller"),
    ({"rtol": torch.tensor([1e-3, -1.0])}, "rtol must hold positive numbers"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[str(a) for a, _ in BAD])
def test_numerics_that_cannot_be_used_are_refused_before_F_is_called(arguments, message):
    F = Counted(LINEAR.F)
    with pytest.raises(InputError, match=message):
        odenet.solve(F, LINEAR.x0, solver="dopri5", **arguments)
    assert F.calls == 0


def test_tolerances_may_differ_from_element_to_element():
    def two_speeds(t, x):
        return torch.stack([torch.cos(t) + 0 * x[:, 0], 30 * torch.cos(30 * t) + 0 * x[:, 1]], 1)

    x0 = torch.zeros(1, 2, dtype=torch.float64)
    strict = odenet.solve(two_speeds, x0, rtol=1e-8, atol=1e-8).stats.nfe
    loose = odenet.solve(two_speeds, x0, rtol=1e-8, atol=torch.tensor([1e-8, 10.0], dtype=torch.float64))
    assert loose.stats.nfe < strict / 2
    assert abs(float(loose.last[0, 0]) - math.sin(1)) < 1e-6


@pytest.mark.parametrize("backend", ["native", "torchdiffeq"])
def test_the_norm_governs_acceptance(backend):
    def two_speeds(t, x):
        return torch.stack([torch.cos(t) + 0 * x[:, 0], 30 * torch.cos(30 * t) + 0 * x[:, 1]], 1)

    x0, seen = torch.zeros(1, 2, dtype=torch.float64), []

    def first_only(scaled):
        seen.append(scaled.shape)
        return scaled[:, 0].abs().max()

    strict = odenet.solve(two_speeds, x0, rtol=1e-8, atol=1e-8, backend=backend).stats.nfe
    loose = odenet.solve(two_speeds, x0, rtol=1e-8, atol=1e-8, norm=first_only, backend=backend).stats.nfe
    assert loose < strict / 2 and set(seen) == {(1, 2)}


class Breaks(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.rate = kind, nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, t, x):
        if self.kind == "nan":
            return torch.where(t > 0.5, torch.full_like(x, float("nan")), -self.rate * x)
        return self.rate * x * x  # reaches infinity at t = 1/x0


@pytest.mark.parametrize("gradient", ["autograd", "checkpoint"])
@pytest.mark.parametrize(
    ("F", "scheme", "status"),
    [
        (Breaks("nan"), {}, "nonfinite_function"),
        (Breaks("nan"), {"solver": "rk4", "steps": 8}, "nonfinite_function"),
        (Breaks("blow up"), {"max_steps": 60}, "step_budget"),
        (Breaks("blow up"), {}, "step_underflow"),
        (Breaks("blow up"), {"max_nfe": 50}, "nfe_budget"),
        (Breaks("blow up"), {"solver": "euler", "steps": 2000, "max_steps": 3000}, "nonfinite_function"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_on_failure_status_returns_what_was_reached_with_its_gradient(F, scheme, status, gradient):
    x0 = torch.full((2, 1), 2.0, dtype=torch.float64, requires_grad=True)
    options = {"ts": [0.0, 0.2, 0.9], "rtol": 1e-6, "atol": 1e-6} if "steps" not in scheme else {"ts": [0.0, 0.2, 0.9]}
    with pytest.raises(SolveError) as raised:
        odenet.solve(F, x0, (0, 1), gradient=gradient, **options, **scheme)
    assert raised.value.status == status
    solution = odenet.solve(F, x0, (0, 1), gradient=gradient, on_failure="status", **options, **scheme)
    assert solution.status == status and solution.error.status == status and str(solution.error)
    assert solution.times[:2] == [0.0, 0.2] and 0.2 < solution.times[2] <= 0.9 and len(solution.times) == 3
    t = solution.times[2]
    truth = x0 * math.exp(-t) if F.kind == "nan" else x0 / (1 - x0 * t)
    exact = torch.stack([x0, x0 * math.exp(-0.2) if F.kind == "nan" else x0 / (1 - x0 * 0.2)])
    torch.testing.assert_close(solution.ys[:2], exact, rtol=0.02, atol=0)
    if F.kind == "nan":
        torch.testing.assert_close(solution.last, truth, rtol=1e-3, atol=0)
    (grad,) = torch.autograd.grad(solution.ys[1].sum(), x0)
    expected = math.exp(-0.2) if F.kind == "nan" else float(1 / (1 - 2 * 0.2) ** 2)
    torch.testing.assert_close(grad, torch.full_like(grad, expected), rtol=0.03, atol=0)


def test_the_controller_is_the_methods_own_unless_one_is_named():
    def sizes(solver, **how):
        return odenet.solve(LINEAR.F, LINEAR.x0, (0.0, 5.0), solver=solver, rtol=1e-6, atol=1e-6, **how).stats.h

    assert sizes("dopri8") == sizes("dopri8", controller="PI8525") != sizes("dopri8", controller="PI6020")
    assert sizes("dopri5") == sizes("dopri5", controller="PI6020") != sizes("dopri5", controller="PI8525")


def test_a_solve_that_succeeds_has_status_success_whatever_on_failure_says():
    solution = odenet.solve(LINEAR.F, LINEAR.x0, on_failure="status")
    assert solution.status == "success" and solution.error is None
    broken = odenet.solve(lambda t, x: x * float("nan"), LINEAR.x0, on_failure="status")
    assert broken.times == [0.0] and torch.equal(broken.last, LINEAR.x0) and broken.stats.accepted == 0


def test_the_default_controller_rejects_less_than_an_i_controller_for_no_more_work():
    """Four problems of DETEST at three tolerances."""
    totals = {}
    for name in ("I", DEFAULT_CONTROLLER):
        calls, rejected = 0, 0
        for problem in (p for p in DETEST if p.name in ("B1", "B4", "D3", "E2")):
            F = lambda t, y, problem=problem: problem.F(t, y, torch)  # noqa: E731
            y0, exact = torch.tensor(problem.y0, dtype=torch.float64), reference(problem.name, (20.0,))[0]
            for tolerance in (1e-4, 1e-5, 1e-6):
                solution = odenet.solve(F, y0, (0, 20), rtol=tolerance, atol=tolerance, controller=name)
                assert float(abs(solution.last.numpy() - exact).max()) < 5e3 * tolerance
                calls, rejected = calls + solution.stats.nfe, rejected + solution.stats.rejected
        totals[name] = calls, rejected
    (calls, rejected), (i_calls, i_rejected) = totals[DEFAULT_CONTROLLER], totals["I"]
    assert rejected < 0.85 * i_rejected and calls < i_calls

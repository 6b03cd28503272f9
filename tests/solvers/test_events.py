"""Events against closed forms and scipy's: times, directions, many at once, terminal ones, restarts, trees."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import odenet
from odenet import Event
from odenet.errors import InputError
from odenet.solvers import solvers
from tests.oracles import Counted
from tests.oracles.families import marks

X0 = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
FINE = {"rtol": 1e-10, "atol": 1e-10}
STEPPING = [
    pytest.param(
        name,
        {"steps": 400} if (solver.error_order or 0) < 3 else {"rtol": 1e-8, "atol": 1e-8},
        id=name,
        marks=marks(name),
    )
    for name, solver in solvers.items()
    if solver.order > 1
]


def turn(t, x):
    return torch.stack([x[:, 1], -x[:, 0]], 1)


def height(t, x):
    return x[0, 0]


@pytest.mark.parametrize(("solver", "scheme"), STEPPING)
@pytest.mark.parametrize("interval", [(0.0, 10.0), (10.0, 1.0)], ids=str)
def test_every_zero_of_the_sine_is_found_to_the_accuracy_of_the_method(solver, scheme, interval):
    t0, t1 = interval
    start = torch.tensor([[math.sin(t0), math.cos(t0)]], dtype=torch.float64)
    solution = odenet.solve(turn, start, interval, solver=solver, event=Event(height, terminal=False), **scheme)
    zeros = [math.pi, 2 * math.pi, 3 * math.pi]
    order = solvers[solver].order
    assert solution.status == "success" and solution.times == [t1]
    tolerance = 1e-6 if order > 3 else 3e-3
    np.testing.assert_allclose(solution.events[0].ts, zeros if t1 > t0 else zeros[::-1], atol=tolerance)
    np.testing.assert_allclose(solution.events[0].ys[:, 0, 0], 0, atol=1e-9)


@pytest.mark.parametrize(("direction", "zeros"), [(1, [2]), (-1, [1, 3]), (0, [1, 2, 3])])
def test_the_direction_of_a_crossing(direction, zeros):
    event = Event(height, terminal=False, direction=direction)
    found = odenet.solve(turn, X0, (0, 10), event=event, **FINE).events[0]
    np.testing.assert_allclose(found.ts, np.pi * np.array(zeros), atol=1e-8)


def test_a_terminal_event_ends_the_solve_there():
    F = Counted(turn)
    ts = [0.0, 1.0, 2.0, 4.0, 9.0]
    solution = odenet.solve(F, X0, (0, 10), event=height, ts=ts, dense=True, **FINE)
    assert solution.status == "event" and solution.error is None
    assert solution.times[:3] == [0.0, 1.0, 2.0] and len(solution.times) == 4
    assert solution.times[3] == pytest.approx(math.pi, abs=1e-9)
    assert max(F.times) < 4.5
    expected = torch.tensor([[0.0, -1.0]], dtype=torch.float64)
    torch.testing.assert_close(solution.last, expected, rtol=0, atol=1e-8)
    assert torch.equal(solution.events[0].ys[0], solution.last)
    torch.testing.assert_close(solution(math.pi - 0.1)[0, 0], torch.sin(torch.tensor(0.1).double()), rtol=0, atol=1e-8)
    with pytest.raises(InputError, match="t must lie between 0 and 3.14159"):
        solution(3.3)


def test_it_is_scipys_solve_ivp():
    def f(t, y):
        return [y[1], -math.sin(y[0]) - 0.1 * y[1]]

    def swing(t, y):
        return y[0] - 0.3

    def slow(t, y):
        return y[1] ** 2 + y[0] ** 2 - 0.5

    slow.terminal = True
    reference = solve_ivp(f, (0, 40), [2.0, 0.5], "DOP853", events=[swing, slow], rtol=1e-11, atol=1e-12)

    def F(t, x):
        return torch.stack([x[1], -torch.sin(x[0]) - 0.1 * x[1]])

    events = [Event(swing, terminal=False), Event(slow)]
    solution = odenet.solve(F, torch.tensor([2.0, 0.5]).double(), (0, 40), event=events, **FINE)
    for mine, theirs, states in zip(solution.events, reference.t_events, reference.y_events, strict=True):
        np.testing.assert_allclose(mine.ts, theirs, atol=1e-7)
        np.testing.assert_allclose(mine.ys, states, atol=1e-7)
    assert solution.status == "event" and len(solution.events[0].ts) > 2


def test_every_element_of_a_function_is_an_event_of_its_own():
    x0 = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    event = Event(lambda t, x: x[:, 0], terminal=False)
    found = odenet.solve(turn, x0, (0, 5), event=event, **FINE).events[0]
    np.testing.assert_allclose(found.ts, [math.pi / 2, math.pi, 1.5 * math.pi], atol=1e-8)
    assert found.elements.tolist() == [1, 0, 1]


def test_a_zero_at_the_start_is_no_event_but_the_way_it_is_left_counts():
    """sin t starts at zero and rises: the next crossing is downwards."""
    for start, first in ((1.0, -1), (-1.0, 1)):
        x0 = torch.tensor([[0.0, start]], dtype=torch.float64)
        wrong = odenet.solve(turn, x0, (0, 4), event=Event(height, direction=-first), **FINE)
        right = odenet.solve(turn, x0, (0, 4), event=Event(height, direction=first), **FINE)
        assert wrong.status == "success" and len(wrong.events[0].ts) == 0
        assert right.status == "event" and float(right.events[0].ts[0]) == pytest.approx(math.pi, abs=1e-8)


def test_two_crossings_in_one_step_are_seen_where_a_step_is_looked_at_in_parts():
    def dip(t, x):
        return (t - 0.5) ** 2 - 1e-3 + 0 * x[0, 0]

    still = lambda t, x: 0 * x  # noqa: E731
    step = {"solver": "rk4", "steps": 1, "event": Event(dip, terminal=False)}
    assert len(odenet.solve(still, X0, **step).events[0].ts) == 0
    step["event"] = Event(dip, terminal=False, checks=50)
    found = odenet.solve(still, X0, **step).events[0].ts
    np.testing.assert_allclose(found, [0.5 - 1e-3**0.5, 0.5 + 1e-3**0.5], atol=1e-12)


@pytest.mark.parametrize(("solver", "scheme"), STEPPING)
def test_a_bouncing_ball(solver, scheme):
    """Dropped from 1 with restitution r, it bounces at drop (1 + 2 (r + ... + r^n))."""
    g, r = 9.8, 0.7
    fall = lambda t, x: torch.stack([x[:, 1], torch.full_like(x[:, 1], -g)], 1)  # noqa: E731
    bounce = Event(height, direction=-1, update=lambda t, x: torch.stack([x[:, 0], -r * x[:, 1]], 1))
    x0, drop = torch.tensor([[1.0, 0.0]], dtype=torch.float64), math.sqrt(2 / g)
    bounces = np.array([drop * (1 + 2 * sum(r**k for k in range(1, n + 1))) for n in range(6)])
    end = 0.5 * (bounces[-1] + drop * (1 + 2 * sum(r**k for k in range(1, 7))))
    if "steps" in scheme:
        scheme = {"steps": 500}
    solution = odenet.solve(fall, x0, (0, end), solver=solver, event=bounce, dense=True, ts=[0.5 * drop, end], **scheme)
    tolerance = 1e-6 if solvers[solver].order > 2 else 1e-4
    assert solution.status == "success"
    np.testing.assert_allclose(solution.events[0].ts, bounces, atol=tolerance)
    heights = [float(solution(t)[0, 0]) for t in np.linspace(0, end, 201)]
    assert min(heights) > -1e-3 and solution.times == [0.5 * drop, end]


def test_bounces_without_end_are_told_from_a_ball_that_falls_through_the_floor():
    bounce = Event(height, direction=-1, update=lambda t, x: torch.stack([x[:, 0], -0.5 * x[:, 1]], 1))
    fall = lambda t, x: torch.stack([x[:, 1], torch.full_like(x[:, 1], -1.0)], 1)  # noqa: E731
    x0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    with pytest.raises(odenet.errors.SolveError, match="follow each other too closely"):
        odenet.solve(fall, x0, (0, 100), event=bounce, max_steps=500)
    reached = odenet.solve(fall, x0, (0, 100), event=bounce, max_steps=500, on_failure="status")
    assert reached.status == "step_underflow" and len(reached.events[0].ts) > 10
    assert reached.times[-1] == pytest.approx(3 * math.sqrt(2), abs=1e-2)


def test_knots_jumps_and_grids_go_on_after_an_event():
    """F = +1, then -2, then +3 on thirds of depth; an event doubles the state at 0.25."""
    rates = [1.0, -2.0, 3.0]
    layers = []
    for rate in rates:
        layer = torch.nn.Linear(1, 1).double()
        layer.rate = rate
        layers.append(odenet.residual.from_block(layer))
    F = odenet.depth.PiecewiseConstant(layers)
    for layer, rate in zip(layers, rates, strict=True):
        layer.forward = lambda t, x, rate=rate: torch.full_like(x, rate)
    event = Event(lambda t, x: x[0, 0] - 0.25, direction=1, update=lambda t, x: 2 * x)
    x0 = torch.zeros(1, 1, dtype=torch.float64)
    expected = 0.5 + (1 / 3 - 0.25) - 2 / 3 + 3 / 3
    crossings = [0.25, 2 / 3 + (0.25 - (0.5 + (1 / 3 - 0.25) - 2 / 3)) / 3]
    expected = 0.5 + 3 * (1 - crossings[1])
    for scheme in ({"solver": "rk4", "steps": 6}, {"solver": "euler", "step_size": 0.05}, {"rtol": 1e-8, "atol": 1e-8}):
        with torch.no_grad():
            solution = odenet.solve(F, x0, event=event, **scheme)
        np.testing.assert_allclose(solution.events[0].ts, crossings, atol=1e-9)
        assert float(solution.last) == pytest.approx(expected, abs=1e-9)
        assert sum(solution.stats.h) >= 1 - 1e-9


def test_events_of_trees_see_and_change_trees():
    def fall(t, x):
        return {"q": x["p"], "p": torch.full_like(x["p"], -9.8)}

    event = Event(lambda t, x: x["q"].min(), direction=-1, update=lambda t, x: {"q": x["q"], "p": -0.5 * x["p"]})
    x0 = {"q": torch.ones(3, dtype=torch.float64), "p": torch.zeros(3, dtype=torch.float64)}
    solution = odenet.solve(fall, x0, (0, 0.6), event=event, **FINE)
    drop = math.sqrt(2 / 9.8)
    assert float(solution.events[0].ts[0]) == pytest.approx(drop, abs=1e-8)
    assert solution.events[0].ys["p"].shape == (1, 3)
    s = 0.6 - drop
    assert float(solution.last["q"][0]) == pytest.approx(0.5 * 9.8 * drop * s - 9.8 * s * s / 2, abs=1e-7)


BAD = [
    ({"event": 3}, "an event must be a function"),
    ({"event": Event(lambda t, x: 1.0)}, "must return a real tensor, got float"),
    ({"event": Event(lambda t, x: x[0] > 0)}, "must return a real tensor, got torch.bool"),
    ({"event": Event(lambda t, x: (t - 1).log())}, "function returned NaN at t="),
    ({"event": height, "backend": "torchdiffeq"}, "backend='native' only"),
    ({"event": Event(height, update=lambda t, x: x[:, :1])}, "an event's update must return a state"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[m for _, m in BAD])
def test_events_that_cannot_be_used_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        odenet.solve(turn, X0, (0, 4), **arguments)


def test_an_event_is_checked_when_it_is_made():
    with pytest.raises(InputError, match="direction"):
        Event(height, direction=2)
    with pytest.raises(InputError, match="terminal"):
        Event(height, terminal=False, update=lambda t, x: x)
    with pytest.raises(InputError, match="checks"):
        Event(height, checks=0)

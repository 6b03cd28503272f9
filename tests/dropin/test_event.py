"""odeint_event and event_fn: a ball that bounces, and gradients of times against closed forms and torchdiffeq."""

import functools
import math

import pytest
import torch
import torchdiffeq
from torch import nn

import odenet
from odenet.errors import StepBudgetError

INTERFACES = {"odeint": odenet.odeint, "odeint_adjoint": odenet.odeint_adjoint}
both = pytest.mark.parametrize("interface", INTERFACES)


class Ball(nn.Module):
    """Height and velocity under gravity; a tuple."""

    def __init__(self):
        super().__init__()
        self.gravity = nn.Parameter(torch.tensor(9.8, dtype=torch.float64))

    def forward(self, t, state):
        return state[1], torch.ones_like(state[1]) * -self.gravity


def height(t, state):
    return state[0]


def start(h=10.0, v=0.5):
    return tuple(torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (h, v))


def bounces(library, count, **call):
    """Times of the bounces of a ball that keeps 80 % of its speed, as the example of a bouncing ball does."""
    ball, state, t = Ball(), start(), torch.zeros(1, dtype=torch.float64)
    first = state
    times = []
    for _ in range(count):
        t, solution = library.odeint_event(ball, state, t, event_fn=height, rtol=1e-9, atol=1e-9, **call)
        state = tuple(part[-1] for part in solution)
        state = (state[0] + 1e-7, -0.8 * state[1])
        times.append(t)
    return times, torch.autograd.grad(times[-1], [*first, ball.gravity])


def closed(count):
    h, v, g = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (10.0, 0.5, 9.8))
    times = [(v + (v * v + 2 * g * h).sqrt()) / g]
    speed = (v * v + 2 * g * h).sqrt()
    for _ in range(count - 1):
        speed = 0.8 * speed
        times.append(times[-1] + 2 * speed / g)
    return times, torch.autograd.grad(times[-1], [h, v, g])


@both
def test_a_bouncing_ball_and_the_gradient_of_its_third_bounce(interface):
    times, gradients = bounces(odenet, 3, odeint_interface=INTERFACES[interface])
    expected, expected_gradients = closed(3)
    for a, b in zip(times, expected, strict=True):
        assert a.item() == pytest.approx(b.item(), abs=1e-6)
    for a, b in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(a.reshape(()), b, rtol=1e-5, atol=1e-7)
    theirs, their_gradients = bounces(torchdiffeq, 3)
    for a, b in zip([*times, *gradients], [*theirs, *their_gradients], strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["dopri5", "rk4", "implicit_adams"])
@pytest.mark.parametrize("reverse", [False, True])
def test_an_event_in_either_direction_far_beyond_the_first_guess(reverse, method):
    sign = -1 if reverse else 1
    y0 = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    t0 = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    call = {} if method == "dopri5" else {"options": {"step_size": 0.05}}
    t, ys = odenet.odeint_event(
        lambda t, y: torch.ones_like(y) * sign, y0, t0, event_fn=lambda t, y: y - 8.3, reverse_time=reverse,
        method=method, **call,
    )  # fmt: skip
    assert t.dtype == torch.float64 and t.shape == () and ys.shape == (2, 1)
    assert float(t) == pytest.approx(0.25 + sign * 7.3, abs=1e-9) and float(ys[-1]) == pytest.approx(8.3, abs=1e-9)
    by_state, by_time = torch.autograd.grad(t, (y0, t0))
    assert float(by_state) == pytest.approx(-sign, abs=1e-9) and float(by_time) == pytest.approx(1, abs=1e-9)


@both
def test_several_events_the_first_one_counts_and_what_it_depends_on_gets_a_gradient(interface):
    level = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([1.0, 3.0], dtype=torch.float64, requires_grad=True)
    t, ys = odenet.odeint_event(
        lambda t, y: -y, y0, torch.tensor([0.0], dtype=torch.float64), rtol=1e-9, atol=1e-9,
        event_fn=lambda t, y: torch.stack([y[1] - 0.1, y[0] - level, t - 5]), odeint_interface=INTERFACES[interface],
    )  # fmt: skip
    assert float(t) == pytest.approx(math.log(2), abs=1e-8)
    by_level, by_state = torch.autograd.grad(t + ys[-1].sum(), (level, y0))
    # t* = log(y/level), and at t* the states are level and 3 level / y
    assert float(by_level) == pytest.approx(-2 + 4, abs=1e-6)
    torch.testing.assert_close(by_state, torch.tensor([1 - 1.5, 0.5], dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_odeint_with_an_event_function_gives_torchdiffeqs_time_and_state():
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    y0 = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    call = {"event_fn": lambda t, y: y[0, 0] - 0.2 - 0.1 * t, "rtol": 1e-9, "atol": 1e-9}
    (ours, ys), (theirs, their_ys) = (lib.odeint(lambda t, y: -y * t, y0, t, **call) for lib in (odenet, torchdiffeq))
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(ys, their_ys, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("foreign", [torchdiffeq.odeint, functools.partial(odenet.odeint, rtol=1e-10)])
def test_another_interface_is_linked_once(foreign):
    ball = Ball()
    t, solution = odenet.odeint_event(
        ball, start(), torch.zeros(1, dtype=torch.float64), event_fn=height, odeint_interface=foreign, atol=1e-10
    )
    (by_gravity,) = torch.autograd.grad(t + solution[1][-1].sum(), ball.gravity)
    g = torch.tensor(9.8, dtype=torch.float64, requires_grad=True)
    speed = (0.25 + 20 * g).sqrt()
    (expected,) = torch.autograd.grad((0.5 + speed) / g - speed, g)
    torch.testing.assert_close(by_gravity, expected, rtol=1e-5, atol=0)


def test_an_event_that_never_happens_ends_in_words():
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    y0 = torch.ones(1, dtype=torch.float64)
    with pytest.raises(StepBudgetError, match="no event happened.*does event_fn change its sign"):
        odenet.odeint(lambda t, y: 0 * y, y0, t, event_fn=lambda t, y: y)
    with pytest.raises(StepBudgetError):
        odenet.odeint(lambda t, y: torch.cos(t) * y, y0, t, event_fn=lambda t, y: y, options={"max_num_steps": 200})

"""Gradients with respect to t0, t1, the times of the answer and the times of events."""

import math

import pytest
import torch

import odenet
from tests.oracles import forms_for, gradients_for

EXACT = [*gradients_for("dopri5", exact=True), *forms_for("dopri5")]
GENERAL = sorted({*EXACT, *gradients_for("dopri5"), "adjoint"})
FINE = {"rtol": 1e-10, "atol": 1e-10}


def F(t, x, a):
    return a * x + torch.cos(t)


def exact(t, t0, x0, a):
    """x' = a x + cos t."""

    def particular(s):
        return (torch.sin(s) - a * torch.cos(s)) / (1 + a * a)

    return (x0 - particular(t0)) * torch.exp(a * (t - t0)) + particular(t)


def leaves(*values):
    return [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values]


@pytest.mark.parametrize("gradient", GENERAL)
@pytest.mark.parametrize("interval", [(0.3, 1.4), (1.4, 0.3)], ids=str)
def test_the_ends_of_the_interval_get_their_gradients(gradient, interval):
    t0, t1, x0, a = leaves(*interval, [[1.0, -2.0]], 0.7)
    for scheme in (FINE, {"solver": "rk4", "steps": 64}):
        last = odenet.solve(F, x0, (t0, t1), args=(a,), gradient=gradient, **scheme).last
        got = torch.autograd.grad((last * torch.tensor([1.0, 3.0])).sum(), (t0, t1, x0, a))
        truth = exact(t1, t0, x0, a)
        torch.testing.assert_close(last, truth, rtol=1e-6, atol=1e-6)
        expected = torch.autograd.grad((truth * torch.tensor([1.0, 3.0])).sum(), (t0, t1, x0, a))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gradient", GENERAL)
@pytest.mark.parametrize("kind", ["tensor", "list"])
def test_every_output_time_gets_its_gradient(gradient, kind):
    values = [0.0, 0.25, 0.6, 1.0]
    a, x0 = leaves(0.7, [[1.0, -2.0]])
    ts = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    given = ts if kind == "tensor" else [0.0, ts[1], 0.6, ts[3]]
    ys = odenet.solve(F, x0, ts=given, args=(a,), gradient=gradient, **FINE).ys
    got = torch.autograd.grad(ys.square().sum(), (ts, a))
    truth = torch.stack([exact(t, torch.tensor(0.0), x0, a) for t in ts])
    expected = torch.autograd.grad(truth.square().sum(), (ts, a))
    if kind == "list":
        expected[0][[0, 2]] = 0
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gradient", EXACT)
def test_second_derivatives_with_respect_to_times(gradient):
    t1, a = leaves(0.8, 0.7)
    x0 = torch.tensor([[1.0]], dtype=torch.float64)
    last = odenet.solve(F, x0, (0.0, t1), args=(a,), gradient=gradient, **FINE).last
    (first,) = torch.autograd.grad(last.sum(), t1, create_graph=True)
    got = torch.autograd.grad(first, a)
    truth = exact(t1, torch.tensor(0.0), x0, a)
    (first,) = torch.autograd.grad(truth.sum(), t1, create_graph=True)
    torch.testing.assert_close(got, torch.autograd.grad(first, a), rtol=1e-6, atol=1e-6)


def test_times_of_another_dtype_and_complex_states():
    t1 = torch.tensor(1.0, dtype=torch.float32, requires_grad=True)
    x0 = torch.tensor([[1 + 1j]], dtype=torch.complex128)
    last = odenet.solve(lambda t, x: 1j * x, x0, (0, t1), **FINE).last
    (grad,) = torch.autograd.grad(last.real.sum(), t1)
    assert grad.dtype == torch.float32
    assert float(grad) == pytest.approx((1j * (1 + 1j) * complex(math.cos(1), math.sin(1))).real, rel=1e-6)


def test_an_end_that_would_move_the_knots_is_refused():
    t1 = torch.tensor(1.0, requires_grad=True)
    layers = [odenet.residual.MLP(2) for _ in range(2)]
    with pytest.raises(odenet.errors.GradientError, match="move the knots"):
        odenet.solve(odenet.depth.PiecewiseConstant(layers), torch.ones(1, 2), (0, t1))
    with torch.no_grad():
        odenet.solve(odenet.depth.PiecewiseConstant(layers), torch.ones(1, 2), (0, t1))


def fall(t, x, g):
    return torch.stack([x[:, 1], -g + 0 * x[:, 1]], 1)


def ground(t, x, g):
    return x[:, 0]


@pytest.mark.parametrize("gradient", EXACT)
@pytest.mark.parametrize("scheme", [FINE, {"solver": "rk4", "steps": 50}], ids=["adaptive", "fixed"])
def test_the_time_and_state_of_an_event_are_differentiable(gradient, scheme):
    """Free fall from height q with speed v: t* = (v + sqrt(v² + 2 g q)) / g, p* = -sqrt(v² + 2 g q)."""
    q, v, g = leaves(2.0, 0.5, 9.8)
    x0 = torch.stack([q, v])[None]
    event = odenet.Event(ground, direction=-1)
    solution = odenet.solve(fall, x0, (0, 5), event=event, args=(g,), gradient=gradient, **scheme)
    t, x = solution.events[0].ts[0], solution.events[0].ys[0]
    speed = torch.sqrt(v * v + 2 * g * q)
    truth = (v + speed) / g
    torch.testing.assert_close(t, truth, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(x, torch.stack([torch.zeros_like(speed), -speed])[None], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        torch.autograd.grad(t, (q, v, g), retain_graph=True), torch.autograd.grad(truth, (q, v, g), retain_graph=True)
    )
    torch.testing.assert_close(
        torch.autograd.grad(x[0, 1], (q, v, g), retain_graph=True), torch.autograd.grad(-speed, (q, v, g))
    )
    zero = torch.autograd.grad(x[0, 0], (q, v, g))
    torch.testing.assert_close(zero, tuple(map(torch.zeros_like, zero)), rtol=0, atol=1e-8)


@pytest.mark.parametrize("gradient", EXACT)
def test_a_bouncing_ball_is_differentiable_through_its_bounces(gradient):
    """Dropped from q, restitution r: at rest on its way up after n bounces at height r^(2n) q."""
    q, r, g = leaves(1.0, 0.8, 9.8)
    x0 = torch.stack([q, torch.zeros_like(q)])[None]
    bounce = odenet.Event(
        lambda t, x, *args: x[0, 0], direction=-1, update=lambda t, x: torch.stack([x[:, 0], -r * x[:, 1]], 1)
    )
    drop = torch.sqrt(2 * q / g)
    top = drop * (1 + 2 * r + r * r)  # the top after the second bounce
    solution = odenet.solve(fall, x0, (0, float(top)), event=bounce, args=(g,), gradient=gradient, **FINE)
    assert solution.status == "success" and len(solution.events[0].ts) == 2
    torch.testing.assert_close(solution.events[0].ts, torch.stack([drop, drop * (1 + 2 * r)]), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(solution.last[0, 0], r**4 * q, rtol=1e-7, atol=1e-8)

    def height(q, r, g):
        drop = torch.sqrt(2 * q / g)
        s = top.detach() - drop * (1 + 2 * r)
        speed = r * r * torch.sqrt(2 * g * q)
        return speed * s - g * s * s / 2

    got = torch.autograd.grad(solution.last[0, 0], (q, r, g), retain_graph=True)
    torch.testing.assert_close(got, torch.autograd.grad(height(q, r, g), (q, r, g)), rtol=1e-6, atol=1e-6)
    got = torch.autograd.grad(solution.events[0].ts[1], (q, r, g))
    torch.testing.assert_close(got, torch.autograd.grad(drop * (1 + 2 * r), (q, r, g)), rtol=1e-6, atol=1e-6)


def test_a_second_derivative_of_an_events_time_is_refused_rather_than_wrong():
    (q,) = leaves(2.0)
    x0 = torch.stack([q, torch.zeros_like(q)])[None]
    t = odenet.solve(fall, x0, (0, 5), event=ground, args=(torch.tensor(9.8),), **FINE).events[0].ts[0]
    (first,) = torch.autograd.grad(t, q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad|not have a grad_fn"):
        torch.autograd.grad(first, q)

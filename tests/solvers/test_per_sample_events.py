"""Events that change the state of a sample: each goes on by itself, from its own state at its own time."""

import math

import pytest
import torch

import odenet
from odenet import Event
from odenet.depth import PiecewiseConstant

G = 9.8
HEIGHT = torch.tensor([1.0, 2.0, 0.3, 5.0, 1.5], dtype=torch.float64)
KEPT = torch.tensor([0.7, 0.5, 0.9, 0.3, 0.8], dtype=torch.float64)
T1 = torch.tensor([1.3, 1.6, 2.1, 0.5, 1.9], dtype=torch.float64)
BOUNCE = Event(
    lambda t, x, r: x[:, 0], direction=-1, update=lambda t, x, r: torch.stack([x[:, 0], -r * x[:, 1]], 1)
)  # fmt: skip
TOP = Event(lambda t, x, r: x[:, 1], terminal=False, direction=-1)
OWN = {"per_sample": True, "per_sample_args": (0,)}
FINE = {"rtol": 1e-9, "atol": 1e-9, **OWN}


def fall(t, x, r):
    return torch.stack([x[:, 1], torch.full_like(x[:, 1], -G)], 1)


def dropped(height):
    return torch.stack([height, torch.zeros_like(height)], 1)


def bounces(height, kept, count):
    """Dropped from h, a ball bounces at √(2h/g) (1 + 2 (r + ... + r^n))."""
    drop, total = (2 * height / G) ** 0.5, 0
    times = []
    for n in range(count):
        times.append(drop * (1 + 2 * total))
        total = total + kept ** (n + 1)
    return times


def position(t, height, kept):
    """Height and speed at t after the bounces before."""
    times = bounces(height, kept, 40)
    n = sum(float(s.detach()) < float(t) for s in times)
    if n == 0:
        return height - G * t * t / 2, -G * t
    speed, s = (2 * height * G) ** 0.5 * kept**n, t - times[n - 1]
    return speed * s - G * s * s / 2, speed - G * s


def of_sample(found, sample):
    return found.ts[found.samples == sample]


@pytest.mark.parametrize("solver", ["dopri5", "dopri8", "bosh3"])
def test_every_ball_bounces_at_its_own_times(solver):
    x0, how = dropped(HEIGHT), {"solver": solver, "event": [TOP, BOUNCE], **FINE}
    ts = torch.stack([0.3 * T1, 0.9 * T1, T1])
    whole = odenet.solve(fall, x0, (0.0, T1), args=(KEPT,), ts=ts, dense=True, **how)
    assert whole.status == ["success"] * 5 and torch.equal(whole.ended, T1)
    tops, found = whole.events
    at = torch.stack([0.07 * T1, 0.55 * T1, 0.999 * T1])
    dense = torch.stack([whole(t) for t in at])
    for i in range(5):
        times = [t for t in bounces(HEIGHT[i], KEPT[i], 40) if t < T1[i]]
        torch.testing.assert_close(of_sample(found, i), torch.tensor(times).double(), rtol=1e-8, atol=1e-8)
        drop = (2 * HEIGHT[i] / G) ** 0.5
        highest = [t + drop * KEPT[i] ** (n + 1) for n, t in enumerate(times)]
        highest = torch.tensor([t for t in highest if t < T1[i]]).double()
        torch.testing.assert_close(of_sample(tops, i), highest, rtol=1e-7, atol=1e-7)
        for asked, states in ((ts, whole.ys), (at, dense)):
            for t, x in zip(asked[:, i], states[:, i], strict=True):
                truth = torch.stack(position(t, HEIGHT[i], KEPT[i]))
                torch.testing.assert_close(x, truth, rtol=1e-6, atol=1e-6)
        heights = HEIGHT[i] * KEPT[i] ** (2 * torch.arange(1, len(highest) + 1))
        torch.testing.assert_close(tops.ys[tops.samples == i][:, 0], heights, rtol=1e-7, atol=1e-7)


def test_a_sample_bounces_as_it_does_alone_to_the_last_bit_and_costs_what_it_costs_alone():
    x0 = dropped(HEIGHT)
    whole = odenet.solve(fall, x0, (0.0, T1), args=(KEPT,), event=[TOP, BOUNCE], ts=[0.0, 0.45, 0.5], **FINE)
    rows = 0
    for i in range(5):
        own = slice(i, i + 1)
        part = odenet.solve(
            fall, x0[own], (0.0, T1[own]), args=(KEPT[own],), event=[TOP, BOUNCE], ts=[0.0, 0.45, 0.5], **FINE
        )
        assert torch.equal(part.ys[:, 0], whole.ys[:, i]) and torch.equal(part.last[0], whole.last[i])
        for one, all_of_them in zip(part.events, whole.events, strict=True):
            assert torch.equal(one.ts, of_sample(all_of_them, i))
        for name in ("nfe", "accepted", "rejected"):
            assert int(getattr(part.stats.samples, name)) == int(getattr(whole.stats.samples, name)[i])
        assert torch.equal(part.stats.samples.h[0], whole.stats.samples.h[i])
        shared = odenet.solve(
            fall,
            x0[own],
            (0.0, float(T1[i])),
            args=(KEPT[own],),
            event=[TOP, BOUNCE],
            ts=[0.0, 0.45, 0.5],
            rtol=1e-9,
            atol=1e-9,
        )
        assert shared.stats.nfe == int(part.stats.samples.nfe)
        torch.testing.assert_close(shared.ys[:, 0], whole.ys[:, i], rtol=1e-9, atol=1e-9)
        rows += shared.stats.nfe
    assert int(whole.stats.samples.nfe.sum()) == rows and whole.stats.nfe < rows


@pytest.mark.parametrize("gradient", ["autograd", "checkpoint", "stagewise", "adjoint"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_through_the_times_of_bounces_and_through_the_updates(gradient, dtype):
    leaves = [HEIGHT.clone().to(dtype).requires_grad_(), KEPT.clone().to(dtype).requires_grad_()]
    height, kept = leaves
    how = FINE if dtype is torch.float64 else {"rtol": 1e-5, "atol": 1e-5, **OWN}
    solution = odenet.solve(fall, dropped(height), (0.0, T1), args=(kept,), event=BOUNCE, gradient=gradient, **how)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    ends = torch.stack([torch.stack(position(T1[i], exact[0][i], exact[1][i])) for i in range(5)])
    found = solution.events[0]
    times = torch.cat([
        torch.stack([t for t in bounces(exact[0][i], exact[1][i], 40) if t < T1[i]] or [exact[0][i] * 0])[:n]
        for i, n in enumerate((found.samples[:, None] == torch.arange(5)).sum(0).tolist())
    ])  # fmt: skip
    ours_times = torch.cat([of_sample(found, i) for i in range(5)])
    tolerance = 1e-7 if dtype is torch.float64 else 2e-3
    weight = torch.arange(1, 11).reshape(5, 2).double()
    numbers = torch.arange(len(times)).double().cos()
    for ours, truth in (((solution.last * weight).sum(), (ends * weight).sum()),
                        ((ours_times * numbers).sum(), (times * numbers).sum())):  # fmt: skip
        torch.testing.assert_close(ours.double(), truth, rtol=tolerance, atol=tolerance)
        got = torch.autograd.grad(ours, leaves, retain_graph=True)
        wanted = torch.autograd.grad(truth, exact, retain_graph=True)
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)


def test_samples_end_break_down_and_go_on_each_by_itself_backwards_and_over_knots():
    """|x'| = 1, 2, 4 on the thirds of each sample's own way: it is halved at 1/2, and ends at -1."""

    class Slope(torch.nn.Module):
        def __init__(self, number):
            super().__init__()
            self.rate = 2.0**number

        def forward(self, t, x, s):
            return (s * self.rate)[:, None].expand_as(x)

    F = PiecewiseConstant([Slope(n) for n in range(3)])
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    t1 = sign * torch.tensor([0.3, 0.9, 0.6, 3.0], dtype=torch.float64)
    x0 = torch.tensor([[0.0], [0.1], [-2.0], [0.3]], dtype=torch.float64)
    up = Event(lambda t, x, s: x[:, 0] - 0.5, direction=1, update=lambda t, x: x / 2)
    down = Event(lambda t, x, s: x[:, 0] + 1, direction=1)
    solution = odenet.solve(F, x0, (0.0, t1), args=(sign,), event=[up, down], rtol=1e-6, atol=1e-6, **OWN)
    assert solution.status == ["success", "success", "event", "success"]

    def alone(i):  # every sample forwards, by hand
        third, x, t, hits = abs(float(t1[i])) / 3, float(x0[i]), 0.0, []
        for rate in (1.0, 2.0, 4.0):
            left = third
            while x < 0.5 <= x + rate * left or x < -1 <= x + rate * left:
                if x < -1:
                    return -1.0, [float(t1[i].sign()) * (t + (-1 - x) / rate)]
                t, left = t + (0.5 - x) / rate, left - (0.5 - x) / rate
                x = 0.25
                hits.append(float(t1[i].sign()) * t)
            x, t = x + rate * left, t + left
        return x, hits

    for i in range(4):
        x, hits = alone(i)
        assert float(solution.last[i]) == pytest.approx(x, abs=1e-10)
        found = solution.events[1 if i == 2 else 0]
        assert of_sample(found, i).tolist() == pytest.approx(hits, abs=1e-10)
    assert len(of_sample(solution.events[0], 3)) > 10


def test_balls_that_come_to_rest_are_told_and_leave_the_others_alone():
    """A ball that keeps half of its speed is at rest after 3 √2 of its falls."""
    kept = torch.tensor([0.5, 0.98], dtype=torch.float64)
    x0 = dropped(torch.full((2,), G, dtype=torch.float64))
    how = {"args": (kept,), "event": BOUNCE, "rtol": 1e-6, "atol": 1e-6, **OWN}
    solution = odenet.solve(fall, x0, (0.0, 20.0), on_failure="status", **how)
    assert solution.status == ["step_underflow", "success"] and list(solution.errors) == [0]
    assert float(solution.ended[0]) == pytest.approx(3 * math.sqrt(2), abs=1e-5)
    assert float(solution.last[0, 0]) == pytest.approx(0, abs=1e-8)
    torch.testing.assert_close(solution.last[1], torch.stack(position(20.0, x0[1, 0], kept[1])), rtol=1e-5, atol=1e-5)
    with pytest.raises(odenet.errors.StepUnderflowError, match="follow each other too closely") as caught:
        odenet.solve(fall, x0, (0.0, 20.0), **how)
    assert caught.value.sample == 0
    steps = solution.stats.samples.accepted + solution.stats.samples.rejected
    assert int(steps[0]) > int(steps[1])
    held = odenet.solve(fall, x0, (0.0, 20.0), on_failure="status", max_steps=int(steps[1]), **how)
    assert held.status == ["step_budget", "success"] and held.errors[0].sample == 0
    tries = held.stats.samples.accepted + held.stats.samples.rejected
    assert tries.tolist() == [int(steps[1])] * 2  # bounces do not renew the budget
    assert torch.equal(held.last[1], solution.last[1])


def test_trees_of_states_bounce_and_an_update_keeps_their_shape():
    def tree(t, x, r):
        return {"p": torch.full_like(x["p"], -G), "q": x["p"]}

    x0 = {"p": torch.zeros(5, dtype=torch.float64), "q": HEIGHT}
    bounce = Event(lambda t, x, r: x["q"], direction=-1, update=lambda t, x, r: {"p": -r * x["p"], "q": x["q"]})
    solution = odenet.solve(tree, x0, (0.0, T1), args=(KEPT,), event=bounce, **FINE)
    packed = odenet.solve(fall, dropped(HEIGHT), (0.0, T1), args=(KEPT,), event=BOUNCE, **FINE)
    torch.testing.assert_close(solution.last["q"], packed.last[:, 0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(solution.events[0].ts, packed.events[0].ts, rtol=1e-10, atol=1e-10)
    assert solution.events[0].ys["p"].shape == packed.events[0].ts.shape
    wrong = Event(BOUNCE.function, direction=-1, update=lambda t, x: x[:, 0])
    with pytest.raises(odenet.errors.InputError, match="an event's update must return a state"):
        odenet.solve(fall, dropped(HEIGHT), (0.0, T1), args=(KEPT,), event=wrong, **FINE)


@pytest.mark.parametrize("gradient", ["autograd", "checkpoint", "stagewise", "adjoint"])
def test_parameters_that_F_holds_get_the_gradient_of_all_walks(gradient):
    """x' = -w, raised by 1 where it falls to 0: x(t1) = x0 - w t1 + the number of rises, dt*/dw known."""
    w = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    held = {"w": w}
    x0 = torch.tensor([[0.2], [0.7], [3.0]], dtype=torch.float64, requires_grad=True)
    rise = Event(lambda t, x: x[:, 0], direction=-1, update=lambda t, x: x + 1)
    solution = odenet.solve(
        lambda t, x: -held["w"] * torch.ones_like(x), x0, (0.0, 2.0), event=rise, gradient=gradient, per_sample=True,
        rtol=1e-8, atol=1e-8,
    )  # fmt: skip
    torch.testing.assert_close(
        solution.last[:, 0].detach(), torch.tensor([0.6, 0.1, 0.4], dtype=torch.float64), rtol=0, atol=1e-9
    )
    by_w, by_x = torch.autograd.grad(solution.last.sum(), (w, x0), retain_graph=True)
    assert float(by_w) == pytest.approx(-6.0, abs=1e-9) and by_x[:, 0].tolist() == pytest.approx([1.0] * 3)
    third = of_sample(solution.events[0], 0)[2]  # (x0 + 2) / w
    by_w, by_x = torch.autograd.grad(third, (w, x0))
    assert float(third.detach()) == pytest.approx(2.2 / 1.3, abs=1e-9)
    assert float(by_w) == pytest.approx(-2.2 / 1.3**2, abs=1e-9) and float(by_x[0]) == pytest.approx(1 / 1.3, abs=1e-9)


def test_events_whose_sign_cannot_be_known_are_refused():
    """Each was passed over in silence."""
    x0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    seen = lambda t, x: (x[:, 0] - 1.5).log()  # noqa: E731
    with pytest.raises(odenet.errors.InputError, match=r"returned NaN at t=\S+ for sample 0"):
        odenet.solve(lambda t, x: -x, x0, event=seen, per_sample=True)
    with pytest.raises(odenet.errors.InputError, match="must return a real tensor .* got torch.bool"):
        odenet.solve(lambda t, x: -x, x0, event=lambda t, x: x[:, 0] < 0.5, per_sample=True)


@pytest.mark.parametrize("solver", ["rk4", "dopri5", "dopri8"])
def test_the_gradient_of_an_event_in_a_batch_of_one_is_that_in_a_larger_batch(solver):
    """The search for its time may not leave values of F without a graph in the dense output."""

    def slopes(batch, gradient):
        a = torch.full((batch, 1), 1.3, dtype=torch.float64, requires_grad=True)
        x0 = torch.tensor([[2.0], [3.0]], dtype=torch.float64)[:batch]
        solution = odenet.solve(
            lambda t, x, a: -a * (x - torch.sin(3 * t)[:, None]), x0, (0.0, 2.0), solver=solver, steps=3, args=(a,),
            event=lambda t, x, a: x[:, 0] - 1.2, gradient=gradient, **OWN,
        )  # fmt: skip
        found = solution.events[0]
        (grads,) = torch.autograd.grad(found.ts[found.samples == 0].sum(), a)
        return grads[0]

    exact = slopes(2, "checkpoint")
    for batch in (1, 2):
        torch.testing.assert_close(slopes(batch, "autograd"), exact, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    "how", [{"solver": "rk4", "steps": 12}, {"solver": "dopri8"}, {"solver": "bosh3", "rtol": 1e-3}], ids=str
)
@pytest.mark.parametrize("goes_on", [False, True])
def test_what_events_cost_a_sample_does_not_depend_on_the_batch(how, goes_on):
    """Evaluations for dense output are those of the samples in whose steps an event is looked for, once for each."""
    rate = torch.tensor([0.3, 8.0, 1.0, 30.0, 2.0], dtype=torch.float64)
    x0 = torch.tensor([[1.0, 0.5], [2.0, -0.3], [-1.0, 0.2], [0.6, 0.4], [0.1, 1.5]], dtype=torch.float64)
    t1 = torch.tensor([1.0, 2.0, 0.5, 1.5, -1.0], dtype=torch.float64)
    update = (lambda t, x, a: x * 0.5 + 0.7) if goes_on else None
    event = Event(lambda t, x, a: x.sum(1) - 0.4, update=update)

    def solved(rows):
        F = lambda t, x, a: -a[:, None] * (x - torch.sin(3 * t)[:, None]) + 0.1 * x.flip(1)  # noqa: E731
        return odenet.solve(F, x0[rows], (0.0, t1[rows]), args=(rate[rows],), event=event, **how, **OWN)

    whole = solved([0, 1, 2, 3, 4])
    for rows in ([1], [0, 3], [4]):
        part = solved(rows)
        assert torch.equal(part.last, whole.last[rows])
        assert torch.equal(part.stats.samples.nfe, whole.stats.samples.nfe[rows])

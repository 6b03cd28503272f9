"""The same call under odenet and torchdiffeq: close answers and gradients, or better ones; options do their work."""

import math
import warnings

import numpy as np
import pytest
import torch
import torchdiffeq
from torch import nn

import odenet
from odenet.errors import InputError, StepBudgetError, UnknownNameError
from tests.oracles import Counted
from tests.oracles.problems import LINEAR_X0, A

ADAPTIVE = {"dopri5": 1e-7, "dopri8": 1e-6, "bosh3": 1e-5, "adaptive_heun": 1e-4, "fehlberg2": 1e-4}
FIXED = ["euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams", "fixed_adams"]
TIMES = {
    "increasing": torch.linspace(0, 1, 6, dtype=torch.float64),
    "decreasing": torch.tensor([1.0, 0.3, 0.0], dtype=torch.float64),
    "float32": torch.linspace(0.5, 2, 4),
    "one": torch.tensor([0.4], dtype=torch.float64),
}
both = pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])


class Net(nn.Module):
    """A spiral's F, as in a first example of a neural ODE."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 2)).to(dtype)

    def forward(self, t, y):
        return self.net(y**3) * (1 + t)


class Flow(nn.Module):
    """A continuous normalising flow: a tuple of a state and a column of log densities."""

    def __init__(self):
        super().__init__()
        self.W = nn.Parameter(torch.randn(2, 2, dtype=torch.float64) / 2)

    def forward(self, t, state):
        z, _ = state
        with torch.enable_grad():
            z = z.requires_grad_() if z.is_leaf else z
            dz = torch.tanh(z @ self.W) * torch.cos(t)
            trace = sum(torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(2))
        return dz, -trace.reshape(-1, 1)


def differentiate(library, name, func, y0, t, **call):
    """Answer and gradients of one call."""
    leaves = [y0] if isinstance(y0, torch.Tensor) else list(y0)
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    t = t.clone().requires_grad_()
    ys = getattr(library, name)(func, leaves[0] if isinstance(y0, torch.Tensor) else tuple(leaves), t, **call)
    parts = [ys] if isinstance(ys, torch.Tensor) else list(ys)
    loss = sum((part.abs() * torch.linspace(1, 2, part.numel()).reshape(part.shape)).square().sum() for part in parts)
    inputs = [*leaves, *func.parameters(), t]
    return parts, torch.autograd.grad(loss, inputs, allow_unused=True)


def assert_close(func, y0, t, name, limit, time_limit=None, **call):
    (theirs, expected), (ours, got) = (differentiate(lib, name, func, y0, t, **call) for lib in (torchdiffeq, odenet))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=limit, atol=limit)
    *got, by_time = got
    *expected, by_their_time = expected
    for a, b in zip(got, expected, strict=True):
        if a is None or b is None:
            assert len(t) == 1 and (b is None or not b.any())
            continue
        torch.testing.assert_close(a, b, rtol=0, atol=10 * limit * float(b.abs().max()) + limit)
    if len(t) > 1 and time_limit is not None:
        torch.testing.assert_close(by_time, by_their_time, rtol=0, atol=time_limit * float(by_their_time.abs().max()))


@both
@pytest.mark.parametrize("times", TIMES)
def test_a_tensor_and_a_module(times, name):
    y0 = torch.tensor([[2.0, 0.3], [1.0, -0.5], [0.1, 0.2]], dtype=torch.float64)
    time_limit = 1e-3 if name == "odeint" else 1e-4  # torchdiffeq's own error: it interpolates
    assert_close(Net(), y0, TIMES[times], name, limit=3e-6, time_limit=time_limit)


@both
@pytest.mark.parametrize("times", ["increasing", "decreasing"])
def test_a_tuple_as_in_a_continuous_normalising_flow(times, name):
    y0 = (torch.randn(5, 2, dtype=torch.float64), torch.zeros(5, 1, dtype=torch.float64))
    call = {"rtol": (1e-7, 1e-6), "atol": 1e-8} if name == "odeint" else {"rtol": 1e-7, "atol": 1e-8}
    assert_close(Flow(), y0, TIMES[times], name, limit=1e-5, **call)


@both
def test_float32_with_the_default_tolerances(name):
    assert_close(Net(torch.float32), torch.tensor([2.0, 0.5]), TIMES["float32"], name, limit=1e-5)


def test_a_number_a_complex_state_and_an_odd_function():
    t = TIMES["increasing"]
    y = odenet.odeint(lambda t, y: -y, torch.tensor(2.0, dtype=torch.float64), t)
    torch.testing.assert_close(y, 2 * torch.exp(-t), rtol=1e-6, atol=0)
    z = torch.tensor([1.0 + 1.0j], dtype=torch.complex128)
    rotated = odenet.odeint(lambda t, z: 2j * z, z, t)
    torch.testing.assert_close(rotated, torch.exp(2j * t)[:, None] * z, rtol=1e-6, atol=0)
    torch.testing.assert_close(rotated, torchdiffeq.odeint(lambda t, z: 2j * z, z, t), rtol=1e-5, atol=0)
    a, b = torch.ones(2, 1), torch.ones(3)  # values of another shape and dtype, in a list
    odd = odenet.odeint(lambda t, y: [-y[0].reshape(2).double(), -y[1]], (a, b), t)
    assert isinstance(odd, tuple) and odd[0].shape == (6, 2, 1) and odd[0].dtype == torch.float32
    torch.testing.assert_close(odd[0][-1], a * math.exp(-1), rtol=1e-5, atol=0)


@both
@pytest.mark.parametrize("method", FIXED)
def test_a_fixed_step_method(method, name):
    y0 = torch.tensor([[2.0, 0.3], [1.0, -0.5]], dtype=torch.float64)
    limit = 1e-4 if "adams" in method else 1e-11
    for t in (torch.linspace(0, 1, 21, dtype=torch.float64), torch.linspace(1, 0, 21, dtype=torch.float64)):
        assert_close(Net(), y0, t, name, limit=limit, method=method)  # steps from time to time
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert_close(Net(), y0, ends, name, limit=limit, method=method, options={"step_size": 0.04})
    if "adams" not in method:
        waves = (1 - torch.cos(math.pi * torch.linspace(0, 1, 15, dtype=torch.float64))) / 2
        grid = {"grid_constructor": lambda func, y0, t: t[0] + (t[-1] - t[0]) * waves}
        assert_close(Net(), y0, ends, name, limit=limit, method=method, options=grid)


@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED])
def test_the_answer_is_at_least_as_accurate_as_torchdiffeqs(method):
    def F(t, y):
        return y @ A.T + torch.cos(3 * t)

    t = torch.tensor([0.0, 0.33, 0.9, 1.57, 2.0], dtype=torch.float64)
    exact = torchdiffeq.odeint(F, LINEAR_X0, t, method="dopri8", rtol=1e-13, atol=1e-13, options={"step_t": t})
    tolerance = ADAPTIVE.get(method, 1e-6)
    options = {"options": {"step_size": 0.05}} if method in FIXED else {}

    def error(library):
        ys = library.odeint(F, LINEAR_X0, t, method=method, rtol=tolerance, atol=tolerance, **options)
        return float((ys - exact).abs().max())

    assert error(odenet) <= 1.1 * error(torchdiffeq) or error(odenet) < 2 * tolerance


def test_scipy_solver():
    t = TIMES["increasing"]
    for options in ({}, {"solver": "RK45"}, {"solver": "LSODA", "min_step": 1e-8, "max_step": 0.1}):
        with torch.no_grad():
            y = odenet.odeint(lambda t, y: y @ A.T, LINEAR_X0, t, method="scipy_solver", options=options)
        torch.testing.assert_close(y[-1], LINEAR_X0 @ torch.linalg.matrix_exp(A).T, rtol=1e-5, atol=1e-6)
    net, y0 = Net(), torch.tensor([[2.0, 0.3]], dtype=torch.float64)
    y = odenet.odeint_adjoint(net, y0, t, method="scipy_solver")
    got = torch.autograd.grad(y.square().sum(), list(net.parameters()))
    y = odenet.odeint(net, y0, t, rtol=1e-9, atol=1e-9)
    for a, b in zip(got, torch.autograd.grad(y.square().sum(), list(net.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def evaluations(method="dopri5", t=(0.0, 1.0), **call):
    F = Counted(lambda t, y: torch.sin(5 * t) * y)
    odenet.odeint(F, torch.ones(3, dtype=torch.float64), torch.tensor(t, dtype=torch.float64), method=method, **call)
    return F


def test_the_options_of_an_adaptive_method_do_what_they_say():
    plain = evaluations().calls
    for options in ({"max_step": 0.01}, {"safety": 0.3}, {"first_step": 1e-9}, {"ifactor": 1.0, "first_step": 0.01}):
        assert evaluations(options=options).calls > 1.15 * plain, options
    assert evaluations(options={"min_step": 0.25}).calls < plain
    assert evaluations(options={"dtype": torch.float32, "dfactor": torch.tensor(0.5)}).calls > 0
    stops = torch.tensor([0.3, 0.7], dtype=torch.float64)
    assert {0.3, 0.7} <= set(evaluations(options={"step_t": stops}).times)
    jumped = evaluations(options={"jump_t": torch.tensor([0.5], dtype=torch.float64)}).times
    assert 0.5 not in jumped and np.nextafter(0.5, 0) in jumped and np.nextafter(0.5, 1) in jumped
    assert evaluations(options={"norm": lambda y: 1e-3 * y.abs().max()}).calls < plain
    with pytest.raises(StepBudgetError, match="budget of 3 steps"):
        evaluations(options={"max_num_steps": 3})


def test_the_options_of_a_fixed_step_method_do_what_they_say():
    assert evaluations("euler", options={"step_size": 0.1}).calls == 10
    assert evaluations("euler", t=[1.0, 0.5, 0.0], options={"step_size": torch.tensor(0.1)}).calls == 10
    plain, perturbed = (
        evaluations("euler", t=[0.0, 0.5, 1.0], options={"perturb": perturb}).times for perturb in (False, True)
    )
    assert plain == [0.0, 0.5] and perturbed == [np.nextafter(0.0, 1), np.nextafter(0.5, 1)]
    for interp in ("linear", "cubic"):
        y = odenet.odeint(
            lambda t, y: y, torch.ones(1, dtype=torch.float64), torch.tensor([0.0, 0.37, 1.0], dtype=torch.float64),
            method="rk4", options={"step_size": 0.25, "interp": interp},
        )  # fmt: skip
        assert abs(float(y[1]) - math.exp(0.37)) < 1e-4  # a straight line would be 1e-2 off
    for method, options, order in (
        ("explicit_adams", {"max_order": 4}, 3),
        ("implicit_adams", {"max_order": 4, "max_iters": 2}, 4),
        ("explicit_adams", {"max_order": 2}, 4),
        ("radauIIA3", {"max_iters": 2}, 3),
    ):
        ends, errors = torch.tensor([0.0, 1.0], dtype=torch.float64), []
        for h in (0.02, 0.01):
            y = odenet.odeint(
                lambda t, y: y * torch.cos(t), torch.ones(1, dtype=torch.float64), ends, method=method,
                options=options | {"step_size": h},
            )  # fmt: skip
            errors.append(abs(float(y[-1]) - math.exp(math.sin(1))))
        assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


def test_max_iters_corrects_adams_moulton_steps_until_they_settle():
    def F(t, y):
        return torch.stack([y[1], -torch.sin(3 * y[0]) - 0.3 * t * y[1]])

    y0, ends = torch.tensor([1.2, 0.3], dtype=torch.float64), torch.tensor([0.0, 2.0], dtype=torch.float64)
    given = {"method": "implicit_adams", "rtol": 1e-12, "atol": 1e-14}

    def solved(library, h, **options):
        counted = Counted(F)
        ys = library.odeint(counted, y0, ends, options={"step_size": h, "max_order": 4} | options, **given)
        return ys[-1], counted.calls

    ours, calls = solved(odenet, 0.02, max_iters=30)
    theirs, _ = solved(torchdiffeq, 0.02, max_iters=30)
    with pytest.warns(UserWarning, match="corrections of abm4 did not settle within 1 iterations a step"):
        once, fewest = solved(odenet, 0.02, max_iters=1)
    # solved further, the steps are torchdiffeq's but for the first three; corrected once, they are others
    assert (ours - theirs).abs().max() < 0.1 * (once - theirs).abs().max()
    assert fewest == 3 * 4 + 97 * 2 < calls
    # the equations of the steps hold: y⁺ = y + h/24 (9 F⁺ + 19 F - 5 F⁻ + F⁻⁻)
    grid = torch.linspace(0, 2, 101, dtype=torch.float64)
    ys = odenet.odeint(F, y0, grid, options={"max_order": 4, "max_iters": 30}, **given)
    k = torch.stack([F(t, y) for t, y in zip(grid, ys, strict=True)])
    left = ys[4:] - ys[3:-1] - 0.02 / 24 * (9 * k[4:] + 19 * k[3:-1] - 5 * k[2:-2] + k[1:-3])
    assert left.abs().max() < 1e-12
    # a loose tolerance settles with one or two corrections, without a warning
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given |= {"rtol": 1e-3, "atol": 1e-3}
        assert solved(odenet, 0.02)[1] == fewest


def test_the_norm_of_a_tuple_gets_a_tuple_and_the_default_takes_the_largest():
    seen = []

    def norm(y):
        seen.append(tuple(part.shape for part in y))
        return torch.stack([part.abs().max() for part in y]).max()

    y0, t = (torch.ones(2, 3), torch.ones(4)), torch.tensor([0.0, 1.0])
    odenet.odeint(lambda t, y: (-y[0], -y[1]), y0, t, options={"norm": norm}, rtol=1e-4)
    assert seen[0] == ((2, 3), (4,))
    # many still elements beside one that moves: a norm over all of them would not look at it
    F = Counted(lambda t, y: (0 * y[0], torch.cos(20 * t) * y[1]))
    calls = []
    for still in (1, 10_000):
        before = F.calls
        odenet.odeint(F, (torch.ones(still), torch.ones(1)), t, rtol=1e-5, atol=1e-5)
        calls.append(F.calls - before)
    assert calls[0] == calls[1]


REFUSED = [
    ({"method": "dopri6"}, "unknown method 'dopri6'; did you mean 'dopri"),
    ({"method": "rk4"}, r"over one interval needs a step size; give options=\{'step_size': h\}"),
    ({"options": {"frist_step": 0.1}}, "unknown option of method 'dopri5' 'frist_step'; did you mean 'first_step'"),
    ({"method": "rk4", "options": {"stepsize": 0.1}}, "unknown option of method 'rk4' 'stepsize'.*'step_size'"),
    ({"method": "rk4", "options": {"step_size": 0.1, "grid_constructor": lambda f, y, t: t}}, "exclude each other"),
    ({"method": "rk4", "options": {"step_size": 0.1, "interp": "quintic"}}, "interp must be one of linear, cubic"),
    ({"options": {"first_step": "a"}}, "first_step must be a number, got 'a'"),
    ({"options": 3}, "options must be a dict, got 3"),
    ({"rtol": -1e-3}, "rtol must be a positive number"),
    ({"rtol": torch.tensor(1e-3, requires_grad=True)}, "rtol cannot require a gradient"),
    ({"t": [0.0, 1.0]}, "t must be a floating-point tensor, got list"),
    ({"t": torch.tensor([0, 1])}, "t must be a floating-point tensor, got torch.int64"),
    ({"t": torch.tensor([0.0, 1.0, 0.5])}, "strictly increasing or strictly decreasing"),
    ({"t": torch.tensor([0.0, 0.0])}, "strictly increasing or strictly decreasing"),
    ({"t": torch.zeros(2, 2)}, "one-dimensional"),
    ({"y0": 1.0}, "y0 must be a tensor or a tuple of tensors, got float"),
    ({"y0": ()}, "at least one tensor"),
    ({"y0": torch.tensor([1, 2])}, r"floating-point or complex dtype, got torch.int64; use y0.float\(\)"),
    ({"y0": (torch.ones(1), torch.tensor([1, 2]))}, "floating-point or complex dtype, got torch.int64"),
    ({"func": 3}, "func must be callable"),
    ({"event_fn": lambda t, y: y, "t": torch.tensor([0.0, 1.0, 2.0])}, "t must be a start and a direction"),
    ({"event_fn": lambda t, y: y, "method": "rk4"}, r"needs options=\{'step_size': h\} to look for an event"),
]


@pytest.mark.parametrize(("arguments", "said"), REFUSED, ids=[said[:30] for _, said in REFUSED])
def test_what_cannot_be_done_is_said(arguments, said):
    call = {"func": lambda t, y: -y, "y0": torch.ones(2), "t": torch.tensor([0.0, 1.0])} | arguments
    with pytest.raises(InputError, match=said):
        odenet.odeint(**call)


def test_an_option_of_another_kind_of_method_is_ignored_with_a_warning():
    t, y0 = torch.tensor([0.0, 1.0]), torch.ones(2)
    with pytest.warns(UserWarning, match="method 'dopri5' has no option 'step_size'; it is ignored"):
        odenet.odeint(lambda t, y: -y, y0, t, method="dopri5", options={"step_size": 0.1})
    assert issubclass(UnknownNameError, ValueError)


class Watched(nn.Module):
    """Notes what its callbacks are told."""

    def __init__(self, *names):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(4.0, dtype=torch.float64))
        self.told = []
        for name in names:
            setattr(self, name, lambda t, y, dt, name=name: self.told.append((name, t, y, dt)))

    def forward(self, t, y):
        if isinstance(y, tuple):
            return tuple(self.forward(t, part) for part in y)
        return torch.sin(self.w * t**4) * y


NAMES = ("callback_step", "callback_accept_step", "callback_reject_step")


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("many", [False, True])
def test_callbacks_are_told_what_happened_in_order(many, direction):
    t = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    t = t if direction == 1 else t.flip(0)
    y0 = torch.ones(2, dtype=torch.float64)
    y0 = (y0, torch.ones(3, 1, dtype=torch.float64)) if many else y0
    told = {}
    for library in (odenet, torchdiffeq):
        F = Watched(*NAMES)
        library.odeint(F, y0, t, rtol=1e-5, atol=1e-5)
        told[library] = F.told
    ours = told[odenet]
    assert {name for name, *_ in ours} == set(NAMES) == {name for name, *_ in told[torchdiffeq]}
    at = float(t[0])
    for (name, start, y, dt), (outcome, *same) in zip(ours[::2], ours[1::2], strict=True):
        assert name == "callback_step" and outcome != name
        assert [float(same[0]), float(same[2])] == [float(start), float(dt)] and float(dt) > 0
        assert float(start) == pytest.approx(at, abs=1e-12)
        assert isinstance(y, tuple) == many and isinstance(start, torch.Tensor) and start.dim() == 0
        at += direction * float(dt) if outcome == "callback_accept_step" else 0
    assert at == pytest.approx(float(t[-1]))


def test_callbacks_of_a_fixed_step_method_and_warnings_for_what_is_never_called():
    t, y0 = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    F = Watched("callback_step")
    odenet.odeint(F, y0, t, method="rk4", options={"step_size": 0.25})
    assert [float(t) for _, t, _, _ in F.told] == [0.0, 0.25, 0.5, 0.75]
    with pytest.warns(UserWarning, match="method 'rk4' does not call callback_accept_step"):
        odenet.odeint(Watched("callback_accept_step"), y0, t, method="rk4", options={"step_size": 0.25})
    with pytest.warns(UserWarning, match="does not call"), torch.no_grad():
        odenet.odeint(Watched("callback_step"), y0, t, method="scipy_solver")


def test_dense_output():
    ends = torch.tensor([0.0, 2.0], dtype=torch.float64)
    y0 = LINEAR_X0.clone().requires_grad_()
    y = odenet.odeint_dense(lambda t, y: y @ A.T, y0, *ends)
    expected = y0 @ torch.linalg.matrix_exp(0.7 * A).T
    torch.testing.assert_close(y(0.7), expected, rtol=1e-6, atol=1e-6)
    for a, b in zip(*(torch.autograd.grad(v.sum(), y0) for v in (y(torch.tensor(0.7)), expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_any_solver_of_odenet_is_a_method_too():
    y = odenet.odeint(
        lambda t, y: -y, torch.ones(1, dtype=torch.float64), TIMES["increasing"], method="ssprk3",
        options={"step_size": 0.01},
    )  # fmt: skip
    assert abs(float(y[-1]) - math.exp(-1)) < 1e-6


def test_a_spiral_is_learned():
    true = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
    t, y0 = torch.linspace(0, 1, 8), torch.tensor([[2.0, 0.0]])
    with torch.no_grad():
        wanted = odenet.odeint(lambda t, y: (y**3) @ true, y0, t)
    net = Net(torch.float32)
    optimizer = torch.optim.Adam(net.parameters(), 3e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = (odenet.odeint(net, y0, t, rtol=1e-3, atol=1e-3) - wanted).abs().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]

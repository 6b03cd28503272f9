"""Local-error and stiffness estimates as regularisers: closed forms for linear F, and what they leave alone."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import odenet
from odenet.errors import InputError
from tests.oracles import Counted
from tests.oracles.problems import LINEAR_X0, A

DOPRI5_A = [  # Dormand and Prince 1980, as printed in Hairer, Nørsett and Wanner 1993, table II.5.2
    [],
    [1 / 5],
    [3 / 40, 9 / 40],
    [44 / 45, -56 / 15, 32 / 9],
    [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
    [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
    [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
]
DOPRI5_B4 = [1951 / 21600, 0, 22642 / 50085, 451 / 720, -12231 / 42400, 649 / 6300, 1 / 60]  # Shampine 1986


class Linear(nn.Module):
    def __init__(self, matrix=A):
        super().__init__()
        self.A = nn.Parameter(matrix.clone())

    def forward(self, t, x):
        return x @ self.A.T


def penalty(block, x=LINEAR_X0):
    y = block(x)
    (found,) = odenet.take_penalties(block)
    return y, found


def total(matrix, estimate, propagate, h, steps):
    """Σ_n h |E x_n|, mean over the batch, with E and the step given as matrices."""
    x, found = LINEAR_X0.numpy().T, 0.0
    for _ in range(steps):
        found += h * np.linalg.norm(estimate @ x, axis=0).mean()
        x = propagate @ x
    return found


def test_the_error_estimate_of_dopri5_by_hand():
    h, B, one = 0.5, A.numpy(), np.eye(3)
    k = []
    for row in DOPRI5_A:
        k.append(B @ (one + h * sum((w * K for w, K in zip(row, k, strict=True)), np.zeros((3, 3)))))
    high = one + h * sum(w * K for w, K in zip(DOPRI5_A[6], k, strict=False))
    low = one + h * sum(w * K for w, K in zip(DOPRI5_B4, k, strict=True))
    block = odenet.ODEBlock(Linear(), solver="dopri5", steps=4, t1=2.0, regularisers={"local_error": 0.5})
    assert float(penalty(block)[1].detach()) == pytest.approx(0.5 * total(B, high - low, high, h, 4), rel=1e-9)


def test_a_network_of_layers_is_held_against_heun():
    """Of Euler's method E = h²A²x/2."""
    h, B = 0.25, A.numpy()
    net = odenet.ResNet(Linear(), 4, weights="tied", regularisers={"local_error": 1.0})
    truth = total(B, h * h / 2 * B @ B, np.eye(3) + h * B, h, 4)
    assert float(penalty(net)[1].detach()) == pytest.approx(truth, rel=1e-12)


def test_a_method_without_a_pair_is_held_against_half_steps():
    def rk4(z):
        return sum(np.linalg.matrix_power(z, n) / math.factorial(n) for n in range(5))

    h, B = 0.5, A.numpy()
    whole, halved = rk4(h * B), rk4(h / 2 * B) @ rk4(h / 2 * B)
    block = odenet.ODEBlock(Linear(), solver="rk4", steps=2, regularisers={"local_error": 1.0})
    truth = total(B, (halved - whole) * 16 / 15, whole, h, 2)
    assert float(penalty(block)[1].detach()) == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize(
    "solver", ["euler", "heun2", "rk4", "dopri5", "tsit5", "vern7", "alf", "ab2", "implicit_euler"]
)
def test_the_stiffness_of_decay_is_its_rate(solver):
    F = Linear(torch.tensor([[-3.0]], dtype=torch.float64))
    x, gradient = torch.tensor([[1.0], [-2.0]], dtype=torch.float64), "checkpoint"
    block = odenet.ODEBlock(F, solver, steps=5, t0=1.0, t1=-1.0, gradient=gradient, regularisers={"stiffness": 1.0})
    _, found = penalty(block, x)
    assert float(found.detach()) == pytest.approx(6.0, rel=1e-9)
    (got,) = torch.autograd.grad(found, F.A)
    assert float(got) == pytest.approx(-2.0, rel=1e-7)


@pytest.mark.parametrize("name", ["local_error", "stiffness"])
@pytest.mark.parametrize("solver", ["euler", "dopri5"])
def test_gradients_are_finite_differences_and_have_gradients(name, solver):
    torch.manual_seed(0)
    F = odenet.residual.MLP(3, width=5, time="concat").double()
    parameters, found = list(F.parameters()), {}
    direction = [torch.randn_like(p) for p in parameters]
    for gradient in ("autograd", "checkpoint"):
        block = odenet.ODEBlock(F, solver, steps=3, gradient=gradient, regularisers={name: 1.0, "kinetic": 0.01})
        first = torch.autograd.grad(penalty(block)[1], parameters, create_graph=True)
        slope = sum((g * d).sum() for g, d in zip(first, direction, strict=True))
        second = torch.autograd.grad(slope, parameters, allow_unused=True, materialize_grads=True)
        values = []
        for step in (1e-5, -2e-5, 1e-5):
            with torch.no_grad():
                for p, d in zip(parameters, direction, strict=True):
                    p.add_(d, alpha=step)
            values.append(float(penalty(block)[1].detach()))
        assert float(slope.detach()) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)
        found[gradient] = second
    torch.testing.assert_close(found["checkpoint"], found["autograd"], rtol=1e-7, atol=1e-9)


def test_evaluations_are_counted_and_the_solve_is_left_alone():
    torch.manual_seed(0)
    F = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Dropout(0.5)).double()
    twin = copy.deepcopy(F)
    results = []
    for body, factors in ((F, {}), (twin, {"local_error": 1.0, "stiffness": 1.0})):
        counted = Counted(lambda t, x, body=body: body(x))
        counted.body = body
        block = odenet.ODEBlock(counted, solver="dopri5", rtol=1e-3, atol=1e-3, regularisers=factors)
        torch.manual_seed(1)
        y = block(LINEAR_X0)
        results.append((y, block.stats, counted.calls, body[1].running_mean))
    (plain, stats, _, mean), (y, more, calls, same) = results
    assert torch.equal(plain, y) and torch.equal(mean, same) and more.h == stats.h
    assert more.nfe == stats.nfe + 7 * stats.accepted
    assert calls == more.nfe
    before = torch.autograd.grad(y.sum() + sum(odenet.take_penalties(block)), list(twin.parameters()))
    assert all(bool(g.isfinite().all()) for g in before) and torch.equal(mean, twin[1].running_mean)


def test_a_state_at_rest_has_neither_and_no_nan():
    F = Linear(torch.zeros(3, 3, dtype=torch.float64))
    block = odenet.ResNet(F, 3, regularisers={"local_error": 1.0, "stiffness": 1.0})
    _, found = penalty(block)
    assert float(found.detach()) == 0
    assert bool(torch.autograd.grad(found, F.A)[0].isfinite().all())


def test_outputs_inside_and_at_steps_are_those_asked_for():
    F = odenet.residual.MLP(3, width=5).double()
    ts = [0.0, 0.1, 0.25, 0.5, 0.8, 1.0]
    plain = odenet.ODEBlock(F, "dopri5", steps=4)
    block = odenet.ODEBlock(F, "dopri5", steps=4, gradient="stagewise", regularisers={"local_error": 1.0})
    assert torch.equal(block.trajectory(LINEAR_X0, ts), plain.trajectory(LINEAR_X0, ts))
    part = penalty(odenet.ODEBlock(F, "dopri5", steps=4, regularisers={"local_error": 1.0}))[1]
    (whole,) = odenet.take_penalties(block)
    torch.testing.assert_close(whole, part)


@pytest.mark.parametrize("gradient", ["checkpoint", "momentum"])
def test_estimates_and_integrals_together_are_their_sum(gradient):
    F, found = odenet.residual.MLP(3, width=5).double(), []
    for factors in ({"jacobian": 0.5, "stiffness": 2.0}, {"jacobian": 0.5}, {"stiffness": 2.0}):
        torch.manual_seed(0)
        value = penalty(odenet.ResNet(F, 3, gradient=gradient, regularisers=factors))[1]
        found.append((value, *torch.autograd.grad(value, list(F.parameters()))))
    both, *each = found
    torch.testing.assert_close(both, tuple(a + b for a, b in zip(*each, strict=True)), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["local_error", "stiffness"])
def test_training_pushes_them_down(name):
    torch.manual_seed(0)
    x = torch.randn(32, 3)
    F, found = odenet.residual.MLP(3, width=8), []
    block = odenet.ResNet(F, 4, regularisers={name: 1.0})
    optimizer = torch.optim.Adam(F.parameters(), 0.02)
    for _ in range(30):
        value = penalty(block, x)[1]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        found.append(float(value.detach()))
    assert found[-1] < 0.3 * found[0]


def test_what_cannot_be_estimated_is_refused_in_words():
    with pytest.raises(InputError, match="explicit Runge-Kutta method, which solver 'alf' is not; use 'stiffness'"):
        odenet.ODEBlock(Linear(), "alf", regularisers={"local_error": 1.0})
    with pytest.raises(InputError, match="which backend='native' knows, got backend='torchdiffeq'"):
        odenet.ODEBlock(Linear(), backend="torchdiffeq", regularisers={"stiffness": 1.0})


SUMMED = [("checkpoint", "dopri5"), ("stagewise", "dopri5"), ("mali", "alf"), ("reversible_heun", "reversible_heun"),
          ("reversible", "bosh3"), ("momentum", "euler"), ("forward", "heun2")]  # fmt: skip


@pytest.mark.parametrize(("gradient", "solver"), SUMMED)
@pytest.mark.parametrize("weights", ["tied", "untied"])
def test_sums_over_steps_are_as_exact_as_the_gradient_method(gradient, solver, weights):
    """As backprop through the same steps, for a loss of outputs inside and at the ends of steps, and of the sum."""
    torch.manual_seed(0)
    F = odenet.residual.MLP(2, width=3, layers=1, norm="none", time="none").double()
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    names = ["stiffness"] if solver in ("alf", "reversible_heun") else ["local_error", "stiffness"]
    options = {"backward": "autograd"} if gradient in ("reversible", "momentum") else None
    own_options = {"limit": 200} if gradient == "forward" else None
    scheme = {"steps": 4, "regularisers": dict.fromkeys(names, 1.0)}
    own = odenet.ODEBlock(F, solver, weights=weights, gradient=gradient, gradient_options=own_options, **scheme)
    taped = gradient if options else "autograd"
    twin = odenet.ODEBlock(own.weights, solver, gradient=taped, gradient_options=options, **scheme)
    found = []
    for block in (own, twin):
        ys = block.trajectory(x, [0.1, 0.5, 1.0])
        loss = ys.square().sum() + 3 * odenet.take_penalties(block)[0]
        inputs = [x, *own.parameters()]
        found.append((loss, *torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("gradient", "solver"), [(g, s) for g, s in SUMMED if g not in ("checkpoint", "stagewise", "forward")]
)
def test_a_method_of_constant_memory_stays_one(gradient, solver):
    def held(steps):
        F = odenet.residual.MLP(2, width=3, layers=1, norm="none", time="none").double()
        x = torch.randn(64, 2, dtype=torch.float64, requires_grad=True)
        block = odenet.ODEBlock(F, solver, steps=steps, gradient=gradient, regularisers={"stiffness": 1.0})
        with odenet.training.SavedTensorMeter(exclude=[x, *F.parameters()]) as meter:
            y = block(x)
            loss = y.square().sum() + odenet.take_penalties(block)[0]
            forward = meter.live
            loss.backward()
        assert meter.live == 0
        return forward, meter.peak

    few, many = held(4), held(40)
    assert few == many and few[0] <= 4 * 64 * 2 * 8


def test_a_solve_with_sums_is_freed_at_once():
    import gc
    import weakref

    F = odenet.residual.MLP(2, width=3).double()
    block = odenet.ODEBlock(F, "dopri5", steps=3, regularisers={"local_error": 1.0})
    gc.collect()
    gc.disable()
    try:
        y = block(torch.randn(4, 2, dtype=torch.float64))
        odenet.take_penalties(block)
        gone = weakref.ref(y.grad_fn)
        del y
        assert gone() is None
    finally:
        gc.enable()

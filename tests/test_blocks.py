"""ResNet and ODEBlock: the same floats, the same parameters, and the way between them."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import odenet
from odenet.blocks import blocks_of, collect_stats
from odenet.depth import depth_weights
from odenet.gradients import gradients
from odenet.residual import residuals
from odenet.solvers import backends, solvers
from tests.oracles import Counted, gradients_for, make_residual, residual_state

NATIVE = gradients_for("euler")
PAIRS = [(r, w) for w in depth_weights for r in residuals if r == "mlp" or w in ("tied", "untied")]


def by_hand(layers, steps, x, t0=0.0, t1=1.0):
    """x <- x + h F(t, x), as a ResNet is written without any library."""
    h = (t1 - t0) / steps
    for n in range(steps):
        F = layers[n * len(layers) // steps]
        x = torch.add(x, F(torch.tensor(t0 + (t1 - t0) * (n / steps), dtype=x.dtype), x), alpha=h)
    return x


def floats(block, x):
    """Answer and gradients of a loss, through a fresh leaf."""
    x = x.clone().requires_grad_()
    y = block(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *block.parameters()])]


def identical(a, b):
    return len(a) == len(b) and all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize("gradient", gradients_for("euler"))
@pytest.mark.parametrize(("residual", "weights"), PAIRS)
def test_a_resnet_and_an_euler_ode_block_give_the_same_floats(residual, weights, gradient):
    F = make_residual(residual)
    x, steps = residual_state(F), 4
    resnet = odenet.ResNet(F, steps=steps, weights=weights, gradient=gradient)
    ode = odenet.ODEBlock(resnet.weights, solver="euler", steps=steps, gradient=gradient)
    results = floats(resnet, x), floats(ode, x)
    assert identical(*results)
    layers = resnet.F if isinstance(resnet.F, list) else [resnet.F]
    leaf = x.clone().requires_grad_()
    y = by_hand(layers, steps, leaf)
    hand = [y, *torch.autograd.grad(y.square().sum(), [leaf, *resnet.parameters()])]
    if gradient in NATIVE:
        assert torch.equal(results[0][0], y)
    if gradient == "autograd":
        assert identical(results[0], hand)
    exact = gradients[gradient].exact
    for got, expected in zip(results[0] if exact else results[0][:1], hand, strict=exact):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10 * float(expected.detach().abs().max()))


@pytest.mark.parametrize("gradient", NATIVE)
@settings(max_examples=40, deadline=None)
@given(
    steps=st.integers(1, 12),
    t0=st.floats(-3, 3),
    length=st.floats(-4, 4).filter(lambda length: abs(length) > 1e-3),
    dim=st.integers(1, 5),
    batch=st.integers(0, 4),
    untied=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_floats_are_those_of_the_loop_for_any_grid(gradient, steps, t0, length, dim, batch, untied, dtype):
    F = odenet.residual.MLP(dim, width=6, layers=1, time="concat").to(dtype)
    x, t1 = torch.randn(batch, dim, dtype=dtype), t0 + length
    resnet = odenet.ResNet(F, steps, weights="untied" if untied else "tied", t0=t0, t1=t1, gradient=gradient)
    ode = odenet.ODEBlock(resnet.weights, "euler", steps=steps, t0=t0, t1=t1, gradient=gradient)
    expected = by_hand(resnet.F if untied else [resnet.F], steps, x, t0, t1)
    assert torch.equal(resnet(x), expected)
    assert identical(floats(resnet, x), floats(ode, x))
    assert resnet.stats.nfe == resnet.stats.accepted == steps


@pytest.mark.parametrize(("residual", "weights"), PAIRS)
def test_the_way_between_the_blocks_shares_every_parameter(residual, weights):
    F = make_residual(residual)
    resnet = odenet.ResNet(F, steps=4, weights=weights)
    ode = resnet.continuous(solver="dopri5", rtol=1e-3, atol=1e-3)
    again = ode.discretize(steps=8, solver="rk4")
    parameters = [id(p) for p in resnet.parameters()]
    for block in (ode, again, ode.continuous(), again.discretize(4)):
        assert block.weights is resnet.weights
        assert [id(p) for p in block.parameters()] == parameters
        assert list(block.state_dict()) == list(resnet.state_dict())
        if weights in ("tied", "untied"):
            assert block.F is F or (isinstance(block.F, list) and block.F[0] is F and len(block.F) == 4)
    assert isinstance(ode, odenet.ODEBlock) and isinstance(again, odenet.ResNet)

    x = residual_state(F)
    y, y_ode = resnet(x).detach(), ode(x).detach()
    ode(x).square().sum().backward()
    torch.optim.SGD(ode.parameters(), lr=0.5).step()
    assert not torch.equal(resnet(x), y) and not torch.equal(ode(x), y_ode)


@pytest.mark.parametrize("weights", depth_weights)
def test_a_state_dict_of_one_loads_into_the_other(weights):
    made = lambda: odenet.ResNet(odenet.residual.MLP(3, width=8).double(), steps=4, weights=weights)  # noqa: E731
    resnet, other = made(), made()
    x = torch.randn(2, 3, dtype=torch.float64)
    ode = other.continuous("rk4", steps=8)
    assert not torch.equal(ode(x), resnet.continuous("rk4", steps=8)(x))
    ode.load_state_dict(resnet.state_dict(), strict=True)
    assert torch.equal(other(x), resnet(x))
    assert torch.equal(ode(x), resnet.continuous("rk4", steps=8)(x))


def test_untied_weights_stay_piecewise_constant_in_the_ode():
    layers = [Counted(odenet.residual.MLP(2, width=8).double()) for _ in range(3)]
    ode = odenet.ResNet(odenet.depth.PiecewiseConstant(layers), steps=3, t1=3.0).continuous(rtol=1e-8, atol=1e-8)
    x = torch.randn(4, 2, dtype=torch.float64)
    y = ode(x)
    expected = x
    for i, layer in enumerate(layers):
        assert i <= min(layer.times) and max(layer.times) <= i + 1
        expected = odenet.solve(layer.F, expected, (i, i + 1), rtol=1e-10, atol=1e-10).last
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [5, None])
@pytest.mark.parametrize("kind", ["native", "torchdiffeq"])
def test_a_trajectory_without_times_is_the_states_at_the_ends_of_the_steps(kind, steps):
    F = odenet.residual.MLP(3, width=8, time="concat").double()
    x = torch.randn(2, 3, dtype=torch.float64)
    block = odenet.ODEBlock(F, "dopri5", backend=kind, rtol=1e-5, atol=1e-5)
    if steps:
        block = odenet.ResNet(F, steps, t0=0.2, t1=0.9, backend=kind)
    y = block(x)
    h = block.stats.h
    path, depths = block.trajectory(x), block.depths(x)
    assert path.shape == (len(h) + 1, 2, 3) and len(depths) == len(h) + 1
    assert torch.equal(path[0], x)
    torch.testing.assert_close(path[-1], y, rtol=1e-13, atol=1e-13)
    assert depths[0] == block.t0 and depths[-1] == block.t1
    if steps and kind == "native":
        hidden = [by_hand([F], steps, x, 0.2, 0.9)]
        assert torch.equal(path[-1], hidden[0])
        state = x
        for n, t in enumerate(depths[:-1]):
            state = torch.add(state, F(torch.tensor(t, dtype=torch.float64), state), alpha=(0.9 - 0.2) / steps)
            assert torch.equal(path[n + 1], state)
        assert block.stats.nfe == steps
    at = block.trajectory(x, depths[1:2])
    torch.testing.assert_close(at[0], path[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [5, None])
def test_a_trajectory_updates_running_statistics_once_and_draws_one_mask(steps):
    F = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 3)).double()
    block = odenet.ODEBlock(odenet.residual.from_block(F), steps=steps)
    x = torch.randn(4, 3, dtype=torch.float64)
    torch.manual_seed(1)
    path = block.trajectory(x)
    assert F[0].num_batches_tracked == 1
    torch.manual_seed(1)
    torch.testing.assert_close(block(x), path[-1], rtol=1e-12, atol=1e-12)
    torch.manual_seed(2)
    assert not torch.allclose(block(x), path[-1])


@pytest.mark.parametrize("gradient", gradients_for("dopri5"))
def test_blocks_can_be_copied_and_pickled_before_and_after_use(gradient):
    x = torch.randn(2, 3)
    block = odenet.ODEBlock(odenet.residual.MLP(3, width=8), gradient=gradient)
    for used in (False, True):
        if used:
            block(x).sum().backward()
        for twin in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
            assert torch.equal(twin(x), block(x))
            assert not {id(p) for p in twin.parameters()} & {id(p) for p in block.parameters()}
            twin(x).sum().backward()


@pytest.mark.parametrize("gradient", gradients_for("dopri5"))
def test_the_statistics_are_those_of_the_last_pass(gradient):
    F = Counted(odenet.residual.MLP(3, width=8))
    block = odenet.ODEBlock(F, "dopri5", gradient=gradient)
    assert block.stats == odenet.Stats()
    for _ in range(2):
        F.times.clear()
        y = block(torch.randn(2, 3, requires_grad=True))
        assert block.stats.nfe == F.calls > 0 and block.stats.nfe_backward == 0
        y.sum().backward()
        assert block.stats.nfe + block.stats.nfe_backward == F.calls


def test_the_statistics_of_a_model_are_the_sum_over_its_blocks():
    shared = odenet.ODEBlock(odenet.residual.MLP(3, width=8))
    model = nn.Sequential(odenet.ResNet(odenet.residual.MLP(3, width=8), 4), nn.ReLU(), shared, nn.Sequential(shared))
    model(torch.randn(2, 3)).sum().backward()
    assert len(blocks_of(model)) == 2
    total = collect_stats(model)
    assert total.nfe == 4 + shared.stats.nfe
    assert total.nfe_backward == shared.stats.nfe_backward > 0
    assert total.h == [0.25] * 4 + shared.stats.h


@pytest.mark.parametrize("solver", solvers)
def test_any_native_solver_makes_a_resnet(solver):
    F = odenet.residual.MLP(4, width=8).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    resnet = odenet.ResNet(F, 3, solver=solver, t0=0.5, t1=-0.5)
    assert torch.equal(resnet(x), odenet.solve(F, x, (0.5, -0.5), solver=solver, steps=3).last)


def test_arguments_reach_F_through_the_block():
    block = odenet.ResNet(lambda t, x, a, b: a * x + b, 1)
    assert torch.equal(block(torch.ones(2), torch.tensor(3.0), 0.5), torch.full((2,), 4.5))
    assert torch.equal(block.trajectory(torch.ones(2), [1.0], (torch.tensor(3.0), 0.5)), torch.full((1, 2), 4.5))


def test_defaults_are_those_of_the_documentation():
    F = odenet.residual.MLP(3)
    resnet, ode = odenet.ResNet(F, 2), odenet.ODEBlock(F)
    assert (resnet.scheme.solver, resnet.scheme.gradient, resnet.scheme.backend) == ("euler", "autograd", "native")
    assert (ode.scheme.solver, ode.scheme.gradient, ode.scheme.tolerances) == ("dopri5", "checkpoint", (1e-3, 1e-3))
    assert odenet.ODEBlock(F, backend="torchdiffeq").scheme.gradient == "autograd"
    assert odenet.ODEBlock(F, gradient="adjoint").scheme.backend == "native"
    assert "dopri5" in repr(ode) and "gradient=checkpoint" in repr(ode) and "steps=2" in repr(resnet)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda F: odenet.ResNet(F, None), "needs its number of steps"),
        (lambda F: odenet.ResNet(F, 0), "steps must be a positive integer, got 0"),
        (lambda F: odenet.ResNet(F, 2, t0=float("nan")), "t0 must be finite, got nan"),
        (lambda F: odenet.ResNet(F, 2, t1="end"), "t1 must be a number, got 'end'"),
        (lambda F: odenet.ResNet(F, 4, weights="untied").discretize(6), "multiple of 4 steps.*every"),
        (lambda F: odenet.ResNet(F, 4, weights="untied").continuous("rk4", steps=2), "multiple of 4"),
        (lambda F: odenet.ODEBlock(F, "rk4"), "give steps=N, or use an adaptive solver: .*dopri5"),
        (lambda F: odenet.ResNet(nn.Linear(3, 3), 2), r"takes \(input.*from_block"),
        (lambda F: odenet.ResNet(lambda x: x, 2), r"takes \(x\); wrap"),
        (lambda F: odenet.ResNet("F", 2), "F must be a function or module.*got str"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_runs(make, said):
    with pytest.raises(odenet.errors.InputError, match=said):
        make(odenet.residual.MLP(3))


def test_lists_hold_what_the_registries_hold():
    assert odenet.list_solvers() == list(solvers)
    assert odenet.list_gradients() == list(gradients)
    assert odenet.list_residuals() == list(residuals)
    assert odenet.list_depth_weights() == list(depth_weights)
    assert odenet.list_backends() == list(backends)
    assert {"dopri5", "rk4", "implicit_adams"} <= set(odenet.list_solvers("torchdiffeq"))
    with pytest.raises(odenet.errors.UnknownNameError, match="did you mean 'torchdiffeq'"):
        odenet.list_solvers("torchdifeq")


def test_steps_may_be_an_integer_of_numpy_or_torch():
    import numpy as np

    x = torch.randn(2, 3)
    F = odenet.residual.MLP(3, norm="none").to(x.dtype)
    assert odenet.ResNet(F, steps=np.int64(4)).scheme == odenet.ResNet(F, steps=4).scheme
    assert odenet.ResNet(F, steps=torch.tensor(4)).scheme.steps == 4


def test_a_warm_start_begins_with_the_first_step_of_the_last_solve(x):
    F = odenet.residual.MLP(3, width=8, norm="none").double()
    cold, warm = (odenet.ODEBlock(F, rtol=1e-6, atol=1e-6, warm_start=warm) for warm in (False, True))
    with torch.no_grad():
        assert torch.equal(warm(x), cold(x)) and warm.stats == cold.stats
        again = warm(x)
    assert warm.stats.h == pytest.approx(cold.stats.h) and warm.stats.nfe == cold.stats.nfe - 1
    torch.testing.assert_close(again, cold(x).detach(), rtol=1e-10, atol=1e-10)
    for wrong in ({"steps": 4}, {"first_step": 0.1}, {"per_sample": True}):
        with pytest.raises(odenet.errors.InputError, match="warm_start=True"):
            odenet.ODEBlock(F, warm_start=True, **wrong)


def test_a_warm_block_whose_scheme_comes_to_have_fixed_steps_takes_them(x):
    block = odenet.ODEBlock(odenet.residual.MLP(3, width=8).double(), rtol=1e-4, atol=1e-4, warm_start=True)
    block(x)
    block.scheme = block.discretize(4).scheme
    assert torch.equal(block(x), block.discretize(4)(x)) and block.stats.nfe == 4

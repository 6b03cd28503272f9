"""Momentum residual networks: the paper's recursion, and layers that are undone to the last bit."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import odenet
from odenet.errors import GradientError, InputError, NonFiniteStateError
from odenet.solvers.fixed_point import Ratio
from tests.oracles import Counted
from tests.oracles.problems import LINEAR_X0, A, linear

EXACTLY = pytest.mark.parametrize("exact", [False, True], ids=["float", "fixed point"])


def network(layers, gamma, exact=False, gradient_options=None, **block):
    options = {"gamma": gamma, "exact": exact, **(gradient_options or {})}
    F = block.pop("F", None) or odenet.residual.MLP(3, width=5).double()
    return odenet.ResNet(F, layers, gradient="momentum", gradient_options=options, **block)


@EXACTLY
def test_with_h_1_it_is_the_papers_network(exact, x):
    net = network(4, 0.8, exact, weights="untied", t1=4.0)
    x0 = x.clone().requires_grad_()
    y, v = x0, torch.zeros_like(x0)
    for F in net.F:
        v = 0.8 * v + (1 - 0.8) * F(torch.tensor(0.0), y)
        y = y + v
    leaves = [x0, *net.parameters()]
    torch.testing.assert_close(net(x0), y, rtol=1e-10, atol=1e-10)
    got = torch.autograd.grad(net(x0).square().sum(), leaves)
    torch.testing.assert_close(got, torch.autograd.grad(y.square().sum(), leaves), rtol=1e-9, atol=1e-9)


@EXACTLY
@pytest.mark.parametrize("gamma", [0.5, 0.8])
def test_it_converges_to_the_ode_with_first_order(exact, gamma):
    truth, errors = LINEAR_X0 @ torch.linalg.matrix_exp(2 * A).T, []
    for steps in (400, 800):
        net = network(steps, gamma, exact, F=linear, t1=2.0)
        errors.append(float((net(LINEAR_X0) - truth).norm()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.1)


@EXACTLY
def test_a_step_back_is_one_evaluation_and_one_product(exact, x):
    net = network(20, 0.9, exact, F=Counted(odenet.residual.MLP(3, width=5).double()))
    net(x).sum().backward()
    assert net.stats.nfe == net.stats.nfe_backward == net.stats.vjps == 20


@pytest.mark.parametrize("gamma", [0.5, 0.9])
def test_a_thousand_layers_are_undone_to_the_last_bit(gamma):
    F = odenet.residual.MLP(3, width=5, norm="none")
    x0 = (torch.randint(-64, 64, (4, 3)) / 64).requires_grad_()

    def differentiate(**options):
        net = network(1000, gamma, F=F, gradient_options=options)
        return torch.autograd.grad(net(x0).square().sum(), [x0, *F.parameters()]), net.stats.drift

    with pytest.raises(
        GradientError, match=r"undid the steps down to .* (inf|nan) in x0.*exact=True in gradient_options"
    ):
        differentiate()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got, drift = differentiate(exact=True)
    expected, _ = differentiate(exact=True, backward="autograd")
    assert drift == 0
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def test_fixed_point_agrees_with_backprop_at_outputs_inside_steps_with_untied_weights_and_twice(x):
    net = network(6, 0.7, True, weights="untied")
    results = []
    for backward in ("undo", "autograd"):
        options = {"gamma": 0.7, "exact": True, "backward": backward}
        block = odenet.ResNet(net.weights, 6, gradient="momentum", gradient_options=options)
        x0 = torch.complex(x, x.flip(0)).abs().requires_grad_()
        ys = block.trajectory(x0, [0.0, 0.1, 1 / 6, 0.4, 0.4, 0.99])
        first = torch.autograd.grad(ys.square().sum(), [x0, *net.parameters()], retain_graph=True)
        again = torch.autograd.grad(ys.square().sum(), list(net.parameters()), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in again), list(net.parameters()))
        results.append([ys, *first, *second])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10 * float(expected.detach().abs().max()))


def test_complex_states_in_fixed_point():
    W = torch.randn(3, 3, dtype=torch.complex128, requires_grad=True)
    x0 = torch.randn(2, 3, dtype=torch.complex128)
    results = []
    for backward in ("undo", "autograd"):
        net = network(30, 0.8, True, {"backward": backward}, F=lambda t, x: torch.tanh(x @ W))
        results.append(torch.autograd.grad(net(x0).abs().square().sum(), W))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-10)


@given(
    st.floats(0.01, 0.999), st.lists(st.integers(-(2**60), 2**60), min_size=1, max_size=4), st.integers(1, 500)
)  # fmt: skip
def test_products_with_a_ratio_are_undone(factor, values, times):
    ratio, v = Ratio(factor), torch.tensor(values)
    if ratio.p == 0:
        return
    start, store = v, ()
    for number in range(times):
        before = v
        v, store = ratio.multiply(v, store, number)
        assert float((v.double() - before.double() * ratio.value).abs().max()) <= 2 * ratio.q + 2**10
    assert len(store) == math.ceil(times / ratio.capacity)
    for number in reversed(range(times)):
        v, store = ratio.divide(v, store, number)
    assert torch.equal(v, start) and store == ()


def test_states_that_fixed_point_does_not_hold_are_an_error():
    with pytest.raises(NonFiniteStateError):
        network(8, 0.9, True, F=lambda t, x: 50 * x, t1=8.0)(torch.full((1, 1), 1e4))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gamma": 0}, "gamma must be a number between 0 and 1, got 0; without momentum use gradient='checkpoint'"),
        ({"gamma": 1.0}, "gamma must be a number between 0 and 1"),
        ({"exact": 1}, "exact must be True or False, got 1"),
    ],
)
def test_the_options_are_checked(options, said):
    with pytest.raises(InputError, match=said):
        odenet.ResNet(torch.sin, 3, gradient="momentum", gradient_options=options)
    with pytest.raises(InputError, match="gradient='momentum' is not defined for solver 'rk4'; use solver euler"):
        odenet.ResNet(torch.sin, 3, solver="rk4", gradient="momentum")

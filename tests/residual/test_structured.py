"""What each structured residual function claims of itself."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn

import odenet
from odenet.errors import InputError
from odenet.residual import (
    Antisymmetric,
    Attention,
    Augmented,
    Hamiltonian,
    Linear,
    LipschitzBounded,
    Momentum,
    SecondOrder,
)

T = torch.tensor(0.3, dtype=torch.float64)


def jacobian(F, x):
    """∂F/∂x of one sample as a matrix."""
    whole = torch.func.jacrev(lambda y: F(T, y.unsqueeze(0)).squeeze(0))(x)
    return whole.reshape(x.numel(), x.numel())


@pytest.mark.parametrize("kernel", [None, 3])
@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "softplus"])
@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_antisymmetric_eigenvalues_have_real_parts_between_minus_gamma_and_zero(gamma, activation, kernel):
    F = Antisymmetric(8, gamma, kernel, activation, time="concat").double()
    nn.init.normal_(F.K.weight, std=0.3)
    x = torch.randn((8,) if kernel is None else (8, 3, 3), dtype=torch.float64)
    found = torch.linalg.eigvals(jacobian(F, x))
    assert found.imag.abs().max() > 0.03
    assert found.real.max() < 1e-6 and found.real.min() > -gamma - 1e-6
    if gamma and activation == "softplus":
        assert found.real.max() < -1e-3


@pytest.mark.parametrize("kernel", [None, 3])
@pytest.mark.parametrize("separable", [True, False])
def test_a_hamiltonian_flow_keeps_its_energy_and_its_volume(separable, kernel):
    F = Hamiltonian(4, width=6, separable=separable, kernel=kernel).double()
    nn.init.normal_(F.potential.weight if separable else F.whole.weight)
    x = torch.randn((3, 4) if kernel is None else (3, 4, 3, 3), dtype=torch.float64)
    y = odenet.solve(F, x, (0, 5), rtol=1e-10, atol=1e-10).last
    assert (y - x).abs().max() > 0.1
    torch.testing.assert_close(F.energy(T, y), F.energy(T, x), rtol=1e-8, atol=1e-8)
    assert jacobian(F, x[0]).trace().abs() < 1e-12  # Liouville
    slope = torch.func.grad(lambda y: F.energy(T, y).sum())(x)
    q, p = slope.chunk(2, 1)
    torch.testing.assert_close(F(T, x), torch.cat([p, -q], 1), rtol=1e-10, atol=1e-12)


def test_the_energy_error_of_leapfrog_stays_bounded_where_rk4_drifts():
    F = Hamiltonian(2, width=6).double()
    x = 2 * torch.randn(3, 2, dtype=torch.float64)
    h, walks = 0.5, {}
    for solver in ("leapfrog", "rk4"):
        path = odenet.solve(F, x, (0, 800 * h), solver=solver, steps=800, ts=[200 * h, 400 * h, 800 * h]).ys
        walks[solver] = [(F.energy(T, y) - F.energy(T, x)).abs().max().item() for y in path]
    assert walks["rk4"][2] > 3 * walks["rk4"][0]
    assert max(walks["leapfrog"]) < 0.1 * F.energy(T, x).max()
    assert walks["leapfrog"][2] < 3 * max(walks["leapfrog"][:2])


def test_an_energy_of_ones_own_is_the_pendulum():
    H = lambda t, x: 0.5 * x[:, 1] ** 2 - torch.cos(x[:, 0])  # noqa: E731
    F = Hamiltonian(2, H=H)
    x = torch.tensor([[1.0, 0.2]], dtype=torch.float64, requires_grad=True)
    y = odenet.ODEBlock(F, rtol=1e-10, atol=1e-10, t1=3.0)(x)
    slope = lambda t, y: [y[1], -math.sin(y[0])]  # noqa: E731
    expected = solve_ivp(slope, (0, 3), [1.0, 0.2], "DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
    assert torch.allclose(y[0], torch.tensor(expected), atol=1e-8)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.abs().min() > 1e-3


def test_second_order_paths_cross_and_keep_the_energy_of_a_potential():
    class Spring(nn.Module):
        def forward(self, t, x):
            return -(math.pi**2) * x

    F = SecondOrder(2, Spring())
    x = torch.tensor([[1.0], [-0.4]], dtype=torch.float64)
    state = torch.cat([x, torch.zeros_like(x)], 1)
    y = odenet.solve(F, state, rtol=1e-11, atol=1e-11).last
    torch.testing.assert_close(y[:, :1], -x, rtol=1e-8, atol=1e-8)  # x -> -x, which no flow of x alone can do
    energy = lambda s: 0.5 * s[:, 1] ** 2 + 0.5 * math.pi**2 * s[:, 0] ** 2  # noqa: E731
    z = odenet.solve(F, state, (0, 25), solver="leapfrog", steps=1000).last
    assert ((energy(z) - energy(state)) / energy(state)).abs().max() < 1e-2


def test_damping_and_mass_are_those_of_the_damped_oscillator():
    F = SecondOrder(2, lambda n: Linear(1, bias=False, A=torch.tensor([[-5.0]], dtype=torch.float64)), 2.0, 0.6)
    state = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    y = odenet.solve(F, state, (0, 2), rtol=1e-11, atol=1e-11).last
    M = torch.tensor([[0, 1], [-5 / 2, -0.6 / 2]], dtype=torch.float64)
    torch.testing.assert_close(y, state @ torch.linalg.matrix_exp(2 * M).T, rtol=1e-8, atol=1e-8)


def test_momentum_under_symplectic_euler_is_the_update_of_the_paper():
    gamma = 0.8
    f = odenet.residual.MLP(3, width=8).double()
    F = Momentum(6, f, epsilon=1 / (1 - gamma))
    x, v = torch.randn(2, 4, 3, dtype=torch.float64)
    y = odenet.ResNet(F, 5, solver="symplectic_euler", t1=5.0)(torch.cat([x, v], 1))
    for _ in range(5):
        v = gamma * v + (1 - gamma) * f(T, x)
        x = x + v
    torch.testing.assert_close(y, torch.cat([x, v], 1), rtol=1e-12, atol=1e-12)


def test_attention_is_the_transformer_layer_of_torch_without_its_shortcut():
    F = Attention(8, heads=2, width=16).double().eval()
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True, norm_first=True).double().train()
    attention, state = layer.self_attn, dict(F.named_parameters())
    with torch.no_grad():
        for theirs, ours in (
            (attention.in_proj_weight, "qkv.weight"),
            (attention.in_proj_bias, "qkv.bias"),
            (attention.out_proj.weight, "out.weight"),
            (attention.out_proj.bias, "out.bias"),
            (layer.linear1.weight, "hidden.weight"),
            (layer.linear1.bias, "hidden.bias"),
            (layer.linear2.weight, "last.weight"),
            (layer.linear2.bias, "last.bias"),
        ):
            state[ours].copy_(theirs)
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(F(T, x), layer(x) - x, rtol=1e-10, atol=1e-12)
    order = torch.randperm(5)
    torch.testing.assert_close(F(T, x[:, order]), F(T, x)[:, order], rtol=1e-10, atol=1e-12)


def test_attention_takes_the_pixels_of_an_image_as_tokens():
    F = Attention(8, time="film").double()
    nn.init.normal_(F.film1.out.weight)
    x = torch.randn(3, 8, 2, 3, dtype=torch.float64)
    tokens = x.flatten(2).mT
    torch.testing.assert_close(F(T, x).flatten(2).mT, F(T, tokens), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(F(T, x), F(T + 0.5, x))


@pytest.mark.parametrize("t", [0.7, -1.3])
@pytest.mark.parametrize("bias", [True, False])
def test_the_flow_of_a_linear_function_is_the_one_scipy_finds(bias, t):
    F = Linear(3, bias).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    A = F.linear.weight.detach().numpy()
    b = F.linear.bias.detach().numpy() if bias else 0.0
    slope = lambda s, y: A @ y + b  # noqa: E731
    for start, end in zip(x, F.flow(t, x), strict=True):
        expected = solve_ivp(slope, (0, t), start, "DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
        torch.testing.assert_close(end, torch.tensor(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel", [None, 3])
@pytest.mark.parametrize("bound", [0.5, 3.0])
def test_the_lipschitz_bound_holds_whatever_the_weights(bound, kernel):
    F = LipschitzBounded(3, bound, width=8, kernel=kernel, activation="relu", time="concat").double()
    for p in F.parameters():
        nn.init.normal_(p, std=3.0)
    shape = (3,) if kernel is None else (3, 4, 4)
    norms = [torch.linalg.matrix_norm(jacobian(F, torch.randn(shape, dtype=torch.float64)), 2) for _ in range(10)]
    assert max(norms) <= bound * (1 + 1e-10)
    if kernel is None:
        assert max(norms) > 0.1 * bound
    with torch.no_grad():
        F.operators[0].weight.mul_(1e-3)  # weights within the bound are used as they are
    expected = F.operators[0](torch.ones(1, *shape, dtype=torch.float64))
    assert F.operators[0].norm_bound() < bound ** (1 / 3)
    assert torch.isfinite(expected).all()


def test_a_step_shorter_than_one_over_the_bound_can_be_undone():
    F = LipschitzBounded(3, 0.9).double()
    with torch.no_grad():
        for operator in F.operators:
            operator.weight.mul_(10)
    x = torch.randn(4, 3, dtype=torch.float64)
    y = odenet.ResNet(F, 1)(x)
    z = y
    for _ in range(300):
        z = y - F(T, z)
    torch.testing.assert_close(z, x, rtol=1e-9, atol=1e-9)


def test_an_augmented_flow_flips_the_line_and_a_plain_one_cannot():
    turn = torch.tensor([[0.0, -math.pi], [math.pi, 0.0]], dtype=torch.float64)
    F = Augmented(2, Linear(2, bias=False, A=turn))
    x = torch.linspace(-1, 1, 5, dtype=torch.float64).unsqueeze(1)
    y = F.drop(odenet.ODEBlock(F, rtol=1e-10, atol=1e-10)(F.lift(x)))
    torch.testing.assert_close(y, -x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("inner", [odenet.residual.MLP, odenet.residual.Conv])
def test_a_learned_augmentation_is_trained(inner):
    F = Augmented(5, inner, extra=2, start="learned").double()
    x = torch.randn(2, 3, *((4, 4) if hasattr(F, "channels") else ()), dtype=torch.float64)
    state = F.lift(x)
    assert torch.equal(state[:, :3], x) and state[:, 3:].abs().max() > 1e-3
    F.drop(odenet.ResNet(F, 2)(state)).square().sum().backward()
    assert F.W.weight.grad.abs().max() > 0 and F.b.grad.abs().max() > 0
    assert torch.equal(Augmented(5, inner, extra=2).lift(x)[:, 3:].sum(), torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Antisymmetric(3, gamma=-1), "gamma must be a number, 0 or more, got -1"),
        (lambda: Antisymmetric(3, activation="gelu"), "unknown monotone activation 'gelu'"),
        (lambda: Antisymmetric(3, time="film"), "use time='concat' or 'none'"),
        (lambda: Antisymmetric(3, kernel=2), "kernel must be odd"),
        (lambda: Hamiltonian(3), "dim must be even"),
        (lambda: Hamiltonian(4, H=1), "H must be called as"),
        (lambda: SecondOrder(4, mass=0), "mass must be positive, got 0"),
        (lambda: SecondOrder(4, damping=-1), "damping must be 0 or more, got -1"),
        (lambda: Momentum(4, epsilon=0), "epsilon must be positive, got 0"),
        (lambda: Attention(6, heads=4), "heads must divide dim=6, got 4"),
        (lambda: Attention(6, time="concat"), "use time='film' or 'none'"),
        (lambda: Linear(3, A=torch.eye(2)), "A must be of shape"),
        (lambda: LipschitzBounded(3, bound=0), "bound must be a positive number, got 0"),
        (lambda: LipschitzBounded(3, activation="silu"), "unknown activation with slope at most 1 'silu'"),
        (lambda: Augmented(3, extra=3), "leaves none for x"),
        (lambda: Augmented(3, start="ones"), "unknown start 'ones'; .*valid: learned, zeros"),
        (lambda: Augmented(3).lift(torch.zeros(2, 3)), "lift takes"),
    ],
)
def test_what_cannot_be_used_is_said(make, said):
    with pytest.raises(InputError, match=said):
        make()

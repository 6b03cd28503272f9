"""Each diagnostic of a block on problems whose answer is known."""

import math

import pytest
import torch
from torch import nn

import odenet
from odenet.depth import PiecewiseConstant
from odenet.diagnostics import (
    crossing,
    follow,
    lipschitz,
    lyapunov,
    ode_distance,
    residual_cosine,
    residual_norm,
    reversibility,
    ritz_values,
    stability,
    stability_function,
    step_halving,
    weight_smoothness,
)
from odenet.errors import InputError
from odenet.residual import MLP, Linear


def linear(*rows):
    A = torch.tensor(rows, dtype=torch.float64)
    return Linear(len(A), bias=False, A=A)


DECAY = linear([-1.0])
TURN = linear([0.0, -2.0], [2.0, 0.0])
NORMAL = torch.diag(torch.tensor([1.0, -0.5, -2.0], dtype=torch.float64))


def smooth_layers(n, dim=4):
    """n layers whose weights are a smooth function of depth."""
    a, b = MLP(dim, width=8, norm="none").double(), MLP(dim, width=8, norm="none").double()
    layers = []
    for i in range(n):
        layer, s = MLP(dim, width=8, norm="none").double(), (i + 0.5) / n
        with torch.no_grad():
            for p, q, r in zip(layer.parameters(), a.parameters(), b.parameters(), strict=True):
                p.copy_(math.cos(2 * s) * q + math.sin(2 * s) * r)
        layers.append(layer)
    return layers


def test_the_path_of_euler_on_a_decay_is_a_geometric_series():
    path = follow(odenet.ResNet(DECAY, 4), torch.ones(1, 1, dtype=torch.float64))
    expected = torch.tensor([0.75**n for n in range(5)], dtype=torch.float64)
    torch.testing.assert_close(path.states.flatten(), expected)
    torch.testing.assert_close(path.slopes.flatten(), -expected[:-1])
    assert path.ts == [0, 0.25, 0.5, 0.75, 1] and path.h == [0.25] * 4


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_step_halving_finds_the_defect_and_the_order(solver, order):
    x = torch.ones(2, 2, dtype=torch.float64)
    result = step_halving(odenet.ResNet(TURN, 16, solver=solver), x)
    assert result.orders[-1] == pytest.approx(order, abs=0.1) and result.order == order and result.steps[:2] == [16, 32]
    if solver == "euler":
        z = complex(1, 2 / 16) ** 16, complex(1, 2 / 32) ** 32
        assert result.defects[0] == pytest.approx(abs(z[0] - z[1]) / abs(z[1]), rel=1e-9)


def test_step_halving_judges_coarse_and_fine_walks_of_the_same_weights():
    F, x = MLP(3, width=16, norm="none").double(), torch.randn(8, 3, dtype=torch.float64)
    for p in F.parameters():
        p.data *= 3
    assert step_halving(odenet.ResNet(F, 1), x).verdict is False
    assert step_halving(odenet.ResNet(F, 256), x).verdict is True
    adaptive = step_halving(odenet.ODEBlock(F, rtol=1e-6, atol=1e-6), x)
    assert adaptive.verdict is True and adaptive.defects[0] < 1e-5 and adaptive.order == 5


def test_cosine_of_a_turning_field_is_the_angle_of_a_step():
    result = residual_cosine(odenet.ResNet(TURN, 20, solver="rk4"), torch.ones(2, 2, dtype=torch.float64))
    assert result.cosines == pytest.approx([math.cos(0.1)] * 19, abs=1e-4) and result.verdict is True
    seldom = residual_cosine(odenet.ResNet(TURN, 2, solver="rk4"), torch.ones(2, 2, dtype=torch.float64))
    assert len(seldom.cosines) == 15 and seldom.mean == pytest.approx(math.cos(2 / 16), abs=0.01)  # inside its steps
    zigzag = PiecewiseConstant([linear([(-1.0) ** i]) for i in range(6)])
    result = residual_cosine(odenet.ResNet(zigzag, 6), torch.ones(1, 1, dtype=torch.float64))
    assert result.mean == pytest.approx(-1) and result.verdict is False
    assert residual_cosine(odenet.ResNet(TURN, 1), torch.ones(1, 2, dtype=torch.float64)).verdict is None


def test_residuals_of_a_decay_fall_like_one_over_n():
    x = torch.ones(1, 1, dtype=torch.float64)
    for n in (4, 8, 64):
        result = residual_norm(odenet.ResNet(DECAY, n), x)
        assert result.increments == pytest.approx([1 / n] * n)
        assert result.verdict is True
    assert residual_norm(odenet.ResNet(DECAY, 1), x).verdict is False
    uneven = PiecewiseConstant([linear([0.4 if i == 3 else 1e-3]) for i in range(8)])
    result = residual_norm(odenet.ResNet(uneven, 8, t1=8.0), x)
    assert result.unevenness == pytest.approx(8 * 0.4 / (0.4 + 1e-3 * (3 + 4 * 1.4)), rel=0.01)
    assert result.verdict is False


def test_walking_back_is_exact_for_a_reversible_rule_and_first_order_for_euler():
    x = torch.ones(1, 1, dtype=torch.float64)
    result = reversibility(odenet.ResNet(DECAY, 4), x)
    assert result.errors[0] == pytest.approx(abs((0.75 * 1.25) ** 4 - 1), rel=1e-9)
    assert result.errors[0] > 1.8 * result.errors[1] > 3 * result.errors[2] and result.steps == [4, 8, 16]
    assert result.verdict is False and reversibility(odenet.ResNet(DECAY, 64), x).verdict is True
    layers = odenet.ResNet(PiecewiseConstant([linear([a]) for a in (-0.5, 1.0, 2.0)]), 300)
    assert reversibility(layers, x).errors[0] < 0.01  # each layer undone on its own piece of depth
    adaptive = odenet.ODEBlock(TURN, rtol=1e-8, atol=1e-8)
    assert reversibility(adaptive, torch.ones(1, 2, dtype=torch.float64)).errors[0] < 1e-7


def test_smooth_layers_are_told_from_the_same_layers_shuffled():
    layers = smooth_layers(12)
    result = weight_smoothness(odenet.ResNet(PiecewiseConstant(layers), 12))
    assert result.verdict is True and result.ratio < 0.35 and result.chance == 0
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = weight_smoothness(odenet.ResNet(PiecewiseConstant([layers[i] for i in order]), 12))
    assert shuffled.verdict is False and shuffled.ratio > 0.75
    drawn = weight_smoothness(odenet.ResNet(MLP(3), 8, weights="untied"))
    assert drawn.verdict is False and drawn.ratio == pytest.approx(1, abs=0.1)
    assert weight_smoothness(odenet.ResNet(MLP(3), 8)).verdict is True
    assert weight_smoothness(odenet.ResNet(MLP(3), 3, weights="untied")).verdict is None


def test_gaps_of_layers_on_a_line_are_counted():
    layers = [linear([float(i), 0.0], [0.0, 0.0]) for i in range(5)]
    result = weight_smoothness(odenet.ResNet(PiecewiseConstant(layers), 5))
    assert result.gaps == pytest.approx([5 / math.sqrt(6)] * 4)  # N |Δθ| / rms: rms² = (0+1+4+9+16)/5
    assert result.ratio == pytest.approx(1 / 2, abs=0.05)  # mean |i - j| over random pairs of 0..4 is 2


def test_power_iteration_and_arnoldi_find_norm_and_eigenvalues_of_a_matrix():
    A = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    f, x = (lambda y: y @ A.T), torch.zeros(2, 6, dtype=torch.float64)
    torch.testing.assert_close(lipschitz(f, x, 500), torch.linalg.matrix_norm(A, 2).expand(2), rtol=1e-6, atol=0)
    expected = torch.linalg.eigvals(A)
    for found in ritz_values(f, x):
        assert torch.cdist(torch.view_as_real(found), torch.view_as_real(expected)).min(1).values.max() < 1e-8
        assert torch.cdist(torch.view_as_real(expected), torch.view_as_real(found)).min(1).values.max() < 1e-8


def test_eigenvalues_that_come_several_times_are_all_found():
    A = torch.diag(torch.tensor([-3.0, -3.0, -3.0, 1.0, 0.5], dtype=torch.float64))
    found = ritz_values(lambda y: y @ A.T, torch.zeros(2, 5, dtype=torch.float64))
    for values in found:
        torch.testing.assert_close(values.real.sort().values, A.diagonal().sort().values, rtol=0, atol=1e-9)


def test_jacobians_of_images_are_those_of_autograd():
    F = odenet.residual.Conv(4).double().eval()
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    t = torch.zeros(())
    sigma, values = lipschitz(lambda y: F(t, y), x, 200).detach(), ritz_values(lambda y: F(t, y), x, 40)
    for i in range(2):
        J = torch.func.jacrev(lambda y: F(t, y.unsqueeze(0)).squeeze(0))(x[i]).reshape(36, 36).detach()
        assert float(sigma[i]) == pytest.approx(float(torch.linalg.matrix_norm(J, 2)), rel=1e-3)
        expected = torch.linalg.eigvals(J)
        assert float(values[i].detach().abs().max()) == pytest.approx(float(expected.abs().max()), rel=1e-6)


Z = torch.tensor([0.3 + 0.1j, -1.0, -2.5 + 1j, 2j], dtype=torch.complex128)


@pytest.mark.parametrize(
    ("solver", "R"),
    [
        ("euler", lambda z: 1 + z),
        ("midpoint", lambda z: 1 + z + z**2 / 2),
        ("heun2", lambda z: 1 + z + z**2 / 2),
        ("ssprk3", lambda z: 1 + z + z**2 / 2 + z**3 / 6),
        ("rk4", lambda z: 1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24),
    ],
)
def test_stability_functions_are_the_known_polynomials(solver, R):
    torch.testing.assert_close(stability_function(solver, Z), R(Z), rtol=1e-12, atol=1e-12)


def test_methods_with_memory_have_no_stability_function():
    with pytest.raises(InputError, match="has no stability function"):
        stability_function("ab3", Z)
    with pytest.raises(InputError, match="has no stability function"):
        stability_function("leapfrog", Z)


def test_stability_tells_steps_inside_the_region_from_steps_outside():
    x = torch.ones(2, 2, dtype=torch.float64)
    stiff = linear([-10.0, 0.0], [0.0, -1.0])
    coarse, fine = stability(odenet.ResNet(stiff, 4), x), stability(odenet.ResNet(stiff, 40), x)
    assert coarse.verdict is False and fine.verdict is True
    assert coarse.amplification == pytest.approx(1.5) and coarse.outside == 0.5 and coarse.flips == 1
    assert fine.amplification == pytest.approx(1 - 1 / 40) and fine.flips == 0
    assert fine.h_lipschitz == pytest.approx(10 / 40, rel=1e-6) and fine.lipschitz.max() == pytest.approx(10, rel=1e-6)
    assert stability(odenet.ResNet(TURN, 4), x).verdict is False  # Euler amplifies every rotation,
    assert stability(odenet.ResNet(TURN, 4, solver="rk4"), x).verdict is True  # RK4 up to |hλ| = 2.83 does not
    flip = stability(odenet.ResNet(linear([-1.5, 0.0], [0.0, -0.1]), 1), x)  # inside the region, but turned inside out
    assert flip.outside == 0 and flip.flips == 1 and flip.verdict is False


@pytest.mark.parametrize("n", [4, 16, 64])
def test_the_distance_to_the_ode_is_that_of_the_powers_to_the_exponential_and_below_its_bound(n):
    result = ode_distance(odenet.ResNet(DECAY, n), torch.ones(1, 1, dtype=torch.float64), finer=16)
    assert result.distance[-1] == pytest.approx(math.exp(-1) - (1 - 1 / n) ** n, rel=1e-5)
    assert result.relative == pytest.approx(result.distance[-1] / result.displacement[-1])
    assert pytest.approx([1]) == result.L and pytest.approx([1]) == result.M
    assert result.bound[-1] == pytest.approx((math.e - 1) / (2 * n), rel=1e-5)
    assert all(d <= b + 1e-12 for d, b in zip(result.distance, result.bound, strict=True))
    assert result.verdict is (n > 4) or n == 4


def test_the_distance_to_the_ode_falls_like_one_over_n_and_stays_below_the_bound_for_layers():
    x, distances = torch.randn(5, 4, dtype=torch.float64), []
    for n in (8, 16, 32):
        torch.manual_seed(7)
        result = ode_distance(odenet.ResNet(PiecewiseConstant(smooth_layers(n)), n), x)
        assert all(d <= b + 1e-12 for d, b in zip(result.distance, result.bound, strict=True))
        distances.append(result.distance[-1])
    assert 1.6 < distances[0] / distances[1] < 2.5 and 1.6 < distances[1] / distances[2] < 2.5


@pytest.mark.parametrize("intervals", [None, 4])
def test_lyapunov_exponents_of_a_linear_flow_are_the_real_parts_of_its_eigenvalues(intervals):
    rotated = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    block = odenet.ODEBlock(linear(*(rotated @ NORMAL @ rotated.T).tolist()), rtol=1e-5, atol=1e-5, t1=10.0)
    result = lyapunov(block, torch.randn(2, 3, dtype=torch.float64), 3, intervals=intervals)
    torch.testing.assert_close(result.exponents, NORMAL.diagonal().expand(2, 3), rtol=0, atol=0.3)
    assert result.exponents.sum(1) == pytest.approx([-1.5, -1.5], abs=5e-3)  # the trace, at any time
    assert result.verdict is None


def test_lyapunov_exponents_of_layers_are_the_mean_over_depth():
    layers = PiecewiseConstant([linear([a]) for a in (-0.5, 1.0, 2.0)])
    result = lyapunov(odenet.ResNet(layers, 6), torch.ones(1, 1, dtype=torch.float64))
    expected = 2 * sum(math.log(1 + a / 6) for a in (-0.5, 1.0, 2.0))  # of the Euler map itself
    assert result.exponents.item() == pytest.approx(expected, rel=1e-12)
    assert result.along[1].item() == pytest.approx(6 * math.log(1 - 0.5 / 6), rel=1e-12)


class Lorenz(nn.Module):
    def forward(self, t, x):
        a, b, c = x.unbind(1)
        return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], 1)


def test_lyapunov_exponents_of_lorenz_are_those_of_the_literature():
    x = 5 * torch.randn(2000, 3, dtype=torch.float64) + torch.tensor([0, 0, 25.0])
    x = odenet.solve(Lorenz(), x, (0, 5), solver="rk4", steps=125).last
    result = lyapunov(odenet.ResNet(Lorenz(), 200, solver="rk4", t1=8.0), x, 3, intervals=40, skip=20)
    assert result.mean[0] == pytest.approx(0.9056, rel=0.02)
    assert abs(result.mean[1]) < 0.02
    assert result.mean[2] == pytest.approx(-14.5723, rel=0.02)
    assert sum(result.mean) == pytest.approx(-(10 + 1 + 8 / 3), rel=5e-3)


def test_paths_on_the_line_cross_in_a_coarse_step_and_not_in_fine_ones():
    x = torch.linspace(-1, 1, 9, dtype=torch.float64).unsqueeze(1)
    flip = crossing(odenet.ResNet(linear([-2.0]), 1), x)  # x - 2x = -x: the 1-d flip
    assert flip.inversions == 1 and flip.crossing == 1 and flip.verdict is False
    assert max(flip.closest) < 1e-9
    fine = crossing(odenet.ResNet(linear([-2.0]), 16), x)
    assert fine.inversions == 0 and fine.crossing == 0 and fine.verdict is True
    assert fine.separation[-1] == pytest.approx((1 - 2 / 16) ** 16)


def test_a_half_turn_in_the_plane_crosses_in_one_step_and_passes_in_many():
    half = linear([0.0, -math.pi], [math.pi, 0.0])
    x = torch.randn(6, 2, dtype=torch.float64)
    fine = crossing(odenet.ResNet(half, 20, solver="rk4"), x)
    assert fine.verdict is True and fine.inversions is None and min(fine.closest) > 0.98
    one = crossing(odenet.ResNet(linear([-2.0, 0.0], [0.0, -2.0]), 1), x)  # the same map, x -> -x
    assert one.closest[0] < 1e-9 and one.verdict is False
    assert crossing(odenet.ResNet(half, 1), x[:1]).verdict is None

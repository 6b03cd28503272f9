"""Weights in a basis of depth: their values, their first draw, every gradient, every kind of module."""

import math
from itertools import pairwise

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn

import odenet
from odenet.depth import bspline, chebyshev, fourier, low_rank, piecewise_constant, piecewise_linear
from odenet.depth.bases import evaluate_basis
from odenet.gradients import gradients
from odenet.residual import MLP
from tests.oracles import gradients_for

KINDS = {
    "linear": piecewise_linear(3),
    "quadratic": bspline(2, 2),
    "cubic": bspline(3, 3),
    "chebyshev": chebyshev(4),
    "fourier": fourier(5),
    "low_rank": low_rank(2, bspline(3, 2)),
    "low_rank_layers": low_rank(1, piecewise_constant(3)),
}
SMOOTH = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
FEW = pytest.mark.parametrize(  # quick: one of each family of bases
    "kind",
    [
        pytest.param(kind, id=name, marks=[] if name in ("cubic", "chebyshev", "low_rank") else pytest.mark.slow)
        for name, kind in KINDS.items()
    ],
)


class Line(nn.Module):
    """F(t, x) = a x + b, with a buffer that is no statistic, and one parameter under two names."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.randn(()))
        self.b = nn.Parameter(torch.randn(1))
        self.same = self.b
        self.register_buffer("scale", torch.tensor(2.0))
        self.double()

    def reset_parameters(self):
        nn.init.normal_(self.a)
        nn.init.normal_(self.b)

    def forward(self, t, x):
        return self.scale * self.a * x + (self.b + self.same) / 2


def theta(weights, name, s):
    """θ(s) of one tensor from the coefficients alone, (n, *shape)."""
    C = weights.coefficients()[name]
    return torch.einsum("nk,k...->n...", evaluate_basis(weights.basis, s).to(C.dtype), C)


@SMOOTH
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (0.5, 3.5), (2.0, -1.0)])
def test_F_is_called_with_the_weights_of_its_depth(kind, t0, t1):
    weights = kind(Line())
    for piece in range(weights.pieces):
        s = (piece + torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)) / weights.pieces
        a, b = (theta(weights, name, s) for name in ("a", "b"))
        for i, fraction in enumerate(s.tolist()):
            t, x = torch.tensor(t0 + (t1 - t0) * fraction, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)
            torch.testing.assert_close(weights.piece(piece, t0, t1)(t, x), 2 * a[i] * x + b[i], rtol=1e-12, atol=1e-12)


@FEW
def test_an_ode_with_weights_over_depth_is_scipys(kind):
    weights = kind(Line())
    x0 = torch.tensor([[0.7]], dtype=torch.float64)
    edges = [0.0, *weights.knots, 1.0]

    def slope(t, y):
        s = torch.tensor([min(t / 2, 1 - 1e-15)], dtype=torch.float64)
        return float(theta(weights, "a", s)) * 2 * y + float(theta(weights, "b", s))

    y = [0.7]
    for a, b in pairwise(edges):
        y = solve_ivp(slope, (2 * a, 2 * b), y, "DOP853", rtol=1e-10, atol=1e-11).y[:, -1]
    solution = odenet.solve(weights, x0, (0.0, 2.0), rtol=1e-10, atol=1e-10)
    assert float(solution.last.detach()) == pytest.approx(float(y[0]), rel=1e-8)
    ends = torch.tensor(solution.stats.h).cumsum(0)
    for knot in weights.knots:
        assert float((ends - 2 * knot).abs().min()) < 1e-6  # a step ends at every knot
    rk4 = odenet.ResNet(weights, 96, solver="rk4", t1=2.0)(x0)
    assert float(rk4.detach()) == pytest.approx(float(y[0]), rel=1e-5)


@pytest.mark.parametrize(
    "scheme",
    [{"solver": "rk4", "steps": 6}, {"solver": "dopri5", "rtol": 1e-6, "atol": 1e-6}, {"solver": "alf", "steps": 12}],
)
@FEW
def test_every_gradient_finds_the_coefficients(kind, scheme, x):
    weights = kind(MLP(3, width=4, norm="none", time="concat").double())

    def grads(gradient):
        block = odenet.ODEBlock(weights, gradient=gradient, **scheme)
        x0 = x.clone().requires_grad_()
        return torch.autograd.grad(block(x0).square().sum(), [x0, *weights.parameters()])

    expected = grads("autograd")
    for (name, _), g in zip([("x0", None), *weights.named_parameters()], expected, strict=True):
        assert float(g.abs().max()) > 0, name
    for gradient in gradients_for(scheme["solver"]):
        exact = gradients[gradient].exact
        for got, true in zip(grads(gradient), expected, strict=True):
            limit = (1e-10 if exact else 5e-2) * float(true.abs().max())
            torch.testing.assert_close(got, true, rtol=0, atol=limit)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("solver", odenet.list_solvers())
def test_every_solver_walks_them_and_gets_every_exact_gradient(solver, kind, x):
    F = odenet.residual.Hamiltonian(4) if solver in ("symplectic_euler", "leapfrog", "yoshida4") else MLP(4, 6)
    weights, x = kind(F.double()), torch.cat([x, x[:, :1]], 1)

    def answer(steps, gradient="autograd"):
        x0 = x.clone().requires_grad_()
        y = odenet.ODEBlock(weights, solver, steps=steps, gradient=gradient)(x0)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), [x0, *weights.parameters()], allow_unused=True)]

    true = odenet.ODEBlock(weights, "dopri8", rtol=1e-12, atol=1e-12)(x)
    coarse, fine = (float((answer(n)[0] - true).norm() / true.norm()) for n in (24, 48))
    assert fine < max(coarse / 1.7, 1e-9) and coarse < 1  # knots are ends of steps: the order is kept across them
    expected = answer(6)
    for gradient in gradients_for(solver, exact=True):
        for got, one in zip(answer(6, gradient), expected, strict=True):
            if one is not None:
                torch.testing.assert_close(got, one, rtol=0, atol=1e-10 * float(one.abs().max()))


@SMOOTH
def test_a_sample_may_have_a_time_of_its_own(kind):
    weights = kind(MLP(3, width=4, time="concat").double())
    x = torch.randn(4, 3, dtype=torch.float64)
    last = weights.pieces - 1
    t = torch.tensor([0.91, 0.95, 1.0, 0.99], dtype=torch.float64)
    together = weights.piece(last)(t, x)
    alone = torch.cat([weights.piece(last)(t[i], x[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    with pytest.raises(odenet.errors.InputError, match="takes no args"):
        weights.piece(last)(t, x, torch.ones(4))
    normed = kind(MLP(3, width=4, norm="batch").double())
    with pytest.raises(odenet.errors.InputError, match="norm='group'"):
        normed.piece(last)(t, x)
    assert normed.eval().piece(last)(t, x).shape == x.shape


@pytest.mark.parametrize("gradient", ["autograd", "checkpoint"])
@pytest.mark.parametrize("kind", [bspline(3, 2), low_rank(1, chebyshev(3))], ids=["spline", "low_rank"])
def test_samples_with_steps_of_their_own_are_solved_as_if_alone(kind, gradient):
    block = odenet.ODEBlock(kind(MLP(3, width=4, norm="none").double()), rtol=1e-5, atol=1e-5, t0=1.0, t1=3.0)
    mine = odenet.ODEBlock(block.weights, rtol=1e-5, atol=1e-5, t0=1.0, t1=3.0, per_sample=True, gradient=gradient)
    x = torch.tensor([[0.1], [5.0]], dtype=torch.float64) * torch.randn(2, 3, dtype=torch.float64)
    together = mine(x)
    alone = torch.cat([block(x[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
    parameters = list(block.parameters())
    pairs = zip(*(torch.autograd.grad(y.square().sum(), parameters) for y in (together, alone)), strict=True)
    for got, expected in pairs:
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)
    with pytest.raises(odenet.errors.InputError, match="one interval for all samples"):
        odenet.solve(block.weights, x, (0.0, torch.tensor([1.0, 2.0])), per_sample=True)


@pytest.mark.parametrize("kind", [bspline(1, 4), bspline(3, 3), chebyshev(5), fourier(6), low_rank(2, bspline(2, 4))])
def test_the_first_draw_varies_over_depth_as_Fs_own_does(kind):
    class Drawn(nn.Module):
        def __init__(self):
            super().__init__()
            self.shifted = nn.Parameter(torch.empty(20000, dtype=torch.float64))
            self.fixed = nn.Parameter(torch.full((3,), 1.5, dtype=torch.float64))
            self.reset_parameters()

        def reset_parameters(self):
            nn.init.normal_(self.shifted, 0.3, 2.0)

        def forward(self, t, x):
            return x

    weights = kind(Drawn())
    s = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    values = theta(weights, "shifted", s)  # (depth, draws)
    assert float(values.var(1).mean()) == pytest.approx(4.0, rel=0.05)
    assert float((values.mean(1) - 0.3).abs().max()) < 0.12
    assert float(values.var(0).mean()) > 0.5  # it does change over depth
    torch.testing.assert_close(theta(weights, "fixed", s), torch.full((200, 3), 1.5, dtype=torch.float64))


@pytest.mark.parametrize("make", [lambda i: bspline(3, 3, i), lambda i: chebyshev(4, i), lambda i: fourier(5, i)])
def test_tied_weights_start_as_F_itself_at_all_depths(make, x):
    F = MLP(3, width=8).double()
    block = odenet.ODEBlock(F, "rk4", steps=6, weights=make("tied"))
    torch.testing.assert_close(block(x), odenet.ODEBlock(F, "rk4", steps=6)(x), rtol=1e-12, atol=1e-12)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(4), nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, t, x):
        y = self.norm(x)
        return self.attention(y, y, y, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(4, 4)

    def forward(self, t, x):
        return self.cell(torch.ones_like(x).flatten(0, 1), x.flatten(0, 1)).view_as(x) - x


class Spectral(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))

    def forward(self, t, x):
        return torch.tanh(self.linear(x))


@pytest.mark.parametrize("F", [Attention, Recurrent, Spectral])
def test_any_module_will_do(F):
    block = odenet.ODEBlock(F(), "midpoint", steps=3, weights=piecewise_linear(3)).eval()
    x = torch.randn(2, 5, 4)
    block(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())
    weights, h = block.weights, 1 / 3
    for i in range(3):  # the nodes' values, put into F by hand
        inner = F().eval()
        inner.load_state_dict(
            {k: (v[i] + v[i + 1]) / 2 if k in weights.coefficients() else v for k, v in weights.F.state_dict().items()}
        )
        t = torch.tensor((i + 0.5) * h)
        torch.testing.assert_close(weights.piece(i)(t, x), inner(t, x), rtol=1e-5, atol=1e-6)


def test_a_state_in_low_precision_leaves_the_weights_whole():
    weights = bspline(3, 2)(MLP(3, width=8))
    piece = weights.piece(0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = weights.weights_at(piece.values(torch.tensor(0.3)), 0)
    outside = weights.weights_at(piece.values(torch.tensor(0.3)), 0)
    assert all(torch.equal(inside[name], outside[name]) for name in outside)


def test_depth_is_differentiable():
    weights = chebyshev(4)(Line())
    x = torch.ones(1, 1, dtype=torch.float64)
    slope = torch.func.jacrev(lambda t: weights.piece(0)(t, x).sum())(torch.tensor(0.0, dtype=torch.float64))
    C = {k: v.flatten() for k, v in weights.coefficients().items()}
    at_zero = torch.tensor([k * k * (-1) ** (k + 1) for k in range(4)], dtype=torch.float64) * 2  # T_k'(-1) dz/ds
    slope = slope.detach()
    assert float(slope) == pytest.approx(float(2 * C["a"] @ at_zero + C["b"] @ at_zero), rel=1e-12)
    assert math.isfinite(float(slope))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: bspline(8, 2), "degree of a B-spline must be an integer from 0 to 7, got 8"),
        (lambda: bspline(3, 0), "number of pieces must be a positive integer, got 0"),
        (lambda: chebyshev(0), "number of Chebyshev polynomials must be a positive integer"),
        (lambda: fourier(True), "Fourier functions must be a positive integer, got True"),
        (lambda: low_rank(0, bspline(3, 2)), "rank must be a positive integer, got 0"),
        (lambda: low_rank(1, 3), "low_rank takes a basis such as.*got 3"),
        (lambda: piecewise_linear(2, init="zero"), "init must be one of drawn, tied, got 'zero'"),
        (lambda: chebyshev(2)(lambda t, x: x), "nn.Module, got function"),
        (lambda: odenet.ODEBlock(MLP(2), weights="bspline"), "takes its size from steps.*odenet.depth.bspline.3, 8"),
        (lambda: odenet.ResNet(MLP(2), 5, weights=bspline(3, 2)), "steps=5 would step across.*multiple of 2"),
        (lambda: chebyshev(2)(Lazy()), "call F once"),
    ],
)
def test_what_cannot_be_used_is_said(make, said):
    with pytest.raises(odenet.errors.InputError, match=said):
        make()


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.LazyLinear(2)

    def forward(self, t, x):
        return self.linear(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [bspline(2, 2), chebyshev(3)], ids=["bspline", "chebyshev"])
def test_transforms_go_through_weights_again_and_again_and_leave_nothing_behind(kind, dtype):
    weights = kind(MLP(3, width=4, time="concat")).to(dtype)
    piece, x, t = weights.piece(0), torch.randn(5, 3, dtype=dtype), torch.tensor(0.2, dtype=dtype)
    block = odenet.ResNet(weights, 2, solver="midpoint")
    for _ in range(2):
        rows = torch.vmap(lambda row: block(row[None])[0])(x)
        torch.testing.assert_close(rows, block(x))
        with torch.enable_grad():
            leaf = x.clone().requires_grad_()
            expected = torch.autograd.grad(block(leaf).sum(), leaf)[0]
        torch.testing.assert_close(torch.func.grad(lambda x: block(x).sum())(x), expected)
        value, slope = torch.func.jvp(lambda t: piece(t, x), (t,), (torch.ones_like(t),))  # through the time itself
        back = torch.func.grad(lambda t: piece(t, x).sum())(t)
        assert slope.dtype == dtype
        torch.testing.assert_close(slope.sum(), back)
        torch.testing.assert_close(value, piece(t, x))
        assert not any(map(torch._C._functorch.is_functorch_wrapped_tensor, piece.tables.values()))
    if dtype == torch.float64:
        torch.testing.assert_close(slope, (piece(t + 1e-5, x) - piece(t - 1e-5, x)) / 2e-5, rtol=1e-6, atol=1e-6)

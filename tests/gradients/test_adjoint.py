"""The continuous adjoint against closed forms, torchdiffeq's values, and the gradient of a very fine solve."""

import math
from itertools import pairwise

import pytest
import torch
import torchdiffeq
from torch import nn

import odenet
from odenet.errors import GradientError
from odenet.solvers import backends, solvers
from odenet.solvers.explicit import ExplicitRungeKutta
from tests.oracles import Counted
from tests.oracles.problems import LINEAR_X0, A

METHODS = backends["native"].methods()
WALKS_BACK = [name for name in METHODS if not solvers[name].partitioned]
EXPLICIT = [name for name in WALKS_BACK if isinstance(solvers[name], ExplicitRungeKutta)]
QUICK = ("euler", "rk4", "fehlberg45", "dopri5", "ab3", "abm4", "alf", "reversible_heun")


def quick_or_slow(names):
    """All methods; the quick tests take one of each kind."""
    return [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in names]


def linear(solver="dopri5", t1=1.0, ts=None, options=None, **numerics):
    """Gradients of a linear problem for its matrix and x0, and those of the matrix exponential."""
    W, x0 = A.clone().requires_grad_(), LINEAR_X0.clone().requires_grad_()

    def loss(ys):
        return sum((i + 1) * y.square().sum() for i, y in enumerate(ys))

    times = [t1] if ts is None else ts
    exact = torch.autograd.grad(loss([x0 @ torch.linalg.matrix_exp(t * W).T for t in times]), (W, x0))
    solution = odenet.solve(
        lambda t, x: x @ W.T, x0, (0, t1), solver=solver, ts=times, gradient="adjoint",
        gradient_options=options or {}, **numerics,
    )  # fmt: skip
    got = torch.autograd.grad(loss(solution.ys), (W, x0))
    error = max(float((a - b).norm() / b.norm()) for a, b in zip(got, exact, strict=True))
    return error, solution.stats


@pytest.mark.parametrize("solver", quick_or_slow(WALKS_BACK))
def test_the_error_falls_with_the_order_of_the_solver(solver):
    steps = (10, 20, 40) if METHODS[solver].order > 4 else (20, 40, 80)
    errors = [linear(solver, steps=n)[0] for n in steps]
    slopes = [math.log2(a / b) for a, b in pairwise(errors) if b > 1e-12]
    assert not slopes or slopes[-1] > METHODS[solver].order - 0.4
    assert errors[-1] < errors[0] / 3 or errors[0] < 1e-12


@pytest.mark.parametrize(
    "options", [{}, {"norm": "full"}, {"quadrature": True}], ids=["seminorm", "full", "quadrature"]
)
@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_the_error_follows_the_tolerance_on_trajectories_in_both_directions(options, direction):
    errors = [
        linear(t1=2 * direction, ts=[0.0, 0.7 * direction, 0.7 * direction, 1.6 * direction], options=options,
               rtol=tolerance, atol=tolerance)[0]
        for tolerance in (1e-3, 1e-6, 1e-9)
    ]  # fmt: skip
    assert errors[0] < 0.05 and errors[1] < 1e-4 and errors[2] < 1e-7


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("solver", quick_or_slow(EXPLICIT))
def test_quadrature_is_the_method_itself_on_what_does_not_feed_back(solver, adaptive):
    if adaptive and not METHODS[solver].adaptive:
        return
    numerics = {"rtol": 1e-5, "atol": 1e-5} if adaptive else {"steps": 7}
    F = odenet.residual.MLP(3, width=6, time="concat").double()
    x0 = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def differentiate(**options):
        solution = odenet.solve(
            F, x0, (0.2, 1.5), solver=solver, ts=[0.5, 1.5], gradient="adjoint", gradient_options=options, **numerics
        )
        gradients, stats = torch.autograd.grad(solution.ys.square().sum(), [x0, *F.parameters()]), solution.stats
        return gradients, (stats.nfe_backward, stats.vjps, stats.steps_backward)

    (inside, spent_inside), (outside, spent_outside) = differentiate(), differentiate(quadrature=True)
    assert spent_inside == spent_outside
    for a, b in zip(inside, outside, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_the_seminorm_spends_fewer_evaluations_than_the_full_norm():
    spent = {"seminorm": 0, "full": 0}
    for seed in range(4):
        torch.manual_seed(seed)
        F = odenet.residual.MLP(3, width=16, time="concat").double()
        x0 = torch.randn(4, 3, dtype=torch.float64)
        for norm in spent:
            solution = odenet.solve(
                F, x0, (0, 3), rtol=1e-5, atol=1e-5, gradient="adjoint", gradient_options={"norm": norm}
            )
            solution.last.square().sum().backward()
            spent[norm] += solution.stats.nfe_backward
    assert spent["seminorm"] < 0.9 * spent["full"]


@pytest.mark.parametrize("steps", [None, 8])
def test_it_agrees_with_torchdiffeq_to_the_tolerance(steps):
    F = odenet.residual.MLP(3, width=8, time="concat").double()
    x0 = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    ts = torch.linspace(0, 1, 9, dtype=torch.float64)
    method = "dopri5" if steps is None else "rk4"
    ys = torchdiffeq.odeint_adjoint(F, x0, ts, method=method, rtol=1e-9, atol=1e-9)
    expected = torch.autograd.grad(ys.square().sum(), [x0, *F.parameters()])
    numerics = {"steps": steps} if steps else {"rtol": 1e-9, "atol": 1e-9}
    solver = "rk4_38" if steps else "dopri5"  # what torchdiffeq calls rk4
    ys = odenet.solve(F, x0, ts=ts, solver=solver, gradient="adjoint", **numerics).ys
    for a, b in zip(torch.autograd.grad(ys.square().sum(), [x0, *F.parameters()]), expected, strict=True):
        limit = (1e-12 if steps else 1e-6) * float(b.abs().max())
        torch.testing.assert_close(a, b, rtol=0, atol=limit)


@pytest.mark.parametrize("quadrature", [False, True])
def test_untied_layers_walk_back_piece_by_piece_and_never_outside_their_own(quadrature):
    layers = [Counted(odenet.residual.MLP(3, width=6, time="concat").double()) for _ in range(3)]
    weights, x0 = odenet.depth.PiecewiseConstant(layers), torch.randn(4, 3, dtype=torch.float64)

    def differentiate(gradient, tolerance, **options):
        solution = odenet.solve(
            weights, x0, (0, 3), ts=[1.0, 1.5, 2.9], rtol=tolerance, atol=tolerance, gradient=gradient,
            gradient_options=options,
        )  # fmt: skip
        return torch.autograd.grad(solution.ys.square().sum(), list(weights.parameters()))

    exact = differentiate("checkpoint", 1e-11)
    for a, b in zip(differentiate("adjoint", 1e-9, quadrature=quadrature), exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 * float(b.abs().max()))
    for at, layer in enumerate(layers):
        assert at <= min(layer.times) and max(layer.times) <= at + 1


def test_another_solver_or_grid_for_the_way_back():
    assert linear(steps=20, options={"adjoint_solver": "heun2"})[1].nfe_backward == 40
    assert linear(options={"adjoint_solver": "rk4", "adjoint_steps": 25})[1].vjps == 100
    finer, stats = linear("euler", steps=400, options={"adjoint_solver": "dopri5", "adjoint_rtol": 1e-8})
    assert finer < 1e-2 and stats.steps_backward < 400
    assert linear(options={"adjoint_options": {"h_max": 0.05}})[1].steps_backward >= 20
    assert linear(options={"adjoint_options": {"step_size": 0.1}, "adjoint_solver": "rk4"})[1].steps_backward == 10


def test_a_solver_of_pairs_walks_back_by_another():
    q = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    last = odenet.solve(
        lambda t, x: torch.cat([x[:, 1:], -x[:, :1]], 1), q, (0, 1), solver="leapfrog", steps=400, gradient="adjoint",
        gradient_options={"adjoint_solver": "rk4"},
    ).last  # fmt: skip
    (grad,) = torch.autograd.grad(last[0, 0], q)
    expected = torch.tensor([[math.cos(1), math.sin(1)]], dtype=torch.float64)
    torch.testing.assert_close(grad, expected, rtol=0, atol=1e-5)


def test_a_norm_of_ones_own_sees_state_cotangent_and_parameters():
    seen = []

    def norm(parts):
        seen.append([tuple(part.shape) for part in parts])
        return torch.stack([part.abs().max() for part in parts[:2]]).max()

    F, x0 = odenet.residual.MLP(3, width=5, layers=1).double(), torch.randn(4, 3, dtype=torch.float64)
    odenet.solve(F, x0, gradient="adjoint", gradient_options={"norm": norm}).last.sum().backward()
    assert seen[0][:2] == [(4, 3), (4, 3)]
    assert sorted(seen[0][2:]) == sorted(tuple(p.shape) for p in F.parameters())


@pytest.mark.parametrize("quadrature", [False, True])
def test_only_the_tensors_that_are_asked_for_get_a_gradient(quadrature):
    w = [torch.full((3,), v, dtype=torch.float64, requires_grad=True) for v in (0.5, 0.7, 0.9)]
    x0 = torch.ones(2, 3, dtype=torch.float64)
    options = {"adjoint_params": (w[0], w[2]), "quadrature": quadrature}
    last = odenet.solve(
        lambda t, x: -x * w[0] * w[1], x0, gradient="adjoint", rtol=1e-8, atol=1e-8, gradient_options=options
    ).last
    last.sum().backward()
    exact = -2 * 0.7 * torch.exp(torch.tensor(-0.35, dtype=torch.float64)).expand(3)
    torch.testing.assert_close(w[0].grad, exact, rtol=1e-6, atol=0)
    assert w[1].grad is None and torch.equal(w[2].grad, torch.zeros(3, dtype=torch.float64))


def test_a_second_derivative_is_refused_in_words_and_a_first_one_with_a_graph_is_not():
    F, x0 = odenet.residual.MLP(3, width=5).double(), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    loss = odenet.solve(F, x0, gradient="adjoint", rtol=1e-8, atol=1e-8).last.square().sum()
    (plain,) = torch.autograd.grad(loss, x0, retain_graph=True)
    (grad,) = torch.autograd.grad(loss, x0, create_graph=True)
    assert torch.equal(plain, grad)
    with pytest.raises(GradientError, match="'adjoint' has no second derivatives; use gradient='checkpoint'"):
        grad.square().sum().backward()


def test_a_way_back_that_explodes_says_so():
    x0 = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    last = odenet.solve(
        lambda t, x: -40 * x - x**3, x0, (0, 4), rtol=1e-4, atol=1e-4, gradient="adjoint", max_steps=4000
    ).last
    with pytest.raises(GradientError, match="backward solve of gradient='adjoint' broke down.*gradient='checkpoint'"):
        last.sum().backward()


def test_scipy_walks_back_too():
    error, stats = linear("DOP853", backend="scipy", rtol=1e-10, atol=1e-10)
    assert error < 1e-8 and stats.nfe_backward == stats.vjps > 0


class Quadratic(nn.Module):
    """A Hamiltonian field, made by differentiating inside F."""

    def __init__(self):
        super().__init__()
        self.K = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))

    def forward(self, t, x):
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            energy = (self.K * x.square()).sum() / 2
            (slope,) = torch.autograd.grad(energy, x, create_graph=True)
        return torch.stack([slope[:, 1], -slope[:, 0]], 1)


@pytest.mark.parametrize("quadrature", [False, True])
def test_a_function_that_differentiates_inside(quadrature):
    F, x0 = Quadratic(), torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    generator = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64) @ torch.diag(F.K)
    exact = torch.autograd.grad((x0 @ torch.linalg.matrix_exp(generator).T).square().sum(), F.K)
    last = odenet.solve(
        F, x0, gradient="adjoint", rtol=1e-9, atol=1e-9, gradient_options={"quadrature": quadrature}
    ).last
    torch.testing.assert_close(torch.autograd.grad(last.square().sum(), F.K), exact, rtol=1e-6, atol=1e-7)


def test_the_way_back_starts_anew_from_the_state_at_every_output():
    """What decays on the way forward grows on the way back, by e² between outputs and by e²⁰ in all."""

    def error(outputs):
        w = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

        def F(t, x):
            u = x[0]
            return torch.stack([-20 * (u - torch.cos(t)), w * u])

        x0 = torch.tensor([3.0, 0.0], dtype=torch.float64)
        solution = odenet.solve(F, x0, (0.0, 1.0), ts=outputs, rtol=1e-6, atol=1e-6, gradient="adjoint")
        (got,) = torch.autograd.grad(solution.ys[-1, 1], w)
        integral = solution.ys[-1, 1].detach() / w.detach()  # of u: v(1) = w ∫ u
        return abs(float(got / integral - 1))

    assert error([i / 10 for i in range(1, 11)]) < 1e-5 and error([1.0]) > 1


@pytest.mark.parametrize(
    ("options", "per_sample"),
    [({}, False), ({"norm": "full"}, False), ({"quadrature": True}, False), ({}, True)],
    ids=["seminorm", "full", "quadrature", "per sample"],
)
def test_a_parameter_that_F_does_not_use_has_no_gradient_and_changes_none(options, per_sample):
    def gradients(unused):
        torch.manual_seed(0)
        x, F = torch.randn(4, 3, dtype=torch.float64), nn.Module()
        F.layer = nn.Linear(3, 3, dtype=torch.float64)
        F.forward = lambda t, x: F.layer(x).tanh()
        if unused:
            F.unused = nn.Parameter(torch.randn(7, 2, dtype=torch.float64))
        odenet.solve(
            F, x, rtol=1e-6, atol=1e-6, gradient="adjoint", gradient_options=options, per_sample=per_sample
        ).last.square().sum().backward()
        return [p.grad for p in F.parameters()]

    used, with_another = gradients(False), gradients(True)
    assert None not in used and [g is None for g in with_another].count(True) == 1
    torch.testing.assert_close([g for g in with_another if g is not None], used, rtol=0, atol=0)

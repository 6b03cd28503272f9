"""Gradient methods labelled exact against backprop through the same steps; the adjoint in the limit."""

import copy
import weakref
from itertools import product

import pytest
import torch
from torch import nn

import odenet
from odenet.gradients import gradients
from odenet.solvers import backends
from tests.oracles import FEW, backprop, gradients_for
from tests.oracles.families import marks
from tests.oracles.problems import LINEAR_X0, A

EXACT = [name for name, method in gradients.items() if method.exact and name not in ("autograd", *FEW)]
INEXACT = [name for name, method in gradients.items() if not method.exact]
SCHEMES = [
    pytest.param(name, steps, id=f"{name}-{'fixed' if steps else 'adaptive'}", marks=marks(name))
    for name, method in backends["native"].methods().items()
    for steps in ([6] if method.fixed else []) + ([None] if method.adaptive else [])
]
BACKPROP = [pytest.param(*s.values, "autograd", id=f"autograd-{s.id}", marks=s.marks) for s in SCHEMES]
EXACT_SCHEMES = [
    pytest.param(*scheme.values, gradient, id=f"{gradient}-{scheme.id}", marks=scheme.marks)
    for gradient in EXACT
    for scheme in SCHEMES
    if scheme.values[0] in gradients[gradient].solvers()
]


def numerics(steps, tolerance=1e-4):
    return {"steps": steps} if steps else {"rtol": tolerance, "atol": tolerance}


class Mixed(nn.Module):
    """F with every kind of input: used, frozen and unused parameters, a buffer, arguments."""

    def __init__(self, dim=4):
        super().__init__()
        self.inner = odenet.residual.MLP(dim, width=5, layers=1, time="concat")
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.frozen = nn.Parameter(torch.randn(dim), requires_grad=False)
        self.unused = nn.Parameter(torch.randn(dim))
        self.register_buffer("shift", torch.randn(dim))
        self.double()

    def forward(self, t, x, drive=None, extra=None):
        y = self.inner(t, x) * self.scale * torch.cos(3 * t) + self.frozen * self.shift
        if drive is not None:
            y = y + torch.tanh(drive * x)
        return y if extra is None else y * extra["gain"][0]


def solve_and_differentiate(F, weights, gradient, solver, steps, ts, x0, args, piece_loss=None):
    """Answer and gradients of a loss that weighs every output differently."""
    args_leaf = tuple(
        a.clone().requires_grad_() if isinstance(a, torch.Tensor) else {"gain": [a["gain"][0].clone().requires_grad_()]}
        for a in args
    )
    leaves = [a if isinstance(a, torch.Tensor) else a["gain"][0] for a in args_leaf]
    x0 = x0.clone().requires_grad_()
    module = weights(F)
    module.zero_grad()
    solution = odenet.solve(module, x0, (0.1, 1.4), solver=solver, ts=ts, args=args_leaf, **gradient, **numerics(steps))
    mixing = torch.linspace(1, 2, solution.ys.numel(), dtype=torch.float64).reshape(solution.ys.shape)
    (solution.ys * mixing).square().sum().backward()
    return solution, [x0.grad, *(leaf.grad for leaf in leaves), *(p.grad for p in module.parameters())]


def assert_same_gradients(got, expected):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert b.abs().max() > 0
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * float(b.abs().max()))


WEIGHTS = {"tied": odenet.depth.constant(), "untied": odenet.depth.piecewise_constant(3)}
OUTPUTS = {
    "end": None,
    "start-knots-inside-twice-end": [0.1, 0.25, 0.25, 0.1 + 1.3 / 3, 0.9, 1.4],
    "inside": [0.3, 0.8],
}


# The two that hold most for every kind of method; all of them for one fixed-step and one adaptive method.
WALKS = [
    pytest.param(
        weights, outputs, *scheme.values, id=f"{scheme.id}-{weights}-{outputs}",
        marks=scheme.marks if number in (0, 4) or scheme.values[0] in ("euler", "dopri5") else pytest.mark.slow,
    )
    for scheme in EXACT_SCHEMES
    for number, (weights, outputs) in enumerate(product(WEIGHTS, OUTPUTS))
]  # fmt: skip


@pytest.mark.parametrize(("weights", "outputs", "solver", "steps", "gradient"), WALKS)
def test_an_exact_gradient_is_that_of_backprop_through_the_same_steps(solver, steps, weights, outputs, gradient, pairs):
    built = WEIGHTS[weights](Mixed())
    args = (torch.randn(4, 4, dtype=torch.float64), {"gain": [torch.tensor(1.3, dtype=torch.float64)]})
    case = (lambda F: F, solver, steps, OUTPUTS[outputs], pairs, args)
    results = [
        solve_and_differentiate(built, case[0], g, case[1], case[2], case[3], pairs, args)
        for g in (backprop(gradient), {"gradient": gradient})
    ]
    (expected_solution, expected), (solution, got) = results
    assert torch.equal(solution.ys, expected_solution.ys)
    assert solution.stats.h == expected_solution.stats.h
    assert solution.stats.nfe == expected_solution.stats.nfe
    assert_same_gradients(got, expected)
    unused = [p.grad for n, p in built.named_parameters() if "unused" in n or "frozen" in n]
    assert all(g is None for g in unused)


@pytest.mark.parametrize(("solver", "steps", "gradient"), EXACT_SCHEMES)
def test_an_exact_gradient_of_complex_states(solver, steps, gradient):
    W = torch.randn(4, 4, dtype=torch.complex128).requires_grad_()
    x0 = torch.randn(2, 4, dtype=torch.complex128).requires_grad_()

    def F(t, x):
        return torch.tanh(x @ W) * torch.exp(1j * t)

    def differentiate(method):
        last = odenet.solve(F, x0, solver=solver, **method, **numerics(steps)).last
        return torch.autograd.grad((last * (1 + 2j)).abs().square().sum(), (W, x0))

    assert_same_gradients(differentiate({"gradient": gradient}), differentiate(backprop(gradient)))


@pytest.mark.parametrize(
    ("solver", "steps", "gradient"),
    [*EXACT_SCHEMES, *BACKPROP],
)
def test_first_and_second_derivatives_agree_with_finite_differences(solver, steps, gradient):
    w = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    x0 = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)

    def answer(x0, w):
        scheme = {"steps": 2} if steps else {"rtol": 1e-3, "atol": 1e-3, "first_step": 0.5, "h_min": 0.5}
        solution = odenet.solve(
            lambda t, x, w: torch.tanh(x @ w) * (1 + t), x0, (0, 0.5), solver=solver, gradient=gradient, args=(w,),
            ts=[0.0, 0.2, 0.5], **scheme,
        )  # fmt: skip
        return solution.ys

    # The step sizes are constants of the gradient: without `steps` it is one step of 0.5, whatever the perturbation.
    assert torch.autograd.gradcheck(answer, (x0, w))
    assert torch.autograd.gradgradcheck(answer, (x0, w))


@pytest.mark.parametrize("frozen_start", [True, False])
@pytest.mark.parametrize(("solver", "steps", "gradient"), EXACT_SCHEMES)
def test_second_derivatives_are_those_of_backprop_even_if_x0_was_made_with_the_parameters_of_F(
    solver, steps, frozen_start, gradient
):
    """A penalty on the gradient, through two blocks that share F."""
    F = odenet.residual.MLP(4, width=4, layers=1).double()
    data = torch.randn(2, 4, dtype=torch.float64)

    def differentiate(method):
        x0 = data if frozen_start else F(torch.zeros(()), data)
        ys = odenet.solve(F, x0, ts=[0.0, 0.6, 1.0], solver=solver, **method, **numerics(steps)).ys
        first = torch.autograd.grad(ys.square().sum(), list(F.parameters()), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), list(F.parameters()))

    assert_same_gradients(differentiate({"gradient": gradient}), differentiate(backprop(gradient)))


@pytest.mark.parametrize("gradient", gradients_for("dopri5"))
def test_the_gradient_of_a_linear_problem_is_that_of_the_matrix_exponential(gradient):
    W = A.clone().requires_grad_()
    x0 = LINEAR_X0.clone().requires_grad_()
    exact = torch.autograd.grad((x0 @ torch.linalg.matrix_exp(2 * W).T).square().sum(), (W, x0))
    last = odenet.solve(
        lambda t, x: x @ W.T, x0, (0, 2), solver="dopri5", gradient=gradient, rtol=1e-10, atol=1e-10
    ).last
    got = torch.autograd.grad(last.square().sum(), (W, x0))
    for a, b in zip(got, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("gradient", INEXACT)
@pytest.mark.parametrize(
    ("solver", "backend"), [("dopri5", "native"), ("rk4", "native"), ("abm4", "native"), ("bosh3", "torchdiffeq")]
)
def test_the_adjoint_converges_to_the_exact_gradient(gradient, solver, backend):
    F, x0 = odenet.residual.MLP(3, width=6, time="concat").double(), torch.randn(4, 3, dtype=torch.float64)

    def differentiate(method, **scheme):
        last = odenet.solve(F, x0, (0, 3), gradient=method, **scheme).last
        return torch.cat([g.flatten() for g in torch.autograd.grad(last.square().sum(), list(F.parameters()))])

    truth = differentiate("checkpoint", solver="dopri5", rtol=1e-11, atol=1e-11)

    def error(value):
        scheme = {"steps": value} if value > 1 else {"rtol": value, "atol": value}
        return float((differentiate(gradient, solver=solver, backend=backend, **scheme) - truth).norm() / truth.norm())

    coarse, fine = (error(v) for v in ((4, 64) if solver in ("rk4", "abm4") else (1e-2, 1e-7)))
    assert coarse > 1e-5
    assert fine < 1e-4 * max(1, coarse) and fine < coarse / 100


@pytest.mark.parametrize("gradient", INEXACT)
def test_the_options_of_the_adjoint_reach_it(gradient, x):
    F = odenet.residual.MLP(3, width=6).double()

    def backward_nfe(**options):
        solution = odenet.solve(F, x, gradient=gradient, rtol=1e-6, atol=1e-6, gradient_options=options)
        solution.last.sum().backward()
        return solution.stats.nfe_backward

    plain = backward_nfe()
    assert backward_nfe(adjoint_rtol=1e-2, adjoint_atol=1e-2) < plain
    assert backward_nfe(adjoint_solver="rk4", adjoint_steps=50) == 200
    assert backward_nfe(norm="full") != plain


@pytest.mark.parametrize("gradient", gradients_for("dopri5"))
def test_no_graph_is_made_where_no_gradient_is_asked_for(gradient, pairs):
    F = Mixed()
    with torch.no_grad():
        assert not odenet.solve(F, pairs, gradient=gradient).last.requires_grad
    frozen = copy.deepcopy(F).requires_grad_(False)
    assert not odenet.solve(frozen, pairs, gradient=gradient).last.requires_grad
    assert odenet.solve(frozen, pairs.clone().requires_grad_(), gradient=gradient).last.requires_grad
    assert odenet.solve(F, pairs, gradient=gradient).last.requires_grad


@pytest.mark.parametrize("gradient", gradients_for("dopri5"))
def test_backward_a_second_time_says_so_or_accumulates(gradient, pairs):
    F = Mixed()
    last = odenet.solve(F, pairs, gradient=gradient, solver="rk4", steps=4).last
    last.sum().backward(retain_graph=True)
    once = F.scale.grad.clone()
    last.sum().backward()
    torch.testing.assert_close(F.scale.grad, 2 * once, rtol=1e-12, atol=0)
    with pytest.raises(RuntimeError):
        last.sum().backward()


@pytest.mark.parametrize("gradient", [g for g in gradients_for("dopri5", exact=True) if g != "autograd"])
def test_a_parameter_that_changed_before_the_backward_pass_is_an_error_not_a_wrong_gradient(gradient, pairs):
    F = Mixed()
    last = odenet.solve(F, pairs, gradient=gradient).last
    with torch.no_grad():
        F.scale.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        last.sum().backward()


class Box:
    """A tensor saved for the backward pass, as long as autograd holds it."""

    def __init__(self, tensor):
        self.tensor = tensor


def test_checkpoint_keeps_states_and_no_activations():
    wide = odenet.residual.MLP(4, width=256, layers=3).double()
    state = torch.randn(64, 4, dtype=torch.float64, requires_grad=True)

    def saved(gradient, steps):
        alive = weakref.WeakSet()

        def pack(tensor):
            box = Box(tensor.detach())
            alive.add(box)
            return box

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
            last = odenet.solve(wide, state, solver="euler", steps=steps, gradient=gradient).last
        held = {b.tensor.data_ptr(): b.tensor.untyped_storage().nbytes() for b in alive}
        last.sum().backward()
        return sum(held.values())

    a_state = state.numel() * 8
    parameters = sum(p.numel() * 8 for p in wide.parameters())
    assert saved("checkpoint", 8) == parameters + 8 * a_state
    assert saved("checkpoint", 24) == parameters + 24 * a_state
    assert saved("autograd", 24) - saved("autograd", 8) > 16 * 50 * a_state

"""Exact gradient methods against backprop through the same steps, over random F, states, weights, solvers and times."""

import warnings

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch import nn

import odenet
from odenet.depth import bspline, chebyshev, constant, low_rank, piecewise_constant
from odenet.errors import NonlinearSolveError
from odenet.gradients import gradients
from odenet.solvers import solvers
from odenet.solvers.implicit import ImplicitRungeKutta
from tests.oracles import backprop

EXACT = [name for name, method in gradients.items() if method.exact and name != "autograd"]
WEIGHTS = {
    "tied": constant(),
    "untied": piecewise_constant(3),
    "spline": bspline(2, 2),
    "chebyshev": chebyshev(3),
    "low_rank": low_rank(1, bspline(2, 1)),
}


class Mixing(nn.Module):
    """tanh(W x) cos(3t) + b: every element of a sample's state is mixed with all others."""

    def __init__(self, size):
        super().__init__()
        self.W, self.b = nn.Parameter(torch.randn(size, size).double()), nn.Parameter(torch.randn(size).double())

    def forward(self, t, x, gain):
        flat = x.reshape(len(x), -1)
        t = t.reshape(-1, 1) if t.dim() else t
        return (torch.tanh(flat @ self.W.T) * torch.cos(3 * t) + self.b * gain).reshape(x.shape)


class Pointwise(nn.Module):
    """a sin(x) + c t gain, element by element."""

    def __init__(self, size):
        super().__init__()
        self.a, self.c = nn.Parameter(torch.randn(()).double()), nn.Parameter(torch.randn(()).double())

    def forward(self, t, x, gain):
        t = t.reshape(-1, *[1] * (x.dim() - 1)) if t.dim() else t
        return self.a * torch.sin(x) + self.c * t * gain


class Rotation(nn.Module):
    """w times the gradient of log Σ cosh x, by autograd inside F, with its elements rolled: nothing is conserved."""

    def __init__(self, size):
        super().__init__()
        self.w = nn.Parameter(torch.randn(()).double())

    def forward(self, t, x, gain):
        with torch.enable_grad():
            z = x if x.requires_grad else x.detach().requires_grad_()
            energy = torch.cosh(0.5 * z).reshape(len(z), -1).sum(1).log().sum()
            (slope,) = torch.autograd.grad(energy, z, create_graph=True)
        return self.w * gain * slope.reshape(len(x), -1).roll(1, 1).reshape(x.shape)


@st.composite
def problems(draw, implicit):
    """(gradient, solver, scheme, F, shape, interval, outputs, weights, seed)."""
    gradient = draw(st.sampled_from(EXACT if not implicit else ["checkpoint", "forward"]))
    able = [s for s in gradients[gradient].solvers() if isinstance(solvers[s], ImplicitRungeKutta) == implicit]
    solver = draw(st.sampled_from(able))
    method = solvers[solver]
    sizes = draw(st.lists(st.integers(1, 3), min_size=0, max_size=3))
    shape = (draw(st.integers(1, 3)), *sizes)
    if method.partitioned:
        shape = (shape[0], 2 * draw(st.integers(1, 2)))
    adaptive = method.adaptive and gradient != "momentum" and draw(st.booleans())
    weights = draw(st.sampled_from(list(WEIGHTS)))
    per_sample = method.per_sample and weights in ("tied", "untied") and draw(st.booleans())  # the others take no args
    steps = draw(st.integers(1, 7) if weights in ("tied", "chebyshev") else st.sampled_from([6, 12]))  # knots are ends
    scheme = {"rtol": 1e-3, "atol": 1e-3} if adaptive else {"steps": steps}
    t0, length = draw(st.floats(-2, 2)), draw(st.floats(0.2, 1.5)) * draw(st.sampled_from([1, -1]))
    parts = sorted(draw(st.lists(st.floats(0, 1), max_size=3)))
    return {
        "gradient": gradient,
        "solver": solver,
        "scheme": scheme,
        "per_sample": per_sample,
        "F": draw(st.sampled_from([Mixing, Pointwise, Rotation])),
        "shape": shape,
        "interval": (t0, t0 + length),
        "parts": parts,
        "weights": weights,
        "frozen": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
    }


def differentiated(problem, way):
    """The outputs, and their gradient with respect to x0, an argument and the weights, with weights on each output."""
    torch.manual_seed(problem["seed"])
    shape, (t0, t1) = problem["shape"], problem["interval"]
    F = problem["F"](torch.Size(shape[1:]).numel())
    weights = WEIGHTS[problem["weights"]](F)
    if problem["frozen"]:
        next(weights.parameters()).requires_grad_(False)
    x0 = (torch.randn(shape).double() / 2).requires_grad_()
    gain = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    ts = [t0 + part * (t1 - t0) for part in problem["parts"][:-1]] + [t1] if problem["parts"] else None
    own = {"per_sample": True, "per_sample_args": ()} if problem["per_sample"] else {}
    solution = odenet.solve(
        weights, x0, (t0, t1), solver=problem["solver"], args=(gain,), ts=ts, **own, **problem["scheme"], **way
    )
    mixing = torch.randn(solution.ys.shape, dtype=torch.float64)
    wanted = [x0, gain, *(p for p in weights.parameters() if p.requires_grad)]
    loss = (solution.ys * mixing).sum() + solution.ys.square().sum()
    return solution, torch.autograd.grad(loss, wanted, materialize_grads=True, allow_unused=True)


def assert_as_backprop(problem):
    gradient = problem["gradient"]
    limit = {"gradient_options": {"limit": 9999}} if gradient == "forward" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no word about drift
        wanted_solution, wanted = differentiated(problem, backprop(gradient))
        solution, found = differentiated(problem, {"gradient": gradient, **limit})
    assert torch.equal(solution.ys, wanted_solution.ys)
    scale = max(float(w.abs().max()) for w in wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * max(1.0, scale))


@settings(max_examples=120, deadline=None)
@given(problems(implicit=False))
def test_an_exact_gradient_is_that_of_backprop_whatever_the_problem(problem):
    assert_as_backprop(problem)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(problems(implicit=False))
def test_an_exact_gradient_is_that_of_backprop_over_many_problems(problem):
    assert_as_backprop(problem)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(problems(implicit=True))
def test_an_exact_gradient_through_implicit_steps_is_that_of_backprop(problem):
    try:
        assert_as_backprop(problem)
    except NonlinearSolveError:  # a step that is as long may have no solution
        reject()

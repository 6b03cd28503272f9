"""The loop: where F is evaluated, where steps end, what is counted - for every method of every backend."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import odenet
from odenet.depth import PiecewiseConstant
from odenet.solvers import backends, solvers
from odenet.solvers.implicit import ImplicitRungeKutta
from odenet.solvers.tableau import Tableau
from tests.oracles import PROBLEMS, Counted, gradients_for
from tests.oracles.families import marks

WALKS = [
    pytest.param(
        backend, name, steps, id=f"{backend}-{name}-{'fixed' if steps else 'adaptive'}", marks=marks(name, backend)
    )
    for backend, entry in backends.items()
    for name, method in entry.methods().items()
    for steps in ([6] if method.fixed else []) + ([None] if method.adaptive else [])
]
WITH_STEPS = [walk for walk in WALKS if walk.values[1] != "scipy_solver"]  # SciPy reports no rejected steps
ENDS = [(0.0, 1.0), (1.0, 0.0), (-0.3, 0.4), (0.1, 2.7)]


class Turn(nn.Module):
    """x' = a(t) x with a turning fast, so that an adaptive method has to reject steps."""

    def __init__(self, rate=1.0):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=torch.float64))

    def forward(self, t, x):
        return self.rate * torch.sin(9 * t) * torch.tanh(x) + 0.1


def numerics(steps, tolerance=1e-4):
    return {"steps": steps} if steps else {"rtol": tolerance, "atol": tolerance}


@pytest.mark.parametrize("interval", ENDS, ids=str)
@pytest.mark.parametrize(("backend", "solver", "steps"), WALKS)
def test_F_is_shown_only_times_inside_the_interval_forward_and_backward(backend, solver, steps, interval, pairs):
    low, high = sorted(interval)
    for gradient in gradients_for(solver, backend):
        F = Counted(Turn())
        leaf = pairs.clone().requires_grad_()
        ts = [interval[0], 0.7 * interval[0] + 0.3 * interval[1], interval[1]]
        solution = odenet.solve(
            F, leaf, interval, solver=solver, backend=backend, gradient=gradient, ts=ts, **numerics(steps)
        )
        solution.ys.square().sum().backward()
        assert solution.times[-1] == interval[1]
        assert F.calls and min(F.times) >= low and max(F.times) <= high
        tableau = getattr(solvers[solver] if backend == "native" else None, "tableau", None)
        assert F.times[0] == interval[0] or (steps and tableau is not None and tableau.c[0] > 0)
        assert leaf.grad is not None and leaf.grad.abs().min() > 0


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.5, -1.1)], ids=str)
@pytest.mark.parametrize(("backend", "solver", "steps"), WALKS)
def test_a_layer_sees_only_its_own_piece_of_depth(backend, solver, steps, interval, pairs):
    (t0, t1), n = interval, 3
    for gradient in gradients_for(solver, backend):
        layers = [Counted(Turn(rate)) for rate in (1.0, -2.0, 3.0)]
        leaf = pairs.clone().requires_grad_()
        solution = odenet.solve(
            PiecewiseConstant(layers), leaf, interval, solver=solver, backend=backend, gradient=gradient,
            ts=[t0, t0 + 0.5 * (t1 - t0), t1], **numerics(steps),
        )  # fmt: skip
        solution.ys.sum().backward()
        for i, layer in enumerate(layers):
            ends = sorted((t0 + (t1 - t0) * (i / n), t0 + (t1 - t0) * ((i + 1) / n) if i < n - 1 else t1))
            assert layer.calls
            assert ends[0] <= min(layer.times) and max(layer.times) <= ends[1], (gradient, i)
        if solver != "scipy_solver":
            reached = [t0]
            for h in solution.stats.h:
                reached.append(reached[-1] + math.copysign(h, t1 - t0))
            for knot in (1 / 3, 2 / 3, 1.0):
                assert min(abs(t - (t0 + knot * (t1 - t0))) for t in reached) < 1e-12


@pytest.mark.parametrize("rate", [1.0, 40.0])
@pytest.mark.parametrize(("backend", "solver", "steps"), WALKS)
def test_reported_counts_are_what_happened(backend, solver, steps, rate, pairs):
    if steps and backend == "native" and isinstance(solvers[solver], ImplicitRungeKutta):
        rate = min(rate, 4.0)  # h ∂F/∂x of six steps stays below 1, so that their equations have one solution
    how = numerics(steps, 1e-3)
    for gradient in gradients_for(solver, backend):
        F = Counted(Turn(rate))
        leaf = pairs.clone().requires_grad_()
        solution = odenet.solve(
            F, leaf, (0.0, 1.3), solver=solver, backend=backend, gradient=gradient, ts=[0.4, 1.3], **how
        )
        stats, forward = solution.stats, F.calls
        assert stats.nfe == forward > 0
        assert stats.nfe_backward == stats.vjps == 0
        if solver != "scipy_solver":
            assert stats.accepted == len(stats.h) > 0
            assert sum(stats.h) == pytest.approx(1.3, rel=1e-12)
            if steps:
                assert stats.accepted == steps and stats.rejected == 0
                assert stats.h == pytest.approx([1.3 / steps] * steps)
        solution.ys.sum().backward()
        assert solution.stats.nfe_backward == F.calls - forward
        assert solution.stats.nfe == forward
        if gradient == "autograd":
            assert stats.nfe_backward == 0
        else:
            assert 0 < stats.vjps <= stats.nfe_backward


@pytest.mark.parametrize(
    ("backend", "solver", "steps"), [w for w in WITH_STEPS if w.values[2] is None and w.values[0] != "scipy"]
)
def test_rejected_steps_are_counted_and_leave_no_trace_in_the_graph(backend, solver, steps, x):
    def kink(t, x):
        return 60 * torch.cos(40 * t) * torch.sigmoid(60 * (t - 0.5)) - torch.sin(x)

    F = Counted(kink)
    solution = odenet.solve(F, x.clone().requires_grad_(), solver=solver, backend=backend, rtol=1e-4, atol=1e-4)
    rejected, tries = solution.stats.rejected, solution.stats.accepted + solution.stats.rejected
    assert rejected > 0
    if backend != "native":
        return
    assert count_nodes(solution.last, "SinBackward0") <= F.calls - rejected
    tableau = getattr(solvers[solver], "tableau", None)
    if isinstance(tableau, Tableau):  # without FSAL, F(t, x) is kept when a step is rejected
        each = tableau.stages - 1 if tableau.fsal else tableau.stages
        assert F.calls == (2 + each * tries if tableau.fsal else 1 + each * tries - rejected)


def count_nodes(x, name):
    """How many nodes of the graph behind x have this name."""
    seen, left = set(), [x.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [behind for behind, _ in node.next_functions]
    return sum(node.name() == name for node in seen)


@pytest.mark.parametrize(("solver", "cost"), [("euler", 1), ("midpoint", 2), ("heun2", 2), ("rk4", 4), ("dopri5", 6)])
def test_a_fixed_step_costs_its_stages(solver, cost, x):
    assert odenet.solve(PROBLEMS[0].F, x, solver=solver, steps=7).stats.nfe == 7 * cost


@pytest.mark.parametrize("solver", solvers)
def test_the_slope_at_the_end_of_a_step_that_dense_output_needed_starts_the_next_step(solver, pairs):
    plain = odenet.solve(Turn(), pairs, solver=solver, steps=7).stats.nfe
    dense = odenet.solve(Turn(), pairs, solver=solver, steps=7, dense=True)
    tableau = getattr(solvers[solver], "tableau", None)
    inside = tableau is not None and tableau.dense is None and not {0.0, 1.0} & set(tableau.c)  # no stage at the ends
    more = 8 if solvers[solver].partitioned or inside else 1  # evaluations for a pair (q, p) give one half of it
    more += 7 * len(getattr(tableau, "dense_c", ()))  # further stages, once a step
    assert plain <= dense.stats.nfe <= plain + more
    dense(0.37)
    assert dense.stats.nfe <= plain + more


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.floats(-50, 50), st.floats(-50, 50))
def test_a_fixed_grid_is_uniform_ends_exactly_and_never_leaves_the_interval(steps, t0, t1):
    F = Counted(lambda t, x: torch.zeros_like(x))
    solution = odenet.solve(F, torch.zeros(1, dtype=torch.float64), (t0, t1), solver="heun2", steps=steps)
    assert float(solution.last) == 0
    if t0 == t1:
        assert F.calls == 0
        return
    assert F.calls == 2 * steps == 2 * solution.stats.accepted
    assert F.times[0] == t0 and F.times[-1] == t1
    assert all(min(t0, t1) <= t <= max(t0, t1) for t in F.times)
    assert all((b - a) * (t1 - t0) >= 0 for a, b in pairwise([*F.times, t1]))
    assert max(solution.stats.h) == pytest.approx(abs(t1 - t0) / steps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("steps", [4, None])
def test_every_dtype_of_state_keeps_its_dtype_and_rotates_as_exp_i_omega_t(dtype, steps):
    omega = 1.3j if dtype.is_complex else -1.3
    x0 = torch.tensor([[1.0, -2.0]], dtype=dtype, requires_grad=True)
    seen = []

    def F(t, x):
        seen.append(t)
        return omega * x

    for gradient in ("autograd", "checkpoint"):
        scheme = {"steps": 40} if steps else {"rtol": 1e-6, "atol": 1e-6}
        last = odenet.solve(F, x0, gradient=gradient, **scheme).last
        assert last.dtype == dtype
        torch.testing.assert_close(last, x0 * torch.exp(torch.tensor(omega)).to(dtype), rtol=1e-5, atol=1e-5)
        (grad,) = torch.autograd.grad(last.abs().sum(), x0)
        assert grad.dtype == dtype
    assert all(t.dtype == dtype.to_real() and t.dim() == 0 for t in seen)


@pytest.mark.parametrize("gradient", gradients_for("dopri5"))
@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (), (5,), (2, 3, 4, 5)], ids=str)
def test_any_shape_of_state(gradient, shape):
    x0 = torch.full(shape, 2.0, dtype=torch.float64, requires_grad=True)
    solution = odenet.solve(lambda t, x: -x, x0, gradient=gradient, rtol=1e-8, atol=1e-8, ts=[0.0, 0.5, 1.0])
    truth = torch.stack([x0.detach() * math.exp(-t) for t in (0.0, 0.5, 1.0)])
    torch.testing.assert_close(solution.ys.detach(), truth, rtol=1e-6, atol=1e-6)
    solution.ys.sum().backward()
    expected = torch.full(shape, 1 + math.exp(-0.5) + math.exp(-1), dtype=torch.float64)
    torch.testing.assert_close(x0.grad, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gradient", gradients_for("dopri5"))
@pytest.mark.parametrize("steps", [3, None])
def test_an_interval_of_length_zero_is_the_identity(gradient, steps):
    w = nn.Linear(2, 2).double()
    x0 = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    solution = odenet.solve(
        lambda t, x: w(x), x0, (0.7, 0.7), solver="rk4" if steps else "dopri5", steps=steps, gradient=gradient,
        ts=[0.7, 0.7],
    )  # fmt: skip
    assert torch.equal(solution.ys[0], x0) and torch.equal(solution.ys[1], x0)
    assert solution.stats.accepted == 0
    solution.ys.sum().backward()
    assert torch.equal(x0.grad, torch.full_like(x0, 2.0))
    assert w.weight.grad is None


@pytest.mark.parametrize("steps", [5, None])
def test_there_and_back_again(steps, x):
    there = odenet.solve(PROBLEMS[0].F, x, (0, 1), solver="dopri5", steps=40).last
    back = odenet.solve(PROBLEMS[0].F, there, (1, 0), solver="dopri5", steps=40).last
    torch.testing.assert_close(back, x, rtol=1e-8, atol=1e-8)


def test_outputs_at_float32_times_may_end_at_an_end_that_float32_cannot_hold(x):
    ts = torch.linspace(0, 0.3, 4)
    assert float(ts[-1]) > 0.3
    solution = odenet.solve(PROBLEMS[0].F, x, (0, 0.3), ts=ts)
    assert solution.times[-1] == 0.3
    assert torch.equal(solution.last, odenet.solve(PROBLEMS[0].F, x, (0, 0.3)).last)


def test_a_dense_solution_answers_from_t0_to_t1_only(x):
    solution = odenet.solve(PROBLEMS[0].F, x, (0, 1), rtol=1e-8, atol=1e-8, dense=True)
    assert torch.equal(solution(0.0), x)
    torch.testing.assert_close(solution(1.0), solution.last, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(solution(torch.tensor(0.25)), solution(0.25))
    for t in (-0.1, 1.1, float("nan"), "middle"):
        with pytest.raises(odenet.errors.InputError, match=r"t must"):
            solution(t)
    with pytest.raises(odenet.errors.InputError, match="dense=True"):
        odenet.solve(PROBLEMS[0].F, x)(0.5)
    assert torch.equal(odenet.solve(PROBLEMS[0].F, x, (1, 1), dense=True)(1.0), x)


@pytest.mark.gpu
@pytest.mark.parametrize("gradient", ["autograd", "checkpoint"])
def test_a_solve_of_fixed_steps_never_waits_for_the_gpu(gradient):
    F = odenet.residual.MLP(3, width=16, norm="none").cuda()
    x = torch.randn(8, 3, device="cuda", requires_grad=True)
    scheme = {"solver": "rk4", "steps": 6, "gradient": gradient, "compile": False}
    odenet.solve(F, x, **scheme).last.sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        odenet.solve(F, x, **scheme).last.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")

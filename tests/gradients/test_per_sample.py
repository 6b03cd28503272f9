"""Gradients where every sample had its own steps, against each sample alone on its own grid."""

import pytest
import torch
from torch import nn

import odenet
from odenet.depth import PiecewiseConstant
from odenet.gradients import gradients
from odenet.solvers import solvers
from odenet.solvers.implicit import ImplicitRungeKutta
from tests.oracles.families import marks

ABLE_METHODS = [name for name, method in gradients.items() if hasattr(method, "solve_samples")]
METHODS = [name for name in ABLE_METHODS if gradients[name].exact]
ABLE = [  # the implicit ones have tests of their own
    name for name, s in solvers.items() if s.per_sample and s.adaptive and not isinstance(s, ImplicitRungeKutta)
]
HOW = {"rtol": 1e-4, "atol": 1e-4}
T1 = torch.tensor([1.0, 0.4, -0.7, 0.0, 1.3], dtype=torch.float64)


class Layer(nn.Module):
    """F with parameters, time, and an argument that belongs to the samples."""

    def __init__(self):
        super().__init__()
        self.inner = odenet.residual.MLP(2, width=6, layers=1, time="concat", norm="none")
        self.double()

    def forward(self, t, x, drive, shared):
        return 2 * self.inner(t, x) + torch.tanh(drive["a"] * x) * shared


def make(pieces=1):
    torch.manual_seed(3)
    weights = PiecewiseConstant([Layer() for _ in range(pieces)]) if pieces > 1 else Layer()
    x0 = torch.randn(5, 2, dtype=torch.float64) * torch.tensor([[0.1], [3.0], [1.0], [1.0], [6.0]]).double()
    drive = torch.randn(5, 2, dtype=torch.float64) * 3
    leaves = [x0, drive, torch.tensor(0.7, dtype=torch.float64)]
    return weights, [leaf.requires_grad_() for leaf in leaves]


def loss(ys):
    """Weighs every output of every sample differently."""
    numbers = torch.arange(1, ys.shape[0] * 5 * 2 + 1, dtype=torch.float64).sin().reshape(ys.shape[0], 5, 2)
    return (ys * numbers).sum(0)


def alone(solver, pieces, ts, sample):
    """Gradients of one sample's part of the loss, walked in a batch of its own."""
    F, (x0, drive, shared) = make(pieces)
    rows = slice(sample, sample + 1)
    times = {} if ts is None else {"ts": (ts * T1)[:, sample].tolist()}
    solution = odenet.solve(
        F, x0[rows], (0.0, float(T1[sample])), solver=solver, args=({"a": drive[rows]}, shared), **HOW, **times
    )
    ys = torch.zeros(solution.ys.shape[0], 5, 2, dtype=torch.float64)
    ys = ys.index_copy(1, torch.tensor([sample]), solution.ys)
    loss(ys)[sample].sum().backward()
    return [p.grad if p.grad is not None else torch.zeros_like(p) for p in (x0, drive, shared, *F.parameters())]


@pytest.mark.parametrize("gradient", METHODS)
@pytest.mark.parametrize(
    ("solver", "pieces", "inside"),
    [
        *(pytest.param(name, 1, True, marks=marks(name)) for name in ABLE),
        ("dopri5", 1, False),
        ("dopri5", 3, True),
        ("reversible_heun", 3, True),
    ],
)
def test_the_gradient_is_the_sum_of_those_of_each_sample_alone(gradient, solver, pieces, inside):
    if solver not in gradients[gradient].solvers():
        pytest.skip(f"{gradient} is not defined for {solver}")
    F, (x0, drive, shared) = make(pieces)
    ts = torch.tensor([0.0, 0.21, 0.22, 0.8, 1.0], dtype=torch.float64)[:, None] if inside else None
    solution = odenet.solve(
        F, x0, (0.0, T1), solver=solver, args=({"a": drive}, shared), gradient=gradient, per_sample=True,
        per_sample_args=(0,), ts=None if ts is None else ts * T1, **HOW,
    )  # fmt: skip
    forward = solution.stats.samples.nfe.clone()
    loss(solution.ys).sum().backward()
    parts = [alone(solver, pieces, ts, sample) for sample in range(5)]
    for found, *each in zip((x0, drive, shared, *F.parameters()), *parts, strict=True):
        assert found.grad is not None
        torch.testing.assert_close(found.grad, torch.stack(each).sum(0), rtol=1e-10, atol=1e-10)
    backward = solution.stats.samples.nfe_backward
    assert torch.equal(solution.stats.samples.nfe, forward)
    if gradient == "stagewise":  # two evaluations a stage; outputs inside a step some more
        assert 0 < solution.stats.vjps <= solution.stats.nfe_backward and int(backward[3]) == 0
        assert (backward <= 2 * forward + 20 * len(solution.ys)).all()
    elif gradient == "checkpoint":  # the accepted stages again: rejected steps and done samples cost nothing
        assert 0 < solution.stats.vjps <= solution.stats.nfe_backward
        assert (backward <= forward + 3 * pieces).all() and int(backward[3]) == 0
    else:
        assert int(backward.sum()) == 0


@pytest.mark.parametrize("gradient", ABLE_METHODS)
def test_gradients_of_states_at_events_and_of_their_times(gradient):
    """x' = -k x reaches 1/2 at t* = log(2 x0) / k, each sample at its own time."""
    k = torch.tensor([[1.0], [3.0], [2.0], [0.1]], dtype=torch.float64, requires_grad=True)
    x0 = torch.tensor([[1.0], [2.0], [4.0], [1.0]], dtype=torch.float64, requires_grad=True)
    solution = odenet.solve(
        lambda t, x, k: -k * x, x0, (0.0, 2.0), args=(k,), event=lambda t, x, k: x[:, 0] - 0.5, gradient=gradient,
        per_sample=True, per_sample_args=(0,), rtol=1e-10, atol=1e-10,
    )  # fmt: skip
    (event,) = solution.events
    assert solution.status == ["event"] * 3 + ["success"] and event.samples.tolist() != []
    truth = torch.log(2 * x0[:3, 0]) / k[:3, 0]
    torch.testing.assert_close(event.ts.detach(), truth.detach()[event.samples], rtol=1e-8, atol=1e-8)
    found = torch.autograd.grad((event.ts * (event.samples + 1)).sum(), (x0, k), retain_graph=True)
    wanted = torch.autograd.grad((truth * torch.arange(1, 4)).sum(), (x0, k))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)
    (still,) = torch.autograd.grad(event.ys.sum(), x0, retain_graph=True)
    torch.testing.assert_close(still, torch.zeros_like(x0), rtol=0, atol=1e-7)  # the state at the event is always 1/2
    last = torch.autograd.grad(solution.last[3].sum(), x0)[0]
    torch.testing.assert_close(last[3, 0], torch.exp(-2 * k[3, 0]).detach(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("gradient", ABLE_METHODS)
def test_a_sample_that_broke_down_leaves_the_gradients_of_the_others_finite_and_right(gradient):
    """x' = a sqrt(1 - x): NaN beyond 1, where the second sample goes."""
    a = torch.tensor([[0.3], [4.0], [0.5]], dtype=torch.float64, requires_grad=True)
    x0 = torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64, requires_grad=True)
    F = lambda t, x, a: a * torch.sqrt(1 - x) + torch.where(x > 0.9, torch.nan, 0.0)  # noqa: E731
    how = {"rtol": 1e-8, "atol": 1e-8, "per_sample": True, "per_sample_args": (0,), "gradient": gradient}
    solution = odenet.solve(F, x0, (0.0, 1.0), args=(a,), on_failure="status", **how)
    assert solution.status == ["success", "nonfinite_function", "success"]
    good = torch.tensor([0, 2])
    solution.last[good].sum().backward()
    exact = 1 - (torch.sqrt(1 - x0) - a / 2) ** 2  # while the root stays positive
    wanted = torch.autograd.grad(exact[good].sum(), (a, x0))
    for leaf, grad in zip((a, x0), wanted, strict=True):
        torch.testing.assert_close(leaf.grad[good], grad[good], rtol=1e-6, atol=1e-6)
        assert float(leaf.grad[1].abs()) == 0


@pytest.mark.parametrize("gradient", METHODS)
def test_second_derivatives(gradient):
    w = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    x0 = torch.tensor([[0.3], [1.1], [2.0]], dtype=torch.float64, requires_grad=True)
    t1 = torch.tensor([0.5, 1.0, 0.2], dtype=torch.float64)
    solution = odenet.solve(
        lambda t, x: -w * w * x, x0, (0.0, t1), ts=torch.stack([0 * t1, t1 / 3, t1]), gradient=gradient,
        per_sample=True, rtol=1e-10, atol=1e-10,
    )  # fmt: skip
    (first,) = torch.autograd.grad(solution.ys.sum(), w, create_graph=True)
    second = torch.autograd.grad(first, (w, x0))
    times = torch.stack([0 * t1, t1 / 3, t1])[:, :, None]
    (truth,) = torch.autograd.grad((x0 * torch.exp(-w * w * times)).sum(), w, create_graph=True)
    for ours, theirs in zip(second, torch.autograd.grad(truth, (w, x0)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_block_trains_and_keeps_no_graph_of_the_forward_pass():
    F = odenet.residual.MLP(3, width=8)
    block = odenet.ODEBlock(F, per_sample=True, rtol=1e-5, atol=1e-5)
    x = torch.randn(6, 3)
    y = block(x)
    assert y.grad_fn is not None
    y.square().sum().backward()
    other = odenet.ODEBlock(F, per_sample=True, rtol=1e-5, atol=1e-5, gradient="autograd")
    ours = [p.grad.clone() for p in F.parameters()]
    F.zero_grad()
    other(x).square().sum().backward()
    for one, two in zip(ours, F.parameters(), strict=True):
        torch.testing.assert_close(one, two.grad, rtol=1e-4, atol=1e-5)
    assert block.stats.nfe_backward > 0 and len(block.stats.samples) == 6
    with pytest.raises(odenet.errors.InputError, match="dense=True"):
        block.solution(x, dense=True)


@pytest.mark.parametrize("gradient", ABLE_METHODS)
def test_times_of_each_sample_have_the_gradients_that_they_have_alone(gradient):
    """t0, t1 and every output time: against each sample in a solve of its own, and against the closed form."""
    k = torch.tensor([[1.0], [-3.0], [2.0]], dtype=torch.float64)
    x0 = torch.tensor([[1.0, 2.0], [2.0, 0.5], [4.0, 1.0]], dtype=torch.float64)
    times = lambda *values: torch.tensor(values, dtype=torch.float64, requires_grad=True)  # noqa: E731
    t0, t1 = times(0.0, 0.5, 0.2), times(1.0, -0.5, 0.9)
    ts = torch.stack([t0 + 0.3 * (t1 - t0), t1]).detach().requires_grad_()
    F = lambda t, x, k: -k * x + torch.sin(t).reshape(-1, 1)  # noqa: E731
    how = {"rtol": 1e-9, "atol": 1e-9, "gradient": gradient}
    own = {"args": (k,), "per_sample": True, "per_sample_args": (0,), **how}
    ends = odenet.solve(F, x0, (t0, t1), **own).last
    found = torch.autograd.grad((ends * torch.tensor([1.0, 2.0]).double()).sum(), [t0, t1])
    ys = odenet.solve(F, x0, (t0.detach(), t1.detach()), ts=ts, **own).ys
    (by_ts,) = torch.autograd.grad((ys * torch.tensor([1.0, 2.0]).double()).sum(), ts)
    for i in range(3):
        a, b, c = (t.detach()[..., i].clone().requires_grad_() for t in (t0, t1, ts))
        alone = lambda t, x, i=i: -k[i] * x + torch.sin(t)  # noqa: E731
        last = odenet.solve(alone, x0[i : i + 1], (a, b), **how).last
        wanted = torch.autograd.grad((last * torch.tensor([1.0, 2.0]).double()).sum(), [a, b])
        torch.testing.assert_close(torch.stack([g[i] for g in found]), torch.stack(wanted), rtol=1e-7, atol=1e-7)
        outputs = odenet.solve(alone, x0[i : i + 1], (a.item(), b.item()), ts=c, **how).ys
        (wanted,) = torch.autograd.grad((outputs * torch.tensor([1.0, 2.0]).double()).sum(), c)
        torch.testing.assert_close(by_ts[:, i], wanted, rtol=1e-7, atol=1e-7)
    shared = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)  # one time for all: the sum
    plain = odenet.solve(lambda t, x: -x, x0, (0.0, shared), per_sample=True, **how).last
    (got,) = torch.autograd.grad(plain.sum(), shared)
    torch.testing.assert_close(got, -(x0 * torch.exp(-shared.detach())).sum(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("inside", [False, True])
def test_the_adjoint_walks_each_sample_back_by_itself_and_converges_to_the_exact_gradient(pieces, inside):
    ts = torch.tensor([0.0, 0.21, 0.22, 0.8, 1.0], dtype=torch.float64)[:, None] * T1 if inside else None
    own = {"per_sample": True, "per_sample_args": (0,), "ts": ts}

    def gradients_of(gradient, tolerance, rows=slice(None), **more):
        F, (x0, drive, shared) = make(pieces)
        times = {} if ts is None else {"ts": ts[:, rows]}
        solution = odenet.solve(
            F, x0[rows], (0.0, T1[rows]), args=({"a": drive[rows]}, shared), gradient=gradient, rtol=tolerance,
            atol=tolerance, **own | times, **more,
        )  # fmt: skip
        ys = torch.zeros(len(solution.ys), 5, 2, dtype=torch.float64)
        ys[:, rows] = solution.ys
        loss(ys)[rows].sum().backward()
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in (x0, drive, shared, *F.parameters())]
        return found, solution.stats

    exact, _ = gradients_of("checkpoint", 1e-10)
    errors = []
    for tolerance in (1e-4, 1e-6, 1e-8):
        found, stats = gradients_of("adjoint", tolerance)
        errors.append(max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, exact, strict=True)))
    assert errors[2] < 1e-6 and errors[2] < errors[1] / 5 < errors[0] / 25
    backward = stats.samples.nfe_backward
    assert int(backward[3]) == 0 and len(set(backward.tolist())) > 2 and stats.steps_backward > 0
    parts = []
    for i in range(5):
        mine, alone = gradients_of("adjoint", 1e-8, slice(i, i + 1))
        assert int(alone.samples.nfe_backward[0]) == int(backward[i])  # what it costs alone
        parts.append(mine)
    for whole, *each in zip(found, *parts, strict=True):
        torch.testing.assert_close(whole, torch.stack(each).sum(0), rtol=1e-9, atol=1e-9)


def test_the_adjoint_of_given_steps_walks_back_over_them_and_says_what_it_cannot():
    """h -> 0: the error falls like h^4 with rk4, each sample on its own interval."""
    k = torch.tensor([[1.0], [-0.7], [2.0]], dtype=torch.float64, requires_grad=True)
    x0 = torch.tensor([[1.0], [2.0], [0.5]], dtype=torch.float64, requires_grad=True)
    t1 = torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64)
    F = lambda t, x, k: -k * torch.sin(x)  # noqa: E731
    how = {"args": (k,), "per_sample": True, "per_sample_args": (0,)}
    exact = torch.autograd.grad(odenet.solve(F, x0, (0.0, t1), rtol=1e-12, atol=1e-12, **how).last.sum(), (k, x0))
    errors = []
    for steps in (10, 20):
        ends = odenet.solve(F, x0, (0.0, t1), solver="rk4", steps=steps, gradient="adjoint", **how).last
        found = torch.autograd.grad(ends.sum(), (k, x0), create_graph=True)
        errors.append(max(float((a - b).abs().max()) for a, b in zip(found, exact, strict=True)))
    assert 12 < errors[0] / errors[1] < 20
    with pytest.raises(odenet.errors.GradientError, match="no second derivatives"):
        torch.autograd.grad(found[0].sum(), x0)
    for options, message in (
        ({"norm": "full"}, "no sample's steps depend on the others"),
        ({"adjoint_solver": "alf"}, "explicit Runge-Kutta"),
        ({"adjoint_options": {"steps": 5}}, "leave steps"),
        ({"adjoint_params": [k]}, "adjoint_params"),
    ):
        with pytest.raises(odenet.errors.InputError, match=message):
            odenet.solve(F, x0, gradient="adjoint", gradient_options=options, **how)

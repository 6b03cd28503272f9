"""Gradients where every sample had its own steps, against each sample alone on its own grid."""

import pytest
import torch
from torch import nn

import odenet
from odenet.depth import PiecewiseConstant
from odenet.gradients import gradients
from odenet.solvers import solvers
from odenet.solvers.implicit import ImplicitRungeKutta
from tests.oracles import backprop
from tests.oracles.families import marks

ABLE_METHODS = [name for name, method in gradients.items() if hasattr(method, "solve_samples")]
METHODS = [name for name in ABLE_METHODS if gradients[name].exact]
ABLE = [  # the implicit ones have tests of their own
    name for name, s in solvers.items() if s.per_sample and s.adaptive and not isinstance(s, ImplicitRungeKutta)
]
HOW = {"rtol": 1e-4, "atol": 1e-4}
SOLVERS = {"mali": "alf", "reversible_heun": "reversible_heun"}
LOOSE = 1e-6
ADAPTIVE = [name for name in ABLE_METHODS if name != "momentum"]  # Euler's steps have no error estimate


def scheme(gradient, tolerance):
    """A solver that the method is defined for, with a tolerance; looser for those of second order."""
    solver = SOLVERS.get(gradient, "dopri5")
    loose = max(tolerance, LOOSE) if gradient in SOLVERS else tolerance
    return {"gradient": gradient, "solver": solver, "rtol": loose, "atol": loose}


STEPS = {"step_size": 0.11}  # each sample takes as many as it needs
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


def alone(gradient, solver, pieces, ts, sample, how=HOW):
    """Gradients of one sample's part of the loss, walked in a batch of its own, by backprop through its steps."""
    F, (x0, drive, shared) = make(pieces)
    rows = slice(sample, sample + 1)
    times = {} if ts is None else {"ts": (ts * T1)[:, sample].tolist()}
    solution = odenet.solve(
        F, x0[rows], (0.0, float(T1[sample])), solver=solver, args=({"a": drive[rows]}, shared), **backprop(gradient),
        **how, **times,
    )  # fmt: skip
    ys = torch.zeros(solution.ys.shape[0], 5, 2, dtype=torch.float64)
    ys = ys.index_copy(1, torch.tensor([sample]), solution.ys)
    loss(ys)[sample].sum().backward()
    return [p.grad if p.grad is not None else torch.zeros_like(p) for p in (x0, drive, shared, *F.parameters())]


def walked(gradient, solver, pieces, ts, how, **options):
    """All samples in one batch: the solution, and the gradients of the whole loss."""
    F, (x0, drive, shared) = make(pieces)
    solution = odenet.solve(
        F, x0, (0.0, T1), solver=solver, args=({"a": drive}, shared), gradient=gradient, gradient_options=options,
        per_sample=True, per_sample_args=(0,), ts=None if ts is None else ts * T1, **how,
    )  # fmt: skip
    loss(solution.ys).sum().backward()
    return solution, [leaf.grad for leaf in (x0, drive, shared, *F.parameters())]


CASES = [
    *((name, HOW, 1, True) for name in ABLE),
    ("dopri5", HOW, 1, False),
    ("dopri5", HOW, 3, True),
    ("alf", HOW, 3, True),
    ("reversible_heun", HOW, 3, True),
    ("reversible_heun", HOW, 3, False),
    ("euler", STEPS, 1, True),
    ("euler", STEPS, 3, True),
    ("rk4", STEPS, 3, True),
    ("alf", STEPS, 3, True),
]


@pytest.mark.parametrize(
    ("gradient", "solver", "how", "pieces", "inside"),
    [
        pytest.param(gradient, solver, *case, marks=marks(solver))
        for gradient in METHODS
        for solver, *case in CASES
        if solver in gradients[gradient].solvers() and (gradient != "momentum" or case[0] is STEPS)
    ],
)
def test_the_gradient_is_the_sum_of_those_of_each_sample_alone(gradient, solver, how, pieces, inside):
    ts = torch.tensor([0.0, 0.21, 0.22, 0.8, 1.0], dtype=torch.float64)[:, None] if inside else None
    solution, found = walked(gradient, solver, pieces, ts, how, **({"limit": 999} if gradient == "forward" else {}))
    stats, each = solution.stats, solution.stats.samples
    parts = [alone(gradient, solver, pieces, ts, sample, how) for sample in range(5)]
    for grad, *others in zip(found, *parts, strict=True):
        assert grad is not None
        torch.testing.assert_close(grad, torch.stack(others).sum(0), rtol=1e-10, atol=1e-10)
    assert (each.nfe[T1 != 0] > 0).all() and int(each.nfe[3]) == int(each.nfe_backward[3]) == 0
    forward, backward, steps = each.nfe, each.nfe_backward, each.accepted
    if gradient == "autograd":
        assert int(backward.sum()) == 0
        return
    assert 0 < stats.steps_backward <= max(steps.sum(), 1)
    if gradient in ("mali", "reversible_heun"):  # one a step and one a piece, and for each step with outputs inside one
        pieces_walked = pieces * (T1 != 0)
        assert (steps + pieces_walked <= backward).all() and (backward <= steps + pieces_walked + 3).all()
        assert stats.drift < 1e-13
    elif gradient == "stagewise":  # two evaluations a stage; outputs inside a step some more
        assert (backward <= 2 * forward + 20 * len(solution.ys)).all()
    elif gradient in ("checkpoint", "momentum", "forward"):  # the accepted stages again: nothing for rejected steps
        assert (backward <= forward + 3 * pieces + 3).all()


@pytest.mark.parametrize(("gradient", "solver"), [("mali", "alf"), ("reversible_heun", "reversible_heun"),
                                                  ("reversible", "bosh3"), ("momentum", "euler"), ("forward", "alf"),
                                                  ("checkpoint", "dopri5"), ("stagewise", "tsit5")])  # fmt: skip
def test_what_the_way_back_costs_a_sample_does_not_depend_on_its_batch(gradient, solver):
    how = STEPS if solver == "euler" else HOW
    F, (x0, drive, shared) = make()
    ts = torch.tensor([0.21, 0.8, 1.0], dtype=torch.float64)[:, None] * T1

    def counts(rows):
        solution = odenet.solve(
            F, x0[rows], (0.0, T1[rows]), solver=solver, args=({"a": drive[rows]}, shared), gradient=gradient,
            per_sample=True, per_sample_args=(0,), ts=ts[:, rows], **how,
        )  # fmt: skip
        ys = solution.ys.sum() + 0 * (x0.sum() + drive.sum())
        first = torch.autograd.grad(ys, [x0, drive])
        each = solution.stats.samples
        return torch.stack([each.nfe, each.nfe_backward, each.accepted, each.rejected]), [g[rows] for g in first]

    whole, grads = counts(slice(None))
    for i in range(5):
        mine, alone = counts(slice(i, i + 1))
        assert torch.equal(whole[:, i : i + 1], mine)
        for a, b in zip(grads, alone, strict=True):
            torch.testing.assert_close(a[i : i + 1], b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("gradient", "solver"), [("checkpoint", "dopri5"), ("checkpoint", "alf"), ("stagewise", "tsit5")]
)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_few_states_are_enough(gradient, solver, count):
    how = HOW if solver == "alf" else {"rtol": 1e-7, "atol": 1e-7}
    ts = torch.tensor([0.3, 1.0], dtype=torch.float64)[:, None]
    few, found = walked(gradient, solver, 3, ts, how, checkpoints=count)
    all_, wanted = walked(gradient, solver, 3, ts, how)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert few.stats.steps_backward > 1.3 * all_.stats.steps_backward
    assert few.stats.nfe_backward > all_.stats.nfe_backward


def test_the_exact_form_of_momentum_undoes_the_steps_of_each_sample_to_the_last_bit():
    """γ = 0.5 loses a bit of v a step; 900 steps would magnify rounding by 2^900, and samples end at different ones."""
    T = torch.tensor([900.0, 150.0, 420.0, -77.0], dtype=torch.float64)
    x0 = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    k = torch.tensor([[0.1], [0.02], [0.3], [0.05]], dtype=torch.float64, requires_grad=True)
    F = lambda t, x, k: torch.sin(x) * k * 0.01  # noqa: E731

    def gradient(**options):
        solution = odenet.solve(
            F, x0, (0.0, T), solver="euler", step_size=1.0, gradient="momentum", args=(k,), per_sample=True,
            per_sample_args=(0,), gradient_options={"gamma": 0.5, "exact": True, **options},
        )  # fmt: skip
        return torch.autograd.grad(solution.last.square().sum(), (x0, k)), solution

    (found, solution), (wanted, _) = gradient(), gradient(backward="autograd")
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert solution.stats.samples.accepted.tolist() == [900, 150, 420, 77]
    assert solution.stats.drift < 1e-12  # x0 itself is rounded to fixed point


@pytest.mark.parametrize(("gradient", "solver"), [("mali", "alf"), ("reversible_heun", "reversible_heun"),
                                                  ("reversible", "midpoint"), ("momentum", "euler")])  # fmt: skip
def test_the_worst_sample_is_named_when_rounding_has_spoilt_the_way_back(gradient, solver):
    rate = torch.tensor([[0.5], [-300.0], [0.1]], requires_grad=True)  # carries one far away, to where digits are few
    x0 = torch.linspace(0.1, 1.3, 6).reshape(3, 2).requires_grad_()

    def backward(gradient, **options):
        ends = odenet.solve(
            lambda t, x, k: torch.sin(x.flip(1)) + k, x0, (0, 2), solver=solver, gradient=gradient, steps=400,
            gradient_options=options, args=(rate,), per_sample=True, per_sample_args=(0,),
        )  # fmt: skip
        return torch.autograd.grad(ends.last.sum(), (x0, rate)), ends.stats

    with pytest.warns(UserWarning, match="undid the steps of sample 1 down to a relative error of .* above max_drift"):
        _, stats = backward(gradient, max_drift=1e-12)
    assert stats.drift > 1e-12
    with pytest.raises(odenet.errors.GradientError, match="undid the steps of sample 1"):
        backward(gradient, max_drift=1e-12, on_drift="raise")
    with pytest.warns(UserWarning, match="computed again from stored states"):
        found, _ = backward(gradient, max_drift=1e-12, on_drift="recompute")
    way = backprop(gradient)
    wanted, _ = backward(way["gradient"], **way.get("gradient_options", {}))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gradient", ADAPTIVE)
def test_gradients_of_states_at_events_and_of_their_times(gradient):
    """x' = -k x reaches 1/2 at t* = log(2 x0) / k, each sample at its own time."""
    k = torch.tensor([[1.0], [3.0], [2.0], [0.1]], dtype=torch.float64, requires_grad=True)
    x0 = torch.tensor([[1.0], [2.0], [4.0], [1.0]], dtype=torch.float64, requires_grad=True)
    solution = odenet.solve(
        lambda t, x, k: -k * x, x0, (0.0, 2.0), args=(k,), event=lambda t, x, k: x[:, 0] - 0.5, per_sample=True,
        per_sample_args=(0,), **scheme(gradient, 1e-10),
    )  # fmt: skip
    (event,) = solution.events
    assert solution.status == ["event"] * 3 + ["success"] and event.samples.tolist() != []
    truth, near = torch.log(2 * x0[:3, 0]) / k[:3, 0], 1e-5 if gradient in SOLVERS else 1e-7
    torch.testing.assert_close(event.ts.detach(), truth.detach()[event.samples], rtol=near, atol=near)
    found = torch.autograd.grad((event.ts * (event.samples + 1)).sum(), (x0, k), retain_graph=True)
    wanted = torch.autograd.grad((truth * torch.arange(1, 4)).sum(), (x0, k))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=near, atol=near)
    (still,) = torch.autograd.grad(event.ys.sum(), x0, retain_graph=True)
    torch.testing.assert_close(still, torch.zeros_like(x0), rtol=0, atol=near)  # the state at the event is always 1/2
    last = torch.autograd.grad(solution.last[3].sum(), x0)[0]
    torch.testing.assert_close(last[3, 0], torch.exp(-2 * k[3, 0]).detach(), rtol=near, atol=0)


@pytest.mark.parametrize("gradient", ADAPTIVE)
def test_a_sample_that_broke_down_leaves_the_gradients_of_the_others_finite_and_right(gradient):
    """x' = a sqrt(1 - x): NaN beyond 1, where the second sample goes."""
    a = torch.tensor([[0.3], [4.0], [0.5]], dtype=torch.float64, requires_grad=True)
    x0 = torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64, requires_grad=True)
    F = lambda t, x, a: a * torch.sqrt(1 - x) + torch.where(x > 0.9, torch.nan, 0.0)  # noqa: E731
    how = {"per_sample": True, "per_sample_args": (0,), **scheme(gradient, 1e-8)}
    solution = odenet.solve(F, x0, (0.0, 1.0), args=(a,), on_failure="status", **how)
    assert solution.status == ["success", "nonfinite_function", "success"]
    good = torch.tensor([0, 2])
    solution.last[good].sum().backward()
    exact = 1 - (torch.sqrt(1 - x0) - a / 2) ** 2  # while the root stays positive
    wanted = torch.autograd.grad(exact[good].sum(), (a, x0))
    for leaf, grad in zip((a, x0), wanted, strict=True):
        torch.testing.assert_close(leaf.grad[good], grad[good], rtol=1e-6, atol=1e-6)
        assert float(leaf.grad[1].abs()) == 0


@pytest.mark.parametrize("steps", [None, 20])
def test_a_sample_that_gives_nan_costs_the_others_nothing(steps):
    """On the tape the others' steps are taken once more without it, which counts for no sample, and for no budget."""
    a = torch.tensor([[0.3], [4.0], [0.5]], dtype=torch.float64, requires_grad=True)
    x0 = torch.tensor([[0.1], [0.85], [0.3]], dtype=torch.float64)
    F = lambda t, x, a: a * torch.sqrt(1 - x) + torch.where(x > 0.9, torch.nan, 0.0)  # noqa: E731
    how = {"per_sample": True, "per_sample_args": (0,), "gradient": "autograd", "on_failure": "status"}
    how |= {"solver": "rk4", "steps": steps} if steps else {"rtol": 1e-8, "atol": 1e-8}

    def counts(rows):
        each = odenet.solve(F, x0[rows], (0.0, 1.0), args=(a[rows],), **how).stats.samples
        return each.nfe, each.evaluated

    nfe, evaluated = counts(slice(None))
    alone = torch.cat([counts(slice(i, i + 1))[0] for i in range(3)])
    assert torch.equal(nfe, alone) and evaluated > int(nfe.sum())
    with torch.no_grad():
        plain, evaluated = counts(slice(None))
    assert torch.equal(nfe, plain) and evaluated == int(nfe.sum())


@pytest.mark.parametrize("gradient", [name for name in METHODS if name in ADAPTIVE])
def test_second_derivatives(gradient):
    w = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    x0 = torch.tensor([[0.3], [1.1], [2.0]], dtype=torch.float64, requires_grad=True)
    t1 = torch.tensor([0.5, 1.0, 0.2], dtype=torch.float64)
    solution = odenet.solve(
        lambda t, x: -w * w * x, x0, (0.0, t1), ts=torch.stack([0 * t1, t1 / 3, t1]),
        per_sample=True, **scheme(gradient, 1e-10),
    )  # fmt: skip
    (first,) = torch.autograd.grad(solution.ys.sum(), w, create_graph=True)
    second = torch.autograd.grad(first, (w, x0))
    times = torch.stack([0 * t1, t1 / 3, t1])[:, :, None]
    (truth,) = torch.autograd.grad((x0 * torch.exp(-w * w * times)).sum(), w, create_graph=True)
    for ours, theirs in zip(second, torch.autograd.grad(truth, (w, x0)), strict=True):
        near = 1e-4 if gradient in SOLVERS else 1e-6
        torch.testing.assert_close(ours, theirs, rtol=near, atol=near)


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


@pytest.mark.parametrize("gradient", ADAPTIVE)
def test_times_of_each_sample_have_the_gradients_that_they_have_alone(gradient):
    """t0, t1 and every output time: against each sample in a solve of its own, and against the closed form."""
    k = torch.tensor([[1.0], [-3.0], [2.0]], dtype=torch.float64)
    x0 = torch.tensor([[1.0, 2.0], [2.0, 0.5], [4.0, 1.0]], dtype=torch.float64)
    times = lambda *values: torch.tensor(values, dtype=torch.float64, requires_grad=True)  # noqa: E731
    t0, t1 = times(0.0, 0.5, 0.2), times(1.0, -0.5, 0.9)
    ts = torch.stack([t0 + 0.3 * (t1 - t0), t1]).detach().requires_grad_()
    F = lambda t, x, k: -k * x + torch.sin(t).reshape(-1, 1)  # noqa: E731
    how = scheme(gradient, 1e-9)
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
    near = 1e-5 if gradient in SOLVERS else 1e-7
    torch.testing.assert_close(got, -(x0 * torch.exp(-shared.detach())).sum(), rtol=near, atol=0)


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


def test_an_F_that_differentiates_inside_may_have_as_many_samples_as_features():
    """A rotation in a batch of two: whether F treats samples one by one is tried where no gradient is recorded."""
    x0 = torch.tensor([[0.3, -1.1], [0.8, 0.2]], dtype=torch.float64, requires_grad=True)

    def F(t, x):
        with torch.enable_grad():
            z = x if x.requires_grad else x.detach().requires_grad_()
            (dH,) = torch.autograd.grad((z**2).sum() / 2, z, create_graph=True)
        return torch.stack([dH[:, 1], -dH[:, 0]], 1)

    last = odenet.solve(F, x0, (0.0, 2.0), per_sample=True, rtol=1e-9, atol=1e-9).last
    t = torch.tensor(2.0, dtype=torch.float64)
    turn = torch.stack([torch.stack([t.cos(), -t.sin()]), torch.stack([t.sin(), t.cos()])])
    torch.testing.assert_close(last, x0 @ turn, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(
        torch.autograd.grad(last[:, 0].sum(), x0)[0], turn[:, 0].expand(2, 2), rtol=1e-7, atol=1e-7
    )

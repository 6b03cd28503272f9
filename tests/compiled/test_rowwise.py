"""Solves of an F that treats every sample by itself: its C++ gives the eager states, gradients and counts."""

import gc
import sys
import threading
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

import odenet
from odenet import compiled
from odenet.compiled import CompileWarning, record
from odenet.compiled.rowwise import NotRowwiseError, graphs
from odenet.compiled.rowwise.capture import Captured
from odenet.errors import GradientError, ResidualError, SolveError
from odenet.residual import MLP
from odenet.solvers import solvers
from odenet.solvers.explicit import ExplicitRungeKutta
from tests.compiled.test_compiled import Swirl, agree, same_numbers, solved

ADAPTIVE = {"solver": "dopri5", "rtol": 1e-7, "atol": 1e-7}
EXPLICIT = [name for name, stepper in solvers.items() if type(stepper) is ExplicitRungeKutta]


@pytest.fixture(autouse=True)
def rowwise_alone(monkeypatch):
    """No other way to compile."""

    def none(problem):
        raise AssertionError("not row by row")

    monkeypatch.setattr(compiled, "_whole", none)


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(5, 3, dtype=torch.float64)


class Written(nn.Module):
    """A right-hand side by coordinates, as dynamical systems are written."""

    def __init__(self):
        super().__init__()
        self.s = nn.Parameter(torch.tensor([10.0, 28.0, 8 / 3], dtype=torch.float64))

    def forward(self, t, x):
        s, r, b = self.s
        a, c, d = x.unbind(-1)
        return torch.stack([s * (c - a), a * (r - d) - c, a * c - b * d], -1)


class Normed(nn.Module):
    """Norms, softmax, branches, slices and broadcasts."""

    def __init__(self):
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(3).double(), nn.Linear(4, 6).double()
        self.scale = nn.Parameter(torch.randn(2, 1, dtype=torch.float64))

    def forward(self, t, x):
        y = torch.cat([self.norm(x), t.expand(len(x), 1)], -1)
        y = (torch.softmax(self.mix(y), -1).view(-1, 2, 3) * self.scale.exp()).sum(1)
        y = torch.where(y > 0.5, y.sin(), nn.functional.silu(y)) + nn.functional.gelu(x).clamp(min=-0.1)
        return y - 0.3 * x.abs().amax(-1, keepdim=True) * torch.relu(x[:, :1]) ** 3 - x.mean(1, keepdim=True)


class Attending(nn.Module):
    """Every sample a few tokens that see each other."""

    def __init__(self):
        super().__init__()
        self.A = nn.Parameter(torch.randn(4, 4, dtype=torch.float64))

    def forward(self, t, x):
        weights = torch.softmax(x @ x.transpose(1, 2), -1)
        return torch.tanh(torch.einsum("bij,bjk->bik", weights, x) * t.cos()) - x + self.A.sum(0)


class Hyper(nn.Module):
    """A time embedding that scales and shifts (FiLM)."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 6)).double()
        self.inner = nn.Linear(3, 3).double()

    def forward(self, t, x):
        scale, shift = self.embed(t.reshape(1, 1)).chunk(2, -1)
        return torch.tanh(self.inner(x) * (1 + scale) + shift) - x


class Driven(nn.Module):
    """Each sample with a rate and a matrix of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.inner = nn.Linear(3, 3).double()

    def forward(self, t, x, rate, drive, shared):
        return torch.tanh(self.inner(x) + shared) * rate - x + t * torch.einsum("bij,bj->bi", drive, x).sin()


class Grouped(nn.Module):
    """Two layers as the library's MLP has them where nothing is said of its norm."""

    def __init__(self):
        super().__init__()
        self.inner = MLP(3, width=8).double()

    def forward(self, t, x):
        return self.inner(t, x)


@pytest.mark.parametrize("F", [Swirl, Written, Normed, Hyper, Attending, Grouped])
def test_states_gradients_and_counts_are_the_eager_ones(F, x):
    torch.manual_seed(1)
    if F is Attending:
        x = torch.randn(5, 3, 4, dtype=torch.float64)
    loose = {"rtol": 1e-4, "atol": 1e-4}
    got = agree(F(), x, within=1e-8, interval=(0.0, 0.6), ts=[0.0, 0.2, 0.31, 0.6], gradient="checkpoint", **loose)
    ends = torch.tensor(got.stats.h).cumsum(0)
    inside = {int((ends < t).sum()) for t in (0.2, 0.31)}  # the steps for whose ends F is needed as well
    assert got.stats.vjps == 6 * got.stats.accepted + len(inside)


@pytest.mark.parametrize("solver", ["euler", "rk4"])
def test_fixed_steps_args_and_outputs(solver, x):
    u = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    agree(Swirl(), x, ts=[0.0, 0.75, 1.5], interval=(0.0, 1.5), args=(u,), solver=solver, steps=6)
    agree(Swirl(), x, ts=[1.5, 0.75, 0.0], interval=(1.5, 0.0), args=(u,), solver=solver, steps=6)


@pytest.mark.parametrize("steps", [6, None])
def test_arguments_with_a_row_for_each_sample_are_inputs_in_lanes(steps, monkeypatch):
    monkeypatch.setattr(record, "FIRST_RECORD", 4)  # so that rows' gradients come from several records
    F = Driven()
    numerics = {"steps": steps, "solver": "rk4"} if steps else {"rtol": 1e-6, "atol": 1e-6}
    for batch in (40, 3, 1):
        given = (torch.randn(batch, 1), torch.randn(batch, 3, 3), torch.randn(3))
        found = []
        for compile in (True, False):
            leaves = [part.double().requires_grad_() for part in (torch.ones(batch, 3).cumsum(1), *given)]
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                solution = odenet.solve(
                    F, leaves[0], args=tuple(leaves[1:]), ts=[0.5, 1.0], compile=compile, **numerics
                )
                loss = (solution.ys * torch.arange(1.0, 1 + solution.ys.numel()).view_as(solution.ys)).cos().sum()
                found.append((solution, torch.autograd.grad(loss, [*leaves, *F.parameters()])))
        (got, gradients), (expected, truth) = found
        torch.testing.assert_close(got.ys, expected.ys, rtol=1e-9, atol=1e-9)
        assert got.stats.accepted == expected.stats.accepted > 4
        for a, b in zip(gradients, truth, strict=True):
            assert float((a - b).abs().max()) <= 1e-8 * float(b.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("steps", [5, None])
@pytest.mark.parametrize("solver", EXPLICIT)
def test_every_explicit_method_is_the_eager_one(solver, steps, x):
    if steps is None and not solvers[solver].adaptive:
        pytest.skip("no error estimate")
    numerics = {"steps": steps} if steps else {"rtol": 1e-4, "atol": 1e-4}
    agree(Written(), x, within=1e-8, interval=(0.0, 0.5), solver=solver, **numerics)


def test_any_batch_is_taken_and_threads_change_nothing(monkeypatch):
    torch.manual_seed(0)
    F, threads = MLP(3, width=16, norm="none", time="concat"), torch.get_num_threads()
    x = torch.randn(300, 3)
    known = odenet.solve(F, x, compile=True).stats.nfe
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            for batch in (1, 2, 9, 33, 300):
                assert agree(F, x[:batch], within=2e-5, counts=("accepted",)).stats.nfe <= known
    finally:
        torch.set_num_threads(threads)


def test_a_record_that_is_full_is_followed_by_another(monkeypatch, x):
    monkeypatch.setattr(record, "FIRST_RECORD", 8)
    got = agree(Swirl(), x, within=1e-9, ts=[0.0, 0.3, 0.31, 1.0, 1.7], **ADAPTIVE)
    assert got.stats.accepted > 16


def test_second_derivatives_are_those_of_eager_steps(x):
    F, found = Swirl(), []
    for compile in (True, False):
        x0 = x.clone().requires_grad_()
        y = odenet.solve(F, x0, compile=compile, **ADAPTIVE).last
        (g,) = torch.autograd.grad(y.sin().sum(), x0, create_graph=True)
        found.append(torch.autograd.grad(g.square().sum(), [x0, F.A]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_changed_F_is_seen(x, dtype):
    F, x, within = Swirl().to(dtype), x.to(dtype), 1e-9 if dtype == torch.float64 else 1e-5
    F.gain = 1.0
    F.forward = lambda t, x: F.gain * torch.tanh(x @ F.A)
    for gain in (1.0, 2.0, 3.0, 1.0):  # a number that changes becomes an input
        F.gain = gain
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("error")
            found = [odenet.solve(F, x, compile=compile, rtol=1e-6, atol=1e-6).last for compile in (True, False)]
        torch.testing.assert_close(*found, rtol=within, atol=within)


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, t, x):
        return self.b(torch.tanh(self.a(x)))


@pytest.mark.parametrize(
    "hook",
    [
        lambda F: F.a.register_forward_hook(lambda module, given, result: 3 * result),
        lambda F: F.b.register_forward_pre_hook(lambda module, given: (given[0] / 2,)),
    ],
    ids=["after", "before"],
)
def test_a_hook_that_comes_and_goes_is_seen(hook, x):
    F = TwoLayers().double()
    agree(F, x)
    handle = hook(F)
    agree(F, x)
    handle.remove()
    agree(F, x)


@pytest.mark.parametrize(
    "hook",
    [
        lambda F: F.a.register_full_backward_hook(lambda module, wanted, given: (5 * wanted[0],)),
        lambda F: register_module_forward_hook(lambda module, given, result: -result if module is F.a else result),
    ],
    ids=["backward", "global"],
)
def test_a_hook_that_no_graph_sees_makes_solves_eager(hook, x):
    F = TwoLayers().double()
    agree(F, x)
    handle = hook(F)
    try:
        with pytest.warns(CompileWarning, match="hook"):
            got = solved(F, x, True)
        same_numbers(*got, *solved(F, x, False), 1e-12)
    finally:
        handle.remove()


def test_layers_that_come_to_share_their_weights_get_the_sum_of_the_gradients(x):
    F = TwoLayers().double()
    agree(F, x)
    F.b.weight = F.a.weight
    agree(F, x)


@pytest.mark.parametrize("per_sample", [False, True])
def test_threads_do_not_get_the_arguments_of_each_other(per_sample, x):
    F = lambda t, x, rate: -rate * x  # noqa: E731
    how = {"compile": True, "per_sample": per_sample, "solver": "rk4", "steps": 4}
    how |= {"per_sample_args": ()} if per_sample else {}
    rates = [torch.tensor([float(n)], dtype=torch.float64) for n in range(4)]
    found, pause = {}, sys.getswitchinterval()

    def work(n):
        with torch.no_grad():
            found[n] = [odenet.solve(F, x, args=(rates[n],), **how).last for _ in range(150)]

    with torch.no_grad():
        expected = [odenet.solve(F, x, args=(rate,), **how).last for rate in rates]
    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(pause)
    assert all(torch.equal(last, expected[n]) for n in range(4) for last in found[n])


@pytest.mark.parametrize("per_sample", [False, True])
def test_nothing_that_a_solve_was_handed_outlives_it(per_sample, x):
    F, rate = TwoLayers().double(), torch.ones(1, dtype=torch.float64)
    odenet.solve(F, x, compile=True, per_sample=per_sample)
    odenet.solve(lambda t, x, rate: -rate * x, x, args=(rate,), compile=True, per_sample=False)
    gone = [weakref.ref(F.a.weight), weakref.ref(rate)]
    del F, rate
    gc.collect()
    assert [ref() is None for ref in gone] == [True, True]


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_frozen_parameter_that_is_changed_before_the_way_back_is_an_error(per_sample, x):
    F = TwoLayers().double()
    F.b.weight.requires_grad_(False)
    last = odenet.solve(F, x, compile=True, per_sample=per_sample, gradient="checkpoint").last
    F.b.weight.mul_(3)
    with pytest.raises(GradientError, match="changed in place"):
        last.sum().backward()


def test_an_F_that_asks_whether_gradients_are_enabled_is_answered_as_eagerly(x):
    F = lambda t, x: -x * (2.0 if torch.is_grad_enabled() else 1.0)  # noqa: E731
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            found = [odenet.solve(F, x, solver="rk4", steps=4, compile=compile).last for compile in (True, False)]
        torch.testing.assert_close(*found)


def test_what_a_refused_walk_has_counted_is_not_counted_twice(x):
    A = torch.eye(3, dtype=torch.float64)
    F = lambda t, x: torch.tanh(x @ A)  # noqa: E731
    odenet.solve(F, x, compile=True)
    A.requires_grad_()
    with pytest.warns(CompileWarning):
        got = odenet.solve(F, x, compile=True).stats
    expected = odenet.solve(F, x, compile=False).stats
    assert (got.nfe, got.accepted, len(got.h)) == (expected.nfe, expected.accepted, len(expected.h))


class Held(nn.Module):
    """A slope of which a part, or all, is computed without a gradient."""

    def __init__(self, whole):
        super().__init__()
        self.inner, self.whole = nn.Linear(3, 3).double(), whole

    def forward(self, t, x):
        with torch.no_grad():
            size = x.norm(dim=-1, keepdim=True) * float(t)
            if self.whole:
                return self.inner(x) * size
        return torch.tanh(self.inner(x)) * size


def test_what_F_computes_without_a_gradient_has_none(x):
    agree(Held(False), x)
    x0, F = x.clone().requires_grad_(), Held(True)
    solution, eager = (odenet.solve(F, x0, compile=compile) for compile in (True, False))
    torch.testing.assert_close(solution.last, eager.last)
    found = torch.autograd.grad(solution.last.sum(), [x0, *F.parameters()], allow_unused=True)
    torch.testing.assert_close(found[0], torch.ones_like(x))
    assert all(part is None or not part.any() for part in found[1:])


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_tensor_that_F_closes_over_gets_its_gradient_after_solves_without_one(per_sample, x):
    A = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    F = lambda t, x: torch.tanh(x @ A)  # noqa: E731
    with torch.no_grad():
        odenet.solve(F, x, compile=True, per_sample=per_sample)
    with pytest.warns(CompileWarning, match="neither a parameter of F"):
        found = odenet.solve(F, x, compile=True, per_sample=per_sample).last
    expected = odenet.solve(F, x, compile=False, per_sample=per_sample).last
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), A)[0] for y in (found, expected)))


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(
    "F",
    [lambda t, x: x[:, :2], lambda t, x: x[:, :1], lambda t, x: x.sum(-1), lambda t, x: x.float(), lambda t, x: 1.0],
    ids=["narrow", "one", "flat", "dtype", "number"],
)
def test_a_slope_that_is_none_is_told_as_eagerly(F, per_sample, x):
    errors = []
    for compile in (True, False):
        with pytest.raises(ResidualError) as caught:
            odenet.solve(F, x, compile=compile, per_sample=per_sample)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


@pytest.mark.parametrize(
    "F",
    [
        lambda t, x: x - x.mean(0),
        lambda t, x: x.flip(0),
        lambda t, x: x[:1] - x,
        lambda t, x: -x @ x.T @ x,
        lambda t, x: torch.softmax(x, 0),
        lambda t, x: -x / len(x),
        lambda t, x: x.cumsum(0),
    ],
)
def test_samples_that_see_each_other_are_not_walked_row_by_row(F, x, monkeypatch):
    with torch.no_grad():
        expected = odenet.solve(F, x, compile=False).last
    asked = []
    monkeypatch.setattr(compiled, "_whole", lambda problem: asked.append(problem) or _Eager())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(odenet.solve(F, x, compile=True).last, expected)
    assert asked


def test_an_F_that_changes_what_lies_outside_is_walked_eagerly(x):
    calls = []

    class Counted(nn.Module):
        calls = 0

        def forward(self, t, x):
            self.calls += 1
            return -x

    F = Counted()
    for rule, count in ((F, lambda: F.calls), (lambda t, x: calls.append(t) or -x, lambda: len(calls))):
        with pytest.warns(compiled.CompileWarning, match="F cannot be captured"):
            first = odenet.solve(rule, x, compile=True)
        before = count()
        assert before >= first.stats.nfe and odenet.solve(rule, x, compile=True).stats.nfe == count() - before


def test_an_F_that_is_its_argument_is_the_closed_form(x):
    torch.testing.assert_close(odenet.solve(lambda t, x: x, x, compile=True, **ADAPTIVE).last, x * torch.e)


def test_a_gradient_that_couples_samples_is_walked_back_as_a_whole_and_made_once(x, monkeypatch):
    made = []
    monkeypatch.setattr(graphs, "Graphs", lambda problem: _Whole())

    def joint(self, wanted, one_time=False):
        made.append(wanted)
        raise NotRowwiseError("not here")

    monkeypatch.setattr(Captured, "joint", joint)
    F = Swirl()
    for _ in range(2):
        x0 = x.clone().requires_grad_()
        odenet.solve(F, x0, compile=True).last.sum().backward()
        assert float(x0.grad.sum()) == 0.0
    assert len(made) == 1


class _Whole:
    compilations = 0

    def back(self, problem, walked, leaves, a, cotangents):
        return torch.zeros_like(a), *(torch.zeros_like(leaf) for leaf in leaves.tensors)


class _Eager:
    compilations = 0

    def walk(self, problem, keep):
        raise NotRowwiseError("walked eagerly here")


def test_a_state_that_is_not_finite_is_told_as_eagerly():
    F = Swirl()
    for bad in (float("nan"), float("inf")):
        with pytest.raises(SolveError) as eager:
            odenet.solve(F, torch.full((2, 3), bad, dtype=torch.float64), compile=False)
        with pytest.raises(SolveError) as found:
            odenet.solve(F, torch.full((2, 3), bad, dtype=torch.float64), compile=True)
        assert type(found.value) is type(eager.value)

"""Captured walks on a GPU: replays are the eager solve, wait for nothing, and see what an optimizer does."""

import warnings

import pytest
import torch

import odenet
from odenet.compiled import CompileWarning
from odenet.compiled.captured.replay import without_waiting
from odenet.solvers import solvers
from tests.compiled.captured.smooth import Image, Smooth
from tests.compiled.test_compiled import EXPLICIT, agree, solved, ts

pytestmark = pytest.mark.gpu


@pytest.fixture
def state():
    """A float64 batch of vectors, (4, 3)."""
    return torch.randn(4, 3, dtype=torch.float64, device="cuda")


def replayed(captures):
    """The graphs that are there, of kernels among them."""
    walks = [walk for made in captures for walk in made._walks.values()]
    assert walks and all(type(made._arithmetic).__name__ == "Fused" for made in captures)
    return [walk for walk in walks if walk.step.graph is not None]


@pytest.mark.parametrize("solver", EXPLICIT)
def test_fixed_steps_are_the_eager_ones(solver, state, captures):
    u = torch.tensor(0.3, dtype=torch.float64, device="cuda", requires_grad=True)
    F = Smooth().cuda()
    for _ in range(2):
        agree(F, state, ts=[0.0, 0.375, 1.5], interval=(0.0, 1.5), args=(u,), solver=solver, steps=12)
    assert len(replayed(captures)) == 1


@pytest.mark.parametrize("solver", [name for name in EXPLICIT if solvers[name].adaptive])
def test_adaptive_steps_are_the_eager_ones(solver, state, captures):
    F = Smooth().cuda()
    for _ in range(2):
        agree(F, state, interval=(2.0, 0.0), solver=solver, rtol=1e-4, atol=1e-4)
    assert replayed(captures)  # two where the record had to grow


def test_outputs_inside_steps_and_their_gradients_are_the_eager_ones(state, captures):
    F = Smooth().cuda()
    for _ in range(2):
        agree(F, state, ts=ts, interval=(0.0, 1.7), rtol=1e-6, atol=1e-6)
    assert replayed(captures)


@pytest.mark.parametrize("gradient", ["autograd", "checkpoint"])
def test_fixed_steps_and_their_gradient_never_wait(gradient, captures):
    F = odenet.residual.MLP(3, width=16, norm="none").cuda()
    x = torch.randn(8, 3, device="cuda", requires_grad=True)
    scheme = {"solver": "rk4", "steps": 19, "gradient": gradient, "compile": True}
    odenet.solve(F, x, **scheme).last.sum().backward()
    with without_waiting():
        odenet.solve(F, x, **scheme).last.sum().backward()
    assert replayed(captures)


def test_an_adaptive_walk_waits_at_its_looks_only(captures):
    F = odenet.residual.MLP(3, width=16, norm="none").cuda()
    x = torch.randn(8, 3, device="cuda", requires_grad=True)
    scheme = {"rtol": 1e-4, "atol": 1e-4, "compile": True}
    last = odenet.solve(F, x, **scheme).last
    last.sum().backward()
    (walk,) = replayed(captures)
    with without_waiting():
        walk.begin()
        for _ in range(20):
            walk.step()
    last = odenet.solve(F, x, **scheme).last
    with without_waiting():
        last.sum().backward()


def test_steps_of_an_optimizer_and_other_storages_are_seen(state, captures):
    F = Smooth().cuda()
    optimizer = torch.optim.SGD(F.parameters(), lr=0.5)
    for _ in range(3):
        agree(F, state, rtol=1e-5, atol=1e-5)
        F.A.grad = torch.randn_like(F.A)
        optimizer.step()
    assert captures[0].compilations == 2
    F.A.data = torch.randn_like(F.A)
    agree(F, state, rtol=1e-5, atol=1e-5)
    assert captures[0].compilations == 4


@pytest.mark.parametrize("scheme", [{"solver": "rk4", "steps": 9}, {"rtol": 1e-2, "atol": 1e-2}], ids=str)
def test_autocast(scheme, captures):
    F, x = odenet.residual.MLP(6, width=32, norm="none").cuda(), torch.randn(16, 6, device="cuda")
    found = {}
    for name, enabled, compile in (("captured", True, True), ("eager", True, False), ("exact", False, False)) * 2:
        with torch.autocast("cuda", torch.bfloat16, enabled=enabled):
            x0 = x.clone().requires_grad_()
            last = odenet.solve(F, x0, compile=compile, gradient="checkpoint", **scheme).last
        assert last.dtype == torch.float32
        parts = last, *torch.autograd.grad(last.square().sum(), [x0, *F.parameters()])
        found[name] = [part.detach() for part in parts]
    for got, expected, exact in zip(found["captured"], found["eager"], found["exact"], strict=True):
        size = float(exact.abs().max())
        assert float((got - expected).abs().max()) < 1e-2 * size and float((got - exact).abs().max()) > 1e-4 * size
    assert replayed(captures)


def test_after_a_capture_under_autocast_weights_have_gradients_and_values():
    F, x = odenet.residual.MLP(3, width=8).cuda(), torch.randn(8, 3, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        with torch.no_grad():
            y = odenet.solve(F, x, solver="euler", steps=3, compile=True).last
        got = F(torch.zeros((), device="cuda"), y)
    got.float().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in F.parameters())
    with torch.autocast("cuda", torch.bfloat16):
        torch.testing.assert_close(got, F(torch.zeros((), device="cuda"), y))


@pytest.mark.parametrize("scheme", [{"solver": "rk4", "steps": 3}, {"rtol": 1e-3, "atol": 1e-3}], ids=str)
def test_the_memory_format_of_images_is_kept(scheme, captures):
    F = Image().cuda().to(memory_format=torch.channels_last)
    x = torch.randn(4, 8, 6, 6, device="cuda").to(memory_format=torch.channels_last).requires_grad_()
    got = odenet.solve(F, x, compile=True, **scheme).last
    got.square().sum().backward()
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert x.grad is not None and x.grad.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(got, odenet.solve(F, x, compile=False, **scheme).last, rtol=1e-3, atol=1e-3)
    assert replayed(captures)


def test_an_f_that_waits_for_the_device_is_walked_eagerly(state):
    class Waiting(Smooth):
        def forward(self, t, x):
            return super().forward(t, x) * (1 + 0 * float(x.sum()))

    F = Waiting().cuda()
    with pytest.warns(CompileWarning, match="waits for the device"), torch.no_grad():
        got = odenet.solve(F, state, solver="rk4", steps=3, compile=True).last
    assert torch.equal(got, odenet.solve(F, state, solver="rk4", steps=3, compile=False).last)
    agree(Smooth().cuda(), state, solver="rk4", steps=3)  # what comes next is captured as ever


def test_solves_of_many_shapes_hold_memory_for_a_few():
    F = odenet.residual.MLP(64, width=64, norm="none").cuda()

    def held(batches):
        for batch in batches:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                odenet.solve(F, torch.randn(batch, 64, device="cuda"), rtol=1e-3, atol=1e-3, compile=True)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    few = held(range(4096, 4096 + 5))
    assert held(range(5000, 5000 + 10)) < 1.5 * few + 2**22


def test_gradients_of_solves_that_are_pending_at_once(state):
    F = Smooth().cuda()
    starts = [state.clone().requires_grad_(), (2 * state).requires_grad_()]
    ends = [odenet.solve(F, start, rtol=1e-6, atol=1e-6, compile=True).last for start in starts]
    got = [torch.autograd.grad(end.sum(), start)[0] for end, start in zip(ends, starts, strict=True)]
    for a, start in zip(got, starts, strict=True):
        _, (truth, *_) = solved_sum(F, start)
        torch.testing.assert_close(a, truth, rtol=1e-9, atol=1e-9)


def solved_sum(F, start):
    last = odenet.solve(F, start, rtol=1e-6, atol=1e-6, compile=False).last
    return last, torch.autograd.grad(last.sum(), start)


def test_float32_with_images_of_more_than_a_block(captures):
    F = odenet.residual.Conv(8, norm="none").cuda()
    x = torch.randn(32, 8, 16, 16, device="cuda")
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        a, _ = solved(F, x, True, rtol=1e-3, atol=1e-3)
        b, _ = solved(F, x, False, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(a.ys, b.ys, rtol=1e-3, atol=1e-3)
    assert a.stats.accepted == b.stats.accepted and replayed(captures)

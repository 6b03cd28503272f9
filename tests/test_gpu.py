"""On a CUDA device: the answers, gradients and statistics of the CPU, and what the allocator says of memory."""

import pytest
import torch

import odenet
from odenet.diagnostics import audit_gradients
from odenet.solvers import solvers

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
SOLVERS = {"mali": "alf", "reversible_heun": "reversible_heun", "momentum": "euler", "reversible": "rk4"}
CONSTANT = ("mali", "reversible_heun", "reversible", "momentum", "adjoint")
PIECEWISE = ("untied", odenet.depth.piecewise_linear(2), odenet.depth.bspline(2, 4), odenet.depth.chebyshev(3))


def here_and_there(run):
    """What a function of a device returns on the CPU, and on the GPU brought to the CPU."""
    return torch.utils._pytree.tree_map(
        lambda leaf: leaf.detach().cpu() if isinstance(leaf, torch.Tensor) else leaf, (run("cpu"), run(DEVICE))
    )


def field(dim=4, **options):
    torch.manual_seed(0)
    return odenet.residual.MLP(dim, width=16, norm="none", **options).double()


def state(batch=8, dim=4):
    return torch.randn(batch, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("solver", odenet.list_solvers())
def test_every_solver(solver, per_sample):
    if per_sample and not solvers[solver].per_sample:
        pytest.skip("steps of this method are shared")

    def run(device):
        solution = odenet.solve(
            field().to(device), state().to(device), (0.0, 1.0), ts=[0.3, 1.0], solver=solver, steps=10,
            per_sample=per_sample, compile=False,
        )  # fmt: skip
        assert solution.ys.device.type == torch.device(device).type
        return solution.ys, solution.stats.nfe

    (cpu, nfe), (gpu, nfe_gpu) = here_and_there(run)
    torch.testing.assert_close(gpu, cpu, rtol=1e-9, atol=1e-10)
    assert solver.startswith(("implicit", "gl", "radau", "sdirk", "trbdf", "kvaerno", "trapezoid")) or nfe == nfe_gpu


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("solver", ["dopri5", "tsit5", "bosh3", "kvaerno5", "trbdf2", "radau5"])
def test_adaptive_steps_are_the_same(solver, per_sample):
    def run(device):
        solution = odenet.solve(
            field().to(device), state().to(device), (0.0, 2.0), solver=solver, rtol=1e-5, atol=1e-6, compile=False,
            per_sample=per_sample,
        )  # fmt: skip
        stats = solution.stats
        return solution.ys, (stats.accepted, stats.rejected)

    (cpu, counts), (gpu, counts_gpu) = here_and_there(run)
    torch.testing.assert_close(gpu, cpu, rtol=1e-7, atol=1e-8)
    assert counts == counts_gpu


def gradients_of(device, gradient, weights="tied", per_sample=False, compile=False):
    block = odenet.ResNet(field(), steps=8, weights=weights).to(device)
    block = block.continuous(
        solver=SOLVERS.get(gradient, "rk4"), steps=8, gradient=gradient, per_sample=per_sample, compile=compile,
        gradient_options={"limit": 10_000} if gradient == "forward" else {},
    )  # fmt: skip
    x = state().to(device).requires_grad_()
    block(x).pow(3).sum().backward()
    return [x.grad, *(p.grad for p in block.parameters())]


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("gradient", odenet.list_gradients())
def test_every_gradient(gradient, per_sample):
    cpu, gpu = here_and_there(lambda device: gradients_of(device, gradient, per_sample=per_sample))
    for a, b in zip(gpu, cpu, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("gradient", ["checkpoint", "stagewise", "reversible", "adjoint"])
@pytest.mark.parametrize("weights", PIECEWISE, ids=str)
def test_weights_over_depth(weights, gradient):
    cpu, gpu = here_and_there(lambda device: gradients_of(device, gradient, weights))
    for a, b in zip(gpu, cpu, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("per_sample", [False, True])
def test_events(per_sample):
    def run(device):
        x = torch.tensor([[10.0, 0.0], [20.0, 1.0]], dtype=torch.float64, device=device, requires_grad=True)
        solution = odenet.solve(
            lambda t, x: torch.stack([x[..., 1], torch.full_like(x[..., 1], -9.81)], -1), x, (0.0, 10.0),
            solver="dopri5", rtol=1e-8, atol=1e-8, per_sample=per_sample,
            event=(lambda t, x: x[:, 0]) if per_sample else (lambda t, x: x[0, 0]),
        )  # fmt: skip
        ts = solution.events[0].ts
        return ts, torch.autograd.grad(ts.sum(), x)[0]

    (cpu, slope), (gpu, slope_gpu) = here_and_there(run)
    torch.testing.assert_close(gpu, cpu, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(slope_gpu, slope, rtol=1e-8, atol=1e-8)
    assert float(cpu[0]) == pytest.approx((20 / 9.81) ** 0.5, rel=1e-7)


def test_a_stiff_state_of_many_unknowns_by_gmres():
    def run(device):
        size = 400
        x = torch.sin(torch.arange(size, dtype=torch.float64, device=device)).unsqueeze(0)
        grid = odenet.solve(
            lambda t, x: size**2 / 9 * (x.roll(1, -1) - 2 * x + x.roll(-1, -1)), x, (0.0, 0.1), solver="trbdf2",
            rtol=1e-6, atol=1e-8,
        )  # fmt: skip
        return grid.last

    cpu, gpu = here_and_there(run)
    torch.testing.assert_close(gpu, cpu, rtol=1e-4, atol=1e-6)


def test_the_drop_in():
    def run(device):
        F, x = field().to(device), state().to(device).requires_grad_()
        ys = odenet.odeint_adjoint(
            F, x, torch.linspace(0, 1, 5, dtype=torch.float64, device=device), rtol=1e-8, atol=1e-9
        )
        ys.square().sum().backward()
        return ys, x.grad

    for cpu, gpu in zip(*here_and_there(run), strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("gradient", ["checkpoint", "reversible", "stagewise"])
def test_the_way_back_is_under_the_autocast_of_the_way_there(gradient):
    F, seen = odenet.residual.MLP(64, width=64, norm="none").to(DEVICE), set()
    for module in F.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda module, given, result: seen.add(result.dtype))
    x = torch.randn(32, 64, device=DEVICE, requires_grad=True)
    with torch.autocast(torch.device(DEVICE).type, torch.bfloat16):
        last = odenet.solve(F, x, solver="rk4", steps=4, gradient=gradient, compile=False).last
    assert last.dtype == torch.float32
    last.sum().backward()
    assert seen == {torch.bfloat16} and x.grad.dtype == torch.float32


def peak(gradient, steps, **options):
    """Bytes that the allocator had out at most during a forward and backward pass, beyond those before."""
    torch.manual_seed(0)
    F = odenet.residual.MLP(256, width=256, norm="none").to(DEVICE)
    x = torch.randn(4096, 256, device=DEVICE, requires_grad=True)

    def once():
        odenet.solve(
            F, x, solver=SOLVERS.get(gradient, "rk4"), steps=steps, gradient=gradient, gradient_options=options,
            compile=False,
        ).last.sum().backward()  # fmt: skip

    once()  # cuBLAS takes its workspace, and the gradients are there
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    once()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("gradient", CONSTANT)
def test_the_allocator_says_constant_where_the_table_does(gradient):
    few, many = peak(gradient, 10), peak(gradient, 200)
    assert many == pytest.approx(few, rel=0.01)


def test_the_allocator_says_growing_where_the_table_does():
    states = 4096 * 256 * 4
    assert peak("checkpoint", 100) - peak("checkpoint", 10) == pytest.approx(90 * states, rel=0.05)
    assert peak("checkpoint", 100, checkpoints=5) < peak("checkpoint", 100) / 3
    assert peak("autograd", 100) > 5 * peak("autograd", 10)


def test_the_audit_reads_the_allocator():
    block = odenet.ODEBlock(
        odenet.residual.MLP(256, width=256, norm="none"), solver="rk4", steps=50, compile=False
    ).to(DEVICE)  # fmt: skip
    audit = audit_gradients(block, torch.randn(4096, 256, device=DEVICE))
    held = {method.gradient: method.bytes for method in audit.methods}
    state = 4096 * 256 * 4
    assert held["autograd"] > 4 * held["checkpoint"] > 4 * held["reversible"] > 4 * state
    assert all(method.error < 1e-3 for method in audit.methods if method.gradient != "adjoint")

"""torch.func over a fixed-step solve, F that differentiates, and two processes that share a batch."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch.func import functional_call, grad, jvp, vmap

import odenet
from odenet.errors import GradientError, InputError
from odenet.gradients import gradients
from tests.oracles import FEW, forms_for, gradients_for

GENERAL = [*gradients_for("rk4", exact=True), *forms_for("rk4")]


@pytest.mark.parametrize("gradient", GENERAL)
def test_transforms_of_a_fixed_step_solve(gradient, x):
    block = odenet.ResNet(odenet.residual.MLP(3, width=5).double(), 3, solver="rk4", gradient=gradient)
    parameters = dict(block.named_parameters())

    def loss(parameters, x):
        return functional_call(block, parameters, (x,)).square().sum()

    expected = torch.autograd.grad(loss(parameters, x), list(parameters.values()))
    torch.testing.assert_close(list(grad(loss)(parameters, x).values()), list(expected), rtol=1e-10, atol=1e-12)
    each = vmap(grad(lambda p, x: loss(p, x[None])), (None, 0))(parameters, x)
    for i, sample in enumerate(x):
        alone = torch.autograd.grad(loss(parameters, sample[None]), list(parameters.values()))
        torch.testing.assert_close([g[i] for g in each.values()], list(alone), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(vmap(lambda x: block(x[None])[0])(x), block(x))
    direction, h = torch.randn_like(x), 1e-6
    pushed = jvp(block, (x,), (direction,))[1]
    with torch.no_grad():
        difference = (block(x + h * direction) - block(x - h * direction)) / (2 * h)
    torch.testing.assert_close(pushed, difference, rtol=1e-6, atol=1e-8)


def test_transforms_of_momentum_in_fixed_point(x):
    options = {"exact": True}
    block = odenet.ResNet(odenet.residual.MLP(3).double(), 6, gradient="momentum", gradient_options=options)
    expected = torch.func.jacrev(lambda x: odenet.ResNet(block.weights, 6, gradient="momentum")(x[None])[0])(x[0])
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(jacobian(lambda x: block(x[None])[0])(x[0]), expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(vmap(lambda x: block(x[None])[0])(x), block(x), rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"quadrature": True}])
def test_the_adjoint_under_transforms_and_of_many_cotangents_at_once_is_refused_in_words(options, x):
    F = odenet.residual.MLP(3).double()
    block = odenet.ODEBlock(F, solver="rk4", steps=3, gradient="adjoint", gradient_options=options)
    for transformed in (lambda: grad(lambda x: block(x).sum())(x), lambda: vmap(lambda x: block(x[None])[0])(x)):
        with pytest.raises(
            GradientError, match=r"gradient='adjoint' has a backward pass of its own, which torch\.func"
        ):
            transformed()
    leaf = x.clone().requires_grad_()
    y = block(leaf)
    with pytest.raises(GradientError, match="one cotangent at a time; leave out is_grads_batched"):
        torch.autograd.grad(y, leaf, torch.randn(4, *y.shape, dtype=y.dtype), is_grads_batched=True)


def test_vmap_over_an_adaptive_solve_is_refused_in_words(x):
    block = odenet.ODEBlock(odenet.residual.MLP(3).double())
    with pytest.raises(InputError, match=r"under torch\.func\.vmap .* give a fixed-step solver steps=N"):
        vmap(lambda x: block(x[None])[0])(x)


@pytest.mark.parametrize("gradient", [*gradients_for("dopri5", exact=True), *forms_for("dopri5"), *FEW])
def test_F_may_call_autograd(gradient):
    """H = (w q² + p²)/2: a rotation, whose derivative with respect to w and the start is known."""
    w = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    x0 = torch.tensor([[0.3, -1.1]], dtype=torch.float64, requires_grad=True)

    def F(t, x):
        with torch.enable_grad():
            z = x if x.requires_grad else x.detach().requires_grad_()
            H = (w * z[:, 0] ** 2 + z[:, 1] ** 2).sum() / 2
            (dH,) = torch.autograd.grad(H, z, create_graph=True)
        return torch.stack([dH[:, 1], -dH[:, 0]], 1)

    last = odenet.solve(F, x0, (0, 2), gradient=gradient, rtol=1e-8, atol=1e-8).last
    got = torch.autograd.grad(last.square().sum(), (w, x0))
    root = w.sqrt()
    q = x0[:, 0] * torch.cos(2 * root) + x0[:, 1] / root * torch.sin(2 * root)
    p = x0[:, 1] * torch.cos(2 * root) - x0[:, 0] * root * torch.sin(2 * root)
    torch.testing.assert_close(last, torch.stack([q, p], 1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got, torch.autograd.grad((q * q + p * p).sum(), (w, x0)), rtol=1e-5, atol=1e-5)


PROGRAM = """
import json, sys, torch, odenet
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from odenet.gradients.registry import gradients
rank, world, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=world)
found = {}
for name, method in gradients.items():
    torch.manual_seed(0)
    F = odenet.residual.MLP(3, width=5).double()
    solver = "euler" if "euler" in method.solvers() else method.solvers()[0]
    options = {"limit": 1000} if name == "forward" else {}
    block = odenet.ResNet(F, 4, solver=solver, gradient=name, weights="untied", gradient_options=options)
    net = torch.nn.Sequential(block, torch.nn.Linear(3, 2).double())
    x = torch.randn(8, 3, dtype=torch.float64)
    wrapped = DistributedDataParallel(net)
    for repeat in range(2):
        net.zero_grad()
        wrapped(x.chunk(world)[rank]).square().mean().backward()
    found[name] = [p.grad.tolist() for p in net.parameters()]
if rank == 0:
    print("RESULT", json.dumps(found))
"""


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_one_on_the_joint_batch(tmp_path):
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    found = []
    for world in (1, 2):
        command = [sys.executable, "-c", PROGRAM]
        running = [
            subprocess.Popen(
                [*command, str(rank), str(world), str(tmp_path / f"store{world}")],
                env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for rank in range(world)
        ]  # fmt: skip
        outputs = [process.communicate(timeout=240) for process in running]
        assert all(process.returncode == 0 for process in running), outputs[0][1]
        line = next(line for line in outputs[0][0].splitlines() if line.startswith("RESULT"))
        found.append(json.loads(line.removeprefix("RESULT")))
    alone, together = found
    assert set(alone) == set(gradients)
    for name in gradients:
        for one, both in zip(alone[name], together[name], strict=True):
            assert torch.tensor(one).abs().max() > 0, name
            torch.testing.assert_close(torch.tensor(both), torch.tensor(one), rtol=1e-10, atol=1e-14, msg=name)

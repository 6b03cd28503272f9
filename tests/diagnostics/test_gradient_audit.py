"""The audit against gradients, counts and bytes that are known without it."""

import copy

import pytest
import torch
from torch import nn

import odenet
from odenet.diagnostics import audit_gradients
from odenet.errors import InputError, UnknownNameError
from odenet.gradients import gradients


def mlp(scale=1.0, dim=4):
    F = odenet.residual.MLP(dim, width=16, norm="none")
    with torch.no_grad():
        for p in F.parameters():
            p.mul_(scale)
    return F


def by_name(audit):
    return {m.gradient: m for m in audit.methods}


def test_the_error_of_the_adjoint_is_that_of_its_gradient_in_float64():
    F, x = mlp(3.0), torch.randn(16, 4)
    block = odenet.ResNet(F, 4, t1=2.0, gradient="adjoint")
    found = by_name(audit_gradients(block, x, lambda y: y.square().sum()))
    leaf = x.clone().requires_grad_()
    got = torch.autograd.grad(block(leaf).square().sum(), [leaf, *F.parameters()])
    G, y = copy.deepcopy(F).double(), x.double().requires_grad_()
    z = y
    for n in range(4):
        z = z + 0.5 * G(torch.tensor(0.5 * n, dtype=torch.float64), z)
    truth = torch.autograd.grad(z.square().sum(), [y, *G.parameters()])
    a, b = (torch.cat([g.double().flatten() for g in gs]) for gs in (got, truth))
    assert found["adjoint"].error == pytest.approx(float((a - b).norm() / b.norm()), rel=1e-4)
    assert found["adjoint"].cosine == pytest.approx(float(a @ b / a.norm() / b.norm()), rel=1e-6)
    assert found["adjoint"].groups["x"][0] == pytest.approx(
        float((got[0] - truth[0]).norm() / truth[0].norm()), rel=1e-4
    )
    assert found["adjoint"].error > 0.01 and all(m.error < 1e-5 for n, m in found.items() if gradients[n].exact)
    assert all(m.cosine > 1 - 1e-9 for n, m in found.items() if gradients[n].exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_methods_are_exact_on_the_grid_that_they_took(dtype):
    block = odenet.ODEBlock(mlp(2.0).to(dtype), rtol=1e-3, atol=1e-3, t1=3.0)
    audit = audit_gradients(block, torch.randn(8, 4, dtype=dtype))
    limit = 1e-5 if dtype == torch.float32 else 1e-11
    assert {"autograd", "checkpoint", "stagewise", "reversible"} <= set(by_name(audit))
    assert all(m.error < limit for m in audit.methods if gradients[m.gradient].exact)
    assert by_name(audit)["checkpoint"].output < limit < by_name(audit)["reversible"].output
    refused = {m.gradient: m.note for m in audit.refused}
    assert "solver alf" in refused["mali"] and "limit=64" in refused["forward"]


def test_counts_and_bytes():
    F, x = mlp(), torch.randn(64, 4)
    found = {n: by_name(audit_gradients(odenet.ResNet(F, n), x, repeats=1)) for n in (10, 100)}
    ten = found[10]
    assert (ten["autograd"].nfe, ten["autograd"].nfe_backward, ten["autograd"].vjps) == (10, 0, 0)
    assert (ten["checkpoint"].nfe, ten["checkpoint"].nfe_backward, ten["checkpoint"].vjps) == (10, 10, 10)
    assert (ten["reversible"].nfe, ten["reversible"].nfe_backward) == (20, 20)
    growth = {name: found[100][name].bytes / m.bytes for name, m in ten.items()}
    assert growth["autograd"] > 8
    assert growth["momentum"] == growth["reversible"] == 1
    assert 1 < growth["checkpoint"] < 8
    state = x.numel() * 4
    assert found[100]["checkpoint"].bytes - ten["checkpoint"].bytes == 90 * state
    assert all(m.seconds_forward > 0 and m.seconds_backward > 0 for m in ten.values())


def test_the_network_and_the_random_numbers_are_left_as_they_were():
    torch.manual_seed(5)

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)

        def forward(self, t, x):
            return torch.tanh(self.drop(self.norm(self.inner(x))))

    net = nn.Sequential(odenet.ODEBlock(Noisy(), solver="rk4", steps=3), odenet.ResNet(mlp(), 5), nn.Linear(4, 2))
    before, rng, schemes = copy.deepcopy(net.state_dict()), torch.get_rng_state(), (net[0].scheme, net[1].scheme)
    audit = audit_gradients(net, torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), repeats=1)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state()) and (net[0].scheme, net[1].scheme) == schemes
    assert all(m.error < 1e-5 for m in audit.methods if gradients[m.gradient].exact)
    assert "2.weight" not in audit.methods[0].groups and "2" in audit.methods[0].groups
    assert all(p.grad is None for p in net.parameters())


def test_the_verdict_and_the_recommendation():
    x = torch.randn(64, 4)
    wrong = audit_gradients(odenet.ResNet(mlp(3.0), 8, t1=4.0, gradient="adjoint"), x)
    assert "`adjoint` is NOT the gradient of the steps that were taken: relative error" in wrong.verdict
    right = audit_gradients(odenet.ResNet(mlp(3.0), 8, t1=4.0), x)
    assert right.verdict.startswith("`autograd` gives the gradient of the steps that were taken: relative error")
    heading, *lines = str(right).splitlines()
    assert heading.split()[:3] == ["gradient", "error", "cosine"] and lines[-2:] == [
        right.verdict,
        right.recommendation,
    ]
    own = next(m for m in right.methods if m.gradient == "autograd")
    row = next(line.split() for line in lines if line.startswith("autograd"))
    assert row[1] == f"{own.error:.1e}" and row[4] == str(own.nfe)
    assert "adjoint" not in right.recommendation and "Little memory wanted: `" in right.recommendation


def test_what_cannot_be_audited_is_said():
    with pytest.raises(InputError, match="Linear holds no ResNet and no ODEBlock"):
        audit_gradients(nn.Linear(2, 2), torch.randn(3, 2))
    with pytest.raises(UnknownNameError, match="checkpoint"):
        audit_gradients(odenet.ResNet(mlp(), 2), torch.randn(3, 4), methods=["checkpont"])
    with pytest.raises(InputError, match="no gradient method could be measured: .*solver alf"):
        audit_gradients(odenet.ResNet(mlp(), 2), torch.randn(3, 4), methods=["mali"])
    with pytest.raises(
        UnknownNameError, match="unknown gradient 'chekpoint'; did you mean|unknown gradient 'chekpoint'"
    ):
        audit_gradients(odenet.ResNet(mlp(), 2), torch.randn(3, 4), options={"chekpoint": {"checkpoints": 2}})
    with pytest.raises(
        InputError, match=r"loss must return a tensor of one number, got \(3, 4\); take its mean or sum"
    ):
        audit_gradients(odenet.ResNet(mlp(), 2), torch.randn(3, 4), lambda y: y)


def test_one_name_and_a_caller_without_gradients():
    with torch.no_grad():
        audit = audit_gradients(odenet.ResNet(mlp(), 2), torch.randn(3, 4), methods="stagewise")
    assert [m.gradient for m in audit.methods] == ["stagewise"] and audit.methods[0].error < 1e-5


def test_low_precision_is_not_the_fault_of_a_method():
    torch.manual_seed(0)
    x = torch.randn(8, 4, dtype=torch.bfloat16)
    block = odenet.ODEBlock(mlp().bfloat16(), solver="rk4", steps=4)
    audit = audit_gradients(block, x)
    error = {m.gradient: m.error for m in audit.methods}
    assert error["autograd"] > 2e-3 and error["checkpoint"] < 2 * error["autograd"]
    assert (
        "`checkpoint` gives the gradient of the steps that were taken as nearly as this precision does" in audit.verdict
    )
    assert audit.recommendation.startswith("Speed wanted: `")
    wrong = odenet.ODEBlock(mlp(3.0).bfloat16(), solver="euler", steps=4, t1=4.0, gradient="adjoint")
    assert "`adjoint` is NOT the gradient" in audit_gradients(wrong, x).verdict

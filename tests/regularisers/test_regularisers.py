"""Regularisers against closed forms for linear F, on networks of layers and on ODEs, under every exact gradient."""

import copy

import pytest
import torch
from torch import nn

import odenet
from odenet.errors import InputError, UnknownNameError
from odenet.regularisers import regularisers
from tests.oracles import forms_for, gradients_for
from tests.oracles.problems import LINEAR_X0, A


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.A = nn.Parameter(A.clone())

    def forward(self, t, x):
        return x @ self.A.T


def penalty(block, x):
    y = block(x)
    (found,) = odenet.take_penalties(block)
    assert odenet.take_penalties(block) == []
    return y, found


def kinetic_of(B, x0, T=2.0, n=4001):
    """∫|A x|² dt, x = exp(tA) x0, by Simpson's rule on matrix exponentials."""
    ts = torch.linspace(0, T, n, dtype=torch.float64)
    xs = torch.linalg.matrix_exp(ts[:, None, None] * B) @ x0.T
    values = (B @ xs).square().sum(1).mean(1)
    w = torch.ones(n, dtype=torch.float64)
    w[1:-1:2], w[2:-1:2] = 4, 2
    return (w * values).sum() * T / (n - 1) / 3


def test_the_kinetic_energy_of_a_linear_ode_and_its_gradient():
    block = odenet.ODEBlock(Linear(), rtol=1e-10, atol=1e-10, t1=2.0, regularisers={"kinetic": 0.5})
    _, found = penalty(block, LINEAR_X0)
    B = A.clone().requires_grad_()
    truth = 0.5 * kinetic_of(B, LINEAR_X0)
    torch.testing.assert_close(found, truth, rtol=1e-6, atol=0)
    got = torch.autograd.grad(found, block.F.A)
    torch.testing.assert_close(got, torch.autograd.grad(truth, B), rtol=1e-6, atol=1e-8)


def test_the_jacobian_of_a_linear_ode():
    """∫|εᵀA|² dt = T |εᵀA|², with the mean T |A|²."""
    block = odenet.ODEBlock(Linear(), solver="rk4", steps=3, t1=2.0, regularisers={"jacobian": 1.0})
    x, size = LINEAR_X0.repeat(2000, 1), float(A.square().sum())
    _, found = penalty(block, x)
    assert float(found.detach()) == pytest.approx(2 * size, rel=0.05)
    (got,) = torch.autograd.grad(found, block.F.A)
    torch.testing.assert_close(got, 4 * A, rtol=0.1, atol=0.25)


@pytest.mark.parametrize("weights", ["tied", "untied"])
def test_on_the_layers_of_a_network_it_is_a_sum(weights):
    F = odenet.residual.MLP(3, width=5).double()
    net = odenet.ResNet(F, 4, weights=weights, t1=2.0, regularisers={"kinetic": 1.0})
    y, found = penalty(net, LINEAR_X0)
    x, total = LINEAR_X0, 0.0
    for n in range(4):
        layer = F if weights == "tied" else net.F[n]
        k = layer(torch.tensor(0.5 * n, dtype=torch.float64), x)
        total, x = total + 0.5 * k.square().sum(1).mean(), x + 0.5 * k
    torch.testing.assert_close((y, found), (x, total))
    parameters = list(net.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(found, parameters), torch.autograd.grad(total, parameters), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("scheme", [{"solver": "rk4", "steps": 3}, {"solver": "dopri5", "rtol": 1e-4, "atol": 1e-4}])
@pytest.mark.parametrize("name", regularisers)
def test_they_are_exact_under_every_exact_gradient_and_change_no_step(name, scheme):
    F = odenet.residual.MLP(3, width=6, time="concat").double()
    plain = odenet.ODEBlock(F, gradient="autograd", **scheme)
    results = {}
    for gradient in [*gradients_for(scheme["solver"], exact=True), *forms_for(scheme["solver"])]:
        block = odenet.ODEBlock(F, gradient=gradient, regularisers={name: 0.3}, **scheme)
        reference = None
        for backward in ({}, {"backward": "autograd"}) if gradient in forms_for(scheme["solver"]) else ({},):
            block.scheme = block.scheme.but(gradient_options=backward)
            torch.manual_seed(3)
            y, found = penalty(block, LINEAR_X0)
            got = torch.autograd.grad(y.square().sum() + found, list(F.parameters()))
            if reference is None:
                reference = got
            torch.testing.assert_close(got, reference, rtol=1e-9, atol=1e-11)
        if gradient not in forms_for(scheme["solver"]):
            results[gradient] = got
            torch.testing.assert_close(y, plain(LINEAR_X0), rtol=1e-12, atol=1e-12)
            assert len(block.stats.h) == len(plain.stats.h)
    for got in results.values():
        torch.testing.assert_close(got, results["autograd"], rtol=1e-9, atol=1e-11)


def test_a_probe_holds_for_a_solve_and_another_for_the_next():
    block = odenet.ODEBlock(Linear(), solver="rk4", steps=4, gradient="checkpoint", regularisers={"jacobian": 1.0})
    found = {float(penalty(block, LINEAR_X0[:1])[1].detach()) for _ in range(30)}
    probes = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    possible = (probes @ A).square().sum(1)
    assert 2 <= len(found) <= 4
    assert all((possible - value).abs().min() < 1e-10 for value in found)


def test_nothing_is_integrated_in_evaluation_and_blocks_can_be_copied():
    block = odenet.ResNet(Linear(), 3, regularisers={"kinetic": 1.0})
    block(LINEAR_X0)
    assert copy.deepcopy(block).penalty is None and block.penalty is not None
    block.eval()
    odenet.take_penalties(block)
    block(LINEAR_X0)
    block.train()
    with torch.no_grad():
        block(LINEAR_X0)
    assert odenet.take_penalties(block) == []


def test_training_pushes_them_down():
    torch.manual_seed(0)
    F = odenet.residual.MLP(2, width=16, norm="none")
    energies = []
    for factor in (0.0, 1.0):
        torch.manual_seed(1)
        G = copy.deepcopy(F)
        net = nn.Sequential(
            odenet.ODEBlock(G, solver="rk4", steps=4, regularisers={"kinetic": factor}), nn.Linear(2, 2)
        )
        x, y = torch.randn(64, 2), torch.randint(0, 2, (64,))
        optimizer = torch.optim.Adam(net.parameters(), 0.05)
        for _ in range(40):
            loss = nn.functional.cross_entropy(net(x), y)
            optimizer.zero_grad()
            sum(odenet.take_penalties(net), loss).backward()
            optimizer.step()
        net[0].regularisers = {"kinetic": 1.0}
        energies.append(float(penalty(net[0], x)[1].detach()))
    assert energies[1] < 0.3 * energies[0]


PER_SAMPLE = [("autograd", "dopri5"), ("checkpoint", "dopri5"), ("stagewise", "bosh3"), ("mali", "alf")]
PER_SAMPLE += [("reversible_heun", "reversible_heun"), ("reversible", "bosh3"), ("forward", "dopri5")]


@pytest.mark.parametrize(("gradient", "solver"), PER_SAMPLE)
def test_where_every_sample_has_its_own_steps_it_is_the_mean_of_each_alone(gradient, solver):
    """x' = -a tanh(bx): one element a sample, so that every probe has |εᵀ ∂F/∂x|² = (∂F/∂x)²."""

    class F(nn.Module):
        def __init__(self):
            super().__init__()
            self.b = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

        def forward(self, t, x, a):
            return -a * torch.tanh(self.b * x)

    a, x0 = torch.tensor([[1.0], [6.0], [0.2]]).double(), torch.tensor([[2.0], [1.0], [-0.5]]).double()
    f, factors = F(), {"kinetic": 0.3, "jacobian": 0.7}
    how = {"solver": solver, "rtol": 1e-3, "atol": 1e-3, "gradient": gradient}

    def of(rows, **own):
        block = odenet.ODEBlock(f, regularisers=factors, **how, **own)
        x = x0[rows].clone().requires_grad_()
        y = block(x, a[rows])
        (found,) = odenet.take_penalties(block)
        return [y, found, *torch.autograd.grad(y.sum() + found * len(x), [x, f.b])], block.stats

    (y, found, by_x, by_b), stats = of(slice(None), per_sample=True, per_sample_args=(0,))
    if gradient == "reversible":
        how |= {"gradient_options": {"backward": "autograd"}}
    else:
        how["gradient"] = "autograd"
    alone = [of(slice(i, i + 1))[0] for i in range(3)]
    assert len(set(stats.samples.accepted.tolist())) > 1
    torch.testing.assert_close(y, torch.cat([part[0] for part in alone]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, sum(part[1] for part in alone) / 3, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(by_x, torch.cat([part[2] for part in alone]), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(by_b, sum(part[3] for part in alone), rtol=1e-10, atol=1e-10)
    plain = odenet.ODEBlock(f, **how, per_sample=True, per_sample_args=(0,))
    torch.testing.assert_close(plain(x0, a), y, rtol=1e-12, atol=1e-12)
    assert torch.equal(plain.stats.samples.accepted, stats.samples.accepted)  # no step sees them


def test_unknown_names_and_factors_are_errors():
    with pytest.raises(UnknownNameError, match="did you mean 'kinetic'"):
        odenet.ResNet(Linear(), 3, regularisers={"kinetik": 1.0})
    with pytest.raises(InputError, match="factor of regulariser 'kinetic' must be a non-negative number, got -1"):
        odenet.ResNet(Linear(), 3, regularisers={"kinetic": -1})
    with pytest.raises(InputError, match="steps that all samples share; with per_sample=True use 'kinetic'"):
        odenet.ODEBlock(Linear(), per_sample=True, regularisers={"stiffness": 1.0})
    with pytest.raises(InputError, match="solver 'leapfrog' takes the state as a pair"):
        odenet.ODEBlock(Linear(), "leapfrog", steps=2, regularisers={"kinetic": 1.0})
    with pytest.raises(InputError, match="backend='scipy' cannot leave out of its error norm"):
        odenet.ODEBlock(Linear(), "RK45", backend="scipy", gradient="adjoint", regularisers={"kinetic": 1.0})


@pytest.mark.parametrize("more", [{"steps": 8}, {"rtol": 1e-6, "atol": 1e-6}])
def test_under_torchdiffeq_they_change_no_step(more):
    """The steps of rk4 there are those of rk4_38 here."""
    solver = "rk4" if "steps" in more else "dopri5"
    F, found = Linear(), []
    for backend in ("torchdiffeq", "native"):
        ours = "rk4_38" if solver == "rk4" and backend == "native" else solver
        scheme = {"solver": ours, "backend": backend, "gradient": "autograd", **more}
        block = odenet.ODEBlock(F, regularisers={"kinetic": 1.0}, **scheme)
        y, value = penalty(block, LINEAR_X0)
        assert torch.equal(y, odenet.ODEBlock(F, **scheme)(LINEAR_X0))
        found.append((value, *torch.autograd.grad(value, F.A)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_a_tolerance_for_each_element_is_that_of_the_state():
    tolerance = torch.tensor([1e-3, 1e-6, 1e-4], dtype=torch.float64)
    F, more = Linear(), {"rtol": tolerance, "atol": tolerance}
    block = odenet.ODEBlock(F, regularisers={"kinetic": 1.0, "jacobian": 1.0}, **more)
    y, _ = penalty(block, LINEAR_X0)
    torch.testing.assert_close(y, odenet.ODEBlock(F, **more)(LINEAR_X0), rtol=1e-12, atol=1e-12)

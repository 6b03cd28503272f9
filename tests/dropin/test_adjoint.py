"""odeint_adjoint: the options of the way back, its norms, its callbacks, and what gets a gradient."""

import pytest
import torch
import torchdiffeq
from torch import nn

import odenet
from odenet.errors import InputError
from tests.dropin.test_odeint import Net
from tests.oracles import Counted

T = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
Y0 = torch.tensor([[2.0, 0.3], [1.0, -0.5]], dtype=torch.float64)


def gradient(library, net, y0=Y0, t=T, **call):
    ys = library.odeint_adjoint(net, y0, t, **call)
    loss = ys.square().sum() if isinstance(ys, torch.Tensor) else sum(y.square().sum() for y in ys)
    return torch.autograd.grad(loss, list(net.parameters()))


def spent(**call):
    """Evaluations of the forward pass and of the way back."""
    torch.manual_seed(0)
    net = Counted(Net())
    ys = odenet.odeint_adjoint(net, Y0, T, **{"rtol": 1e-5, "atol": 1e-5} | call)
    forward = net.calls
    ys.square().sum().backward()
    return forward, net.calls - forward


@pytest.mark.parametrize(
    "call",
    [
        {"adjoint_rtol": 1e-9, "adjoint_atol": 1e-9},
        {"method": "rk4", "options": {"step_size": 0.02}, "adjoint_method": "dopri5", "adjoint_options": {}},
        {"adjoint_method": "rk4", "adjoint_options": {"step_size": 0.02}},
        {"adjoint_method": "midpoint", "adjoint_options": {"step_size": 0.002}},
        {"adjoint_options": {"norm": "seminorm"}, "rtol": 1e-8},
        {"options": {"first_step": 0.01, "safety": 0.8, "max_step": 0.1}, "rtol": 1e-8},
        {"options": {"jump_t": torch.tensor([0.5]), "step_t": torch.tensor([0.7])}, "rtol": 1e-8},
    ],
    ids=lambda call: "-".join(call),
)
def test_options_of_the_way_back_give_torchdiffeqs_gradient(call):
    net = Net()
    for a, b in zip(gradient(odenet, net, **call), gradient(torchdiffeq, net, **call), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(b.abs().max()))


def test_options_of_the_way_back_change_the_way_back_alone():
    forward, back = spent()
    assert spent(adjoint_rtol=1e-8, adjoint_atol=1e-8)[0] == forward
    assert spent(adjoint_rtol=1e-8, adjoint_atol=1e-8)[1] > back
    assert spent(adjoint_options={"max_step": 0.02})[1] > back
    assert spent(adjoint_method="rk4", adjoint_options={"step_size": 0.1}) == (forward, 40)
    few = spent(options={"max_step": 0.02}, adjoint_options={})
    assert few[0] > forward and few[1] < spent(options={"max_step": 0.02})[1]


def test_a_norm_gets_torchdiffeqs_tuple():
    seen = {}

    def of(library):
        def norm(parts):
            seen.setdefault(library, [tuple(part.shape) for part in parts])
            return torch.stack([part.abs().max() for part in parts if part.numel()]).max()

        return norm

    net = Net()
    pair = (torch.ones(3, 2, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64))

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, t, y):
            return self.net(t, y[0]), y[1] * t

    for y0, func in ((Y0, net), (pair, Pair())):
        seen.clear()
        got, expected = (
            gradient(library, func, y0, rtol=1e-8, atol=1e-8, adjoint_options={"norm": of(library)})
            for library in (odenet, torchdiffeq)
        )
        assert seen[odenet] == seen[torchdiffeq]
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(b.abs().max()))


def test_the_parameters_that_are_asked_for_and_no_others():
    w = [torch.full((2,), v, dtype=torch.float64, requires_grad=True) for v in (0.5, 0.7, 1.0)]

    def func(t, y):
        return -w[0] * w[1] * y

    loss = odenet.odeint_adjoint(func, Y0, T, adjoint_params=iter([w[1], w[2]])).square().sum()
    got = torch.autograd.grad(loss, w, allow_unused=True)
    loss = torchdiffeq.odeint_adjoint(func, Y0, T, adjoint_params=(w[1], w[2])).square().sum()
    expected = torch.autograd.grad(loss, w, allow_unused=True)
    assert got[0] is expected[0] is None and torch.equal(got[2], expected[2])
    torch.testing.assert_close(got[1], expected[1], rtol=1e-5, atol=0)
    free = odenet.odeint_adjoint(func, Y0, T).square().sum()  # a function, and tensors that it closes over
    torch.testing.assert_close(torch.autograd.grad(free, w[1])[0], expected[1], rtol=1e-5, atol=0)


def test_options_that_may_not_fit_another_method_are_asked_for():
    with pytest.raises(InputError, match="may not fit adjoint_method='rk4'; give adjoint_options too"):
        odenet.odeint_adjoint(Net(), Y0, T, method="dopri5", options={"first_step": 0.1}, adjoint_method="rk4")
    with pytest.raises(InputError, match="needs a step size"):
        odenet.odeint_adjoint(Net(), Y0, T[:2], adjoint_method="rk4")


def test_callbacks_of_the_way_back():
    net, told = Net(), []
    for name in ("callback_step", "callback_accept_step", "callback_reject_step"):
        setattr(net, name + "_adjoint", lambda t, y, dt, name=name: told.append((name, float(t), y, float(dt))))
    ys = odenet.odeint_adjoint(net, Y0, T, rtol=1e-4, atol=1e-4)
    assert not told
    ys.sum().backward()
    assert told[0][0] == "callback_step" and told[0][1] == 1.0
    accepted = [(t, dt) for name, t, _, dt in told if name == "callback_accept_step"]
    assert sum(dt for _, dt in accepted) == pytest.approx(1) and all(dt > 0 for _, dt in accepted)
    assert accepted[-1][0] - accepted[-1][1] == pytest.approx(0)
    assert [tuple(part.shape) for part in told[0][2]] == [
        (),
        (2, 2),
        (2, 2),
        *(tuple(p.shape) for p in net.parameters()),
    ]

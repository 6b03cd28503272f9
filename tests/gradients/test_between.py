"""What happens between a solve and its backward pass, around it, and to what F holds, leaves the gradient exact."""

import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, spectral_norm
from torch.utils.checkpoint import checkpoint

import odenet
from odenet.errors import GradientError
from odenet.gradients import gradients
from tests.oracles import backprop, forms_for, gradients_for

SCHEMES = [
    {"solver": "bosh3", "rtol": 1e-4, "atol": 1e-4},
    {"solver": "rk4", "steps": 4},
    {"solver": "alf", "steps": 4},
    {"solver": "reversible_heun", "steps": 4},
    {"solver": "euler", "steps": 4},
]
CASES = [
    pytest.param(gradient, scheme, id=f"{gradient}-{scheme['solver']}")
    for scheme in SCHEMES
    for gradient in [*gradients_for(scheme["solver"]), *forms_for(scheme["solver"])]
    if gradient != "autograd"
]
EXACT_CASES = [case for case in CASES if gradients[case.values[0]].exact]
KINDS = ["tied", "untied", "piecewise_linear", "bspline", "chebyshev", "fourier", "low_rank"]


class F(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.first, self.last = nn.Linear(3, 5), nn.Linear(5, 3)
        self.layers = nn.Sequential(*layers)
        self.double()

    def forward(self, t, x):
        return self.layers(self.last(torch.tanh(self.first(x) * (1 + t))))


def differentiated(block, x, between=lambda: None, parameters=None):
    """Output and gradients of x and the parameters, something being done before the backward pass."""
    torch.manual_seed(3)
    x = x.clone().requires_grad_()
    y = block(x) if parameters is None else functional_call(block, parameters, (x,))
    between()
    leaves = [x, *(block.parameters() if parameters is None else parameters.values())]
    return [y.detach(), *torch.autograd.grad((y.exp()).sum(), leaves, materialize_grads=True)]


def assert_close(got, expected, rtol=1e-10):
    scale = max(float(part.abs().max()) for part in expected)
    torch.testing.assert_close(got, expected, rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layers", [[nn.Dropout(0.4)], [nn.BatchNorm1d(3)]], ids=["dropout", "norm"])
@pytest.mark.parametrize(("gradient", "scheme"), CASES)
def test_a_recomputation_has_the_mode_of_the_solve(gradient, scheme, layers, training, x):
    block = odenet.ODEBlock(F(*layers), gradient=gradient, **scheme).train(training)
    expected = differentiated(block, x)
    got = differentiated(block, x, lambda: block.train(not training))
    assert_close(got, expected)
    assert all(module.training is not training for module in block.modules())


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("weights", KINDS)
@pytest.mark.parametrize("gradient", [g for g in gradients_for("rk4") if g != "autograd"] + forms_for("rk4"))
def test_tensors_lent_for_a_call_get_their_gradient_after_it(gradient, weights, frozen, x):
    block = odenet.ResNet(F(), 4, solver="rk4", weights=weights, gradient=gradient)
    lent = {name: (1.1 * p).detach().requires_grad_() for name, p in block.named_parameters()}
    own = odenet.ResNet(F(), 4, solver="rk4", weights=weights, gradient=gradient)
    own.load_state_dict(lent)
    expected = differentiated(own, x)
    block.requires_grad_(not frozen)
    before = dict(block.named_parameters())
    assert_close(differentiated(block, x, parameters=lent), expected)
    assert all(p is before[name] and p.grad is None for name, p in block.named_parameters())


def normalised(way):
    module = F()
    if way == "parametrization":
        parametrizations.spectral_norm(module.first)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            spectral_norm(module.first)
    return module


@pytest.mark.parametrize("way", ["parametrization", "hook"])
@pytest.mark.parametrize(("gradient", "scheme"), EXACT_CASES)
def test_spectral_normalisation_is_one_for_a_solve_and_moves_on_once(gradient, scheme, way, x):
    """Each evaluation would make a step of the power iteration, and a recomputation more of them."""
    torch.manual_seed(0)
    module = normalised(way)
    once, start = normalised(way), {k: v.clone() for k, v in module.state_dict().items()}
    once.load_state_dict(start)
    once(torch.zeros(()).double(), x)
    found = []
    for scheme_of in ({**backprop(gradient)}, {"gradient": gradient}):
        module.load_state_dict(start)
        found.append(differentiated(odenet.ODEBlock(module, **scheme_of, **scheme), x))
        assert any(not torch.equal(b, start[name]) for name, b in module.named_buffers())
        for (name, b), (_, expected) in zip(module.named_buffers(), once.named_buffers(), strict=True):
            torch.testing.assert_close(b, expected, rtol=0, atol=0, msg=name)
    assert_close(found[1], found[0])


def test_an_asked_for_graph_of_spectral_normalisation_is_walked_eagerly_and_moves_it_on_once(x):
    torch.manual_seed(0)
    module, once = normalised("parametrization"), normalised("parametrization")
    once.load_state_dict(module.state_dict())
    once(torch.zeros(()).double(), x)
    with pytest.warns(odenet.compiled.CompileWarning, match="F changes its buffer '_u'"):
        odenet.solve(module, x, solver="rk4", steps=3, compile=True)
    assert all(torch.equal(a, b) for a, b in zip(module.buffers(), once.buffers(), strict=True))


@pytest.mark.parametrize(("gradient", "scheme"), EXACT_CASES)
def test_hooks_of_tensors_see_the_whole_gradient_once(gradient, scheme, x):
    results, seen = [], []
    for method in (backprop(gradient), {"gradient": gradient}):
        torch.manual_seed(0)
        module, w = F(), torch.randn(3, dtype=torch.float64, requires_grad=True)
        scaled = w * 0.3
        scaled.retain_grad()
        module.first.weight.register_hook(lambda g: g.clamp(-0.05, 0.05))
        scaled.register_hook(lambda g, seen=seen: seen.append(1))
        y = odenet.solve(lambda t, x, module=module, s=scaled: module(t, x) * s, x, **method, **scheme).last
        y.square().sum().backward()
        results.append([w.grad, scaled.grad, *(p.grad for p in module.parameters())])
        assert results[-1][2].abs().max() == 0.05
    assert_close(results[1], results[0])
    assert len(seen) == 2


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(("gradient", "scheme"), CASES)
def test_inside_activation_checkpoints(gradient, scheme, reentrant, x):
    block = odenet.ODEBlock(F(nn.Dropout(0.2)), gradient=gradient, **scheme)
    block.requires_grad_(not reentrant)  # a reentrant one refuses torch.autograd.grad of parameters
    plain, inside = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.manual_seed(1)
    block(plain).exp().sum().backward()
    expected = [plain.grad, *(p.grad for p in block.parameters() if p.requires_grad)]
    block.zero_grad()
    torch.manual_seed(1)
    checkpoint(block, inside, use_reentrant=reentrant).exp().sum().backward()
    assert_close([inside.grad, *(p.grad for p in block.parameters() if p.requires_grad)], expected)


@pytest.mark.parametrize(("gradient", "scheme"), CASES)
def test_a_frozen_parameter_that_is_changed_in_place_is_no_silent_error(gradient, scheme, x):
    block = odenet.ODEBlock(F().requires_grad_(False), gradient=gradient, **scheme)
    y = block(x.requires_grad_())
    with torch.no_grad():
        block.F.first.weight.mul_(1.5)
    with pytest.raises(
        GradientError, match=r"parameter 'weight' of Linear, of shape \(5, 3\), which F holds, was changed in"
    ):
        y.sum().backward()


@pytest.mark.parametrize(("gradient", "scheme"), CASES)
def test_an_argument_that_is_changed_in_place_is_no_silent_error(gradient, scheme, x):
    rate = torch.tensor([0.5], dtype=torch.float64)
    block = odenet.ODEBlock(lambda t, x, rate: -rate * x.tanh(), gradient=gradient, **scheme)
    y = block(x.requires_grad_(), rate)
    rate.mul_(1.5)
    with pytest.raises(GradientError, match=r"a tensor of shape \(1,\) in args was changed in place"):
        y.sum().backward()

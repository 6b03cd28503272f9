"""A tensor that F uses gets its gradient however F reaches it, or the call fails and says which tensor."""

import functools

import pytest
import torch
from torch import nn

import odenet
from odenet.errors import GradientError
from odenet.gradients import gradients
from tests.oracles import backprop, forms_for, gradients_for

GLOBAL_LEAF = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
SPACE = {}


def through_closure(z):
    return lambda t, x: torch.tanh(x @ z)


def through_a_default(z):
    def F(t, x, *, w=z):
        return torch.tanh(x @ w)

    return F


def through_partial(z):
    return functools.partial(lambda z, t, x: torch.tanh(x @ z), z)


def through_a_module_attribute(z):
    class F(nn.Module):
        def forward(self, t, x):
            return torch.tanh(x @ self.context)

    module = F()
    module.context = z
    return module


def through_a_list_in_a_submodule(z):
    class Inner(nn.Module):
        def forward(self, x):
            return torch.tanh(x @ self.contexts[0]["z"])

    class F(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, t, x):
            return self.inner(x)

    module = F()
    module.inner.contexts = [{"z": z}]
    return module


def through_a_bound_method(z):
    class Dynamics:
        def __init__(self):
            self.z = z

        def field(self, t, x):
            return torch.tanh(x @ self.z)

    return Dynamics().field


def through_a_callable_object(z):
    class Dynamics:
        def __init__(self):
            self.z = (z,)

        def __call__(self, t, x):
            return torch.tanh(x @ self.z[0])

    return Dynamics()


def through_a_global_dict(z):
    SPACE["z"] = z
    return lambda t, x: torch.tanh(x @ SPACE["z"])


def through_weights_that_are_recomputed(z):
    hidden = {"deep": [[[[[[[[z]]]]]]]]}  # deeper than anything looks

    def F(t, x):
        inner = hidden["deep"]
        while not isinstance(inner, torch.Tensor):
            inner = inner[0]
        return torch.tanh(x @ inner)

    return F


WAYS = [through_closure, through_a_default, through_partial, through_a_module_attribute, through_a_list_in_a_submodule]
WAYS += [through_a_bound_method, through_a_callable_object, through_a_global_dict, through_weights_that_are_recomputed]
SCHEMES = [{"solver": "rk4", "steps": 12}, {"solver": "dopri5", "rtol": 1e-7, "atol": 1e-7}]
SCHEMES += [{"solver": "alf", "steps": 12}, {"solver": "reversible_heun", "steps": 12}]
CASES = [
    pytest.param(gradient, scheme, id=f"{gradient}-{scheme['solver']}")
    for scheme in SCHEMES
    for gradient in gradients_for(scheme["solver"])
    if gradient != "autograd"
]
FORMS = [{"solver": "midpoint", "steps": 12}, {"solver": "euler", "steps": 12}]
CASES += [
    pytest.param(gradient, scheme, id=f"{gradient}-{scheme['solver']}")
    for scheme in FORMS
    for gradient in forms_for(scheme["solver"])
]


def tolerance(gradient, scheme):
    return 1e-10 if gradients[gradient].exact else (1e-2 if "steps" in scheme else 1e-5)


def agree(got, expected, gradient, scheme):
    for a, b in zip(got, expected, strict=True):
        assert a is not None and b is not None and b.abs().max() > 0
        limit = tolerance(gradient, scheme) * float(b.detach().abs().max())
        torch.testing.assert_close(a, b, rtol=0, atol=limit)


@pytest.mark.parametrize("leaf", [True, False], ids=["leaf", "encoded"])
@pytest.mark.parametrize("way", WAYS, ids=lambda w: w.__name__)
@pytest.mark.parametrize(("gradient", "scheme"), CASES)
def test_a_captured_tensor_gets_its_gradient(gradient, way, leaf, scheme, x):
    source = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)

    def differentiate(method):
        z = source if leaf else torch.sin(source @ source)  # an encoder that is not part of F
        last = odenet.solve(way(z), x, **method, **scheme).last
        return torch.autograd.grad(last.square().sum(), (source,))

    agree(differentiate({"gradient": gradient}), differentiate(backprop(gradient)), gradient, scheme)


@pytest.mark.parametrize(("gradient", "scheme"), CASES)
def test_a_global_leaf_and_arguments(gradient, scheme, x):
    gain = torch.tensor([1.3], dtype=torch.float64, requires_grad=True)

    def F(t, x, pair):
        return torch.tanh(x @ GLOBAL_LEAF) * pair["gain"]

    def differentiate(method):
        last = odenet.solve(F, x, **method, args=({"gain": gain},), **scheme).last
        return torch.autograd.grad(last.square().sum(), (GLOBAL_LEAF, gain))

    agree(differentiate({"gradient": gradient}), differentiate(backprop(gradient)), gradient, scheme)


class Conditioned(nn.Module):
    """F whose context was computed by F's own encoder before the solve."""

    def __init__(self, twice):
        super().__init__()
        self.encoder, self.field, self.twice = nn.Linear(2, 3), nn.Linear(3, 3), twice
        self.double()

    def look_at(self, condition):
        self.context = torch.tanh(self.encoder(condition))
        return self

    def forward(self, t, x):
        y = torch.tanh(self.field(x) + self.context)
        return y + self.encoder(x[:, :2]) if self.twice else y


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize(("gradient", "scheme"), CASES)
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_context_made_by_Fs_own_encoder_is_counted_once(gradient, scheme, create_graph, twice, x):
    F, condition = Conditioned(twice), torch.randn(4, 2, dtype=torch.float64)

    def differentiate(method):
        last = odenet.solve(F.look_at(condition), x, **method, **scheme).last
        return torch.autograd.grad(last.square().sum(), list(F.parameters()), create_graph=create_graph)

    expected = differentiate(backprop(gradient))
    try:
        got = differentiate({"gradient": gradient})
    except GradientError as error:
        assert not gradients[gradient].exact
        assert "shape (4, 3)" in str(error) and "shape (3, 2)" in str(error)
        return
    agree(got, expected, gradient, scheme)


class Late:
    """Holds a tensor where nothing finds it."""

    def __init__(self, value):
        self.value = value


LATE = Late(torch.tensor(2.0, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("known", ["a parameter", "nothing"])
@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(("gradient", "scheme"), CASES)
def test_a_tensor_used_only_late_gets_its_gradient_or_an_error_and_never_zero(
    gradient, scheme, create_graph, start, known, x
):
    rate = torch.tensor(1.0, dtype=torch.float64, requires_grad=known == "a parameter")

    def F(t, x):
        return -rate * x if t < 0.5 else -rate * x * LATE.value

    x0 = x.clone().requires_grad_(start)

    def differentiate(method):
        LATE.value.grad = None
        last = odenet.solve(F, x0, **method, **scheme).last
        (last.square().sum() + 0 * LATE.value).backward(create_graph=create_graph)
        return (LATE.value.grad.detach(),)

    expected = differentiate(backprop(gradient))
    try:
        got = differentiate({"gradient": gradient})
    except GradientError as error:
        assert "shape ()" in str(error) and "args=" in str(error)
        assert known == "a parameter" or start
        return
    if gradients[gradient].exact:
        agree(got, expected, gradient, scheme)
    else:  # F jumps in t inside a step, on the way back inside another one
        torch.testing.assert_close(got, expected, rtol=0.5, atol=0)


@pytest.mark.parametrize(("gradient", "scheme"), [c for c in CASES if "steps" in c.values[1]])
def test_untied_layers_each_get_the_gradient_of_their_own_captures(gradient, scheme, x):
    contexts = [torch.randn(3, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def differentiate(method):
        layers = [through_a_module_attribute(torch.sin(c)) for c in contexts]
        weights = odenet.depth.PiecewiseConstant(layers)
        last = odenet.solve(weights, x, **method, **scheme).last
        return torch.autograd.grad(last.square().sum(), contexts)

    agree(differentiate({"gradient": gradient}), differentiate(backprop(gradient)), gradient, scheme)


@pytest.mark.parametrize("gradient", [g for g in gradients_for("dopri5") if g != "autograd"])
def test_dense_output_under_another_gradient_is_refused_rather_than_cut_off(gradient, x):
    F = odenet.residual.MLP(3).double()
    with pytest.raises(odenet.errors.InputError, match="dense"):
        odenet.solve(F, x, gradient=gradient, dense=True)


def test_dense_output_under_autograd_can_be_differentiated(x):
    x0 = x.clone().requires_grad_()
    solution = odenet.solve(lambda t, x: -x, x0, dense=True, rtol=1e-9, atol=1e-9)
    (grad,) = torch.autograd.grad(solution(0.4).sum(), x0)
    torch.testing.assert_close(grad, torch.full_like(x, torch.exp(torch.tensor(-0.4)).item()), rtol=1e-6, atol=0)


def test_scipy_under_autograd_says_that_it_has_no_graph(x):
    F = odenet.residual.MLP(3).double()
    with pytest.raises(GradientError, match="use gradient='adjoint'"):
        odenet.solve(F, x, solver="scipy_solver", backend="torchdiffeq")
    with torch.no_grad():
        odenet.solve(F, x, solver="scipy_solver", backend="torchdiffeq")

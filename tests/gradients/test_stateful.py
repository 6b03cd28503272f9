"""F with running statistics, random masks or low precision is one function for a whole solve and its backward pass."""

import copy

import pytest
import torch
from torch import nn

import odenet
from odenet.gradients import gradients
from tests.oracles import backprop, forms_for, gradients_for

SCHEMES = [
    {"solver": "euler", "steps": 5},
    {"solver": "rk4", "steps": 3},
    {"solver": "dopri5", "rtol": 1e-6, "atol": 1e-6},
    {"solver": "alf", "steps": 5},
    {"solver": "reversible_heun", "steps": 5},
]
CASES = [
    pytest.param(gradient, scheme, id=f"{gradient}-{scheme['solver']}")
    for scheme in SCHEMES
    for gradient in gradients_for(scheme["solver"])
]
FORMS = [{"solver": "midpoint", "steps": 4}, {"solver": "euler", "steps": 4}]
CASES += [
    pytest.param(gradient, scheme, id=f"{gradient}-{scheme['solver']}")
    for scheme in FORMS
    for gradient in forms_for(scheme["solver"])
]
EXACT_CASES = [c for c in CASES if gradients[c.values[0]].exact]


class Normed(nn.Module):
    def __init__(self, momentum=0.1):
        super().__init__()
        self.norm = nn.BatchNorm1d(3, momentum=momentum)
        self.linear = nn.Linear(3, 3)
        self.seen = []
        self.double()

    def forward(self, t, x):
        self.seen.append(x.detach().mean(0))
        return torch.tanh(self.linear(self.norm(x)))


class Masked(nn.Module):
    def __init__(self, p=0.5):
        super().__init__()
        self.linear, self.drop = nn.Linear(3, 3), nn.Dropout(p)
        self.double()

    def forward(self, t, x):
        return torch.tanh(self.drop(self.linear(x)))


def differentiate(F, x, gradient, **scheme):
    F.zero_grad()
    x0 = x.clone().requires_grad_()
    solution = odenet.solve(F, x0, gradient=gradient, **scheme)
    solution.last.square().sum().backward()
    return solution, [x0.grad, *(p.grad for p in F.parameters())]


def close(got, expected, rtol=1e-10):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(b.abs().max()))


@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
@pytest.mark.parametrize(("gradient", "scheme"), CASES)
def test_running_statistics_are_updated_once_a_solve(scheme, gradient, momentum, x):
    F = Normed(momentum)
    F.norm.running_mean.fill_(2.0)
    for solves in (1, 2):
        before = F.norm.running_mean.clone()
        F.seen.clear()
        x0 = x.clone().requires_grad_()
        solution = odenet.solve(F, x0, gradient=gradient, **scheme)
        after = F.norm.running_mean.clone()
        if "steps" in scheme:
            mean = torch.stack(F.seen).mean(0)
            torch.testing.assert_close(after, torch.lerp(before, mean, momentum or 1 / solves), rtol=1e-10, atol=1e-12)
        assert F.norm.num_batches_tracked == solves
        assert F.norm.momentum == momentum and F.norm.track_running_stats
        solution.last.sum().backward()
        assert torch.equal(F.norm.running_mean, after) and F.norm.num_batches_tracked == solves
        assert F.norm.track_running_stats and F.norm.momentum == momentum


@pytest.mark.parametrize("backend", ["native", "torchdiffeq"])
def test_rejected_steps_and_the_probe_of_the_first_step_leave_the_statistics_alone(backend):
    class Spiky(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.calls = nn.BatchNorm1d(1, momentum=1.0, affine=False).double(), []

        def forward(self, t, x):
            self.norm(x)
            self.calls.append((float(t), float(x.mean())))
            return 50 * torch.cos(40 * t) * torch.ones_like(x) if t > 0.5 else -x

    F = Spiky()
    stats = odenet.solve(F, torch.randn(8, 1, dtype=torch.float64), rtol=1e-5, atol=1e-5, backend=backend).stats
    assert stats.rejected > 0 and F.norm.num_batches_tracked == 1
    everything = sum(mean for _, mean in F.calls) / len(F.calls)
    assert abs(float(F.norm.running_mean) - everything) > 1e-6
    if backend == "native":  # the calls of accepted steps: the first one and six a step
        tries, kept, at, t = F.calls[2:], [F.calls[0]], 0.0, iter(stats.h)
        h = next(t)
        for group in (tries[i : i + 6] for i in range(0, len(tries), 6)):
            if abs(group[-1][0] - (at + h)) < 1e-9:
                kept += group
                at, h = at + h, next(t, 0.0)
        assert len(kept) == 1 + 6 * stats.accepted
        mean = sum(mean for _, mean in kept) / len(kept)
        assert float(F.norm.running_mean) == pytest.approx(mean, rel=1e-9)


GLOBAL_NORM = nn.BatchNorm1d(3)


def through_a_global(t, x):
    return GLOBAL_NORM(x)


class Dynamics:
    def __init__(self, norm):
        self.norm = norm

    def field(self, t, x):
        return self.norm(x)


@pytest.mark.parametrize("way", ["global", "bound method", "list"])
def test_running_statistics_are_found_where_F_is_a_function(way):
    norm = GLOBAL_NORM if way == "global" else nn.BatchNorm1d(3)
    norms = [norm]
    F = {"global": through_a_global, "bound method": Dynamics(norm).field, "list": lambda t, x: norms[0](x)}[way]
    before = int(norm.num_batches_tracked)
    odenet.solve(F, torch.randn(4, 3), solver="rk4", steps=3)
    assert norm.num_batches_tracked == before + 1


def test_statistics_are_left_alone_by_a_solve_that_breaks_down(x):
    F = Normed()

    def breaking(t, x):
        return F(t, x) * (float("nan") if t > 0.4 else 1)

    before = copy.deepcopy(F.norm.state_dict())
    with pytest.raises(odenet.errors.SolveError):
        odenet.solve(breaking, x, solver="euler", steps=4)
    assert all(torch.equal(v, before[k]) for k, v in F.norm.state_dict().items())
    assert F.norm.momentum == 0.1 and F.norm.track_running_stats


WAYS = {"module": lambda F: F, "closure": lambda F: lambda t, x: F(t, x), "method": lambda F: F.forward}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [Normed, Masked])
@pytest.mark.parametrize(("gradient", "scheme"), EXACT_CASES)
def test_gradients_and_statistics_are_those_of_backprop(scheme, gradient, kind, way, x):
    F = kind()
    results = {}
    for name, method in (("autograd", backprop(gradient)), (gradient, {"gradient": gradient})):
        G = copy.deepcopy(F)
        torch.manual_seed(3)
        x0 = x.clone().requires_grad_()
        solution = odenet.solve(WAYS[way](G), x0, **method, **scheme)
        after_solve = torch.get_rng_state()
        solution.last.square().sum().backward()
        assert torch.equal(torch.get_rng_state(), after_solve)
        results[name] = (solution.last, [x0.grad, *(p.grad for p in G.parameters())], after_solve, list(G.buffers()))
    (y, expected, rng, buffers), (y2, got, rng2, buffers2) = results["autograd"], results[gradient]
    assert torch.equal(y, y2) and torch.equal(rng, rng2)
    close(got, expected)
    assert all(torch.equal(a, b) for a, b in zip(buffers, buffers2, strict=True))
    if kind is Normed:
        assert buffers[-1] == 1


@pytest.mark.parametrize("gradient", gradients_for("rk4"))
def test_one_mask_holds_for_a_solve_and_another_for_the_next(gradient, x):
    masks = []

    class Probe(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.w = nn.Dropout(0.5), nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, t, x):
            mask = self.drop(torch.ones_like(x))
            masks.append(mask)
            return -x * mask * self.w

    F = Probe()
    odenet.solve(F, x, gradient=gradient, **SCHEMES[1]).last.sum().backward()
    assert len(masks) > 4 and all(torch.equal(m, masks[0]) for m in masks)
    first = masks[0]
    masks.clear()
    odenet.solve(F, x, gradient=gradient, **SCHEMES[1]).last.sum().backward()
    assert not torch.equal(masks[0], first)
    masks.clear()
    odenet.ResNet(odenet.depth.PiecewiseConstant([F, Probe()]), 4, gradient=gradient)(x).sum().backward()
    assert len({tuple(m.flatten().tolist()) for m in masks}) == 2  # one a layer


@pytest.mark.parametrize("kind", [Normed, Masked])
@pytest.mark.parametrize(("gradient", "scheme"), CASES)
def test_in_evaluation_mode_nothing_is_updated_or_dropped(kind, gradient, scheme, x):
    F = kind().eval()
    before = copy.deepcopy(F.state_dict())
    rng = torch.get_rng_state()
    first, _ = differentiate(F, x, gradient, **scheme)
    second, _ = differentiate(F, x, gradient, **scheme)
    assert torch.equal(first.last, second.last) and torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in F.state_dict().items())


@pytest.mark.parametrize("inside", [True, False], ids=["backward inside", "backward outside"])
@pytest.mark.parametrize(("gradient", "scheme"), [c for c in EXACT_CASES if c.values[1]["solver"] != "euler"])
def test_under_autocast_the_state_stays_float32_and_the_gradient_is_that_of_backprop(scheme, inside, gradient):
    if "rtol" in scheme:
        scheme = {"solver": "dopri5", "rtol": 1e-2, "atol": 1e-2}
    F = odenet.residual.MLP(3, width=16, norm="none")
    x, dtypes = torch.randn(4, 3), []
    F.last.register_forward_hook(lambda module, args, y: dtypes.append(y.dtype))

    def differentiate(method):
        F.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            last = odenet.solve(F, x, **method, **scheme).last
            loss = last.float().square().sum()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        assert last.dtype == torch.float32
        return [p.grad.clone() for p in F.parameters()]

    expected, got = differentiate(backprop(gradient)), differentiate({"gradient": gradient})
    assert set(dtypes) == {torch.bfloat16}
    assert all(g.dtype == torch.float32 and g.abs().max() > 0 for g in got)
    close(got, expected, rtol=0.02)  # bf16 gradients are accumulated in another order


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_tolerance_that_F_cannot_resolve_under_autocast_is_a_warning(per_sample, recwarn):
    """Below it the error stays where it is, and takes more evaluations."""
    torch.manual_seed(0)
    F, x = odenet.residual.MLP(16).eval(), torch.randn(32, 16)

    def last(tolerance, F=F, x=x):
        given = {"rtol": tolerance, "atol": tolerance, "per_sample": per_sample}
        solution = odenet.solve(F, x, (0.0, 1.0), **given)
        return solution.last.double(), int(solution.stats.nfe)

    with torch.no_grad():
        fine, _ = last(1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            loose, few = last(1e-2)
            assert not recwarn.list
            with pytest.warns(UserWarning, match=r"rtol=1e-05 is below what F resolves in torch.bfloat16.*\(0.0078\)"):
                tight, many = last(1e-5)
    errors = [float((y - fine).abs().max()) for y in (loose, tight)]
    assert few < many and min(errors) > 1e-3 and max(errors) < 1e-2

"""Captured steps look at no value: shown on fake tensors, which have none."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import odenet
from odenet.compiled.captured import CapturedGraphs, field, graphs
from odenet.compiled.captured.adaptive import HostChunk
from odenet.compiled.scope import Leaves
from odenet.depth.weights import weights_over_depth
from odenet.solvers import Problem, Scheme
from odenet.solvers.consistency import Consistency


@pytest.fixture
def absent(monkeypatch):
    """CUDA tensors without values: what looks at one raises."""
    monkeypatch.setattr(Consistency, "_generator_state", lambda self: ())
    with FakeTensorMode(), torch.device("cuda"):
        yield odenet.residual.MLP(4, width=16), torch.randn(8, 4)


def test_masked_steps_look_at_no_value(absent):
    F, x = absent
    problem = Problem(
        weights_over_depth(F, "tied", None), x, (0.0, 1.0), Scheme("dopri5", rtol=1e-3, atol=1e-3), [0.4, 1.0]
    )
    walk, _ = CapturedGraphs(problem).adaptive_walk(problem, True, field.Autocast(False, None))
    with walk.field.of_problem(problem):
        walk.begin()
        for _ in range(5):
            walk.step()
    assert walk.x.device.type == "cuda" and walk.x.shape == x.shape


@pytest.mark.parametrize("solver", ["euler", "rk4", "dopri5"])
def test_fixed_steps_look_at_no_value(absent, solver):
    F, x = absent
    problem = Problem(weights_over_depth(F, "tied", None), x, (0.0, 1.0), Scheme(solver, steps=20), [0.5, 1.0])
    walked = CapturedGraphs(problem).walk(problem, True)
    assert walked is not None and walked.states[0].shape == x.shape and walked.states[0].device.type == "cuda"


def test_the_way_back_looks_at_no_value():
    """On a CPU, where the engine of autograd runs without a driver."""
    with FakeTensorMode():
        F, x = odenet.residual.MLP(4, width=16), torch.randn(8, 4)
        problem = Problem(weights_over_depth(F, "tied", None), x, (0.0, 1.0), Scheme("dopri5"), [0.4, 1.0])
        chunk = HostChunk.of([0.0, 0.25, 0.5, 1.0], [0.25, 0.25, 0.5], torch.randn(3, 8, 4))
        walked = graphs.CapturedWalked([chunk], [], torch.zeros(1), field.Autocast(False, None))
        made = CapturedGraphs(problem)
        a, *gradients = made.back(problem, walked, Leaves.of(F, ()), torch.ones_like(x), [torch.ones_like(x)])
    assert a.shape == x.shape and [g.shape for g in gradients] == [p.shape for p in F.parameters()]
    assert problem.stats.steps_backward == 3 and problem.stats.vjps == 6 + 7 + 6

"""A solve over given steps never waits for the device: shown on fake CUDA tensors, which have no values to wait for."""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import odenet
from odenet.solvers import solvers
from odenet.solvers.consistency import Consistency

IMPLICIT = [name for name in odenet.list_solvers() if type(solvers[name]).__module__.endswith("implicit")]


def solve(**scheme):
    """A solve on a device that is not there; what looks at a value raises."""
    with FakeTensorMode(), torch.no_grad():
        with torch.device("cuda"):
            F, x = odenet.residual.MLP(4, width=16), torch.randn(8, 4)
        return odenet.solve(F, x, (0, 1), ts=[0, 0.31, 1], **scheme)


@pytest.fixture(autouse=True)
def _generators_of_the_device(monkeypatch):
    """Their state is on the host, but reading it needs a driver."""
    monkeypatch.setattr(Consistency, "_generator_state", lambda self: ())


@pytest.mark.parametrize("solver", [name for name in odenet.list_solvers() if name not in IMPLICIT])
def test_fixed_steps_and_outputs_between_them_look_at_no_value(solver):
    solution = solve(solver=solver, steps=5)
    assert solution.ys.shape == (3, 8, 4) and solution.ys.device.type == "cuda"
    assert solution.stats.accepted == 5


def test_adaptive_steps_do():
    with pytest.raises(DataDependentOutputException):
        solve(solver="dopri5", rtol=1e-3, atol=1e-3)

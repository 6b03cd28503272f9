"""Kernels are compared with PyTorch's operations before they are trusted: what is wrong is found."""

from dataclasses import replace

import pytest
import torch

from odenet import compiled
from odenet.compiled.captured import CapturedGraphs, graphs
from odenet.compiled.captured.arithmetic import Arithmetic
from odenet.compiled.captured.proof import difference
from odenet.solvers import solvers
from odenet.solvers.control import controllers
from tests.compiled.captured.smooth import Smooth
from tests.compiled.test_compiled import agree

CPU, F32, F64 = torch.device("cpu"), torch.float32, torch.float64
TABLEAU, CONTROL = solvers["dopri5"].tableau, (controllers["PI6020"], 5)


class OneTermTooFew(Arithmetic):
    def rows_back(self, count):
        return [(b, *rest[:-1], 0.0) if rest else (b,) for b, *rest in super().rows_back(count)]


class LateOutputs(Arithmetic):
    def judged(self, rows, keep):
        judge = super().judged(rows, keep)
        return lambda *given: judge(*given[:8], given[8] + 0.01, *given[9:])


WRONG = {
    "given steps": Arithmetic(replace(TABLEAU, b=(*TABLEAU.b[:-1], 1e-3)), CONTROL),
    "the number of steps": Arithmetic(TABLEAU, (replace(CONTROL[0], safety=0.5), 5)),
    "an output inside them": LateOutputs(TABLEAU, CONTROL),
    "the cotangent of stage 1": OneTermTooFew(TABLEAU, CONTROL),
}


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("what", WRONG)
def test_what_is_computed_wrongly_is_found_and_named(what, dtype):
    right = Arithmetic(TABLEAU, CONTROL)
    assert difference(right, Arithmetic(TABLEAU, CONTROL), CPU, dtype) is None
    assert difference(WRONG[what], right, CPU, dtype) == what


def test_wrong_kernels_are_left_out_with_a_warning(monkeypatch, caplog, x):
    made = []
    monkeypatch.setattr(graphs, "proven", lambda *given: "given steps")
    monkeypatch.setattr(compiled, "_graphs", lambda problem: made.append(CapturedGraphs(problem, True)) or made[-1])
    agree(Smooth(), x, rtol=1e-4, atol=1e-4)
    assert type(made[0]._arithmetic) is Arithmetic and "other values for given steps than PyTorch" in caplog.text

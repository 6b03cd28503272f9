"""The Triton kernels of captured walks: what they compute in Triton's interpreter, and that they are code for a GPU."""

import os
import subprocess
import sys

import numpy
import pytest
import torch

from odenet import compiled
from odenet.compiled.captured import CapturedGraphs
from odenet.solvers import solvers
from tests.compiled.captured.smooth import Smooth
from tests.compiled.test_compiled import EXPLICIT, Swirl, agree, same_steps, solved, ts

triton = pytest.importorskip("triton")


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads it when it is imported


QUICK_AND_ALL = ["dopri5 or float32", pytest.param("eager or outputs or float32", marks=pytest.mark.slow)]


@pytest.fixture
def made(monkeypatch):
    """Captured walks with kernels, on a CPU."""
    made = []
    monkeypatch.setattr(compiled, "_graphs", lambda problem: made.append(CapturedGraphs(problem, True)) or made[-1])
    return made


@pytest.fixture
def interpreted(made):
    """Captured walks whose kernels Triton interprets on the CPU."""
    if not INTERPRETED:
        pytest.skip("runs in the process of test_what_the_kernels_compute")
    with numpy.errstate(all="ignore"):  # in branches that are not taken
        yield made
    assert made and all(type(graphs._arithmetic).__name__ == "Fused" for graphs in made)


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
@pytest.mark.parametrize(
    "which", ["dopri5 or float32", pytest.param("eager or outputs or float32", marks=pytest.mark.slow)]
)
def test_what_the_kernels_compute(which):
    """The tests below that need Triton's interpreter."""
    command = [sys.executable, "-m", "pytest", "--no-header", "-p", "no:cacheprovider", "-k", which, __file__]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:]


@pytest.mark.parametrize("solver", EXPLICIT)
def test_fixed_steps_are_the_eager_ones(interpreted, solver, x):
    u = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    agree(Swirl(), x, ts=[0.0, 0.25, 0.75, 1.5], interval=(0.0, 1.5), args=(u,), solver=solver, steps=6)


@pytest.mark.parametrize("solver", [s for s in EXPLICIT if solvers[s].adaptive and s != "adaptive_heun"])
def test_adaptive_steps_are_the_eager_ones(interpreted, solver, x):
    agree(Smooth(), x, interval=(2.0, 0.0), solver=solver, rtol=1e-4, atol=1e-4)


def test_rejected_forced_and_broken_steps_are_the_eager_ones(interpreted, x):
    F = Swirl()
    for numerics in ({"rtol": 1e-4}, {"rtol": 1e-4, "h_min": 0.1}, {"rtol": 1e-3, "controller": "PID", "h_max": 0.2}):
        got, _ = solved(F, x, True, solver="dopri5", **numerics)
        same_steps(got, solved(F, x, False, solver="dopri5", **numerics)[0], ("nfe", "accepted", "rejected", "forced"))
        assert got.stats.rejected + got.stats.forced > 0


def test_outputs_inside_and_states_of_more_than_a_block(interpreted):
    F, x = Smooth(), torch.randn(700, 3, dtype=torch.float64)
    agree(F, x, ts=ts, interval=(0.0, 1.7), rtol=1e-4, atol=1e-4)
    agree(F, x.t().contiguous().t(), solver="heun2", steps=3)


def test_float32_and_states_whose_slopes_lie_otherwise_in_memory(interpreted):
    def F(t, x):
        return torch.sin(x).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) * torch.cos(t)

    x = torch.randn(2, 3, 4, 4)
    for scheme in ({"solver": "rk4", "steps": 3}, {"rtol": 1e-3, "atol": 1e-3}):
        agree(Plain(F), x, within=1e-5, counts=("accepted", "rejected"), **scheme)


class Plain(torch.nn.Module):
    def __init__(self, F):
        super().__init__()
        self.F = F

    def forward(self, t, x):
        return self.F(t, x)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter needs no compiler")
def test_without_a_compiler_the_walk_goes_on_without_kernels(made, x, caplog):
    """Triton makes no kernels for a CPU."""
    agree(Smooth(), x, rtol=1e-4, atol=1e-4)
    assert type(made[0]._arithmetic).__name__ == "Arithmetic" and "without kernels" in caplog.text


def kernel_arguments(state):
    """Of each kernel: types of its arguments, and constants."""
    d, i, many = "*fp64", "*i64", (state,) * 5
    scalars = dict.fromkeys(("ledger", "given", "constants", "span", "landing", "active", "partial", "elements"), d)
    terms = {"terms": many, "fine_terms": many, "coarse_terms": many, "weights": d, "fine": d, "coarse": d}
    counts = {"n": "i32", "count": "i32", "slot": i, "verdict": i, "grid": d, "sizes": d, "c": d}
    states = dict.fromkeys(("out", "x", "x_next", "k", "k_next", "xs", "size", "times"), state)
    types = {**scalars, **terms, **counts, **states}
    yield "combine", types, {"COUNT": 5, "BLOCK": 1024}
    yield "combine", types, {"COUNT": 5, "BLOCK": 1024, "x": None}
    yield "combine", types, {"COUNT": 5, "BLOCK": 1024, "size": None}
    yield "points", types, {"COUNT": 7, "WIDTH": 8}
    yield "locate", {**types, "n": i}, {}
    yield "plan", types, {"ROWS": 64}
    yield "sums", types, {"FINE": 5, "COARSE": 0, "BLOCK": 1024, "coarse": None, "coarse_terms": None}
    yield "sums", types, {"FINE": 5, "COARSE": 5, "BLOCK": 1024}
    yield "judge", types, {"COARSE": 0, "ROWS": 64, "BLOCK": 1024}
    yield "judge", types, {"COARSE": 5, "ROWS": 64, "BLOCK": 1024}
    yield "move", types, {"FSAL": True, "KEEP": True, "BLOCK": 1024}
    yield "move", types, {"FSAL": False, "KEEP": False, "BLOCK": 1024}
    yield "advance", types, {"COUNT": 5, "KEEP": True, "BLOCK": 1024}


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="the interpreter makes none")
@pytest.mark.parametrize("state", ["*fp32", "*fp64"])
def test_the_kernels_are_code_for_a_gpu(state):
    """Made without one: down to the machine code of an A100 and an H100."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from odenet.compiled.captured import kernels

    for name, types, constants in kernel_arguments(state):
        kernel = getattr(kernels, name)
        signature = {a: "constexpr" if a in constants else types[a] for a in kernel.arg_names}
        values = {(kernel.arg_names.index(a),): value for a, value in constants.items()}
        source = ASTSource(kernel, signature=signature, constexprs=values)
        for capability in (80, 90):
            assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"], name

"""How long a solve takes on a GPU, and how much memory, beside torchdiffeq, diffrax and the evaluations of F alone.

    python -m benchmarks.speed_gpu [--device cuda] [--minutes 4] [--docs] [--out PATH]

The columns of a row are timed in turn, round after round, each call until the device has done it; the table holds
medians, ratios are the result. "captured" are solves with compile=True; "without kernels" the same with operations of
PyTorch for what lies between the evaluations of F; the captured floor is the evaluations of F alone, and their
vector-Jacobian products, replayed as one CUDA graph. diffrax has a column where JAX finds a GPU. After `--minutes` no
row is begun. `--docs` writes docs/speed_gpu.md. With `--device cpu` the same program runs where there is no GPU, the
captured walks as they stand: a rehearsal.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import odenet
from benchmarks.speed import DOCS, processor
from benchmarks.workloads import Call, ConvTwice, Tanh, Workload, by_diffrax
from odenet import compiled
from odenet.compiled.captured import CapturedGraphs
from odenet.compiled.captured.replay import Replay, without_waiting

COLUMNS = ("odenet, eager", "odenet, captured", "without kernels", "torchdiffeq", "diffrax", "floor", "floor, captured")
EAGER, CAPTURED, PLAIN, DIFFEQ, _, FLOOR, _ = COLUMNS
LEAST = 0.005
Row = dict[str, float]


@dataclass
class Job:
    """One row: a workload, and in what precision its F runs.

    Attributes:
        work: the solve.
        low: whether F runs under bfloat16 autocast, with images whose channels lie together.
        goals: (column above the line, column below it, bound, whether that is an upper one).
    """

    work: Workload
    low: bool = False
    goals: list[tuple[str, str, float, bool]] = field(default_factory=list)


def jobs(device: torch.device) -> list[Job]:
    """The rows, those with goals first."""
    torch.manual_seed(0)
    F, C = Tanh().to(device), ConvTwice().to(device)
    small, large = torch.randn(32, 2).to(device), torch.randn(1024, 2).to(device)
    image = torch.randn(128, 64, 6, 6).to(device)
    adaptive, conv = {"rtol": 1e-5, "atol": 1e-5}, {"rtol": 1e-3, "atol": 1e-3}
    faster, near = [(DIFFEQ, CAPTURED, 15.0, False)], [(CAPTURED, FLOOR, 1.10, True)]
    euler = {"solver": "euler", "steps": 100}
    flat = copy.deepcopy(C).to(memory_format=torch.channels_last)
    rows = [
        Job(Workload("MLP, batch 32, forward", F, small, 10.0, adaptive), goals=faster),
        Job(Workload("MLP, batch 32, gradient", F, small, 10.0, adaptive, "autograd"), goals=faster),
        Job(Workload("MLP, batch 1024, forward", F, large, 10.0, adaptive), goals=faster),
        Job(Workload("MLP, batch 1024, gradient", F, large, 10.0, adaptive, "autograd"), goals=faster),
        Job(Workload("100 Euler steps, batch 32, forward", F, small, 10.0, euler)),
        Job(Workload("conv, forward", C, image, 1.0, conv), goals=near),
        Job(Workload("conv, gradient, all activations", C, image, 1.0, conv, "autograd")),
        Job(Workload("conv, gradient, one step's activations", C, image, 1.0, conv, "checkpoint"), goals=near),
    ]
    last = image.to(memory_format=torch.channels_last)
    low = {"rtol": 1e-2, "atol": 1e-2}
    rows += [
        Job(Workload("conv, bfloat16, channels last, forward", flat, last, 1.0, low), True, near),
        Job(Workload("conv, bfloat16, channels last, gradient", flat, last, 1.0, low, "checkpoint"), True),
    ]
    wide = torch.randn(128, 64, 32, 32).to(device) if device.type == "cuda" else torch.randn(2, 64, 32, 32)
    rows.append(Job(Workload("conv, 32x32, forward", C, wide, 1.0, conv), goals=near))
    return rows


def columns(job: Job) -> dict[str, Call]:
    """What is timed in a row."""
    work, device = job.work, job.work.x.device
    counts = work.block(False)
    in_precision(job, partial(work.run, counts))()
    nfe, vjps = counts.stats.nfe, counts.stats.vjps or (counts.stats.nfe if work.gradient else 0)
    calls: dict[str, Call | None] = {EAGER: partial(work.run, work.block(False))}
    calls[CAPTURED] = captured(work, device.type == "cuda")
    calls[PLAIN] = captured(work, False)
    calls[DIFFEQ] = by_torchdiffeq(work)
    if not job.low:
        calls["diffrax"] = diffrax_on_a_gpu(work, device)
    calls[FLOOR] = floor(work, nfe, vjps)
    calls["floor, captured"] = captured_floor(job, nfe, vjps)
    return {name: in_precision(job, call) for name, call in calls.items() if call is not None}


def in_precision(job: Job, call: Call) -> Call:
    """A call with F in the row's precision."""
    if not job.low:
        return call

    def run() -> Any:
        with torch.autocast(job.work.x.device.type, torch.bfloat16):
            return call()

    return run


def captured(work: Workload, fused: bool) -> Call:
    """A captured solve, of a copy of F, since captures belong to an F; nothing but a captured one is timed."""
    own = replace(work, F=copy.deepcopy(work.F))
    block, made = own.block(True), []

    def run() -> Any:
        before = compiled._graphs
        compiled._graphs = lambda problem: made.append(CapturedGraphs(problem, fused)) or made[-1]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", compiled.CompileWarning)
                return own.run(block)
        finally:
            compiled._graphs = before

    return run


def by_torchdiffeq(work: Workload) -> Call | None:
    """torchdiffeq.odeint; the adjoint where one step's activations are to be held."""
    if find_spec("torchdiffeq") is None:
        return None
    from torchdiffeq import odeint, odeint_adjoint

    ts = torch.tensor([0.0, work.end], device=work.x.device)
    options: dict[str, Any] = {"rtol": work.numerics.get("rtol", 1e-7), "atol": work.numerics.get("atol", 1e-9)}
    if work.fixed:
        options = {"method": work.numerics["solver"], "options": {"step_size": work.end / work.numerics["steps"]}}
    solver: Any = odeint_adjoint if work.gradient == "checkpoint" else odeint
    return partial(work.run, lambda x: solver(work.F, x, ts, **options)[-1])


def diffrax_on_a_gpu(work: Workload, device: torch.device) -> Call | None:
    """diffrax under jit, on JAX's GPU; None where it has none, unless this is a rehearsal."""
    if find_spec("diffrax") is None or find_spec("jax") is None:
        return None
    import jax

    try:
        if device.type == "cuda" and jax.default_backend() != "gpu":
            return None
        return by_diffrax(replace(work, F=copy.deepcopy(work.F).cpu(), x=work.x.cpu()))
    except RuntimeError as error:
        print(f"JAX does not run here: {error}", flush=True)
        return None


def evaluations(work: Workload, nfe: int, vjps: float) -> Callable[[Tensor, list[Tensor]], None]:
    """The same evaluations of F, and the same VJPs, and nothing else; with "checkpoint" each evaluation twice."""
    t = torch.zeros((), device=work.x.device)
    again = work.gradient == "checkpoint"

    def run(x: Tensor, parameters: list[Tensor]) -> None:
        if not work.gradient or again:
            with torch.no_grad():
                for _ in range(nfe):
                    work.F(t, x)
        for _ in range(round(vjps)):
            k = work.F(t, x)
            torch.autograd.grad(k, [x, *parameters], k.detach(), allow_unused=True)

    return run


def floor(work: Workload, nfe: int, vjps: float) -> Call:
    """F alone, eagerly."""
    run = evaluations(work, nfe, vjps)
    return lambda: run(work.x.clone().requires_grad_(), list(work.F.parameters()))


def captured_floor(job: Job, nfe: int, vjps: float) -> Call:
    """F alone, replayed as one graph; the first call captures it."""
    own = replace(job.work, F=copy.deepcopy(job.work.F))
    run, x = evaluations(own, nfe, vjps), own.x.clone()
    work = Replay(lambda: run(x.detach().requires_grad_(), list(own.F.parameters())), x.device)

    def call() -> None:
        if work.graph is None:
            torch.clear_autocast_cache()
            work.capture()
            torch.clear_autocast_cache()
        work()

    return call


def measure(job: Job, rounds: int, seconds: float, skip: list[str]) -> tuple[Row, Row]:
    """Medians in milliseconds, and MiB that the first call of each column took from the device, what it keeps among
    them."""
    device = job.work.x.device
    calls, memory, repeats, lasts = columns(job), {}, {}, 0.0
    for name, call in list(calls.items()):
        try:
            assert name not in skip, "left out"
            memory[name] = megabytes(device, call)
        except Exception as error:  # the other columns are worth having
            print(f"{job.work.name}: no {name}: {error}", flush=True)
            del calls[name]
            continue
        timed(device, call, 1)
        once = max(timed(device, call, 1), 1e-5)
        repeats[name] = max(1, round(LEAST / once))
        lasts += repeats[name] * once
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(max(3, min(rounds, int(seconds / lasts)))):
        for name, call in calls.items():
            times[name].append(timed(device, call, repeats[name]) / repeats[name] * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}, memory


def timed(device: torch.device, call: Call, repeats: int) -> float:
    """Seconds of so many calls, until the device has done them."""
    wait(device)
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    wait(device)
    return time.perf_counter() - begin


def wait(device: torch.device) -> None:
    """Until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def megabytes(device: torch.device, call: Call) -> float:
    """MiB by which the memory that PyTorch holds of a GPU was larger during a call than before; 0 elsewhere."""
    if device.type != "cuda":
        call()
        return 0.0
    wait(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_reserved(device)
    call()
    wait(device)
    return (torch.cuda.max_memory_reserved(device) - before) / 2**20


def waits(device: torch.device) -> str:
    """Whether a solve of fixed steps waits for the device, with its gradient: as a sentence."""
    F, x = Tanh().to(device), torch.randn(32, 2).to(device).requires_grad_()
    if device.type != "cuda":
        return "Whether a solve waits for the device was not looked at without one."
    for compile in (False, True):
        scheme = {"solver": "rk4", "steps": 20, "gradient": "checkpoint", "compile": compile}
        odenet.solve(F, x, **scheme).last.sum().backward()
        try:
            with without_waiting():
                odenet.solve(F, x, **scheme).last.sum().backward()
        except RuntimeError as error:
            return f"20 rk4 steps and their gradient, compile={compile}, wait for the device: {error}"
    return "20 rk4 steps and their gradient wait for the device nowhere, eagerly and captured (checked in this run)."


def name_of(device: torch.device) -> str:
    """What the device is called."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"no GPU, {processor()}"


def page(device: torch.device, table: dict[str, Row], memory: dict[str, Row], rows: list[Job], sentence: str) -> str:
    """What was measured, as a page."""
    shown = [c for c in COLUMNS if any(c in row for row in table.values())]
    lines = [
        "# Speed on a GPU",
        "",
        "`python -m benchmarks.speed_gpu --docs` wrote this page; the problems are those of [speed.md](speed.md), and",
        "`benchmarks/speed_gpu.py` says what the columns are. Those of a row are timed in turn: ratios are the result.",
        "",
        f"{name_of(device)}, torch {torch.__version__}, float32 where nothing else is said; medians in milliseconds.",
        "",
        "| work | " + " | ".join(shown) + " |",
        "| --- |" + " ---: |" * len(shown),
    ]
    for name, row in table.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[c]:.3g}" if c in row else "" for c in shown) + " |")
    lines += ["", "| work | ratio | measured | goal | |", "| --- | --- | ---: | ---: | --- |"]
    for job in rows:
        row = table.get(job.work.name, {})
        for over, under, bound, most in job.goals:
            if over in row and under in row:
                got = row[over] / row[under]
                met = "met" if (got <= bound if most else got >= bound) else "missed"
                lines.append(
                    f"| {job.work.name} | {over} / {under} | {got:.2f} | {'≤' if most else '≥'} {bound:g} | {met} |"
                )
    lines += ["", sentence, ""]
    if any(any(row.values()) for row in memory.values()):
        lines += [
            "Memory of the device during the first call, in MiB beyond what was held before it; captures keep theirs.",
            "",
        ]
        lines += ["| work | " + " | ".join(shown) + " |", "| --- |" + " ---: |" * len(shown)]
        for name, row in memory.items():
            lines.append(f"| {name} | " + " | ".join(f"{row[c]:.0f}" if c in row else "" for c in shown) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Time, print, and write the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a rehearsal")
    parser.add_argument("--minutes", type=float, default=4, help="after which no row is begun")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=6, help="for a row at most, with fewer rounds then")
    parser.add_argument("--docs", action="store_true", help="write docs/speed_gpu.md")
    parser.add_argument("--out", type=Path, help="write the page there as well, after every row")
    parser.add_argument("--skip", nargs="*", default=[], metavar="COLUMN", help="columns to be left out")
    options = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX would take most of the memory
    device, begin = torch.device(options.device), time.perf_counter()
    if device.type == "cpu":
        torch.set_num_threads(1)
    rows, table, memory = jobs(device), {}, {}
    sentence = waits(device)
    print(name_of(device), torch.__version__, sentence, flush=True)
    text = ""
    for job in rows:
        if time.perf_counter() - begin > 60 * options.minutes:
            break
        name = job.work.name
        table[name], memory[name] = measure(job, options.rounds, options.seconds, options.skip)
        times = {column: round(value, 3) for column, value in table[name].items()}
        print(f"{time.perf_counter() - begin:.0f} s", name, times, memory[name], flush=True)
        text = page(device, table, memory, rows, sentence)
        if options.out:
            options.out.write_text(text)
    print(text)
    if options.docs:
        (DOCS / "speed_gpu.md").write_text(text)


if __name__ == "__main__":
    main()

"""How long a solve takes, beside torchdiffeq, torchode, diffrax and the evaluations of F alone.

    python -m benchmarks.speed [--threads 2] [--rounds 40] [--seconds 60] [--cpu] [--quick] [--docs]
        [--rows mixed_stiffness ...]

One run: the columns of a row are timed in turn, round after round, and the table holds medians. Ratios within a row are
the result; times differ between machines. `--docs` writes what was measured into docs/speed.md, between its marks.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parents[1] / "docs"
FIGURE = "![Time of a solve in units of its floor](figures/speed.png)"
MARKS = "<!-- measured -->", "<!-- end of what was measured -->"
COLUMNS = ("odenet, eager", "odenet, compiled", "torchdiffeq", "torchode", "diffrax", "floor", "floor, compiled")
LEAST = 0.01
Table = dict[str, dict[str, float]]


class Goal(NamedTuple):
    """What a ratio of two columns is to be.

    Attributes:
        row: of the table.
        over: column above the line.
        under: column below it.
        bound: at most this, or at least.
        most: whether the bound is an upper one.
    """

    row: str
    over: str
    under: str
    bound: float
    most: bool = True


EAGER, COMPILED, DIFFEQ, DIFFRAX, FLOOR, LOOP = (*COLUMNS[:3], "diffrax", "floor", "plain loop")
MIXED = "mixed stiffness, per sample, batch 64"
GOALS = (
    Goal("MLP, batch 32, forward", COMPILED, DIFFRAX, 1.0),
    Goal("MLP, batch 32, forward", DIFFEQ, COMPILED, 12, False),
    Goal("MLP, batch 32, forward", DIFFEQ, EAGER, 2, False),
    Goal("MLP, batch 32, gradient", COMPILED, DIFFRAX, 1.0),
    Goal("MLP, batch 32, gradient", DIFFEQ, COMPILED, 7, False),
    Goal("MLP, batch 32, gradient", DIFFEQ, EAGER, 1.5, False),
    Goal("MLP, batch 1024, forward", COMPILED, DIFFRAX, 0.95),
    Goal("MLP, batch 1024, gradient", COMPILED, DIFFRAX, 0.7),
    Goal("100 Euler steps, batch 32, forward", EAGER, LOOP, 1.05),
    Goal("100 Euler steps, batch 32, forward", LOOP, COMPILED, 4, False),
    Goal(f"{MIXED}, forward", COMPILED, DIFFRAX, 1.0),
    Goal(f"{MIXED}, gradient", COMPILED, DIFFRAX, 1.0),
    Goal("conv, forward", EAGER, FLOOR, 1.10),
    Goal("conv, gradient, one step's activations", EAGER, FLOOR, 1.10),
    Goal("conv, gradient, one step's activations", DIFFEQ, EAGER, 8, False),
)


def main() -> None:
    """Time, print, and write `docs/speed.md` with its figure if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=60, help="for a row at most, with fewer rounds then")
    parser.add_argument("--first", metavar="ROW", help="time the first compiled call of a row alone, and print it")
    parser.add_argument(
        "--cpu", action="store_true", help="time of the processor instead of the clock's: on a busy machine"
    )
    parser.add_argument("--quick", action="store_true", help="without the convolutions and the first calls")
    parser.add_argument("--rows", nargs="+", help="only rows whose names hold one of these, _ for a space")
    parser.add_argument("--docs", action="store_true", help="write docs/speed.md and docs/figures/speed.png")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.environ.setdefault(
        "XLA_FLAGS",
        f"--xla_cpu_multi_thread_eigen={'true' if options.threads > 1 else 'false'} "
        f"intra_op_parallelism_threads={options.threads}",
    )
    import torch

    torch.set_num_threads(options.threads)
    if options.first:
        print(json.dumps(first_call(options.first)))
        return
    print(
        f"{options.threads} threads, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}"
    )
    clock = time.process_time if options.cpu else time.perf_counter
    first = () if options.rows or options.quick else ("MLP, batch 32, forward", "MLP, batch 32, gradient")
    starts = {row: first_calls(row, options.threads) for row in first}
    table = measure(options.quick, options.rounds, options.seconds, clock, options.rows)
    kind = "of the processor" if options.cpu else "of the clock"
    text = markdown(table, starts, options.threads, torch.__version__, kind)
    print(text)
    if options.docs:
        page = DOCS / "speed.md"
        before, rest = page.read_text().split(MARKS[0])
        page.write_text(before + MARKS[0] + f"\n\n{text}\n{FIGURE}\n" + MARKS[1] + rest.split(MARKS[1])[1])
        figure(table)


def first_calls(row: str, threads: int) -> list[float]:
    """Seconds of the first compiled call of a process that finds nothing on disk, and of the next process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.speed", "--threads", str(threads), "--first", row]
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}
        runs = [subprocess.run(command, env=environment, capture_output=True, check=True) for _ in range(2)]
    return [json.loads(run.stdout.splitlines()[-1]) for run in runs]


def first_call(row: str) -> float:
    """Seconds of the first compiled call of this process."""
    from benchmarks.workloads import Workload, workloads

    work = next(work for work in workloads(True) if isinstance(work, Workload) and work.name == row)
    block = work.block(True)
    begin = time.perf_counter()
    work.run(block)
    return time.perf_counter() - begin


def measure(
    quick: bool, rounds: int, seconds: float, clock: Callable[[], float], wanted: list[str] | None = None
) -> Table:
    """Medians in milliseconds of every row and column."""
    from benchmarks.workloads import contenders, workloads

    table: Table = {}
    for work in workloads(quick):
        if wanted and not any(name in work.name.replace(",", "").replace(" ", "_") for name in wanted):
            continue
        calls, repeats, lasts = contenders(work), {}, 0.0
        for name, call in calls.items():
            call()
            begin = time.perf_counter()
            call()
            once = max(time.perf_counter() - begin, 1e-5)
            repeats[name] = max(1, round(LEAST / once))
            lasts += repeats[name] * once
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(max(3, min(rounds, int(seconds / lasts)))):
            for name, call in calls.items():
                begin = clock()
                for _ in range(repeats[name]):
                    call()
                times[name].append((clock() - begin) / repeats[name] * 1e3)
        table[work.name] = {name: statistics.median(values) for name, values in times.items()}
        print(work.name, {name: round(value, 3) for name, value in table[work.name].items()}, flush=True)
    return table


def markdown(table: Table, starts: dict[str, list[float]], threads: int, torch_version: str, kind: str) -> str:
    """What was measured, as a part of a page."""
    lines = [
        f"One run of `make bench` on {os.cpu_count()} cores ({processor()}), {threads} "
        f"thread{'s' if threads > 1 else ''}, float32 (mixed stiffness: float64), torch "
        f"{torch_version}; medians in milliseconds {kind}.",
        "",
        "| work | " + " | ".join(COLUMNS) + " |",
        "| --- |" + " ---: |" * len(COLUMNS),
    ]
    for name, row in table.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[c]:.3g}" if c in row else "" for c in COLUMNS) + " |")
    for name, row in table.items():
        if LOOP in row:
            lines += ["", f"{name}: a loop written by hand takes {row[LOOP]:.3g} ms."]
    lines += ["", "| work | ratio | measured | goal | |", "| --- | --- | ---: | ---: | --- |"]
    for goal in GOALS:
        row = table.get(goal.row, {})
        if goal.over in row and goal.under in row:
            got = row[goal.over] / row[goal.under]
            met = got <= goal.bound if goal.most else got >= goal.bound
            bound = f"{'≤' if goal.most else '≥'} {goal.bound:g}"
            lines.append(
                f"| {goal.row} | {goal.over} / {goal.under} | {got:.2f} | {bound} | {'met' if met else 'missed'} |"
            )
    if starts:
        lines += ["", "| first compiled call | seconds | in the next process | ratio (goal ≤ 0.33) |",
                  "| --- | ---: | ---: | ---: |"]  # fmt: skip
    for name, (first, second) in starts.items():
        lines.append(f"| {name} | {first:.1f} | {second:.1f} | {second / first:.2f} |")
    return "\n".join(lines) + "\n"


def processor() -> str:
    """What the cores are called."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def figure(table: Table) -> None:
    """Times of all columns in units of the floor."""
    from odenet.plotting.style import LEGEND, MUTED, NETWORKS, dress, new_figure

    shown = [c for c in COLUMNS if any(c in row for row in table.values()) and not c.startswith("floor")]
    page = new_figure(7.2, 0.42 * len(table) + 1.1)
    axes = page.subplots()
    dress(axes, "Time of a solve over that of its evaluations of F", grid="x")
    for position, row in enumerate(table.values()):
        values = [row[c] / row["floor"] for c in shown if c in row]
        axes.plot([min(values), max(values)], [position] * 2, color="0.85", zorder=1)
    for color, column in zip(NETWORKS, shown, strict=False):
        points = [(row[column] / row["floor"], i) for i, row in enumerate(table.values()) if column in row]
        axes.scatter(*zip(*points, strict=True), label=column, s=34, color=color, zorder=2)
    axes.axvline(1, color=MUTED, linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yticks(range(len(table)), list(table))
    axes.invert_yaxis()
    axes.set_xlabel("time / floor")
    page.legend(loc="outside lower center", ncols=len(shown), **LEGEND)
    page.savefig(DOCS / "figures" / "speed.png")


if __name__ == "__main__":
    main()

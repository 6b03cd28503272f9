"""How long a solve takes, beside torchdiffeq, torchode, diffrax and the evaluations of F alone.

    python -m benchmarks.speed [--threads 2] [--rounds 40] [--cpu] [--quick] [--docs]

One run: the columns of a row are timed in turn, round after round, and the table holds medians. Ratios within a row are
the result; times differ between machines.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
COLUMNS = ("odenet, eager", "odenet, compiled", "torchdiffeq", "torchode", "diffrax", "floor", "floor, compiled")
LEAST = 0.01
Table = dict[str, dict[str, float]]


def main() -> None:
    """Time, print, and write `docs/speed.md` with its figure if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument(
        "--cpu", action="store_true", help="time of the processor instead of the clock's: on a busy machine"
    )
    parser.add_argument("--quick", action="store_true", help="without the convolutions")
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
    print(
        f"{options.threads} threads, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}"
    )
    table, first = measure(options.quick, options.rounds, time.process_time if options.cpu else time.perf_counter)
    text = markdown(
        table, first, options.threads, torch.__version__, "of the processor" if options.cpu else "of the clock"
    )
    print(text)
    if options.docs:
        (DOCS / "speed.md").write_text(text)
        figure(table)


def measure(quick: bool, rounds: int, clock: Callable[[], float]) -> tuple[Table, dict[str, float]]:
    """Medians in milliseconds of every row and column, and the seconds that the first compiled calls took."""
    from benchmarks.workloads import contenders, workloads

    table: Table = {}
    first: dict[str, float] = {}
    for work in workloads(quick):
        calls = contenders(work)
        repeats = {}
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if name == "odenet, compiled":
                first[work.name] = time.perf_counter() - begin
            call()
            begin = time.perf_counter()
            call()
            repeats[name] = max(1, round(LEAST / max(time.perf_counter() - begin, 1e-5)))
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                begin = clock()
                for _ in range(repeats[name]):
                    call()
                times[name].append((clock() - begin) / repeats[name] * 1e3)
        table[work.name] = {name: statistics.median(values) for name, values in times.items()}
        print(work.name, {name: round(value, 3) for name, value in table[work.name].items()}, flush=True)
    return table, first


def markdown(table: Table, first: dict[str, float], threads: int, torch_version: str, kind: str) -> str:
    """The table as a page."""
    load = os.getloadavg()[0]
    lines = [
        "# Speed",
        "",
        f"Made by `make bench`: one run on {platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{threads} thread{'s' if threads > 1 else ''}, float32, torch {torch_version}, load {load:.1f}. Columns of a "
        f"row are timed in turn; milliseconds {kind} are medians, and the ratios within a row are the result.",
        "",
        "| work | " + " | ".join(COLUMNS) + " |",
        "| --- |" + " ---: |" * len(COLUMNS),
    ]
    for name, row in table.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[c]:.3g}" if c in row else "" for c in COLUMNS) + " |")
    lines += [
        "",
        "| work | torchdiffeq / eager | torchdiffeq / compiled | compiled / diffrax | eager / floor |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, row in table.items():
        pairs = (("torchdiffeq", "odenet, eager"), ("torchdiffeq", "odenet, compiled"),
                 ("odenet, compiled", "diffrax"), ("odenet, eager", "floor"))  # fmt: skip
        lines.append(f"| {name} | " + " | ".join(ratio(row, *pair) for pair in pairs) + " |")
    for name, row in table.items():
        if "plain loop" in row:
            lines += ["", f"{name}: a loop written by hand takes {row['plain loop']:.3g} ms, that is "
                      f"{ratio(row, 'odenet, eager', 'plain loop')} of it eagerly and "
                      f"{ratio(row, 'odenet, compiled', 'plain loop')} compiled."]  # fmt: skip
    if first:
        lines += ["", "First compiled call, with compilation: " +
                  "; ".join(f"{name}, {seconds:.3g} s" for name, seconds in first.items()) + "."]  # fmt: skip
    lines += [
        "",
        "Floor: the same evaluations of F, and the same vector-Jacobian products, and nothing else; for the gradient "
        "that holds one step's activations each evaluation twice. torchode gives every sample its own steps. "
        "torchdiffeq's column in that row is its adjoint.",
        "",
        "![Time of a solve](figures/speed.png)",
        "",
    ]
    return "\n".join(lines)


def ratio(row: dict[str, float], a: str, b: str) -> str:
    """a / b, if both were timed."""
    return f"{row[a] / row[b]:.2f}" if a in row and b in row else ""


def figure(table: Table) -> None:
    """Times of all columns in units of the floor."""
    from odenet.plotting.style import LEGEND, MUTED, NETWORKS, dress, new_figure

    shown = [c for c in COLUMNS if any(c in row for row in table.values()) and not c.startswith("floor")]
    page = new_figure(7.2, 0.42 * len(table) + 1.1)
    axes = page.subplots()
    dress(axes, "Time of a solve, in units of its evaluations of F (and their products) alone", grid="x")
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

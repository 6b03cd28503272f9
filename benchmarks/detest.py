"""The DETEST problems with every explicit adaptive method, beside the peers' same methods.

    python -m benchmarks.detest

writes docs/detest.json (every measurement) and docs/detest.md (the table). With `--only odenet` the others' numbers are
kept as they are. `--controller I` writes nothing: it prints, for odenet's methods, the sum of NFE and the
geometric mean of error / tolerance under that controller, beside those of docs/detest.json.
"""

from __future__ import annotations

import argparse
import json
import math
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.peers import TIMES, libraries
from odenet.solvers.scheme import DEFAULT_CONTROLLER
from tests.oracles.detest import DETEST, reference

DOCS = Path(__file__).resolve().parents[1] / "docs"
TOLERANCES = (1e-3, 1e-6, 1e-9)
LEAST = {"adaptive_heun": 1e-3, "fehlberg2": 1e-3, "bosh3": 1e-6}  # below, more than 100,000 calls for the 25 problems
Row = dict[str, Any]


def measure(library: str, method: str, tolerance: float, **numerics: str) -> list[Row]:
    """One row for each problem: the largest error over the 20 times and all components, in units of the tolerance."""
    solve, _ = libraries()[library]
    rows = []
    for problem in DETEST:
        ys, nfe = solve(problem, method, tolerance, **numerics)
        exact = reference(problem.name, TIMES)
        error = None if ys is None else float((np.abs(ys - exact) / (tolerance * (1 + np.abs(exact)))).max())
        rows.append(
            {
                "library": library,
                "method": method,
                "tolerance": tolerance,
                "problem": problem.name,
                "error": error,
                "nfe": nfe,
            }
        )
    return rows


def cases() -> list[tuple[str, str, float]]:
    """All (library, method, tolerance)."""
    return [
        (library, method, tolerance)
        for library, (_, methods) in libraries().items()
        for method in methods
        for tolerance in TOLERANCES
        if tolerance >= LEAST.get(method, 0)
    ]


def pick(rows: list[Row], **wanted: Any) -> list[Row]:
    """The rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def geometric_mean(values: list[float]) -> float:
    """exp of the mean of the logarithms."""
    return math.exp(sum(map(math.log, values)) / len(values))


def summary(rows: list[Row]) -> list[str]:
    """The table: one line for each method and tolerance, over the 25 problems."""
    lines = [
        "| method | tolerance | library | NFE, sum | error / tolerance, geometric mean | median | largest | failures |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        for tolerance in TOLERANCES:
            for library in dict.fromkeys(row["library"] for row in rows):
                some = pick(rows, method=method, tolerance=tolerance, library=library)
                errors = [row["error"] for row in some if row["error"] is not None]
                if errors:
                    lines.append(
                        f"| `{method}` | {tolerance:.0e} | {library} | {sum(row['nfe'] for row in some):,} "
                        f"| {geometric_mean(errors):.2g} | {median(errors):.2g} | {max(errors):.2g} "
                        f"| {len(some) - len(errors)} |"
                    )
    return lines


def against_peers(rows: list[Row]) -> list[str]:
    """For each method that a peer has: in how many problems ours is at most the best peer's, and the ratios."""
    lines = [
        "| method | tolerance | error at most the best peer's | error / best peer's | NFE at most the best peer's "
        "| NFE / best peer's | error at equal work / best peer's |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for method in dict.fromkeys(row["method"] for row in rows if row["library"] != "odenet"):
        for tolerance in TOLERANCES:
            errors, counts, fair = [], [], []
            for ours in pick(rows, method=method, tolerance=tolerance, library="odenet"):
                peers = [
                    row
                    for row in pick(rows, method=method, tolerance=tolerance, problem=ours["problem"])
                    if row["library"] != "odenet" and row["error"] is not None
                ]
                if peers and ours["error"] is not None:
                    errors.append(ours["error"] / min(row["error"] for row in peers))
                    counts.append(ours["nfe"] / min(row["nfe"] for row in peers))
                    order = ORDERS[method]
                    fair.append(max(ours["error"] / p["error"] * (ours["nfe"] / p["nfe"]) ** order for p in peers))
            if errors:
                lines.append(
                    f"| `{method}` | {tolerance:.0e} | {sum(e <= 1.0 for e in errors)} of {len(errors)} "
                    f"| {geometric_mean(errors):.2f} | {sum(c <= 1.0 for c in counts)} of {len(counts)} "
                    f"| {geometric_mean(counts):.2f} | {geometric_mean(fair):.2f} |"
                )
    return lines


def beside(controller: str, methods: list[str] | None) -> None:
    """Print what another controller makes of odenet's methods, beside what is on record for the default one."""
    record: list[Row] = json.loads((DOCS / "detest.json").read_text())
    print(
        f"| method | tolerance | calls, {controller} | error, {controller} | calls, `{DEFAULT_CONTROLLER}` "
        f"| error, `{DEFAULT_CONTROLLER}` |\n| --- | --- | ---: | ---: | ---: | ---: |"
    )
    for library, method, tolerance in cases():
        if library == "odenet" and (not methods or method in methods):
            line = f"| `{method}` | {tolerance:.0e} |"
            default = pick(record, library=library, method=method, tolerance=tolerance)
            for rows in (measure(library, method, tolerance, controller=controller), default):
                errors = [row["error"] for row in rows if row["error"] is not None]
                line += f" {sum(row['nfe'] for row in rows):,} | {geometric_mean(errors):.1f} |"
            print(line, flush=True)


ORDERS = {"adaptive_heun": 2, "fehlberg2": 2, "bosh3": 3, "dopri5": 5, "tsit5": 5, "dopri8": 8}


PAGE = """# DETEST

The 25 non-stiff problems of Hull, Enright, Fellen and Sedgwick (1972) on [0, 20], each solved for 20 equally spaced
outputs with rtol = atol = tolerance. The error is the largest over outputs and components, divided by
tolerance · (1 + |y|), against SciPy's DOP853 at 1e-13. NFE counts the calls of F. Methods of order 2 and 3 stop at
tolerances below which the 25 problems take more than 100,000 calls. Peers: {peers}. Written by
`python -m benchmarks.detest`; every single number is in [detest.json](detest.json); what it says is in
[solvers.md](solvers.md).

## Beside the best peer, problem by problem

Means of ratios are geometric. The best peer is taken anew for each problem and each column: the most accurate one for
the error, the cheapest one for NFE. At equal work: (error / peer's) · (NFE / peer's)^p for the
better peer of each problem.

{beside}

## All

{everything}
"""


def page(rows: list[Row]) -> str:
    """docs/detest.md."""
    peers = ", ".join(f"{name} {version(name)}" for name in ("torchdiffeq", "diffrax") if pick(rows, library=name))
    beside, everything = "\n".join(against_peers(rows)), "\n".join(summary(rows))
    return PAGE.format(peers=peers, beside=beside, everything=everything)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", choices=list(libraries()), help="measure this library again, keep the others' numbers"
    )
    parser.add_argument("--methods", nargs="*", help="measure these methods again only")
    parser.add_argument("--controller", help="print odenet's numbers with this controller; docs/ is left as it is")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.controller is not None:
        return beside(given.controller, given.methods)
    path = DOCS / "detest.json"
    rows: list[Row] = json.loads(path.read_text()) if path.exists() else []
    rows = [row for row in rows if (row["library"], row["method"], row["tolerance"]) in cases()]
    for library, method, tolerance in cases():
        if given.only in (None, library) and (not given.methods or method in given.methods):
            fresh = measure(library, method, tolerance)
            old = pick(rows, library=library, method=method, tolerance=tolerance)
            rows = [row for row in rows if row not in old] + fresh
            print(library, method, tolerance, sum(row["nfe"] for row in fresh), flush=True)
            path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    order = [(library, method) for library, method, _ in cases()]
    rows.sort(key=lambda row: order.index((row["library"], row["method"])))
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    (DOCS / "detest.md").write_text(page(rows))


if __name__ == "__main__":
    main()

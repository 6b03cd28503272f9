"""The DETEST problems with every adaptive method, beside the peers' same methods.

    python -m benchmarks.detest

writes docs/detest.json (every measurement) and docs/detest.md (the tables). What is in the json already is not measured
again, so that a run can be stopped (or told to stop: `--minutes 4`) and goes on where it was; `--again` measures anew,
`--libraries` and `--methods` pick. `--controller I` writes nothing: it prints, for odenet's methods, the sum of NFE and
the geometric mean of error / tolerance under that controller, beside those of docs/detest.json.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.peers import BUDGET, OTHERS, OVER, TIMES, libraries
from odenet.solvers import solvers
from odenet.solvers.scheme import DEFAULT_CONTROLLER
from tests.oracles.detest import DETEST, Problem, reference

DOCS = Path(__file__).resolve().parents[1] / "docs"
TOLERANCES = (1e-3, 1e-6, 1e-9)
Row = dict[str, Any]
KEY = ("library", "method", "tolerance", "problem")


def measure(library: str, method: str, tolerance: float, problem: Problem, **numerics: str) -> Row:
    """One solve: the largest error over the 20 times and all components, in units of the tolerance."""
    answer = libraries()[library][0](problem, method, tolerance, **numerics)
    exact = reference(problem.name, TIMES)
    error = None
    if answer.ys is not None:
        error = float((np.abs(answer.ys - exact) / (tolerance * (1 + np.abs(exact)))).max())
    values = (library, method, tolerance, problem.name)
    return dict(zip(KEY, values, strict=True)) | {"error": error, "nfe": answer.nfe, "failure": answer.failure}


def surely_over(library: str, method: str, tolerance: float, known: dict[str, Row]) -> list[str]:
    """The problems that would take more than `BUDGET` calls, judged by those at the tolerance before: they grow like
    tolerance^(-1/q), of which half is enough.

    Args:
        library: of the case.
        method: of the case.
        tolerance: of the case.
        known: rows of the same library and method at the tolerance before, by problem.
    """
    q = solvers[method].error_order
    assert q is not None
    if tolerance == TOLERANCES[0]:
        return []
    growth = (TOLERANCES[TOLERANCES.index(tolerance) - 1] / tolerance) ** (1 / q)
    return [name for name, row in known.items() if row["failure"] == OVER or row["nfe"] * growth / 2 > BUDGET]


def cases() -> list[tuple[str, str, float]]:
    """All (library, method, tolerance)."""
    return [
        (library, method, tolerance)
        for method in libraries()["odenet"][1]
        for tolerance in TOLERANCES
        for library, (_, methods) in libraries().items()
        if method in methods
    ]


def pick(rows: list[Row], **wanted: Any) -> list[Row]:
    """The rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def geometric_mean(values: list[float]) -> float:
    """exp of the mean of the logarithms."""
    return math.exp(sum(map(math.log, values)) / len(values))


def summary(rows: list[Row]) -> list[str]:
    """The table: one line for each method, tolerance and library, over the problems that it solved."""
    lines = [
        "| method | tolerance | library | NFE, sum | error / tolerance, geometric mean | median | largest "
        "| over budget | failures |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for library, method, tolerance in cases():
        some = pick(rows, method=method, tolerance=tolerance, library=library)
        errors = [row["error"] for row in some if row["error"] is not None]
        numbers = "- | - | -"
        if errors:
            numbers = f"{geometric_mean(errors):.2g} | {median(errors):.2g} | {max(errors):.2g}"
        if len(some) == len(DETEST):
            over = len(pick(some, failure=OVER))
            lines.append(
                f"| `{method}` | {tolerance:.0e} | {library} | {sum(row['nfe'] for row in some):,} | {numbers} "
                f"| {over or ''} | {len(some) - len(errors) - over or ''} |"
            )
    return lines


class Case(NamedTuple):
    """A method at a tolerance, over the problems that odenet and every peer solved.

    Attributes:
        method: its name.
        tolerance: rtol = atol.
        problems: how many those are.
        nfe: the sum of odenet's calls, divided by the smallest such sum of a peer.
        error: the geometric mean of odenet's errors, divided by the smallest such mean of a peer.
        equal: error · nfe^p for the better peer.
    """

    method: str
    tolerance: float
    problems: int
    nfe: float
    error: float
    equal: float


def compared(rows: list[Row], method: str, tolerance: float) -> Case | None:
    """The case, or None if no peer has the method or nothing was solved."""
    found = pick(rows, method=method, tolerance=tolerance)
    by = {name: {row["problem"]: row for row in pick(found, library=name)} for name in libraries()}
    by = {n: rows for n, rows in by.items() if len(rows) == len(DETEST) and (n, method) not in OTHERS}
    solved = [p.name for p in DETEST if all(p.name in b and b[p.name]["error"] is not None for b in by.values())]
    if len(by) < 2 or "odenet" not in by or not solved:
        return None
    nfe = {name: sum(b[p]["nfe"] for p in solved) for name, b in by.items()}
    error = {name: geometric_mean([b[p]["error"] for p in solved]) for name, b in by.items()}
    peers = [name for name in by if name != "odenet"]
    order = solvers[method].order
    return Case(
        method,
        tolerance,
        len(solved),
        nfe["odenet"] / min(nfe[name] for name in peers),
        error["odenet"] / min(error[name] for name in peers),
        max(error["odenet"] / error[name] * (nfe["odenet"] / nfe[name]) ** order for name in peers),
    )


def against_peers(rows: list[Row]) -> list[str]:
    """One line for each method and tolerance that a peer has, and how often odenet is ahead."""
    lines = [
        "| method | tolerance | problems | NFE / best peer's | error / best peer's | error at equal work |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    found = [compared(rows, method, tolerance) for method in libraries()["odenet"][1] for tolerance in TOLERANCES]
    known = [case for case in found if case is not None]
    lines += [
        f"| `{case.method}` | {case.tolerance:.0e} | {case.problems} | {case.nfe:.2f} | {case.error:.2f} "
        f"| {case.equal:.2f} |"
        for case in known
    ]
    fewer, better = sum(case.nfe <= 1 for case in known), sum(case.error <= 1 for case in known)
    equal = sum(case.equal <= 1 for case in known)
    return [
        *lines,
        "",
        f"Of the {len(known)} cases odenet takes no more calls than the best peer in {fewer}, errs no more in "
        f"{better}, and errs no more at equal work in {equal}.",
    ]


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
            fresh = [measure(library, method, tolerance, problem, controller=controller) for problem in DETEST]
            for rows in (fresh, pick(record, library=library, method=method, tolerance=tolerance)):
                errors = [row["error"] for row in rows if row["error"] is not None]
                line += f" {sum(row['nfe'] for row in rows):,} | {geometric_mean(errors):.1f} |"
            print(line, flush=True)


PAGE = """# DETEST

The 25 non-stiff problems of Hull, Enright, Fellen and Sedgwick (1972) on [0, 20], each solved for 20 equally spaced
outputs with rtol = atol = tolerance. The error is the largest over outputs and components, divided by
tolerance · (1 + |y|), against SciPy's DOP853 at 1e-13. NFE counts the calls of F, those on the way to a Jacobian
included. A solve that wants more than {budget:,} calls counts as over budget, with that number of calls; it is not run
where the tolerance before took so many that it would surely be (tolerance^(-1/q), halved). Methods of order 2 are over
budget at 1e-9 on most problems. A method at a tolerance is listed when all 25 were measured; a run goes on where the
last one was stopped. Peers: {peers}, all of their adaptive methods that
odenet has too. Written by `python -m benchmarks.detest`; every single number is in [detest.json](detest.json); what it
says is in [solvers.md](solvers.md).

## Beside the best peer

A case is a method at a tolerance, over the problems that all the libraries solved: the sum of NFE, and the geometric
mean of the error, each divided by that of the best peer, which may be another one for each of the two. At equal work:
(error / peer's) · (NFE / peer's)^p, for the better peer. torchdiffeq's `adaptive_heun` and `fehlberg2` are listed below
but are no peers here: they are other methods, with an evaluation a step less ([solvers.md](solvers.md)).

{beside}

## All

Errors are those of the problems that were solved.

{everything}
"""


def page(rows: list[Row]) -> str:
    """docs/detest.md."""
    peers = " and ".join(f"{name} {version(name)}" for name in ("torchdiffeq", "diffrax") if pick(rows, library=name))
    beside, everything = "\n".join(against_peers(rows)), "\n".join(summary(rows))
    return PAGE.format(peers=peers, beside=beside, everything=everything, budget=BUDGET)


def write(rows: list[Row]) -> None:
    """docs/detest.json, in the order of the cases."""
    place = {case: number for number, case in enumerate(cases())}
    names = [problem.name for problem in DETEST]
    rows.sort(key=lambda row: (place[tuple(row[key] for key in KEY[:3])], names.index(row["problem"])))
    (DOCS / "detest.json").write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--libraries", nargs="*", help="measure with these only")
    parser.add_argument("--methods", nargs="*", help="measure these only")
    parser.add_argument("--again", action="store_true", help="measure what is on record too")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time")
    parser.add_argument("--controller", help="print odenet's numbers with this controller; docs/ is left as it is")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.controller is not None:
        return beside(given.controller, given.methods)
    path, end = DOCS / "detest.json", time.monotonic() + 60 * given.minutes
    rows: list[Row] = json.loads(path.read_text()) if path.exists() else []
    wanted = [
        case
        for case in cases()
        if (not given.libraries or case[0] in given.libraries) and (not given.methods or case[1] in given.methods)
    ]
    known = {case: {} for case in cases()}
    for row in rows:
        case = tuple(row[key] for key in KEY[:3])
        if case in known and not (given.again and case in wanted):
            known[case][row["problem"]] = row
    for case in wanted:
        library, method, tolerance = case
        before = TOLERANCES[max(0, TOLERANCES.index(tolerance) - 1)]
        over = surely_over(*case, known[library, method, before])
        for problem in DETEST:
            if problem.name not in known[case] and problem.name in over:
                values = (*case, problem.name)
                row = dict(zip(KEY, values, strict=True)) | {"error": None, "nfe": BUDGET, "failure": OVER}
                known[case][problem.name] = row
            if problem.name not in known[case] and time.monotonic() < end:
                known[case][problem.name] = measure(*case, problem)
        write([row for rows in known.values() for row in rows.values()])
        print(*case, sum(row["nfe"] for row in known[case].values()), len(known[case]), flush=True)
    (DOCS / "detest.md").write_text(page(json.loads(path.read_text())))


if __name__ == "__main__":
    main()

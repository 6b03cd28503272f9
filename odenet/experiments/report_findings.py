"""What a comparison found, in sentences that are computed from its numbers and say nothing else."""

from __future__ import annotations

import math
from typing import Any

from odenet.experiments.report_table import evaluations, known, mebibytes, percent

MARGIN = 0.01  # a network survives a solver under which its accuracy differs by no more than this
Network = dict[str, Any]
Cell = dict[str, Any]


def findings(results: dict[str, Any]) -> list[str]:
    """The findings, a sentence or two each, as plain text.

    Args:
        results: results of a comparison.
    """
    networks = [n for n in results["contenders"] if n["role"] != "control"]
    controls = [n for n in results["contenders"] if n["role"] == "control"]
    n_test = results["data"]["n_test"]
    found = [*_best(networks, n_test), *_controls(networks, controls), *_costs(networks), *_failures(results)]
    return found + _survivors(networks) + [s for n in networks if (s := _under_other_solvers(n))]


def _best(networks: list[Network], n_test: int) -> list[str]:
    measured = [n for n in networks if known(n["test_accuracy"])]
    if not measured:
        return []
    top = max(n["test_accuracy"] for n in measured)
    least = min(n["test_accuracy"] for n in measured)
    names = [n["label"] for n in measured if n["test_accuracy"] == top]
    right = f"{round(top * n_test)} of {n_test} test samples"
    if len(measured) == 1:
        return [f"{names[0]} classifies {percent(top)} of the test set rightly ({right})."]
    verb = "has" if len(names) == 1 else "share"
    spread = f"The {len(measured)} contenders lie within {points(top - least)} of each other"
    error = math.sqrt(top * (1 - top) / n_test) if n_test else math.nan
    text = f"{_listed(names)} {verb} the best test accuracy: {percent(top)} ({right}). {spread}"
    if error > 0:
        text += f"; the standard error of one such accuracy, from the size of the test set alone, is {points(error)}"
    return [text + "."]


def _controls(networks: list[Network], controls: list[Network]) -> list[str]:
    measured = [n["test_accuracy"] for n in networks if known(n["test_accuracy"])]
    if not measured:
        return []
    top, least, found = max(measured), min(measured), []
    for control in controls:
        accuracy = control["test_accuracy"]
        if not known(accuracy):
            continue
        where = f"{_gap(accuracy, top)} the best contender"
        if len(measured) > 1:
            where += f" and {_gap(accuracy, least)} the weakest"
        found.append(f"The control “{control['label']}” reaches {percent(accuracy)}: {where}.")
    return found


def _gap(value: float, other: float) -> str:
    if abs(value - other) < 5e-5:
        return "level with"
    return f"{points(abs(value - other))} {'below' if value < other else 'above'}"


def _costs(networks: list[Network]) -> list[str]:
    found = []
    for key, unit, what in (
        ("seconds_per_epoch", lambda v: f"{v:.2f} s", "an epoch of training takes"),
        ("memory_bytes", lambda v: f"{mebibytes(v)} MiB", "the peak training memory is"),
    ):
        measured = sorted((n for n in networks if known(n.get(key))), key=lambda n: n[key])
        if len(measured) > 1:
            low, high = measured[0], measured[-1]
            between = f"between {unit(low[key])} ({low['label']}) and {unit(high[key])} ({high['label']})"
            found.append(f"Among the contenders {what} {between}.")
    return found


def _failures(results: dict[str, Any]) -> list[str]:
    found = []
    for network in results["contenders"]:
        missing = sum(not known(cell["accuracy"]) for cell in network["swap"])
        if missing:
            found.append(
                f"{network['label']} could not be evaluated under {missing} of {len(network['swap'])} solvers."
            )
    return found


def _survivors(networks: list[Network]) -> list[str]:
    """Which networks keep their accuracy when depth is walked as finely as it was tried."""
    judged = [(n, finest(n)) for n in networks if known(n["test_accuracy"])]
    judged = [(n, cells) for n, cells in judged if cells]
    if not judged:
        return []
    names = list(dict.fromkeys(cell["label"] for _, cells in judged for cell in cells))
    kept = [n["label"] for n, cells in judged if all(_holds(n, c) for c in cells)]
    lost = [n["label"] for n, cells in judged if not all(_holds(n, c) for c in cells)]
    text = (
        f"Walked as finely as was tried ({_listed(names)}), {len(kept)} of {len(judged)} contenders stay within "
        f"{points(MARGIN)} of the accuracy under their own solver"
    )
    text += f": {_listed(kept)}" if kept else ""
    return [text + "." + (f" These do not: {_listed(lost)}." if lost else "")]


def finest(network: Network) -> list[Cell]:
    """The Euler cell with most steps and the adaptive cell with the smallest tolerance, of those evaluated."""
    cells = [c for c in network["swap"] if known(c["accuracy"]) and c.get("pieces") is None]
    euler = [c for c in cells if c["solver"] == "euler" and c["steps"] is not None]
    adaptive = [c for c in cells if c["steps"] is None and c["rtol"] is not None]
    found = [max(euler, key=lambda c: c["steps"])] if euler else []
    return found + ([min(adaptive, key=lambda c: c["rtol"])] if adaptive else [])


def smallest_euler(network: Network) -> int | None:
    """Fewest Euler steps from which on, through all finer ones, accuracy stays within 1 point of the network's own."""
    steps = None
    for cell in sorted(euler_cells(network), key=lambda c: -c["steps"]):
        if not _holds(network, cell):
            break
        steps = cell["steps"]
    return steps


def euler_cells(network: Network) -> list[Cell]:
    """The cells of Euler's method, by the number of steps, of the weights as they were trained."""
    cells = [c for c in network["swap"] if c["solver"] == "euler" and c["steps"] is not None and known(c["accuracy"])]
    cells = [c for c in cells if c.get("pieces") is None]
    return sorted(cells, key=lambda c: c["steps"])


def _holds(network: Network, cell: Cell) -> bool:
    return abs(cell["accuracy"] - network["test_accuracy"]) <= MARGIN + 1e-9


def _under_other_solvers(network: Network) -> str:
    """One network along the Euler sequence: from where its accuracy holds, and how many classes flip."""
    cells = euler_cells(network)
    if not cells or not known(network["test_accuracy"]):
        return ""
    steps, last = smallest_euler(network), cells[-1]
    own = f"{network['label']} ({trained_with(network)}, {percent(network['test_accuracy'])})"
    if steps is not None:
        text = f"{own}: accuracy stays within {points(MARGIN)} from {_steps(steps)} of Euler’s method up to "
        text += str(last["steps"])
    else:
        text = f"{own}: accuracy is {percent(last['accuracy'])} at {_steps(last['steps'])} of Euler’s method"
        held = [c["steps"] for c in cells if _holds(network, c)]
        text += f" and within {points(MARGIN)} only at {', '.join(map(str, held))}" if held else ""
    return f"{text}.{_flips(network, cells)}"


def _flips(network: Network, cells: list[Cell]) -> str:
    """How the share of flipped classes changes towards more steps, from the steps that it was trained with if Euler."""
    cells = [c for c in cells if known(c["flips"])]
    start = next((i for i, c in enumerate(cells) if c["trained"]), 0)
    if len(cells) - start < 2:
        return ""
    first, last = cells[start], cells[-1]
    change = last["flips"] - first["flips"]
    verb = "stay at" if abs(change) < 5e-4 else "grow from" if change > 0 else "fall from"
    span = f"between {_steps(first['steps'])} and {last['steps']}"
    if abs(change) < 5e-4:
        return f" Flipped classes {verb} {percent(last['flips'])} {span}."
    return f" Flipped classes {verb} {percent(first['flips'])} to {percent(last['flips'])} {span}."


def trained_with(network: Network) -> str:
    """The training solver in words: "trained with euler, 8 steps"."""
    solver = network.get("solver")
    if not solver:
        return "no solver"
    if solver["steps"] is not None:
        return f"trained with {solver['solver']}, {_steps(solver['steps'])}"
    tolerance = f", rtol {solver['rtol']:g}" if known(solver.get("rtol")) else ""
    return f"trained with {solver['solver']}{tolerance}, NFE {evaluations(network.get('nfe_forward'))}"


def points(share: float) -> str:
    """A difference of shares in percentage points: "1 point", "2.3 points"."""
    value = f"{100 * share:.1f}".removesuffix(".0")
    return f"{value} point{'' if value == '1' else 's'}"


def _steps(count: int) -> str:
    return f"{count} step{'' if count == 1 else 's'}"


def _listed(names: list[str]) -> str:
    """ "a", "a and b", "a; b and c": semicolons, because names have commas."""
    return names[0] if len(names) == 1 else f"{'; '.join(names[:-1])} and {names[-1]}" if names else ""

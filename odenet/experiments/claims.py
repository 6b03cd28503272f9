"""What a paper claims of an experiment, what was measured over the seeds, and whether that was seen.

To add one, write a function of the results of an experiment, one entry a seed, that returns a `Claim`; an experiment's
config names it as `claim`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from odenet.errors import InputError
from odenet.experiments.report_findings import finest, points
from odenet.experiments.report_table import Results, known, percent
from odenet.registry import Registry

COLLAPSE, SURVIVES, SOLVED = 0.05, 0.01, 0.98
Network = dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """A claim and what became of it.

    Attributes:
        paper: whose it is.
        claim: what the paper says.
        measured: what was measured here.
        seen: whether that is what the paper says.
    """

    paper: str
    claim: str
    measured: str
    seen: bool


claims: Registry[Callable[[Sequence[Results]], Claim]] = Registry("claim")


def judge(list_of_results: Sequence[Results]) -> Claim | None:
    """The claim that an experiment is about, judged by its runs; None if it is about none.

    Args:
        list_of_results: results of the same comparison, one a seed.
    """
    name = list_of_results[0].get("claim")
    return None if name is None else claims[name](list_of_results)


def sentences(claim: Claim, runs: int) -> list[str]:
    """A claim in three sentences."""
    seeds = f"over {runs} seeds" if runs > 1 else "with one seed"
    return [
        f"{claim.paper} claim: {claim.claim}",
        f"Measured {seeds}: {claim.measured}",
        "This was seen." if claim.seen else "This was not seen.",
    ]


@claims.register("solver_swap")
def solver_swap(list_of_results: Sequence[Results]) -> Claim:
    """Networks trained with few Euler steps collapse under a finer solver, those with many do not."""
    drops = {
        name: _mean(n["test_accuracy"] - _finest(n) for n in runs) for name, runs in _runs(list_of_results).items()
    }
    names = list(drops)
    critical = next((n for i, n in enumerate(names) if all(drops[m] <= SURVIVES for m in names[i:])), None)
    text = "; ".join(f"{name} loses {points(max(0.0, drop))}" for name, drop in drops.items())
    where = f"; the drop stays within 1 point from {critical} on" if critical else "; none stays within 1 point"
    return Claim(
        "Ott et al. 2021 (ResNet After All)",
        "a network trained with too few steps loses its accuracy under a more accurate solver; below a critical step "
        "size it keeps it.",
        f"under the finest solver {text}{where}.",
        drops[names[0]] > COLLAPSE and critical is not None,
    )


@claims.register("nested_spheres")
def nested_spheres(list_of_results: Sequence[Results]) -> Claim:
    """A plain neural ODE fails or takes many evaluations where an augmented one and a ResNet do not."""
    runs = _runs(list_of_results)
    accuracy = {name: _mean(n["test_accuracy"] for n in found) for name, found in runs.items()}
    nfe = {name: _mean(n["nfe_forward"] for n in found) for name, found in runs.items()}
    for name in ("node", "anode", "resnet"):
        if name not in runs:
            raise InputError(
                f"the claim nested_spheres is about the contenders node, anode and resnet; {name} is missing"
            )
    text = "; ".join(f"{name} {percent(accuracy[name])} with {nfe[name]:.0f} evaluations" for name in accuracy)
    fails = accuracy["node"] < accuracy["anode"] - SURVIVES or nfe["node"] > 1.5 * nfe["anode"]
    return Claim(
        "Dupont et al. 2019 (Augmented Neural ODEs)",
        "on spheres inside one another a neural ODE fails or takes ever more evaluations, since paths cannot cross; an "
        "augmented one and a ResNet do not.",
        f"test accuracy and evaluations of a forward pass at the end of training: {text}.",
        fails and min(accuracy["anode"], accuracy["resnet"]) >= SOLVED,
    )


@claims.register("degradation")
def degradation(list_of_results: Sequence[Results]) -> Claim:
    """Plain networks get worse with depth, residual ones do not."""
    loss = {name: _mean(n["train_loss"] for n in found) for name, found in _runs(list_of_results).items()}
    accuracy = {name: _mean(n["test_accuracy"] for n in found) for name, found in _runs(list_of_results).items()}
    for name in ("plain_shallow", "plain_deep", "residual_shallow", "residual_deep"):
        if name not in loss:
            raise InputError(f"the claim degradation needs the contender {name}")
    text = "; ".join(f"{name} loss {loss[name]:.3g}, test accuracy {percent(accuracy[name])}" for name in loss)
    worse = loss["plain_deep"] > loss["plain_shallow"] and accuracy["plain_deep"] < accuracy["plain_shallow"]
    return Claim(
        "He et al. 2015 (Deep Residual Learning)",
        "deeper plain networks have a higher training error than shallow ones, deeper residual networks do not.",
        f"training {text}.",
        worse and accuracy["residual_deep"] >= accuracy["residual_shallow"] - SURVIVES,
    )


def _runs(list_of_results: Sequence[Results]) -> dict[str, list[Network]]:
    """For each contender, in order, its result with each seed."""
    found: dict[str, list[Network]] = {}
    for results in list_of_results:
        for network in results["contenders"]:
            if network["role"] != "control":
                found.setdefault(network["name"], []).append(network)
    return found


def _finest(network: Network) -> float:
    """The lowest accuracy under the finest Euler and adaptive walks."""
    cells = [cell["accuracy"] for cell in finest(network)]
    if not cells:
        raise InputError(f"{network['label']} was not evaluated under another solver")
    return min(cells)


def _mean(values: Any) -> float:
    found = [value for value in values if known(value)]
    return statistics.fmean(found) if found else float("nan")

"""Over the runs of a multirun that differ in their seed: mean and spread of what each network reached."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from odenet import plotting
from odenet.artifacts import make_folder, write_json, write_text
from odenet.errors import InputError
from odenet.experiments.claims import Claim, judge
from odenet.experiments.report_table import MISSING, Results, csv_text, known

METRICS = ("test_accuracy", "train_loss", "nfe_forward", "nfe_backward", "seconds_per_epoch", "parameters")
STATISTICS = ("runs", "mean", "std", "min", "max")
SHOWN = (  # metric, heading, factor, decimals
    ("test_accuracy", "test accuracy, %", 100.0, 2),
    ("train_loss", "train loss", 1.0, 4),
    ("nfe_forward", "NFE forward", 1.0, 1),
    ("nfe_backward", "NFE backward", 1.0, 1),
    ("seconds_per_epoch", "s / epoch", 1.0, 2),
    ("parameters", "parameters", 1.0, 0),
)


def seed_summary(list_of_results: Sequence[Results]) -> dict[str, Any]:
    """Mean, sample standard deviation (ddof = 1), smallest and largest value of every network over runs.

    Args:
        list_of_results: results of comparisons of the same networks, at least one.

    Returns:
        `title`, `seeds`, `runs`, and `contenders`: for each its name, label and role, and for each metric `runs`
        (how many have a value), `mean`, `std`, `min`, `max` and the `values`. std is None where there is one value.

    Raises:
        InputError: no results.
    """
    if not list_of_results:
        raise InputError("a summary over seeds needs the results of at least one run, got none")
    networks: dict[str, list[dict[str, Any]]] = {}
    for results in list_of_results:
        for network in results["contenders"]:
            networks.setdefault(network["name"], []).append(network)
    return {
        "title": list_of_results[0]["title"],
        "seeds": [results["seed"] for results in list_of_results],
        "runs": len(list_of_results),
        "contenders": [
            {
                **{key: found[0][key] for key in ("name", "label", "role")},
                **{metric: spread([network.get(metric) for network in found]) for metric in METRICS},
            }
            for found in networks.values()
        ],
    }


def spread(values: Sequence[Any]) -> dict[str, Any]:
    """Number, mean, sample standard deviation, smallest and largest of the values that are finite numbers."""
    found = [value for value in values if known(value)]
    return {
        "runs": len(found),
        "mean": statistics.fmean(found) if found else None,
        "std": statistics.stdev(found) if len(found) > 1 else None,
        "min": min(found) if found else None,
        "max": max(found) if found else None,
        "values": list(values),
    }


def write_seed_summary(folder: str | Path, list_of_results: Sequence[Results]) -> dict[str, Path]:
    """Write `seed_summary` as summary.json, summary.csv and summary.md, each atomically.

    Args:
        folder: where to; made if need be.
        list_of_results: results of comparisons, at least one.

    Returns:
        The files by name; with a claim that has a figure also claim.png and claim.svg.

    Raises:
        InputError: no results.
        RunError: a file cannot be written.
    """
    summary = seed_summary(list_of_results)
    claim = judge(list_of_results)
    folder = make_folder(folder)
    written = {
        "summary.json": write_json(folder / "summary.json", summary),
        "summary.csv": write_text(folder / "summary.csv", _csv(summary)),
        "summary.md": write_text(folder / "summary.md", _markdown(summary, claim)),
    }
    if claim is not None and claim.panels:
        files = plotting.save(plotting.curves(claim.panels), folder / "claim")
        written |= {path.name: path for path in files.values()}
    return written


def _csv(summary: dict[str, Any]) -> str:
    fields = ["name", "label", "role", *(f"{metric}_{s}" for metric in METRICS for s in STATISTICS)]
    rows = [
        {**network, **{f"{metric}_{s}": network[metric][s] for metric in METRICS for s in STATISTICS}}
        for network in summary["contenders"]
    ]
    return csv_text(fields, rows)


def _markdown(summary: dict[str, Any], claim: Claim | None) -> str:
    from odenet.experiments.report_page import as_markdown, claim_section

    seeds = ", ".join(map(str, summary["seeds"]))
    runs = summary["runs"]
    how = "mean ± sample standard deviation (smallest to largest)" if runs > 1 else "one run: no spread"
    text = [
        f"# {as_markdown(summary['title'])}: {runs} run{'' if runs == 1 else 's'}",
        "",
        f"Seeds {seeds}; {how}.",
        "",
    ]
    text.append(f"| network | {' | '.join(heading for _, heading, _, _ in SHOWN)} |")
    text.append(f"| --- |{' ---: |' * len(SHOWN)}")
    for role in ("contender", "control"):
        group = [n for n in summary["contenders"] if (n["role"] == "control") == (role == "control")]
        if group and role == "control":
            text.append(f"| *controls* |{' |' * len(SHOWN)}")
        for network in group:
            cells = [_shown(network[metric], factor, digits) for metric, _, factor, digits in SHOWN]
            text.append(f"| {as_markdown(network['label'])} | {' | '.join(cells)} |")
    if claim is not None and claim.panels:
        text += ["", "![What the paper’s claim is about](claim.png)"]
    text += claim_section(claim, summary["seeds"])
    return "\n".join(text) + "\n"


def _shown(found: dict[str, Any], factor: float, digits: int) -> str:
    """ "97.81 ± 0.28 (97.50 to 98.06)"; just the value where all runs have the same or there is but one."""
    if found["mean"] is None:
        return MISSING
    mean, low, high = (f"{factor * found[key]:,.{digits}f}" for key in ("mean", "min", "max"))
    if found["std"] is None or found["min"] == found["max"]:
        return mean
    return f"{mean} ± {factor * found['std']:,.{digits}f} ({low} to {high})"

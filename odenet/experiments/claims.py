"""What a paper claims of an experiment, what was measured over the seeds, and whether that was seen.

To add one, write a function of the results of an experiment, one entry a seed, that returns a `Claim`; an experiment's
config names it as `claim`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from odenet.diagnostics import Curves, Line
from odenet.errors import InputError
from odenet.experiments.exponent import interval, limit, slope
from odenet.experiments.report_findings import euler_cells, finest, points
from odenet.experiments.report_table import Results, known, percent
from odenet.registry import Registry

COLLAPSE, SURVIVES, SOLVED = 0.05, 0.01, 0.98
STUCK = 10.0  # factor between training losses of a network that does not learn a task and of ones that do
BEST_MONOTONE = 1 / 3  # smallest squared error of an increasing function against -x, x uniform in [-1, 1]
STEEP = -0.9  # exponent of N that the whole interval has to lie below, to count as 1/N
Network = dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """A claim and what became of it.

    Attributes:
        paper: whose it is.
        claim: what the paper says.
        measured: what was measured here.
        seen: whether that is what the paper says.
        panels: a figure of what was measured, by the titles of its panels; may be empty.
    """

    paper: str
    claim: str
    measured: str
    seen: bool
    panels: Mapping[str, Curves] = field(default_factory=dict)


claims: Registry[Callable[[Sequence[Results]], Claim]] = Registry("claim")


def judge(list_of_results: Sequence[Results]) -> Claim | None:
    """The claim that an experiment is about, judged by its runs; None if it is about none.

    Args:
        list_of_results: results of the same comparison, one a seed.
    """
    name = list_of_results[0].get("claim")
    return None if name is None else claims[name](list_of_results)


def sentences(claim: Claim, seeds: Sequence[int]) -> list[str]:
    """A claim, what was measured with these seeds, and the verdict, which says how many seeds it rests on."""
    if len(seeds) == 1:
        measured, rests = f"with one seed ({seeds[0]})", ", with one seed only; -m seed=0,1,2 measures it over three"
    else:
        measured, rests = f"over {len(seeds)} seeds ({', '.join(map(str, seeds))})", f", over {len(seeds)} seeds"
    return [
        f"{claim.paper} claim: {claim.claim}",
        f"Measured {measured}: {claim.measured}",
        f"This was {'' if claim.seen else 'not '}seen{rests}.",
    ]


@claims.register("solver_swap")
def solver_swap(list_of_results: Sequence[Results]) -> Claim:
    """Networks trained with few Euler steps collapse under a finer solver, those with many do not."""
    runs = _runs(list_of_results)
    drops = {name: _mean(n["test_accuracy"] - _finest(n) for n in found) for name, found in runs.items()}
    names = list(drops)
    critical = next((n for i, n in enumerate(names) if all(drops[m] <= SURVIVES + 1e-9 for m in names[i:])), None)
    text = "; ".join(f"{name} loses {points(max(0.0, drop))}" for name, drop in drops.items())
    where = f"; the drop stays within 1 point from {critical} on" if critical else "; none stays within 1 point"
    return Claim(
        "Ott et al. 2021 (ResNet After All)",
        "a network trained with too few steps loses its accuracy under a more accurate solver; below a critical step "
        "size it keeps it.",
        f"under the finest solver {text}{where}.",
        drops[names[0]] > COLLAPSE and critical is not None,
        {"": Curves("Euler steps after training", "test accuracy", _walked(runs), logx=True)},
    )


@claims.register("nested_spheres")
def nested_spheres(list_of_results: Sequence[Results]) -> Claim:
    """A plain neural ODE fails, or takes ever more evaluations, where an augmented one and a ResNet do not.

    It fails if in each seed its training loss stays at least ten times those of the other two, which solve the task; it
    takes ever more evaluations if it ends with half as many again as the augmented one.
    """
    runs = _runs(list_of_results)
    accuracy = {name: _mean(n["test_accuracy"] for n in found) for name, found in runs.items()}
    loss = {name: [n["train_loss"] for n in found] for name, found in runs.items()}
    nfe = {name: _mean(n["nfe_forward"] for n in found) for name, found in runs.items()}
    first = {name: _mean(n["history"][0]["nfe_forward"] for n in found) for name, found in runs.items()}
    _need("nested_spheres", runs, "node", "anode", "resnet")
    text = "; ".join(
        f"{name} {_mean(loss[name]):.2g}, {percent(accuracy[name])}, {first[name]:.0f} to {nfe[name]:.0f} evaluations"
        for name in accuracy
    )
    others = map(max, loss["anode"], loss["resnet"])
    least = "" if len(list_of_results) == 1 else "in each seed at least "
    factor = min(mine / max(other, 1e-30) for mine, other in zip(loss["node"], others, strict=True))
    return Claim(
        "Dupont et al. 2019 (Augmented Neural ODEs)",
        "on spheres inside one another a neural ODE fails or takes ever more evaluations, since paths cannot cross; an "
        "augmented one and a ResNet do not.",
        f"training loss and test accuracy at the end, and evaluations of a forward pass in the first and last epoch: "
        f"{text}. The loss of node is {least}{factor:.3g} times that of the worse of the other two, and it takes "
        f"{nfe['node'] / nfe['anode']:.2f} times the evaluations of anode.",
        (factor >= STUCK or nfe["node"] >= 1.5 * nfe["anode"]) and min(accuracy["anode"], accuracy["resnet"]) >= SOLVED,
        {
            "Training loss": Curves("epoch", "", _over_epochs(runs, lambda r: r["train_loss"]), logy=True),
            "Evaluations of F in a forward pass": Curves("epoch", "", _over_epochs(runs, lambda r: r["nfe_forward"])),
        },
    )


@claims.register("degradation")
def degradation(list_of_results: Sequence[Results]) -> Claim:
    """Plain networks get worse with depth, residual ones do not."""
    runs = _runs(list_of_results)
    loss = {name: _mean(n["train_loss"] for n in found) for name, found in runs.items()}
    accuracy = {name: _mean(n["test_accuracy"] for n in found) for name, found in runs.items()}
    _need("degradation", loss, "plain_shallow", "plain_deep", "residual_shallow", "residual_deep")
    text = "; ".join(f"{name} loss {loss[name]:.3g}, test accuracy {percent(accuracy[name])}" for name in loss)
    worse = loss["plain_deep"] > loss["plain_shallow"] and accuracy["plain_deep"] < accuracy["plain_shallow"]
    return Claim(
        "He et al. 2015 (Deep Residual Learning)",
        "deeper plain networks have a higher training error than shallow ones, deeper residual networks do not.",
        f"training {text}.",
        worse and accuracy["residual_deep"] >= accuracy["residual_shallow"] - SURVIVES,
        {"": Curves("epoch", "training loss", _over_epochs(runs, lambda r: r["train_loss"]), logy=True)},
    )


@claims.register("flip_1d")
def flip_1d(list_of_results: Sequence[Results]) -> Claim:
    """A neural ODE on the line cannot learn x -> -x, an augmented one and a ResNet can."""
    runs = _runs(list_of_results)
    _need("flip_1d", runs, "node", "anode", "resnet")
    error = {name: _mean(n["test_loss"] for n in found) for name, found in runs.items()}
    nfe = {name: _mean(n["nfe_forward"] for n in found) for name, found in runs.items()}
    text = "; ".join(f"{name} {error[name]:.2g} with {nfe[name]:.0f} evaluations" for name in error)
    lines = [Line("target", [-1.0, 1.0], [1.0, -1.0], "dashed")]
    for name, found in runs.items():
        points = sorted(zip(found[0]["answers"]["x"], found[0]["answers"]["y"], strict=True))
        lines.append(Line(name, [x for x, _ in points], [y for _, y in points]))
    return Claim(
        "Dupont et al. 2019 (Augmented Neural ODEs)",
        "no neural ODE on the line learns x → -x, since its paths cannot cross; one with an additional dimension and a "
        "ResNet do.",
        f"mean squared error on the test set: {text}. No increasing function has less than 1/3.",
        error["node"] > 0.9 * BEST_MONOTONE and max(error["anode"], error["resnet"]) < 0.05 * BEST_MONOTONE,
        {"": Curves("x", "answer", lines)},
    )


@claims.register("depth_refinement")
def depth_refinement(list_of_results: Sequence[Results]) -> Claim:
    """A network that was refined while it was trained keeps its accuracy, also when it is compressed afterwards."""
    runs = _runs(list_of_results)
    _need("depth_refinement", runs, "shallow", "refined", "deep")
    own = {name: _mean(n["test_accuracy"] for n in found) for name, found in runs.items()}
    counts = sorted({cell["pieces"] for found in runs.values() for n in found for cell in n["swap"]})
    curve = {name: [_reshaped(found, count) for count in counts] for name, found in runs.items()}
    reached = dict(zip(counts, curve["refined"], strict=True))
    lost = own["refined"] - reached[8]
    steps = [float(count) for count in counts]
    lines = [Line(name, steps, values) for name, values in curve.items()]
    return Claim(
        "Queiruga et al. 2020 (Continuous-in-Depth Neural Networks)",
        "a network can be trained with few layers, refined to more on the way, and compressed afterwards without "
        "training again, and keeps its accuracy.",
        f"test accuracy of 4 layers {percent(own['shallow'])}; refined to 16 on the way {percent(own['refined'])}, and "
        f"then made 8 {percent(reached[8])}, 32 {percent(reached[32])}; 16 layers trained from the start "
        f"{percent(own['deep'])}, and then made 8 {percent(dict(zip(counts, curve['deep'], strict=True))[8])}.",
        own["refined"] >= own["shallow"] - SURVIVES and lost <= SURVIVES + 1e-9,
        {"": Curves("layers after training", "test accuracy", lines, logx=True)},
    )


@claims.register("resnet_to_ode")
def resnet_to_ode(list_of_results: Sequence[Results]) -> Claim:
    """The states of a ResNet come nearer to those of its ODE as 1/N where the layers' weights are smooth in depth.

    A distance c/N + d/N² + ... has between N and 2N a slope of -1 + O(1/N), so that of the last two slopes the exponent
    for N → ∞ is extrapolated, seed by seed (Richardson), with Student's 95 % interval of the mean.
    """
    runs = _runs(list_of_results)
    families: dict[str, dict[int, float]] = {}
    of_seeds: dict[str, dict[int, list[float]]] = {}
    for name, found in runs.items():
        family, _, layers = name.rpartition("_")
        if layers.isdigit():
            distances = [_mean(max(p["distance"]) for p in n["diagnostics"]["ode_distance"] if p) for n in found]
            families.setdefault(family, {})[int(layers)] = _mean(distances)
            of_seeds.setdefault(family, {})[int(layers)] = distances
    _need("resnet_to_ode", families, "smooth", "drawn")
    slopes = {family: slope(distances) for family, distances in families.items()}
    limits = [
        limit(dict(zip(of_seeds["smooth"], seed, strict=True)))
        for seed in zip(*of_seeds["smooth"].values(), strict=True)
    ]
    exponent, half = interval(limits)
    within = f" ± {half:.2f} (95 %)" if len(limits) > 1 else ""
    lines = []
    for family, distances in families.items():
        N = sorted(distances)
        lines.append(Line(f"{family} layers, slope {slopes[family]:.2f}", [*map(float, N)], [distances[n] for n in N]))
    least, most = min(families["smooth"]), max(families["smooth"])
    last = most * families["smooth"][most]
    lines.append(Line("1/N", [float(n) for n in families["smooth"]], [last / n for n in families["smooth"]], "dashed"))
    return Claim(
        "Sander et al. 2022 (Do Residual Neural Networks discretize Neural ODEs?)",
        "the states of a ResNet of N layers and of the ODE through its weights are O(1/N) apart, if the weights are "
        "smooth in depth.",
        f"largest distance along depth, N from {least} to {most}: where all layers begin with the same weights it "
        f"falls as N to the power {slopes['smooth']:.2f}, for N → ∞ {exponent:.2f}{within}, to "
        f"{families['smooth'][most]:.2g} at {most}; where they are drawn one by one as N to the power "
        f"{slopes['drawn']:.2f}, to {families['drawn'][max(families['drawn'])]:.2g}.",
        exponent + half <= STEEP,
        {"": Curves("layers N", "largest distance of the states", lines, logx=True, logy=True)},
    )


def _reshaped(networks: Sequence[Network], pieces: int) -> float:
    """Mean accuracy with so many layers made of those that were trained."""
    return _mean(cell["accuracy"] for n in networks for cell in n["swap"] if cell["pieces"] == pieces)


def _walked(runs: Mapping[str, Sequence[Network]]) -> list[Line]:
    """Mean accuracy of each network under Euler's method with more and more steps, those of its training ringed."""
    lines, own = [], Line("trained with", [], [], "ring")
    for name, found in runs.items():
        cells = [cell for network in found for cell in euler_cells(network)]
        reached = {n: _mean(c["accuracy"] for c in cells if c["steps"] == n) for n in sorted(c["steps"] for c in cells)}
        lines.append(Line(name, [float(n) for n in reached], list(reached.values())))
        for steps in {cell["steps"] for cell in cells if cell["trained"]}:
            own.x.append(float(steps))
            own.y.append(reached[steps])
    return [*lines, own]


def _over_epochs(runs: Mapping[str, Sequence[Network]], number: Callable[[Any], float]) -> list[Line]:
    """A number of each network's training over the epochs: the mean over the seeds."""
    lines = []
    for name, found in runs.items():
        epochs = [record["epoch"] for record in found[0]["history"]]
        values = [_mean(map(number, records)) for records in zip(*(n["history"] for n in found), strict=True)]
        lines.append(Line(name, [float(epoch) for epoch in epochs], values))
    return lines


def _need(claim: str, found: Mapping[str, Any], *names: str) -> None:
    for name in names:
        if name not in found:
            raise InputError(f"the claim {claim} is about the contenders {', '.join(names)}; {name} is missing")


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

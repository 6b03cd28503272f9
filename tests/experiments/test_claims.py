"""A claim is judged by the numbers of the runs, and said in the report and in the summary over seeds."""

import re

import pytest

from odenet.artifacts import read_json
from odenet.errors import InputError
from odenet.experiments.claims import claims, judge, sentences
from odenet.experiments.config import config_folder


def network(name, accuracy, loss=0.1, nfe=10.0, finest=None):
    cell = {"solver": "euler", "rtol": None}
    finer = {"steps": 64, "accuracy": finest, "trained": False}, {"steps": 2, "accuracy": accuracy, "trained": True}
    cells = [] if finest is None else [cell | one for one in finer]
    parts = {"test_accuracy": accuracy, "train_loss": loss, "nfe_forward": nfe, "swap": cells}
    history = [{"epoch": n, **parts, "train_loss": loss * (3 - n)} for n in (1, 2)]
    return {"name": name, "label": name, "role": "contender", **parts, "history": history}


def results(claim, *networks):
    return {"claim": claim, "contenders": list(networks)}


def test_a_collapse_above_the_critical_step_is_seen_and_its_absence_too():
    run = lambda coarse, fine: results(  # noqa: E731
        "solver_swap", network("euler_1", 1.0, finest=coarse), network("euler_8", 0.99, finest=fine)
    )
    seen = judge([run(0.5, 0.99), run(0.7, 0.985)])
    assert seen.seen and "euler_1 loses 40 points; euler_8 loses 0.3 points" in seen.measured
    assert "from euler_8 on" in seen.measured
    coarse, _, trained = seen.panels[""].lines
    assert (coarse.label, coarse.x, coarse.y) == ("euler_1", [2.0, 64.0], pytest.approx([1.0, 0.6]))
    assert (trained.look, trained.x, trained.y) == ("ring", [2.0, 2.0], pytest.approx([1.0, 0.99]))
    assert not judge([run(0.99, 0.99)]).seen  # nothing collapses
    assert not judge([run(0.5, 0.9)]).seen  # everything does


def test_a_node_that_fails_or_labours_is_told_from_one_that_does_not():
    def run(loss, nfe, anode=0.99):
        node = network("node", 0.98, loss=loss, nfe=nfe)
        others = network("resnet", 1.0, loss=2e-3, nfe=4), network("anode", anode, loss=1e-3, nfe=20)
        return results("nested_spheres", others[0], node, others[1])

    assert judge([run(0.1, 20)]).seen and judge([run(0.01, 60)]).seen
    assert not judge([run(0.01, 20)]).seen and not judge([run(0.1, 60, anode=0.9)]).seen
    assert not judge([run(0.1, 20), run(0.01, 20)]).seen  # in each seed
    seen = judge([run(0.1, 20), run(0.1, 30)])
    assert "node 0.1, 98.0 %, 25 to 25 evaluations" in seen.measured
    assert "is in each seed at least 50 times that of the worse" in seen.measured
    loss, evaluations = (panel.lines[1] for panel in seen.panels.values())  # of the node
    assert loss.label == "node" and loss.x == [1.0, 2.0] and loss.y == pytest.approx([0.2, 0.1])
    assert evaluations.y == [25.0, 25.0]


def test_degradation_needs_plain_networks_that_get_worse_and_residual_ones_that_do_not():
    def run(plain, residual):
        deep = network("plain_deep", plain, loss=2 - plain), network("residual_deep", residual)
        shallow = network("plain_shallow", 0.9, loss=0.3), network("residual_shallow", 0.9)
        return results("degradation", shallow[0], deep[0], shallow[1], deep[1])

    seen = judge([run(0.5, 0.92), run(0.7, 0.92)])
    assert seen.seen
    assert {line.label: line.y for line in seen.panels[""].lines}["plain_deep"] == pytest.approx([2.8, 1.4])
    assert not judge([run(0.95, 0.92)]).seen and not judge([run(0.5, 0.6)]).seen


def test_the_line_is_flipped_by_all_but_the_flow():
    def run(**errors):
        answers = {"x": [0.5, -0.5], "y": [-0.5, 0.5]}
        found = [network(name, 1.0) | {"test_loss": error, "answers": answers} for name, error in errors.items()]
        return results("flip_1d", *found)

    claim = judge([run(resnet=1e-3, node=0.34, anode=1e-4)])
    assert claim.seen and "node 0.34 with 10 evaluations" in claim.measured
    assert claim.panels[""].lines[1].x == [-0.5, 0.5] and claim.panels[""].lines[1].y == [0.5, -0.5]
    assert not judge([run(resnet=1e-3, node=0.1, anode=1e-4)]).seen  # a flow that flips
    assert not judge([run(resnet=1e-3, node=0.34, anode=0.1)]).seen


def test_refinement_keeps_accuracy_and_so_does_compression():
    def run(shallow, refined, compressed):
        def reshaped(name, own, eight):
            cells = [{"solver": "euler", "steps": n, "pieces": n, "accuracy": a} for n, a in eight.items()]
            return network(name, own) | {"swap": cells}

        made = {4: 0.5, 8: compressed, 16: refined, 32: 0.9}
        rest = dict.fromkeys((4, 8, 16, 32), 0.3)
        found = reshaped("shallow", shallow, rest), reshaped("refined", refined, made), reshaped("deep", 0.97, rest)
        return results("depth_refinement", *found)

    seen = judge([run(0.96, 0.97, 0.965), run(0.96, 0.97, 0.955)])
    assert seen.seen and "refined to 16 on the way 97.0 %, and then made 8 96.0 %, 32 90.0 %" in seen.measured
    assert seen.panels[""].lines[1].y == pytest.approx([0.5, 0.96, 0.97, 0.9])
    assert not judge([run(0.96, 0.97, 0.9)]).seen and not judge([run(0.99, 0.97, 0.97)]).seen


def test_the_slope_of_the_distance_to_the_ode_is_measured():
    def run(power, bend=0.0):
        found = []
        for family, falls in (("smooth", power), ("drawn", -0.1)):
            for N in (4, 8, 16):
                last = 3.0 * N**falls * (1 - bend / N)
                distance = [0.0, 0.5 * last, last]
                one = network(f"{family}_{N}", 0.9) | {"diagnostics": {"ode_distance": [{"distance": distance}]}}
                found.append(one)
        return results("resnet_to_ode", *found)

    claim = judge([run(-1.0), run(-1.0)])
    assert claim.seen and "to the power -1.00" in claim.measured and "to the power -0.10" in claim.measured
    assert claim.panels[""].lines[0].y == pytest.approx([3 / 4, 3 / 8, 3 / 16])
    assert claim.panels[""].lines[0].y == pytest.approx(claim.panels[""].lines[2].y)  # the line that is drawn as 1/N
    assert not judge([run(-0.5)]).seen
    bent = judge([run(-1.0, 1.0), run(-1.0, 1.1), run(-1.0, 0.9)])  # slopes log₂ 7/12, log₂ 15/28
    assert bent.seen and "to the power -0.84, for N → ∞ -1.02 ± 0.01 (95 %)" in bent.measured
    assert not judge([run(-1.3), run(-0.8), run(-1.0)]).seen  # the seeds say too little


def test_three_sentences():
    claim = judge([results("solver_swap", network("a", 1.0, finest=0.5), network("b", 1.0, finest=1.0))] * 3)
    first, second, third = sentences(claim, [3, 4, 5])
    assert first.startswith("Ott et al. 2021") and second.startswith("Measured over 3 seeds (3, 4, 5): under the")
    assert third == "This was seen, over 3 seeds."
    _, alone, third = sentences(claim, [7])
    assert alone.startswith("Measured with one seed (7): ") and third.startswith("This was seen, with one seed only;")
    assert judge([{"contenders": []}]) is None


@pytest.mark.parametrize("name", list(claims))
def test_what_a_claim_needs_is_said(name):
    with pytest.raises(InputError):
        judge([results(name, network("other", 1.0))])


def test_every_experiment_with_a_claim_names_one_that_there_is():
    from omegaconf import OmegaConf

    found = [OmegaConf.load(path).get("claim") for path in (config_folder() / "experiment").glob("*.yaml")]
    assert set(filter(None, found)) == set(claims)


def ends_with(text, seeds, rests_on):
    """Whether a text ends with claim, measurement and verdict, whatever the lines were broken at."""
    claim, measured = r"Dupont et al\. 2019 \(Augmented Neural ODEs\) claim: [^#]*", f"Measured {seeds}: mean [^#]*"
    return re.search(f"{claim} {measured} This was (not )?seen, {rests_on}$", " ".join(text.split()))


def seed_of(run):
    return read_json(run / "results.json")["seed"]


def test_an_experiment_ends_with_its_claim_and_the_figure_of_it_over_seeds_too(odenet):
    small = ["data.n=64", "data.n_test=40", "trainer.epochs=1", "residual.width=4", "trainer.batch_size=32"]
    words = [*small, "diagnostics=[step_halving]", "hydra.sweep.dir=sweep", "seed=0,1"]
    done = odenet("compare", "experiment=flip_1d", *words, "-m")
    assert done.status == 0, done.err
    summary = (odenet.folder / "sweep/summary.md").read_text()
    assert "](claim.png)" in summary
    for text in (summary, done.out):
        assert ends_with(text, r"over 2 seeds \(0, 1\)", r"over 2 seeds\."), text
    assert (odenet.folder / "sweep/claim.png").stat().st_size > 3000
    run = next((odenet.folder / "runs/compare").iterdir())
    assert (run / "figures/claim.png").stat().st_size > 3000 and "figures/claim.png" in (run / "report.md").read_text()
    with_one = r"with one seed \([01]\)", "with one seed only; -m seed=0,1,2 measures it over three."
    page = (run / "report.html").read_text().removesuffix("\n</body>\n</html>\n")
    for text in ((run / "report.md").read_text(), re.sub("</?p>", "", page)):
        assert ends_with(text, *with_one), text[-2000:]
    alone = odenet("compare", "experiment=flip_1d", *small, "diagnostics=[step_halving]", f"seed={seed_of(run)}")
    assert ends_with(alone.out, *with_one), alone.out
    assert "a regression, counted as right within 0.1" in (run / "report.html").read_text()
    node = read_json(run / "results.json")["contenders"][1]
    assert [len(part["defects"]) for part in node["diagnostics"]["step_halving"]] == [3]
    assert len(node["answers"]["x"]) == len(node["answers"]["y"]) == 40


def test_layers_are_refined_and_coarsened_after_training(odenet):
    words = ["model=resnet", "solver.steps=4", "data=moons", "data.n=64", "data.n_test=40", "trainer.epochs=1"]
    assert odenet("train", *words, "network=vector", "residual=mlp", "residual.width=8", "folder=run").status == 0
    nfe = {}
    for pieces, solver in ((2, "euler"), (8, "euler"), (8, "rk4"), (None, "rk4")):
        more = [] if pieces is None else [f"pieces={pieces}"]
        steps = 8 if pieces is None else pieces
        done = odenet("evaluate", "run=run", f"solver={solver}", f"steps={steps}", *more)
        assert done.status == 0, done.err
        name = solver.capitalize() if solver == "euler" else solver
        file = f"evaluate-{name}-{steps}{'' if pieces is None else f'-{pieces}-layers'}.json".lower()
        nfe[pieces, solver] = read_json(odenet.folder / "run" / file)[0]
    assert nfe[2, "euler"]["nfe"] == 2 and nfe[2, "euler"]["note"] == "4 layers made 2"
    assert nfe[8, "rk4"]["swapped"] == nfe[None, "rk4"]["swapped"]  # 8 pieces of the same function of depth

"""A claim is judged by the numbers of the runs, and said in the report and in the summary over seeds."""

import pytest

from odenet.errors import InputError
from odenet.experiments.claims import claims, judge, sentences
from odenet.experiments.config import config_folder


def network(name, accuracy, loss=0.1, nfe=10.0, finest=None):
    cells = [] if finest is None else [{"solver": "euler", "steps": 64, "rtol": None, "accuracy": finest}]
    parts = {"test_accuracy": accuracy, "train_loss": loss, "nfe_forward": nfe, "swap": cells}
    return {"name": name, "label": name, "role": "contender", **parts}


def results(claim, *networks):
    return {"claim": claim, "contenders": list(networks)}


def test_a_collapse_above_the_critical_step_is_seen_and_its_absence_too():
    run = lambda coarse, fine: results(  # noqa: E731
        "solver_swap", network("euler_1", 1.0, finest=coarse), network("euler_8", 0.99, finest=fine)
    )
    seen = judge([run(0.5, 0.99), run(0.7, 0.985)])
    assert seen.seen and "euler_1 loses 40 points; euler_8 loses 0.3 points" in seen.measured
    assert "from euler_8 on" in seen.measured
    assert not judge([run(0.99, 0.99)]).seen  # nothing collapses
    assert not judge([run(0.5, 0.9)]).seen  # everything does


def test_a_node_that_fails_or_labours_is_told_from_one_that_does_not():
    def run(accuracy, nfe):
        node = network("node", accuracy, nfe=nfe)
        return results("nested_spheres", network("resnet", 1.0, nfe=4), node, network("anode", 0.99, nfe=20))

    assert judge([run(0.8, 20)]).seen and judge([run(0.99, 60)]).seen
    assert not judge([run(0.99, 20)]).seen
    assert "node 80.0 % with 20 evaluations" in judge([run(0.8, 20)]).measured.replace("80 %", "80.0 %")


def test_degradation_needs_plain_networks_that_get_worse_and_residual_ones_that_do_not():
    def run(plain, residual):
        deep = network("plain_deep", plain, loss=2 - plain), network("residual_deep", residual)
        shallow = network("plain_shallow", 0.9, loss=0.3), network("residual_shallow", 0.9)
        return results("degradation", shallow[0], deep[0], shallow[1], deep[1])

    assert judge([run(0.5, 0.92)]).seen
    assert not judge([run(0.95, 0.92)]).seen and not judge([run(0.5, 0.6)]).seen


def test_three_sentences():
    claim = judge([results("solver_swap", network("a", 1.0, finest=0.5), network("b", 1.0, finest=1.0))] * 3)
    first, second, third = sentences(claim, 3)
    assert first.startswith("Ott et al. 2021") and "over 3 seeds" in second and third == "This was seen."
    assert judge([{"contenders": []}]) is None


@pytest.mark.parametrize("name", ["solver_swap", "nested_spheres", "degradation"])
def test_what_a_claim_needs_is_said(name):
    with pytest.raises(InputError):
        judge([results(name, network("other", 1.0))])


def test_every_experiment_with_a_claim_names_one_that_there_is():
    from omegaconf import OmegaConf

    found = [OmegaConf.load(path).get("claim") for path in (config_folder() / "experiment").glob("*.yaml")]
    assert set(filter(None, found)) == set(claims)


def test_an_experiment_ends_with_its_claim(odenet):
    small = ["data.n=64", "data.n_test=40", "trainer.epochs=1", "residual.width=4", "trainer.batch_size=32"]
    done = odenet("compare", "experiment=nested_spheres", *small, "folder=run")
    assert done.status == 0, done.err
    for name in ("report.md", "report.html"):
        text = (odenet.folder / "run" / name).read_text()
        assert "Dupont et al. 2019 (Augmented Neural ODEs) claim" in text and "This was" in text
        assert "with one seed" in text

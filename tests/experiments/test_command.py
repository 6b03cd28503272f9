"""The command as a stranger meets it: help, lists, evaluation, mistakes."""

import os
import shutil
import stat

import pytest
from omegaconf import OmegaConf

from odenet.artifacts import read_json
from odenet.data import datasets
from odenet.depth import depth_weights
from odenet.experiments.config import config_folder
from odenet.gradients import gradients
from odenet.residual import residuals
from odenet.solvers import backends
from tests.experiments.conftest import SMALL

TRAIN = [word for word in SMALL if not word.startswith("swap")]


def test_help_version_and_no_command(odenet):
    import odenet as package

    assert "odenet compare" in odenet("--help").out
    assert odenet("--version").out.strip() == f"odenet {package.__version__}"
    assert odenet().status == 2


def test_list_shows_what_the_registries_hold(odenet):
    done = odenet("list")
    assert done.status == 0
    words = set(done.out.replace(",", " ").split())
    for registry in (gradients, residuals, depth_weights, datasets, *(b.methods() for b in backends._entries.values())):
        assert set(registry) <= words
    for group in ("model", "data", "optimizer", "schedule", "experiment"):
        assert {p.stem for p in (config_folder() / group).glob("*.yaml")} <= words


@pytest.mark.parametrize(
    ("registry", "group"),
    [(residuals, "residual"), (gradients, "gradient"), (datasets, "data"), (depth_weights, "depth")],
)
def test_every_registered_thing_has_a_config(registry, group):
    names = {p.stem for p in (config_folder() / group).glob("*.yaml")}
    assert set(registry) - {"from_block"} <= names  # from_block takes a module, which no config can write down


def test_every_native_solver_has_a_config():
    assert set(backends["native"].methods()) <= {p.stem for p in (config_folder() / "solver").glob("*.yaml")}


@pytest.mark.parametrize("path", sorted((config_folder() / "solver").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_solver_config_is_one_that_a_block_takes(path):
    from odenet import ODEBlock

    values = {key: value for key, value in OmegaConf.load(path).items() if key != "defaults"}
    scheme = ODEBlock(lambda t, x: x, gradient="autograd", **values).scheme
    assert (scheme.steps is None) == scheme.adaptive and scheme.solver == values.get("solver", "dopri5")


@pytest.mark.parametrize("name", sorted(p.stem for p in (config_folder() / "model").glob("*.yaml")))
def test_every_model_can_be_trained(odenet, name):
    assert odenet("train", *TRAIN, "trainer.epochs=1", f"model={name}").status == 0


@pytest.mark.parametrize("name", sorted(p.stem for p in (config_folder() / "experiment").glob("*.yaml")))
def test_every_experiment_composes(odenet, name):
    assert odenet("compare", f"experiment={name}", "--cfg", "job").status == 0


IMAGES = ("conv", "bottleneck")  # residual functions that take images only


GROUPS = ["gradient", "depth", "residual", "regulariser", "optimizer", "schedule"]
STAND_INS = {
    "solver": ["ab2", "alf", "dopri5_per_sample", "euler", "radau5", "torchdiffeq", "torchdiffeq_fixed", "tsit5"]
}


@pytest.mark.parametrize("group", ["solver", pytest.param("every solver", marks=pytest.mark.slow), *GROUPS])
def test_every_choice_of_a_group_trains(odenet, group):
    few, group = STAND_INS.get(group), group.removeprefix("every ")  # quick: one solver of each kind of config
    for path in sorted((config_folder() / group).glob("*.yaml")):
        if few is not None and path.stem not in few:
            continue
        words = [f"{group}={path.stem}", "trainer.epochs=1"]
        if path.stem == "augmented":
            words += ["network.augment=1"]
        if group == "residual" and path.stem in IMAGES:
            words += [
                "data=digits",
                "network=image",
                "trainer.epochs=1",
                "trainer.batch_size=720",
                "network.widths=[4]",
            ]
            base = [w for w in TRAIN if not w.startswith("data") and not w.startswith("trainer.batch")]
        elif group == "residual":
            base = [w for w in TRAIN if not w.startswith("residual")]
        else:
            base = TRAIN
        if path.stem == "untied":
            words += ["model=resnet"]
        if path.stem.startswith("torchdiffeq"):
            words += ["gradient=autograd"]
        if group == "gradient":
            usable = gradients[OmegaConf.load(path).gradient].solvers()
            words += [] if "dopri5" in usable else [f"solver={usable[0]}"]
        if path.stem == "forward":  # a product for each number and evaluation
            words += ["solver=euler", "solver.steps=2", "data.n=8", "trainer.batch_size=8"]
        done = odenet("train", *base, *words)
        assert done.status == 0, (path, done.err)


def test_a_monitored_run_is_loaded_with_the_steps_that_it_ended_with(odenet):
    words = ["model=resnet_tied", "solver.steps=2", "monitor=ode", "monitor.threshold=0", "trainer.epochs=3"]
    done = odenet("train", *TRAIN, *words, "optimizer.lr=0.1", "folder=run")
    assert done.status == 0 and "figures/monitor.png" in done.out
    result = read_json(odenet.folder / "run/result.json")
    steps = result["solver"]["steps"]
    assert steps != 2 and (odenet.folder / "run/figures/monitor.png").stat().st_size > 3000
    assert result["history"][-1]["monitor"]["block0/steps"] == steps
    assert f"euler, steps={steps}" in odenet("evaluate", "run=run").out
    odenet("evaluate", "run=run")
    assert read_json(odenet.folder / "run/evaluate-as-trained.json")[0]["accuracy"] == result["test_accuracy"]


def test_a_run_from_before_there_was_a_group_has_its_default(odenet):
    assert odenet("train", *TRAIN, "folder=run").status == 0
    path = odenet.folder / "run/config.yaml"
    config = OmegaConf.load(path)
    for group in ("regulariser", "monitor"):
        del config[group]
    OmegaConf.save(config, path)
    done = odenet("evaluate", "run=run")
    assert done.status == 0, done.err


def test_evaluate_under_another_solver(comparison, odenet):
    done = odenet("evaluate", f"run={comparison}", "solver=rk4", "steps=16")
    assert done.status == 0
    assert "ODE-Net" in done.out
    one = odenet("evaluate", f"run={comparison}/contenders/odenet", "solver=rk4", "steps=20")
    assert one.status == 2  # a contender is chosen by name
    chosen = odenet("evaluate", f"run={comparison}", "contender=odenet", "solver=dopri8", "backend=torchdiffeq")
    assert chosen.status == 0
    assert "ResNet" not in chosen.out


def test_a_users_own_configs_are_found_from_anywhere(odenet):
    own = odenet.folder / "own"
    (own / "residual").mkdir(parents=True)
    (own / "residual/tiny.yaml").write_text("_target_: odenet.residual.MLP\n_partial_: true\nwidth: 3\n")
    here = odenet.folder / "elsewhere"
    here.mkdir()
    os.chdir(here)
    small = [w for w in TRAIN if not w.startswith("residual")]
    done = odenet("train", "--config-dir", "../own", "residual=tiny", *small)
    assert done.status == 0, done.err
    done = odenet("train", f"hydra.searchpath=[file://{own}]", "residual=tiny", *small)
    assert done.status == 0, done.err
    comparing = odenet("compare", "--config-dir", "../own", '+contenders.tiny=["model=odenet","residual=tiny"]', *SMALL)
    assert comparing.status == 0, comparing.err


MISTAKES = {
    "solver=rk5": ["rk4", "dopri5"],
    "solver.foo=1": ["rtol", "atol"],
    "foo=1": ["trainer", "optimizer"],
    "gradient=foo": ["autograd", "checkpoint", "adjoint"],
    "residual=foo": ["conv", "mlp"],
    "data=foo": ["digits", "cifar10"],
    "solver.rtol=0": ["rtol must be a positive number"],
    "solver.rtol=1e-9": ["below what torch.float32 resolves"],
    "solver=euler solver.steps=0": ["steps must be a positive integer"],
    "solver=euler +solver.rtol=1e-3": ["leave out either rtol or steps"],
    "solver=rk4 ~solver.steps": ["give steps=N"],
    "+trainer.foo=1": ["epochs", "batch_size"],
    "trainer.epochs=0": ["epochs must be a positive integer"],
    "optimizer.lr=x": ["optimizer and schedule cannot be made"],
    "network=image residual=conv": ["network=vector"],
    "depth=untied": ["piecewise_constant"],
    "solver.rtol=[1": ["[1"],
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_a_sentence_and_status_2_before_anything_is_made(odenet, mistake):
    done = odenet("train", *TRAIN, *mistake.split())
    assert done.status == 2
    assert done.err.count("\n") == 1, done.err
    assert "Traceback" not in done.err
    for word in MISTAKES[mistake]:
        assert word in done.err
    assert not (odenet.folder / "runs").exists()


def test_unknown_command(odenet):
    done = odenet("trian")
    assert done.status == 2
    assert "did you mean 'train'?" in done.err


def test_runs_that_are_none(comparison, odenet):
    assert "run must be given" in odenet("evaluate").err
    assert "no run folder" in odenet("evaluate", "run=nowhere").err
    broken = odenet.folder / "broken"
    shutil.copytree(comparison, broken)
    checkpoint = broken / "contenders/odenet/checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    done = odenet("evaluate", f"run={broken}", "contender=odenet", "solver=rk4", "steps=2")
    assert done.status == 2
    assert "checkpoint.pt is corrupt" in done.err
    checkpoint.unlink()
    assert "has no checkpoint.pt" in odenet("evaluate", f"run={broken}", "contender=odenet").err
    assert "did you mean 'odenet'" in odenet("evaluate", f"run={broken}", "contender=odenetx").err
    (broken / "config.yaml").write_text("a: [1")
    assert "cannot be read" in odenet("evaluate", f"run={broken}").err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(odenet):
    locked = odenet.folder / "locked"
    locked.mkdir()
    locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
    done = odenet("train", *TRAIN, f"root={locked}")
    assert done.status == 2
    assert "cannot write to the output folder" in done.err


def test_a_folder_whose_place_is_taken_by_a_file(odenet):
    (odenet.folder / "taken").write_text("a file")
    done = odenet("train", *TRAIN, "root=taken")
    assert done.status == 2
    assert "cannot write to the output folder" in done.err

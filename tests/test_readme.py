"""What the README prints is what happens."""

import contextlib
import io
import re
from pathlib import Path

from odenet.gradients import gradients
from odenet.solvers import backends

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(code):
    out = io.StringIO()
    names = {}
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), names)
    return names, out.getvalue().split("\n")


def test_the_ten_lines_run_and_say_what_the_comments_claim():
    names, lines = run(BLOCKS[0])
    coarse, fine = (float(re.search(r"tensor\(([0-9.e-]+)", line).group(1)) for line in lines[:2])
    assert 4 < coarse / fine < 16  # "eight times the steps: an eighth of it"
    nfe, nfe_backward, accepted, rejected = map(int, lines[2].split())
    assert nfe == 2 + 6 * (accepted + rejected)
    assert nfe_backward == 6 * accepted
    assert names["ode"].F is names["resnet"].F


def test_your_own_f_runs():
    names, _ = run(BLOCKS[1])
    assert names["path"].shape == (4, 5, 2)
    import torch

    x = torch.randn(3, 2)
    torch.testing.assert_close(names["same"](x), names["block"](x))


def test_a_network_that_you_have_is_opened():
    import pytest
    import torch

    pytest.importorskip("torchvision")
    names, lines = run(BLOCKS[2])
    assert lines[0].startswith("tensor(0.") and lines[1].startswith("tensor(")
    for p in names["ode"].parameters():
        assert any(p is q for q in names["model"].parameters())
    assert torch.equal(names["opened"](names["x"]), names["model"](names["x"]))


def test_the_tables_name_what_the_registries_hold():
    for name in [*backends["native"].methods(), *gradients]:
        assert re.search(rf"^\| .*`{name}`", README, re.MULTILINE), name


def test_every_command_in_the_readme_is_one_that_composes(tmp_path, monkeypatch):
    import shlex

    from odenet.cli import main

    monkeypatch.chdir(tmp_path)
    lines = [line.split("#")[0].strip() for line in README.splitlines() if line.startswith("    odenet ")]
    assert len(lines) > 5
    for line in lines:
        words = [w for w in shlex.split(line)[1:] if w != "-m" and not w.startswith("seed=")]
        with contextlib.redirect_stdout(io.StringIO()):
            assert main([*words, "--cfg", "job"]) == 0, line


def test_the_pictures_are_there():
    for path in re.findall(r"\]\((docs/[^)]+)\)", README):
        assert (Path(__file__).parent.parent / path).stat().st_size > (10_000 if path.endswith(".png") else 500)

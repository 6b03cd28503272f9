"""A comparison small enough to run in a test, and the command in this process."""

import contextlib
import io
import sys

import pytest
import torch

from odenet.cli import main

SMALL = [
    "data=moons",
    "data.n=64",
    "data.n_test=40",
    "trainer.epochs=2",
    "trainer.batch_size=32",
    "trainer.threads=1",
    "residual.width=8",
    "swap=[{solver:euler,steps:4},{solver:euler,steps:8},{solver:dopri5,rtol:0.01,atol:0.01}]",
]
FEW = ["~contenders.rk4_net", "~contenders.odenet_adjoint", "~contenders.resnet_tied", "~contenders.single_block"]


class Done:
    """Exit status and output of a command."""

    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def odenet(tmp_path, monkeypatch):
    """Run `odenet WORDS ...` in an empty folder, which is also `odenet.folder`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    threads = torch.get_num_threads()

    def run(*words):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(list(words))
        return Done(status, out.getvalue(), err.getvalue())

    run.folder = tmp_path
    yield run
    torch.set_num_threads(threads)
    assert sys.argv[0] != "odenet"


@pytest.fixture(scope="session")
def comparison(tmp_path_factory):
    """The run folder of a small finished comparison."""
    folder = tmp_path_factory.mktemp("comparison") / "run"
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["compare", *SMALL, *FEW, f"folder={folder}"]) == 0
    return folder

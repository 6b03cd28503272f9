"""Two CPU processes see the batches of one and come to its numbers."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
from functools import partial
import torch
from torch import nn
import odenet
from odenet.data import moons
from odenet.training import Settings, constant, fit

torch.set_num_threads(1)
devices, folder = int(sys.argv[1]), sys.argv[2]
for run in ("a", "b"):  # a process can hold several runs, one after the other
    torch.manual_seed(0)
    model = nn.Sequential(
        odenet.ODEBlock(odenet.residual.MLP(2), solver="rk4", steps=2, gradient="checkpoint"),
        nn.Linear(2, 4), nn.BatchNorm1d(4).eval(), nn.Linear(4, 2),
    )
    model[2].train = lambda mode=True: model[2]  # statistics of half a batch would differ
    calls = []
    history = fit(
        model, moons(n=80, n_test=41), partial(torch.optim.SGD, lr=0.1), constant,
        Settings(epochs=2, batch_size=20, devices=devices, strategy="ddp" if devices > 1 else "auto"),
        f"{folder}/{run}", calls.append,
    )
    if calls:
        print("RESULT", json.dumps(history))
"""


def launch(tmp_path, processes, *launcher):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    folder = tmp_path / f"{processes}{len(launcher)}"
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    done = subprocess.run(
        [sys.executable, *launcher, str(program), str(processes), str(folder)],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert len(lines) == 2  # only the first process reports
    return folder, [json.loads(line.removeprefix("RESULT ")) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [("-m", "torch.distributed.run", "--nproc-per-node", "2"), ()])
def test_two_processes_give_the_numbers_of_one(tmp_path, launcher):
    _, (alone, _) = launch(tmp_path, 1)
    folder, runs = launch(tmp_path, 2, *launcher)
    for together in runs:
        for one, two in zip(alone, together, strict=True):
            for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "nfe_forward"):
                assert two[name] == pytest.approx(one[name], rel=1e-5), name
    for run in ("a", "b"):
        assert sorted(f.name for f in (folder / run).iterdir()) == ["checkpoint.pt", "history.csv", "logs"]

"""`odenet train`: one network on one data set."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console

from odenet import plotting
from odenet.experiments.build import build_data, rehearse
from odenet.experiments.contender import Contender
from odenet.experiments.folder import open_folder
from odenet.experiments.progress import Board, summary_line


def train(config: DictConfig, console: Console) -> Path:
    """Train a network, or go on with a run that was interrupted.

    Args:
        config: composed config of `odenet train`.
        console: where to write.

    Returns:
        The run folder, with `checkpoint.pt`, `history.csv`, `result.json`, `config.yaml` and `environment.json`; with a
        monitor `figures/monitor.png` and `.svg` too.

    Raises:
        OdenetError: bad input, before training starts; or a run that broke down, with its last checkpoint kept.
    """
    data = build_data(config)
    rehearse(config, data)
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    folder = open_folder(config, "train", f"{data.name}-{config.model.name}")
    contender = Contender(config.model.name, config, folder)
    console.print(f"[bold]odenet train[/bold]  {data.description}\n{config.model.label}, folder {folder}")
    result = contender.finished()
    if result is not None:
        console.print(summary_line(result, None), highlight=False)
        return folder
    start = time.monotonic()
    with Board({contender.name: 0.0}, console) as board:
        board.begin(contender.name)
        result = contender.run(data, (), board.trained, board.told)
        board.end(summary_line(result, time.monotonic() - start))
    alone = {"contenders": [result]}
    if plotting.monitored(alone):
        files = plotting.save(plotting.monitor(alone), folder / "figures" / "monitor")
        console.print(f"how near to an ODE it was in training: {files['png']}", highlight=False)
    return folder

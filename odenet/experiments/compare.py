"""`odenet compare`: the same residual function walked in different ways, trained alike, measured alike."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from odenet.artifacts import read_json, write_json, write_text
from odenet.data import DataSet
from odenet.diagnostics import diagnostics
from odenet.errors import InputError, RunError
from odenet.experiments.build import build_data, build_model, build_training, device_of, rehearse
from odenet.experiments.claims import claims, judge, sentences
from odenet.experiments.config import contender_config
from odenet.experiments.contender import Contender
from odenet.experiments.environment import environment
from odenet.experiments.folder import CONFIG, open_folder
from odenet.experiments.progress import Board, clock, summary_line
from odenet.experiments.report import terminal_table, write_report
from odenet.training import objective_of

TIMES = "times.json"
PROBE_STEPS = 2
EVALUATIONS = 25  # the swap matrix costs about as much as this many evaluations under the training solver
ROLES = ("contender", "control")


def compare(config: DictConfig, console: Console) -> Path:
    """Run a comparison, or what is left of one, and write its report.

    Args:
        config: composed config of `odenet compare`.
        console: where to write.

    Returns:
        The run folder.

    Raises:
        OdenetError: bad input, before anything is trained; or a run that broke down, with all that was done kept.
    """
    data = build_data(config)
    walks = OmegaConf.to_container(config.swap, resolve=True)
    assert isinstance(walks, list)
    configs = _configs(config)
    if config.claim is not None:
        claims[config.claim]
    measures = [name for name in config.diagnostics if diagnostics[name]]
    threads = config.trainer.threads
    if threads is not None:
        torch.set_num_threads(threads)
    for one in configs.values():
        rehearse(one, data)
    folder = open_folder(config, "compare", data.name)
    contenders = [Contender(name, one, folder / "contenders" / name) for name, one in configs.items()]
    finished = {c.name: result for c in contenders if (result := c.finished()) is not None}
    for c in contenders:
        write_text(c.folder / CONFIG, OmegaConf.to_yaml(c.config, resolve=True))
    console.print(f"[bold]odenet compare[/bold]  {data.description}\n{len(contenders)} networks, folder {folder}")
    left = [c for c in contenders if c.name not in finished]
    times = _read_times(folder)
    with Board({c.name: _estimate(c.config, data) for c in left}, console) as board:
        for c in contenders:
            if c.name in finished:
                console.print(summary_line(finished[c.name], None), highlight=False)
                continue
            start = time.monotonic()
            board.begin(c.name)
            result = c.run(data, walks, board.trained, board.told, measures)
            times[c.name] = times.get(c.name, 0.0) + time.monotonic() - start
            write_json(folder / TIMES, times)
            finished[c.name] = result
            board.end(summary_line(result, time.monotonic() - start))
    results = _results(config, data, [finished[c.name] for c in contenders], times)
    hidden = {c.name: h for c in contenders if (h := c.hidden()) is not None}
    written = write_report(
        folder, results, hidden, (folder / CONFIG).read_text(), read_json(folder / "environment.json")
    )
    console.print(terminal_table(results))
    console.print(f"{clock(results['seconds'])} in all. Report: {written['report.html']}", highlight=False)
    if (claim := judge([results])) is not None:
        console.print(*sentences(claim, [config.seed]), sep="\n", highlight=False, markup=False)
    return folder


def _configs(config: DictConfig) -> dict[str, DictConfig]:
    """The `odenet train` config of every contender."""
    if not any(overrides is not None for overrides in config.contenders.values()):
        raise InputError("contenders must name at least one network, got none")
    chosen = {str(name): list(o) for name, o in config.contenders.items() if o is not None}
    configs = {name: contender_config(config, overrides) for name, overrides in chosen.items()}
    for name, one in configs.items():
        if one.model.role not in ROLES:
            raise InputError(f"model.role of {name} must be one of {', '.join(ROLES)}, got {one.model.role!r}")
    return configs


def _estimate(config: DictConfig, data: DataSet) -> float:
    """Seconds that a contender will take, from a few training steps of a copy that is thrown away."""
    with torch.random.fork_rng():
        model = build_model(config, data)
        _, _, settings = build_training(config)
        device = device_of(settings.accelerator)
        model.to(device)
        x = data.prepare(data.train_x[: settings.batch_size].to(device))
        y = data.train_y[: settings.batch_size].to(device)
        seconds = []
        for _ in range(PROBE_STEPS):
            start = time.perf_counter()
            loss = objective_of(data).loss(model(x), y)
            loss.backward()
            loss.item()
            seconds.append(time.perf_counter() - start)
        with torch.no_grad():
            start = time.perf_counter()
            model(x).sum().item()
            forward = time.perf_counter() - start
    batches = len(data.train_x) / settings.batch_size
    tests = len(data.test_x) / settings.batch_size
    return settings.epochs * (batches * seconds[-1] + tests * forward) + EVALUATIONS * tests * forward


def _read_times(folder: Path) -> dict[str, float]:
    try:
        return dict(read_json(folder / TIMES)) if (folder / TIMES).exists() else {}
    except (RunError, TypeError, ValueError):
        return {}


def _results(
    config: DictConfig, data: DataSet, contenders: list[dict[str, Any]], times: dict[str, float]
) -> dict[str, Any]:
    """Everything that was found, as it is written to results.json."""
    where = environment()
    return {
        "experiment": "compare",
        "claim": config.claim,
        "title": f"Discrete and continuous depth on {data.name}",
        "data": {
            "name": data.name,
            "shape": list(data.shape),
            "n_train": len(data.train_x),
            "n_test": len(data.test_x),
            "classes": list(data.classes),
            **({} if data.tolerance is None else {"outputs": data.outputs, "tolerance": data.tolerance}),
        },
        "seed": config.seed,
        "device": config.trainer.accelerator,
        "threads": torch.get_num_threads(),
        "epochs": config.trainer.epochs,
        "batch_size": config.trainer.batch_size,
        "seconds": sum(times.values()),
        "version": where["odenet"],
        "git_revision": where["git_revision"],
        "contenders": contenders,
    }

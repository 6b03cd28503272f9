"""`odenet evaluate`: the trained weights of a run under another solver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import nn

from odenet.artifacts import load_checkpoint, write_json
from odenet.blocks import blocks_of
from odenet.data import DataSet
from odenet.errors import InputError, RunError, UnknownNameError
from odenet.experiments.build import build_continuation, build_data, build_model
from odenet.experiments.contender import CHECKPOINT
from odenet.experiments.contender import label_of as label_of_network
from odenet.experiments.folder import read_config
from odenet.experiments.swap import evaluate_walk, label_of
from odenet.training import evaluate as evaluate_model
from odenet.training import objective_of
from odenet.training.monitor import restore_schemes

DEFAULT_TOLERANCE = 1e-3


def evaluate(config: DictConfig, console: Console) -> list[dict[str, Any]]:
    """Evaluate the networks of a run as trained, and under the solver that is asked for.

    Args:
        config: composed config of `odenet evaluate`.
        console: where to write.

    Returns:
        One row for each network: accuracy as trained, accuracy under the other solver, flips, NFE. They are written
        to the run folder too, as evaluate-<solver>.json.

    Raises:
        RunError: no run there, or its checkpoint is missing or corrupt.
        InputError: a solver that cannot walk these networks.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    folder = Path(config.run)
    walk = _walk(config)
    if config.reestimate and walk is None:
        raise InputError("reestimate=true is for another solver; give solver=NAME")
    rows = [_row(name, one, where, walk, config) for name, one, where in networks_of(folder, config.contender)]
    as_trained = walk is None
    table = Table(title=None if as_trained else f"{folder}: trained weights under {label_of(walk or {})}")
    for heading in (
        "network",
        "trained with",
        "accuracy",
        *(() if as_trained else ("swapped", "flips", "NFE", "note")),
    ):
        table.add_column(heading, justify="left" if heading in ("network", "trained with", "note") else "right")
    for row in rows:
        cells = [row["label"], row["trained_with"], f"{100 * row['accuracy']:.1f} %"]
        if not as_trained:
            cells += [f"{100 * row['swapped']:.1f} %", f"{100 * row['flips']:.1f} %", f"{row['nfe']:.0f}", row["note"]]
        table.add_row(*cells)
    console.print(table)
    name = "as-trained" if as_trained else label_of(walk or {}).replace(",", "").replace(" ", "-").lower()
    path = write_json(folder / f"evaluate-{name}.json", rows)
    console.print(f"written to {path}", highlight=False)
    return rows


def load_network(config: DictConfig, data: DataSet, folder: Path) -> nn.Module:
    """The trained network of a run folder.

    Raises:
        RunError: there is no checkpoint, it is corrupt, or it does not fit the config.
    """
    model = build_model(config, data)
    path = folder / CHECKPOINT
    if not path.is_file():
        raise RunError(f"{folder} has no {CHECKPOINT}: the network has not been trained yet; run odenet train again")
    state = load_checkpoint(path)
    continuation = build_continuation(config)
    if continuation is not None:
        continuation.advance(model, int(state.get("epoch", 0)) - 1)
    restore_schemes(model, state.get("schemes"))
    try:
        model.load_state_dict(state["model"])
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"the checkpoint {path} does not fit the config beside it ({reason})") from error
    return model


def _walk(config: DictConfig) -> dict[str, Any] | None:
    asked = {k: config[k] for k in ("steps", "rtol", "atol") if config[k] is not None}
    if config.pieces is not None:
        asked["pieces"] = config.pieces
    if config.solver is None:
        if asked:
            raise InputError(f"{', '.join(asked)} need a solver; give solver=NAME")
        return None
    walk = {"solver": config.solver, "backend": config.backend, **asked}
    if "steps" not in asked:
        walk = {"rtol": DEFAULT_TOLERANCE, "atol": DEFAULT_TOLERANCE, **walk}
    return walk


def networks_of(folder: Path, chosen: str | None) -> list[tuple[str, DictConfig, Path]]:
    """(name, config, folder) of the networks of a run that have been trained.

    Args:
        folder: the run folder.
        chosen: of a comparison, one contender; None for all.

    Raises:
        RunError: there is no run or no trained network.
        InputError: no such contender.
    """
    config = read_config(folder)
    if config["command"] == "train":
        if chosen is not None:
            raise InputError(f"{folder} is one network, not a comparison; leave contender out")
        one = OmegaConf.create(config)
        return [(one.model.name, one, folder)]
    names = list(config["contenders"])
    if chosen is not None and chosen not in names:
        raise UnknownNameError("contender", chosen, names)
    found = []
    for name in [chosen] if chosen is not None else names:
        where = folder / "contenders" / name
        if chosen is not None or (where / CHECKPOINT).is_file():
            found.append((name, OmegaConf.create(_contender_config(where)), where))
    if not found:
        raise RunError(f"{folder} has no trained network yet; run odenet compare again")
    return found


def _contender_config(where: Path) -> dict[str, Any]:
    path = where / "config.yaml"
    if not path.is_file():
        raise RunError(f"{where} has no config.yaml; run odenet compare again")
    loaded = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(loaded, dict)
    return {str(k): v for k, v in loaded.items()}


def _row(name: str, config: DictConfig, where: Path, walk: dict[str, Any] | None, asked: DictConfig) -> dict[str, Any]:
    data = build_data(config)
    model = load_network(config, data, where)
    blocks = blocks_of(model)
    how = {"batch_size": asked.batch_size, "prepare": data.prepare, "objective": objective_of(data)}
    trained = evaluate_model(model, data.test_x, data.test_y, **how)
    row = {
        "network": name,
        "label": label_of_network(name, config),
        "trained_with": str(blocks[0].scheme) if blocks else "no depth",
        "accuracy": trained.accuracy,
    }
    if walk is None:
        return row
    result, note = evaluate_walk(model, data, walk, asked.batch_size, asked.reestimate)
    flips = (~objective_of(data).same(result.predictions, trained.predictions)).double().mean().item()
    return row | {"swapped": result.accuracy, "flips": flips, "nfe": result.nfe, "note": note}

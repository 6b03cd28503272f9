"""One contender of a comparison: trained, evaluated, swapped, followed through depth."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from odenet.artifacts import read_json, write_bytes, write_json
from odenet.blocks import blocks_of
from odenet.data import DataSet
from odenet.diagnostics import audit_gradients, survey
from odenet.errors import OdenetError, RunError
from odenet.experiments.build import build_continuation, build_model, build_monitor, build_training, count_parameters
from odenet.experiments.hidden import Hidden, hidden_states, load_hidden, save_hidden
from odenet.experiments.swap import swap_matrix
from odenet.training import History, Progress, evaluate, fit, objective_of

RESULT, HIDDEN, CHECKPOINT = "result.json", "hidden.npz", "checkpoint.pt"
INFERENCE_PASSES = 5
MEASURED, ANSWERS = 512, 200  # test samples
Tell = Callable[[str, float], None]


@dataclass(frozen=True)
class Contender:
    """What is to be trained.

    Attributes:
        name: its key in the comparison.
        config: its composed `odenet train` config.
        folder: where its checkpoint and results are kept.
    """

    name: str
    config: DictConfig
    folder: Path

    def finished(self) -> dict[str, Any] | None:
        """Its result, if an earlier run got that far.

        Raises:
            RunError: the result file is corrupt.
        """
        path = self.folder / RESULT
        if not path.exists():
            return None
        result = read_json(path)
        if not isinstance(result, dict) or "test_accuracy" not in result:
            raise RunError(f"{path} is not the result of a contender; delete it to have it made again")
        return result

    def hidden(self) -> Hidden | None:
        """Its hidden states, if it has any."""
        path = self.folder / HIDDEN
        return load_hidden(path) if path.exists() else None

    def run(
        self,
        data: DataSet,
        walks: Sequence[Mapping[str, Any]] = (),
        progress: Callable[[Progress], None] | None = None,
        tell: Tell = lambda what, share: None,
        measures: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Train (or go on training), evaluate, and write the result.

        Args:
            data: the data set.
            walks: the solvers of the swap matrix.
            progress: told how training goes.
            tell: told what is done after training, and which share of it is over.
            measures: diagnostics whose numbers are to be kept.
        """
        model = build_model(self.config, data)
        optimizer, schedule, settings = build_training(self.config)
        continuation = build_continuation(self.config)
        blocks = blocks_of(model)
        monitor = build_monitor(self.config) if blocks else None
        history = fit(model, data, optimizer, schedule, settings, self.folder, progress, continuation, monitor)
        batch_size = settings.eval_batch_size
        how = {"batch_size": batch_size, "prepare": data.prepare, "objective": objective_of(data)}
        trained = evaluate(model, data.test_x, data.test_y, **how)

        def swapped(number: int, total: int) -> None:
            tell("solver swap", number / total)

        result = {
            **describe(self.name, self.config, model),
            **last_numbers(history),
            "test_accuracy": trained.accuracy,
            "test_loss": trained.loss,
            "inference_ms": inference_ms(model, data, batch_size),
            "gradient_error": gradient_error(model, data, settings.batch_size) if blocks else None,
            "history": history,
            "swap": swap_matrix(model, data, trained, walks, batch_size, swapped) if blocks else [],
        }
        if measures and blocks:
            result["diagnostics"] = measured(model, data, measures)
        if data.tolerance is not None and data.shape == (1,):
            result["answers"] = {"x": data.test_x[:ANSWERS, 0].tolist(), "y": trained.predictions[:ANSWERS, 0].tolist()}
        hidden = hidden_states(model, data) if walks else None
        if hidden is not None:
            write_bytes(self.folder / HIDDEN, save_hidden(hidden))
        write_json(self.folder / RESULT, result)
        return read_json(self.folder / RESULT)


def measured(model: nn.Module, data: DataSet, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The numbers of diagnostics on the first test samples: for each a list, over the blocks if it is about blocks."""
    device = next(model.parameters()).device
    x, y = data.prepare(data.test_x[:MEASURED].to(device)), data.test_y[:MEASURED].to(device)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for finding in survey(model, x, y, names):
        found[finding.diagnostic].append({} if finding.result is None else finding.result.numbers())
    return found


def label_of(name: str, config: DictConfig) -> str:
    """A network in words: its model's label, and its own name where that is another."""
    return config.model.label if name == config.model.name else f"{config.model.label} [{name}]"


def describe(name: str, config: DictConfig, model: nn.Module) -> dict[str, Any]:
    """What a contender is: label, role, scheme, parameters."""
    blocks = blocks_of(model)
    scheme = blocks[0].scheme if blocks else None
    return {
        "name": name,
        "label": label_of(name, config),
        "role": config.model.role,
        "solver": scheme
        and {
            "solver": scheme.solver,
            "steps": scheme.steps,
            "rtol": scheme.tolerances[0] if scheme.adaptive else None,
            "atol": scheme.tolerances[1] if scheme.adaptive else None,
            "backend": scheme.backend,
        },
        "gradient": scheme and scheme.gradient,
        "weights": None if not blocks else "tied" if blocks[0].weights.pieces == 1 else "untied",
        "parameters": count_parameters(model),
    }


def last_numbers(history: History) -> dict[str, Any]:
    """Of the last epoch: training loss and accuracy, NFE, memory; the median time of an epoch."""
    last = history[-1]
    return {
        "train_loss": last["train_loss"],
        "train_accuracy": last["train_accuracy"],
        "nfe_forward": last["nfe_forward"],
        "nfe_backward": last["nfe_backward"],
        "seconds_per_epoch": statistics.median(record["seconds"] for record in history),
        "memory_bytes": next((r["memory_bytes"] for r in history if r["memory_bytes"] == r["memory_bytes"]), None),
    }


def inference_ms(model: nn.Module, data: DataSet, batch_size: int) -> float:
    """Milliseconds a test sample takes in a forward pass without gradients: median of five passes after a first."""
    device = next(model.parameters()).device
    x = data.prepare(data.test_x[:batch_size].to(device))
    model.eval()
    times = []
    with torch.no_grad():
        for _ in range(1 + INFERENCE_PASSES):
            start = time.perf_counter()
            model(x)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[1:]) / len(x)


def gradient_error(model: nn.Module, data: DataSet, batch_size: int) -> float | None:
    """Relative error of the gradient that the network is trained with, on a batch, against float64; None if unknown."""
    device = next(model.parameters()).device
    if device.type == "mps":  # has no float64
        return None
    x, y = data.prepare(data.train_x[:batch_size].to(device)), data.train_y[:batch_size].to(device)
    model.train()
    used = blocks_of(model)[0].scheme.gradient
    try:
        audit = audit_gradients(model, x, lambda outputs: objective_of(data).loss(outputs, y), [used], repeats=1)
    except OdenetError:
        return None
    return audit.methods[0].error

"""The state of a training run in one file, and the check that a run may continue from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from odenet.artifacts import load_checkpoint, save_checkpoint
from odenet.data import DataSet
from odenet.errors import RunError
from odenet.training.history import History
from odenet.training.settings import Settings

Recipe = dict[str, Any]


def recipe(data: DataSet, optimizer: Optimizer, schedule: LRScheduler, settings: Settings) -> Recipe:
    """All that decides the numbers of a run besides the model; two runs with the same recipe may share a folder.

    Call it before the first step, since it reads the initial state of optimizer and schedule.
    """
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return {
        "data": data.description,
        "seed": settings.seed,
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "precision": str(settings.precision),
        "grad_clip": settings.grad_clip,
        "optimizer": f"{type(optimizer).__name__} {groups}",
        "schedule": f"{type(schedule).__name__} {schedule.state_dict()}",
    }


def write(
    path: Path,
    made_with: Recipe,
    history: History,
    model: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler,
    precision: Any,
    schemes: list[dict[str, Any]] | None = None,
) -> None:
    """Write the state after `len(history)` epochs to `path` atomically.

    Random numbers need no entry: every epoch seeds its own from the run's seed and its number. `schemes` says how the
    blocks are walked, where training may change that (see `schemes_of`).
    """
    state = {
        "recipe": made_with,
        "epoch": len(history),
        "history": [dict(record) for record in history],
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "precision": precision.state_dict(),
    }
    if schemes is not None:
        state["schemes"] = schemes
    save_checkpoint(path, state)


def read(path: Path, expected: Recipe) -> dict[str, Any] | None:
    """The state at `path`, or None if there is no file.

    Raises:
        RunError: the file is damaged, or belongs to a run with another recipe.
    """
    if not path.exists():
        return None
    state = load_checkpoint(path)
    wanted = {"recipe", "history", "model", "optimizer", "schedule", "precision"}
    if missing := sorted(wanted - set(state)):
        raise RunError(f"the checkpoint {path} has no {', '.join(missing)}; delete it to train again")
    for name, value in expected.items():
        if state["recipe"].get(name) != value:
            before, now = (_short(v) for v in (state["recipe"].get(name), value))
            raise RunError(
                f"the checkpoint {path} was made with {name} {before}, and this run asks for {now}; "
                "use another folder, or delete it to train again"
            )
    return state


def restore(
    path: Path,
    state: dict[str, Any],
    model: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler,
    precision: Any,
) -> History:
    """Put a state that was read from `path` into place and return the history so far.

    Raises:
        RunError: the state does not fit the model or the optimizer.
    """
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        precision.load_state_dict(state["precision"])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"the checkpoint {path} does not fit this model ({_short(error)}); "
            "use another folder, or delete it to train again"
        ) from error
    return list(state["history"])


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 300 else text[:300] + " …"

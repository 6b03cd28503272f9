"""What each command does with its composed config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from odenet.experiments.config import config_folder
from odenet.experiments.terminal import console


def compare(config: DictConfig) -> None:
    """`odenet compare`."""
    from odenet.experiments.compare import compare
    from odenet.experiments.summary import remember_job

    remember_job(compare(config, console()))


def train(config: DictConfig) -> None:
    """`odenet train`."""
    from odenet.experiments.summary import remember_job
    from odenet.experiments.train import train

    remember_job(train(config, console()))


def evaluate(config: DictConfig) -> None:
    """`odenet evaluate`."""
    from odenet.experiments.evaluate import evaluate

    evaluate(config, console())


def audit(config: DictConfig) -> None:
    """`odenet audit`."""
    from odenet.experiments.audit import audit

    audit(config, console())


def diagnose(config: DictConfig) -> None:
    """`odenet diagnose`."""
    from odenet.experiments.diagnose import diagnose

    diagnose(config, console())


class Command(NamedTuple):
    """A command: what runs it, and where its primary config is."""

    run: Callable[[DictConfig], None]
    folder: Callable[[], Path]


COMMANDS = {
    "compare": Command(compare, config_folder),
    "train": Command(train, config_folder),
    "audit": Command(audit, config_folder),
    "evaluate": Command(evaluate, lambda: config_folder() / "evaluate"),  # apart: its solver= is a name, not a group
    "diagnose": Command(diagnose, lambda: config_folder() / "diagnose"),
}

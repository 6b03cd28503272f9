"""A run folder: made for one config, refused to any other, resumed by the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from odenet.artifacts import make_folder, write_json, write_text
from odenet.errors import RunError
from odenet.experiments.config import differences, fingerprint, identity_of
from odenet.experiments.environment import environment

CONFIG, RESULTS = "config.yaml", "results.json"


def open_folder(config: DictConfig, kind: str, name: str) -> Path:
    """The folder of this run, made if need be, with its config and environment written into it.

    Args:
        config: the composed config, with keys `root` and `folder`.
        kind: "train" or "compare".
        name: start of the folder's name, if the config names none.

    Raises:
        RunError: the folder cannot be written, or holds a run of another config.
    """
    identity = {"command": kind, **identity_of(config)}
    if config.folder is None:
        folder = make_folder(Path(config.root) / kind / f"{name}-seed{config.seed}-{fingerprint(identity)}")
    else:
        folder = make_folder(config.folder)
    if (folder / CONFIG).exists():
        other = differences(read_config(folder), identity)
        if other:
            raise RunError(
                f"{folder} holds a run of another config (it differs in {', '.join(other[:3])}); "
                "choose another folder=, or delete this one"
            )
    else:
        write_text(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(identity)))
    write_json(folder / "environment.json", environment())
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved config of the run in a folder.

    Raises:
        RunError: there is none, or it cannot be read.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise RunError(
            f"{folder} is no run folder: it has no {CONFIG}; give the folder that odenet train or compare made"
        )
    try:
        config = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise RunError(
            f"{path} cannot be read ({str(error).splitlines()[0]}); delete the folder to run again"
        ) from error
    if not isinstance(config, dict) or "command" not in config:
        raise RunError(f"{path} is not the config of a run; give the folder that odenet train or compare made")
    return {str(key): value for key, value in config.items()}

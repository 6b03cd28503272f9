"""Where the configs are, how a contender's config is composed, and how a run is told from another."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from odenet.errors import InputError

SHARED = ("residual", "network", "optimizer", "schedule", "trainer", "data", "seed")
WHERE = ("root", "folder")  # where a run is kept is not part of what it is


def config_folder() -> Path:
    """The folder of the packaged configs: inside an installed wheel, or beside the package in a checkout.

    Raises:
        InputError: the configs are missing from the installation.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise InputError(f"the configs of odenet are missing beside {package}; install odenet again")


def contender_config(comparison: DictConfig, overrides: list[str]) -> DictConfig:
    """The `odenet train` config of one contender of a comparison.

    Args:
        comparison: the composed config of `odenet compare`.
        overrides: the contender's overrides of `odenet train`.

    Returns:
        A composed config; groups that the contender does not override itself are the comparison's.
    """
    from hydra import compose

    config = compose("train", overrides=list(overrides))
    own = {override.lstrip("+~").split("=")[0].split(".")[0].split("@")[0] for override in overrides}
    with open_dict(config):
        for key in SHARED:
            if key not in own:
                config[key] = comparison[key]
    return config


def identity_of(config: DictConfig) -> dict[str, Any]:
    """The resolved config without what only says where the run is kept."""
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    return {str(k): v for k, v in resolved.items() if k not in (*WHERE, "experiment")}


def fingerprint(identity: dict[str, Any]) -> str:
    """Eight hexadecimal digits that change with any value of a config."""
    text = OmegaConf.to_yaml(OmegaConf.create(identity), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Dotted keys at which two resolved configs differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted({*map(str, a), *map(str, b)})
        return [d for k in keys for d in differences(a.get(k), b.get(k), f"{path}.{k}" if path else k)]
    return [] if a == b else [path]

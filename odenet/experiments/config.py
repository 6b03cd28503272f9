"""Where the configs are, how a contender's config is composed, and how a run is told from another."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from odenet.errors import InputError

SHARED = ("residual", "network", "regulariser", "optimizer", "schedule", "trainer", "monitor", "data", "seed")
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
        A composed config. Groups that all contenders share are the comparison's, unless the contender chooses its own;
        single keys that it sets in them are set on top.
    """
    from hydra import compose
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = {text: OverridesParser.create().parse_override(text) for text in overrides}
    on_top = {text: o for text, o in parsed.items() if o.key_or_group.split(".")[0] in SHARED and "." in o.key_or_group}
    chosen = {o.key_or_group for o in parsed.values()}
    config = compose("train", overrides=[text for text in overrides if text not in on_top])
    with open_dict(config):
        for key in SHARED:
            if key not in chosen:
                config[key] = comparison[key]
    for override in on_top.values():
        with open_dict(config) if override.is_add() else nullcontext():
            OmegaConf.update(config, override.key_or_group, override.value())
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

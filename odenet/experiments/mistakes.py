"""Hydra's and OmegaConf's complaints about a command line, as one sentence that names what would have worked."""

from __future__ import annotations

import re
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from odenet.errors import UnknownNameError

GROUP = re.compile(
    r"Could not find '(?P<group>[^']+)/(?P<name>[^'/]+)'.*?"
    r"Available options in '[^']+': (?P<options>.+?)(?: Config search path|$)"
)


def explain(error: BaseException) -> str | None:
    """A sentence about a mistake in the config or the command line; None if the error is neither."""
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} must be given: {error.full_key}=..."
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    inner = _config_error(error)
    text = " ".join(str(error).split())
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown is not None:
        return f"unknown config key {unknown.group(1)!r}; {_valid_keys(inner, unknown.group(1))}"
    group = GROUP.search(text)
    if group is not None:
        return str(UnknownNameError(group["group"], group["name"], group["options"].split()))
    return text


def _config_error(error: BaseException) -> OmegaConfBaseException | None:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__
    return cause


def _valid_keys(error: OmegaConfBaseException | None, key: str) -> str:
    node: Any = None if error is None else error.parent_node
    if isinstance(node, BaseContainer) and OmegaConf.is_dict(node):
        keys = sorted(str(k) for k in node if not str(k).startswith("_") and k != "hydra")
        where = key.rpartition(".")[0]
        return f"valid{' in ' + where if where else ''}: {', '.join(keys)}; to add a key of your own write +{key}=VALUE"
    return f"to add a key of your own write +{key}=VALUE"

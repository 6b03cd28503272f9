"""From a composed config to objects: data, model, optimizer, schedule, settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from odenet.data import DataSet
from odenet.errors import InputError, OdenetError
from odenet.training import Settings

MATCH_LIMIT = 4096


def build(config: Any, **values: Any) -> Any:
    """Instantiate a config node; an error of ours inside comes out as itself, any other as an `InputError`."""
    try:
        return instantiate(config, **values, _convert_="all")
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OdenetError):
                raise cause from None
            cause = cause.__cause__
        target = OmegaConf.select(config, "_target_") if isinstance(config, DictConfig) else None
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise InputError(f"the config of {target or 'an object'} cannot be used: {reason}") from error


def build_data(config: DictConfig) -> DataSet:
    """The data set that `data` names."""
    return build(config.data)


def build_model(config: DictConfig, data: DataSet) -> nn.Module:
    """The network, with its weights drawn from `seed`.

    `solver`, `depth` and `gradient` are arguments of the block; `model.stage` says which block; `network` says what
    stands around it; `model.match_parameters`, if given, narrows F until the parameters are as many as they would be
    with those arguments of the block.
    """
    residual = build(config.residual)
    target = config.model.match_parameters
    if target is not None:
        residual = narrowed(config, data, residual, OmegaConf.to_container(target, resolve=True))
    torch.manual_seed(config.seed)
    return _network(config, data, residual, {})


def build_training(config: DictConfig) -> tuple[Callable[..., Any], Callable[..., Any], Settings]:
    """Optimizer factory, schedule factory and settings."""
    optimizer, schedule = build(config.optimizer), build(config.schedule)
    values = OmegaConf.to_container(config.trainer, resolve=True)
    assert isinstance(values, dict)
    return optimizer, schedule, Settings(seed=config.seed, **{str(k): v for k, v in values.items()})


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def narrowed(config: DictConfig, data: DataSet, residual: Callable[..., Any], target: Any) -> Callable[..., Any]:
    """F with the hidden width at which the network comes nearest to the parameters it would have with `target`."""

    def count(residual: Callable[..., Any], block: Mapping[str, Any]) -> int:
        with torch.device("meta"):
            return count_parameters(_network(config, data, residual, block))

    def with_width(width: int) -> Callable[..., Any]:
        return lambda size: residual(size, width=width)

    wanted = count(residual, target)
    low, high = 1, MATCH_LIMIT
    while low < high:  # the first width with at least as many parameters
        middle = (low + high) // 2
        if count(with_width(middle), {}) < wanted:
            low = middle + 1
        else:
            high = middle
    return with_width(min((max(1, low - 1), low), key=lambda width: abs(count(with_width(width), {}) - wanted)))


def _network(config: DictConfig, data: DataSet, residual: Callable[..., Any], block: Mapping[str, Any]) -> nn.Module:
    parts: dict[str, Any] = {}
    for choice in (config.depth, config.solver, config.gradient):
        parts |= {str(key): build(value) if isinstance(value, DictConfig) else value for key, value in choice.items()}
    stage = build(config.model.stage)
    return build(
        config.network,
        shape=list(data.shape),
        classes=len(data.classes),
        residual=residual,
        stage=lambda F: stage(F, **(parts | dict(block))),
    )

"""From a composed config to objects: data, model, optimizer, schedule, settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from odenet.data import DataSet
from odenet.errors import InputError, OdenetError, UnknownNameError
from odenet.training import Continuation, OdeMonitor, Settings

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
        reason = _first_line(error.__cause__ or error)
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


def build_continuation(config: DictConfig) -> Continuation | None:
    """What becomes of depth in the course of training; None if it stays."""
    chosen = OmegaConf.select(config, "continuation")
    return None if chosen is None else build(chosen)


def build_monitor(config: DictConfig) -> OdeMonitor | None:
    """What looks at the blocks while they are trained; None if nothing does."""
    chosen = OmegaConf.select(config, "monitor")
    return build(chosen) if chosen else None


def build_training(config: DictConfig) -> tuple[Callable[..., Any], Callable[..., Any], Settings]:
    """Optimizer factory, schedule factory and settings."""
    optimizer, schedule = build(config.optimizer), build(config.schedule)
    values = OmegaConf.to_container(config.trainer, resolve=True)
    assert isinstance(values, dict)
    known = [f.name for f in fields(Settings)]
    for key in values:
        if key not in known:
            raise UnknownNameError("key of trainer", key, known)
    return optimizer, schedule, Settings(seed=config.seed, **{str(k): v for k, v in values.items()})


def rehearse(config: DictConfig, data: DataSet) -> None:
    """Build everything a training run needs, and take one step on two samples with a copy that is thrown away.

    What cannot work is said now, not after an hour.

    Raises:
        OdenetError: what is wrong, in one sentence.
    """
    optimizer, schedule, settings = build_training(config)
    continuation = build_continuation(config)
    build_monitor(config)
    with torch.random.fork_rng(devices=[]):
        model = build_model(config, data)
        if continuation is not None:
            continuation.check(model, settings.epochs)
        try:
            step = optimizer(model.parameters())
            schedule(step, 10)
        except OdenetError:
            raise
        except Exception as error:
            raise InputError(f"optimizer and schedule cannot be made: {_first_line(error)}") from error
        try:
            model(data.prepare(data.train_x[:2])).square().mean().backward()
        except OdenetError:
            raise
        except Exception as error:
            raise InputError(
                f"the network cannot take samples of shape {data.shape} ({_first_line(error)}); "
                "check that residual, network and data fit each other"
            ) from error


def device_of(accelerator: str) -> torch.device:
    """The first device of an accelerator as Lightning Fabric names it."""
    if accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator in ("gpu", "mps", "auto") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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
    for group in ("depth", "solver", "gradient", "regulariser"):  # one that the config is older than has its default
        choice = OmegaConf.select(config, group) or {}
        parts |= {str(key): build(value) if isinstance(value, DictConfig) else value for key, value in choice.items()}
    if "compile" in config:
        parts["compile"] = config.compile
    stage = build(config.model.stage)
    return build(
        config.network,
        shape=list(data.shape),
        classes=data.outputs,
        residual=residual,
        stage=lambda F: stage(F, **(parts | dict(block))),
    )

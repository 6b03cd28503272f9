"""An optimizer's state carried along when weights over depth are refined, coarsened or projected.

Gradients with respect to coefficients are duals: ∂L/∂C_k = ∫ φ_k(s) g(s) ds, with g(s) the gradient of the loss with
respect to θ(s). From old coefficients (basis ψ) g is known as far as ψ sees it, and the gradient that new ones would
have had (basis φ) is

    B ∂L/∂C,   B = G_φ A G_ψ⁻¹,   A the projection from ψ to φ, G the Gram matrices,

which is applied to first moments. Second moments v become (|B| √v)², never negative. Step counts stay. From and to
low-rank weights the chain rule of the factors stands between (`rank_moments`).
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from odenet.depth.bases import Basis
from odenet.depth.coefficients import mapped
from odenet.depth.expansion import Expansion
from odenet.depth.low_rank import LowRank
from odenet.depth.projection import gram, ones, transfer
from odenet.depth.rank_moments import Factors
from odenet.depth.weights import DepthWeights
from odenet.errors import InputError

SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")
UNSEEN = 1e-9
PROFILE = "profile of "


class Held(NamedTuple):
    """One tensor of F over depth: a parameter with all coefficients stacked, or a parameter for each.

    Attributes:
        parameters: the parameters.
        stacked: whether there is one, of shape (K, *shape).
        over_depth: whether its first index is that of the basis.
    """

    parameters: list[nn.Parameter]
    stacked: bool
    over_depth: bool = True

    def read(self, states: Any, key: str) -> Tensor:
        """An entry of the optimizer's state, (K, *shape); zero where a parameter has none yet."""
        found = [states[p].get(key) if p in states else None for p in self.parameters]
        tensors = [torch.zeros_like(p) if v is None else v for p, v in zip(self.parameters, found, strict=True)]
        return tensors[0] if self.stacked else torch.stack(tensors)

    def split(self, value: Tensor) -> list[Tensor]:
        """(K, *shape) as one tensor for each parameter."""
        return [value] if self.stacked else [part.clone() for part in value]


def held(weights: DepthWeights) -> dict[str, Held]:
    """The parameters of weights over depth by the name of the tensor in F."""
    if isinstance(weights, LowRank):
        names = [name for name, _ in weights.F.named_parameters()]
        modes = {name: Held([p], True, False) for name, p in weights.F.named_parameters()}
        return modes | {PROFILE + n: Held([p], True) for n, p in zip(names, weights.profiles, strict=True)}
    if isinstance(weights, Expansion):
        return {name: Held([p], True) for name, p in weights.F.named_parameters()}
    layers = [weights.piece(i) for i in range(weights.pieces)]
    modules = [layer for layer in layers if isinstance(layer, nn.Module)]
    if len(modules) != len(layers):
        return {}
    found: dict[str, list[nn.Parameter]] = defaultdict(list)
    for module in modules:
        for name, parameter in module.named_parameters():
            found[name].append(parameter)
    return {name: Held(parameters, False) for name, parameters in found.items()}


def carried(optimizer: Optimizer, old: nn.Module, new: nn.Module) -> tuple[list[dict[str, Any]], dict[Any, Any]]:
    """Parameter groups and state of `optimizer` for the parameters of `new`; see `carry_optimizer`."""
    replaced: dict[nn.Parameter, list[nn.Parameter]] = {}
    states: dict[Any, Any] = dict(optimizer.state)
    olds, news = ([m for m in module.modules() if isinstance(m, DepthWeights)] for module in (old, new))
    if len(olds) != len(news):
        raise InputError(f"the old module holds {len(olds)} weights over depth and the new one {len(news)}")
    for before, after in zip(olds, news, strict=True):
        if before is not after:
            _carry_weights(optimizer, before, after, states, replaced)
    names = dict(new.named_parameters())
    kept = set(new.parameters())
    for name, parameter in old.named_parameters():
        twin = names.get(name)
        if parameter not in kept and parameter not in replaced and twin is not None and twin.shape == parameter.shape:
            replaced[parameter] = [twin]
            if parameter in states:
                states[twin] = states[parameter]
    groups = []
    for group in optimizer.param_groups:
        parameters = [q for p in group["params"] for q in replaced.get(p, [p])]
        groups.append({**group, "params": list(dict.fromkeys(parameters))})
    present = {p for group in groups for p in group["params"]}
    return groups, {p: state for p, state in states.items() if p in present}


def carry_optimizer(optimizer: Optimizer, old: nn.Module, new: nn.Module) -> Optimizer:
    """The optimizer of `old` for `new`, whose weights over depth were refined, coarsened or projected from those.

    Momentum and Adam's first moments go along by the linear map of gradients between the two bases, second moments by
    the same map made non-negative, step counts as they are; coefficients that no gradient has touched begin with the
    mean second moment of the others. Where the weights were refined k times, each gradient is about k times smaller:
    Adam goes on at the same speed, SGD does with a learning rate k times as large. From and to low-rank weights moments
    go by the chain rule of modes and profiles, as they are at the switch.

    Args:
        optimizer: any optimizer of torch; it is left as it is.
        old: the block, model or weights whose parameters it holds.
        new: the one to go on with. Weights over depth are matched in order; other parameters are the same objects, or
            have the same names and shapes.

    Returns:
        An optimizer of the same class over the parameters of `new`, in the same groups. A tensor that was spread over
        several groups, layer by layer, is in the group of its first layer.

    Raises:
        InputError: the modules do not match.
    """
    twin = copy.copy(optimizer)
    move(twin, old, new, optimizer)
    return twin


def move(optimizer: Optimizer, old: nn.Module, new: nn.Module, source: Optimizer | None = None) -> None:
    """Let `optimizer` itself go on with the parameters of `new`; schedules that hold it stay valid."""
    groups, states = carried(source or optimizer, old, new)
    optimizer.param_groups, optimizer.state = groups, defaultdict(dict, states)


def _carry_weights(
    optimizer: Optimizer,
    before: DepthWeights,
    after: DepthWeights,
    states: dict[Any, Any],
    replaced: dict[nn.Parameter, list[nn.Parameter]],
) -> None:
    olds, news = held(before), held(after)
    same_rank = _rank(before) == _rank(after)
    everything = [p for slot in news.values() for p in slot.parameters]
    for name, slot in olds.items():
        target = news.get(name)
        for number, parameter in enumerate(slot.parameters):
            into = [] if target is None else target.parameters
            replaced[parameter] = into if number == 0 else []
            states.pop(parameter, None)
        if target is None or not same_rank:
            continue
        entries = _moved(optimizer.state, slot, target, before.basis, after.basis)
        for parameter, entry in zip(target.parameters, entries, strict=True):
            if entry:
                states[parameter] = entry
    if not same_rank:
        for name in [name for name in olds if name in news and not name.startswith(PROFILE)]:
            states |= _across_ranks(optimizer, before, after, olds, news, name)
    found = {p for into in replaced.values() for p in into}
    missing = [p for p in everything if p not in found]
    if missing and olds:  # profiles that the old weights had none of: beside the first parameter
        first = next(iter(olds.values())).parameters[0]
        replaced[first] = [*replaced[first], *missing]


def _moved(states: Any, slot: Held, target: Held, old: Basis, new: Basis) -> list[dict[str, Any]]:
    """The state of each of the target's parameters."""
    keys = {key for p in slot.parameters if p in states for key in states[p]}
    entries: list[dict[str, Any]] = [{} for _ in target.parameters]
    B = _between(old, new)
    for key in sorted(keys):
        values = [states[p][key] for p in slot.parameters if p in states and states[p].get(key) is not None]
        if not values:
            continue
        first = values[0]
        if key == "step" or not isinstance(first, Tensor) or first.shape != slot.parameters[0].shape:
            for entry in entries:
                entry[key] = first.clone() if isinstance(first, Tensor) else copy.copy(first)
            continue
        value = slot.read(states, key)
        if slot.over_depth and target.over_depth:
            value = _second(B, value) if key in SQUARES else mapped(B, {"": value})[""]
        elif value.shape != target.parameters[0].shape:
            continue
        for entry, part in zip(entries, target.split(value.clone()), strict=True):
            entry[key] = part
    return entries


def _between(old: Basis, new: Basis) -> Tensor:
    """B, (K, M)."""
    B = gram(new) @ transfer(old, new) @ torch.linalg.inv(gram(old))
    return torch.where(B.abs() < UNSEEN * B.abs().max(), 0.0, B)


def _rank(weights: DepthWeights) -> int | None:
    return weights.rank if isinstance(weights, LowRank) else None


def _factors(weights: LowRank, slots: dict[str, Held], name: str, dtype: torch.dtype) -> Factors:
    (modes,), (profiles,) = slots[name].parameters, slots[PROFILE + name].parameters
    A = torch.cat([ones(weights.basis)[:, None].to(dtype), profiles.detach().cpu().to(dtype)], 1)
    return Factors(A, modes.detach().cpu().to(dtype).flatten(1))


def _across_ranks(
    optimizer: Optimizer,
    before: DepthWeights,
    after: DepthWeights,
    olds: dict[str, Held],
    news: dict[str, Held],
    name: str,
) -> dict[Any, dict[str, Any]]:
    """State of the new parameters of one tensor of F, where the rank changes: through that of full coefficients."""
    states, slot, target = optimizer.state, olds[name], news[name]
    first = next((p for p in slot.parameters if p in states), None)
    if first is None:
        return {}
    dtype = torch.complex128 if first.is_complex() else torch.float64
    G, B = gram(before.basis), _between(before.basis, after.basis)
    new_profiles = news[PROFILE + name].parameters if isinstance(after, LowRank) else []
    found: dict[Any, dict[str, Any]] = {p: {} for p in (*target.parameters, *new_profiles)}
    means: Tensor | None = None
    for key in sorted(states[first]):
        value = states[first][key]
        if key == "step" or not isinstance(value, Tensor) or value.shape != first.shape:
            for entry in found.values():
                entry[key] = value.clone() if isinstance(value, Tensor) else copy.copy(value)
            continue
        square, kind = key in SQUARES, dtype.to_real() if key in SQUARES else dtype
        g = slot.read(states, key).cpu().to(kind).flatten(1)
        if isinstance(before, LowRank):
            factors = _factors(before, olds, name, dtype)
            of_profiles = olds[PROFILE + name].read(states, key).cpu().to(kind)
            g = factors.spread_squares(g, G).to(kind) if square else factors.spread(g, of_profiles, G)
        g = _second(B, g) if square else mapped(B, {"": g})[""]
        if isinstance(after, LowRank):
            factors = _factors(after, news, name, dtype)
            least = None if means is None else _agreed(optimizer, first) * means.abs() ** 2
            parts = factors.pulled_squares(g, least) if square else factors.pulled(g)
            means = parts[1] if key == "exp_avg" else means
        else:
            parts = (g,)
        slots = [target, *([news[PROFILE + name]] if len(parts) > 1 else [])]
        for of, part in zip(slots, parts, strict=True):
            whole = part.reshape(-1, *(of.parameters[0].shape[1:] if of.stacked else of.parameters[0].shape))
            for parameter, share in zip(of.parameters, of.split(whole), strict=True):
                found[parameter][key] = share.to(parameter.device, value.dtype)
    return found


def _agreed(optimizer: Optimizer, parameter: nn.Parameter) -> float:
    """Of Adam's moments, v / m² where all gradients were the same."""
    group = next(group for group in optimizer.param_groups if any(p is parameter for p in group["params"]))
    step = float(optimizer.state[parameter].get("step", math.inf))
    first, second = group.get("betas", (0.0, 0.0))
    return (1 - second**step) / (1 - first**step) ** 2


def _second(B: Tensor, v: Tensor) -> Tensor:
    """(|B| √v)², and the mean of it where B has nothing to say."""
    moved = mapped(B.abs(), {"": v.clamp_min(0).sqrt()})[""] ** 2
    blind = (B.abs().sum(1) == 0).to(v.device)
    if bool(blind.any()) and not bool(blind.all()):
        moved[blind] = moved[~blind].mean(0)
    return moved

"""Building blocks of the residual functions: activations, norms, and layers that know the depth t.

A time-conditioned layer is called as `layer(t, x)`, with t a 0-d tensor or one time per sample, shape (batch,).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from odenet.errors import InputError, UnknownNameError

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}
NORMS = ("group", "layer", "batch", "none")
TIMES = ("none", "concat", "film")
MAX_GROUPS = 8
MIN_CHANNELS = 4


def activation_layer(name: str) -> nn.Module:
    """The activation called `name`.

    Raises:
        UnknownNameError: no such activation.
    """
    if name not in ACTIVATIONS:
        raise UnknownNameError("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()


def norm_layer(name: str, channels: int, spatial: bool) -> nn.Module:
    """A normalisation over `channels` for states (batch, channels) or, if `spatial`, (batch, channels, H, W).

    "group" takes the largest number of groups up to 8 that divides `channels`, for vectors with at least 4 channels in
    each: two values normalised together are always 1 and -1, and one alone is 0. "layer" is one group.

    Raises:
        UnknownNameError: no such norm.
        InputError: one channel of a vector, which a group or layer norm would make constant.
    """
    if name in ("group", "layer") and not spatial and channels == 1:
        raise InputError(f"norm={name!r} makes a single channel constant; use more channels or norm='none'")
    if name == "group":
        smallest = 1 if spatial else MIN_CHANNELS
        groups = max(g for g in range(1, MAX_GROUPS + 1) if channels % g == 0 and (g == 1 or channels // g >= smallest))
        return nn.GroupNorm(groups, channels)
    if name == "layer":
        return nn.GroupNorm(1, channels)
    if name == "batch":
        return nn.BatchNorm2d(channels) if spatial else nn.BatchNorm1d(channels)
    if name == "none":
        return nn.Identity()
    raise UnknownNameError("norm", name, NORMS)


def check_time(name: str) -> None:
    """Raise `UnknownNameError` unless `name` is a way of showing the depth to F."""
    if name not in TIMES:
        raise UnknownNameError("time conditioning", name, TIMES)


def check_size(name: str, value: int) -> None:
    """Raise `InputError` unless `value` is a positive integer."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} must be a positive integer, got {value!r}")


def time_like(t: Tensor, x: Tensor) -> Tensor:
    """t as a tensor (batch or 1, 1, ..., 1) that broadcasts against x: (batch, ...)."""
    return t.to(x.dtype).reshape(-1, *(1,) * (x.dim() - 1))


class TimeLinear(nn.Module):
    """Linear layer that sees t as one more input feature if `time="concat"`.

    Args:
        inputs: features of x, shape (batch, inputs).
        outputs: features of the result, shape (batch, outputs).
        time: "concat" to append t, anything else to ignore it.
    """

    def __init__(self, inputs: int, outputs: int, time: str = "none"):
        super().__init__()
        self.concat = time == "concat"
        self.linear = nn.Linear(inputs + self.concat, outputs)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        if self.concat:
            x = torch.cat([x, time_like(t, x).expand(x.shape[0], 1)], dim=1)
        return self.linear(x)


class TimeConv2d(nn.Module):
    """Size-preserving convolution that sees t as one more constant input channel if `time="concat"`.

    Args:
        inputs: channels of x, shape (batch, inputs, H, W).
        outputs: channels of the result, shape (batch, outputs, H, W).
        kernel: odd kernel size.
        time: "concat" to append the channel, anything else to ignore t.
        bias: whether the convolution has a bias.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, time: str = "none", bias: bool = True):
        super().__init__()
        self.concat = time == "concat"
        self.conv = nn.Conv2d(inputs + self.concat, outputs, kernel, padding=kernel // 2, bias=bias)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        if self.concat:
            x = torch.cat([x, time_like(t, x).expand(x.shape[0], 1, *x.shape[2:])], dim=1)
        return self.conv(x)


class Film(nn.Module):
    """Scale and shift of every channel as a function of depth: x * (1 + s(t)) + b(t).

    s and b come from a small MLP of (t, sin πt, cos πt) whose last layer starts at zero: a new layer is the identity.

    Args:
        channels: channels of x, shape (batch, channels, ...).
        width: hidden units of the MLP.

    Reference:
        Perez et al. 2018, FiLM: Visual Reasoning with a General Conditioning Layer.
    """

    def __init__(self, channels: int, width: int = 16):
        super().__init__()
        self.hidden = nn.Linear(3, width)
        self.out = nn.Linear(width, 2 * channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights; the last layer is zero."""
        self.hidden.reset_parameters()
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        t = t.to(x.dtype).reshape(-1, 1)
        features = torch.cat([t, torch.sin(torch.pi * t), torch.cos(torch.pi * t)], dim=1)
        scale, shift = self.out(torch.tanh(self.hidden(features))).to(x.dtype).chunk(2, dim=1)
        ones = (1,) * (x.dim() - 2)
        return x * (1 + scale.reshape(*scale.shape, *ones)) + shift.reshape(*shift.shape, *ones)


class PreActivation(nn.Module):
    """norm, then FiLM if `time="film"`, then activation: what stands before each layer of a residual function."""

    def __init__(self, channels: int, norm: str, activation: str, time: str, spatial: bool):
        super().__init__()
        self.norm = norm_layer(norm, channels, spatial)
        self.film = Film(channels) if time == "film" else None
        self.activation = activation_layer(activation)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        x = self.norm(x)
        if self.film is not None:
            x = self.film(t, x)
        return self.activation(x)


def reset_tree(module: nn.Module) -> None:
    """Draw new weights for `module`: its own `reset_parameters` if it has one, else that of every child."""
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
    else:
        for child in module.children():
            reset_tree(child)


def zero_(layer: nn.Linear | nn.Conv2d) -> None:
    """Set the weights and the bias of `layer` to zero, so that F starts as F = 0 and the block as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)

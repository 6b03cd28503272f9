"""Convolutional residual functions of images: the basic block and the bottleneck of He et al., pre-activation."""

from __future__ import annotations

from torch import Tensor, nn

from odenet.residual.layers import PreActivation, TimeConv2d, check_size, check_time, reset_tree, zero_
from odenet.residual.registry import residuals


class _ConvStack(nn.Module):
    """Pre-activated convolutions channels -> ... -> channels, one (kernel, outputs) pair a layer."""

    def __init__(
        self,
        channels: int,
        stack: list[tuple[int, int]],
        norm: str,
        time: str,
        activation: str,
        zero_init: bool,
    ):
        super().__init__()
        check_size("channels", channels)
        check_time(time)
        self.channels, self.zero_init = channels, zero_init
        inputs = [channels, *(outputs for _, outputs in stack[:-1])]
        self.before = nn.ModuleList(PreActivation(n, norm, activation, time, True) for n in inputs)
        self.convs = nn.ModuleList(
            TimeConv2d(n, outputs, kernel, time) for n, (kernel, outputs) in zip(inputs, stack, strict=True)
        )
        self._zero_last()

    def _zero_last(self) -> None:
        if self.zero_init:
            zero_(self.convs[-1].conv)  # pyright: ignore[reportArgumentType]

    def reset_parameters(self) -> None:
        """Draw new weights, as at construction."""
        for child in self.children():
            reset_tree(child)
        self._zero_last()

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        for before, conv in zip(self.before, self.convs, strict=True):
            x = conv(t, before(t, x))
        return x


@residuals.register("conv")
class Conv(_ConvStack):
    """The basic block without its shortcut: F(t, x) = conv3x3(φ(norm(conv3x3(φ(norm(x)))))).

    Args:
        channels: channels of x.
        width: channels between the two convolutions; default `channels`.
        norm: "group" (default), "layer", "batch" or "none".
        time: "none", "concat" (t as one more channel) or "film" (scale and shift by t).
        activation: φ, one of relu, elu, gelu, silu, softplus, tanh.
        zero_init: start with a zero last convolution, so that F = 0.

    Shape:
        t: () or (batch,); x: (batch, channels, H, W); result: (batch, channels, H, W).

    Raises:
        InputError: a size that is not positive, or an unknown name.

    Reference:
        He et al. 2016, Identity Mappings in Deep Residual Networks.
    """

    def __init__(
        self,
        channels: int,
        width: int | None = None,
        norm: str = "group",
        time: str = "none",
        activation: str = "relu",
        zero_init: bool = False,
    ):
        check_size("channels", channels)
        width = channels if width is None else width
        check_size("width", width)
        super().__init__(channels, [(3, width), (3, channels)], norm, time, activation, zero_init)


@residuals.register("bottleneck")
class Bottleneck(_ConvStack):
    """The bottleneck block without its shortcut: 1x1 to `width` channels, 3x3, 1x1 back, each pre-activated.

    Args:
        channels: channels of x.
        width: channels of the 3x3 convolution; default a quarter of `channels`, at least 1.
        norm: "group" (default), "layer", "batch" or "none".
        time: "none", "concat" (t as one more channel) or "film" (scale and shift by t).
        activation: φ, one of relu, elu, gelu, silu, softplus, tanh.
        zero_init: start with a zero last convolution, so that F = 0.

    Shape:
        t: () or (batch,); x: (batch, channels, H, W); result: (batch, channels, H, W).

    Raises:
        InputError: a size that is not positive, or an unknown name.

    Reference:
        He et al. 2016, Identity Mappings in Deep Residual Networks.
    """

    def __init__(
        self,
        channels: int,
        width: int | None = None,
        norm: str = "group",
        time: str = "none",
        activation: str = "relu",
        zero_init: bool = False,
    ):
        check_size("channels", channels)
        width = max(1, channels // 4) if width is None else width
        check_size("width", width)
        super().__init__(channels, [(1, width), (3, width), (1, channels)], norm, time, activation, zero_init)

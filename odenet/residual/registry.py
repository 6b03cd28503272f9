"""The registry of residual functions."""

from collections.abc import Callable

from torch import nn

from odenet.registry import Registry

residuals: Registry[Callable[..., nn.Module]] = Registry("residual")

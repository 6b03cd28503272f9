"""`ResNet` and `ODEBlock`: one residual function, walked in steps or as an ODE, and the way between them."""

from odenet.blocks.block import Block
from odenet.blocks.collect import blocks_of, collect_stats, take_penalties
from odenet.blocks.distillation import Distillation
from odenet.blocks.ode import ODEBlock
from odenet.blocks.resnet import ResNet

__all__ = ["Block", "Distillation", "ODEBlock", "ResNet", "blocks_of", "collect_stats", "take_penalties"]

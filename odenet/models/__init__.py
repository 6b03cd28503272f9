"""Models built from blocks."""

from odenet.models.classifiers import ImageClassifier, NoDepth, VectorClassifier, VectorFlow
from odenet.models.distill import Unrolled, distill, unrolled
from odenet.models.layers import Augment, Downsample
from odenet.models.opened import from_blocks, from_resnet, load_original_state_dict, original_state_dict
from odenet.models.plain import Plain
from odenet.models.swap import swap_blocks

__all__ = [
    "Augment",
    "Downsample",
    "ImageClassifier",
    "NoDepth",
    "Plain",
    "Unrolled",
    "VectorClassifier",
    "VectorFlow",
    "distill",
    "from_blocks",
    "from_resnet",
    "load_original_state_dict",
    "original_state_dict",
    "swap_blocks",
    "unrolled",
]

"""Models built from blocks."""

from odenet.models.classifiers import ImageClassifier, NoDepth, VectorClassifier
from odenet.models.layers import Augment, Downsample
from odenet.models.swap import swap_blocks

__all__ = ["Augment", "Downsample", "ImageClassifier", "NoDepth", "VectorClassifier", "swap_blocks"]

"""Data sets: tensors in memory, by name. `odenet.data.datasets` holds the functions that make them."""

from odenet.data.augmentation import crop_and_flip
from odenet.data.dataset import Augmentation, DataSet, datasets, list_datasets
from odenet.data.embedded import digits, mnist1d
from odenet.data.points import flip, moons, nested_spheres, spirals
from odenet.data.vision import cifar10, fashion_mnist, mnist

__all__ = [
    "Augmentation",
    "DataSet",
    "cifar10",
    "crop_and_flip",
    "datasets",
    "digits",
    "fashion_mnist",
    "flip",
    "list_datasets",
    "mnist",
    "mnist1d",
    "moons",
    "nested_spheres",
    "spirals",
]

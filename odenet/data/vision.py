"""MNIST, Fashion-MNIST and CIFAR-10: torchvision downloads and reads the files, images stay uint8."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odenet.data.augmentation import crop_and_flip
from odenet.data.dataset import Augmentation, DataSet, check_count, datasets
from odenet.errors import InputError, RunError

# the order of batches.meta
_CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


@datasets.register("mnist")
def mnist(root: str | Path | None = None, download: bool = True, limit: int | None = None) -> DataSet:
    """MNIST: 60000 + 10000 grey images of handwritten digits, 28 x 28 pixels.

    Args:
        root: folder of the files (`MNIST/raw` below it); the environment variable ODENET_DATA, or
            ~/.cache/odenet.
        download: fetch the files if they are not there.
        limit: use only the first `limit` images of each part.

    Returns:
        A data set of (1, 28, 28) images, stored as uint8.

    Raises:
        InputError: torchvision is not installed, or `limit` is not positive.
        RunError: the files cannot be downloaded or read.

    Reference:
        Y. LeCun, C. Cortes, C. J. C. Burges, The MNIST database of handwritten digits, 1998.
    """
    parts = _read("mnist", "MNIST", "MNIST/raw", root, download, limit)
    return DataSet("mnist", *parts, classes=tuple("0123456789"), mean=(0.1307,), std=(0.3081,))


@datasets.register("fashion_mnist")
def fashion_mnist(root: str | Path | None = None, download: bool = True, limit: int | None = None) -> DataSet:
    """Fashion-MNIST: 60000 + 10000 grey images of clothes, 28 x 28 pixels.

    Args:
        root: folder of the files (`FashionMNIST/raw` below it); the environment variable ODENET_DATA, or
            ~/.cache/odenet.
        download: fetch the files if they are not there.
        limit: use only the first `limit` images of each part.

    Returns:
        A data set of (1, 28, 28) images, stored as uint8.

    Raises:
        InputError: torchvision is not installed, or `limit` is not positive.
        RunError: the files cannot be downloaded or read.

    Reference:
        H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, 2017.
    """
    parts = _read("fashion_mnist", "FashionMNIST", "FashionMNIST/raw", root, download, limit)
    classes = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
    return DataSet("fashion_mnist", *parts, classes=classes, mean=(0.2860,), std=(0.3530,))


@datasets.register("cifar10")
def cifar10(
    root: str | Path | None = None,
    download: bool = True,
    limit: int | None = None,
    augmentation: Augmentation | None = crop_and_flip,
) -> DataSet:
    """CIFAR-10: 50000 + 10000 colour images of ten kinds of things, 32 x 32 pixels.

    Args:
        root: folder of the files (`cifar-10-batches-py` below it); the environment variable ODENET_DATA, or
            ~/.cache/odenet.
        download: fetch the files if they are not there.
        limit: use only the first `limit` images of each part.
        augmentation: train-time transformation, or None; by default random crop (4 pixels of padding)
            and horizontal flip.

    Returns:
        A data set of (3, 32, 32) images, stored as uint8.

    Raises:
        InputError: torchvision is not installed, or `limit` is not positive.
        RunError: the files cannot be downloaded or read.

    Reference:
        A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    parts = _read("cifar10", "CIFAR10", "cifar-10-batches-py", root, download, limit)
    return DataSet(
        "cifar10",
        *parts,
        classes=_CIFAR10_CLASSES,
        augmentation=augmentation,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    )


def _read(
    name: str,
    torchvision_name: str,
    subfolder: str,
    root: str | Path | None,
    download: bool,
    limit: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """train_x, train_y, test_x, test_y, read by torchvision; images are (n, channels, height, width)."""
    if limit is not None:
        check_count("limit", limit)
    try:
        from torchvision import datasets as torchvision_datasets
    except ImportError as error:
        raise InputError(f'{name} needs torchvision; install it with pip install "odenet[vision]"') from error
    base = Path(root or os.environ.get("ODENET_DATA") or "~/.cache/odenet").expanduser()
    try:
        parts = []
        for train in (True, False):
            part = getattr(torchvision_datasets, torchvision_name)(base, train=train, download=download)
            parts += [_images(part.data)[:limit], torch.as_tensor(part.targets, dtype=torch.int64)[:limit]]
            if len(parts[-1]) != len(parts[-2]):
                raise ValueError(f"{len(parts[-2])} images but {len(parts[-1])} labels")
    except Exception as error:  # torchvision lets through whatever a missing network or a damaged file raises
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        advice = (
            "check the network, and delete that folder if its files are damaged"
            if download
            else "pass download=True to fetch the files, after deleting that folder if they are damaged"
        )
        raise RunError(f"cannot load {name} from {base / subfolder} ({reason}); {advice}") from error
    return parts[0], parts[1], parts[2], parts[3]


def _images(data: Any) -> Tensor:
    if isinstance(data, np.ndarray):  # CIFAR-10: (n, height, width, channels)
        return torch.from_numpy(data).permute(0, 3, 1, 2).contiguous()
    return data.unsqueeze(1)

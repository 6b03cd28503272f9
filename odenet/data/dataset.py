"""What a data set is: tensors for training and test, and how a stored batch becomes a network's input."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from odenet.errors import InputError
from odenet.registry import Registry

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True, eq=False)
class DataSet:
    """Samples and what is to be learned of them, classes or numbers; small enough to live in memory.

    Samples are either float32 and ready for the network, or uint8 images that `prepare` standardises batch by
    batch with `mean` and `std`, so that a large image set takes one byte per pixel.

    Args:
        name: name in the registry.
        train_x: (n, *shape) float32, or uint8 together with `mean` and `std`.
        train_y: (n,) int64 class indices; for a regression (n, numbers) float32.
        test_x: (m, *shape), of the dtype of `train_x`.
        test_y: (m,) int64 class indices; for a regression (m, numbers) float32.
        classes: names of the classes, in the order of their indices; none for a regression.
        augmentation: train-time transformation of a stored batch (before `prepare`) on its device; every
            random number comes from the generator that it is given, which lives on that device.
        mean: per-channel mean of the pixels scaled to [0, 1]; only for uint8 samples.
        std: per-channel standard deviation of the pixels scaled to [0, 1]; only for uint8 samples.
        tolerance: makes it a regression: Euclidean distance up to which a prediction counts as right.

    Raises:
        InputError: the tensors do not fit each other.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]
    augmentation: Augmentation | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        for part, x, y in (("training", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            if len(x) == 0 or len(y) != len(x) or y.dim() != (1 if self.tolerance is None else 2):
                raise InputError(
                    f"the {part} set of {self.name} must have one label for each of at least one sample, "
                    f"got samples of shape {tuple(x.shape)} and labels of shape {tuple(y.shape)}"
                )
            if self.tolerance is not None:
                if y.dtype != torch.float32 or self.classes or y.shape[1:] != self.train_y.shape[1:]:
                    raise InputError(
                        f"the {part} targets of {self.name}, a regression, must be float32 of shape (n, numbers) and "
                        f"have no classes, got {y.dtype} of shape {tuple(y.shape)} and {len(self.classes)} classes"
                    )
            elif y.dtype != torch.int64 or int(y.min()) < 0 or int(y.max()) >= len(self.classes):
                raise InputError(
                    f"the {part} labels of {self.name} must be int64 in 0..{len(self.classes) - 1}, "
                    f"got {y.dtype} in {y.min().item()}..{y.max().item()}"
                )
        if self.train_x.shape[1:] != self.test_x.shape[1:] or self.train_x.dtype != self.test_x.dtype:
            raise InputError(
                f"the training and test samples of {self.name} must agree, "
                f"got {tuple(self.train_x.shape[1:])} {self.train_x.dtype} "
                f"and {tuple(self.test_x.shape[1:])} {self.test_x.dtype}"
            )
        stored = self.train_x.dtype
        if not (stored == torch.float32 or (stored == torch.uint8 and self.mean and self.std)):
            raise InputError(f"the samples of {self.name} must be float32, or uint8 with mean and std, got {stored}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train_x.shape[1:])

    @property
    def kind(self) -> str:
        """`"image"` for samples of shape (channels, height, width), otherwise `"vector"`."""
        return "image" if len(self.shape) == 3 else "vector"

    @property
    def outputs(self) -> int:
        """Numbers that a network has to put out for a sample: one for each class, or those of a regression."""
        return len(self.classes) if self.tolerance is None else self.train_y.shape[1]

    @property
    def description(self) -> str:
        """One line that says what is in the data set."""
        targets = f"{len(self.classes)} classes" if self.tolerance is None else f"{self.outputs} numbers to predict"
        return (
            f"{self.name}: {len(self.train_x)} training and {len(self.test_x)} test samples "
            f"of shape {self.shape}, {targets}"
        )

    def prepare(self, batch: Tensor) -> Tensor:
        """The network's input for a stored batch: float32, standardised.

        Args:
            batch: (batch, *shape) of the stored dtype, on any device.

        Returns:
            (batch, *shape) float32 on the same device; uint8 pixels p become (p / 255 - mean) / std.
        """
        if self.mean is None or self.std is None:
            return batch
        mean, std = (batch.new_tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (self.mean, self.std))
        return (batch.to(torch.float32) / 255 - mean) / std


datasets: Registry[Callable[..., DataSet]] = Registry("data set")
"""Data sets by name; an entry is a function that returns a `DataSet`."""


def list_datasets() -> list[str]:
    """Names of the data sets."""
    return list(datasets)


def check_count(name: str, value: object) -> None:
    """Raise an `InputError` unless `value` is a positive integer."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} must be a positive integer, got {value!r}")


def check_seed(name: str, value: object) -> None:
    """Raise an `InputError` unless `value` is an integer in [0, 2^32)."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32:
        raise InputError(f"{name} must be an integer from 0 to 4294967295, got {value!r}")


def check_range(name: str, value: object, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    """Raise an `InputError` unless low <= value < high (low < value with `open_low`)."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (low < value < high or (value == low and not open_low)):  # type: ignore[operator]
        above = f"greater than {low:g}" if open_low else f"at least {low:g}"
        below = "finite" if high == math.inf else f"less than {high:g}"
        raise InputError(f"{name} must be {above} and {below}, got {value!r}")

"""What a network is trained for, classes or numbers: its loss, its predictions, and which of them count as right."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from odenet.data import DataSet
from odenet.errors import InputError


class Objective(Protocol):
    """What is asked of the outputs of a network."""

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The mean loss of a batch, 0-d."""
        ...

    def predict(self, outputs: Tensor) -> Tensor:
        """Predictions, one a sample."""
        ...

    def same(self, predictions: Tensor, y: Tensor) -> Tensor:
        """(batch,) bool: which predictions agree with targets, or with other predictions."""
        ...


class Classification:
    """Classes: cross-entropy of logits (batch, classes), the largest one is the prediction."""

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(outputs, y)

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(dim=1)

    def same(self, predictions: Tensor, y: Tensor) -> Tensor:
        return predictions == y


class Regression:
    """Numbers: mean squared error of outputs (batch, numbers), which count as right within a tolerance.

    Args:
        tolerance: Euclidean distance from the target up to which a prediction counts as right.
    """

    def __init__(self, tolerance: float):
        self.tolerance = tolerance

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        if outputs.shape != y.shape:
            raise InputError(
                f"outputs of a regression must have the shape of the targets, {tuple(y.shape)}, got "
                f"{tuple(outputs.shape)}"
            )
        return mse_loss(outputs, y)

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs

    def same(self, predictions: Tensor, y: Tensor) -> Tensor:
        return (predictions - y).norm(dim=1) <= self.tolerance


CLASSIFICATION = Classification()


def objective_of(data: DataSet) -> Objective:
    """What a data set asks for: its classes, or its numbers."""
    return CLASSIFICATION if data.tolerance is None else Regression(data.tolerance)


def outputs_of(model: nn.Module, batch: Tensor) -> Tensor:
    """The model's outputs, at least float32, after a check of their shape.

    Raises:
        InputError: the output is not of shape (batch, classes) or (batch, numbers).
    """
    outputs = model(batch)
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or len(outputs) != len(batch):
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise InputError(
            f"a classifier must return logits of shape (batch, classes), got {shape} for a batch of {len(batch)}"
        )
    return outputs if outputs.dtype.itemsize == 8 else outputs.float()

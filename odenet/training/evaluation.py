"""Accuracy and loss of a network on samples with their targets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from odenet.errors import InputError
from odenet.training.objective import CLASSIFICATION, Objective, outputs_of


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Result of `evaluate`.

    Attributes:
        accuracy: share of the samples that is classified rightly (in a regression: met within the tolerance).
        loss: mean cross-entropy (squared error).
        predictions: (n,) int64 predicted classes, or (n, numbers), on the CPU.
        seconds: wall time.
        nfe: evaluations of F in a forward pass, summed over the blocks, mean over the batches.
    """

    accuracy: float
    loss: float
    predictions: Tensor
    seconds: float
    nfe: float


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    batch_size: int = 512,
    prepare: Callable[[Tensor], Tensor] | None = None,
    objective: Objective = CLASSIFICATION,
) -> Evaluation:
    """Predict the targets of samples in evaluation mode, without gradients, on the device that the model is on.

    Every module is put back into the mode that it was in.

    Args:
        model: classifier; (batch, *shape) -> (batch, classes).
        x: (n, *shape) samples, n at least 1.
        y: (n,) int64 labels, or (n, numbers) in a regression.
        batch_size: samples in one forward pass; the result depends on it only if the model's does (an adaptive
            solver shares its steps among the batch).
        prepare: what turns a stored batch into the model's input, e.g. `DataSet.prepare`; nothing by default.
        objective: what is asked of the outputs, e.g. `odenet.training.objective_of(data)`; classes by default.

    Returns:
        Accuracy, loss, predictions, time and function evaluations.

    Raises:
        InputError: there are no samples, or not one label for each, or the model's output is no (batch, classes).
    """
    from odenet.blocks import collect_stats

    if len(x) == 0 or len(y) != len(x) or (y.dim() != 1 and not y.is_floating_point()):
        raise InputError(
            f"evaluate needs one label for each of at least one sample, got samples of shape {tuple(x.shape)} "
            f"and labels of shape {tuple(y.shape)}"
        )
    if batch_size < 1:
        raise InputError(f"batch_size must be a positive integer, got {batch_size!r}")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    started = time.perf_counter()
    predictions, losses, nfe = [], [], []
    with _evaluation_mode(model), torch.no_grad():
        for batch, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
            batch, labels = batch.to(device), labels.to(device)
            outputs = outputs_of(model, batch if prepare is None else prepare(batch))
            losses.append(objective.loss(outputs, labels).item() * len(labels))
            predictions.append(objective.predict(outputs))
            nfe.append(float(collect_stats(model).nfe))
    predicted = torch.cat(predictions).cpu()
    return Evaluation(
        accuracy=objective.same(predicted, y.cpu()).double().mean().item(),
        loss=sum(losses) / len(y),
        predictions=predicted,
        seconds=time.perf_counter() - started,
        nfe=sum(nfe) / len(nfe),
    )


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training

"""Training a network: `fit`, from the first batch to the last checkpoint."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric, seed_everything
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from odenet.artifacts import make_folder
from odenet.data import DataSet
from odenet.errors import InputError, RunError
from odenet.training import checkpoint
from odenet.training.batches import Samples, batches, derived_seed
from odenet.training.continuation import Change, Continuation, apply, mean_loss
from odenet.training.engine import launch, sum_over_processes
from odenet.training.evaluation import evaluate
from odenet.training.finite import Step
from odenet.training.history import EpochRecord, History, Progress, write_history
from odenet.training.logs import Logs
from odenet.training.memory import saved_bytes
from odenet.training.monitor import OdeMonitor, Values, restore_schemes, schemes_of
from odenet.training.objective import Objective, objective_of, outputs_of
from odenet.training.report import Report
from odenet.training.settings import Settings

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeSchedule = Callable[[Optimizer, int], LRScheduler]


def fit(
    model: nn.Module,
    data: DataSet,
    optimizer: MakeOptimizer,
    schedule: MakeSchedule,
    settings: Settings | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: Callable[[Progress], None] | None = None,
    continuation: Continuation | None = None,
    monitor: OdeMonitor | None = None,
) -> History:
    """Train `model` on `data`, with the cross-entropy loss or, for numbers, the squared error.

    Continues where a run in `folder` was interrupted.

    The same model, data, optimizer, schedule and settings give the same numbers on the same machine, whether or
    not the run was interrupted. The model is trained in place and ends on the device that was used. Under
    `torchrun` (with `strategy="ddp"`) each process takes a share of every batch and the first one writes.

    Args:
        model: (batch, *data.shape) -> (batch, data.outputs): logits, or numbers.
        data: training and test samples; the test samples are only evaluated.
        optimizer: makes the optimizer from the parameters, e.g. `functools.partial(torch.optim.Adam, lr=1e-3)`.
        schedule: makes the learning-rate schedule from the optimizer and the number of steps of the whole run;
            it is stepped after each batch. See `odenet.training.schedules`.
        settings: epochs, batch size, device and the like; `Settings()` by default.
        folder: where `checkpoint.pt`, `history.csv` and `logs/` (CSV and TensorBoard) go; nothing is written
            without it. A complete run that is found there is returned at once, with its weights in the model.
        progress: called at most about five times a second, and after each epoch (when its checkpoint is
            written); an exception that it raises interrupts the run.
        continuation: changes of depth at given epochs, e.g. `depth_doubling([4, 8])`; the optimizer's moments go
            along, and the learning-rate schedule goes on.
        monitor: measures at ends of epochs how far the blocks are from their ODE, and adapts their steps.

    Returns:
        A record of each epoch.

    Raises:
        InputError: the model has no parameters or returns no logits, or the device cannot be had.
        RunError: a loss or a gradient became nan or infinite, the folder cannot be written, or its checkpoint is
            damaged or belongs to another run.
        SolveError: a solve in the model broke down.
    """
    settings = settings or Settings()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise InputError(f"the model {type(model).__name__} has no parameters that require a gradient")
    if continuation is not None:
        continuation.check(model, settings.epochs)
    if monitor is not None:
        monitor.check(model)
    fabric = launch(settings)
    precision = fabric.strategy.precision
    samples = Samples(data.train_x, data.train_y)

    def epoch_batches(epoch: int) -> Any:
        return batches(fabric, samples, settings.batch_size, settings.seed, epoch)

    steps_per_epoch = len(epoch_batches(0))
    optim = optimizer(parameters)
    rate = schedule(optim, settings.epochs * steps_per_epoch)
    recipe = checkpoint.recipe(data, optim, rate, settings)
    if continuation is not None:
        recipe["continuation"] = str(continuation)
    if monitor is not None:
        recipe["monitor"] = str(monitor)

    path = Path(folder) / "checkpoint.pt" if folder is not None else None
    saved = checkpoint.read(path, recipe) if path is not None else None
    done = len(saved["history"]) if saved is not None else 0
    for epoch in range(1, done + 1):  # changes of depth before the next epoch are yet to come
        for change in continuation.due(epoch) if continuation is not None and epoch < done else ():
            apply(change, model, optim)
    restore_schemes(model, saved.get("schemes") if saved is not None else None)
    wrapped, stepper = fabric.setup(model, optim)
    history: History = []
    if path is not None and saved is not None:
        history = checkpoint.restore(path, saved, model, optim, rate, precision)
    if len(history) == settings.epochs:
        return history

    report = Report(progress if fabric.is_global_zero else None, settings.epochs, steps_per_epoch, len(history))
    model.train()
    with ExitStack() as stack:
        logs = None
        if path is not None and fabric.is_global_zero:
            logs = stack.enter_context(closing(Logs(make_folder(path.parent), history)))
        for epoch in range(len(history), settings.epochs):
            seed_everything(derived_seed(settings.seed, epoch, fabric.global_rank), verbose=False)
            jump, measure = 0.0, epoch == 0 or monitor is not None
            if continuation is not None and (changes := continuation.due(epoch)):
                jump, measure = _switch(fabric, model, data, optim, changes, settings), True
                wrapped, stepper = fabric.setup(model, optim)
            trained = _train_epoch(
                fabric, model, wrapped, data, epoch_batches(epoch), stepper, rate, settings, epoch, report, measure
            )
            if fabric.device.type != "cuda" and not measure:
                trained["memory_bytes"] = history[-1]["memory_bytes"]
            test_loss, test_accuracy = _test(fabric, model, data, settings)
            if not math.isfinite(test_loss):
                raise RunError(
                    f"the test loss became {test_loss} after epoch {epoch + 1}; "
                    "lower the learning rate or clip the gradient"
                )
            record = EpochRecord(
                epoch=epoch + 1, **trained, test_loss=test_loss, test_accuracy=test_accuracy, loss_jump=jump
            )
            if monitor is not None:
                record["monitor"] = _monitor(fabric, model, data, monitor, epoch + 1, settings)
            history.append(record)
            if path is not None and logs is not None:
                if (epoch + 1) % settings.checkpoint_every == 0 or epoch + 1 == settings.epochs:
                    schemes = None if monitor is None else schemes_of(model)
                    checkpoint.write(path, recipe, history, model, optim, rate, precision, schemes)
                write_history(path.with_name("history.csv"), history)
                logs.add(record)
            report.epoch_done(record)
    fabric.barrier()
    return history


def _switch(
    fabric: Fabric, model: nn.Module, data: DataSet, optimizer: Optimizer, changes: list[Change], settings: Settings
) -> float:
    """Change depth; by how much the mean loss of the first training samples has changed."""
    x = data.prepare(data.train_x[: settings.eval_batch_size].to(fabric.device))
    y = data.train_y[: settings.eval_batch_size].to(fabric.device)

    def loss() -> float:
        with fabric.autocast():
            return mean_loss(model, fabric.strategy.precision.convert_input(x), y, objective_of(data))

    before = loss()
    for change in changes:
        apply(change, model, optimizer)
    return loss() - before


def _monitor(
    fabric: Fabric, model: nn.Module, data: DataSet, monitor: OdeMonitor, epoch: int, settings: Settings
) -> Values:
    """What a monitor finds after an epoch."""
    x = data.prepare(data.train_x[: monitor.samples].to(fabric.device))
    x, y = fabric.strategy.precision.convert_input(x), data.train_y[: monitor.samples].to(fabric.device)

    objective = objective_of(data)

    def score(network: nn.Module) -> float:
        return objective.same(objective.predict(outputs_of(network, x)), y).double().mean().item()

    with fabric.autocast():
        return monitor.after_epoch(model, x, epoch, settings.epochs, score)


def _train_epoch(
    fabric: Fabric,
    model: nn.Module,
    wrapped: nn.Module,
    data: DataSet,
    loader: Any,
    optimizer: Any,
    schedule: LRScheduler,
    settings: Settings,
    epoch: int,
    report: Report,
    measure: bool,
) -> dict[str, Any]:
    """One pass over the training set; `wrapped` is `model` as Fabric runs it (precision, DDP)."""
    from odenet.blocks import collect_stats, take_penalties

    seed = derived_seed(settings.seed, epoch, fabric.global_rank, 1)
    generator = torch.Generator(fabric.device).manual_seed(seed)
    cuda = fabric.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(fabric.device)
    memory, not_training, objective = math.nan, 0.0, objective_of(data)
    samples, loss_sum, lr = 0, 0.0, math.nan
    correct = torch.zeros((), dtype=torch.int64, device=fabric.device)
    counts = torch.zeros(4, dtype=torch.float64)
    scaled = getattr(fabric.strategy.precision, "scaler", None) is not None  # which leaves out steps that overflow
    started = time.perf_counter()
    for step, (x, y) in enumerate(loader):
        if data.augmentation is not None:
            x = data.augmentation(x, generator)
        x = data.prepare(x)

        if measure and not cuda and step == min(1, len(loader) - 1):
            before = time.perf_counter()
            memory = _measure(fabric, model, objective, x, y)
            not_training += time.perf_counter() - before

        lr = optimizer.param_groups[0]["lr"]
        with Step(model, optimizer, epoch + 1, step + 1) as this:
            outputs = outputs_of(wrapped, x)
            loss = objective.loss(outputs, y)
            for penalty in take_penalties(model):
                loss = loss + penalty
            value = this.loss(loss)
            fabric.backward(loss)
            if not scaled:
                this.gradients(value)
        stats = collect_stats(model)
        if settings.grad_clip is not None:
            fabric.clip_gradients(wrapped, optimizer, max_norm=settings.grad_clip, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()

        samples += len(y)
        loss_sum += value * len(y)
        correct += objective.same(objective.predict(outputs.detach()), y).sum()
        did = [float(n) for n in (stats.nfe, stats.nfe_backward, stats.accepted, stats.rejected)]
        counts += torch.tensor(did, dtype=torch.float64)
        report.step_done(epoch, value, did[0])
    if cuda:
        torch.cuda.synchronize(fabric.device)
        memory = float(torch.cuda.max_memory_allocated(fabric.device))
    seconds = time.perf_counter() - started - not_training
    samples, loss_sum, hits, *sums = sum_over_processes(fabric, [samples, loss_sum, correct.item(), *counts.tolist()])
    nfe, nfe_backward, accepted, rejected = (n / (len(loader) * fabric.world_size) for n in sums)
    return {
        "train_loss": loss_sum / samples,
        "train_accuracy": hits / samples,
        "nfe_forward": nfe,
        "nfe_backward": nfe_backward,
        "accepted": accepted,
        "rejected": rejected,
        "lr": float(lr),
        "seconds": seconds,
        "memory_bytes": memory,
    }


def _measure(fabric: Fabric, model: nn.Module, objective: Objective, x: Tensor, y: Tensor) -> float:
    from odenet.blocks import take_penalties

    def loss() -> Tensor:
        with fabric.autocast():
            loss = objective.loss(outputs_of(model, fabric.strategy.precision.convert_input(x)), y)
            return sum(take_penalties(model), loss)

    return saved_bytes(model, loss)


def _test(fabric: Fabric, model: nn.Module, data: DataSet, settings: Settings) -> tuple[float, float]:
    """Loss and accuracy on the test set, of which each process takes a share."""
    x, y = (part[fabric.global_rank :: fabric.world_size] for part in (data.test_x, data.test_y))
    if fabric.world_size > 1:
        for buffer in model.buffers():  # running statistics differ between processes until the next step
            torch.distributed.broadcast(buffer, src=0)
    with fabric.autocast():
        result = evaluate(
            model,
            x,
            y,
            batch_size=settings.eval_batch_size,
            prepare=lambda batch: fabric.strategy.precision.convert_input(data.prepare(batch)),
            objective=objective_of(data),
        )
    n, loss, hits = sum_over_processes(fabric, [len(y), result.loss * len(y), result.accuracy * len(y)])
    return loss / n, hits / n

"""How many bytes a training step keeps for its backward pass, on any device."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


class SavedTensorMeter:
    """Context manager: the peak of the bytes that autograd holds for the backward pass.

    Active around forward and backward, it sees every tensor that an operation saves, also in graphs that a custom
    autograd function builds during the backward pass, and every tensor that is let go. A storage counts once
    while any saved tensor lives in it; the excluded tensors (the parameters, which exist anyway) count nothing.
    Buffers that an operation needs only while it runs are not saved, and not counted.

    Args:
        exclude: tensors whose storages are not counted, e.g. `model.parameters()`.

    Attributes:
        live: bytes that are held now.
        peak: largest value of `live` so far.
    """

    def __init__(self, exclude: Iterable[Tensor] = ()):
        self.live = 0
        self.peak = 0
        self._excluded = {_key(tensor) for tensor in exclude}
        self._holders: dict[tuple[torch.device, int], int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda saved: saved.tensor)

    def __enter__(self) -> SavedTensorMeter:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> _Saved:
        key = None if tensor.layout is not torch.strided else _key(tensor)
        if key is None or key in self._excluded:
            return _Saved(tensor, None)
        holders = self._holders.get(key, 0)
        self._holders[key] = holders + 1
        if holders == 0:
            self.live += tensor.untyped_storage().nbytes()
            self.peak = max(self.peak, self.live)
        return _Saved(tensor, self)

    def _release(self, tensor: Tensor) -> None:
        key = _key(tensor)
        self._holders[key] -= 1
        if self._holders[key] == 0:
            del self._holders[key]
            self.live -= tensor.untyped_storage().nbytes()


class _Saved:
    """A saved tensor that reports when autograd lets go of it."""

    __slots__ = ("meter", "tensor")

    def __init__(self, tensor: Tensor, meter: SavedTensorMeter | None):
        self.tensor = tensor.detach()  # an operation that saves its own output would hold itself alive through it
        self.meter = meter

    def __del__(self) -> None:
        if self.meter is not None:
            self.meter._release(self.tensor)


def _key(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()


def saved_bytes(model: nn.Module, loss: Callable[[], Tensor]) -> float:
    """Peak of the bytes that one training step of `model` saves for its backward pass.

    The step is run once and leaves no trace: gradients are not accumulated, and buffers (such as running
    statistics) and torch's random numbers are put back.

    Args:
        model: the model.
        loss: runs the forward pass and returns the scalar loss.

    Returns:
        Bytes, or nan, with a warning, if the model cannot run under saved-tensor hooks (`torch.func.grad` and
        `torch.func.vjp` cannot).
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    meter = SavedTensorMeter(exclude=model.parameters())
    try:
        with torch.random.fork_rng(devices=[]), meter:
            parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
            torch.autograd.grad(loss(), parameters, allow_unused=True)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        warnings.warn(f"the memory of a training step could not be measured: {reason}", stacklevel=2)
        return float("nan")
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
    return float(meter.peak)

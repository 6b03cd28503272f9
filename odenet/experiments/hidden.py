"""Hidden states through depth, projected to the plane that shows most of their spread."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from odenet.blocks import Block, ResNet, blocks_of
from odenet.data import DataSet

CURVE_POINTS = 61
Hidden = dict[str, Any]


def hidden_states(model: nn.Module, data: DataSet, per_class: int = 10) -> Hidden | None:
    """Paths of test samples through the last block of a model, in its two principal components.

    The components are those of all states along the paths, each sample's state flattened.

    Args:
        model: the trained model.
        data: the first `per_class` test samples of each class are followed.
        per_class: samples of a class.

    Returns:
        `curves` (T, n, 2) on a fine grid of depths, None for a `ResNet`; `dots` (steps + 1, n, 2) at the ends of the
        steps; `labels` (n,); `explained`, the two shares of the spread. None if the model has no block or the data no
        classes.
    """
    blocks = blocks_of(model)
    if not blocks or not data.classes:
        return None
    block = blocks[-1]
    chosen = [(data.test_y == c).nonzero().flatten()[:per_class] for c in range(len(data.classes))]
    index = torch.cat(chosen)
    model.eval()
    with torch.no_grad():
        device = next(model.parameters()).device
        x = _state_before(model, block, data.prepare(data.test_x[index].to(device)))
        dots = block.trajectory(x)
        paths = [dots]
        if not isinstance(block, ResNet):
            grid = np.linspace(block.t0, block.t1, CURVE_POINTS)
            paths.append(block.trajectory(x, [float(t) for t in grid]))
    flat = [p.flatten(2).double().cpu() for p in paths]
    mean, axes, explained = _principal(flat[-1])
    projected = [((p - mean) @ axes).numpy() for p in flat]
    return {
        "dots": projected[0],
        "curves": projected[1] if len(projected) > 1 else None,
        "labels": data.test_y[index].numpy(),
        "explained": explained,
    }


def _state_before(model: nn.Module, block: Block, x: Tensor) -> Tensor:
    """The state that enters a block."""
    seen: list[Tensor] = []
    handle = block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        model(x)
    finally:
        handle.remove()
    return seen[0]


def _principal(paths: Tensor) -> tuple[Tensor, Tensor, list[float]]:
    """Mean, two principal axes (features, 2) and their shares of the variance, over all depths and samples."""
    points = paths.flatten(0, 1)
    mean = points.mean(0)
    _, s, vh = torch.linalg.svd(points - mean, full_matrices=False)
    share = (s**2 / (s**2).sum())[:2].tolist()
    axes = torch.zeros(points.shape[1], 2, dtype=points.dtype)
    axes[:, : min(2, len(vh))] = vh[:2].T
    return mean, axes, share + [0.0] * (2 - len(share))


def save_hidden(hidden: Hidden) -> bytes:
    """Hidden states as the bytes of an .npz file."""
    import io

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{k: v for k, v in hidden.items() if v is not None})
    return buffer.getvalue()


def load_hidden(path: Any) -> Hidden:
    """Hidden states from an .npz file."""
    with np.load(path, allow_pickle=False) as file:
        found = {name: file[name] for name in file.files}
    return {"curves": None, **found, "explained": found["explained"].tolist()}

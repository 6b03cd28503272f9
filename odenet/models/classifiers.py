"""Classifiers and flows built from blocks. What a stage is, a ResNet or an ODE, is the choice of one argument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch.nn.functional as functional
from torch import Tensor, nn

from odenet.blocks import Block, blocks_of
from odenet.errors import InputError
from odenet.models.layers import Augment, Downsample
from odenet.residual.layers import check_size, norm_layer

Residual = Callable[[int], Any]
Stage = Callable[[Any], nn.Module]


class NoDepth(nn.Module):
    """A stage without depth: the identity. The control that shows what stem and head do alone.

    Args:
        F: not used, so that it can stand where a block stands.
        **walk: arguments of a block, not used either.
    """

    def __init__(self, F: Any, **walk: Any):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """x itself."""
        return x


class _Classifier(nn.Module):
    """Stem, stages, head. Subclasses fill `stages` (each an Augment, a stage and what follows) and the two ends."""

    @property
    def blocks(self) -> list[Block]:
        """The blocks, in order."""
        return blocks_of(self)

    def encode(self, x: Tensor) -> Tensor:
        """The state at which the first block starts: stem and augmentation."""
        raise NotImplementedError


class ImageClassifier(_Classifier):
    """Stem convolution, stages of blocks with widening and strided downsampling between them, pooled linear head.

    Args:
        shape: (channels, H, W) of an image.
        classes: number of classes.
        widths: channels of each stage; the resolution halves between stages.
        residual: makes F for a number of channels, e.g. `odenet.residual.Conv`.
        stage: makes a stage of F, e.g. `functools.partial(odenet.ResNet, steps=8)`.
        augment: extra zero channels of the state in every stage.
        norm: norm of the parts that are not F: "group", "layer", "batch" or "none".

    Shape:
        (batch, *shape) -> (batch, classes), the logits.

    Raises:
        InputError: an argument that cannot be used.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        residual: Residual,
        stage: Stage,
        widths: Sequence[int] = (32,),
        augment: int = 0,
        norm: str = "group",
    ):
        super().__init__()
        if len(shape) != 3:
            raise InputError(
                f"ImageClassifier takes images of shape (channels, H, W), got samples of shape {tuple(shape)}; "
                "use VectorClassifier (network=vector)"
            )
        if not widths:
            raise InputError("widths must name the channels of at least one stage, got none")
        for width in widths:
            check_size("a width", width)
        check_size("classes", classes)
        self.stem = nn.Conv2d(shape[0], widths[0], 3, padding=1)
        self.augment = Augment(augment)
        self.stages = nn.ModuleList(stage(residual(width + augment)) for width in widths)
        self.between = nn.ModuleList(Downsample(a + augment, b, norm) for a, b in pairwise(widths))
        self.norm = norm_layer(norm, widths[-1] + augment, True)
        self.head = nn.Linear(widths[-1] + augment, classes)

    def encode(self, x: Tensor) -> Tensor:
        """The state at which the first stage starts, shape (batch, widths[0] + augment, H, W)."""
        return self.augment(self.stem(x))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images."""
        x = self.encode(x)
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number < len(self.between):
                x = self.augment(self.between[number](x))
        x = functional.relu(self.norm(x)).mean(dim=(2, 3))
        return self.head(x)


class VectorClassifier(_Classifier):
    """Blocks on vectors: points of a plane or in space, or 1-d data.

    Args:
        shape: (features,) of a sample.
        classes: number of classes, or of numbers in a regression.
        residual: makes F for a number of features, e.g. `odenet.residual.MLP`.
        stage: makes a stage of F, e.g. `odenet.ODEBlock`.
        width: features of the state after a linear stem; None for no stem: the state is the point itself.
        stages: number of stages, each with an F of its own.
        augment: extra zero features of the state.

    Shape:
        (batch, features) -> (batch, classes), the logits.

    Raises:
        InputError: an argument that cannot be used.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        residual: Residual,
        stage: Stage,
        width: int | None = None,
        stages: int = 1,
        augment: int = 0,
    ):
        super().__init__()
        if len(shape) != 1:
            raise InputError(
                f"VectorClassifier takes samples of shape (features,), got samples of shape {tuple(shape)}; "
                "use ImageClassifier (network=image)"
            )
        for name, size in (("classes", classes), ("stages", stages), ("width", 1 if width is None else width)):
            check_size(name, size)
        state = (shape[0] if width is None else width) + augment
        self.stem = nn.Identity() if width is None else nn.Linear(shape[0], width)
        self.augment = Augment(augment)
        self.stages = nn.ModuleList(stage(residual(state)) for _ in range(stages))
        self.head = nn.Linear(state, classes)

    def encode(self, x: Tensor) -> Tensor:
        """The state at which the first stage starts, shape (batch, state)."""
        return self.augment(self.stem(x))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of vectors."""
        x = self.encode(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x)


class VectorFlow(_Classifier):
    """Blocks on vectors and nothing else: the answer is the state at the end of depth, without augmented features.

    Args:
        shape: (features,) of a sample.
        classes: numbers of the answer, the first so many features; at most as many as a sample has.
        residual: makes F for a number of features, e.g. `odenet.residual.MLP`.
        stage: makes a stage of F, e.g. `odenet.ODEBlock`.
        stages: number of stages, each with an F of its own.
        augment: extra zero features of the state.

    Shape:
        (batch, features) -> (batch, classes).

    Raises:
        InputError: an argument that cannot be used.

    Reference:
        Dupont et al. 2019, Augmented Neural ODEs.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        residual: Residual,
        stage: Stage,
        stages: int = 1,
        augment: int = 0,
    ):
        super().__init__()
        if len(shape) != 1 or classes > shape[0]:
            raise InputError(
                f"VectorFlow takes samples of shape (features,) and answers with at most as many numbers, got samples "
                f"of shape {tuple(shape)} and {classes} numbers; use VectorClassifier (network=vector) or "
                "ImageClassifier (network=image)"
            )
        for name, size in (("classes", classes), ("stages", stages)):
            check_size(name, size)
        self.classes = classes
        self.augment = Augment(augment)
        self.stages = nn.ModuleList(stage(residual(shape[0] + augment)) for _ in range(stages))

    def encode(self, x: Tensor) -> Tensor:
        """The state at which the first stage starts, shape (batch, features + augment)."""
        return self.augment(x)

    def forward(self, x: Tensor) -> Tensor:
        """The answers to a batch of vectors."""
        x = self.encode(x)
        for stage in self.stages:
            x = stage(x)
        return x[:, : self.classes]

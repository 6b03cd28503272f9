"""How far from its ODE each block is while it is trained, and steps that are made to follow it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odenet.blocks import Block, blocks_of
from odenet.diagnostics.path import PLAIN, evaluated, follow, norms, refined, relative, split
from odenet.diagnostics.survey import block_inputs
from odenet.errors import InputError, OdenetError
from odenet.models.swap import swap_blocks
from odenet.solvers import Scheme
from odenet.solvers.registry import solvers

RAISED, LOWERED = 2, 1.1
TIGHTER = 1e-2  # tolerances of the finer solver, times those of the block's own
FINEST, COARSEST = 1e-6, 1e-1  # tolerances that a block may be given
KEPT = ("steps", "step_size", "grid", "rtol", "atol")  # what of a scheme is adapted

Values = dict[str, float]
Score = Callable[[nn.Module], float]


class OdeMonitor:
    """Measures at ends of epochs how far the blocks are from their ODE, and adapts their steps to keep them near it.

    For each block, on a fixed batch: the step-halving defect δ = ‖x_h(t1) - x_{h/2}(t1)‖ / ‖x_{h/2}(t1)‖, the
    evaluations of F, and ‖F‖, mean over steps and samples. For the network: its score (accuracy, for a classifier)
    under its own solver and under a finer one, every step divided by `finer` or tolerances a hundredth. Where the two
    differ by more than `threshold`, all steps are halved (tolerances too). Where they do not, steps 1.1 times as long
    are tried on the same batch, and kept if the score with them differs no more either. After the last epoch nothing
    is adapted.

    Args:
        every: epochs from one measurement to the next.
        samples: the batch: the first training samples, at most so many. The test set is never looked at.
        adapt: whether steps are adapted; False to measure only.
        threshold: difference of the scores up to which the network counts as an ODE.
        finer: parts of a step of the finer solver, at least 2.
        max_steps: fixed steps are not made more than this.

    Raises:
        InputError: a value that cannot be used.

    Reference:
        Ott et al. 2021, ResNet After All: Neural ODEs and Their Numerical Solution (step adaptation).
    """

    def __init__(
        self,
        every: int = 1,
        samples: int = 256,
        adapt: bool = True,
        threshold: float = 0.02,
        finer: int = 4,
        max_steps: int = 256,
    ):
        for name, value, least in (("every", every, 1), ("samples", samples, 1), ("finer", finer, 2)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(f"{name} of the monitor must be an integer of {least} or more, got {value!r}")
        if not isinstance(max_steps, int) or max_steps < 1:
            raise InputError(f"max_steps of the monitor must be a positive integer, got {max_steps!r}")
        if not 0 <= threshold < 1:
            raise InputError(f"threshold of the monitor is a difference of shares in [0, 1), got {threshold!r}")
        self.every, self.samples, self.adapt = every, samples, adapt
        self.threshold, self.finer, self.max_steps = threshold, finer, max_steps

    def __str__(self) -> str:
        return f"{type(self).__name__} {self.__dict__}"

    def check(self, model: nn.Module) -> None:
        """Raise `InputError` if `model` has no blocks."""
        if not blocks_of(model):
            raise InputError(f"monitor=ode looks at blocks, and the model {type(model).__name__} has none")

    def after_epoch(self, model: nn.Module, x: Tensor, epoch: int, epochs: int, score: Score) -> Values:
        """Measure, and adapt unless the run is over.

        Args:
            model: the network; of its blocks only the schemes are changed.
            x: the batch, ready for the network.
            epoch: epochs that are done.
            epochs: epochs of the run.
            score: of a model on that batch, a share.

        Returns:
            The measurements by name, none if none are due. "block0/defect", "block0/nfe", "block0/F" and
            "block0/steps" or "block0/rtol" for each block, and "block0/native" where defect and ‖F‖ are those of a
            native method beside the block's own; "score" and "score_finer". NaN where one cannot be had.
        """
        if epoch % self.every and epoch != epochs:
            return {}
        found: Values = {}
        with evaluated(model):
            twin = swap_blocks(model, copy.copy)  # leaves statistics and first steps of the blocks as they are
            for i, (block, state) in enumerate(zip(blocks_of(twin), block_inputs(twin, x), strict=True)):
                found |= {f"block{i}/{name}": value for name, value in measure(block, state).items()}
            own = found["score"] = _score(score, twin)
            better = found["score_finer"] = _score(score, swap_blocks(model, self._finer))
            if self.adapt and epoch < epochs:
                self._adapt(model, own, better, score)
        return found

    def _adapt(self, model: nn.Module, own: float, better: float, score: Score) -> None:
        if math.isnan(better):  # the finer solver broke down, which says nothing of this one
            return
        if math.isnan(own) or abs(own - better) > self.threshold + 1e-9:
            for block in blocks_of(model):
                block.scheme = self._raised(block)
            return
        longer = swap_blocks(model, lambda block: _walked(block, lowered(block)))
        if abs(_score(score, longer) - better) <= self.threshold + 1e-9:
            for block in blocks_of(model):
                block.scheme = lowered(block)

    def _raised(self, block: Block) -> Scheme:
        """Steps half as long, within `max_steps`; half the tolerances."""
        scheme, pieces = block.scheme, block.weights.pieces
        if scheme.adaptive:
            return _tolerances(scheme, 1 / RAISED)
        finer = divided(scheme, RAISED)
        if finer.steps is not None and scheme.steps is not None and finer.steps > self.max_steps:
            steps = max(scheme.steps, self.max_steps // pieces * pieces)
            return finer.but(steps=steps)
        if finer.step_size is not None and finer.step_size * self.max_steps < abs(block.t1 - block.t0):
            return scheme
        if finer.grid is not None and len(finer.grid) > self.max_steps + 1:
            return scheme
        return finer

    def _finer(self, block: Block) -> Block:
        scheme = block.scheme
        return _walked(block, _tolerances(scheme, TIGHTER) if scheme.adaptive else divided(scheme, self.finer))


def divided(scheme: Scheme, k: int) -> Scheme:
    """A scheme of fixed steps with every step divided by k."""
    if scheme.steps is not None:
        return scheme.but(steps=k * scheme.steps, max_steps=max(k * scheme.steps, scheme.max_steps))
    if scheme.step_size is not None:
        return scheme.but(step_size=scheme.step_size / k)
    return scheme.but(grid=split(scheme.grid or (), k))


def measure(block: Block, x: Tensor) -> Values:
    """What is measured of a block that starts from x, in evaluation mode.

    Adaptive methods of other backends take no given steps, so theirs cannot be halved: their defect and ‖F‖ are those
    of the native method of that name and tolerance (dopri5, where there is none), which "native" says. NaN where a
    solve failed.
    """
    scheme = block.scheme
    values: Values = {"defect": math.nan, "nfe": math.nan, "F": math.nan}
    if scheme.steps is not None:
        values["steps"] = float(scheme.steps)
    elif scheme.adaptive:
        rtol = scheme.tolerances[0]
        values["rtol"] = float(rtol.max() if isinstance(rtol, Tensor) else rtol)
    try:
        end = block(x)
        values["nfe"] = float(block.stats.nfe)
        if scheme.adaptive and scheme.backend != "native":
            values["native"] = 1.0
            block = _walked(block, native(scheme))
            end = block(x)
        if scheme.per_sample:  # steps that all samples share are those that can be halved
            block = _walked(block, scheme.but(per_sample=False, per_sample_args=None))
            end = block(x)
        values["defect"] = relative(end, refined(block, x, 2)(x))
        values["F"] = float(norms(follow(block, x).slopes, 1).mean())
    except OdenetError:
        pass
    return values


def native(scheme: Scheme) -> Scheme:
    """An adaptive scheme of another backend, walked by the native method of that name, or by dopri5."""
    own = scheme.solver if scheme.solver in solvers and solvers[scheme.solver].adaptive else "dopri5"
    return scheme.but(backend="native", solver=own, options={}, **PLAIN)


def lowered(block: Block) -> Scheme:
    """The scheme of a block with steps about 1.1 times as long, tolerances 1.1 times as large."""
    scheme, pieces = block.scheme, block.weights.pieces
    if scheme.steps is not None:
        return scheme.but(steps=max(pieces, math.floor(scheme.steps / LOWERED / pieces) * pieces))
    if scheme.step_size is not None:
        return scheme.but(step_size=min(abs(block.t1 - block.t0) or scheme.step_size, scheme.step_size * LOWERED))
    return scheme if scheme.grid is not None else _tolerances(scheme, LOWERED)


def schemes_of(model: nn.Module) -> list[dict[str, Any]]:
    """What a monitor may have adapted of each block, for a checkpoint."""
    return [{name: getattr(block.scheme, name) for name in KEPT} for block in blocks_of(model)]


def restore_schemes(model: nn.Module, kept: Sequence[dict[str, Any]] | None) -> None:
    """Walk the blocks of `model` as they were walked when `schemes_of` was called; None leaves them as they are."""
    for block, values in zip(blocks_of(model), kept, strict=True) if kept is not None else ():
        steps = values["steps"] or 0
        block.scheme = block.scheme.but(**values, max_steps=max(steps, block.scheme.max_steps))


def _walked(block: Block, scheme: Scheme) -> Block:
    twin = copy.copy(block)
    twin.scheme = scheme
    return twin


def _tolerances(scheme: Scheme, factor: float) -> Scheme:
    rtol, atol = (
        torch.as_tensor(t) * factor if isinstance(t, Tensor) else _within(t, factor) for t in scheme.tolerances
    )
    return scheme.but(rtol=rtol, atol=atol)


def _within(tolerance: float, factor: float) -> float:
    """A tolerance times a factor; not beyond the limits, unless it lies there already."""
    if factor < 1:
        return max(min(FINEST, tolerance), tolerance * factor)
    return min(max(COARSEST, tolerance), tolerance * factor)


def _score(score: Score, model: nn.Module) -> float:
    try:
        return score(model)
    except OdenetError:
        return math.nan

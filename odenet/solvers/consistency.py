"""Keeps a random or stateful F one function for the length of a solve, and for its recomputation.

- Dropout: the generator is set back before every evaluation, so that one mask holds per solve and piece of depth.
- BatchNorm: the running statistics are updated once per solve, with the mean over the evaluations of accepted steps;
  where weights are functions of depth, so are they (`StatisticsOverDepth`).
- Buffers that an evaluation changes (spectral normalisation): every evaluation begins with the values before the first,
  and those after the first remain, so that they move on once per solve.
- Autocast: a recomputation runs under the forward pass's autocast, in the mode and with the tensors that F's modules
  had then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from odenet.depth import Expansion
from odenet.depth.statistics import StatisticsOverDepth
from odenet.solvers.holdings import Buffers, Holdings, Moved, at_start


class Consistency:
    """One solve's view of randomness and running statistics.

    Args:
        pieces: for each piece of depth, the modules that F is made of there.
        device: device of the state.

    Attributes:
        plain: for each piece, whether F is known to be neither random nor stateful there, so that `call` need not be
            used.
    """

    def __init__(self, pieces: Iterable[Iterable[nn.Module]], device: torch.device):
        self.device = device
        self._generators: dict[int, tuple[Tensor, ...]] = {}
        self._random: dict[int, bool] = {}
        self._moved: dict[int, list[Moved]] = {}
        self._modules: list[list[nn.Module]] = []
        self._holdings: Holdings | None = None
        self._recomputing = False
        found: dict[nn.Module, _RunningStatistics | StatisticsOverDepth] = {}
        self._norms_of: list[list[_RunningStatistics | StatisticsOverDepth]] = []
        for modules in map(list, pieces):
            self._modules.append(modules)
            over_depth = [m for m in modules if isinstance(m, Expansion) and m.gathered.training]
            inside = {norm for m in over_depth for norm in m.gathered.norms}
            norms = [m for m in modules if isinstance(m, _NormBase) and m.training and m.track_running_stats]
            self._norms_of.append(
                [found.setdefault(m, _RunningStatistics(m)) for m in norms if m not in inside]
                + [found.setdefault(m, m.gathered) for m in over_depth]
            )
        self._norms = list(found.values())
        self.plain = [False] * len(self._norms_of)
        kind = device.type
        self._can_autocast = torch.amp.is_autocast_available(kind)
        self.autocast = self._can_autocast and torch.is_autocast_enabled(kind)
        self._autocast_dtype = torch.get_autocast_dtype(kind) if self.autocast else None

    def call(self, piece: int, evaluate: Callable[[], Tensor]) -> Tensor:
        """Evaluate F on a piece of depth with that piece's mask."""
        if not self._recomputing:
            for norm in self._norms_of[piece]:
                norm.prepare()
        if piece not in self._random:
            before, buffers = self._generator_state(), Buffers(self._modules[piece])
            result = evaluate()
            self._moved[piece] = moved = buffers.moved()
            after = self._generator_state()
            self._random[piece] = any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
            if self._random[piece]:
                self._generators[piece] = before
            self.plain[piece] = not (self._random[piece] or self._norms_of[piece] or moved)
            return result
        if self._moved[piece]:
            with at_start(self._moved[piece]):
                return self._drawn(piece, evaluate)
        return self._drawn(piece, evaluate)

    def _drawn(self, piece: int, evaluate: Callable[[], Tensor]) -> Tensor:
        """An evaluation with the random numbers of the first."""
        if not self._random[piece]:
            return evaluate()
        present = self._generator_state()
        self._set_generator(self._generators[piece])
        try:
            return evaluate()
        finally:
            self._set_generator(present)

    def knows(self, piece: int) -> bool:
        """Whether F has been evaluated on a piece of depth."""
        return piece in self._random

    def is_random(self, piece: int) -> bool:
        """Whether F drew random numbers when it was evaluated on a piece of depth."""
        return self._random.get(piece, False)

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """The forward solve: statistics are gathered inside and folded in once at the end."""
        for norm in self._norms:
            norm.begin()
        kept = False
        try:
            yield
            kept = True
        finally:
            for norm in self._norms:
                norm.end(kept)

    def hold(self) -> None:
        """Remember the mode and the tensors of F's modules for recomputations that come later."""
        self._holdings = Holdings({module: None for modules in self._modules for module in modules})

    @contextlib.contextmanager
    def recomputation(self) -> Iterator[None]:
        """A repetition of evaluations that the forward solve has made: nothing is updated."""
        self._recomputing = True
        held = contextlib.nullcontext() if self._holdings is None else self._holdings.restored()
        for norm in self._norms:
            norm.pause(True)
        try:
            with (
                held,
                torch.autocast(self.device.type, self._autocast_dtype, self.autocast)
                if self._can_autocast
                else (contextlib.nullcontext()),
            ):
                yield
        finally:
            self._recomputing = False
            for norm in self._norms:
                norm.pause(False)

    def mark(self) -> None:
        """Remember the statistics: a step is about to be tried."""
        for norm in self._norms:
            norm.mark()

    def undo(self) -> None:
        """Forget what has been gathered since `mark`: the step was rejected."""
        for norm in self._norms:
            norm.undo()

    def _generator_state(self) -> tuple[Tensor, ...]:
        if self.device.type == "cuda":
            return torch.get_rng_state(), torch.cuda.get_rng_state(self.device)
        if self.device.type == "mps":
            return torch.get_rng_state(), torch.mps.get_rng_state()
        return (torch.get_rng_state(),)

    def _set_generator(self, state: tuple[Tensor, ...]) -> None:
        torch.set_rng_state(state[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state[1], self.device)
        elif self.device.type == "mps":
            torch.mps.set_rng_state(state[1])


class _RunningStatistics:
    """The running statistics of one norm layer during one solve.

    While the solve runs, the layer's momentum is 1/k at its k-th evaluation, so that its buffers hold the mean over
    the evaluations; at the end that mean enters the old statistics once, with the layer's own momentum.
    """

    def __init__(self, module: _NormBase):
        self.module = module

    def begin(self) -> None:
        self.old = self._snapshot()
        self.momentum = self.module.momentum
        self.evaluations = 0
        self.mark()

    def prepare(self) -> None:
        self.evaluations += 1
        self.module.momentum = 1.0 / self.evaluations

    def mark(self) -> None:
        self.marked = self._snapshot(), self.evaluations

    def undo(self) -> None:
        snapshot, self.evaluations = self.marked
        self._restore(snapshot)

    def pause(self, paused: bool) -> None:
        self.module.track_running_stats = not paused

    def end(self, kept: bool) -> None:
        mean = self._snapshot()
        self._restore(self.old)
        self.module.momentum = self.momentum
        if not kept or self.evaluations == 0:
            return
        tracked = self.old[2] + 1
        momentum = 1.0 / float(tracked) if self.momentum is None else self.momentum
        old, new = self.old[:2], mean[:2]
        self._restore((torch.lerp(old[0], new[0], momentum), torch.lerp(old[1], new[1], momentum), tracked))

    def _buffers(self) -> tuple[Tensor, Tensor]:
        assert self.module.running_mean is not None
        assert self.module.running_var is not None
        return self.module.running_mean, self.module.running_var

    def _snapshot(self) -> tuple[Tensor, Tensor, Tensor]:
        mean, var = self._buffers()
        assert self.module.num_batches_tracked is not None
        return mean.clone(), var.clone(), self.module.num_batches_tracked.clone()

    def _restore(self, snapshot: tuple[Tensor, Tensor, Tensor]) -> None:
        # Through .data: batch_norm saves these buffers for its backward pass and does not read them there in training
        # mode, so a new version of them must not spoil the graph.
        mean, var = self._buffers()
        assert self.module.num_batches_tracked is not None
        mean.data.copy_(snapshot[0])
        var.data.copy_(snapshot[1])
        self.module.num_batches_tracked.data.copy_(snapshot[2])

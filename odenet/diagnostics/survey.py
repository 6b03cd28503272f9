"""All diagnostics of a model: what its blocks see is caught, and every registered diagnostic is run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from odenet.blocks import Block, blocks_of
from odenet.diagnostics.path import evaluated
from odenet.diagnostics.result import Result, diagnostics
from odenet.errors import InputError, OdenetError

SAMPLES = 32


@dataclass(frozen=True)
class Finding:
    """A row of a report.

    Attributes:
        diagnostic: its name.
        block: index of the block, or None for the whole model.
        result: what was found, or None if the diagnostic could not be run.
        note: why it could not.
    """

    diagnostic: str
    block: int | None
    result: Result | None
    note: str = ""


def survey(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    names: Iterable[str] | None = None,
    samples: int = SAMPLES,
    done: Callable[[str], None] = lambda name: None,
) -> list[Finding]:
    """Run diagnostics on a model and on each of its blocks.

    Args:
        model: a block, or a classifier with blocks in it; a block alone has no classes, and the diagnostics of models
            are left out.
        x: (batch, ...) inputs.
        y: (batch,) labels, or None.
        names: which diagnostics; None for all.
        samples: samples of the batch that the diagnostics of blocks look at.
        done: called with the name of each diagnostic when it is through.

    Returns:
        The findings, diagnostic by diagnostic.

    Raises:
        InputError: the model has no blocks.
        UnknownNameError: no such diagnostic.
    """
    blocks = blocks_of(model)
    if not blocks:
        raise InputError(f"{type(model).__name__} has no blocks to look at")
    chosen = list(diagnostics) if names is None else list(names)
    inputs = block_inputs(model, x[:samples])
    findings = []
    for name in chosen:
        diagnostic = diagnostics[name]
        if diagnostic.of == "block":
            cases = [(i, (block, inputs[i])) for i, block in enumerate(blocks)]
        else:
            cases = [] if isinstance(model, Block) else [(None, (model, x, y))]
        for index, arguments in cases:
            try:
                findings.append(Finding(name, index, diagnostic.run(*arguments)))
            except OdenetError as error:
                findings.append(Finding(name, index, None, str(error)))
        done(name)
    return findings


def block_inputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The state with which each block of a model starts, for a batch of inputs, in evaluation mode."""
    found: dict[int, Tensor] = {}
    blocks = blocks_of(model)

    def catch(block: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.setdefault(number[block], args[0].detach())

    number: dict[nn.Module, int] = {block: i for i, block in enumerate(blocks)}
    hooks = [block.register_forward_pre_hook(catch) for block in blocks]
    try:
        with evaluated(model):
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    missing = [i for i in range(len(blocks)) if i not in found]
    if missing:
        raise InputError(f"block {missing[0]} of {type(model).__name__} is not used in its forward pass")
    return [found[i] for i in range(len(blocks))]


def verdict_of(findings: Iterable[Finding]) -> bool | None:
    """True if every diagnostic that judges passes, False if one fails, None if none judges."""
    judged = [f.result.verdict for f in findings if f.result is not None and f.result.verdict is not None]
    return all(judged) if judged else None

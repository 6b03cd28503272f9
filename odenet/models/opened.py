"""Networks that people have already, opened: their chains of residual blocks become blocks of odenet."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from torch import Tensor, nn

from odenet.blocks import Block, ResNet
from odenet.depth import PiecewiseConstant
from odenet.errors import InputError
from odenet.residual.branches import CHAINS, class_path, is_identity_block, is_residual_block, open_block
from odenet.residual.from_block import from_block


def from_blocks(blocks: Iterable[nn.Module], bound: Mapping[str, Any] | None = None, **walk: Any) -> ResNet:
    """A chain of shape-preserving blocks, e.g. the layers of a transformer, as one untied `ResNet` with h = 1.

    Its Euler steps are the blocks: it computes what they compute one after the other, with their parameters.

    Args:
        blocks: modules with `forward(x)`, such as an `nn.Sequential`; they are shared, not copied. What they take
            besides x is handed to the block that is made of them, `block(x, mask)`, or bound here.
        bound: keyword arguments for every call of every block, such as `{"attention_mask": mask}`.
        **walk: other arguments of `ResNet`, e.g. `gradient="checkpoint"`.

    Returns:
        A block on depth [0, N] with N layers; `.continuous()` makes the ODE of it.

    Raises:
        InputError: there is no block, or one is not a module.
    """
    blocks = list(blocks)
    if not blocks:
        raise InputError("from_blocks needs at least one block, got none")
    layers = [from_block(block, **bound) if bound else open_block(block) for block in blocks]
    return ResNet(PiecewiseConstant(layers), len(layers), **{"t1": float(len(layers)), **walk})


class OpenedSequence(nn.Sequential):
    """A sequence of modules in which runs of residual blocks have become one `ResNet` each.

    Attributes:
        original: for each child, the names that its modules had in the original sequence.
    """

    def __init__(self, children: Sequence[tuple[tuple[str, ...], nn.Module]]):
        super().__init__()
        self.original = {names[0]: names for names, _ in children}
        for names, child in children:
            self.add_module(names[0], child)


def from_resnet(model: nn.Module, block: type[nn.Module] | tuple[type[nn.Module], ...] = (), **walk: Any) -> nn.Module:
    """Open a residual network: every run of identity blocks becomes one untied `ResNet` with h = 1.

    Known are the residual blocks of the ResNets of torchvision and timm (basic and bottleneck, post- and
    pre-activation, with grouped convolutions, squeeze-and-excitation and the like; RegNets, TResNets, normaliser-free
    and cross-stage ResNets, Inception-ResNets), and of their vision transformers, ConvNeXts, MobileNets and
    EfficientNets; `block` names more classes. Blocks that change width or resolution stay as they are. Those of RepVGG
    and of RegNetV add to their input after a norm: F is block(x) - x there.

    Args:
        model: the network; it is left as it is.
        block: classes of residual blocks besides the known ones. Each adds to its input and keeps its shape, unless it
            has a `downsample` or `shortcut` with layers in it, or a `stride` other than 1.
        **walk: other arguments of `ResNet`, e.g. `gradient="checkpoint"`.

    Returns:
        A model of the same class that computes the same and shares every parameter and buffer: training one trains the
        other. `odenet.models.swap_blocks` walks its blocks another way; `original_state_dict` gives the weights back
        under the original's names.

    Raises:
        InputError: there is no such block in the model, or each of them changes width or resolution.

    Reference:
        He et al. 2015, Deep Residual Learning; Sander et al. 2022, Do Residual Neural Networks discretize Neural ODEs?
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"from_resnet takes an nn.Module, got {type(model).__name__}")
    extra = block if isinstance(block, tuple) else (block,)
    opened = _opened(model, extra, walk)
    if not any(isinstance(module, OpenedSequence) for module in opened.modules()):
        raise InputError(_closed(model, extra))
    return opened


def _closed(model: nn.Module, extra: tuple[type[nn.Module], ...]) -> str:
    found = [module for module in model.modules() if is_residual_block(module, extra)]
    name = type(model).__name__
    if not found:
        return (
            f"{name} has no sequence of residual blocks that from_resnet knows; name the class of its blocks, "
            "block=TheirClass, or open a chain of them with odenet.models.from_blocks"
        )
    kinds = " and ".join(sorted({type(module).__name__ for module in found}))
    return (
        f"none of the {len(found)} residual blocks of {name} ({kinds}) stands in a sequence and adds to its own input: "
        "they change width or resolution, or are called one by one; take a deeper network of this kind, or open blocks "
        "that keep their shape with odenet.models.from_blocks"
    )


def _opened(module: nn.Module, extra: tuple[type[nn.Module], ...], walk: Mapping[str, Any]) -> nn.Module:
    children = [(name, child) for name, child in module.named_children()]
    chain = isinstance(module, nn.Sequential | nn.ModuleList) or class_path(module) in CHAINS
    if chain and any(is_identity_block(child, extra) for _, child in children):
        parts: list[tuple[tuple[str, ...], nn.Module]] = []
        for run, members in groupby(children, key=lambda entry: is_identity_block(entry[1], extra)):
            found = list(members)
            if run:
                parts.append((tuple(name for name, _ in found), from_blocks([b for _, b in found], **walk)))
            else:
                parts += [((name,), child) for name, child in found]
        return OpenedSequence(parts).train(module.training)
    twin: nn.Module = copy.copy(module)
    twin.__dict__["_modules"] = {
        name: child if child is None else _opened(child, extra, walk) for name, child in module._modules.items()
    }
    return twin


def original_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The weights of an opened model under the names of the original one, for its `load_state_dict`.

    Args:
        model: what `from_resnet` returned, perhaps with its blocks walked another way, trained or not.

    Raises:
        InputError: a run of blocks has other weights over depth than one residual function for each original block.
    """
    names = _original_names(model)
    return {names.get(key, key): value for key, value in model.state_dict().items()}


def load_original_state_dict(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Load the weights of an original model into an opened one.

    Args:
        model: what `from_resnet` returned.
        state: `state_dict()` of a model of the original class.

    Raises:
        InputError: as in `original_state_dict`.
        RuntimeError: the names or shapes do not fit.
    """
    back = {original: opened for opened, original in _original_names(model).items()}
    model.load_state_dict({back.get(key, key): value for key, value in state.items()})


def _original_names(model: nn.Module) -> dict[str, str]:
    """Key in the opened model's state_dict -> key in the original's, for everything inside opened blocks."""
    found: dict[str, str] = {}
    for path, sequence in model.named_modules(remove_duplicate=False):
        if not isinstance(sequence, OpenedSequence):
            continue
        prefix = f"{path}." if path else ""
        for name, originals in sequence.original.items():
            block = sequence.get_submodule(name)
            if not isinstance(block, Block):
                continue
            if not isinstance(block.weights, PiecewiseConstant) or block.weights.pieces != len(originals):
                raise InputError(
                    f"the block {prefix}{name} has {block.weights.pieces} pieces of weights for {len(originals)} "
                    "original blocks; refine or coarsen them to as many layers first"
                )
            for i, original in enumerate(originals):
                inside = f"{prefix}{name}.weights.layers.{i}.block."
                layer = block.weights.layers[i].get_submodule("block")
                found |= {f"{inside}{key}": f"{prefix}{original}.{key}" for key in layer.state_dict()}
    return found

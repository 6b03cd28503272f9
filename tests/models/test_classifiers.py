"""Classifiers: shapes, what a stage is, augmentation, bad input."""

from functools import partial

import pytest
import torch
from torch import nn

import odenet
from odenet.blocks import blocks_of
from odenet.errors import InputError
from odenet.models import Augment, Downsample, ImageClassifier, NoDepth, VectorClassifier, VectorFlow, swap_blocks

STAGES = {
    "resnet": partial(odenet.ResNet, steps=2, weights="untied"),
    "ode": partial(odenet.ODEBlock, rtol=1e-2, atol=1e-2),
    "none": NoDepth,
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("residual", [odenet.residual.Conv, odenet.residual.Bottleneck])
def test_image_classifier_keeps_its_shapes_and_reaches_every_parameter(stage, residual):
    model = ImageClassifier((3, 9, 8), 5, residual, STAGES[stage], widths=(8, 12, 16), augment=2)
    seen = {}
    for number, block in enumerate(model.stages):
        block.register_forward_pre_hook(lambda _, inputs, number=number: seen.update({number: inputs[0].shape}))
    logits = model(torch.randn(4, 3, 9, 8))
    assert logits.shape == (4, 5)
    assert [tuple(seen[i]) for i in range(3)] == [(4, 10, 9, 8), (4, 14, 5, 4), (4, 18, 3, 2)]
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert len(blocks_of(model)) == (0 if stage == "none" else 3)


@pytest.mark.parametrize("width", [None, 6])
@pytest.mark.parametrize("stage", STAGES)
def test_vector_classifier_takes_points_with_and_without_a_stem(stage, width):
    model = VectorClassifier((3,), 2, odenet.residual.MLP, STAGES[stage], width=width, stages=2, augment=1)
    x = torch.randn(7, 3)
    assert model(x).shape == (7, 2)
    state = model.encode(x)
    assert state.shape == (7, (3 if width is None else 6) + 1)
    assert bool((state[:, -1] == 0).all())
    if width is None:
        assert torch.equal(state[:, :3], x)


def test_a_flow_answers_with_its_state():
    model = VectorFlow((3,), 2, odenet.residual.MLP, STAGES["ode"], stages=2, augment=1)
    x = torch.randn(7, 3)
    state = model.encode(x)
    assert torch.equal(state, torch.cat([x, torch.zeros(7, 1)], 1))
    for block in model.blocks:
        state = block(state)
    assert torch.equal(model(x), state[:, :2])
    assert torch.equal(VectorFlow((3,), 3, odenet.residual.MLP, NoDepth)(x), x)
    with pytest.raises(InputError, match="answers with at most as many numbers, got samples of shape .2,. and 3"):
        VectorFlow((2,), 3, odenet.residual.MLP, NoDepth)


def test_identity_stage_computes_stem_and_head_only():
    model = VectorClassifier((3,), 2, odenet.residual.MLP, NoDepth)
    x = torch.randn(5, 3)
    assert torch.equal(model(x), model.head(x))
    assert sum(p.numel() for p in model.parameters()) == 3 * 2 + 2


def test_resnet_and_ode_stage_share_a_state_dict():
    make = partial(ImageClassifier, (1, 8, 8), 3, odenet.residual.Conv, widths=(8,))
    resnet = make(stage=partial(odenet.ResNet, steps=4))
    ode = make(stage=partial(odenet.ODEBlock, solver="euler", steps=4))
    ode.load_state_dict(resnet.state_dict())
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(resnet(x), ode(x))


def test_downsample_halves_and_is_a_projection_plus_a_residual():
    layer = Downsample(4, 6)
    nn.init.zeros_(layer.conv2.weight)
    x = torch.randn(2, 4, 7, 8)
    projected = nn.functional.conv2d(torch.relu(layer.norm1(x)), layer.shortcut.weight, stride=2)
    assert layer(x).shape == (2, 6, 4, 4)
    assert torch.equal(layer(x), projected)


def test_augment_appends_zeros():
    x = torch.randn(2, 3, 4, 4)
    out = Augment(2)(x)
    assert torch.equal(out[:, :3], x)
    assert out.shape == (2, 5, 4, 4)
    assert not out[:, 3:].any()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ImageClassifier((64,), 10, odenet.residual.Conv, NoDepth), "network=vector"),
        (lambda: VectorClassifier((1, 8, 8), 10, odenet.residual.MLP, NoDepth), "network=image"),
        (lambda: ImageClassifier((1, 8, 8), 10, odenet.residual.Conv, NoDepth, widths=()), "at least one stage"),
        (lambda: ImageClassifier((1, 8, 8), 0, odenet.residual.Conv, NoDepth), "classes must be a positive integer"),
        (lambda: ImageClassifier((1, 8, 8), 10, odenet.residual.Conv, NoDepth, augment=-1), "augment"),
        (lambda: VectorClassifier((2,), 2, odenet.residual.MLP, NoDepth, stages=0), "stages must be a positive"),
    ],
)
def test_bad_input_is_named(make, says):
    with pytest.raises(InputError, match=says):
        make()


def test_swap_blocks_shares_everything_and_leaves_the_model_alone():
    model = ImageClassifier((1, 8, 8), 3, odenet.residual.Conv, STAGES["resnet"], widths=(8, 8))
    twin = swap_blocks(model, lambda block: block.continuous(rtol=1e-3, atol=1e-3))
    assert {id(p) for p in twin.parameters()} == {id(p) for p in model.parameters()}
    assert [type(b).__name__ for b in blocks_of(twin)] == ["ODEBlock", "ODEBlock"]
    assert [type(b).__name__ for b in blocks_of(model)] == ["ResNet", "ResNet"]
    with torch.no_grad():
        twin.head.bias += 1
    assert torch.equal(twin.head.bias, model.head.bias)
    fine = swap_blocks(model, lambda block: block.discretize(2))
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(fine(x), model(x))

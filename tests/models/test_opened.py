"""Networks of torchvision and timm, opened: the same logits, the same parameters, and the way back."""

import copy

import pytest
import torch
from torch import nn

import odenet
from odenet.blocks import blocks_of
from odenet.data import digits
from odenet.depth import piecewise_constant, piecewise_linear
from odenet.errors import InputError, ResidualError
from odenet.models import from_blocks, from_resnet, load_original_state_dict, original_state_dict, swap_blocks
from odenet.residual.branches import BRANCHES

torchvision = pytest.importorskip("torchvision")
QUICK = ["torchvision/resnet18", "torchvision/resnext50_32x4d", "timm/resnet18", "timm/seresnet18", "timm/resnetv2_18"]
QUICK += ["timm/resnetv2_50", "timm/legacy_seresnet18", "timm/wide_resnet50_2", "timm/vit_tiny_patch16_224"]
QUICK += ["timm/resnext26ts"]
SLOW = [f"torchvision/{name}" for name in ("resnet50", "wide_resnet50_2", "convnext_tiny", "resnet101")]
SLOW += [f"timm/{name}" for name in ("resnet26d", "resnet50", "seresnet50", "ecaresnet26t", "resnext50_32x4d")]
SLOW += [f"timm/{name}" for name in ("resnest26d", "skresnet18", "resnetaa50", "resnetv2_50x1_bit", "convnext_atto")]
SLOW += [f"timm/{name}" for name in ("seresnext26t_32x4d", "resnet101", "resnetrs50", "res2net50_26w_4s")]
SLOW += [f"timm/{name}" for name in ("gcresnet33ts", "gernet_s")]
KINDS = [f"torchvision/{name}" for name in ("regnet_x_400mf", "regnet_y_400mf", "quantized_resnet18", "r3d_18")]
KINDS += [f"torchvision/{name}" for name in ("quantized_resnet50", "mobilenet_v2", "mobilenet_v3_small")]
KINDS += [f"torchvision/{name}" for name in ("efficientnet_b0", "efficientnet_v2_s")]
KINDS += [f"timm/{name}" for name in ("regnetx_002", "regnety_002", "regnetv_040", "regnetz_005", "nf_regnet_b0")]
KINDS += [f"timm/{name}" for name in ("repvgg_a0", "cspresnet50", "cspresnext50", "darknet53", "cs3edgenet_x")]
KINDS += [f"timm/{name}" for name in ("tresnet_m", "nf_resnet26", "inception_resnet_v2", "res2net50d", "skresnet50")]
KINDS += [f"timm/{name}" for name in ("bat_resnext26ts", "lambda_resnet26t", "hrnet_w18_small", "efficientnet_b0")]
KINDS += [f"timm/{name}" for name in ("efficientnet_cc_b0_4e", "efficientnetv2_rw_t", "mobilenetv4_conv_small")]
KINDS += ["timm/mobilenetv4_hybrid_medium", "timm/resnetv2_50d_gn", "timm/resnetrs50", "timm/ecaresnetlight"]
SIZES = {"timm/inception_resnet_v2": 139, "timm/bat_resnext26ts": 256, "timm/lambda_resnet26t": 256}
NONE = ["dla60_res2net", "dla60_res2next"]  # not chains: a tree whose blocks are handed their shortcut
NONE += ["resnest14d", "resnet14t"]  # one block a stage, which changes its width
NAMES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
SHORT = {"layers": (2, 1, 1, 2)}


def made(name):
    """A model with random weights; norms and layer scales are drawn anew so that no branch starts at zero."""
    package, kind = name.split("/")
    if package == "torchvision":
        model = torchvision.models.get_model(kind, num_classes=7)
    else:
        timm = pytest.importorskip("timm")
        changes = {"img_size": 32} if kind.startswith("vit") else SHORT if name in QUICK and "50" in kind else {}
        model = timm.create_model(kind, num_classes=7, **changes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.3, 0.7)
            nn.init.normal_(module.bias, std=0.1)
        for name in ("gamma", "layer_scale", "gain"):
            if isinstance(getattr(module, name, None), nn.Parameter):
                nn.init.uniform_(getattr(module, name), 0.3, 0.7)
    return model


def run(model, x):
    torch.manual_seed(5)  # stochastic depth, where there is any
    return model(x)


@pytest.mark.parametrize("name", NAMES)
def test_an_opened_network_computes_what_the_original_computes(name):
    model = made(name)
    few = name.endswith("ts")  # 2 pixels for the last norms of these would magnify rounding
    x = torch.randn(4, 3, 64, 64) if few else torch.randn(2, 3, 32, 32)
    for training in (True, False):
        twin = copy.deepcopy(model).train(training)
        opened = from_resnet(twin)
        assert type(opened) is type(model) and opened.training is training
        assert {id(p) for p in opened.parameters()} == {id(p) for p in twin.parameters()}
        with torch.no_grad():
            expected, got = run(model.train(training), x), run(opened, x)
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
            back = original_state_dict(opened)
            for key, value in model.state_dict().items():  # running statistics too
                torch.testing.assert_close(back[key], value, rtol=1e-5, atol=1e-6)
            assert len(back) == len(model.state_dict())
            for block in blocks_of(opened):  # and it is the blocks that compute it
                for p in block.parameters():
                    p.mul_(1.5)
            assert not torch.allclose(run(opened, x), expected, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_residual_networks_of_every_kind_are_opened(name):
    model = made(name)
    size = SIZES.get(name, 64)
    x = torch.randn(2, 3, *((4, 32, 32) if name.endswith("r3d_18") else (size, size)))
    for training in (True, False):
        twin = copy.deepcopy(model).train(training)
        opened = from_resnet(twin)
        assert {id(p) for p in opened.parameters()} == {id(p) for p in twin.parameters()}
        with torch.no_grad():
            exact = run(copy.deepcopy(model).double().train(training), x.double())
            expected, got = run(model.train(training), x), run(opened, x)
            rounding = float((expected - exact).norm() / exact.norm())  # what the original itself loses in float32
            assert float((got - expected).norm() / expected.norm()) < 1e-6 + rounding, rounding
            assert rounding < 1e-2 and got.std() > 0
            back = original_state_dict(opened)
            assert back.keys() == model.state_dict().keys()
            for key, value in model.state_dict().items():  # running statistics too
                torch.testing.assert_close(back[key], value, rtol=1e-3, atol=1e-4)
            for p in (p for block in blocks_of(opened) for p in block.parameters()):  # it is the blocks that compute it
                p.copy_(p.flatten().flip(0).view_as(p))
            assert float((run(opened, x) - expected).norm() / expected.norm()) > 10 * rounding + 1e-5


@pytest.mark.slow
def test_all_resnets_of_timm_are_opened_but_those_without_identity_blocks():
    timm = pytest.importorskip("timm")
    patterns = ("*resne*t*", "*res*net*", "*res2ne*", "*regnet*", "*repvgg*", "*gernet*", "*hrnet*")
    names = sorted({name for pattern in patterns for name in timm.list_models(pattern)})
    assert len(names) > 200
    refused = []
    for name in names:
        with torch.device("meta"):
            model = timm.create_model(name)
        try:
            blocks = blocks_of(from_resnet(model))
        except InputError:
            refused.append(name)
        else:
            assert sum(block.scheme.steps for block in blocks) >= (1 if name in ("resnet10t", "test_resnet") else 3), (
                name
            )
    assert refused == NONE


@pytest.mark.parametrize(("name", "layers"), [("resnet18", [2, 1, 1, 1]), ("resnet50", [2, 3, 5, 2])])
def test_runs_of_identity_blocks_become_untied_resnets(name, layers):
    blocks = blocks_of(from_resnet(made(f"torchvision/{name}")))
    assert [type(b) for b in blocks] == [odenet.ResNet] * 4
    assert (
        [len(b.weights.layers) for b in blocks] == [b.scheme.steps for b in blocks] == [b.t1 for b in blocks] == layers
    )


@pytest.mark.parametrize("gradient", ["autograd", "checkpoint"])
def test_training_the_opened_network_trains_the_original(gradient):
    model = made("torchvision/resnet18")
    twin = copy.deepcopy(model)
    opened = from_resnet(twin, gradient=gradient)
    x, y = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    for network in (model, opened):
        nn.functional.cross_entropy(network(x), y).backward()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-3, atol=1e-4 * float(p.grad.abs().max()) + 1e-8, msg=name)
    before = twin(x)
    torch.optim.SGD(opened.parameters(), lr=0.1).step()
    assert not torch.allclose(twin(x), before, rtol=1e-3)


def test_the_weights_go_back_into_the_original_class_and_out_of_it():
    opened = from_resnet(made("torchvision/resnet18")).eval()
    fresh = made("torchvision/resnet18").eval()
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(fresh(x), opened(x))
    fresh.load_state_dict(original_state_dict(opened), strict=True)
    assert torch.equal(fresh(x), opened(x))
    other = made("torchvision/resnet18").eval()
    load_original_state_dict(opened, other.state_dict())
    assert torch.equal(other(x), opened(x))
    with pytest.raises(RuntimeError, match="Missing key"):
        load_original_state_dict(opened, {})


def test_an_opened_network_is_walked_as_an_ode():
    opened = from_resnet(made("torchvision/resnet18")).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        finer = [swap_blocks(opened, lambda b, k=k: b.discretize(k * b.scheme.steps))(x) for k in (1, 4, 16)]
        ode = swap_blocks(opened, lambda b: b.continuous(rtol=1e-5, atol=1e-5))
        y = ode(x)
    assert torch.equal(finer[0], opened(x))
    assert [type(b) for b in blocks_of(ode)] == [odenet.ODEBlock] * 4
    errors = [float((z - y).norm()) for z in finer]
    assert errors[0] > 2.5 * errors[1] > 5 * errors[2] > 0
    assert original_state_dict(ode).keys() == original_state_dict(opened).keys()


REFINED = ["torchvision/resnet18", "timm/seresnet18", pytest.param("torchvision/resnet50", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", REFINED)
def test_an_opened_network_is_refined_projected_and_taken_back(name):
    model = made(name).eval()
    opened, x = from_resnet(model), torch.randn(2, 3, 32, 32)

    def close(a, b):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))

    with torch.no_grad():
        logits = model(x)
        finer = swap_blocks(opened, lambda b: b.discretize(2 * b.scheme.steps))(x)
        refined = swap_blocks(opened, lambda b: b.refine(2))  # the same function of depth, twice the layers
        close(refined(x), finer)
        assert not torch.allclose(finer, logits, rtol=1e-2)
        rk4 = [swap_blocks(m, lambda b: b.continuous("rk4", steps=2 * round(b.t1))) for m in (opened, refined)]
        close(rk4[1](x), rk4[0](x))
        again = swap_blocks(opened, lambda b: b.project(piecewise_constant(b.weights.pieces)))
        close(again(x), logits)
        assert {id(p) for p in again.parameters()} != {id(p) for p in model.parameters()}
        line = swap_blocks(opened, lambda b: b.project(piecewise_linear(b.weights.pieces)))
        lost = [block.weights.residual.relative for block in blocks_of(line)]
        assert all(0 < r < 1 for r, b in zip(lost, blocks_of(opened), strict=True) if b.weights.pieces > 1)
        assert torch.isfinite(line(x)).all()
        back = swap_blocks(refined, lambda b: b.coarsen(b.weights.pieces // 2, steps=b.weights.pieces // 2))
        close(back(x), logits)
        fresh = made(name).eval()
        fresh.load_state_dict(original_state_dict(back))
        close(fresh(x), logits)
    with pytest.raises(InputError, match="refine or coarsen them to as many layers first"):
        original_state_dict(refined)


def test_a_coarser_network_has_no_original():
    opened = from_resnet(made("torchvision/resnet50"))
    short = swap_blocks(opened, lambda b: odenet.ResNet(b.weights.every(b.weights.pieces), 1))
    with pytest.raises(InputError, match="the block layer1.1 has 1 pieces of weights for 2 original blocks"):
        original_state_dict(short)


class Cifar(nn.Module):
    """ResNet-20 of He et al. for small images, of torchvision's basic blocks."""

    def __init__(self):
        super().__init__()
        block = torchvision.models.resnet.BasicBlock
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        stages, width = [], 16
        for n in (16, 32, 64):
            down = nn.Sequential(nn.Conv2d(width, n, 1, 2, bias=False), nn.BatchNorm2d(n)) if n != width else None
            stages.append(nn.Sequential(block(width, n, 2 if down else 1, down), block(n, n), block(n, n)))
            width = n
        self.stages, self.head = nn.Sequential(*stages), nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


def test_a_resnet_20_trained_on_digits_and_opened():
    data = digits()
    model = Cifar()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(2):
        for i in torch.randperm(len(data.train_x), generator=torch.Generator().manual_seed(epoch)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data.train_x[i]), data.train_y[i]).backward()
            optimizer.step()
    opened = from_resnet(model.eval())
    assert [b.scheme.steps for b in blocks_of(opened)] == [3, 2, 2]
    with torch.no_grad():
        expected, got = model(data.test_x), opened(data.test_x)
    assert (expected.argmax(1) == data.test_y).double().mean() > 0.8
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        refined = swap_blocks(opened, lambda b: b.refine(3))
        finer = swap_blocks(opened, lambda b: b.discretize(3 * b.scheme.steps))(data.test_x)
        torch.testing.assert_close(refined(data.test_x), finer, rtol=1e-4, atol=1e-4)
        ode = swap_blocks(opened, lambda b: b.continuous(rtol=1e-2, atol=1e-2))(data.test_x[:64])
        assert torch.isfinite(ode).all()
    again = Cifar()
    again.load_state_dict(original_state_dict(opened))
    again.eval()
    with torch.no_grad():
        assert torch.equal(again(data.test_x), expected)


def test_a_chain_of_transformer_layers_is_a_resnet_with_their_parameters():
    layers = nn.Sequential(
        *(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True) for _ in range(3))
    ).double()
    block = from_blocks(layers, gradient="checkpoint")
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    y = block(x)
    torch.testing.assert_close(y, layers(x), rtol=1e-12, atol=1e-12)
    assert block.scheme.steps == 3 and block.t1 == 3.0 and block.scheme.gradient == "checkpoint"
    assert {id(p) for p in block.parameters()} == {id(p) for p in layers.parameters()}
    got, expected = torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(layers(x).sum(), x)[0]
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_a_relu_after_the_addition_stays_one_under_finer_steps():
    model = made("torchvision/resnet18").eval()
    block = from_blocks([model.layer1[0]])
    x = torch.rand(1, 64, 8, 8)
    assert torch.equal(block(x), model.layer1[0](x))
    assert block.discretize(10).trajectory(x).min() >= 0
    assert (model.layer1[0](x) == 0).any()


def test_a_block_that_does_not_add_to_its_own_input_is_taken_as_a_whole():
    block = torchvision.models.resnet.BasicBlock(4, 4, downsample=nn.Conv2d(4, 4, 1)).eval()
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(from_blocks([block])(x), block(x))
    byobnet = pytest.importorskip("timm").models.byobnet
    layers = byobnet.LayerFn()
    bare = byobnet.BasicBlock(4, 4, layers=layers, downsample="").eval()
    bare.shortcut = None
    torch.testing.assert_close(from_blocks([bare])(x), bare(x))
    vgg = byobnet.RepVggBlock(4, 4, layers=layers).eval()
    torch.testing.assert_close(from_blocks([vgg])(x), vgg(x))


def test_blocks_of_ones_own():
    class Mine(nn.Module):
        def __init__(self, a, b):
            super().__init__()
            self.f = nn.Linear(a, b)
            self.shortcut = nn.Sequential() if a == b else nn.Sequential(nn.Linear(a, b))

        def forward(self, x):
            return self.shortcut(x) + torch.tanh(self.f(x))

    model = nn.Sequential(Mine(3, 5), Mine(5, 5), Mine(5, 5), Mine(5, 3), Mine(3, 3), nn.Linear(3, 2)).double()
    opened = from_resnet(nn.Sequential(model), block=Mine)
    assert [b.scheme.steps for b in blocks_of(opened)] == [2, 1]
    x = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(opened(x), model(x), rtol=1e-12, atol=1e-12)
    assert list(original_state_dict(opened)) == [f"0.{key}" for key in model.state_dict()]


def test_every_known_class_is_one():
    import importlib

    pytest.importorskip("timm")
    for path in BRANCHES:
        module, _, name = path.rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), name), type), path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: from_resnet(nn.Sequential(nn.Linear(2, 2))), "Sequential has no sequence of residual blocks"),
        (
            lambda: from_resnet(made("timm/resnet14t")),
            "none of the 4 residual blocks of ResNet .Bottleneck.",
        ),
        (lambda: from_resnet("resnet18"), "from_resnet takes an nn.Module, got str"),
        (lambda: from_blocks([]), "from_blocks needs at least one block"),
        (lambda: from_blocks([torch.tanh]), "from_block takes an nn.Module"),
    ],
)
def test_what_cannot_be_opened_is_said(make, said):
    with pytest.raises(InputError, match=said):
        make()


def test_a_block_that_changes_the_shape_is_named():
    with pytest.raises(ResidualError, match=r"Linear returned \(2, 1\)"):
        from_blocks([nn.Linear(3, 1)])(torch.zeros(2, 3))


def test_blocks_that_return_a_tuple_are_opened_by_its_first_part():
    class Layer(nn.Module):  # as layers of language models: hidden states, and what else there is
        def __init__(self):
            super().__init__()
            self.norm, self.mix = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            h = self.norm(x)
            y, attention = self.mix(h, h, h)
            return x + y, attention

    layers, x = nn.ModuleList([Layer() for _ in range(3)]), torch.randn(2, 5, 8)
    opened, y = odenet.models.from_blocks(layers), x
    for layer in layers:
        y = layer(y)[0]
    torch.testing.assert_close(opened(x), y)
    assert opened.continuous(rtol=1e-3, atol=1e-3)(x).shape == x.shape


class Causal(nn.Module):
    """A layer of a language model, with the call of its kind: a mask besides the hidden states, and a tuple back."""

    def __init__(self):
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x, attention_mask=None):
        h = self.norm(x)
        y, attention = self.mix(h, h, h, attn_mask=attention_mask)
        return x + y, attention


@pytest.mark.parametrize("gradient", ["autograd", "checkpoint", "adjoint"])
def test_masked_layers_take_their_mask_by_argument_or_bound(gradient):
    layers = nn.ModuleList([Causal() for _ in range(3)]).double()
    mask = torch.triu(torch.full((5, 5), -torch.inf, dtype=torch.float64), 1)
    x = y = torch.randn(2, 5, 8, dtype=torch.float64)
    for layer in layers:
        y = layer(y, mask)[0]
    handed = from_blocks(layers, gradient=gradient)
    bound = from_blocks(layers, {"attention_mask": mask}, gradient=gradient)
    for got in (handed(x, mask), bound(x)):
        torch.testing.assert_close(got, y, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(handed(x), y, rtol=1e-3)
    changed = x.clone()
    changed[:, 3:] += 1.0  # later tokens do not reach earlier ones, in the ODE of the layers either
    for a, b in ((handed(x, mask), handed(changed, mask)), (bound(x), bound(changed))):
        assert torch.equal(a[:, :3], b[:, :3]) and not torch.allclose(a[:, 3:], b[:, 3:])
    ode = bound.continuous("rk4", steps=6)
    torch.testing.assert_close(ode(x)[:, :3], ode(changed)[:, :3], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(handed.continuous("rk4", steps=6)(x, mask), ode(x), rtol=1e-12, atol=1e-12)
    half = bound.refine(2)  # its layers are called as those they were made of
    torch.testing.assert_close(half(x), bound.discretize(6)(x), rtol=1e-12, atol=1e-12)


def test_a_bound_bias_gets_its_gradient_and_follows_the_block():
    layers = nn.ModuleList([Causal() for _ in range(2)]).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    bias = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    y = x
    for layer in layers:
        y = layer(y, bias)[0]
    (expected,) = torch.autograd.grad(y.square().sum(), bias)
    for gradient in ("autograd", "checkpoint"):
        block = from_blocks(layers, {"attention_mask": bias}, gradient=gradient)
        (got,) = torch.autograd.grad(block(x).square().sum(), bias)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
        assert block.state_dict().keys() == from_blocks(layers).state_dict().keys()
    single = from_blocks(layers, {"attention_mask": bias.detach()}).float()
    assert single(x.float()).dtype == torch.float32


def test_bound_tensors_in_tuples_follow_the_block():
    class Rotated(nn.Module):  # as layers of language models: cosine and sine of the positions as a pair
        def forward(self, x, positions):
            cos, sin = positions
            return x + cos * x + sin

    pair = torch.randn(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    block, x = from_blocks([Rotated()], {"positions": pair}), torch.randn(2, 8, dtype=torch.float64)
    torch.testing.assert_close(block(x), x + pair[0] * x + pair[1])
    assert block.float()(x.float()).dtype == torch.float32


def test_the_layers_of_a_torchvision_transformer():
    model = torchvision.models.VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=7).eval()
    nn.init.normal_(model.heads.head.weight)  # zero as it is made
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    block = from_blocks(model.encoder.layers)
    assert block.scheme.steps == 3 and expected.std() > 0.1
    model.encoder.layers = block
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)

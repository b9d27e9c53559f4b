import sys
import types

import pytest
import torch
from golden_cases import cases
from mac_golden import expect, fill, inputs
from safetensors.torch import save_file
from torch import nn

from networks.adversary.backbones import BACKBONES, PUBLISHED, ViTReadout, build_backbone
from networks.adversary.discriminator import ProjectedDiscriminator


@pytest.mark.parametrize("case", cases("mac", "vit_readout"))
def test_readout(case):
    params, given = case.spec["params"], inputs(case)
    net = ViTReadout(params["features"], params["vit_features"], params["start_index"], params["grid"])
    fill(net, case.spec["state_dict"], case)
    maps = net([given[f"tokens{i}"] for i in range(len(given))])
    results = {}
    for i, x in enumerate(maps):
        results |= {f"map{i}": x, f"map{i}_norm": x.norm(), f"map{i}_shape": torch.tensor(x.shape)}
    for role in case.spec["expect"]:
        expect(case, role, results[role])


# Stand-ins with the interface of timm's classes and random weights


class VisionTransformer(nn.Module):
    def __init__(self, embed_dim, num_prefix_tokens):
        super().__init__()
        self.embed_dim, self.num_prefix_tokens = embed_dim, num_prefix_tokens
        self.patch_embed = nn.Conv2d(3, embed_dim, 16, stride=16)
        self.prefix = nn.Parameter(torch.randn(1, num_prefix_tokens, embed_dim))
        self.blocks = nn.Sequential(*[nn.Linear(embed_dim, embed_dim) for _ in range(12)])
        self.norm = nn.LayerNorm(embed_dim)

    def forward_features(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        return self.norm(self.blocks(torch.cat([self.prefix.expand(len(x), -1, -1), x], dim=1)))


class EfficientNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_stem, self.bn1 = nn.Conv2d(3, 32, 3, 2, 1), nn.Sequential(nn.BatchNorm2d(32), nn.ReLU6())
        widths, strides = [32, 16, 24, 40, 80, 112, 192, 320], [1, 2, 2, 2, 1, 2, 1]
        self.blocks = nn.Sequential(*[nn.Conv2d(a, b, 3, s, 1, groups=8) for a, b, s in
                                      zip(widths[:-1], widths[1:], strides, strict=True)])  # fmt: skip
        self.conv_head = nn.Conv2d(320, 1280, 1)


@pytest.fixture
def timm(monkeypatch):
    module = types.ModuleType("timm")
    module.calls = []

    def create_model(name, pretrained, num_classes):
        module.calls.append((name, pretrained, num_classes))
        if name == "tf_efficientnet_lite0":
            return EfficientNet()
        return VisionTransformer(32, 2 if "distilled" in name else 1)

    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_backbones_yield_four_maps(timm, name):
    backbone = build_backbone(name, img_resolution=32).eval()
    assert timm.calls == [(name, True, 0)]
    maps = backbone(torch.rand(1, 3, 32, 32))
    assert [list(x.shape) for x in maps] == [[1, c, s, s] for c, s in
                                             zip(backbone.channels, backbone.map_sizes, strict=True)]  # fmt: skip
    if name == "tf_efficientnet_lite0":
        assert backbone.channels == [24, 40, 112, 320]


def test_transformer_taps_are_block_outputs_without_prefix(timm):
    backbone = build_backbone("deit_tiny_distilled_patch16_224", img_resolution=224, weights="random")
    x = torch.rand(1, 3, 224, 224)
    tokens = backbone.model.patch_embed(backbone.prepare(x)).flatten(2).transpose(1, 2)
    wanted = []
    for i, block in enumerate(backbone.model.blocks):  # a stand-in's blocks treat every token alone
        tokens = block(tokens)
        if i in (2, 5, 8, 11):
            wanted.append(torch.cat([torch.zeros(1, 2, 32), tokens], dim=1))
    for own, other in zip(backbone(x), backbone.readout(wanted), strict=True):
        torch.testing.assert_close(own, other)
    assert not any(block._forward_hooks for block in backbone.model.blocks)


def test_two_transformers_do_not_mix(timm):
    names = ["deit_small_distilled_patch16_224", "vit_base_patch16_224"]
    disc = ProjectedDiscriminator(names, img_resolution=16, img_channels=1, cout=4, label_dim=2)
    logits = disc(torch.rand(2, 1, 16, 16), torch.eye(2))
    assert [list(x.shape) for x in logits] == [[2, 64], [2, 64]]


def test_resizing(timm):
    vit = build_backbone("vit_base_patch16_224", img_resolution=256)
    assert vit.prepare(torch.rand(1, 3, 256, 256)).shape[2:] == (224, 224)
    large = build_backbone("tf_efficientnet_lite0", img_resolution=256)
    assert large.prepare(torch.rand(1, 3, 256, 256)).shape[2:] == (256, 256)
    small = build_backbone("tf_efficientnet_lite0", img_resolution=200)
    assert small.prepare(torch.rand(1, 3, 200, 200)).shape[2:] == (224, 224)


def test_preparation_closed_form(timm):
    deit = build_backbone("deit_tiny_distilled_patch16_224", img_resolution=8)
    white = deit.prepare(torch.ones(1, 1, 8, 8))
    wanted = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(white, wanted.reshape(1, 3, 1, 1).expand(1, 3, 224, 224))
    light = build_backbone("light", img_resolution=8)
    x = torch.rand(1, 3, 8, 8) * 2 - 1
    torch.testing.assert_close(light.prepare(x), x)


@pytest.mark.parametrize(("resolution", "sizes"), [(8, [8, 4]), (9, [9, 5]), (16, [16, 8, 4]), (28, [28, 14, 7, 4]),
                                                   (64, [64, 32, 16, 8]), (200, [50, 25, 13, 7])])  # fmt: skip
def test_light_maps(resolution, sizes):
    light = build_backbone("light", img_resolution=resolution, img_channels=2)
    maps = light(torch.rand(1, 2, resolution, resolution))
    assert light.map_sizes == sizes
    assert [list(x.shape) for x in maps] == [[1, 32 << i, s, s] for i, s in enumerate(sizes)]


def test_light_keeps_the_scale_of_its_input():
    light = build_backbone("light", img_resolution=64)
    for x in light(torch.randn(4, 3, 64, 64)):
        assert 0.3 < x.square().mean().sqrt() < 3


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "deit_tiny_distilled_patch16_224"])
def test_weights_from_a_file(timm, tmp_path, name, suffix):
    source = timm.create_model(name, pretrained=False, num_classes=0)
    state = source.state_dict() | {"head.weight": torch.zeros(10, 3)}  # a classifier is passed over
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"model": state}, path)
    else:
        save_file(state, path)
    timm.calls.clear()
    one = build_backbone(name, img_resolution=32, weights=path).eval()
    assert timm.calls == [(name, False, 0)]
    loaded = one.state_dict()
    key, own = (("conv_stem.weight", "layer0.0.weight") if "lite0" in name else
                ("blocks.7.weight", "model.blocks.7.weight"))  # fmt: skip
    assert torch.equal(loaded[own], state[key])


def test_light_needs_no_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert build_backbone("light", img_resolution=8)(torch.rand(1, 3, 8, 8))[0].shape == (1, 32, 8, 8)


# Bad input


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="no backbone is called 'vgg': use one of " + ", ".join(BACKBONES)):
        build_backbone("vgg", img_resolution=32)


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"needs the package timm.*pip install timm, or use --backbones=light"):
        build_backbone("tf_efficientnet_lite0", img_resolution=32)


def test_weights_that_cannot_be_fetched(timm, monkeypatch):
    def fails(*_args, **_options):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(timm, "create_model", fails)
    wanted = r"could not fetch the weights of vit_base_patch16_224 \(OSError: no route to host and more\)"
    with pytest.raises(ValueError, match=wanted):
        build_backbone("vit_base_patch16_224", img_resolution=32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file .* with weights of tf_efficientnet_lite0"),
        ({"a": torch.zeros(1)}, "does not hold weights of tf_efficientnet_lite0: .* first conv_stem.weight"),
        ([1, 2], "holds a list, not a state dict"),
        (b"junk", "is not a file of PyTorch weights"),
    ],
)
def test_bad_weights_file(timm, tmp_path, content, message):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        build_backbone("tf_efficientnet_lite0", img_resolution=32, weights=path)


def test_damaged_safetensors(timm, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"weights\.safetensors"):
        build_backbone("tf_efficientnet_lite0", img_resolution=32, weights=path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_backbone("light", img_resolution=7), "at least 8 x 8 pixels, got 7 x 7"),
        (lambda: build_backbone("light", img_resolution=8, weights="w.pth"), "takes no weights, got w.pth"),
        (lambda: build_backbone("vit_base_patch16_224", img_resolution=8, img_channels=4), "not 4 channels"),
        (lambda: build_backbone("light", img_resolution=8)(torch.rand(1, 2, 8, 8)), "3 channels, or grey ones, got 2"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()

import pytest
import torch
from golden_cases import cases
from mac_discriminator import golden_discriminator
from mac_golden import Draws, expect, fill, inputs
from torch import nn

from networks.adversary.backbones import build_backbone
from networks.adversary.discriminator import (
    MultiScaleHeads,
    ProjectedDiscriminator,
    Projector,
    SpectralConv2d,
)
from training.losses.adversarial import fake_loss, generator_loss, real_loss


def features_of(case):
    given = inputs(case)
    return [given[f"feature{i}"] for i in range(sum(name.startswith("feature") for name in given))], given


@pytest.mark.parametrize("case", cases("mac", "projector"))
def test_projector(case):
    params = case.spec["params"]
    net = Projector(params["in_channels"], params["cout"], expand=params["expand"])
    fill(net, case.spec["state_dict"], case)
    features, _ = features_of(case)
    assert net.channels == params["csm_channels"]
    ccm = net.mix_channels(features)
    assert [x.shape[1] for x in ccm] == params["ccm_channels"]
    results = {f"ccm{i}": x for i, x in enumerate(ccm)} | {f"csm{i}": x for i, x in enumerate(net(features))}
    for role in case.spec["expect"]:
        expect(case, role, results[role])


@pytest.mark.parametrize("case", cases("mac", "discriminator_heads"))
def test_heads(case):
    params = case.spec["params"]
    n = params["num_discs"]
    rows = params["embedding_rows"] if params["cond"] else 0
    net = MultiScaleHeads(params["channels"][:n], params["nominal_resolutions"][:n], rows, params["embedding_dim"])
    fill(net, case.spec["state_dict"], case)
    net.train(params["train"])
    features, given = features_of(case)
    for x in features:
        x.requires_grad_()
    logits = net(features, given["labels"])
    logits.mean().backward()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    names = case.spec["expect"]["bn_norms"]["names"]
    results = {
        "logits": logits,
        "gradnorm_params": norms(p.grad for p in net.parameters()),
        "gradnorm_features": norms(x.grad for x in features),
        "bn_norms": norms(state[name] for name in names),
        "logits_second_call": net(features, given["labels"]),
    }
    for role in case.spec["expect"]:
        expect(case, role, results[role])


@pytest.mark.parametrize("case", cases("mac", "projected_discriminator"))
def test_projected_discriminator(case):
    disc = golden_discriminator(case.spec["params"])
    fill(disc, case.spec["state_dict"], case)
    disc.train(case.spec["params"]["train"])
    given = inputs(case)
    streams = {name: Draws(spec["seed"]) for name, spec in case.spec["draws"].items()}
    image, labels = given["image"].requires_grad_(), given["labels"]

    disc.requires_grad_(False)
    logits = disc(image, labels, streams["first"])
    gloss = generator_loss(logits).sum()
    (dx,) = torch.autograd.grad(gloss, image)

    disc.requires_grad_(True)
    dgen = fake_loss(disc(image.detach(), labels, streams["fake"])).sum()
    dreal = real_loss(disc(given["real"], labels, streams["real"])).sum()
    (dgen + dreal).backward()
    parameters = dict(disc.named_parameters())
    names = case.spec["expect"]["dgrad"]["names"]
    assert {name for name, p in parameters.items() if p.grad is not None} == set(names)
    results = {"logits": torch.cat(logits), "gloss": gloss, "dx": dx, "dgen": dgen, "dreal": dreal}
    results["dgrad"] = norms(parameters[name].grad for name in names)
    for role in case.spec["expect"]:
        expect(case, role, results[role])


def norms(tensors):
    return torch.stack([x.norm() for x in tensors])


# Closed forms and invariants


def test_spectral_norm_converges_to_the_largest_singular_value():
    layer = SpectralConv2d(3, 5, 4)
    for _ in range(200):
        weight = layer.weight()
    torch.testing.assert_close(torch.linalg.matrix_norm(weight.flatten(1), 2), torch.tensor(1.0))
    layer.eval()
    before = layer.weight_u.clone()
    layer(torch.rand(1, 3, 8, 8))
    assert torch.equal(layer.weight_u, before)


def test_spectral_norm_like_torch():
    own = SpectralConv2d(3, 5, 4, stride=2, padding=1)
    other = nn.utils.spectral_norm(nn.Conv2d(3, 5, 4, stride=2, padding=1))
    other.load_state_dict(own.state_dict())
    x = torch.rand(2, 3, 8, 8)
    for net in (own, other):
        (net(x) + 2 * net(-x)).square().sum().backward()  # two forwards before the backward
    torch.testing.assert_close(own.weight_orig.grad, other.weight_orig.grad)
    for key, value in own.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[key])


def test_projection_types():
    features = [torch.rand(1, c, s, s) for c, s in ((5, 8), (6, 4), (7, 2))]
    none, channels, both = (Projector([5, 6, 7], 4, expand=False, proj_type=t) for t in range(3))
    assert none(features)[1] is features[1]
    assert [x.shape[1:] for x in channels(features)] == [(4, 8, 8), (4, 4, 4), (4, 2, 2)]
    assert [x.shape[1:] for x in both(features)] == [(4, 16, 16), (4, 8, 8), (4, 4, 4)]
    for net in (none, channels, both):
        assert net.channels == [x.shape[1] for x in net(features)]
    with pytest.raises(ValueError, match="no projection of type 3"):
        Projector([5], 4, proj_type=3)


def light(resolution=16, channels=3, **options):
    return ProjectedDiscriminator(["light"], img_resolution=resolution, img_channels=channels, cout=8, **options)


@pytest.mark.parametrize("resolution", [8, 9, 10, 12, 15, 16, 28, 31, 32, 33, 64, 100, 128])
def test_light_takes_any_size(resolution):
    channels = 1 + resolution % 5
    disc = light(resolution, channels)
    images = torch.rand(1, channels, resolution, resolution, requires_grad=True)  # batch norm sees one image
    (logits,) = disc(images)
    generator_loss([logits]).sum().backward()
    assert torch.isfinite(images.grad).all()
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize("proj_type", [0, 1, 2])
def test_every_projection_fits_its_heads(proj_type):
    (logits,) = light(32, proj_type=proj_type)(torch.rand(2, 3, 32, 32))
    assert logits.shape[0] == 2


def test_frozen_parts_stay_frozen_and_in_eval_mode():
    disc = light()
    disc.train().requires_grad_(True)
    features, heads = disc.feature_networks["light"], disc.discriminators["light"]
    assert not any(m.training for m in features.modules())
    assert all(m.training for m in heads.modules())
    assert not any(p.requires_grad for p in features.parameters())
    assert all(p.requires_grad for p in heads.parameters())
    disc.requires_grad_(False)
    assert not any(p.requires_grad for p in disc.parameters())


def test_fewer_heads_judge_the_finest_maps():
    torch.manual_seed(0)
    disc = light(32)
    fewer = light(32, num_discs=2)
    fewer.load_state_dict({k: v for k, v in disc.state_dict().items() if k in fewer.state_dict()})
    x = torch.rand(2, 3, 32, 32)
    (short,), (long,) = fewer(x), disc(x)
    torch.testing.assert_close(short, long[:, : short.shape[1]])


def test_labels_change_logits_only_with_classes():
    labels = torch.eye(4)[[0, 1]]
    x = torch.rand(1, 3, 16, 16).repeat(2, 1, 1, 1)
    (plain,) = light()(x, labels)
    torch.testing.assert_close(plain[0], plain[1])
    (conditional,) = light(label_dim=4)(x, labels)
    assert not torch.allclose(conditional[0], conditional[1])


def test_each_backbone_gets_fresh_draws():
    seen = []

    def augment(images, rng):
        seen.append(rng)
        return images

    other = build_backbone("light", img_resolution=16)
    other.name = "second"
    disc = ProjectedDiscriminator(["light", other], img_resolution=16, cout=8, augment=augment)
    rng = object()
    assert len(disc(torch.rand(2, 3, 16, 16), rng=rng)) == 2
    assert seen == [rng, rng]


def test_it_learns_to_tell_two_textures_apart():
    torch.manual_seed(0)
    disc = light(8)
    optimizer = torch.optim.Adam(disc.discriminators.parameters(), lr=2e-3, betas=(0.0, 0.99))
    stripes = torch.tensor([-1.0, 1.0]).repeat(4)

    def textures():
        return (stripes + 0.3 * torch.randn(8, 3, 8, 8) for stripes in (stripes, stripes[:, None]))

    for _ in range(20):
        real, fake = textures()
        loss = (fake_loss(disc(fake)) + real_loss(disc(real))).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    disc.eval()  # running statistics: within one batch of equal images the normalisation removes their difference
    real, fake = textures()
    assert disc(real)[0].mean() > disc(fake)[0].mean() + 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ProjectedDiscriminator([], img_resolution=8), "at least one backbone"),
        (lambda: ProjectedDiscriminator(["light", "light"], img_resolution=8), "light is given twice"),
        (lambda: light(8, label_dim=5, embedding_rows=4), "5 classes need a table of at least as many rows, got 4"),
        (lambda: light()(torch.rand(2, 1, 16, 16)), r"shape \[3, 16, 16\], got \[2, 1, 16, 16\]"),
        (lambda: light()(torch.rand(0, 3, 16, 16)), "one or more images"),
        (lambda: light(label_dim=4)(torch.rand(2, 3, 16, 16)), r"one-hot labels of shape \[2, 4\], got none"),
        (lambda: light(label_dim=4)(torch.rand(2, 3, 16, 16), torch.eye(3)[:2]), r"labels of shape \[2, 3\]"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()

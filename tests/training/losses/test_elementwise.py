"""Random coefficients and the loss for element-wise noise levels."""

import pytest
import torch
from golden_cases import cases
from mac_golden import Draws, as_logged, expect, fill, grad_norms, inputs, precond_config, value

import networks
from networks.models.coefficients import CoefficientFamily
from torch_utils.rng import TorchRNG
from training.losses.denoising import loss_for
from training.losses.elementwise import EDMGammaLoss, RandomCoefficients
from training.methods.edm import EDMOptions
from training.options import CommonOptions

VARIANTS = {"reference": "published", "corrected": "defined"}


def coefficients(spec, channels=3, **family):
    given = {k: spec[k] for k in ("scale", "multidimensionality", "lpf")}
    if spec["lpf"]:
        given["gauss_kernel_sigma"] = spec["gauss_kernel_sigma"]
    return RandomCoefficients(
        resolution=spec["resolution"], family=CoefficientFamily(channels, spec["M"], **family),
        variant=VARIANTS[spec["variant"]], **given,
    )  # fmt: skip


@pytest.mark.parametrize("case", cases("mac", "coefficient_sampler"))
def test_golden_coefficients(case):
    p, rng = case.spec["params"], Draws(case.spec["draws"]["seed"])
    expect(case, "c", coefficients(p)(p["batch"], rng))
    assert rng.log == as_logged(case.spec["draws"]["order"])


@pytest.mark.parametrize("case", cases("mac", "pretrain_loss"))
def test_golden_loss(case):
    p, rng = case.spec["params"], Draws(case.spec["draws"]["seed"])
    assert p["augment"] is None
    net = networks.build(**precond_config(p)).train(p["train"])
    fill(net, case.spec["state_dict"], case)
    levels = {"P_mean": p["P_mean"], "P_std": p["P_std"]}
    if p["loss"] == "edm_gamma":
        c = p["coefficient"]
        family = {"rho": c["rho"], "k": c["k"], "t_max": c["t_max"]}
        loss_fn = EDMGammaLoss(sigma_data=p["sigma_data"], coefficients=coefficients(c, **family), **levels)
    else:
        loss_fn = loss_for(net, "EDMLoss", **levels)
    given = inputs(case)
    loss = loss_fn(net, given["images"], given["labels"], rng=rng)
    assert rng.log == as_logged(case.spec["draws"]["order"])
    expect(case, "loss", loss)
    expect(case, "mean", loss.mean())
    loss.mean().backward()
    norms = grad_norms(net.parameters())
    expect(case, "gradnorms", norms)
    expect(case, "gradnorm", norms.norm())


def family(**kwargs):
    return CoefficientFamily(3, **{"M": 3} | kwargs)


@pytest.mark.parametrize("lpf", [True, False])
@pytest.mark.parametrize("flags", ["111", "011", "101", "110", "000"])
def test_defined_coefficients_differ_where_they_may(flags, lpf):
    draw = RandomCoefficients(resolution=16, family=family(), multidimensionality=flags, lpf=lpf)
    c = draw(3, TorchRNG()).unflatten(1, (2, 3, 3))
    assert c.shape == (3, 2, 3, 3, 16, 16)
    assert c.abs().max() <= 0.05 * (1 + 1e-6)
    for axis, flag in zip((2, 4, 5), flags, strict=True):
        assert ((c - c.mean(axis, keepdim=True)).abs().max() > 1e-5) == (flag == "1")
    assert not torch.allclose(c[:, 0], c[:, 1])  # f and g are independent


def test_published_coefficients_are_one_map():
    draw = RandomCoefficients(resolution=32, family=family(), variant="published")
    assert draw(2, TorchRNG()).shape == (2, 1, 32, 32)


def test_loss_of_zero_coefficients_is_the_edm_loss():
    """c -> 0 is one level per image: the network called with gamma equals the network called with sigma."""
    net = networks.build("EDMGammaPrecond", img_resolution=8, img_channels=3, model_channels=16, channel_mult=[1],
                         num_blocks=1, dropout=0)  # fmt: skip
    images = torch.randn(2, 3, 8, 8)

    class Skip(Draws):
        def rand(self, shape, dtype=torch.float32, batch_dim=0):
            return torch.full(shape, 0.5)  # the middle of the range

    gamma_loss = EDMGammaLoss(coefficients=RandomCoefficients(resolution=8, family=family(), lpf=False))
    a = gamma_loss(net, images, rng=Skip(1))
    b = loss_for(net, "EDMLoss")(net, images, rng=Draws(1))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_labels_and_augmentation_reach_the_network():
    heard = {}

    def net(x, sigma, labels, **kwargs):
        heard.update(kwargs, labels=labels, sigma=sigma)
        return x

    def pipe(images, rng):
        return images * 0.5, torch.ones(len(images), 9)

    loss = EDMGammaLoss(coefficients=RandomCoefficients(resolution=8, family=family()))
    labels = torch.eye(2)
    loss(net, torch.randn(2, 3, 8, 8), labels, augment_pipe=pipe)
    assert heard["labels"] is labels
    assert heard["augment_labels"].shape == (2, 9)
    assert heard["gamma"].shape == (2, 3, 8, 8)
    assert heard["sigma"].shape == (2, 1, 1, 1)
    assert not heard["gamma"].requires_grad


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"multidimensionality": "1"}, "three digits"),
        ({"variant": "best"}, "choose from defined"),
        ({"scale": 0.0}, "positive"),
    ],
)
def test_bad_coefficients(kwargs, words):
    with pytest.raises(ValueError, match=words):
        RandomCoefficients(resolution=8, family=family(), **kwargs)


def test_options_belong_to_their_preconditioning():
    given = {"outdir": "a", "data": "b"}
    with pytest.raises(ValueError, match="--basis-num belongs to --precond=edm_gamma"):
        EDMOptions(**given, precond="edm_alpha", basis_num=3).loss_kwargs()
    options = EDMOptions(**given, precond="edm_gamma", scale=0.1, p_mean=-1.0)
    assert options.loss_kwargs() == {"P_mean": -1.0}
    assert options.coefficient_settings()["scale"] == 0.1
    assert options.coefficient_settings()["basis_num"] == 5
    assert issubclass(EDMOptions, CommonOptions)


def test_sources_are_read():
    assert value(None, {"normal": 1, "shape": [2], "ops": [["mul", 0.0]]}).tolist() == [0, 0]

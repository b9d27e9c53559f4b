"""Networks, noise tables and denoisers of published checkpoints against numbers of their original code."""

import math

import pytest
import torch
from checkpoint_golden import expect, expect_all, filled, has, make, value
from golden_cases import cases

import networks
from networks.models.autoencoder import mean_and_std
from networks.models.noise_precond import VPLevels, denoise, log_probability_slope
from samplers import Field, get_schedule
from samplers.guidance import cfg, guide
from torch_utils.noise_table import NoiseTable, alphas_cumprod, betas_of


def forward_inputs(case):
    context = value(case, "context") if has(case, "context") else None
    labels = value(case, "y").long() if has(case, "y") else None
    return value(case, "x"), value(case, "t").float(), labels, context


@pytest.mark.parametrize("case", cases("checkpoints", "unet_forward"))
def test_unet(case):
    net = filled(case, case.spec["params"]["network"])
    x, t, labels, context = forward_inputs(case)
    out = net(x, t, labels, context)
    expect_all(case, out=out)
    if labels is not None:  # one-hot rows are the same classes
        rows = torch.nn.functional.one_hot(labels, net.label_emb.num_embeddings).float()
        torch.testing.assert_close(net(x, t, rows, context), out, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", cases("checkpoints", "unet_probes"))
def test_unet_probes(case):
    net = filled(case, case.spec["params"]["network"])
    seen = []
    hooks = [
        net.get_submodule(name).register_forward_hook(lambda m, a, out: seen.append(out))
        for name in case.spec["params"]["modules"]
    ]
    try:
        net(*forward_inputs(case))
    finally:
        for hook in hooks:
            hook.remove()
    expect_all(case, mean_rms=torch.stack([torch.stack([h.mean(), h.square().mean().sqrt()]) for h in seen]))


@pytest.mark.parametrize("case", cases("checkpoints", "classifier"))
def test_classifier(case):
    net = filled(case, case.spec["params"]["network"])
    x, t, y = value(case, "x"), value(case, "t").float(), value(case, "y").long()
    expect_all(case, logits=net(x, t), gradient=log_probability_slope(net, x, t, y))


@pytest.mark.parametrize("case", cases("checkpoints", "autoencoder_decode"))
def test_decode(case):
    net, z = filled(case, case.spec["params"]["network"]), value(case, "z")
    vq = hasattr(net, "quantize")
    results = {"image": net.decode(z, case.spec["params"]["quantize"]) if vq else net.decode(z)}
    if "codes" in case.spec["expect"]:
        results["codes"] = net.codes(z)
    expect_all(case, **results)


@pytest.mark.parametrize("case", cases("checkpoints", "autoencoder_encode"))
def test_encode(case):
    net, image = filled(case, case.spec["params"]["network"]), value(case, "image")
    if "latent" in case.spec["expect"]:
        expect_all(case, latent=net.encode(image))
    else:
        moments = net.moments(image)
        mean, std = mean_and_std(moments)
        expect_all(case, moments=moments, mean=mean, std=std)
        torch.testing.assert_close(net.encode(image, torch.ones_like(mean)), mean + std)


@pytest.mark.parametrize("case", cases("checkpoints", "network_keys"))
def test_full_size_keys(case):
    params = case.spec["params"]
    with torch.device("meta"):
        if params["type"] == "edm":
            config = dict(params["config"])
            net = networks.build(config.pop("wrapper"), **config)
        else:
            net = make(params["type"], params["config"])
    state = net.state_dict()
    assert {k: list(v.shape) for k, v in state.items()} == case.spec["expect"]["state_dict"]["value"]
    counted = sum(v.numel() for k, v in state.items() if not k.endswith("resample_filter"))
    expect(case, "n_tensors", len(state))
    expect(case, "n_params", counted)


def table_of(schedule):
    dtype = torch.float64 if schedule["family"] == "adm" else torch.float32
    return alphas_cumprod(betas(schedule), dtype)


def betas(schedule):
    names = ("kind", "steps", "beta_start", "beta_end", "s", "max_beta")
    return betas_of(**{k: schedule[k] for k in names if schedule.get(k) is not None})


def levels_of(schedule):
    if schedule["kind"] == "vp-continuous":
        return VPLevels(schedule["beta_d"], schedule["beta_min"], epsilon_t=schedule["epsilon_t"])
    return NoiseTable(table_of(schedule))


@pytest.mark.parametrize("case", cases("checkpoints", "beta_schedule"))
def test_beta_schedule(case):
    schedule = case.spec["params"]["schedule"]
    exact = alphas_cumprod(betas(schedule))
    expect_all(case, betas=betas(schedule), alphas_cumprod=table_of(schedule), sigma=((1 - exact) / exact).sqrt())


@pytest.mark.parametrize("case", cases("checkpoints", "sigma_of_t"))
def test_sigma_of_t(case):
    expect_all(case, sigma=levels_of(case.spec["params"]["schedule"]).sigma(value(case, "t")))


@pytest.mark.parametrize("case", cases("checkpoints", "t_of_sigma"))
def test_t_of_sigma(case):
    levels, sigma = levels_of(case.spec["params"]["schedule"]), value(case, "sigma")
    results = {"t": levels.sigma_inv(sigma), "c_noise": levels.network_time(sigma)}
    expect_all(case, **{role: results[role] for role in case.spec["expect"]})


@pytest.mark.parametrize("case", cases("checkpoints", "sigma_range"))
def test_sigma_range(case):
    levels = levels_of(case.spec["params"]["schedule"])
    expect_all(case, sigma_min=levels.sigma_min, sigma_max=levels.sigma_max)


class Stub:
    """A network of which a schedule sees the noise levels alone."""

    def __init__(self, levels, low, high):
        self.sigma, self.sigma_inv, self.sigma_min, self.sigma_max = levels.sigma, levels.sigma_inv, low, high


@pytest.mark.parametrize("case", cases("checkpoints", "time_schedule"))
def test_time_schedule(case):
    params, (low, high) = case.spec["params"], value(case, "sigma_min_max").double().tolist()
    net = Stub(levels_of(params["schedule"]), low, high)
    own = get_schedule(
        params["num_timestamps"], low, high, schedule_type=params["schedule_type"], schedule_rho=params["schedule_rho"],
        net=net,
    )  # fmt: skip
    expect_all(case, sigmas=own)


# Denoisers.


def denoiser_input(case):
    params = case.spec["params"]
    base, sigma = value(case, "base"), torch.tensor(params["sigma"], dtype=torch.float64)
    spread = params["x_scale"] * (params["x_var"] + sigma.square()).sqrt()
    return (spread.reshape(-1, *[1] * (base.ndim - 1)).to(base) * base), sigma.to(torch.float32)


def wrap(class_name, net, levels=None, classifier=None, **options):
    """A preconditioner of ours around a given trunk."""
    tiny = {"model_channels": 32, "num_res_blocks": 1, "channel_mult": [1], "attention_resolutions": []}
    out = networks.build(class_name, img_resolution=8, img_channels=3, network=tiny, **options)
    out.model = net
    if levels is not None:
        out.__class__ = type(class_name, (type(out),), {"levels": levels})
    out.classifier = classifier
    return out


class Formula(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function


def column(t):
    return t.reshape(-1, 1, 1, 1)


def adm(case, name):
    if isinstance(name, str):
        return filled(case, name)
    assert name["formula"] == "concat([0.8*x+0.02*cos(t/100)+0.01*y, 7*ones_like(x)], channels)"
    return Formula(
        lambda x, t, class_labels: torch.cat(
            [0.8 * x + 0.02 * torch.cos(column(t) / 100) + 0.01 * column(class_labels), 7 * torch.ones_like(x)], 1
        )
    )


def classifier(case, name):
    if isinstance(name, str):
        return filled(case, name)
    assert name["formula"] == "logits_k=sum_chw(x*W_k)/4+0.0001*t*k"
    weight = value(case, "W")
    k = torch.arange(len(weight))
    return Formula(lambda x, t: torch.einsum("bchw,kchw->bk", x, weight) / 4 + 0.0001 * t[:, None] * k)


@pytest.mark.parametrize("case", cases("checkpoints", "denoiser_classifier_guided"))
def test_classifier_guided(case):
    params, (x, sigma) = case.spec["params"], denoiser_input(case)
    y = value(case, "y").long()
    net = wrap(
        "NoisePrecond", adm(case, params["network"]), levels_of(params["schedule"]),
        classifier(case, params["classifier"]), label_dim=10, clip_denoised=params["clip_denoised"],
    )  # fmt: skip
    net.label_dim, net.sees_classes = int(y.max()) + 1, True
    expect_all(case, D=net(x, sigma, y, guidance_rate=params["guidance_rate"]))
    assert net.classifier_calls == (len(x) if params["guidance_rate"] else 0)


@pytest.mark.parametrize("case", cases("checkpoints", "denoiser_cm"))
def test_consistency_denoiser(case):
    params, (x, sigma) = case.spec["params"], denoiser_input(case)
    net = params["network"]
    if isinstance(net, str):
        net = filled(case, net)
    else:
        assert net["formula"] == "0.3*x+sin(t/100)"
        net = Formula(lambda x, t, labels: 0.3 * x + torch.sin(column(t) / 100))
    labels = value(case, "y").long() if has(case, "y") else None
    own = wrap("CMPrecond", net, sigma_data=params["sigma_data"])
    if labels is not None:
        own.label_dim = net.label_emb.num_embeddings
        labels = torch.nn.functional.one_hot(labels, own.label_dim).float()
    expect_all(case, D=own(x, sigma, labels))


def latent_network(case):
    net = case.spec["params"]["network"]
    if isinstance(net, str):
        unet = filled(case, net)
        return lambda x, t, c=None: unet(x, t, None, c)
    assert net["formula"].startswith("0.9*x+0.05*sin(0.01*t)+0.1*mean(c over tokens and features)")

    def formula(x, t, c=None):
        out = 0.9 * x + 0.05 * torch.sin(0.01 * column(t))
        return out if c is None else out + 0.1 * column(c.mean(dim=(1, 2)))

    return formula


@pytest.mark.parametrize("case", cases("checkpoints", "denoiser_cfg"))
def test_latent_denoiser(case):
    params, (x, sigma) = case.spec["params"], denoiser_input(case)
    levels, eps = levels_of(params["schedule"]), latent_network(case)

    def net(x, sigma, c=None):
        return denoise(lambda x_in, t: eps(x_in, t, c), levels, x, sigma)

    if params["guidance_type"] == "uncond":
        field = guide(Field(net), "uncond", params["guidance_rate"])
    else:
        cond, uncond = (value(case, role) if has(case, role) else None for role in ("cond", "uncond"))
        field = cfg(Field(net), params["guidance_rate"], class_labels=cond, uncond=uncond)
    expect_all(case, D=field.data(x, sigma))


@pytest.mark.parametrize("case", cases("checkpoints", "latent_decode"))
def test_latent_decode(case):
    params, latent = case.spec["params"], value(case, "latent")
    stage = filled(case, params["network"])
    z = latent / params["latent_scale"]
    expect_all(case, image=stage.decode(z, params["quantize"]) if hasattr(stage, "quantize") else stage.decode(z))


def test_convention_of_the_continuous_time():
    """The time of the continuous process leads the table's index by up to 3.4."""
    table = NoiseTable(alphas_cumprod(betas_of("linear", 1000, 1e-4, 0.02)))
    index = torch.tensor([0, 100, 500, 750, 999])
    sigma = table.sigma((index + 1) / 1000)
    lead = VPLevels().network_time(sigma) - table.network_time(sigma)
    torch.testing.assert_close(lead, torch.tensor([0.92, 0.51, 1.1, 2.0, 3.4]).double(), rtol=0.06, atol=0)
    assert math.isclose(VPLevels().sigma_max, 152.1670, rel_tol=1e-6)

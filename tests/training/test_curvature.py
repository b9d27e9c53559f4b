"""Joint training of coupling and velocity: golden runs, closed forms, options, snapshots."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from golden_cases import cases, fill_weights
from mac_golden import expect, fill, inputs, value
from torch import nn

import networks
from networks.encoder import CouplingEncoder
from networks.flow_configs import to_kwargs
from networks.mlp import MLP
from samplers.native import sample_native, uniform_times
from samplers.path import VP, Linear
from samplers.straightness import trajectory_curvature
from training.curvature import build, ema_factor, optimizer_of, warmup_lr
from training.curvature_options import HYPER, CurvatureOptions
from training.ema import update_ema
from training.flow_loss import flow_loss, gaussian_kl
from training.prior import measure_prior, with_prior


class Given:
    """The `rng` interface over given tensors, in the order of the draws."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def randn_like(self, x):
        assert self.draws[0].shape == x.shape
        return self.draws.pop(0)

    def rand(self, shape, dtype=torch.float32, batch_dim=0):
        assert list(self.draws[0].shape) == list(shape)
        return self.draws.pop(0)


def fill_by_name(module):
    """The weight rule of the area for networks without an entry of their own: buffers stay as constructed."""
    return fill_weights(module, [name for name, _ in module.named_buffers()])


def make_optimizer(spec, parameters):
    more = {"betas": tuple(spec["betas"]), "eps": spec["eps"], "lr": spec["lr"]}
    if spec["name"] == "adam":
        return torch.optim.Adam(parameters, weight_decay=spec["weight_decay"], **more)
    return torch.optim.AdamW(parameters, weight_decay=spec["weight_decay"], **more)


@pytest.mark.parametrize("case", cases("curvature", "kl", "kl_2d"))
def test_kl(case):
    given, p = inputs(case), case.spec["params"]
    prior = {}
    if case.kind == "kl_2d":
        prior = {"variance": torch.tensor(p["prior_var"]), "mean": torch.tensor(p["prior_mean"])}
    expect(case, "kl", gaussian_kl(given["mu"], given["logvar"], **prior).mean() + p.get("offset", 0))


@pytest.mark.parametrize("case", cases("curvature", "path"))
def test_path(case):
    given, p = inputs(case), case.spec["params"]
    path = Linear() if p["path"] == "linear" else VP(p["beta_d"], p["beta_min"])
    t = given["u"] * (1 - p["t_eps"]) + p["t_eps"]
    level = t.reshape(len(t), *[1] * (given["x"].ndim - 1))
    own = {
        "t": t, "x_t": path.mix(given["x"], given["z"], level),
        "target": path.target(given["x"], given["z"], level, "velocity"),
        "alpha": path.alpha(t), "dalpha": path.d_alpha(t), "dsigma": path.d_sigma(t),
    }  # fmt: skip
    for role, spec in case.spec["expect"].items():
        expect(case, role, own[role].reshape(case.shared(spec["array"]).shape))


@pytest.mark.parametrize("case", cases("curvature", "train_image"))
def test_train_image(case):
    p = case.spec["params"]
    net = networks.build(**to_kwargs(p["decoder"]["config"])).train(p["train"])
    fill_by_name(net.model)
    encoder = None
    if p["encoder"] is not None:
        encoder = fill_by_name(networks.build(**to_kwargs(p["encoder"]["config"], encoder=True))).train(p["train"])
    parts = {"enc": encoder, "dec": net.model}
    named = {f"{k}/{n}": w for k, m in parts.items() if m is not None for n, w in m.named_parameters()}
    assert list(named) == p["parameter_order"]
    optimizer = make_optimizer(p["optimizer"], list(named.values()))
    average = {name: w.detach().clone() for name, w in named.items()}
    losses, lrs, norms = [], [], None
    for i, sources in enumerate(case.spec["step_inputs"]):
        given = {k: value(case, s) for k, s in sources.items()}
        optimizer.zero_grad()
        optimizer.param_groups[0]["lr"] = warmup_lr(i, p["optimizer"]["lr"], p["warmup"])
        rng = Given(given["eps"], given["u"])
        call = None if encoder is None else lambda x, eps: encoder(x, eps, p["encoder_time"])
        out = flow_loss(net, call, given["x"], beta=p["beta"], rng=rng, t_eps=p["t_eps"])
        out.total.mean().backward()
        norms = [w.grad.double().norm() for w in named.values()] if norms is None else norms
        optimizer.step()
        losses.append([float(term.mean()) for term in out])
        lrs.append(optimizer.param_groups[0]["lr"])
        beta = ema_factor(i, p["ema_decay"], p["ema_after"])
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), list(named.values()), 1 - beta)
    own = {
        "losses": np.array(losses), "lrs": np.array(lrs), "grad_norm_step0": np.array(norms),
        "param_norm_final": np.array([w.detach().double().norm() for w in named.values()]),
        "ema_norm_final": np.array([w.double().norm() for w in average.values()]),
    }  # fmt: skip
    for role in case.spec["expect"]:
        group, _, name = role.partition("/")
        result = own[role] if role in own else (named if group == "final" else average)[name]
        expect(case, role, result)


def points_net(spec):
    assert spec["arch"] == "mlp"
    return MLP(1, spec["input_dim"], spec["output_dim"], hidden=spec["hidden"])


@pytest.mark.parametrize("case", cases("curvature", "train_2d"))
def test_train_2d(case):
    p, names = case.spec["params"], case.spec["state_dicts"]
    net = networks.build("VelocityNetwork", img_resolution=1, img_channels=2, model_type="MLP",
                         path=p["path"], hidden=p["velocity"]["hidden"])  # fmt: skip
    fill(net.model, names["velocity"], case, area="curvature")
    encoder = None
    if p["encoder"] is not None:
        encoder = CouplingEncoder(1, 2, model_type="MLP", hidden=p["encoder"]["hidden"])
        fill(encoder.encoder, names["encoder"], case, area="curvature")
    assert p["prior_mean"] == [0.0, 0.0]  # the product's priors are centred
    path = Linear() if p["path"] == "linear" else VP(p["beta_d"], p["beta_min"])
    optimizer = make_optimizer(p["optimizer"], [*(encoder.parameters() if encoder else ()), *net.parameters()])
    std, losses = torch.tensor(p["prior_var"]).sqrt(), []
    for sources in case.spec["step_inputs"]:
        given = {k: value(case, s) for k, s in sources.items()}
        optimizer.zero_grad()
        rng = Given(given["eps"], given["u"])
        out = flow_loss(net, encoder, given["x"], beta=p["beta"], rng=rng, path=path, prior_std=std, t_eps=p["t_eps"])
        out.total.mean().backward()
        optimizer.step()
        kl = float(out.kl.mean()) + (p["kl_offset"] if encoder else 0)
        losses.append([float(out.flow_matching.mean()) + p["beta"] * kl * (encoder is not None),
                       float(out.flow_matching.mean()), kl])  # fmt: skip
    states = []
    steps = p["trajectory"]
    with torch.no_grad():
        z = inputs(case)["traj_start"]
        end = sample_native(
            net, z, uniform_times(steps["N"], steps["solver"]), solver=steps["solver"],
            trace=lambda step: states.append(step.x),
        )  # fmt: skip
    own = {"losses": np.array(losses), "traj": torch.stack([*states, end])}
    own |= {f"flow/{k}": v for k, v in net.model.state_dict().items()}
    own |= {f"enc/{k}": v for k, v in encoder.encoder.state_dict().items()} if encoder else {}
    for role in case.spec["expect"]:
        expect(case, role, own[role])


@pytest.mark.parametrize("case", cases("curvature", "ema"))
def test_ema(case):
    p = case.spec["params"]
    start = inputs(case)
    net = nn.ParameterDict({k: nn.Parameter(v.clone()) for k, v in start.items()})
    average = nn.ParameterDict({k: nn.Parameter(v.clone()) for k, v in start.items()})
    optimizer = torch.optim.SGD(net.parameters(), lr=p["optimizer"]["lr"])
    own = {}
    for i, sources in enumerate(case.spec["step_inputs"]):
        for name, source in sources.items():
            net[name.replace("grad", "p")].grad = value(case, source)
        optimizer.step()
        update_ema(average, net, ema_factor(i, p["ema_decay"], p["ema_after"]))
        own |= {f"{k}_step{i}": v.detach().clone() for k, v in net.items()}
        own |= {f"ema{k[1:]}_step{i}": v.detach().clone() for k, v in average.items()}
    # an exchange leaves the average in the parameters' place
    own |= {f"swapped_{k}": v.detach() for k, v in average.items()}
    own |= {f"swapped_ema{k[1:]}": v.detach() for k, v in net.items()}
    for role in case.spec["expect"]:
        expect(case, role, own[role])


class _Linear:
    """Exact velocity of z = a x + b eps on Gaussian data of deviation s."""

    path, predicts = "linear", "velocity"

    def __init__(self, p):
        self.s, self.a, self.b = p["s"], p["a"], p["b"]

    def moments(self, t):
        c = (1 - t) + t * self.a
        variance = c**2 * self.s**2 + t**2 * self.b**2
        return variance, c * (self.a - 1) * self.s**2 + t * self.b**2

    def __call__(self, x, t, labels=None):
        variance, slope = self.moments(t)
        return x * (slope / variance)


@pytest.mark.parametrize("case", cases("curvature", "coupled_gaussian_exact"))
def test_coupled_gaussian_exact(case):
    """Quadrature of the definitions; the divergence is the product's."""
    from scipy.integrate import quad

    net = _Linear(p := case.spec["params"])
    end = net.moments(1.0)[0]
    cost = (p["a"] - 1) ** 2 * p["s"] ** 2 + p["b"] ** 2
    loss = quad(lambda t: cost - net.moments(t)[1] ** 2 / net.moments(t)[0], 0, 1, epsabs=1e-12)[0]

    def deviation(t):
        variance, slope = net.moments(t)
        return (1 - p["s"] / end**0.5 - slope / (variance * end) ** 0.5) ** 2

    bend = quad(deviation, 0, 1, epsabs=1e-12)[0]
    mu = p["a"] * p["s"] * torch.tensor([1.0, -1.0], dtype=torch.float64)[:, None]
    logvar = torch.full_like(mu, 2 * np.log(p["b"]))
    expect(case, "curvature", np.array(bend))
    expect(case, "fm_loss", np.array(loss))
    expect(case, "kl", gaussian_kl(mu, logvar).mean())


@pytest.mark.parametrize("case", cases("curvature", "coupled_gaussian_euler"))
def test_coupled_gaussian_euler(case):
    p, z, states = case.spec["params"], inputs(case)["noise"].double(), []
    end = sample_native(_Linear(p), z, uniform_times(p["N"]), trace=lambda step: states.append(step.x))
    expect(case, "curvature", trajectory_curvature([*states, end]))
    scale = (end / z).flatten()
    torch.testing.assert_close(scale, scale[:1].expand_as(scale))
    expect(case, "final_scale", scale[0])


# --- closed forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("s", "a", "b"), [(0.5, 0.3, 0.8), (0.2, 0.9, 0.5), (1.3, -0.4, 1.1)])
def test_identity_of_loss_and_curvature(s, a, b):
    """Loss + curvature = cost of the coupling - cost of the one that its flow induces, started from q(z)."""
    from scipy.integrate import quad

    net = _Linear({"s": s, "a": a, "b": b})
    end, cost = net.moments(1.0)[0], (a - 1) ** 2 * s**2 + b**2
    loss = quad(lambda t: cost - net.moments(t)[1] ** 2 / net.moments(t)[0], 0, 1, epsabs=1e-13)[0]
    states, z = [], torch.tensor([[end**0.5]], dtype=torch.float64)  # one deviation of q(z)
    times = uniform_times(8001, "heun")
    last = sample_native(net, z, times, solver="heun", trace=lambda step: states.append(step.x))
    curvature = float(trajectory_curvature([*states, last]))
    assert abs(loss + curvature - (cost - float((z - last).square()))) < 1e-6


def test_divergence_is_zero_at_the_prior():
    mu = torch.zeros(3, 2, 1, 1)
    std = torch.tensor([6.0, 1.0])[:, None, None]
    torch.testing.assert_close(gaussian_kl(mu, (std**2).log().expand_as(mu), std**2), torch.zeros(3))
    assert (gaussian_kl(mu, mu - 1, std**2) > 0).all()


def test_gradient_reaches_the_encoder_through_noise_and_target():
    encoder = CouplingEncoder(1, 2, model_type="MLP", hidden=4)
    x = torch.randn(5, 2, 1, 1)
    rng = Given(torch.randn_like(x), torch.rand(5, 1))
    flow_loss(lambda x_t, t, c: 0 * x_t, encoder, x, beta=0.0, rng=rng).total.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_independent_is_plain_flow_matching():
    x, eps, u = torch.randn(6, 2, 1, 1), torch.randn(6, 2, 1, 1), torch.rand(6, 1)
    out = flow_loss(lambda x_t, t, c: x_t, None, x, beta=7.0, rng=Given(eps, u))
    t = (u * (1 - 1e-5) + 1e-5)[..., None, None]
    want = (eps - x - ((1 - t) * x + t * eps)).square().mean((1, 2, 3))
    torch.testing.assert_close(out.flow_matching, want)
    torch.testing.assert_close(out.total, want)
    assert (out.kl == 0).all()


def test_batch_of_one():
    encoder = CouplingEncoder(1, 2, model_type="MLP", hidden=4)
    x = torch.randn(1, 2, 1, 1)
    assert flow_loss(lambda x_t, t, c: x_t, encoder, x, beta=1.0, rng=Given(x, torch.rand(1, 1))).total.shape == (1,)


def test_warm_up():
    assert [warmup_lr(i, 1.0, 4) for i in range(6)] == [0, 0.25, 0.5, 0.75, 0.75, 0.75]
    assert [warmup_lr(i, 1.0, 1) for i in range(3)] == [0, 1, 1]
    assert warmup_lr(0, 0.5, 0) == 0.5


# --- the start distribution -------------------------------------------------------------------------------------------


class _Affine(nn.Module):
    """An encoder with known moments: mu = A x + c, deviations s."""

    def __init__(self, matrix, offset, std):
        super().__init__()
        self.matrix, self.offset, self.std = matrix, offset, std

    def forward(self, x, eps):
        mu = (x.flatten(1) @ self.matrix.T + self.offset).reshape(x.shape)
        logvar = (2 * self.std.log()).expand(len(x), -1).reshape(x.shape)
        return mu + eps * (logvar / 2).exp(), mu, logvar


@pytest.mark.parametrize("rank", [0, 1, 4])
def test_measured_prior(rank):
    """The covariance is that of q(z) in full, with all directions; on the diagonal, without any."""
    g = torch.Generator().manual_seed(0)
    matrix, offset = torch.randn(4, 4, generator=g), torch.randn(4, generator=g)
    std = torch.rand(4, generator=g) + 0.2
    x = torch.randn(20_000, 4, 1, 1, generator=g)
    moments = measure_prior(_Affine(matrix, offset, std), x.split(512), rank)
    net = networks.build("VelocityNetwork", img_resolution=1, img_channels=4, model_type="MLP", hidden=3)
    twin = with_prior(net, moments)
    assert all(torch.equal(twin.state_dict()[k], v) for k, v in net.state_dict().items())
    z = twin.start_noise(torch.randn(50_000, 4, 1, 1, generator=g, dtype=torch.float64)).flatten(1)
    want = matrix @ matrix.T + std.square().diag()
    torch.testing.assert_close(z.mean(0).float(), offset, atol=0.05, rtol=0)
    cov = z.T.cov().float()
    if rank != 1:
        torch.testing.assert_close(cov, want if rank else want.diag().diag(), atol=0.15, rtol=0.05)
    assert abs(float(cov.trace() / want.trace()) - 1) < 0.25


def test_many_dimensions_are_projected():
    """Above the limit of the exact method: one direction of large variance is found, the rest keeps its trace."""
    u = torch.zeros(4096)
    u[:64] = 1 / 8
    g = torch.Generator().manual_seed(0)
    x = (torch.randn(256, 1, generator=g) * 8 * u).reshape(256, 1, 64, 64)

    def encoder(x, eps):
        return x, x, torch.zeros_like(x)

    moments = measure_prior(encoder, [x], rank=1)
    assert abs(float((moments["directions"][0] * u).sum())) > 0.99
    # variance 64 + 1 along u, in units of the deviations of its 64 elements, whose variance is about 2
    assert 28 < float(moments["gains"][0]) ** 2 < 37
    assert abs(float(moments["rest"]) ** 2 * 4095 + float(moments["gains"][0]) ** 2 - 4096) < 1
    with pytest.raises(ValueError, match="2 or more"):
        measure_prior(encoder, [x[:1]])


# --- options ----------------------------------------------------------------------------------------------------------


def options(**more):
    return CurvatureOptions(outdir="runs", data="digits.zip", **more)


def test_defaults_of_the_original_and_of_presets():
    plain = options()
    assert (plain.batch, plain.lr, plain.weight_prior, plain.optimizer) == (4, 3e-5, 10.0, "adamw")
    assert (plain.warmup_steps, plain.iterations, plain.ema_decay) == (0, 1_000_000, 0.9999)
    assert plain.total_kimg == 4000
    assert options(dataset="cifar10").batch == 4
    cifar = options(preset="cifar10", weight_prior=5.0)
    assert (cifar.batch, cifar.weight_prior, cifar.optimizer, cifar.xflip) == (128, 5.0, "adam", True)
    assert cifar.total_kimg == 64_000
    assert options(preset="ffhq").optimizer == "adamw"
    assert options(preset="cifar10", duration=0.0128).total_kimg == 13
    assert options(gpu="1").device == "cuda:1"


@pytest.mark.parametrize("name", HYPER)
def test_filled_options_stay_as_they_are(name):
    assert dataclasses.replace(options(preset=name), seed=3) == options(preset=name, seed=3)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"weight_prior": -1.0}, "0 or more"),
        ({"weight_prior": float("nan")}, "0 or more"),
        ({"iterations": 10, "duration": 1.0}, "--iterations and --duration"),
        ({"preset": "mnist", "dataset": "mnist"}, "leave one"),
        ({"independent": True, "config_en": "a.json"}, "no encoder"),
        ({"warmup_steps": 10, "lr_rampup": 1.0}, "warm"),
        ({"gpu": "0,1"}, "torchrun"),
        ({"weight_cur": 1.0}, "no effect"),
    ],
)
def test_bad_options(more, words):
    with pytest.raises(ValueError, match=words):
        options(**more)


class _Images:
    """The interface of a data set that `build` uses."""

    def __init__(self, shape=(1, 8, 8), n=12):
        self.image_shape, (self.num_channels, _, self.resolution) = list(shape), shape
        self.label_dim = 0
        g = torch.Generator().manual_seed(0)
        self.items = torch.randint(0, 256, [n, *shape], dtype=torch.uint8, generator=g).numpy()

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i], np.zeros(0, np.float32)


SMALL = {"unet_type": "songunet", "img_resolution": 8, "in_channels": 1, "model_channels": 8, "channel_mult": [1],
         "num_blocks": 1, "dropout": 0.0}  # fmt: skip


def write(path, **config):
    path.write_text(json.dumps(config))
    return str(path)


@pytest.fixture
def small(tmp_path):
    de, en = (write(tmp_path / f"{n}.json", **SMALL, out_channels=n) for n in (1, 2))
    return {"config_de": de, "config_en": en, "num_samples": 4, "N": 3}


@pytest.mark.parametrize(
    ("role", "change", "words"),
    [
        ("en", {"img_resolution": 4, "out_channels": 2}, "one size"),
        ("de", {"out_channels": 2}, "2 output channels"),
        ("de", {"out_channels": 1, "depth": 3}, "no field depth"),
    ],
)
def test_networks_that_do_not_fit(tmp_path, small, role, change, words):
    small[f"config_{role}"] = write(tmp_path / "changed.json", **(SMALL | change))
    with pytest.raises(ValueError, match=words):
        build(options(**small), _Images(), torch.device("cpu"))


def test_data_that_do_not_fit(small):
    with pytest.raises(ValueError, match="has 4 and 1: choose"):
        build(options(**small), _Images((1, 4, 4)), torch.device("cpu"))
    with pytest.raises(ValueError, match="--config-de and --config-en"):
        build(options(), _Images((3, 20, 20)), torch.device("cpu"))


def test_method(tmp_path, small):
    """Modules, averages, figures, picture and snapshot of a joint run."""
    method = build(options(**small), _Images(), torch.device("cpu"))
    assert list(method.modules) == ["encoder", "net"]
    averaged = {name: method.modules[a.module].eval() for name, a in method.averages.items()}
    assert set(method.figures(averaged)) == {"Curvature/uncond", "Curvature/reverse"}
    method.preview(tmp_path / "samples.png", averaged)
    assert (tmp_path / "samples.png").stat().st_size > 0
    method.save(tmp_path / "net.pkl", averaged, {"nimg": 0})
    net, encoder = networks.load_network(tmp_path / "net.pkl"), networks.load_encoder(tmp_path / "net.pkl")
    assert net.priors == ("matched", "standard")
    assert not net.gaussian_noise
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(encoder(x, x).z, averaged["encoder"](x, x).z)
    torch.testing.assert_close(net(x, 0.3), averaged["ema"](x, 0.3))


def test_independent_method(tmp_path, small):
    small.pop("config_en")
    method = build(options(independent=True, **small), _Images(), torch.device("cpu"))
    averaged = {name: method.modules[a.module] for name, a in method.averages.items()}
    assert list(method.modules) == ["net"]
    assert set(method.figures(averaged)) == {"Curvature/uncond"}
    method.save(tmp_path / "net.pkl", averaged, {})
    net = networks.load_network(tmp_path / "net.pkl")
    assert net.gaussian_noise
    assert net.priors == ("standard",)


def test_optimizers():
    p = [nn.Parameter(torch.zeros(1))]
    adam, adamw = optimizer_of("adam", 1e-3)(p), optimizer_of("adamw", 1e-3)(p)
    assert (adam.defaults["betas"], adam.defaults["weight_decay"]) == ((0.9, 0.999), 0)
    assert (adamw.defaults["betas"], adamw.defaults["weight_decay"]) == ((0.9, 0.9999), 0.1)

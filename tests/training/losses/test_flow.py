"""The joint loss: golden values and training runs, closed forms."""

import numpy as np
import pytest
import torch
from golden_cases import cases, fill_weights
from mac_golden import expect, fill, inputs, value
from torch import nn

import networks
from networks.models.encoder import CouplingEncoder
from networks.published.flow_configs import to_kwargs
from samplers.analysis.straightness import trajectory_curvature
from samplers.path import VP, Linear
from samplers.solvers.native import sample_native, uniform_times
from training.loop.ema import update_ema
from training.losses.flow import flow_loss, gaussian_kl
from training.methods.curvature import ema_factor, warmup_lr


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
    """Model type and sizes of a network for points."""
    names = {"mlp": ("MLP", ("hidden",)), "fourier_mlp": ("FourierMLP", ("channels", "num_layers"))}
    model_type, sizes = names[spec["arch"]]
    return {"model_type": model_type, **{k: spec[k] for k in sizes}}


@pytest.mark.parametrize("case", cases("curvature", "train_2d"))
def test_train_2d(case):
    p, names = case.spec["params"], case.spec["state_dicts"]
    net = networks.build(
        "VelocityNetwork", img_resolution=1, img_channels=2, path=p["path"], **points_net(p["velocity"])
    )
    fill(net.model, names["velocity"], case, area="curvature")
    encoder = None
    if p["encoder"] is not None:
        encoder = CouplingEncoder(1, 2, **points_net(p["encoder"]))
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

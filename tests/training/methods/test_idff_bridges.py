"""Every bridge of IDFF: its states are those of the path that samplers take, it trains, and its models are sampled."""

import math

import pytest
import torch

import networks
from networks.models.fusion import BRIDGES
from samplers.field import Facts, Field
from samplers.planning.options import SamplerOptions
from samplers.planning.plan import build_plan
from samplers.run import generate
from torch_utils.rng import BatchRNG
from training.data.toys import ToyDataset
from training.losses import idff
from training.losses.idff import Bridge, FusionLoss
from training.method import Batch
from training.methods.idff import IDFFOptions, build

SIGMA, STD = 0.3, 0.5


def options(bridge, **more):
    return IDFFOptions(outdir="runs", data="toy:moons:size=64", bridge=bridge, sigma=SIGMA, cbase=8, batch=16, **more)


def exact(bridge):
    """The network for Gaussian data of deviation STD: its clean estimate is known."""
    net = networks.build(
        "FusionNetwork", img_resolution=1, img_channels=2, model_type="SELUMLP", width=4, sigma=SIGMA,
        bridge_type=bridge,
    )  # fmt: skip
    path = Facts.of(net).path

    def heads(x, t, labels=None):
        t = torch.as_tensor(t, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        a, s = path.alpha(t), path.sigma(t)
        return a * STD**2 / (a**2 * STD**2 + s**2) * x, None

    net.heads = heads
    return net, path


def test_both_tables_have_the_same_bridges():
    assert set(BRIDGES) == set(idff.BRIDGES)


@pytest.mark.parametrize("bridge", BRIDGES)
def test_states_are_on_the_path(bridge):
    """Of independent noise: alpha data + sigma (unit noise); deviations of 20000 draws within 4 standard errors."""
    net, path = exact(bridge)
    g = torch.Generator().manual_seed(0)
    n = 20_000
    noise, eps = (torch.randn(n, 1, 1, 1, generator=g, dtype=torch.float64) for _ in range(2))
    for time in (0.0, 0.2, 0.7, 1.0):
        t = torch.full([n], time, dtype=torch.float64)
        x = Bridge(bridge, SIGMA).state(torch.full([n, 1, 1, 1], 2.0, dtype=torch.float64), noise, eps, t).x
        alpha, sigma = float(path.alpha(t[0])), float(path.sigma(t[0]))
        assert float(x.mean()) == pytest.approx(2 * alpha, abs=1e-12 + 4 * sigma / math.sqrt(n))
        assert float(x.std()) == pytest.approx(sigma, abs=1e-12 + 4 * sigma / math.sqrt(2 * n))
    assert net.sigma_min == pytest.approx(float(path.level_at(torch.zeros((), dtype=torch.float64))))


@pytest.mark.parametrize("bridge", BRIDGES)
@pytest.mark.parametrize(
    "given", [{"N": 200}, {"solver": "ipndm", "num_steps": 40}, {"start": "scaled", "num_steps": 40}]
)
def test_samples_have_the_deviation_of_the_data(bridge, given):
    """The flow of Gaussian data only scales: each sample is its noise times one number, known but for the steps."""
    net, _ = exact(bridge)
    plan = build_plan(net, SamplerOptions(**given))
    (batch,) = generate(net, range(64), plan, batch=64)
    x = batch.images.double().flatten()
    level = net.sigma_min if plan.kind == "native" else max(net.sigma_min, 0.002)
    expected = math.hypot(STD, level)
    plain = networks.build("FusionNetwork", img_resolution=1, img_channels=2, model_type="SELUMLP", width=4, sigma=0.0)
    unit = next(iter(generate(plain, range(64), lambda field, noise, labels, rng=None: noise, batch=64))).images
    factor = x / unit.double().flatten()
    assert factor.std() < 1e-4
    assert float(factor.mean()) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("bridge", BRIDGES)
def test_every_bridge_trains_and_is_recorded(bridge, tmp_path):
    made = options(bridge)
    method = build(made, ToyDataset(made.data), torch.device("cpu"))
    net, (phase,) = method.modules["net"], method.phases
    data = ToyDataset(made.data).images()[:16]
    loss = phase.loss(Batch(data, torch.zeros(16, 0), BatchRNG(0, 0, 0, 16), 0)).loss
    loss.sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    networks.save_network(tmp_path / "net.pkl", net.eval())
    again = networks.load_network(tmp_path / "net.pkl")
    assert Facts.of(again).path == Facts.of(net).path
    assert (again.bridge_type, made.name_parts()[1] == bridge) == (bridge, bridge != "idff")
    assert made.coupling == ("independent" if bridge == "target" else "ot")


def test_the_score_head_is_of_its_own_deviation():
    """Where s is sigma^2 / 2 times the score, -eps / std, the loss of the second head is 0."""
    g = torch.Generator().manual_seed(0)
    data, noise, eps = (torch.randn(8, 2, 1, 1, generator=g, dtype=torch.float64) for _ in range(3))
    t = torch.rand(8, generator=g, dtype=torch.float64) * 0.8 + 0.1
    for bridge in BRIDGES:
        state = Bridge(bridge, SIGMA).state(data, noise, eps, t)
        loss = FusionLoss(SIGMA, bridge=bridge).score(-0.5 * SIGMA**2 * eps / state.std, noise, eps, t)
        assert float(loss.max()) < 1e-12  # 1e-8 in the published denominator


@pytest.mark.parametrize("bridge", ["independent", "target", "variance_preserving"])
def test_published_drifts_are_of_brownian_bridges(bridge):
    net, _ = exact(bridge)
    with pytest.raises(ValueError, match="is of Brownian bridges"):
        build_plan(Field(net), SamplerOptions(field="pf"))


@pytest.mark.parametrize(
    ("bridge", "more", "words"),
    [
        ("schrodinger_bridge", {"sigma": 0.0, "heads": 1}, "noise all along"),
        ("target", {"coupling": "ot"}, "cannot choose"),
        ("target", {"sigma": 1.0}, "give less"),
        ("independent", {"score_target": "score"}, "of Brownian bridges"),
        ("variance_preserving", {"residual": True}, "--residual belongs to Brownian bridges"),
    ],
)
def test_bridges_that_do_not_fit(bridge, more, words):
    with pytest.raises(ValueError, match=words):
        IDFFOptions(outdir="runs", data="toy:moons", bridge=bridge, **more)


def test_a_schroedinger_bridge_has_its_regularisation():
    assert options("schrodinger_bridge", ot_method="sinkhorn").ot_reg == pytest.approx(2 * SIGMA**2)
    assert options("idff", ot_method="sinkhorn").ot_reg == 0.05

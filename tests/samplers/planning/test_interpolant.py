"""The stochastic interpolant sampler as a plan: for any model, at a cost known before, options read or refused."""

import json
import math

import pytest
import torch

from samplers.field import Facts, Field
from samplers.path import VP, Linear
from samplers.planning.loss_table import LossTable
from samplers.planning.options import SamplerOptions
from samplers.planning.plan import build_plan
from samplers.solvers.interpolant import interpolant_sde
from torch_utils.rng import TorchRNG


def rng(seed=0):
    return TorchRNG(generator=torch.Generator().manual_seed(seed))


class Counted:
    """The exact network for data N(0, 0.25), in sigma coordinates or on a path."""

    label_dim, sample_shape = 0, (1,)

    def __init__(self, path=None, predicts="velocity"):
        self.calls = 0
        if path is not None:
            self.path, self.predicts = path, predicts

    def __call__(self, x, level, labels=None):
        self.calls += 1
        path = getattr(self, "path", None)
        if path is None:
            return x * 0.25 / (0.25 + level**2)
        alpha, sigma = path.alpha(level), path.sigma(level)
        data = x * 0.25 * alpha / (0.25 * alpha**2 + sigma**2)
        noise = x * sigma / (0.25 * alpha**2 + sigma**2)
        return noise if self.predicts == "noise" else path.d_alpha(level) * data + path.d_sigma(level) * noise


NETS = {
    "denoiser": lambda: Counted(), "linear": lambda: Counted(Linear()), "vp": lambda: Counted(VP()),
    "noise": lambda: Counted(Linear(), "noise"),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(
    "given",
    [
        {"sde_order": 1, "num_steps": 9}, {"nfe": 9, "last_step": "tweedie"}, {"sde_order": 2, "nfe": 9},
        {"last_step": "none", "nfe": 9}, {"sde_order": 2, "last_step": "none", "nfe": 8}, {"diffusion_form": "SBDM"},
        {"diffusion_form": "constant", "diffusion_norm": 0.5, "last_step": "euler"},
    ],
)  # fmt: skip
def test_the_cost_is_what_is_said(name, given):
    net = NETS[name]()
    plan = build_plan(net, SamplerOptions(**given))
    x = plan(net, torch.randn(3, 1, generator=torch.Generator().manual_seed(0)), rng=rng())
    assert plan.nfe == net.calls == given.get("nfe", given.get("num_steps", 250))
    assert x.isfinite().all()
    assert plan.kind == "sde"
    assert plan.stochastic


@pytest.mark.parametrize("name", NETS)
def test_samples_are_those_of_the_data(name):
    """Deviation 0.5, for every model; five standard errors of it, and 2 % for steps of first order."""
    net, n = NETS[name](), 4000
    plan = build_plan(net, SamplerOptions(num_steps=120, diffusion_form="sigma", last_step_size=0.02))
    end = plan(net, rng(1).randn([n, 1], dtype=torch.float64), rng=rng())
    assert abs(float(end.std()) - 0.5) < 0.5 * (5 / math.sqrt(2 * n) + 0.02)


def test_it_is_the_sampler():
    net = Counted(Linear())
    plan = build_plan(net, SamplerOptions(num_steps=5, diffusion_form="linear", diffusion_norm=0.3, sample_eps=0.01))
    noise = rng(1).randn([4, 1], dtype=torch.float64)
    times = [*torch.linspace(0.99, 0.04, 5, dtype=torch.float64).tolist(), 0.0]
    own = interpolant_sde(Field(net), noise, times, form="linear", norm=0.3, rng=rng())
    assert torch.equal(plan(net, noise, rng=rng()), own)


def test_denoisers_begin_at_their_highest_level():
    plan = build_plan(Counted(), SamplerOptions(num_steps=5, last_step="none"))
    assert plan.sigmas[0] == pytest.approx(80 / 81)
    assert plan.sigmas[-1] == pytest.approx(0.002 / 1.002)
    net = Counted()
    net.sigma_max = 9.0
    assert build_plan(net, SamplerOptions(last_step="mean")).sigmas[0] == pytest.approx(0.9)


@pytest.fixture
def losses(tmp_path):
    table = LossTable(path="linear", pairs=((1.0, 0.3), (0.0, 0.1)))
    table.save(tmp_path / "losses.json", {"data": "some"})
    assert LossTable.load(tmp_path / "losses.json") == table
    return str(tmp_path / "losses.json")


def test_losses_are_read(losses):
    net, noise = Counted(Linear()), rng(1).randn([4, 1], dtype=torch.float64)
    plan = build_plan(net, SamplerOptions(num_steps=5, diffusion_losses=losses, diffusion_eta=0.2))
    times = [*torch.linspace(1, 0.04, 5, dtype=torch.float64).tolist(), 0.0]
    own = interpolant_sde(Field(net), noise, times, form="KL-eta", eta=0.2, losses=[(1.0, 0.3), (0.0, 0.1)], rng=rng())
    assert torch.equal(plan(net, noise, rng=rng()), own)
    assert plan.record()["options"]["losses"] == [[1.0, 0.3], [0.0, 0.1]]
    assert "KL-eta of norm 1, eta 0.2" in plan.title
    assert build_plan(net, SamplerOptions(diffusion_losses=losses)).options["eta"] == 0.01
    assert not plan.notes
    LossTable(path="linear", pairs=((1.0, 0.3), (0.0, 0.1)), model_hash="b" * 64).save(losses, {})
    assert "losses of other weights" in str(build_plan(net, SamplerOptions(diffusion_losses=losses)))


def test_losses_that_do_not_fit(tmp_path, losses):
    net = Counted(Linear())
    for given, message in (
        ({"diffusion_form": "KL-eta"}, "analyze.py losses"),
        ({"diffusion_form": "SBDM", "diffusion_losses": losses}, "not of SBDM: leave it out"),
        ({"diffusion_eta": 0.1}, "not of sigma: leave it out"),
    ):
        with pytest.raises(ValueError, match=message):
            build_plan(net, SamplerOptions(**given))
    with pytest.raises(ValueError, match="losses on the path 'linear', and this model is sampled on 'vp'"):
        build_plan(Counted(VP()), SamplerOptions(diffusion_losses=losses))
    other = tmp_path / "other.json"
    good = {"path": "linear", "times": [1, 0], "losses": [1, 1]}
    for content in ([1], {}, good | {"times": [0, 1]}, good | {"losses": [1, 0]}, good | {"losses": [1]},
                    good | {"times": [1], "losses": [1]}, good | {"times": [1, "x"]}):  # fmt: skip
        other.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="is not a table of losses that analyze"):
            build_plan(net, SamplerOptions(diffusion_losses=str(other)))


def test_both_spellings_are_one_form():
    records = [build_plan(Counted(Linear()), SamplerOptions(diffusion_form=f"in{c}creasing-decreasing")).record()
               for c in ("", "c")]  # fmt: skip
    assert records[0] == records[1]
    assert records[0]["options"]["form"] == "increasing-decreasing"


@pytest.mark.parametrize(
    ("net", "given", "message"),
    [
        (Counted(Linear()), {"sde_order": 2, "nfe": 8}, "give 3, 5, 7"),
        (Counted(Linear()), {"sde_order": 1, "nfe": 8, "num_steps": 8}, "both say how many"),
        (Counted(Linear()), {"last_step": "none", "last_step_size": 0.1}, "leaves that out"),
        (Counted(Linear()), {"sde_order": 1, "num_steps": 1}, "leaves no step"),
        (Counted(Linear()), {"sde_order": 1, "solver": "heun"}, "has no --solver"),
        (Counted(Linear()), {"sde_order": 1, "t_steps": (10.0, 1.0)}, "has no --t-steps"),
        (Counted(Linear()), {"sde_order": 1, "coordinates": "sigma"}, "has no --coordinates"),
        (Counted(), {"sde_order": 1, "S_churn": 3.0}, "has no --S_churn"),
        (Counted(VP()), {"sde_order": 1, "sample_eps": 0.1}, "changes nothing"),
        (Counted(), {"last_step_size": 1.0}, "make it shorter"),
    ],
)
def test_what_cannot_be(net, given, message):
    with pytest.raises(ValueError, match=message):
        build_plan(net, SamplerOptions(**given))


def test_learned_couplings_have_no_score():
    net = Counted(Linear())
    net.gaussian_noise = False
    assert not Facts.of(net).gaussian_noise
    with pytest.raises(ValueError, match="the stochastic interpolant sampler needs a model whose noise is Gaussian"):
        build_plan(net, SamplerOptions(sde_order=1))

"""Roll-out and scores: simple forecasts as published, members that do not depend on batches, known processes."""

import numpy as np
import pytest
import torch

import networks
from samplers.planning.plan import SamplerOptions
from training.data.series import SeriesDataset
from training.forecast import BASELINES, ar1_fit, baseline, dataset_of, plan_of, roll_out, score
from training.methods import edm, idff
from training.methods.edm import EDMOptions
from training.methods.idff_options import IDFFOptions

CPU = torch.device("cpu")
# CRPS, MSE, SSR, CRPS by lead of 79 windows of the years from 2003, one draw of 50 members each
ELNINO = {
    "AR(1)": (0.530, 0.838, 0.73, (0.307, 0.485, 0.589, 0.596, 0.606, 0.599)),
    "climatology": (0.523, 0.769, 1.13, (0.523, 0.524, 0.524, 0.514, 0.520, 0.536)),
    "persistence": (0.830, 1.103, 0, (0.410, 0.678, 0.863, 0.951, 1.026, 1.049)),
}
HALF = 5e-4  # a digit that was rounded


def elnino(part="test"):
    data = SeriesDataset("series:elnino", part)
    starts = data.starts_before(6)
    return data, starts, data.windows(starts, 6)[1].numpy()


def test_the_autoregression_of_elnino():
    _, phi, sd = ar1_fit(elnino()[0].training_states())
    assert phi.item() == pytest.approx(0.908, abs=HALF)
    assert sd.item() == pytest.approx(0.418, abs=HALF)


@pytest.mark.parametrize("name", BASELINES)
def test_simple_forecasts_of_elnino(name):
    """To the digits given, but for what one draw of the members moves: three deviations over 20 draws."""
    data, starts, observed = elnino()
    found = []
    for seed in range(1 if name == "persistence" else 20):
        s = score(baseline(name, data, starts, 6, 50, seed), observed)
        found.append([s["crps"], s["mse"], s["ssr"], *s["by_lead"]["crps"]])
    mean, sd = np.mean(found, 0), np.std(found, 0)
    crps, mse, ssr, leads = ELNINO[name]
    expected, rounded = np.array([crps, mse, ssr, *leads]), np.array([HALF, HALF, 10 * HALF] + [HALF] * 6)
    assert (np.abs(mean - expected) <= rounded + 3 * sd + 1e-9).all(), (mean, expected, sd)


def net_of(data, **more):
    torch.manual_seed(0)
    options = IDFFOptions(outdir="runs", data=data.text, cbase=16, **more)
    net = idff.build(options, data, CPU).modules["net"].eval()
    net.info = {"dataset": {"series": data.facts()}}
    return net


CASES = [
    ("series:elnino:window=3:horizon=1", {}, {"N": 4}),
    ("series:elnino:window=3:horizon=2", {"coupling": "independent"}, {"solver": "euler", "num_steps": 3}),
    ("series:lorenz:label=index", {"memorise": True}, {"N": 4}),
]


@pytest.mark.parametrize(("text", "more", "solver"), CASES)
def test_members_depend_on_nothing_but_their_place(text, more, solver):
    data = SeriesDataset(text)
    net = net_of(data, **more)
    plan = plan_of(net, SamplerOptions(**solver))
    starts = data.starts_before(3)[:5]
    whole = roll_out(net, plan, data, starts, leads=3, members=4)
    parts = roll_out(net, plan, data, starts, leads=3, members=4, batch=7)
    np.testing.assert_allclose(whole.members, parts.members, atol=1e-5)
    assert whole.calls == plan.nfe
    assert not np.allclose(whole.members[:, 0], whole.members[:, 1])
    assert (roll_out(net, plan, data, starts, leads=3, members=4, seed=1).members != whole.members).any()


def test_a_flow_from_frame_to_frame_has_one_member():
    data = SeriesDataset("series:elnino:window=2:horizon=1")
    net = net_of(data)
    plan = plan_of(net, SamplerOptions(solver="euler", num_steps=4))
    made = roll_out(net, plan, data, data.starts_before(2)[:3], leads=2, members=3).members
    assert np.allclose(made[:, 0], made[:, 1])


class _Exact(torch.nn.Module):
    """E[next | state, last] of x' = 0.8 x + 0.6 noise on the bridge from the last frame, of deviation sigma."""

    path, predicts, start, begins, gaussian_noise, score_target = "bridge", "data", "exact", "frame", False, "none"
    sigma_min, sigma_max, img_channels, img_resolution, label_dim = 0.0, float("inf"), 1, 1, 1
    path_options = {"bridge": 0.5}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.model = torch.nn.Identity()

    def heads(self, x, t, labels=None):
        x, u = self.model(x), 1 - torch.as_tensor(t).double()
        last = labels.double().reshape(-1, 1, 1, 1)
        mean, variance, noise = 0.8 * last, 0.36, 0.25 * u * (1 - u)
        seen = x - (1 - u) * last  # u next + noise
        return (mean + u * variance * (seen - u * mean) / (u**2 * variance + noise).clamp_min(1e-12)), None

    def forward(self, x, t, labels=None):
        return self.heads(x, t, labels)[0]


def test_the_bridge_reaches_the_conditional_distribution(tmp_path):
    """Of a linear process with the exact network: mean and deviation by lead, many small steps."""
    rng = np.random.default_rng(0)
    values = np.zeros(400)
    for i in range(1, 400):
        values[i] = 0.8 * values[i - 1] + 0.6 * rng.standard_normal()
    np.save(tmp_path / "ar.npy", values)
    data = SeriesDataset(f"series:{tmp_path / 'ar.npy'}:scale=none")
    net, starts = _Exact(), data.starts_before(2)[[50]]
    last = values[starts[0, 1] - 1]
    made = roll_out(net, plan_of(net, SamplerOptions(N=3 * 60 + 1)), data, starts, leads=2, members=4000).members
    for lead, (factor, variance) in enumerate(((0.8, 0.36), (0.64, 0.36 * 1.64))):
        x = made[0, :, lead].ravel()
        assert x.mean() == pytest.approx(factor * last, abs=4 * (variance / 4000) ** 0.5)
        assert x.var() == pytest.approx(variance, rel=4 * (2 / 4000) ** 0.5 + 0.03)  # the last step adds no noise


def test_denoisers_continue_series_too():
    data = SeriesDataset("series:elnino:window=3:horizon=2")
    net = edm.build(EDMOptions(outdir="runs", data=data.text, cbase=16), data, CPU).modules["net"].eval()
    net.info = {"dataset": {"series": data.facts()}}
    made = roll_out(net, plan_of(net, SamplerOptions(steps=3)), data, data.starts_before(4)[:2], leads=4, members=3)
    assert made.members.shape == (2, 3, 4, 1, 1, 1)
    assert made.calls == 5
    assert net.sigma_data == pytest.approx(1, abs=0.05)


def test_networks_of_other_data_are_refused():
    net = networks.build("FusionNetwork", img_resolution=1, img_channels=2, model_type="SELUMLP")
    with pytest.raises(ValueError, match="not trained on a series"):
        dataset_of(net, "series:elnino", "test")


def test_scores_of_one_member_have_no_fair_version():
    found = score(np.zeros((3, 1, 2, 1, 1, 1)), np.ones((3, 2, 1, 1, 1)))
    assert found["crps_fair"] is None
    assert (found["crps"], found["mse"], found["ssr"]) == (1, 1, 0)

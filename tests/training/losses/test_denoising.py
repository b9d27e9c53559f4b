"""Losses: golden draws and values, the ideal denoiser, any rank of data, one source of sigma_data."""

from types import SimpleNamespace

import pytest
import torch
from golden_cases import cases

from torch_utils.rng import BatchRNG
from training.augment import AugmentPipe
from training.losses.denoising import LOSSES, EDMLoss, VELoss, VPLoss, loss_for


class Recorder:
    """The toy network a x / (1 + sigma) + b sum(augment labels), which keeps what it was given."""

    def __init__(self, a, b):
        self.a, self.b = a, b

    def __call__(self, x, sigma, labels=None, augment_labels=None):
        self.x, self.sigma, self.augment_labels = x, sigma, augment_labels
        out = self.a * x / (1 + sigma)
        if augment_labels is not None:
            out = out + self.b * augment_labels.sum(1).reshape(-1, 1, 1, 1)
        return out


@pytest.mark.parametrize("case", cases("edm", "loss"))
def test_golden(case, monkeypatch):
    spec = case.spec
    net = Recorder(spec["toy_network"]["a"], spec["toy_network"]["b"])
    loss = loss_for(net, spec["loss"], **spec["kwargs"])
    levels = []
    draw = type(loss).draw
    monkeypatch.setattr(type(loss), "draw", lambda *args: levels.append(draw(*args)) or levels[-1])
    images = case.shared(spec["images"])
    torch.manual_seed(spec["torch_seed"])
    value = loss(net, images, augment_pipe=None if spec["augment"] is None else AugmentPipe(**spec["augment"]))
    own = {"sigma": net.sigma, "net_input": net.x, "loss": value, "draw_level": levels[0]}
    own["augment_labels"] = net.augment_labels
    if "draw_noise" in case.outputs:  # images are not augmented: the noise is the draw that follows the levels
        torch.manual_seed(spec["torch_seed"])
        {"uniform": torch.rand, "normal": torch.randn}[spec["level_draw"]](levels[0].shape)
        own["draw_noise"] = torch.randn(images.shape)
        assert torch.equal(net.x, images + own["draw_noise"] * net.sigma)
    for role in case.outputs:
        assert own[role].dtype == torch.float32
        case.expect(role, own[role], drawn=role == "draw_noise")


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(6,), (6, 5), (6, 7, 2), (6, 1, 4, 4, 2)])
def test_any_rank(name, shape):
    loss = LOSSES[name]()
    data = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    seen = []
    value = loss(lambda x, sigma, labels: seen.append(sigma) or torch.zeros_like(x), data)
    assert value.shape == data.shape
    assert seen[0].shape == (6, *[1] * (len(shape) - 1))
    torch.testing.assert_close(value, loss.weight(seen[0]) * data**2)


def test_edm_weight_makes_the_zero_network_cost_one():
    """A preconditioned network that returns F = 0 has expected loss 1 at every level for Gaussian data."""
    s = 0.7
    loss = EDMLoss(sigma_data=s)
    generator = torch.Generator().manual_seed(1)
    data = s * torch.randn(64, 4096, generator=generator)
    torch.manual_seed(2)
    value = loss(lambda x, sigma, labels: x * s**2 / (sigma**2 + s**2), data)
    assert (value.mean(1) - 1).abs().max() < 0.15


def test_level_distributions():
    torch.manual_seed(3)
    sigmas = {}
    for loss in (EDMLoss(P_mean=-0.5, P_std=0.8), VELoss(0.05, 20), VPLoss()):
        loss(lambda x, sigma, labels, key=loss: sigmas.update({key: sigma.double()}) or x, torch.zeros(20000, 1))
    edm, ve, vp = sigmas.values()
    assert abs(edm.log().mean() + 0.5) < 0.03
    assert abs(edm.log().std() - 0.8) < 0.03
    low, high = torch.tensor([0.05, 20.0]).log().tolist()
    assert low <= ve.log().min()
    assert ve.log().max() <= high + 1e-6
    assert abs(ve.log().mean() - (low + high) / 2) < 0.05
    t = ((0.1**2 + 2 * 19.9 * torch.log1p(vp**2)).sqrt() - 0.1) / 19.9  # inverse of the VP noise level: uniform
    assert abs(t.mean() - 0.5) < 0.01
    assert abs(t.std() - 12**-0.5) < 0.01


def test_gradient_is_analytic():
    net = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    data = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    seen = {}

    def call(x, sigma, labels):
        seen.update(x=x, sigma=sigma)
        return net * x

    loss = VELoss()
    loss(call, data, rng=BatchRNG(0, 0, 0, 5)).sum().backward()
    expected = (2 * loss.weight(seen["sigma"]) * (net * seen["x"] - data) * seen["x"]).sum()
    torch.testing.assert_close(net.grad, expected)


def test_batch_stream_does_not_depend_on_how_a_batch_is_shared():
    data = torch.randn(70, 2, generator=torch.Generator().manual_seed(5))
    whole = EDMLoss()(lambda x, sigma, labels: x, data, rng=BatchRNG(3, 128, 0, 70))
    parts = [EDMLoss()(lambda x, sigma, labels: x, data[a:b], rng=BatchRNG(3, 128, a, b)) for a, b in ((0, 9), (9, 70))]
    assert torch.equal(torch.cat(parts), whole)


def test_labels_reach_the_network():
    labels = torch.eye(4)
    seen = []
    EDMLoss()(lambda x, sigma, labels: seen.append(labels) or x, torch.zeros(4, 3), labels)
    assert seen[0] is labels


def test_shared_constants_come_from_the_network():
    net = SimpleNamespace(
        sigma_data=0.3, beta_d=10.0, beta_min=0.2, epsilon_t=1e-3, sigma_min=0, sigma_max=float("inf")
    )
    assert loss_for(net, "EDMLoss", P_mean=0) == EDMLoss(P_mean=0, sigma_data=0.3)
    assert loss_for(net, "EDMLoss", sigma_data=0.9).sigma_data == 0.9
    assert loss_for(net, "VPLoss") == VPLoss(10.0, 0.2, 1e-3)
    assert loss_for(net, "VELoss") == VELoss()  # sigma_min and sigma_max of a network say where it may be evaluated
    assert loss_for(object(), "EDMLoss") == EDMLoss()


def test_bad_input():
    with pytest.raises(ValueError, match=r"unknown loss 'l2'.*EDMLoss"):
        loss_for(object(), "l2")
    with pytest.raises(ValueError, match=r"VELoss has no option 'sigma_data'.*sigma_max"):
        loss_for(object(), "VELoss", sigma_data=0.5)
    with pytest.raises(ValueError, match=r"floating-point.*uint8"):
        EDMLoss()(lambda x, sigma, labels: x, torch.zeros(2, 3, 4, 4, dtype=torch.uint8))

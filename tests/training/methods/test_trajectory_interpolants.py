"""MAC's second stage on diffusion transformers: its levels of elements reach networks that take times of elements."""

import pytest
import torch
from golden_cases import fill_weights

import networks
from bench.presets import SyntheticDataset
from networks.load import save_network
from networks.models.interpolant import transformer_config
from samplers.field import Field
from samplers.planning.options import SamplerOptions
from samplers.planning.plan import build_plan
from torch_utils.rng import BatchRNG
from training.method import Batch
from training.methods.trajectory import TrajectoryOptions, _network_config, build

SMALL = {
    "backbones": "light", "coef_channels": 8, "coef_mult": (1,), "coef_blocks": 1, "batch": 4, "batch_edm": 4,
    "batch_disc": 4, "num_steps": 3,
}  # fmt: skip


def method(tmp_path, name, path="linear", predicts="velocity", **more):
    config = transformer_config(name, 8, 1, 0, path=path, predicts=predicts)
    torch.manual_seed(0)
    net = networks.build(**config | {"width": 16, "depth": 1, "num_heads": 2})
    fill_weights(net)
    file = tmp_path / "net.pkl"
    save_network(file, net)
    options = TrajectoryOptions(outdir="x", data="digits.zip", network=str(file), **SMALL, **more)
    return build(options, SyntheticDataset(8, 1, 0), torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "path", "predicts", "more"),
    [
        ("SiT-S/2", "linear", "velocity", {}), ("ComboStoc-S/2", "linear", "velocity", {}),
        ("ComboStoc-S/2", "trig", "velocity", {}), ("ComboStoc-S/2", "vp", "noise", {}),
        ("SiT-S/2", "linear", "score", {"family": "edm"}),
    ],
)  # fmt: skip
def test_transformers_are_trained(tmp_path, name, path, predicts, more):
    """Both networks have gradients, and what is trained can be sampled."""
    made = method(tmp_path, name, path, predicts, **more)
    net = made.modules["net"]
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for phase in made.phases[:2]:
        trained = getattr(net, phase.name)
        trained.requires_grad_(True)
        loss = phase.loss(Batch(images, torch.zeros(4, 0), BatchRNG(0, 0, 0, 4), 0)).loss.mean()
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in trained.parameters() if p.grad is not None)
        assert any(p.grad.any() for p in trained.parameters() if p.grad is not None)
        trained.requires_grad_(False)
    field = Field(net.eval())
    plan = build_plan(field, SamplerOptions())
    assert plan(field, torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2))).isfinite().all()


def test_element_times_are_heard(tmp_path):
    """A ComboStoc network is told the level of every element: levels of one element change its neighbours."""
    for name, local in (("ComboStoc-S/2", True), ("SiT-S/2", False)):
        net = method(tmp_path, name).modules["net"]
        x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        even, uneven = torch.full([1, 1, 8, 8], 0.5), torch.full([1, 1, 8, 8], 0.5)
        uneven[..., :4], uneven[..., 4:] = 0.4, 0.6  # of the same mean
        assert torch.allclose(net(x, even), net(x, uneven), atol=1e-6) != local


@pytest.mark.parametrize("predicts", ["noise", "score"])
def test_pure_noise_needs_a_velocity(tmp_path, predicts):
    with pytest.raises(ValueError, match=rf"predicts {predicts}, which says nothing .* give --family=edm"):
        method(tmp_path, "ComboStoc-S/2", predicts=predicts)


@pytest.mark.parametrize("path", ["bridge", "target", "noisy", "ve", "vp"])
def test_paths_without_a_family_of_their_own_take_that_of_edm(path):
    """Models of train.py idff live on a bridge."""
    net = networks.build("VelocityNetwork", img_resolution=1, img_channels=2, model_type="MLP")
    net.path, net.predicts = path, "data"
    assert _network_config(net, TrajectoryOptions(outdir="", data="", network=""))["family"] == "edm"

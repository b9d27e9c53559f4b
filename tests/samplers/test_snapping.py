"""Models of sets of parts whose parts exist or do not, step by step."""

import pytest
import torch

import networks
from samplers.field import Field
from samplers.planning.options import SamplerOptions
from samplers.planning.plan import build_plan
from samplers.run import generate
from samplers.snapping import snapped
from torch_utils.rng import PerSampleRNG


@pytest.fixture(scope="module", params=["data", "velocity", "noise"])
def net(request):
    torch.manual_seed(0)
    net = networks.build(
        "PartNetwork", num_parts=4, groups=[1, 6, 2], mean=[0.5] + [1.0] * 8, std=[0.5] + [2.0] * 8, width=16, depth=1,
        num_heads=2, predicts=request.param, label_dim=2,
    )  # fmt: skip
    torch.nn.init.normal_(net.model.final_layer.linear.weight, std=0.3)
    return net.eval().requires_grad_(False)


def test_equal_steps_are_those_of_the_paper(net):
    """x' = x + (t' - t) / (1 - t) (estimate - x), t from noise (0) to data (1), existence of the estimate decided."""
    noise = PerSampleRNG([0, 1, 2], "cpu").randn([3, 4, 9]).double()
    plan = build_plan(net, SamplerOptions(N=10))
    assert plan.snap
    if net.predicts == "noise":
        assert plan(net, noise).isfinite().all()
        return
    x, field = noise, Field(net)
    for k in range(10):
        t = k / 10
        estimate = net.layout.snap(field.data(x, torch.tensor(1 - t, dtype=torch.float64)))
        x = x + (0.1 / (1 - t)) * (estimate - x)
    torch.testing.assert_close(plan(net, noise), x, rtol=0, atol=1e-6)
    assert set(x[..., 0].round(decimals=4).unique().tolist()) <= {-1.0, 1.0}


def test_without_decisions(net):
    noise = PerSampleRNG([0, 1, 2], "cpu").randn([3, 4, 9])
    plan = build_plan(net, SamplerOptions(N=10, binarise=False))
    assert not plan.snap
    assert plan(net, noise)[..., 0].abs().sub(1).abs().max() > 1e-2
    assert plan.record() != build_plan(net, SamplerOptions(N=10)).record()


@pytest.mark.parametrize(
    "given", [{"solver": "renoise", "N": 5}, {"solver": "dpmpp", "num_steps": 5}, {"solver": "heun", "N": 5},
              {"solver": "ipndm", "num_steps": 5, "denoise_to_zero": True}, {"steps": 4}, {"sde_order": 1},
              {"guidance_type": "cfg", "guidance_rate": 2.0, "N": 4}, {"solver": "dopri5", "rtol": 0.1}],
)  # fmt: skip
def test_every_kind_of_sampler_takes_them(net, given):
    plan = build_plan(net, SamplerOptions(**given))
    whole = torch.cat([b.images for b in generate(net, range(5), plan)])
    parts = torch.cat([b.images for b in generate(net, range(5), plan, batch=2)])
    if "rtol" not in given:
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)
    assert whole.shape == (5, 4, 9)
    assert set(whole[..., 0].unique().tolist()) <= {0.0, 1.0}
    assert not whole[whole[..., 0] == 0].any()


def test_labels_and_coordinates_stay(net):
    labels = torch.eye(2)
    field = snapped(Field(net).bind(labels))
    assert field.class_labels is labels
    assert field.predicts == "data"
    assert snapped(Field(net).ve()).path == field.path
    with pytest.raises(ValueError, match="--binarise is for models of shapes"):
        build_plan(lambda x, s, y=None: x, SamplerOptions(binarise=True))

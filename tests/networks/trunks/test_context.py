"""A trunk that sees what came before: where the context goes, borders, refusals."""

import pytest
import torch

import networks
from networks.trunks.context import ContextTrunk

MLP = {"model_type": "SELUMLP", "width": 8}
UNET = {
    "model_type": "ADMUNet", "model_channels": 32, "channel_mult": [1, 2], "num_res_blocks": 1,
    "attention_resolutions": [], "num_head_channels": 32,
}  # fmt: skip


def test_the_context_is_further_channels():
    """The same as the trunk inside on sample, context and the rest of the label."""
    trunk = ContextTrunk(1, 2, 2, context=6, trunk=MLP, label_dim=6 + 3)
    x, t, labels = torch.randn(4, 2, 1, 1), torch.rand(4), torch.randn(4, 9)
    own = trunk.model(torch.cat([x, labels[:, :6, None, None]], 1), t, labels[:, 6:])
    torch.testing.assert_close(trunk(x, t, labels), own, rtol=0, atol=0)


@pytest.mark.parametrize("pad", [1, 5])
def test_maps_that_cannot_be_halved(pad):
    trunk = ContextTrunk(7, 1, 1, context=2, trunk=UNET, label_dim=2 * 49, pad=pad)
    assert trunk(torch.randn(3, 1, 7, 7), torch.rand(3), torch.randn(3, 98)).shape == (3, 1, 7, 7)


def test_a_torus_is_continued_around():
    """What the trunk inside sees; of what it says, the middle comes back."""
    trunk = ContextTrunk(8, 1, 1, context=1, trunk=UNET, label_dim=64, pad=8, wrap=True)
    seen = []
    trunk.model.forward = lambda x, t, *rest: (seen.append(x), x[:, :1])[1]
    x, before = torch.randn(1, 1, 8, 8), torch.randn(1, 1, 8, 8)
    out = trunk(x, torch.rand(1), before.flatten(1))
    both = torch.cat([x, before], 1)
    torch.testing.assert_close(seen[0], torch.cat([both, both], 2).roll((4, 4), (2, 3)).repeat(1, 1, 1, 2)[..., :16])
    torch.testing.assert_close(out, x)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"label_dim": 5}, "labels of 5 numbers do not hold 6 maps"),
        ({"trunk": {"model_type": "MLP"}}, "is unknown"),
        ({"pad": 2}, "pad=2: give 0 to 1"),
    ],
)
def test_refused(more, words):
    with pytest.raises(ValueError, match=words):
        ContextTrunk(**{"img_resolution": 1, "in_channels": 2, "out_channels": 2, "context": 6, "trunk": MLP,
                        "label_dim": 6, **more})  # fmt: skip


def test_a_network_around_it_needs_its_labels():
    net = networks.build(
        "FusionNetwork", img_resolution=1, img_channels=2, label_dim=4, model_type="ContextTrunk", context=4, trunk=MLP,
        begins="frame",
    )  # fmt: skip
    again = networks.build(**net.config)
    assert again.begins == "frame"
    with pytest.raises(ValueError, match="what came before was not given"):
        net(torch.zeros(1, 2, 1, 1), 0.5)

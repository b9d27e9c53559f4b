"""One small model of every kind that samplers tell apart: MODELS, by name."""

import math

import torch

import networks


class Denoiser(torch.nn.Module):
    """The optimal denoiser of two points, whose trajectories bend; conditional, trained with label dropout."""

    img_channels, img_resolution, label_dim, label_dropout = 1, 2, 2, 0.1
    sigma_min, sigma_max = 0.0, math.inf

    def __init__(self):
        super().__init__()
        self.point = torch.nn.Parameter(torch.full([4], 0.7))

    def forward(self, x, sigma, class_labels=None):
        flat, point = x.flatten(1), self.point.to(x)
        shift = 0 if class_labels is None else class_labels.to(x)[:, :1, None, None]
        sigma = torch.as_tensor(sigma).to(x).reshape(-1, *[1] * (x.ndim - 1))
        return ((flat / sigma.flatten(1).square() @ point).tanh()[:, None] * point).reshape(x.shape) + 0.3 * shift


class Table(Denoiser):
    """The same with a noise table of its own, and a classifier."""

    def sigma(self, t):
        return 80 * torch.as_tensor(t).double() ** 3

    def sigma_inv(self, sigma):
        return (torch.as_tensor(sigma).double() / 80) ** (1 / 3)

    def with_classifier(self, rate):
        return lambda x, s, labels=None: self(x, s, labels) + 0.01 * rate


class Flow(Denoiser):
    path, predicts, start = "linear", "velocity", "exact"

    def forward(self, x, t, class_labels=None):
        return (
            x - 0.5 * torch.tanh(3 * x) + (0 if class_labels is None else 0.1 * class_labels.to(x)[:, :1, None, None])
        )


class Coupled(Flow):
    """A flow whose noise depends on the data: no score, two start distributions."""

    gaussian_noise, priors = False, ("standard", "matched")

    def start_noise(self, noise, prior=None):
        return noise * (0.5 if prior == "matched" else 2)


class Latents(Flow):
    """A flow of 4 channels, of which 3 can be guided alone."""

    img_channels = 4


def mac():
    torch.manual_seed(0)
    trunk = {"model_type": "SongUNet", "model_channels": 8, "channel_mult": [1], "num_blocks": 1}
    v = {"class_name": "EDMPrecond", "img_resolution": 8, "img_channels": 1, **trunk}
    c = {"model_channels": 8, "channel_mult": [1], "num_blocks": 1, "scale": 0.5}
    net = networks.build("MACNetwork", network=v, coefficients=c, schedule=[80.0, 2.5, 0.17, 0.002], M=2)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.5 / math.sqrt(max(p[0].numel(), 1)))
    return net.eval().requires_grad_(False)


def fusion():
    torch.manual_seed(0)
    net = networks.build("FusionNetwork", img_resolution=2, img_channels=1, model_type="SELUMLP", width=16, sigma=0.5)
    return net.eval().requires_grad_(False)


def shapes():
    torch.manual_seed(0)
    net = networks.build(
        "PartNetwork", num_parts=3, groups=[1, 6], mean=[0.5] + [0.0] * 6, std=[0.5] + [1.0] * 6, width=8, depth=1,
        num_heads=1,
    )  # fmt: skip
    torch.nn.init.normal_(net.model.final_layer.linear.weight)
    return net.eval().requires_grad_(False)


MODELS = {
    "denoiser": Denoiser, "table": Table, "flow": Flow, "coupled": Coupled, "latents": Latents, "mac": mac,
    "fusion": fusion, "shapes": shapes,
}  # fmt: skip

"""What golden cases of interpolants are about: their paths, networks and exact fields, in this project's words."""

import numpy as np
import torch
from golden_cases import fill_weights

import networks
from samplers.field import Field
from samplers.path import VP, Linear, Trig
from samplers.solvers.interpolant import time_interval
from torch_utils.misc import expand_to
from torch_utils.rng import TorchRNG


def path_of(params):
    """The path of a golden case; the files count time the other way."""
    if params["path"] == "VP":
        return VP(beta_d=params["beta_max"] - params["beta_min"], beta_min=params["beta_min"])
    return {"Linear": Linear, "GVP": Trig}[params["path"]]()


def ode_times(params):
    high, low = time_interval(path_of(params), params["prediction"], eps=params["sample_eps"])
    return torch.linspace(high, low, params["num_steps"], dtype=torch.float64)


def sde_times(params):
    last = params["last_step_size"] if params["last_step"].lower() != "none" else 0.0
    high, low = time_interval(
        path_of(params), params["prediction"], form=params["diffusion_form"], last_step=last, eps=params["sample_eps"]
    )
    if high == 1 and not isinstance(path_of(params), VP):
        high = 1 - params["sample_eps"] if params["prediction"] != "velocity" else high
    return torch.linspace(high, low, params["num_steps"], dtype=torch.float64)


def build(spec):
    """The network of a golden definition, filled, in evaluation mode."""
    config = dict(spec["config"])
    net = networks.build(
        "InterpolantNetwork", img_resolution=config["input_size"], img_channels=config["in_channels"],
        label_dim=config["num_classes"], label_dropout=config["class_dropout_prob"], patch_size=config["patch_size"],
        width=config["hidden_size"], depth=config["depth"], num_heads=config["num_heads"],
        mlp_ratio=config["mlp_ratio"], learn_sigma=config["learn_sigma"],
        element_times=spec["type"] == "combostoc_transformer",
    )  # fmt: skip
    assert {k: list(v.shape) for k, v in net.model.state_dict().items()} == spec["state_dict"]
    fill_weights(net.model, spec["fill"]["keep_computed"])
    return net.eval()


def network_of(case):
    return build(case.networks[case.spec["params"]["network"]])


def one_hot(y, net):
    """Class indices as rows; the index behind the last class is no label."""
    if y is None:
        return None
    return torch.nn.functional.one_hot(y.long(), net.label_dim + 1)[:, : net.label_dim].float()


def velocity(net, x, t, y):
    """As the files count time: from noise to data."""
    return -net(x, 1 - t.double(), one_hot(y, net))


class Mixture:
    """Independent elements with a mixture of Gaussians for a density: everything about them is known."""

    def __init__(self, spec, path):
        assert spec["type"] == "exact_gaussian_mixture_elementwise"
        self.path, self.std = path, spec["std"]
        self.w, self.mu = (torch.tensor(spec[k], dtype=torch.float64) for k in ("w", "mu"))

    def parts(self, x, t):
        """Shares of the components `[..., K]`, offsets from their means, and the variance, at our time."""
        t = expand_to(torch.as_tensor(t, dtype=torch.float64), x)
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        variance = (alpha * self.std) ** 2 + sigma**2
        offset = x[..., None] - (alpha[..., None] if alpha.ndim else alpha) * self.mu
        v = variance[..., None] if variance.ndim else variance
        share = (self.w.log() - offset.square() / (2 * v)).softmax(-1)
        return share, offset, alpha, sigma, v

    def data(self, x, t, labels=None):
        share, offset, alpha, _, v = self.parts(x, t)
        a = alpha[..., None] if alpha.ndim else alpha
        return (share * (self.mu + a * self.std**2 * offset / v)).sum(-1)

    def noise(self, x, t, labels=None):
        share, offset, _, sigma, v = self.parts(x, t)
        s = sigma[..., None] if sigma.ndim else sigma
        return (share * s * offset / v).sum(-1)

    def score(self, x, t, labels=None):
        share, offset, _, _, v = self.parts(x, t)
        return (share * -offset / v).sum(-1)

    def velocity(self, x, t, labels=None):
        t = expand_to(torch.as_tensor(t, dtype=torch.float64), x)
        return self.path.d_alpha(t) * self.data(x, t) + self.path.d_sigma(t) * self.noise(x, t)


def field_of(params):
    path = path_of(params)
    return Field(getattr(Mixture(params["predictor"], path), params["prediction"]), path, params["prediction"])


class Stream(TorchRNG):
    """Normal draws of a golden stream."""

    def __init__(self, spec):
        super().__init__()
        self.random, self.skip = np.random.RandomState(spec["stream"]), spec["skip"]

    def randn(self, shape, dtype=torch.float32, batch_dim=0):
        for _ in range(self.skip):
            self.random.standard_normal(list(shape))
        self.skip = 0
        return torch.from_numpy(self.random.standard_normal(list(shape)).astype(np.float32)).to(dtype)

"""Reading the golden cases of areas "mac" and "curvature": sources, random streams, weights, nested tolerances."""

import zlib

import numpy as np
import torch
from golden_cases import cases
from margins import note

OPS = {
    "mul": lambda x, a: x * torch.as_tensor(a, dtype=x.dtype),
    "add": lambda x, a: x + torch.as_tensor(a, dtype=x.dtype),
    "clip": lambda x, lo, hi: x.clamp(lo, hi),
    "tanh": lambda x: x.tanh(),
    "double": lambda x: x.double(),
    "index": lambda x, axis, items: x.index_select(axis, torch.tensor(items)),
    "stride": lambda x, axis, step: x.index_select(axis, torch.arange(0, x.shape[axis], step)),
    "moments": lambda x: torch.stack([f(x.flatten(1)) for f in (_mean, _std, _min, _max)], dim=1),
}
_mean, _std = (lambda x: x.mean(1)), (lambda x: x.std(1))
_min, _max = (lambda x: x.amin(1)), (lambda x: x.amax(1))


def apply(x, ops):
    for name, *args in ops:
        x = OPS[name](x, *args)
    return x


def value(case, source):
    """The tensor a source describes; None for null."""
    if source is None:
        return None
    if "array" in source:
        x = case.shared(source["array"])
    elif "normal" in source:
        x = np.random.RandomState(source["normal"]).standard_normal(source["shape"])
    elif "uniform" in source:
        x = np.random.RandomState(source["uniform"]).random_sample(source["shape"])
    elif "onehot" in source:
        x = np.eye(source["classes"])[source["onehot"]]
    else:
        x = np.array(source["value"])
    x = torch.as_tensor(np.asarray(x, dtype=np.float32)) if not isinstance(x, torch.Tensor) else x
    return apply(x, source.get("ops", []))


def inputs(case):
    return {name: value(case, source) for name, source in case.spec["inputs"].items()}


class Draws:
    """The `rng` interface over one numpy stream; remembers the shapes drawn."""

    device = torch.device("cpu")

    def __init__(self, seed):
        self.state, self.log = np.random.RandomState(seed), []

    def randn(self, shape, dtype=torch.float32, batch_dim=0):
        self.log.append(["normal", list(shape)])
        return torch.from_numpy(self.state.standard_normal(list(shape)).astype(np.float32)).to(dtype)

    def rand(self, shape, dtype=torch.float32, batch_dim=0):
        self.log.append(["uniform", list(shape)])
        return torch.from_numpy(self.state.random_sample(list(shape)).astype(np.float32)).to(dtype)

    def randint(self, high, shape, batch_dim=0):
        self.log.append(["integers", high, list(shape)])
        return torch.from_numpy(self.state.randint(0, high, list(shape)))

    def randn_like(self, x):
        return self.randn(x.shape, dtype=x.dtype)


def as_logged(order):
    """`draws.order` in the form of `Draws.log`: an integer draw is known by its range alone."""
    return [[d[0], d[2] - d[1], d[3]] if d[0] == "integers" else list(d) for d in order]


def entry(name, area="mac"):
    """The state-dict entry of that name."""
    return next(p.values[0].spec for p in cases(area, "state_dict") if p.values[0].name == name)


def fill(module, name, case=None, area="mac"):
    """The weight rule of the area; also checks keys, order and shapes of the state dict."""
    spec = entry(name, area)
    state = module.state_dict()
    assert {k: list(v.shape) for k, v in state.items()} == spec["shapes"]
    assert list(state) == list(spec["shapes"])
    for key, shape in spec["shapes"].items():
        how = spec["buffers"].get(key)
        if how == "constructed":
            continue
        if isinstance(how, dict):
            state[key] = case.shared(how["array"])
            continue
        w = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
        if how == "unit":
            w = w / np.linalg.norm(w)
        elif how is None and w.ndim >= 2:
            w = w / np.sqrt(np.prod(shape[1:]))
        elif how is None:
            w = 1 + 0.1 * w if key.endswith("weight") else 0.1 * w
        state[key] = torch.from_numpy(np.asarray(w, dtype=np.float32)).to(state[key].dtype)
    module.load_state_dict(state)
    return module


def expect(case, role, own):
    """Compare a result with the array that the case names, at its tolerance."""
    spec = case.spec["expect"][role]
    own = torch.as_tensor(own).detach()
    own = apply(own, spec.get("of", [])).numpy()
    want = np.asarray(case.shared(spec["array"]).numpy()[tuple(spec.get("at", ()))])
    assert own.shape == want.shape, f"{case} {role}: shape {own.shape}, expected {want.shape}"
    atol, rtol = (np.asarray(spec["tolerance"][k], dtype=np.float64) for k in ("atol", "rtol"))
    error, allowed = np.abs(own - want), atol + rtol * np.abs(want)
    assert (error <= allowed).all(), f"{case} {role}: off by up to {error.max():.3g}"
    note(error, allowed, want)


def grad_norms(parameters):
    """Per parameter, 0 where there is no gradient."""
    return torch.stack([p.grad.norm() if p.grad is not None else torch.zeros(()) for p in parameters])


def precond_config(spec):
    """`networks.build` arguments of a V."""
    net = dict(spec["network"])
    model_type = net.pop("type")
    for name in ("in_channels", "out_channels", "img_resolution", "label_dim"):
        net.pop(name)
    return {
        "class_name": {"edm_alpha": "EDMPrecond", "edm_gamma": "EDMGammaPrecond"}[spec["precond"]],
        "img_resolution": spec["network"]["img_resolution"],
        "img_channels": spec["img_channels"],
        "label_dim": spec["label_dim"],
        "sigma_data": spec["sigma_data"],
        "model_type": model_type,
        **net,
    }


def coefficient_config(spec):
    """`CoefficientNet` arguments without resolution, channels, labels and M."""
    keys = ("scale", "multidimensionality", "lpf", "gauss_kernel_sigma", "x_0_conditioning")
    inner = {k: v for k, v in spec["unet"].items()
             if k not in ("type", "img_resolution", "in_channels", "out_channels", "label_dim")}  # fmt: skip
    return {k: spec[k] for k in keys if k in spec} | inner

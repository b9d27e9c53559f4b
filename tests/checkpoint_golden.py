"""Golden cases of the area `checkpoints`: arrays with index and rows, filled networks, and configurations."""

import json
from functools import cache

import numpy as np
import torch
from golden_cases import fill_weights

from networks.models.autoencoder import build_autoencoder
from networks.published.unet_shapes import classifier_arguments, unet_arguments
from networks.trunks.adm_classifier import ADMClassifier
from networks.trunks.adm_unet import ADMUNet


def has(case, role):
    return role in case.spec["inputs"]


def value(case, role):
    """An input of the case as a tensor."""
    return torch.from_numpy(np.array(_array(case, case.spec["inputs"][role])))


def _array(case, where):
    array = case.shared(where["array"]).numpy()
    return array[tuple(where["index"])] if "index" in where else array


def expect(case, role, own):
    """|own - stored| <= atol + rtol |stored|, own broadcast to the stored shape, at the rows that the case names."""
    where = case.spec["expect"][role]
    stored = np.asarray(_array(case, where) if "array" in where else where["value"])
    own = torch.as_tensor(own).detach().numpy()
    own = np.broadcast_to(own, stored.shape) if own.size == stored.size or own.ndim < stored.ndim else own
    assert own.shape == stored.shape, f"{case} {role}: shape {own.shape}, expected {stored.shape}"
    if "rows" in where:
        own, stored = own[where["rows"]], stored[where["rows"]]
    atol, rtol = where["tolerance"]["atol"], where["tolerance"]["rtol"]
    np.testing.assert_allclose(own, stored, rtol=rtol, atol=atol, err_msg=f"{case} {role}")


def expect_all(case, **results):
    assert set(results) == set(case.spec["expect"])
    for role, own in results.items():
        expect(case, role, own)


def definition(case, name):
    """A network's entry of the case's file, or of the file that it refers to."""
    found = case.file["networks"][name]
    if "file" in found:
        return json.loads((case.path.parent / found["file"]).read_text())["networks"][name]
    return found


def make(kind, config, **options):
    """An unfilled network of a golden type."""
    if kind in ("vq_autoencoder", "kl_autoencoder"):
        name = {"vq_autoencoder": "VQAutoencoder", "kl_autoencoder": "KLAutoencoder"}[kind]
        rest = {k: v for k, v in config.items() if k != "ddconfig"}
        return build_autoencoder(name, **rest, **config["ddconfig"])
    size = {"img_resolution": config["image_size"], "in_channels": config["in_channels"]}
    if kind == "adm_classifier":
        return ADMClassifier(**size, **classifier_arguments(config))
    return ADMUNet(**size, label_dim=config.get("num_classes") or 0, **unet_arguments({"type": kind, **config}))


@cache
def _filled(text):
    spec = json.loads(text)
    net = fill_weights(make(spec["type"], spec["config"]).eval().requires_grad_(False), spec["fill"]["keep_computed"])
    assert {k: list(v.shape) for k, v in net.state_dict().items()} == spec["state_dict"]
    return net


def filled(case, name):
    """A network of the case with the weights that the fill rule gives it; its keys and shapes are compared."""
    return _filled(json.dumps(definition(case, name)))

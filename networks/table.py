"""NETWORKS: every network that can be built by name, and `build`, the one way to do so.

A built network carries `config`, plain data from which `build(**net.config)` makes the same network again: what
snapshots store.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from networks.models.autoencoder import AUTOENCODERS
from networks.models.baselines import VEPrecond, VPPrecond, iDDPMPrecond
from networks.models.consistency_precond import CMPrecond
from networks.models.dit_precond import DiTPrecond
from networks.models.encoder import CouplingEncoder
from networks.models.fusion import FusionNetwork
from networks.models.interpolant import InterpolantNetwork, PartNetwork
from networks.models.latent import LatentDenoiser
from networks.models.latent_model import LatentModel
from networks.models.mac import MACNetwork
from networks.models.noise_precond import NoisePrecond
from networks.models.precond import MODELS, EDMGammaPrecond, EDMPrecond
from networks.models.velocity import VelocityNetwork

NETWORKS: dict[str, type[nn.Module]] = {
    "EDMPrecond": EDMPrecond,
    "VPPrecond": VPPrecond,
    "VEPrecond": VEPrecond,
    "iDDPMPrecond": iDDPMPrecond,
    "EDMGammaPrecond": EDMGammaPrecond,
    "MACNetwork": MACNetwork,
    "VelocityNetwork": VelocityNetwork,
    "InterpolantNetwork": InterpolantNetwork,
    "PartNetwork": PartNetwork,
    "FusionNetwork": FusionNetwork,
    "CouplingEncoder": CouplingEncoder,
    "CMPrecond": CMPrecond,
    "NoisePrecond": NoisePrecond,
    "LatentDenoiser": LatentDenoiser,
    "DiTPrecond": DiTPrecond,
    "LatentModel": LatentModel,
    **AUTOENCODERS,
}


def _models(cls: type) -> dict[str, type[nn.Module]]:
    """What `model_type` may be: the class's own table, else the U-Nets of the preconditioners."""
    return getattr(cls, "models", MODELS)


def _parameters(cls: type, kwargs: dict[str, Any]) -> dict[str, inspect.Parameter]:
    """Keyword arguments of a class; where it passes further ones on to its model_type, those of that model too."""
    own = dict(inspect.signature(cls).parameters)
    if not any(p.kind is p.VAR_KEYWORD for p in own.values()):
        return own
    own = {name: p for name, p in own.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    if "model_type" not in own:  # passed on to the class that it is made of
        return _parameters(cls.__mro__[1], kwargs) | own
    model = _models(cls).get(kwargs.get("model_type", own["model_type"].default))
    inner = dict(inspect.signature(model).parameters) if model else {}
    return {name: p for name, p in inner.items() if name not in ("in_channels", "out_channels")} | own


def build(class_name: str, **kwargs: Any) -> nn.Module:
    """Construct a network of NETWORKS; its random initialisation comes from torch's global generator.

    Args:
        class_name: key of NETWORKS.
        kwargs: constructor arguments; preconditioners pass the arguments of their `model_type` on. Networks inside of
            the network, named by the class in PARTS, are given as their own `config`.

    Raises:
        ValueError: unknown class, unknown or missing arguments, or values that do not fit.
    """
    if class_name not in NETWORKS:
        raise ValueError(f"unknown network class '{class_name}': choose one of {', '.join(NETWORKS)}")
    cls = NETWORKS[class_name]
    model_type = kwargs.get("model_type")
    if model_type is None or model_type in _models(cls):  # else the constructor names the models
        accepted = _parameters(cls, kwargs)
        if unknown := [name for name in kwargs if name not in accepted]:
            raise ValueError(
                f"{class_name} has no argument {', '.join(map(repr, unknown))}: it takes {', '.join(accepted)}"
            )
        if missing := [name for name, p in accepted.items() if p.default is p.empty and name not in kwargs]:
            raise ValueError(f"{class_name} needs {', '.join(missing)}: give a value for each")
    parts = {name: _part(class_name, name, kwargs[name]) for name in getattr(cls, "PARTS", ())}
    net = cls(**{**kwargs, **parts})
    net.config = {"class_name": class_name, **copy.deepcopy(kwargs)}
    return net


def _part(class_name: str, name: str, config: Any) -> nn.Module:
    """A network inside of another; it has no such parts itself, which bounds what a file can ask for."""
    if not isinstance(config, Mapping) or not isinstance(config.get("class_name"), str):
        raise ValueError(f"the {name} of a {class_name} is a network's config: a class_name and its arguments")
    if hasattr(NETWORKS.get(config["class_name"]), "PARTS"):
        raise ValueError(f"the {name} of a {class_name} cannot be a {config['class_name']}")
    return build(**config)

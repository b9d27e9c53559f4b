"""Published checkpoints of joint coupling / velocity models: flat state dicts that do not say which network they fit.

`flow_model_*.pth` holds the tensors of a velocity network, `forward_model_*.pth` those of an encoder under the prefix
`encoder.` (Lee, Kim, Ye 2023, arXiv 2301.12003). The network is found among the presets by names and shapes, or given
as a preset's name, a JSON file or a configuration. Files are read with the restricted reader: tensors only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from networks.published.flow_configs import PRESETS, read_config, to_kwargs
from networks.table import build
from torch_utils.pickles.machine import shown

__all__ = ["FlowCheckpoint", "is_flow", "match_preset", "to_checkpoint"]

Config = str | Path | Mapping[str, Any]
FlowCheckpoint = tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]  # build arguments, facts, state dict

ENCODER = "encoder."


def is_flow(state: Mapping[str, Tensor], config: Config | None) -> bool:
    """Whether this is a file of joint coupling / velocity models, by its configuration or its tensors."""
    if config is None:
        return match_preset(state) is not None
    if isinstance(config, Mapping):
        return "unet_type" in config or "image_size" not in config
    return str(config) in PRESETS


def match_preset(state: Mapping[str, Tensor]) -> str | None:
    """The first preset whose network has exactly these names and shapes (FFHQ and AFHQ differ in dropout alone)."""
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    encoder = _is_encoder(state)
    configs = {name: roles["en" if encoder else "de"] for name, roles in PRESETS.items()}
    likely = {name: c for name, c in configs.items() if shapes.get(_first(c, encoder)[0]) == _first(c, encoder)[1]}
    return next((name for name, config in likely.items() if _shapes(config, encoder) == shapes), None)


def _is_encoder(state: Mapping[str, Tensor]) -> bool:
    return all(name.startswith(ENCODER) for name in state)


def _first(config: Mapping[str, Any], encoder: bool) -> tuple[str, tuple[int, ...]]:
    """Name and shape of the first layer's weight: tells most networks apart without building them."""
    prefix, res, channels = ENCODER if encoder else "", config["img_resolution"], config["in_channels"]
    if config["unet_type"] == "mlp":
        return f"{prefix}fc1.weight", (config["hidden"], channels * res**2 + 1)
    return f"{prefix}enc.{res}x{res}_conv.weight", (config["model_channels"], channels, 3, 3)


def _shapes(config: Mapping[str, Any], encoder: bool) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        net = build(**to_kwargs(config, encoder))
    return {k: tuple(v.shape) for k, v in (net if encoder else net.model).state_dict().items()}


def to_checkpoint(path: str | Path, state: Mapping[str, Tensor], config: Config | None = None) -> FlowCheckpoint:
    """Arguments of `networks.build`, facts and state dict of a published file.

    Args:
        state: tensors by name, as in the file.
        config: name of a preset, JSON file or configuration; None: found by the shapes.

    Raises:
        ValueError: no preset has these tensors, or an unknown or wrong configuration.
    """
    encoder = _is_encoder(state)
    name: str | None = None
    if config is None:
        name = match_preset(state)
        if name is None:
            raise ValueError(
                f"{path} holds tensors alone, and no known network has them (first: {shown(next(iter(state)))}): give "
                f"its configuration, a JSON file or one of {', '.join(PRESETS)}"
            )
        config = PRESETS[name]["en" if encoder else "de"]
    elif not isinstance(config, Mapping):
        name = str(config) if str(config) in PRESETS else None
        config = PRESETS[name]["en" if encoder else "de"] if name else read_config(config)
    kwargs = to_kwargs(config, encoder)
    facts = {"config": kwargs, "method": "curvature", "source": f"published checkpoint {Path(path).name}"}
    if name is not None:
        facts["preset"] = name
    if kwargs["class_name"] == "VelocityNetwork":
        facts |= {"path": "linear", "predicts": "velocity"}
        state = {f"model.{name}": value for name, value in state.items()}
    return kwargs, facts, dict(state)

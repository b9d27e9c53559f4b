"""Configurations of the published joint coupling / velocity models, and the JSON files that describe others.

Lee, Kim, Ye 2023 (arXiv 2301.12003). A file is one flat JSON object: `unet_type` ("songunet" or "adm"; for points
"mlp" or "fourier_mlp") and the arguments of that network under the names of the original; the informational
`num_params` is skipped. An encoder has twice as many output as input channels. `to_kwargs` turns a configuration into
arguments of `networks.build`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from networks.models.velocity import TRUNKS
from torch_utils.files import read_json

__all__ = ["PRESETS", "read_config", "to_kwargs"]

_COMMON: dict[str, Any] = {
    "unet_type": "songunet", "label_dim": 0, "augment_dim": 0, "channel_mult_emb": 4, "attn_resolutions": [16],
    "label_dropout": 0, "embedding_type": "positional", "channel_mult_noise": 1, "encoder_type": "standard",
    "decoder_type": "standard", "resample_filter": [1, 1],
}  # fmt: skip

# name -> resolution, channels, channel_mult, dropout, (channels, blocks) of the decoder, the same of the encoder
_SIZES: dict[str, tuple[int, int, list[int], float, tuple[int, int], tuple[int, int]]] = {
    "mnist": (28, 1, [2, 2, 2], 0.13, (32, 2), (32, 2)),
    "cifar10": (32, 3, [2, 2, 2], 0.13, (128, 4), (32, 2)),
    "ffhq": (64, 3, [1, 2, 2, 2], 0.05, (128, 4), (32, 2)),
    "afhq": (64, 3, [1, 2, 2, 2], 0.25, (128, 4), (32, 2)),
    "celebahq256": (256, 3, [1, 2, 2, 2], 0.25, (128, 4), (32, 2)),
    "digits": (8, 1, [1, 2], 0.0, (32, 1), (32, 1)),  # not published: the 8x8 digits, for a CPU
}


def _config(name: str, encoder: bool) -> dict[str, Any]:
    resolution, channels, mult, dropout, *sizes = _SIZES[name]
    width, blocks = sizes[encoder]
    return _COMMON | {
        "img_resolution": resolution, "in_channels": channels, "out_channels": channels * (1 + encoder),
        "model_channels": width, "channel_mult": mult, "num_blocks": blocks, "dropout": dropout,
    }  # fmt: skip


_POINTS = {"unet_type": "mlp", "img_resolution": 1, "in_channels": 2, "hidden": 100}

# name -> {"de": configuration of the velocity network, "en": of the encoder}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    **{name: {"de": _config(name, False), "en": _config(name, True)} for name in _SIZES},
    "two_gaussians": {"de": {**_POINTS, "out_channels": 2}, "en": {**_POINTS, "out_channels": 4}},  # any points
}

_UNETS = {"songunet": "SongUNet", "adm": "ADMUNet", "mlp": "MLP", "fourier_mlp": "FourierMLP"}
_INFORMATION = ("unet_type", "num_params")
_RENAMED = {"image_size": "img_resolution"}  # the ADM network's name


def read_config(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError if the file holds something else, OSError if it cannot be read."""
    config = read_json(path, "a configuration of a network")
    if not isinstance(config, dict):
        raise ValueError(f"{path} does not hold a JSON object of network arguments, such as cifar10_de.json does")
    return config


def to_kwargs(config: Mapping[str, Any], encoder: bool = False) -> dict[str, Any]:
    """Arguments of `networks.build` for the configuration of an encoder or a velocity network.

    Raises:
        ValueError: an unknown U-Net type, unknown or missing fields, or channels that do not fit the role.
    """
    kind = config.get("unet_type", "adm" if "image_size" in config else "songunet")
    if kind not in _UNETS:
        raise ValueError(f"unet_type '{kind}' is unknown: choose one of {', '.join(_UNETS)}")
    fields = {_RENAMED.get(k, k): v for k, v in config.items() if k not in _INFORMATION}
    if kind == "adm":
        _need_full_precision(fields)
    taken = inspect.signature(TRUNKS[_UNETS[kind]]).parameters
    if unknown := [k for k in fields if k not in taken]:
        raise ValueError(f"a {kind} configuration has no field {unknown[0]}: it takes {', '.join(taken)}")
    if missing := [k for k, p in taken.items() if p.default is p.empty and k not in fields]:
        raise ValueError(f"the {kind} configuration lacks the field {missing[0]}: it needs {', '.join(missing)} too")
    for name, value in fields.items():
        _check_value(name, value, taken[name])
    channels, out = fields.pop("in_channels"), fields.pop("out_channels")
    if out != channels * (1 + encoder):
        raise ValueError(
            f"{out} output channels do not fit {channels} input channels: "
            f"{'an encoder has twice as many (mu and logvar)' if encoder else 'a velocity network has as many'}"
        )
    if encoder and fields.get("label_dim"):
        raise ValueError("an encoder takes no class labels: set its label_dim to 0")
    return {
        "class_name": "CouplingEncoder" if encoder else "VelocityNetwork",
        "img_channels": channels,
        "model_type": _UNETS[kind],
        **fields,
    }


_KINDS: dict[str, tuple[Any, str]] = {
    "int": (int, "a whole number"), "float": (int | float, "a number"), "bool": (bool, "true or false"),
    "str": (str, "a text"),
}  # fmt: skip


def _check_value(name: str, value: Any, parameter: inspect.Parameter) -> None:
    """A ValueError where the value is not what the network's argument is declared as, or too small for it."""
    kind = str(parameter.annotation).removeprefix("Sequence[").removesuffix("]")
    types, word = _KINDS[kind]
    listed = kind != parameter.annotation
    values = (value if isinstance(value, list | tuple) else [None]) if listed else [value]
    sized = kind == "int" and (listed or parameter.default not in (0, -1))
    lowest = 1 if sized else -1 if parameter.default == -1 else 0
    for v in values:
        if not isinstance(v, types) or (kind != "bool" and isinstance(v, bool)) or (kind != "str" and v < lowest):
            raise ValueError(
                f"the field {name} is {json.dumps(value)}: give {'a list, each ' * listed}{word}"
                + (f" of {lowest} or more" if kind in ("int", "float") else "")
            )


def _need_full_precision(fields: dict[str, Any]) -> None:
    if fields.pop("use_fp16", False):
        raise ValueError("use_fp16 is no property of the network here: leave it out and give --precision=fp16")

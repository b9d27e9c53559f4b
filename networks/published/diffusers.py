"""Folders of diffusers (`diffusers:DIR`): noise models on a table and flow models, with all parts of the folder.

The installed diffusers (extra `diffusers`) builds the parts, always from the local folder and from safetensors; class
names in `model_index.json` are looked up in a table, never imported. What the network predicts and its noise levels
come from the scheduler's configuration.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from networks.published.configs import read_any
from networks.published.diffusers_calls import NETWORKS, call_of
from networks.published.diffusers_models import FlowFolder, FolderModel, NoiseFolder
from networks.published.diffusers_text import RECIPES, TextParts, check_loaded, check_part
from torch_utils.errors import importing, reason
from torch_utils.noise_table import scheduler_alphas
from torch_utils.pickles.machine import shown

__all__ = ["MISSING", "PREFIX", "load_folder", "load_part", "read_index"]

PREFIX = "diffusers:"
_AUTOENCODERS = ("AutoencoderKL", "VQModel")
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
MISSING = "folders of diffusers need that package: pip install 'fewstep[diffusers]'"
_WEIGHTS = "diffusion_pytorch_model"


def load_folder(folder: str | Path, config: Any = None) -> FolderModel:
    """The model in a folder of diffusers.

    Args:
        config: what the folder does not say, a JSON file or a mapping: `image_size` in pixels, and `guidance`, the
            strength that a guidance-distilled network is told.

    Raises:
        ValueError: diffusers is missing, or a folder, class or scheduler that is not read; names the folder.
    """
    with importing(MISSING):
        import diffusers
    diffusers.utils.logging.set_verbosity_error()  # what is wrong is said below, once
    folder = Path(folder)
    index = read_index(folder)
    name, kind = _part(folder, index, ("unet", "transformer"), NETWORKS)
    stage = _part(folder, index, ("vae", "vqvae"), _AUTOENCODERS, optional=True)
    scheduler = _json(folder / "scheduler" / "scheduler_config.json")
    try:
        options = _options({} if config is None else read_any(config))
        network = load_part(getattr(diffusers, kind), folder / name)
        call = call_of(network)
        make = _model(kind, call.flow, scheduler)
        options["autoencoder"] = None if stage is None else load_part(getattr(diffusers, stage[1]), folder / stage[0])
        if call.text:
            sizes = call.width(network.config), call.pooled(network.config)
            options["text"] = TextParts(folder, index, RECIPES[call.text], *sizes)
        net = make(network, call, **options)
    except ValueError as error:
        raise ValueError(f"{folder} is refused: {error}") from None
    except Exception as error:  # what a library says of a damaged folder has no common class
        raise ValueError(f"{folder} cannot be loaded ({reason(error)})") from None
    net.info = {"method": "diffusers", "source": folder.name, "class": kind}
    return net


def read_index(folder: Path) -> dict[str, Any]:
    """What `model_index.json` says; ValueError where it is missing or damaged."""
    return _json(folder / "model_index.json")


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {"image_size": int, "guidance": int | float}
    for key, value in config.items():
        if key not in kinds or not isinstance(value, kinds[key]) or isinstance(value, bool) or not 0 <= value < 1 << 16:
            raise ValueError(
                f"a configuration of a folder has image_size, a number of pixels, and guidance, a number; not "
                f"{shown(key)}={shown(value)}"
            )
    return {{"image_size": "size"}.get(key, key): value for key, value in config.items()}


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(f"{path.parent} is no folder of diffusers: it has no {path.name}") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it is not a JSON object")
    return value


def _part(
    folder: Path, index: Mapping[str, Any], names: Sequence[str], known: Sequence[str], optional: bool = False
) -> tuple[str, str] | None:
    """Sub-folder and class of one part of a pipeline."""
    for name in names:
        entry = index.get(name)
        if isinstance(entry, list) and len(entry) == 2 and entry[1] is not None:
            if entry[1] not in known:
                raise ValueError(f"{folder} has a {name} of class {shown(entry[1])}: {', '.join(known)} are read")
            return name, entry[1]
    if optional:
        return None
    raise ValueError(f"{folder} has no {' or '.join(names)}: it is no pipeline of diffusers that is read here")


def _model(kind: str, flow: bool, config: Mapping[str, Any]) -> Callable[..., FolderModel]:
    """The class of model, bound to what the scheduler says of its noise levels."""
    name = str(config.get("_class_name", ""))
    if flow != name.startswith("FlowMatch"):
        raise ValueError(f"its scheduler is of class {shown(name)}, which does not go with a {kind}")
    if flow:
        return functools.partial(FlowFolder, shift=_shift(config))
    table, prediction = _levels(config)
    return functools.partial(NoiseFolder, table=table, prediction=prediction)


def _number(config: Mapping[str, Any], name: str, default: float) -> float:
    value = config.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"its scheduler has {name}={shown(value)}, which is no number")
    return float(value)


def _shift(config: Mapping[str, Any]) -> Callable[[int], float]:
    """Number of tokens -> shift of times: fixed, or its logarithm linear in that number."""
    if not config.get("use_dynamic_shifting"):
        fixed = _number(config, "shift", 1.0)
        if not 0 < fixed < 1e6:
            raise ValueError(f"its scheduler has shift={fixed:g}, which must be positive")
        return lambda tokens: fixed
    named = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
    few, many, low, high = (_number(config, key, default) for key, default in named.items())
    if few >= many or not 0 < low <= high < 20:
        raise ValueError("its scheduler's dynamic shift is out of range")
    exponential = config.get("time_shift_type", "exponential") == "exponential"

    def shift(tokens: int) -> float:
        mu = low + (high - low) * (tokens - few) / (many - few)
        return math.exp(mu) if exponential else mu

    return shift


def _levels(config: Mapping[str, Any]) -> tuple[Tensor, str]:
    """alphas_cumprod as the scheduler makes it, and what the network predicts."""
    if config.get("rescale_betas_zero_snr"):
        raise ValueError("its noise levels are rescaled to zero signal, and such models are not read")
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        raise ValueError(f"it predicts {shown(prediction)}: {', '.join(_PREDICTIONS)} are read")
    return scheduler_alphas(config), prediction


def load_part(cls: Any, path: Path) -> nn.Module:
    """One part in float32; of two precisions the full one is read."""
    check_part(path, lambda: cls.from_config(cls.load_config(path, local_files_only=True)))
    full = any(path.glob(f"{_WEIGHTS}.safetensors")) or any(path.glob(f"{_WEIGHTS}.safetensors.index.json"))
    half = not full and any(path.glob(f"{_WEIGHTS}*.fp16*.safetensors"))
    how = {"local_files_only": True, "use_safetensors": True, "variant": "fp16" if half else None}
    how |= {"low_cpu_mem_usage": False, "ignore_mismatched_sizes": True}  # which are refused below
    part, found = cls.from_pretrained(path, **how, output_loading_info=True)
    check_loaded(path, found)
    return part.float()

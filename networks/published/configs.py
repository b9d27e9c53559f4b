"""Configurations that users give for published files: JSON, the original's YAML, or a mapping.

YAML is read by the safe loader, and its `target:` names are looked up in a table, never imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from networks.published.flow_configs import read_config
from torch_utils.pickles.foreign import naming
from torch_utils.pickles.machine import shown
from torch_utils.pickles.tree import check_tree

__all__ = ["read_any"]

MAX_YAML = 1 << 20
_UNET = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
_STAGES = {"ldm.models.autoencoder.VQModelInterface", "ldm.models.autoencoder.VQModel", "taming.models.vqgan.VQModel",
           "ldm.models.autoencoder.AutoencoderKL"}  # fmt: skip
_CONDITIONS = {"__is_unconditional__", "ldm.modules.encoders.modules.ClassEmbedder",
               "ldm.modules.encoders.modules.FrozenCLIPEmbedder"}  # fmt: skip
_MODELS = {"ldm.models.diffusion.ddpm.LatentDiffusion"}
_SCHEDULES = {"linear": "sqrt_linear_squared", "sqrt_linear": "linear", "sqrt": "sqrt", "cosine": "cosine"}


def read_any(config: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in the words of `unet_shapes`.

    Raises:
        ValueError: a file that is neither, unknown targets, or a description of something else; names the file.
    """
    if isinstance(config, Mapping):
        return dict(config)
    if Path(config).suffix not in (".yaml", ".yml"):
        return read_config(config)
    with naming(config):
        return _of_latent_diffusion(_yaml(config))


def _yaml(path: str | Path) -> Any:
    import yaml

    raw = Path(path).read_bytes()
    if len(raw) > MAX_YAML:
        raise ValueError(f"it has {len(raw)} bytes, more than a configuration needs")
    try:
        value = yaml.safe_load(raw)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"it is not plain YAML ({shown(' '.join(str(error).split()))})") from None
    check_tree(value)
    return value


def _of_latent_diffusion(value: Any) -> dict[str, Any]:
    model = _part(value if isinstance(value, dict) else {}, "model", _MODELS)
    unet = _part(model, "unet_config", {_UNET})
    stage = _part(model, "first_stage_config", _STAGES)
    if isinstance(model.get("cond_stage_config"), dict):
        _part(model, "cond_stage_config", _CONDITIONS)
    elif model.get("cond_stage_config") not in (None, *_CONDITIONS):
        raise ValueError(f"its condition {shown(model['cond_stage_config'])} is not known here")
    name = model.get("beta_schedule", "linear")
    if name not in _SCHEDULES:
        raise ValueError(f"its beta_schedule {shown(name)} is not known: {', '.join(_SCHEDULES)} are")
    schedule = {"kind": _SCHEDULES[name], "steps": model.get("timesteps", 1000)}
    schedule |= {"beta_start": model.get("linear_start", 1e-4), "beta_end": model.get("linear_end", 2e-2)}
    config = {k: v for k, v in unet.items() if k not in ("legacy", "use_checkpoint", "use_fp16", "image_size")}
    config |= {"image_size": model.get("image_size", unet.get("image_size")), "schedule": schedule}
    config |= {"scale_factor": model.get("scale_factor", 1.0)}
    dd = stage.get("ddconfig")
    if isinstance(dd, dict):
        config["first_stage"] = {k: dd[k] for k in ("resolution", "attn_resolutions") if k in dd}
    return config


def _part(parent: Any, name: str, known: set[str]) -> dict[str, Any]:
    """The `params` of a part whose `target` is in a table."""
    part = parent.get(name)
    if not isinstance(part, dict) or not isinstance(part.get("params", {}), dict):
        raise ValueError(f"it describes no {name}: give the configuration of a latent diffusion model")
    if part.get("target") not in known:
        raise ValueError(f"its {name} has the target {shown(part.get('target'))}, which is not known here")
    return part.get("params", {})

"""Files of diffusion transformers: DiT, SiT, REPA and ComboStoc.

Peebles and Xie 2023 (arXiv 2212.09748), Ma et al. 2024 (arXiv 2401.08740), Yu et al. 2024 (arXiv 2410.06940), Xie et
al. 2024 (arXiv 2405.13729). Flat state dicts, or `{model, ema, opt, args}`, of which the average is taken. DiT and
SiT have the same tensors and mean different things by them: noise at an index of a table, or velocity at a time.
Which it is must be said (`{"type": "dit"}` or `"sit"`) unless the file's name begins with one of them; a time for
every element is ComboStoc, and `projectors.*` are of REPA, which is a SiT.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from networks.published.unet_shapes import autoencoder_config, check_words
from networks.trunks.transformer import SIZES
from torch_utils.noise_table import alphas_cumprod, betas_of

__all__ = ["first_stage_of", "is_transformer", "scale_of", "to_checkpoint"]

TYPES = ("dit", "sit", "combostoc")
_TABLE = {"kind": "linear", "steps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
_DIMENSIONS = {"x_embedder.proj.weight": 4, "final_layer.linear.weight": 2, "pos_embed": 3}
_SCALE = 0.18215  # of the latents that published files were trained on


def is_transformer(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of a diffusion transformer."""
    return state.keys() >= _DIMENSIONS.keys()


def to_checkpoint(
    path: str | Path,
    state: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    first_stage: Callable[[], Mapping[str, Tensor]] | None = None,
    decoded_outside: bool = False,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """Arguments of `networks.build`, facts and state dict of a file.

    Args:
        state: tensors by name.
        config: `type`, and `num_heads` of sizes that were not published.
        first_stage: () -> tensors of the autoencoder, of models of latents; called where they are needed.
        decoded_outside: it is not part of the network.

    Raises:
        ValueError: a file whose type cannot be told, latents without autoencoder, other configuration.
    """
    check_words(config, ("type", "num_heads", "scale_factor"), str(path))
    kind = _kind(path, state, config or {})
    state = {k: v for k, v in state.items() if not k.startswith("projectors.")}
    for name, ndim in _DIMENSIONS.items():
        if state[name].ndim != ndim:
            raise ValueError(f"{path}: its tensor {name} has shape {list(state[name].shape)}, not {ndim} dimensions")
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    network = _network(path, state, config or {}, width, channels, patch)
    labels = state.get("y_embedder.embedding_table.weight")
    kwargs: dict[str, Any] = {
        "class_name": "DiTPrecond" if kind == "dit" else "InterpolantNetwork",
        "img_resolution": math.isqrt(state["pos_embed"].shape[1]) * patch,
        "img_channels": channels,
        "label_dim": 0 if labels is None else len(labels) - 1,
        **({"network": network} if kind == "dit" else {**network, **_elements(kind)}),
    }
    tensors = {f"model.{k}": v for k, v in state.items()}
    if kind == "dit":
        tensors["alphas_cumprod"] = alphas_cumprod(betas_of(**_TABLE))
    facts = {"method": kind, "source": Path(path).name}
    if channels not in (1, 3) and not decoded_outside:
        if first_stage is None:
            raise ValueError(
                f"{path} makes latents of {channels} channels, and brings no autoencoder: give its file with --vae"
            )
        stage = first_stage()
        kwargs = {
            "class_name": "LatentModel", "network": kwargs, "first_stage": autoencoder_config(stage),
            "scale_factor": (config or {}).get("scale_factor", _SCALE),
        }  # fmt: skip
        tensors = {f"network.{k}": v for k, v in tensors.items()}
        tensors |= {f"first_stage.{k}": v for k, v in stage.items()}
    elif channels in (1, 3) and (first_stage is not None or decoded_outside):
        raise ValueError(f"{path} makes images, not latents: leave the autoencoder out")
    return kwargs, {"config": kwargs, **facts}, tensors


def _elements(kind: str) -> dict[str, bool]:
    """A time for every element, whose velocities the published program trains compensated."""
    return {"element_times": kind == "combostoc", "compensated": kind == "combostoc"}


def _kind(path: str | Path, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    kind = config.get("type")
    if kind is not None and kind not in TYPES:
        raise ValueError(f"there is no transformer of type '{kind}': choose from {', '.join(TYPES)}")
    elements = "t_embedder.patchEmb.proj.weight" in state
    if kind is not None and (kind == "combostoc") != elements:
        what = "for every element" if elements else "a sample"
        raise ValueError(f"{path} is no {kind}: its network is told one time {what}")
    if kind is not None or elements:
        return kind or "combostoc"
    if any(k.startswith("projectors.") for k in state):
        return "sit"
    named = next((t for t in TYPES if Path(path).name.lower().startswith(t)), None)
    if named is None:
        raise ValueError(
            f"{path} may be a DiT, which predicts noise, or a SiT, which predicts velocity: their tensors are equal. "
            'Give a configuration with {"type": "dit"} or {"type": "sit"}'
        )
    return named


def _network(
    path: str | Path, state: Mapping[str, Tensor], config: Mapping[str, Any], width: int, channels: int, patch: int
) -> dict[str, Any]:  # fmt: skip
    depth = 1 + max(int(m[1]) for k in state if (m := re.match(r"blocks\.(\d+)\.", k)))
    heads = config.get("num_heads") or next((h for d, w, h in SIZES.values() if (d, w) == (depth, width)), None)
    if heads is None:
        raise ValueError(
            f"{path} has {depth} blocks of width {width}, which is no published size, and its tensors do not show the "
            'heads: give a configuration with {"num_heads": ...}'
        )
    outputs = state["final_layer.linear.weight"].shape[0] // (patch * patch * channels)
    return {
        "patch_size": patch, "width": width, "depth": depth, "num_heads": heads, "learn_sigma": outputs == 2,
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / width, "label_dropout": 0.1,
    }  # fmt: skip


def scale_of(stage: Any, config: Mapping[str, Any], path: str | Path) -> float:
    """What latents of an autoencoder that lies alone are multiplied with: as given, else as the published ones are."""
    scale = config.get("scale_factor", {("KLAutoencoder", 4): _SCALE, ("VQAutoencoder", 3): 1.0}.get(
        (type(stage).__name__, stage.embed_dim)
    ))  # fmt: skip
    if not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise ValueError(
            f'{path} does not say the scale of its latents: give a configuration with {{"scale_factor": ...}}, about 1 '
            "over their standard deviation"
        )
    return float(scale)


def first_stage_of(path: str | Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of an autoencoder: of a file of its own, or those inside a latent diffusion checkpoint."""
    prefix = "first_stage_model."
    inner = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)} or dict(state)
    inner = {k: v for k, v in inner.items() if not k.startswith(("loss.", "model_ema."))}
    if "decoder.conv_in.weight" not in inner or "encoder.conv_in.weight" not in inner:
        raise ValueError(f"{path} holds no autoencoder of latent diffusion (encoder.conv_in, decoder.conv_in)")
    return inner

"""Files of latent diffusion and Stable Diffusion 1: a U-Net, an autoencoder and what embeds the condition.

Rombach et al. 2022 (arXiv 2112.10752). The state dict of a training checkpoint has the parts `model.diffusion_model.`
(weights in training), `model_ema.` (their average under names without dots), `first_stage_model.`, `cond_stage_model.`
and the table of noise levels. The average is what is sampled from; files with the average alone have it under the first
name. Heads, the image size and, in files without it, the noise schedule are known for the published shapes or given as
a configuration: JSON in the words of the original, or its own YAML file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from networks.published.unet_shapes import (
    WORDS,
    autoencoder_config,
    check_words,
    first_match,
    need,
    unet_arguments,
    unet_config,
)
from torch_utils.noise_table import alphas_cumprod, betas_of

__all__ = ["CATALOGUE", "is_latent_diffusion", "to_checkpoint"]

UNET, EMA, STAGE, COND = "model.diffusion_model.", "model_ema.", "first_stage_model.", "cond_stage_model."
_TEXT = f"{COND}transformer.text_model."

# What only training needs: the schedule in every form, losses, counters, the weights besides their average.
_OF_TRAINING = re.compile(
    r"betas|alphas_cumprod(_prev)?|(sqrt|log)_\w+|posterior_\w+|lvlb_weights|logvar|scale_factor|loss\..+"
    r"|model_ema\..+|model\.diffusion_model\..+|first_stage_model\.loss\..+|cond_stage_model\..*position_ids"
)

_LDM = {"kind": "sqrt_linear_squared", "steps": 1000, "beta_start": 0.0015, "beta_end": 0.0195}
_SD = {"kind": "sqrt_linear_squared", "steps": 1000, "beta_start": 0.00085, "beta_end": 0.012}
_PLAIN = {"attention_order": "heads_then_qkv", "schedule": _LDM, "scale_factor": 1.0}

# what a U-Net's tensors show -> what they do not show
CATALOGUE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"model_channels": 224, "channel_mult": [1, 2, 3, 4]}, {**_PLAIN, "image_size": 64, "num_head_channels": 32}),
    ({"model_channels": 192, "channel_mult": [1, 2, 2, 4, 4]}, {**_PLAIN, "image_size": 32, "num_head_channels": 24}),
    (
        {"model_channels": 192, "channel_mult": [1, 2, 3, 5], "context_dim": 512},
        {**_PLAIN, "image_size": 64, "num_heads": 1, "attention_order": "separate_linears"},
    ),
    (
        {"model_channels": 320, "channel_mult": [1, 2, 4, 4], "context_dim": 768},
        {
            "image_size": 64, "num_heads": 8, "attention_order": "separate_linears", "schedule": _SD,
            "scale_factor": 0.18215,
        },
    ),
]  # fmt: skip


def is_latent_diffusion(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of a latent diffusion checkpoint."""
    return any(name.startswith(UNET) for name in state)


def to_checkpoint(
    path: str | Path, state: Mapping[str, Tensor], config: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """Arguments of `networks.build`, facts and state dict of a file.

    Args:
        state: tensors by name, as in the file.
        config: what the tensors do not show, over what the catalogue says.

    Raises:
        ValueError: parts that are missing, an average that is not complete, a network that needs a configuration.
    """
    unet, averaged = _unet(state)
    stage = {k.removeprefix(STAGE): v for k, v in state.items() if k.startswith(STAGE)}
    stage = {k: v for k, v in stage.items() if not k.startswith("loss.")}
    if not stage:
        raise ValueError(f"{path} holds no autoencoder under {STAGE}: its latents could not become images")
    check_words(config, (*WORDS, "scale_factor", "first_stage", "text"), str(path))
    shown = unet_config(unet)
    merged = {**shown, **first_match(shown, CATALOGUE), **(config or {})}
    if merged.get("context_dim"):
        merged["attention_order"] = "separate_linears"
    if merged.get("num_heads") and not merged.get("num_head_channels"):
        merged["num_head_channels"] = -1
    need(merged, ["image_size", "num_head_channels", "attention_order"], str(path))
    table = _table(state, merged, str(path))
    network = unet_arguments(merged)
    if merged.get("num_classes"):
        raise ValueError(f"{path} embeds classes in its U-Net, which no published latent model does")
    if "scale_factor" in state:
        scale = float(state["scale_factor"])
    else:
        need(merged, ["scale_factor"], str(path))
        scale = float(merged["scale_factor"])
    kwargs: dict[str, Any] = {
        "class_name": "LatentDenoiser",
        "img_resolution": merged["image_size"],
        "img_channels": merged["in_channels"],
        "network": network,
        "first_stage": {**autoencoder_config(stage), **(merged.get("first_stage") or {})},
        "scale_factor": scale,
        "num_levels": len(table),
    }
    tensors = {f"model.{k}": v for k, v in unet.items()}
    tensors |= {f"first_stage.{k}": v for k, v in stage.items()}
    tensors["alphas_cumprod"] = table
    condition, embedded = _condition(path, state, merged)
    used = {STAGE + k for k in stage} | {k for k in state if embedded and k.startswith((f"{COND}embedding.", _TEXT))}
    _refuse_unknown(path, state, used)
    kwargs, tensors = {**kwargs, **condition}, {**tensors, **embedded}
    facts = {
        "config": kwargs, "method": "latent diffusion", "source": Path(path).name,
        "weights": "average" if averaged else "as in the file",
    }  # fmt: skip
    return kwargs, facts, tensors


def _refuse_unknown(path: str | Path, state: Mapping[str, Tensor], used: set[str]) -> None:
    """A ValueError that names tensors which are neither part of the model nor known to be of training alone."""
    rest = [k for k in state if k not in used and not _OF_TRAINING.fullmatch(k)]
    if rest:
        more = f" and {len(rest) - 5} more" if len(rest) > 5 else ""
        raise ValueError(f"{path} holds the unknown tensors {', '.join(k[:100] for k in rest[:5])}{more}")


def _unet(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """Tensors of the U-Net, from the average where there is one, and whether there is."""
    raw = {k: v for k, v in state.items() if k.startswith(UNET)}
    if not any(k.startswith(EMA) for k in state):
        return {k.removeprefix(UNET): v for k, v in raw.items()}, False
    squeezed = {k: EMA + k.removeprefix("model.").replace(".", "") for k in raw}
    if len(set(squeezed.values())) < len(squeezed):
        raise ValueError("two tensors of its average have one name: it cannot be told which is which")
    if missing := [name for name in squeezed.values() if name not in state]:
        raise ValueError(f"its average lacks {len(missing)} tensors, first {missing[0][:120]}: the file is damaged")
    return {k.removeprefix(UNET): state[name] for k, name in squeezed.items()}, True


def _table(state: Mapping[str, Tensor], config: Mapping[str, Any], what: str) -> Tensor:
    """alphas_cumprod, float64 of float32 values: the file's own, else of the configured schedule."""
    own = state.get("alphas_cumprod")
    if own is not None:
        if own.ndim != 1 or len(own) < 2 or not ((own > 0) & (own < 1)).all() or not (own.diff() < 0).all():
            raise ValueError("its table alphas_cumprod does not fall from 1 to 0: the file is damaged")
        return own.to(torch.float32).double()
    need(config, ["schedule"], what)
    return alphas_cumprod(betas_of(**config["schedule"]), torch.float32)


def _condition(
    path: str | Path, state: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Arguments and tensors of what embeds the condition."""
    if not config.get("context_dim"):
        return {}, {}
    if (table := state.get(f"{COND}embedding.weight")) is not None:
        return {"label_dim": len(table) - 1}, {"class_embedding.weight": table}
    text = {k.removeprefix(_TEXT): v for k, v in state.items() if k.startswith(_TEXT)}
    text.pop("embeddings.position_ids", None)
    if not text:
        raise ValueError(
            f"{path} has tokens to attend to, but neither classes nor a CLIP text model under {COND}: only latent "
            "diffusion by class and Stable Diffusion 1 are read"
        )
    return {"text": _text_config(text) | dict(config.get("text") or {})}, {
        f"text_encoder.text_model.{k}": v for k, v in text.items()
    }


def _text_config(text: Mapping[str, Tensor]) -> dict[str, Any]:
    try:
        vocabulary, width = text["embeddings.token_embedding.weight"].shape
        layers = 1 + max(int(k.split(".")[2]) for k in text if k.startswith("encoder.layers."))
        return {
            "hidden_size": width,
            "intermediate_size": text["encoder.layers.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": layers,
            "num_attention_heads": max(width // 64, 1),  # CLIP's text models have 64 channels a head
            "max_position_embeddings": text["embeddings.position_embedding.weight"].shape[0],
            "vocab_size": vocabulary,
        }
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"its text model is not complete: nothing fits {str(error)[:80]}") from None

"""Files of guided diffusion, its classifiers, and the EDM models behind consistency models: flat state dicts.

Dhariwal and Nichol 2021 (arXiv 2105.05233), Song et al. 2023 (arXiv 2303.01469). The tensors show most of the network;
heads, the order inside of qkv, the image size and the noise schedule are known for the published shapes (`CATALOGUE`)
or given as a configuration in the words of the original: image_size, num_heads or num_head_channels, attention_order
(heads_then_qkv or qkv_then_heads), schedule (see `betas_of`), and for us type (adm_unet or cm_unet), time_convention
and clip_denoised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from networks.published.unet_shapes import (
    WORDS,
    check_words,
    classifier_arguments,
    first_match,
    need,
    unet_arguments,
    unet_config,
)
from torch_utils.noise_table import alphas_cumprod, betas_of

__all__ = ["CATALOGUE", "classifier_parts", "is_guided_diffusion", "to_checkpoint"]

_LINEAR = {"kind": "linear", "steps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
_LEGACY = {"num_head_channels": 64, "attention_order": "heads_then_qkv", "schedule": _LINEAR}

# what a file's tensors show -> what they do not show
CATALOGUE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"attention_axes": 2, "model_channels": 256, "channel_mult": [1, 1, 2, 2, 4, 4]},
        {"image_size": 256, "num_head_channels": 64, "attention_order": "qkv_then_heads"},
    ),
    (
        {"attention_axes": 2, "model_channels": 192, "channel_mult": [1, 2, 3, 4]},
        {"image_size": 64, "num_head_channels": 64, "attention_order": "qkv_then_heads"},
    ),
    (
        {"model_channels": 192, "channel_mult": [1, 2, 3, 4]},
        {
            "image_size": 64, "num_head_channels": 64, "attention_order": "qkv_then_heads",
            "schedule": {"kind": "cosine", "steps": 1000},
        },
    ),
    (
        {"model_channels": 256, "channel_mult": [1, 1, 2, 3, 4]},
        {"image_size": 128, **_LEGACY, "num_heads": 4, "num_head_channels": -1},
    ),
    ({"model_channels": 256, "channel_mult": [1, 1, 2, 2, 4, 4]}, {"image_size": 256, **_LEGACY}),
    ({"model_channels": 256, "channel_mult": [0.5, 1, 1, 2, 2, 4, 4]}, {"image_size": 512, **_LEGACY}),
]  # fmt: skip
_CLASSIFIERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"model_channels": 128}, {"num_head_channels": 64, "attention_order": "heads_then_qkv"}),
]

_OURS = ("time_convention", "clip_denoised")


def is_guided_diffusion(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of a guided-diffusion U-Net or classifier."""
    names = ("time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.0.in_layers.0.weight")
    return all(name in state for name in names)


def to_checkpoint(
    path: str | Path,
    state: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    classifier: Callable[[], tuple[Mapping[str, Tensor], Mapping[str, Any] | None]] | None = None,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """Arguments of `networks.build`, facts and state dict of a file.

    Args:
        state: tensors by name.
        config: what the tensors do not show, over what the catalogue says.
        classifier: () -> tensors and configuration of a classifier for guidance; called where all else fits.

    Raises:
        ValueError: a distilled consistency model, a classifier instead of a network or beside a model that has none,
            a network that needs a configuration, or one that contradicts the tensors.
    """
    if "output_blocks.0.0.in_layers.0.weight" not in state:
        raise ValueError(f"{path} holds a classifier of noisy images: give it with --classifier beside its network")
    check_words(config, (*WORDS, "type", "classifier", *_OURS), str(path))
    shown = unet_config(state)
    merged = {**shown, **first_match(shown, CATALOGUE), **(config or {})}
    consistency = merged.get("type", "cm_unet" if merged.get("attention_axes") == 2 else "adm_unet") == "cm_unet"
    if consistency and Path(path).name.startswith(("cd_", "ct_")):
        raise ValueError(
            f"{path} is a distilled consistency model, which jumps to the data and is no denoiser to integrate: "
            "give the edm_*_ema.pt that it was made from"
        )
    if consistency:
        if classifier is not None:
            raise ValueError(f"no classifier goes with consistency models, of which {path} is one: leave it out")
        merged["attention_order"] = "qkv_then_heads"
    if not merged.get("num_heads") and not merged.get("num_head_channels"):
        merged.pop("num_head_channels", None)
    elif "num_head_channels" not in merged:
        merged["num_head_channels"] = -1
    need(merged, ["image_size", "num_head_channels", "attention_order"] + ["schedule"] * (not consistency), str(path))
    kwargs: dict[str, Any] = {
        "class_name": "CMPrecond" if consistency else "NoisePrecond",
        "img_resolution": merged["image_size"],
        "img_channels": merged["in_channels"],
        "label_dim": merged.get("num_classes") or 0,
        "network": unet_arguments(merged),
    }
    if kwargs["label_dim"] and not consistency:
        kwargs["network"]["label_dim"] = kwargs["label_dim"]
    tensors = {f"model.{name}": value for name, value in _ranks(state, shown).items()}
    facts = {"method": "consistency" if consistency else "guided diffusion", "source": Path(path).name}
    if consistency:
        return kwargs, {"config": kwargs, **facts}, tensors
    schedule = dict(merged["schedule"])
    table = alphas_cumprod(betas_of(**schedule))
    linear = schedule == _LINEAR
    kwargs |= {"time_convention": "vp-continuous" if linear else "table", "num_levels": len(table)}
    kwargs |= {name: merged[name] for name in _OURS if name in merged}
    if kwargs["time_convention"] == "table":
        tensors["alphas_cumprod"] = table
    if classifier is not None:
        kwargs["classifier"], parts = classifier_parts(*classifier())
        tensors |= parts
        kwargs["label_dim"] = kwargs["classifier"]["out_channels"]  # also where the U-Net itself knows no classes
    return kwargs, {"config": kwargs, **facts}, tensors


def classifier_parts(
    state: Mapping[str, Tensor], config: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Arguments of `ADMClassifier`, and its tensors under `classifier.`."""
    if not is_guided_diffusion(state) or "output_blocks.0.0.in_layers.0.weight" in state:
        raise ValueError("the file given as classifier holds no classifier of noisy images")
    check_words(config, (*WORDS, "pool"), "the classifier")
    shown = unet_config(state)
    merged = {**shown, **first_match(shown, _CLASSIFIERS), **(config or {})}
    need(merged, ["num_head_channels", "attention_order"], "this classifier")
    return classifier_arguments(merged), {f"classifier.{name}": value for name, value in state.items()}


def _ranks(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors, with 1x1 kernels of attention in one rank: files of this family hold either."""
    axes = config.get("attention_axes", 1)

    def same(name: str, value: Tensor) -> Tensor:
        kernel = name.endswith(("qkv.weight", "proj_out.weight")) and value.ndim in (3, 4)
        return value.reshape(*value.shape[:2], *[1] * axes) if kernel and value[0, 0].numel() == 1 else value

    return {name: same(name, value) for name, value in state.items()}

"""What the tensors of a guided-diffusion U-Net, a classifier or an autoencoder say about the network they fit.

Names and shapes give widths, levels, blocks, attention, classes; never the number of heads, the order of channels
inside qkv, the image size and the noise schedule: those are in `Catalogue`s or must be given. Configurations are in the
words of the original projects; `*_arguments` turn them into arguments of our classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from torch_utils.pickles.machine import shown

__all__ = ["autoencoder_config", "classifier_arguments", "first_match", "unet_arguments", "unet_config"]

ORDERS = {"heads_then_qkv": False, "qkv_then_heads": True, "separate_linears": False}


def unet_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The configuration that a U-Net's, or classifier's, tensors determine.

    Raises:
        ValueError: tensors of another kind of network.
    """
    try:
        return _unet_config(state)
    except (KeyError, IndexError, StopIteration, ZeroDivisionError) as error:
        raise ValueError(f"its U-Net is not complete: nothing fits {str(error)[:80]}") from None


def _unet_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    entries = 1 + max(int(m[1]) for k in state if (m := re.match(r"input_blocks\.(\d+)\.", k)))
    width = state["time_embed.0.weight"].shape[1]
    blocks = _blocks_per_level(state, entries)
    levels = entries // (blocks + 1)
    firsts = [f"input_blocks.{1 + i * (blocks + 1)}" for i in range(levels)]
    outs = [state[f"{f}.0.out_layers.3.weight"].shape[0] for f in firsts]
    attends = [i for i, f in enumerate(firsts) if f"{f}.1.norm.weight" in state]
    embedded = state[f"{firsts[0]}.0.emb_layers.1.weight"].shape[0]
    down = f"input_blocks.{blocks + 1}.0"
    config: dict[str, Any] = {
        "in_channels": state["input_blocks.0.0.weight"].shape[1],
        "model_channels": width,
        "channel_mult": [_ratio(o, width) for o in outs],
        "num_res_blocks": blocks,
        "attention_resolutions": [2**i for i in attends],
        "use_scale_shift_norm": embedded == 2 * outs[0],
        "resblock_updown": f"{down}.in_layers.2.weight" in state,
        "conv_resample": f"{down}.in_layers.2.weight" in state or f"{down}.op.weight" in state or levels == 1,
        "num_classes": state["label_emb.weight"].shape[0] if "label_emb.weight" in state else None,
    }
    if "output_blocks.0.0.in_layers.0.weight" in state:
        config["out_channels"] = state["out.2.weight"].shape[0]
    else:
        config |= _classifier_head(state)
    keys = [k for k in state if k.startswith("middle_block.1.")]
    if (qkv := state.get("middle_block.1.qkv.weight")) is not None:
        config["attention_axes"] = qkv.ndim - 2
    elif any("transformer_blocks" in k for k in keys):
        depth = 1 + max(int(m[1]) for k in keys if (m := re.search(r"transformer_blocks\.(\d+)\.", k)))
        context = state["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1]
        config |= {"use_spatial_transformer": True, "context_dim": context, "transformer_depth": depth}
    return config


def _blocks_per_level(state: Mapping[str, Tensor], entries: int) -> int:
    """Residual blocks per level, from the first place where the resolution changes."""
    present = {int(m[1]) for k in state if (m := re.match(r"input_blocks\.(\d+)\.", k))}
    if gaps := set(range(entries)) - present:  # pooling has no tensors
        return min(gaps) - 1
    for i in range(1, entries):
        if f"input_blocks.{i}.0.op.weight" in state:
            return i - 1
    for i in range(entries):  # residual blocks in the encoder: the decoder tells where the resolution changes
        if any(f"output_blocks.{i}.{j}.in_layers.2.weight" in state for j in (1, 2)):
            return i
    if any(k.startswith("output_blocks.") for k in state):
        return entries - 1
    # a classifier has no decoder: of the entries without attention and with equal channels, the first between levels
    attended = [i for i in range(1, entries) if f"input_blocks.{i}.1.qkv.weight" in state]
    for blocks in range(1, entries):
        if entries % (blocks + 1) == 0 and not any(i % (blocks + 1) == 0 for i in attended):
            changes = [i for i in range(1, entries) if f"input_blocks.{i}.0.skip_connection.weight" in state]
            if all((i - 1) % (blocks + 1) == 0 for i in changes):
                return blocks
    return entries - 1


def _ratio(a: int, b: int) -> int | float:
    return a // b if a % b == 0 else a / b


def _classifier_head(state: Mapping[str, Tensor]) -> dict[str, Any]:
    if "out.2.positional_embedding" in state:
        return {"pool": "attention", "out_channels": state["out.2.c_proj.weight"].shape[0]}
    if "out.3.weight" in state:
        pool = "adaptive" if state["out.3.weight"].ndim == 4 else "spatial_v2"
        return {"pool": pool, "out_channels": state["out.3.weight"].shape[0]}
    return {"pool": "spatial", "out_channels": state["out.2.weight"].shape[0]}


def first_match(config: Mapping[str, Any], catalogue: Sequence[tuple[Mapping[str, Any], dict[str, Any]]]) -> dict:
    """What the first entry `(what it has, what to add)` of a catalogue that fits `config` adds; {} if none does."""
    fits = (add for has, add in catalogue if all(config.get(k) == v for k, v in has.items()))
    return next(fits, {})


def need(config: Mapping[str, Any], names: Sequence[str], what: str) -> None:
    """A ValueError that names what a configuration lacks and tensors do not show."""
    if missing := [n for n in names if config.get(n) is None]:
        raise ValueError(
            f"the tensors of {what} do not show {', '.join(missing)}, and no published model has these shapes: "
            "give a configuration, for example {" + ", ".join(f'"{n}": ...' for n in missing) + "}"
        )


def check_words(config: Mapping[str, Any] | None, words: Sequence[str], what: str) -> None:
    """A ValueError that names what a given configuration says and nobody reads."""
    if unknown := [key for key in config or {} if key not in words]:
        raise ValueError(
            f"the configuration for {what} says {shown(unknown[0])}, which is not read: it may say {', '.join(words)}"
        )


def unet_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `ADMUNet` besides the resolution, in_channels and label_dim.

    Raises:
        ValueError: unknown fields or values.
    """
    arguments = {name: config[name] for name in _SHARED if config.get(name) is not None}
    arguments |= _heads(config)
    if config.get("use_spatial_transformer"):
        arguments |= {name: config[name] for name in ("context_dim", "transformer_depth") if config.get(name)}
    axes = config.get("attention_axes", 2 if config.get("type") == "cm_unet" else 1)
    return arguments | ({"attention_axes": axes} if axes != 1 else {})


def classifier_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `ADMClassifier` besides the resolution and in_channels."""
    arguments = {name: config[name] for name in (*_SHARED, "pool") if config.get(name) is not None}
    return arguments | {k: v for k, v in _heads(config).items() if k != "num_heads_upsample"}


_SHARED = (
    "out_channels", "model_channels", "num_res_blocks", "channel_mult", "dropout", "conv_resample",
    "use_scale_shift_norm", "resblock_updown",
)  # fmt: skip


WORDS = (
    "image_size", "in_channels", *_SHARED, "num_heads", "num_head_channels", "num_heads_upsample",
    "attention_resolutions", "attention_order", "use_new_attention_order", "num_classes", "use_spatial_transformer",
    "context_dim", "transformer_depth", "attention_axes", "schedule",
)  # fmt: skip


def _heads(config: Mapping[str, Any]) -> dict[str, Any]:
    result = {k: config[k] for k in ("num_heads", "num_head_channels", "num_heads_upsample") if k in config}
    where = config.get("attention_resolutions")
    if isinstance(where, str):  # the command lines of guided diffusion list resolutions, "32,16,8"
        where = [config["image_size"] // int(r) for r in where.split(",")]
    if where is not None:
        result["attention_resolutions"] = list(where)
    order = config.get("attention_order")
    if order is not None and order not in ORDERS:
        raise ValueError(f"attention_order '{order}' is unknown: choose from {', '.join(ORDERS)}")
    new = ORDERS[order] if order is not None else config.get("use_new_attention_order", False)
    return result | {"use_new_attention_order": bool(new)}


def autoencoder_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Class name and arguments of the autoencoder that these tensors fit.

    Raises:
        ValueError: tensors of another kind of network.
    """
    try:
        levels = 1 + max(int(m[1]) for k in state if (m := re.match(r"encoder\.down\.(\d+)\.", k)))
        blocks = 1 + max(int(m[1]) for k in state if (m := re.match(r"encoder\.down\.0\.block\.(\d+)\.", k)))
        ch, channels = state["encoder.conv_in.weight"].shape[:2]
        z = state["decoder.conv_in.weight"].shape[1]
        widths = [state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)]
        config = {
            "class_name": "VQAutoencoder" if "quantize.embedding.weight" in state else "KLAutoencoder",
            "embed_dim": state["post_quant_conv.weight"].shape[1],
            "z_channels": z,
            "resolution": _SIDE,
            "in_channels": channels,
            "out_ch": state["decoder.conv_out.weight"].shape[0],
            "ch": ch,
            "ch_mult": [w // ch for w in widths],
            "num_res_blocks": blocks,
            "attn_resolutions": [
                _SIDE >> i for i in range(levels) if f"encoder.down.{i}.attn.0.norm.weight" in state
            ],
            "double_z": state["encoder.conv_out.weight"].shape[0] == 2 * z,
        }  # fmt: skip
        if config["class_name"] == "VQAutoencoder":
            config["n_embed"] = state["quantize.embedding.weight"].shape[0]
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"its autoencoder is not complete: nothing fits {str(error)[:80]}") from None
    return config


_SIDE = 256  # attention in an autoencoder is counted from a resolution that the tensors do not show: any will do

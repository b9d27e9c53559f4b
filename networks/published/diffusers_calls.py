"""CALLS: for every class of network in folders of diffusers, how it is called and what it takes.

Times are the index in the table of a noise model, and t in [0, 1], 0 at the data, of a flow model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["CALLS", "Call", "Condition", "call_of"]


@dataclass(frozen=True)
class Condition:
    """What a network is told besides samples and times.

    Attributes:
        classes: `[B]`; of models of classes.
        tokens, pooled: `[B, T, W]` and `[B, P]`; of models of text.
        side: pixels of a decoded image.
        guidance: strength of the guidance that a distilled network is told.
    """

    classes: Tensor | None = None
    tokens: Tensor | None = None
    pooled: Tensor | None = None
    side: int = 0
    guidance: float = 0.0


@dataclass(frozen=True)
class Call:
    """One class of networks.

    Attributes:
        run: network, samples `[B, C, H, W]`, times `[B]`, condition -> prediction `[B, C or 2C, H, W]`.
        classes: attribute of the configuration with the number of classes.
        empty_class: the class after the last stands for none.
        text: key of RECIPES in `diffusers_text`.
        width, pooled: configuration -> width of the tokens and length of the vector that the network takes.
        flow: predicts the velocity of the linear path, else what its scheduler says.
        packed: channels of the network are those of 2x2 samples.
        resizable: samples may have another size than the configuration says.
    """

    run: Callable[[nn.Module, Tensor, Tensor, Condition], Tensor]
    classes: str | None = None
    empty_class: bool = False
    text: str | None = None
    width: Callable[[Any], int] = lambda config: 0
    pooled: Callable[[Any], int] = lambda config: 0
    flow: bool = False
    packed: bool = False
    resizable: bool = False


def _classes(net: nn.Module, x: Tensor, time: Tensor, c: Condition) -> Tensor:
    return net(x, time, class_labels=c.classes, return_dict=False)[0]


def _text(net: nn.Module, x: Tensor, time: Tensor, c: Condition) -> Tensor:
    return net(x, time, encoder_hidden_states=c.tokens, return_dict=False)[0]


def _xl(net: nn.Module, x: Tensor, time: Tensor, c: Condition) -> Tensor:
    """The image is said to be whole and of its own size: original size, corner and target size."""
    ids = x.new_tensor([c.side, c.side, 0, 0, c.side, c.side]).expand(len(x), -1)
    added = {"text_embeds": c.pooled, "time_ids": ids}
    return net(x, time, encoder_hidden_states=c.tokens, added_cond_kwargs=added, return_dict=False)[0]


def _sd3(net: nn.Module, x: Tensor, time: Tensor, c: Condition) -> Tensor:
    return net(x, c.tokens, c.pooled, 1000 * time, return_dict=False)[0]


def _flux(net: nn.Module, x: Tensor, time: Tensor, c: Condition) -> Tensor:
    """2x2 samples are one token, at a place of rows and columns; text has no place."""
    b, channels, height, width = x.shape
    h, w = height // 2, width // 2
    tokens = x.reshape(b, channels, h, 2, w, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w, 4 * channels)
    place = torch.stack(
        torch.meshgrid(x.new_zeros(1), torch.arange(h).to(x), torch.arange(w).to(x), indexing="ij"), dim=-1
    )  # fmt: skip
    strength = x.new_full([b], c.guidance) if net.config.guidance_embeds else None
    out = net(
        tokens, c.tokens, c.pooled, time, img_ids=place.reshape(-1, 3), txt_ids=x.new_zeros(c.tokens.shape[1], 3),
        guidance=strength, return_dict=False,
    )[0]  # fmt: skip
    return out.reshape(b, h, w, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


def _cross(config: Any) -> int:
    return config.cross_attention_dim


def _joint(config: Any) -> int:
    return config.joint_attention_dim


def _projected(config: Any) -> int:
    return config.pooled_projection_dim


XL = "UNet2DConditionModel with text_time"
CALLS: dict[str, Call] = {
    "UNet2DModel": Call(_classes, classes="num_class_embeds", resizable=True),
    "UNet2DConditionModel": Call(_text, text="clip", width=_cross, resizable=True),
    XL: Call(
        _xl, text="xl", width=_cross, resizable=True,
        pooled=lambda config: config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim,
    ),
    "DiTTransformer2DModel": Call(_classes, classes="num_embeds_ada_norm", empty_class=True),
    "SD3Transformer2DModel": Call(_sd3, text="sd3", width=_joint, pooled=_projected, flow=True, resizable=True),
    "FluxTransformer2DModel": Call(
        _flux, text="flux", width=_joint, pooled=_projected, flow=True, packed=True, resizable=True
    ),
}  # fmt: skip
NETWORKS = tuple(name for name in CALLS if name != XL)
_FURTHER = ("class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim", "num_class_embeds")


def call_of(network: nn.Module) -> Call:
    """The entry of a network.

    Raises:
        ValueError: it takes conditions that no entry gives.
    """
    kind, config = type(network).__name__, network.config
    if kind != "UNet2DConditionModel":
        return CALLS[kind]
    added = getattr(config, "addition_embed_type", None)
    others = [name for name in _FURTHER if getattr(config, name, None) is not None]
    if added not in (None, "text_time") or others or not isinstance(config.cross_attention_dim, int):
        raise ValueError("its network takes further conditions than text, which are not read")
    return CALLS[kind if added is None else XL]

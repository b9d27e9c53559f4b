"""LatentDenoiser: a denoiser of latents with the autoencoder that turns them into images.

Latent diffusion (Rombach et al. 2022, arXiv 2112.10752): unconditional, by class, or by text (Stable Diffusion). Noise
levels are those of the table it was trained on. Nothing is clamped: latents have no range.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.models.autoencoder import build_autoencoder, decode_latents, encode_latents
from networks.models.clip_text import TOKENIZER, CLIPText, load_tokenizer
from networks.models.noise_precond import NoisePrecond


class LatentDenoiser(NoisePrecond):
    """D(x; sigma) of latents `[B, img_channels, img_resolution, img_resolution]`, and `decode`.

    Args:
        img_resolution, img_channels: of the latents.
        network: further arguments of `ADMUNet`; with `context_dim` where there is a condition.
        first_stage: class name and arguments of the autoencoder.
        scale_factor: latents are what the encoder gives times this.
        label_dim: classes, embedded as one token; the class after the last is "none".
        text: arguments of `CLIPText`; None: no text.
        num_levels: entries of the table of noise levels.

    Keys: model.*, first_stage.*, class_embedding.weight, text_encoder.*, alphas_cumprod, scale_factor.
    """

    latent = True

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        network: Mapping[str, Any],
        first_stage: Mapping[str, Any],
        scale_factor: float = 1.0,
        label_dim: int = 0,
        text: Mapping[str, Any] | None = None,
        num_levels: int = 1000,
    ) -> None:
        width = network.get("context_dim", 0)
        if bool(width) != bool(label_dim or text is not None):
            raise ValueError(
                "a latent model with context_dim needs classes or text to attend to, and only such a model"
            )
        super().__init__(
            img_resolution, img_channels, network, label_dim, time_convention="table", num_levels=num_levels,
            clip_denoised=False,
        )  # fmt: skip
        self.scale_factor = float(scale_factor)
        self.first_stage = build_autoencoder(**first_stage)
        side = img_resolution * self.first_stage.factor
        self.decoded_shape = (self.first_stage.channels, side, side)
        self.class_embedding = nn.Embedding(label_dim + 1, width) if label_dim else None
        self.text_encoder = None if text is None else CLIPText(**text)
        self.tokenizer: Any = TOKENIZER
        self._empty: Tensor | None = None

    @property
    def conditioning(self) -> str:
        """What the third argument of a call is: "none", "classes" or "text"."""
        return "text" if self.text_encoder is not None else "classes" if self.label_dim else "none"

    @property
    def label_dropout(self) -> float:
        """Share of conditions left out in training; above 0, the network also knows the empty condition."""
        return 0.0 if self.conditioning == "none" else 0.1

    def condition(self, labels: Tensor | None, x: Tensor) -> dict[str, Tensor]:
        """Tokens `[B or 1, T, context_dim]` out of one-hot rows or indices, or of text as `encode_text` gives it."""
        if self.conditioning == "none":
            return {}
        if self.conditioning == "text":
            if labels is None or labels.ndim != 3 or len(labels) not in (1, len(x)):
                shape = "none was given" if labels is None else f"one of shape {list(labels.shape)} was given"
                raise ValueError(f"this network needs a text condition [{len(x)}, T, C] from encode_text, and {shape}")
            return {"context": labels}
        empty = labels is not None and labels.ndim == 2
        index = self._index(labels, x)
        if empty:  # a row of zeros is the empty condition
            rows = labels.expand(len(x), -1)
            index = torch.where(rows.sum(1) == 0, self.label_dim, index)
        return {"context": F.embedding(index, self.class_embedding.weight)[:, None]}

    @property
    def encode_text(self) -> Callable[[Sequence[str]], Tensor] | None:
        """Texts -> conditions `[B, T, C]`; None for a network without text."""
        return None if self.text_encoder is None else self._encode_text

    @property
    def empty_condition(self) -> Callable[[], Tensor] | None:
        """() -> the condition `[1, T, C]` of the empty text, from which guidance moves away."""
        return None if self.text_encoder is None else self._empty_text

    @torch.no_grad()
    def _encode_text(self, prompts: Sequence[str]) -> Tensor:
        if isinstance(self.tokenizer, str | Path):
            self.tokenizer = load_tokenizer(self.tokenizer)
        return self.text_encoder.encode(prompts, self.tokenizer)

    def _empty_text(self) -> Tensor:
        device = self.first_stage.post_quant_conv.weight.device
        if self._empty is None or self._empty.device != device:
            self._empty = self._encode_text([""])
        return self._empty

    decode = decode_latents
    encode = encode_latents

"""Latents and the autoencoder that made them: what is remembered, and how a network of latents is given its decoder.

latent = scale_factor * draw(moments)             image = decode(latent / scale_factor)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from networks.models.autoencoder import mean_and_std
from torch_utils.checkpoint import tensor_hash

KINDS = ("moments", "latents")


@dataclass(frozen=True)
class LatentFacts:
    """What is known of cached latents, as `dataset.json` and the snapshots of networks trained on them say it.

    Attributes:
        kind: "moments", mean and log variance to draw from, or "latents" as they are.
        shape: of what is stored, `(2C or C, h, w)`.
        scale_factor: latents are what is drawn times this.
        image: side of the encoded images in pixels.
        flips: mirrored images were encoded too.
        network: the autoencoder as it was named then; None: unknown.
        autoencoder: SHA-256 of its tensors; None: unknown.
    """

    kind: str
    shape: tuple[int, int, int]
    scale_factor: float
    image: int
    flips: bool = False
    network: str | None = None
    autoencoder: str | None = None

    @classmethod
    def of(cls, value: Any) -> LatentFacts:
        """Read a JSON object; ValueError where it is not what was written."""
        try:
            kind, shape, scale = value["kind"], tuple(value["shape"]), float(value["scale_factor"])
            image, flips = value["images"][0], value.get("flips", False)
            names = value.get("network"), value.get("autoencoder")
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            raise ValueError("what it says of its latents is damaged") from None
        sizes = len(shape) == 3 and all(type(n) is int and 0 < n <= 1 << 16 for n in (*shape, image))
        odd = kind == "moments" and sizes and shape[0] % 2
        text = all(name is None or isinstance(name, str) for name in names)
        if kind not in KINDS or not sizes or odd or not text or not (0 < scale < math.inf and isinstance(flips, bool)):
            raise ValueError("what it says of its latents is damaged")
        return cls(kind, shape, scale, image, flips, *names)

    def record(self) -> dict[str, Any]:
        """The JSON object that `of` reads."""
        return {
            "kind": self.kind, "shape": list(self.shape), "scale_factor": self.scale_factor,
            "images": [self.image, self.image], "flips": self.flips, "network": self.network,
            "autoencoder": self.autoencoder,
        }  # fmt: skip

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """`(C, h, w)` of one latent."""
        channels, height, width = self.shape
        return (channels // 2 if self.kind == "moments" else channels, height, width)

    def draw(self, stored: Tensor, rng: Any = None) -> Tensor:
        """Latents float32 `[B, C, h, w]` of what is stored `[B, ...]`; of moments, noise from `rng.randn_like`, or
        without it their mean."""
        values = stored.to(torch.float32)
        if self.kind == "moments":
            values, std = mean_and_std(values)
            values = values if rng is None else values + std * rng.randn_like(values)
        return values * self.scale_factor


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """An autoencoder and the scale of its latents.

    Attributes:
        stage: has `factor`, `embed_dim`, `channels`, `decode`, and `moments` (mean and log variance) or `encode`.
        scale_factor: latents are what it gives times this.
        source: as it was named.
    """

    stage: nn.Module
    scale_factor: float
    source: str

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of its tensors."""
        return tensor_hash(self.stage.state_dict())

    def decode(self, latent: Tensor) -> Tensor:
        """Latents `[B, C, h, w]` -> images in about [-1, 1], float32, not clamped."""
        return self.stage.to(latent.device).decode(latent.float() / self.scale_factor).float()

    def encode(self, image: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` in [-1, 1] -> latents float32, of moments their mean."""
        stage = self.stage.to(image.device)
        latent = stage.moments(image).chunk(2, dim=1)[0] if hasattr(stage, "moments") else stage.encode(image)
        return latent.float() * self.scale_factor

    def __deepcopy__(self, memo: Mapping[int, Any]) -> Autoencoder:
        return self  # copies of a network share it


def give_decoder(net: nn.Module, autoencoder: Autoencoder | None) -> None:
    """Let samplers know that samples of `net` are latents, and how they become images; None: they cannot be decoded."""
    net.latent = True
    if autoencoder is not None:
        stage, side = autoencoder.stage, net.img_resolution * autoencoder.stage.factor
        net.decode, net.decoded_shape = autoencoder.decode, (stage.channels, side, side)
        net.encode = autoencoder.encode
        net.decoder_sha256 = autoencoder.sha256

"""LatentModel: any model of latents together with the autoencoder that turns them into images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from networks.models.autoencoder import build_autoencoder, decode_latents, encode_latents


class LatentModel(nn.Module):
    """Called as its network is; attributes are the network's but for what belongs to images.

    Args:
        network: the model of latents.
        first_stage: class name and arguments of the autoencoder.
        scale_factor: latents are what the encoder gives times this.

    Keys: network.*, first_stage.*.
    """

    PARTS = ("network",)
    latent = True

    def __init__(self, network: nn.Module, first_stage: Mapping[str, Any], scale_factor: float = 0.18215) -> None:
        super().__init__()
        self.network = network
        self.first_stage = build_autoencoder(**first_stage)
        self.scale_factor = float(scale_factor)
        side = network.img_resolution * self.first_stage.factor
        self.decoded_shape = (self.first_stage.channels, side, side)
        if self.first_stage.embed_dim != network.img_channels:
            raise ValueError(
                f"an autoencoder of {self.first_stage.embed_dim} channels does not fit a model of latents with "
                f"{network.img_channels}"
            )

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "network":
                raise
            return getattr(super().__getattr__("network"), name)

    @property
    def compute_dtype(self) -> torch.dtype:
        return self.network.compute_dtype

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype) -> None:
        self.network.compute_dtype = dtype

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the network predicts."""
        return self.network(*args, **kwargs)

    decode = decode_latents
    encode = encode_latents

"""The autoencoder of a folder of diffusers, called as ours are."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from networks.models.decoder import Autoencoder
from networks.published.diffusers import MISSING, load_part
from torch_utils.errors import importing, reason

__all__ = ["FolderAutoencoder", "load_folder_autoencoder"]


class FolderAutoencoder(nn.Module):
    """`AutoencoderKL` with latents moved by its `shift_factor`.

    Keys: vae.*
    """

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae, config = vae, vae.config
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.embed_dim, self.channels = config.latent_channels, config.out_channels
        self.shift = getattr(config, "shift_factor", None) or 0.0

    def moments(self, image: Tensor) -> Tensor:
        """Images in [-1, 1] `[N, 3, H, W]` -> mean and log variance `[N, 2 embed_dim, H / f, W / f]`."""
        mean, logvar = self.vae.encode(image).latent_dist.parameters.chunk(2, dim=1)
        return torch.cat([mean - self.shift, logvar], dim=1)

    def decode(self, z: Tensor) -> Tensor:
        """Latents `[N, embed_dim, h, w]` -> images, about in [-1, 1]."""
        return self.vae.decode(z + self.shift, return_dict=False)[0]


def load_folder_autoencoder(folder: str | Path) -> Autoencoder:
    """The AutoencoderKL of a pipeline, or of a folder that holds it alone.

    Raises:
        ValueError: another folder or class; names it.
    """
    with importing(MISSING):
        from diffusers import AutoencoderKL
    path = Path(folder) / "vae" if (Path(folder) / "vae").is_dir() else Path(folder)
    try:
        kind = json.loads((path / "config.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        kind = None
    if kind != "AutoencoderKL":
        raise ValueError(f"{folder} holds no AutoencoderKL of diffusers")
    try:
        vae = load_part(AutoencoderKL, path).eval().requires_grad_(False)
    except Exception as error:  # what a library says of a damaged folder has no common class
        raise ValueError(f"{folder} cannot be loaded ({reason(error)})") from None
    return Autoencoder(FolderAutoencoder(vae), float(vae.config.scaling_factor), f"diffusers:{folder}")

"""Training on cached latents: which methods do, and the autoencoder for pictures and FID."""

from __future__ import annotations

from typing import Any

from networks.load import autoencoder_of, latents_of
from networks.models.decoder import Autoencoder, give_decoder
from torch_utils import distributed as dist
from training.method import Method

__all__ = ["check_donor", "check_latents", "tell_latents"]


def check_latents(name: str, able: bool, options: Any, dataset: Any) -> Autoencoder | None:
    """The autoencoder of a data set of latents, where it is at hand; None for other data sets.

    Args:
        name: of the method; able: it trains on latents.

    Raises:
        ValueError: latents where images are needed, a decoder that no latents ask for, or another autoencoder.
    """
    if dataset.latents is None:
        if options.decoder is not None:
            raise ValueError(f"--decoder belongs to data sets of latents, and {options.data} holds none: leave it out")
        return None
    if not able:
        raise ValueError(f"{options.data} holds latents, and {name} learns from images: give it the images")
    return dist.rank0_first(lambda: autoencoder_of(dataset.latents, options.decoder))


def tell_latents(method: Method, dataset: Any, autoencoder: Autoencoder | None) -> None:
    """Let the networks of a method know that they make latents, and how those become images."""
    if dataset.latents is not None:
        for module in method.modules.values():
            give_decoder(module, autoencoder)


def check_donor(donor: Any, source: str, dataset: Any) -> None:
    """Refuse to start from a network of images, or of other latents; ValueError."""
    theirs, ours = latents_of(getattr(donor, "info", {})), dataset.latents
    if (theirs is None) != (ours is None) and not (theirs is None and getattr(donor, "latent", False)):
        raise ValueError(
            f"--transfer={source} makes {'images' if theirs is None else 'latents'}, and the data set holds "
            f"{'images' if ours is None else 'latents'}: they do not go together"
        )
    made = [(f.autoencoder, f.scale_factor) for f in (theirs, ours) if f is not None and f.autoencoder is not None]
    if len(set(made)) > 1:
        raise ValueError(f"--transfer={source} makes latents of another autoencoder than those of the data set")

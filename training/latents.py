"""Training on latents: the autoencoder for pictures and FID, and which networks go with which latents."""

from __future__ import annotations

from typing import Any

from networks.load import autoencoder_of, latents_of
from networks.models.decoder import LatentFacts, give_decoder
from torch_utils import distributed as dist
from torch_utils.checkpoint import tensor_hash
from training.method import Method


def find_decoder(options: Any, dataset: Any) -> None:
    """Give a data set of latents its `autoencoder`, where it is at hand.

    Raises:
        ValueError: a decoder that no latents ask for, or another autoencoder.
    """
    if dataset.latents is not None:
        dataset.autoencoder = dist.rank0_first(lambda: autoencoder_of(dataset.latents, options.decoder))
    elif options.decoder is not None:
        raise ValueError(f"--decoder belongs to data sets of latents, and {options.data} holds none: leave it out")


def tell_latents(method: Method, dataset: Any) -> None:
    """Let the networks of a method know that they make latents, and how those become images."""
    for module in method.modules.values():
        if dataset.latents is not None and hasattr(module, "img_resolution"):
            give_decoder(module, dataset.autoencoder)


def facts_of_latents(net: Any, source: str) -> LatentFacts | None:
    """What is known of the latents that a network makes, from its training or by the autoencoder that it brings."""
    known, scale = latents_of(getattr(net, "info", {})), getattr(net, "scale_factor", None)
    if known is not None or scale is None:
        return known
    shape, sha256 = (net.img_channels, *[net.img_resolution] * 2), tensor_hash(net.first_stage.state_dict())
    return LatentFacts("latents", shape, scale, net.decoded_shape[1], network=source, autoencoder=sha256)


def check_same_latents(option: str, source: str, net: Any, dataset: Any) -> None:
    """Refuse to start from a network of images, or of other latents; ValueError."""
    theirs, ours = facts_of_latents(net, source), dataset.latents
    latent = theirs is not None or getattr(net, "latent", False)
    if latent != (ours is not None):
        raise ValueError(
            f"{option}={source} makes {'latents' if latent else 'images'}, and the data set holds "
            f"{'images' if ours is None else 'latents'}: they do not go together"
        )
    made = [(f.autoencoder, f.scale_factor) for f in (theirs, ours) if f is not None and f.autoencoder is not None]
    if len(set(made)) > 1:
        raise ValueError(f"{option}={source} makes latents of another autoencoder than those of the data set")

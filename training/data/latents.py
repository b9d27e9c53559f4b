"""Latents of a data set, computed once: what the autoencoder of a latent model makes of every image.

A zip of `{index // 1000:05d}/img{index:08d}.npy` and `dataset.json`. Of an autoencoder with moments a file holds mean
and log variance `[2C, h, w]`, so that training can draw anew in every epoch; of one with a codebook the latents before
it `[C, h, w]`. Mirrored images have files of their own, `img{index:08d}-flip.npy`: a mirrored latent is not the latent
of a mirrored image. Beside the labels, dataset.json says under "latents" what is needed to use them:

    latent = scale_factor * (mean + exp(logvar / 2) * noise)            # kind "moments", logvar in [-30, 20]
    latent = scale_factor * value                                       # kind "latents"
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from networks.models.decoder import Autoencoder, LatentFacts
from torch_utils.files import atomic_write
from torch_utils.images import from_uint8
from training.data.image_dataset import ImageDataset, decoded
from training.data.latent_dataset import DTYPES
from training.data.stored_zip import StoredZip


@torch.inference_mode()
def encode_dataset(
    dataset: ImageDataset,
    autoencoder: Autoencoder,
    dest: str | Path,
    *,
    flips: bool = False,
    dtype: str = "float32",
    batch: int = 16,
    device: torch.device | str = "cpu",
    progress: Callable[[int], Any] = lambda n: None,
) -> dict[str, Any]:
    """Write the latents of every image, atomically; returns what dataset.json says of them.

    Args:
        dest: ends in .zip.
        flips: of mirrored images too.
        dtype: key of DTYPES; float16 halves the file, its values are rounded to 11 bits.
        batch: images at once.
        progress: called with the number of images done since the last call.

    Raises:
        ValueError: images that the autoencoder cannot halve often enough, values beyond float16.
        OSError: the file cannot be written; one of that name is as it was.
    """
    stage = autoencoder.stage
    if dataset.resolution % stage.factor:
        raise ValueError(
            f"images of {dataset.resolution} pixels do not fit an autoencoder that makes them {stage.factor} times "
            f"smaller: choose a --resolution that {stage.factor} divides"
        )
    stage.to(device)
    moments = hasattr(stage, "moments")
    names: list[str] = []
    shape: list[int] = []
    with atomic_write(dest) as file:
        archive = StoredZip(file)
        for images in decoded(dataset, range(len(dataset)), batch):
            x = from_uint8(images).to(device)
            x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
            stems = [f"{i // 1000:05d}/img{i:08d}" for i in range(len(names), len(names) + len(images))]
            for suffix, seen in (("", x), ("-flip", x.flip(3))) if flips else (("", x),):
                values = _checked((stage.moments if moments else stage.encode)(seen).float(), dtype)
                shape = list(values.shape[1:])
                for stem, value in zip(stems, values, strict=True):
                    archive.add(f"{stem}{suffix}.npy", _npy(value))
            names += [f"{stem}.npy" for stem in stems]
            progress(len(images))
        facts = LatentFacts(
            "moments" if moments else "latents", tuple(shape), autoencoder.scale_factor, dataset.resolution, flips,
            autoencoder.source, autoencoder.sha256,
        )  # fmt: skip
        about = {**facts.record(), "dtype": dtype}
        labels = (
            [[n, t.tolist()] for n, t in zip(names, dataset.targets(), strict=True)] if dataset.has_labels else None
        )
        kind = {"label_kind": dataset.label_kind} if dataset.has_labels and not dataset.has_onehot_labels else {}
        archive.add("dataset.json", json.dumps({"labels": labels, **kind, "latents": about}).encode())
        archive.close()
    return about


def _checked(values: Tensor, dtype: str) -> Tensor:
    """Values as they are stored; ValueError where they are not finite."""
    stored = values.to(DTYPES[dtype]).cpu()
    if not torch.isfinite(stored).all():
        raise ValueError(f"latents are not finite in {dtype}: the autoencoder is damaged, or --encode-dtype too narrow")
    return stored


def _npy(value: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value.contiguous().numpy(), allow_pickle=False)
    return buffer.getvalue()

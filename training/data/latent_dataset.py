"""Cached latents of `dataset_tool.py --encode` as a data set: what is stored is drawn from anew for every step."""

from __future__ import annotations

import io
import json
import os
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from networks.models.decoder import LatentFacts
from torch_utils.misc import root_mean_square
from torch_utils.rng import TorchRNG
from training.data.archive import ImageArchive
from training.data.image_dataset import ImageDataset
from training.data.labels import FILE

SUFFIX, MIRRORED = ".npy", "-flip.npy"
DTYPES = {"float16": torch.float16, "float32": torch.float32}
_ENOUGH = 4096  # images whose latents tell the deviation


def holds_latents(archive: ImageArchive) -> bool:
    """Whether an archive has array files and no images."""
    return not archive.image_names and any(name.endswith(SUFFIX) for name in archive.names)


class LatentDataset(ImageDataset):
    """Items `0..n-1` are what is stored of the images in order of their names, `n..2n-1` of their mirror images.

    Args:
        path, options: of `ImageDataset`.
        xflip: also what was encoded of mirrored images: a mirrored latent is not the latent of a mirrored image.

    Attributes:
        latents: what `dataset.json` says of them.
        autoencoder: what makes images of them, where it is at hand (`training.latents.find_decoder`).
        image_shape, resolution, num_channels: of one latent, as models see it; stored_shape: of one file.

    Raises:
        OSError, ValueError: as `ImageDataset`; files that say nothing of their latents, no mirrored ones.
    """

    latents: LatentFacts

    def __init__(self, path: str | os.PathLike[str] | ImageArchive, *, xflip: bool = False, **options: Any) -> None:
        super().__init__(path, xflip=xflip, **options)
        if xflip and not self.latents.flips:
            raise ValueError(
                f"--xflip doubles latents by those of mirrored images, and {self.path} has none: encode with "
                "--encode-flips"
            )

    def _describe(self) -> None:
        try:
            value = json.loads(self._archive.read(FILE))["latents"]
            self.latents = LatentFacts.of(value)
            self.dtype = DTYPES[value.get("dtype", "float32")]
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{self.path} holds array files, and its {FILE} does not say which latents they are ({error}): make it "
                "by dataset_tool.py --encode"
            ) from None
        self._names = [n for n in self._archive.names if n.endswith(SUFFIX) and not n.endswith(MIRRORED)]
        self.stored_shape, self.image_shape = list(self.latents.shape), list(self.latents.latent_shape)
        self._decode(self._names[0])

    def _item(self, index: int, mirrored: bool) -> np.ndarray:
        name = self._names[self._subset[index]]
        return self._decode(name.removesuffix(SUFFIX) + MIRRORED if mirrored else name)

    def _decode(self, name: str) -> np.ndarray:
        """The array of one file, read without trusting its header."""
        dtype = np.dtype(str(self.dtype).removeprefix("torch."))
        try:
            data = self._archive.read(name)
            file = io.BytesIO(data)
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("another version of the format than is written here")
            shape, fortran, found = np.lib.format.read_array_header_1_0(file)
            if list(shape) != self.stored_shape or fortran or found != dtype:
                raise ValueError(f"it is {found} of shape {list(shape)}, {dtype} of {self.stored_shape} is expected")
            return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape).copy()
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.path / name}: {error}") from error

    @cached_property
    def std(self) -> float:
        """Root mean square of latents in the scale of diffusion, to four digits: what EDM calls sigma_data."""
        indices = range(0, self.num_images, -(-self.num_images // _ENOUGH))
        stored = torch.from_numpy(np.stack([self._item(i, False) for i in indices]))
        drawn = self.draw(stored, TorchRNG(generator=torch.Generator().manual_seed(0)))
        return root_mean_square(drawn)

    def draw(self, stored: Tensor, rng: TorchRNG) -> Tensor:
        """Latents float32 of what batches hold, see `LatentFacts.draw`."""
        return self.latents.draw(stored, rng)

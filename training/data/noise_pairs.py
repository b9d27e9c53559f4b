"""Pairs of start noise and the image a model made of it: two folders, one PNG and one NPY of the same number each.

`generate.py --outdir=pairs/samples --save-noise=pairs/zs` writes them; so does the published code of Lee, Kim, Ye
2023 (arXiv 2301.12003). The number is what follows the last `_` of a name: `a_00012.png` belongs to `000012.npy`.
Of a model of latents, `--save-latents=pairs/samples` writes those instead of images, as NPY.
"""

from __future__ import annotations

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torch_utils.arrays import read_array
from training.data.image_dataset import ImageDataset

SAMPLES, LATENTS = "samples", "zs"


def find_folders(images: str | Path, latents: str | Path | None) -> tuple[Path, Path]:
    """Folders of images and of latents; without the latter, `images` holds both as `samples` and `zs`.

    Raises:
        ValueError: no latents.
    """
    images = Path(images)
    if latents is not None:
        return images, Path(latents)
    if not (images / SAMPLES).is_dir() or not (images / LATENTS).is_dir():
        raise ValueError(
            f"{images} holds no folders {SAMPLES} and {LATENTS}: say where the latents of its images are with --z-dir; "
            "generate.py --save-noise=DIR writes them"
        )
    return images / SAMPLES, images / LATENTS


def _number(name: str) -> int:
    text = Path(name).stem.rpartition("_")[2]
    if not text.isdigit():
        raise ValueError(f"{name} has no number by which images and latents find each other: name it like 000012.png")
    return int(text)


def _numbered(names: list[str], what: str) -> dict[int, str]:
    found: dict[int, str] = {}
    for name in names:
        number = _number(name)
        if number in found:
            raise ValueError(f"{what} {found[number]} and {name} have the same number: keep one of them")
        found[number] = name
    return found


class PairDataset(ImageDataset):
    """Images whose labels are the latents that they were made from, float32 `[D]`.

    Args:
        images: folder or zip; three equal channels count as one where the latents have one. Or of .npy files, which
            then are samples of a model of latents, float `[C, H, W]` each.
        latents: folder of .npy files, float `[C, H, W]` each.

    Attributes:
        latents, autoencoder: of samples that are latents, set by who knows the model: see `training.latents`.

    Raises:
        ValueError, OSError: as ImageDataset; no latents, latents that cannot be used, or that do not pair with images.
    """

    def __init__(self, images: str | os.PathLike[str], latents: str | os.PathLike[str]) -> None:
        self._folder = Path(latents)
        if not self._folder.is_dir():
            raise ValueError(f"there is no folder {latents}: generate.py --save-noise={latents} writes one")
        self._latents = _numbered([str(p) for p in sorted(self._folder.rglob("*.npy"))], "latents")
        if not self._latents:
            raise ValueError(f"{latents} holds no .npy file: generate.py --save-noise={latents} writes them")
        self.latent_shape = _read(next(iter(self._latents.values()))).shape
        super().__init__(images, use_labels=True)
        if tuple(self.image_shape) != self.latent_shape:
            raise ValueError(
                f"the images of {images} have shape {list(self.image_shape)} and the latents of {latents} "
                f"{list(self.latent_shape)}: both must come from one run of generate.py"
            )
        paired = _numbered(self._names, "images")
        lone = [paired[n] for n in paired if n not in self._latents]
        lone += [self._latents[n] for n in self._latents if n not in paired]
        if lone:
            raise ValueError(
                f"{images} holds {len(paired)} images and {latents} {len(self._latents)} latents that must pair by "
                f"number, and {lone[0]} has no partner: generate the missing ones, or delete what is left over"
            )

    def _describe(self) -> None:
        if self._archive.image_names or not (names := [n for n in self._archive.names if n.endswith(".npy")]):
            return super()._describe()
        self._names, self.dtype = names, torch.float32
        self.image_shape = self.stored_shape = list(self._decode(names[0]).shape)

    @property
    def holds_latents(self) -> bool:
        """Whether samples are arrays, of a model of latents, and no images."""
        return self.dtype == torch.float32

    def _decode(self, name: str) -> np.ndarray:
        if not self.holds_latents:
            return super()._decode(name)
        sample = _read(str(self.path / name), io.BytesIO(self._archive.read(name))).astype(np.float32)
        if self.image_shape and list(sample.shape) != self.image_shape:
            raise ValueError(
                f"{self.path / name} has shape {list(sample.shape)}, the first has {self.image_shape}: make all alike"
            )
        return sample

    def _to_mode(self, image: Image.Image) -> Image.Image:
        image = super()._to_mode(image)
        if self.latent_shape[0] != 1 or image.mode != "RGB":
            return image
        red, green, blue = (np.asarray(channel) for channel in image.split())
        if not (np.array_equal(red, green) and np.array_equal(red, blue)):
            raise ValueError("it is coloured, and its latent has one channel: they do not pair")
        return image.getchannel(0)

    def fingerprint(self) -> str:
        """A hash of images and latents."""
        own = self._archive.fingerprint(self._names)
        return hashlib.sha256(own.encode() + self.labels().numpy().tobytes()).hexdigest()

    def _read_labels(self) -> Tensor:
        paths = [self._latents[_number(name)] for name in self._names]
        values = np.empty((len(paths), int(np.prod(self.latent_shape))), np.float32)

        def fill(index: int) -> None:
            latent = _read(paths[index])
            if latent.shape != self.latent_shape or not np.isfinite(latent).all():
                raise ValueError(
                    f"{paths[index]} has shape {list(latent.shape)} or values that are not finite, expected finite "
                    f"{list(self.latent_shape)}: generate it again"
                )
            values[index] = latent.ravel()

        with ThreadPoolExecutor(4) as pool:
            for _ in pool.map(fill, range(len(paths)), chunksize=64):
                pass
        return torch.from_numpy(values)


def _read(path: str, file: io.BytesIO | None = None) -> np.ndarray:
    """The array of a file, or of its content."""
    latent = read_array(path, "a readable .npy file of numbers", file)
    if latent.ndim != 3 or latent.dtype.kind != "f":
        raise ValueError(f"{path} holds {latent.dtype} of shape {list(latent.shape)}, expected floats [C, H, W]")
    return latent

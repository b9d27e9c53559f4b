"""Images and labels of a zip or folder, as `dataset_tool.py` writes it and published EDM code reads it.

Order, subsets, mirrored copies and labels follow the data set class of EDM (Karras et al. 2022, arXiv 2206.00364), so
that index `i` means the same image here and there.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from networks.models.decoder import Autoencoder, LatentFacts
from torch_utils.distributed import get_rank
from training.data.archive import ImageArchive
from training.data.decode import decode_image
from training.data.labels import check_labels, find_labels, read_labels
from training.data.transforms import to_gray_or_rgb

WORKERS = 3  # threads of `decoded`


def subset_indices(n: int, max_size: int | None, seed: int = 0) -> np.ndarray:
    """Ascending int64 indices of `min(n, max_size)` of `n` images, chosen at random.

    Raises:
        ValueError: `max_size` below 1.
    """
    if max_size is not None and max_size < 1:
        raise ValueError(f"max_size={max_size} leaves no images: give 1 or more")
    indices = np.arange(n, dtype=np.int64)
    if max_size is None or max_size >= n:
        return indices
    np.random.RandomState(seed % (1 << 31)).shuffle(indices)
    return np.sort(indices[:max_size])


class ImageDataset:
    """Images and labels of a folder or zip.

    Items `0..n-1` are the images in order of their names (or a random subset of them), `n..2n-1` their mirror images if
    asked for.

    Args:
        path: folder or .zip of images of one size, with an optional `dataset.json`.
        resolution: fail unless the images have this size.
        max_size: keep a random subset of this many images.
        use_labels: read labels; without, or if the data set has none, labels have length 0.
        xflip: append a mirrored copy of every image.
        random_seed: chooses the subset.

    Attributes:
        name: base name of the path without extension.
        image_shape: `[C, H, W]`; resolution: H = W; num_channels: C (1 or 3).
        raw_idx: int64 `[len]`, index among all image files; xflip: bool `[len]`, whether the item is mirrored.

    Raises:
        OSError: not a folder or zip, no images, or another size than `resolution`.
        ValueError: a damaged zip or first image, or images that are not square.
    """

    std = 0.5  # what EDM takes the deviation of images in [-1, 1] for
    latents: LatentFacts | None = None  # of data sets of latents, and what makes images of them
    autoencoder: Autoencoder | None = None
    dtype = torch.uint8  # of what is stored

    def __init__(
        self,
        path: str | os.PathLike[str] | ImageArchive,
        *,
        resolution: int | None = None,
        max_size: int | None = None,
        use_labels: bool = False,
        xflip: bool = False,
        random_seed: int = 0,
    ) -> None:
        self._archive = path if isinstance(path, ImageArchive) else ImageArchive(path)
        self.path = self._archive.path
        self.name = os.path.splitext(self.path.name or self.path.resolve().name)[0]
        self._use_labels = use_labels
        self._targets: Tensor | None = None
        self._label_dim = 0
        self._label_kind: str | None = None
        self._class_names: list[str] | None = None
        self._images: Tensor | None = None
        self.image_shape: list[int] = []
        self._describe()
        self.num_channels, height, self.resolution = self.image_shape
        if height != self.resolution:
            raise ValueError(
                f"{self.path / self._names[0]} is {self.resolution}x{height}: images must be square, "
                "dataset_tool.py --transform=center-crop makes them so"
            )
        if resolution not in (None, self.resolution):
            raise OSError(f"{self.path} holds images of {self.resolution} pixels, {resolution} were asked for")
        self._subset = subset_indices(len(self._names), max_size, random_seed)
        n = len(self._subset)
        self.raw_idx = np.tile(self._subset, 2) if xflip else self._subset
        self.xflip = np.arange(len(self.raw_idx)) >= n

    def _describe(self) -> None:
        """Find the files, and the shape of one."""
        self._names = self._archive.image_names
        if not self._names:
            if any(name.endswith(".npy") for name in self._archive.names):
                raise OSError(f"{self.path} holds latents or other arrays, and images are needed here: give the images")
            raise OSError(f"{self.path} holds no images: build a data set with dataset_tool.py")
        self.image_shape = self.stored_shape = list(self._decode(self._names[0]).shape)

    def __len__(self) -> int:
        return len(self.raw_idx)

    @property
    def num_images(self) -> int:
        """Images without mirrored copies: item `i` shows image `i % num_images`."""
        return len(self._subset)

    def __getitem__(self, item: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 `[C,H,W]` and label float32 `[label_dim]`, both the caller's own.

        Raises:
            ValueError, OSError: an image that is damaged or has another shape, named.
        """
        index = range(len(self))[item] % self.num_images  # IndexError beyond the end
        label = self.encode_labels(self.targets()[index : index + 1])[0]
        return self._item(index, bool(self.xflip[item])), label.numpy()

    def _item(self, index: int, mirrored: bool) -> np.ndarray:
        """What is stored of an image, or of its mirror image."""
        image = self._decode(self._names[self._subset[index]])
        return image[:, :, ::-1].copy() if mirrored else image

    @property
    def shown_shape(self) -> list[int]:
        """Shape of what people look at; of latents, of the images that they stand for."""
        return self.image_shape if self.latents is None else [3, self.latents.image, self.latents.image]

    @property
    def nbytes(self) -> int:
        """What `images` takes."""
        copies = 2 if self.latents is not None and self.xflip.any() else 1
        return copies * self.num_images * int(np.prod(self.stored_shape)) * self.dtype.itemsize

    def _to_mode(self, image: Image.Image) -> Image.Image:
        return to_gray_or_rgb(image)

    def _decode(self, name: str) -> np.ndarray:
        try:
            image = self._to_mode(decode_image(self._archive.read(name)))
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.path / name}: {error}") from error
        pixels = np.array(image)
        pixels = pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
        if self.image_shape and list(pixels.shape) != self.image_shape:
            raise ValueError(
                f"{self.path / name} has shape {list(pixels.shape)}, the first image has {self.image_shape}: "
                "all images of a data set must be alike"
            )
        return pixels

    def images(self) -> Tensor:
        """All images without mirrored copies, uint8 `[num_images,C,H,W]`; decoded once, then kept.

        Of latents what is stored, and of mirrored images behind it where they are asked for.

        Raises:
            ValueError, OSError: as for a single image.
        """
        if self._images is None:
            n = self.num_images
            total = n if self.latents is None else len(self)
            images = torch.empty([total, *self.stored_shape], dtype=self.dtype)
            pixels = images.numpy()

            def fill(index: int) -> None:
                pixels[index] = self._item(index % n, index >= n)

            bar = tqdm(total=total, unit="img", desc=f"Decoding {self.name}", delay=3, disable=get_rank() != 0)
            with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
                try:
                    for first in range(0, total, 4096):  # bounds the queue, and notices errors early
                        block = range(first, min(first + 4096, total))
                        for _ in pool.map(fill, block, chunksize=64):
                            bar.update()
                finally:
                    pool.shutdown(cancel_futures=True)
            self._images = images
        return self._images

    def drop_images(self) -> None:
        """Forget what `images` keeps."""
        self._images = None

    def targets(self) -> Tensor:
        """Labels without mirrored copies, compact: classes int64 `[num_images]` or vectors float32 `[num_images,L]`.

        Raises:
            ValueError: an image without a label, or labels that are neither classes nor vectors of one length.
        """
        if self._targets is None:
            values = self._read_labels()
            self._label_dim = int(values.max()) + 1 if values.ndim == 1 else values.shape[1]
            self._targets = values[torch.from_numpy(self._subset)]
        return self._targets

    def encode_labels(self, targets: Tensor) -> Tensor:
        """Rows of `targets()`, on any device -> float32 `[rows, label_dim]`; classes become one-hot."""
        if targets.ndim == 2:
            return targets
        return (targets[:, None] == torch.arange(self.label_dim, device=targets.device)).float()

    def conditions(self) -> Tensor:
        """Labels that are no classes, for networks to draw from."""
        return self.targets()

    def labels(self) -> Tensor:
        """All labels without mirrored copies, float32 `[num_images, label_dim]`; large with many classes."""
        return self.encode_labels(self.targets())

    def _read_labels(self) -> Tensor:
        """Targets of all image files, so that a subset has the classes of the whole."""
        known = read_labels(self._archive) if self._use_labels else None
        if known is None or known.labels is None:
            return torch.zeros(len(self._names), 0)
        missing = [name for name in self._names if known.labels.get(name) is None]
        if missing:
            raise ValueError(f"{known.where} has no label for {missing[0]} ({len(missing)} images lack one)")
        values = [known.labels[name] for name in self._names]
        kind, array = check_labels(values, self._names.__getitem__, known)
        self._label_kind, self._class_names = kind, known.class_names
        return torch.from_numpy(array)

    @property
    def label_kind(self) -> str | None:
        """`classes`, `multi-hot` or `vector`; None without labels."""
        self.targets()
        return self._label_kind

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, one each, where the data set has them."""
        self.targets()
        return self._class_names and self._class_names[: self._label_dim]

    @property
    def label_dim(self) -> int:
        self.targets()
        return self._label_dim

    @property
    def has_labels(self) -> bool:
        return self.label_dim > 0

    @property
    def has_onehot_labels(self) -> bool:
        """Whether labels are classes."""
        return self.label_kind == "classes"

    def close(self) -> None:
        """Close the zip; images already cached stay available."""
        self._archive.close()

    def fingerprint(self) -> str:
        """A hash that changes when an image or a label in use does, the same for a copy of the data elsewhere."""
        used = find_labels(self._archive) if self._use_labels else None
        return self._archive.fingerprint([*self._names, *([used] if used else [])])


def decoded(dataset: ImageDataset, indices: Sequence[int], batch: int) -> Iterator[Tensor]:
    """Batches uint8 `[B, C, H, W]` of these images, decoded a few batches ahead by threads."""

    def load(start: int) -> Tensor:
        return torch.from_numpy(np.stack([dataset[i][0] for i in indices[start : start + batch]]))

    starts = iter(range(0, len(indices), batch))
    with ThreadPoolExecutor(WORKERS) as pool:
        ahead = deque(pool.submit(load, start) for start in islice(starts, 2 * WORKERS))
        while ahead:
            images = ahead.popleft().result()
            ahead.extend(pool.submit(load, start) for start in islice(starts, 1))
            yield images

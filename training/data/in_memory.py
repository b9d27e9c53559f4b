"""InMemoryDataset: samples and their classes as two tensors, with what training asks of an `ImageDataset`."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


class InMemoryDataset:
    """A data set that is small enough to be kept.

    Args:
        name: of the data.
        samples: float32 `[N, ...]` as networks see them.
        classes: int64 `[N]`, or None.
        label_dim: number of classes; 0 without.

    Attributes:
        image_shape: of one sample; num_images: N; class_names: where classes have names.
    """

    latents = None
    class_names: list[str] | None = None

    def __init__(self, name: str, samples: Tensor, classes: Tensor | None, label_dim: int) -> None:
        self.name, self._samples, self.label_dim = name, samples, label_dim
        self.num_images, self.image_shape = len(samples), tuple(samples.shape[1:])
        self._targets = torch.zeros(len(samples), 0) if classes is None else classes

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, item: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample float32 and label float32 `[label_dim]`, both the caller's own."""
        return self._samples[item].clone().numpy(), self.encode_labels(self._targets[item : item + 1])[0].numpy()

    def images(self) -> Tensor:
        """All samples, float32 `[N, ...]`."""
        return self._samples

    def drop_images(self) -> None:
        """Nothing to drop: samples take little memory, and `images` may be asked for again."""

    def targets(self) -> Tensor:
        """Classes int64 `[N]`, or float32 `[N, 0]`."""
        return self._targets

    def encode_labels(self, targets: Tensor) -> Tensor:
        """Rows of `targets()`, on any device -> float32 `[rows, label_dim]`, one-hot."""
        if targets.ndim == 2:
            return targets
        return (targets[:, None] == torch.arange(self.label_dim, device=targets.device)).float()

    @property
    def has_labels(self) -> bool:
        return self.label_dim > 0

    @property
    def label_kind(self) -> str | None:
        """`classes`; None without labels."""
        return "classes" if self.has_labels else None

    def fingerprint(self) -> str:
        """A hash of the samples and their classes."""
        return hashlib.sha256(self._samples.numpy().tobytes() + self._targets.numpy().tobytes()).hexdigest()

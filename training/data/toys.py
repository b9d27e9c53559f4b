"""Points in the plane as data sets: `--data=toy:NAME`, with `:size=N` and `:seed=S` after it.

A finite sample is drawn once, from the seed, and kept as a tensor `[N, 2, 1, 1]`: points are images of two channels and
one pixel, so that networks, loop and samplers need no second code path. Coordinates are not scaled.

- 8gaussians, moons, checkerboard, spirals, pinwheel: the targets of flow-matching papers, in the form of Tong et al.
  (arXiv 2302.00482) and of the IDFF experiments.
- two_gaussians: N((-8, 8), diag(3, 0.1)) and N((8, 8), diag(3, 0.1)) (Lee, Kim, Ye 2023, arXiv 2301.12003).
- FILE.png: black pixels of a picture, coordinates scaled to [0, 1], x to the right and y up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torch_utils.misc import root_mean_square
from training.data.decode import decode_image
from training.data.in_memory import InMemoryDataset
from training.data.transforms import to_gray_or_rgb

PREFIX = "toy:"
SIZE = 100_000
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")

Points = tuple[np.ndarray, np.ndarray | None]  # [n, 2] float64, and classes [n] where there are natural ones


def _eight_gaussians(n: int, random: np.random.Generator) -> Points:
    """Centres on a circle of radius 5, covariance sqrt(0.1): a standard deviation of 0.5623."""
    k = random.integers(8, size=n)
    centres = 5 * np.stack([np.cos(k * math.pi / 4), np.sin(k * math.pi / 4)], axis=1)
    return centres + 0.1**0.25 * random.standard_normal((n, 2)), k


def _moons(n: int, random: np.random.Generator) -> Points:
    """Two half circles, every point moved along the diagonal by U[0, 0.2)."""
    outer, inner = np.linspace(0, math.pi, n // 2), np.linspace(0, math.pi, n - n // 2)
    x = np.concatenate([np.cos(outer), 1 - np.cos(inner)])
    y = np.concatenate([np.sin(outer), 0.5 - np.sin(inner)])
    points = np.stack([x, y], axis=1) + 0.2 * random.random((n, 1))
    return 3 * points - 1, np.repeat([0, 1], [n // 2, n - n // 2])


def _checkerboard(n: int, random: np.random.Generator) -> Points:
    a = random.uniform(-2, 2, n)
    b = random.random(n) - 2 * random.integers(2, size=n) + np.floor(a) % 2
    return 2 * np.stack([a, b], axis=1), None


def _spirals(n: int, random: np.random.Generator) -> Points:
    """Two arms, each the mirror image of the other but for the noise."""
    half = n - n // 2
    theta = 3 * math.pi * np.sqrt(random.random(half))
    arm = np.stack([-theta * np.cos(theta), theta * np.sin(theta)], axis=1) + 0.5 * random.random((half, 2))
    points = np.concatenate([arm, -arm])[:n] / 3 + 0.1 * random.standard_normal((n, 2))
    return points, np.repeat([0, 1], half)[:n]


def _pinwheel(n: int, random: np.random.Generator) -> Points:
    k = np.arange(n) % 5
    x, y = 0.3 * random.standard_normal(n) + 1, 0.1 * random.standard_normal(n)
    angle = 2 * math.pi * k / 5 + 0.25 * np.exp(x)
    cos, sin = np.cos(angle), np.sin(angle)
    return 2 * np.stack([x * cos + y * sin, y * cos - x * sin], axis=1), k


def _two_gaussians(n: int, random: np.random.Generator) -> Points:
    k = np.arange(n) % 2
    points = random.standard_normal((n, 2)) * np.sqrt([3.0, 0.1])
    return points + np.stack([16.0 * k - 8, np.full(n, 8.0)], axis=1), k


TOYS: dict[str, Callable[[int, np.random.Generator], Points]] = {
    "8gaussians": _eight_gaussians,
    "moons": _moons,
    "checkerboard": _checkerboard,
    "spirals": _spirals,
    "pinwheel": _pinwheel,
    "two_gaussians": _two_gaussians,
}


def draw(name: str, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """`n` points of a toy: float32 `[n, 2]`, and classes int64 `[n]` (of length 0 without classes).

    Raises:
        ValueError: unknown name, or n below 1.
    """
    if name not in TOYS:
        raise ValueError(f"there is no toy '{name}': choose from {', '.join(TOYS)}, or name a picture file")
    if n < 1:
        raise ValueError(f"size={n} leaves no points: give 1 or more")
    points, classes = TOYS[name](n, np.random.default_rng(seed))
    labels = np.empty(0, np.int64) if classes is None else classes.astype(np.int64)
    return torch.from_numpy(points.astype(np.float32)), torch.from_numpy(labels)


def _black_pixels(path: Path, n: int, seed: int) -> Tensor:
    """Coordinates of `n` black pixels of a picture, drawn with replacement: float32 `[n, 2]` in [0, 1]."""
    if not path.is_file():
        raise ValueError(f"there is no picture {path}: give a file, or one of {', '.join(TOYS)}")
    pixels = np.asarray(to_gray_or_rgb(decode_image(path.read_bytes()), "white").convert("RGB"))
    y, x = np.nonzero(pixels.sum(-1, dtype=np.int64) == 0)
    if not len(x):
        raise ValueError(f"{path} has no black pixel: the points of a toy are the pixels of colour (0, 0, 0)")
    height, width = pixels.shape[:2]
    points = np.stack([x / max(width - 1, 1), 1 - y / max(height - 1, 1)], axis=1)
    chosen = np.random.default_rng(seed).integers(len(points), size=n)
    return torch.from_numpy(points[chosen].astype(np.float32))


def is_toy(data: object) -> bool:
    """Whether `--data` names a toy."""
    return str(data).startswith(PREFIX)


class ToyDataset(InMemoryDataset):
    """A finite sample of a toy.

    Args:
        text: `toy:NAME`, `toy:NAME:size=20000:seed=1` or `toy:FILE.png`.
        use_labels: give classes, where the toy has them.
        xflip: not possible, a mirrored toy is another distribution.

    Attributes:
        num_channels, resolution: 2 and 1, as points are images.

    Raises:
        ValueError: unknown toy or option, a picture that cannot be used.
    """

    num_channels = 2
    resolution = 1

    def __init__(self, text: str, *, use_labels: bool = False, xflip: bool = False) -> None:
        name, *given = text.removeprefix(PREFIX).split(":")
        size, seed = sized(text, given, "toy:moons:size=20000:seed=1")
        if xflip:
            raise ValueError(f"--xflip mirrors images, {text} has points: leave it out")
        if name.lower().endswith(PICTURES):
            points, targets = _black_pixels(Path(name), size, seed), torch.empty(0, dtype=torch.int64)
        else:
            points, targets = draw(name, size, seed)
        classes = targets if use_labels and len(targets) else None
        label_dim = 0 if classes is None else int(classes.max()) + 1
        super().__init__(Path(name).stem, points[:, :, None, None].contiguous(), classes, label_dim)

    @cached_property
    def std(self) -> float:
        """Root mean square of all coordinates, to four digits: what EDM calls sigma_data."""
        return root_mean_square(self._samples)


def sized(text: str, given: Sequence[str], example: str) -> tuple[int, int]:
    """Number and seed of what `--data=text` draws, of its last words `size=N` and `seed=S`.

    Raises:
        ValueError: other words; the sentence ends with an example.
    """
    values = {"size": SIZE, "seed": 0}
    for part in given:
        key, _, number = part.partition("=")
        if key not in values or not number.isdigit():
            raise ValueError(f"'{part}' in --data={text} is not understood: write for example {example}")
        values[key] = int(number)
    if values["size"] < 1:
        raise ValueError(f"{text}: size must be 1 or more")
    return values["size"], values["seed"]

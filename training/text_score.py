"""CLIP score of images and the texts they were made of, the work of clip_score.py."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath
from typing import NamedTuple

import torch
from PIL import Image
from tqdm import tqdm

from networks.features.clip_pairs import ClipPairs, load_clip_pairs
from samplers.prompts import read_prompts
from torch_utils import distributed as dist
from torch_utils.metrics import Figure, Z
from training.data.archive import ImageArchive
from training.data.decode import decode_image
from training.data.image_dataset import WORKERS, subset_indices
from training.data.transforms import to_gray_or_rgb
from training.measures import whole_batches


class Scored(NamedTuple):
    """The score, how many images it is of and how many were found, and the model."""

    figure: Figure
    num: int
    found: int
    clip: ClipPairs


def text_score(
    images: str, prompts: str, model: str, *, num: int | None, seed: int, batch: int, device: torch.device
) -> Scored:
    """Score images, all processes together.

    Args:
        images: folder or zip; the number at the end of a file name is its row in the table `prompts`.
        model: what `load_clip_pairs` takes.
        num: images, chosen at random by `seed`; None: all.

    Raises:
        ValueError: images that do not go with the table, or are too few; a model or table that is not there.
    """
    archive, captions = ImageArchive(images), read_prompts(prompts)
    found = len(archive.image_names)
    if found < (num or 1):
        raise ValueError(f"{images} holds {found} images, {num or 1} are needed")
    names = _numbered(images, archive.image_names, prompts, len(captions))
    rows = sorted(names)
    pairs = [(names[rows[i]], captions[rows[i]]) for i in subset_indices(len(rows), num, seed)]
    clip = dist.rank0_first(lambda: load_clip_pairs(model, device))
    return Scored(_score(archive, pairs, clip, batch, device), len(pairs), found, clip)


def _numbered(images: str, names: Sequence[str], prompts: str, rows: int) -> dict[int, str]:
    """The name of each image by its number, the row of its caption.

    Raises:
        ValueError: a name without a number, two of one number, a number without a caption.
    """
    found: dict[int, str] = {}
    for name in names:
        number = re.search(r"(\d+)$", PurePath(name).stem)
        if number is None:
            raise ValueError(f"{images}: {name} has no number that says which caption it was made of")
        index = int(number[1])
        if index in found:
            raise ValueError(f"{images}: {found[index]} and {name} are both number {index}")
        found[index] = name
    last = max(found)
    if last >= rows:
        raise ValueError(
            f"{found[last]} is number {last}, and {prompts} has captions 0 to {rows - 1}: give a "
            "table with a row for every image"
        )
    return found


def _score(
    archive: ImageArchive, pairs: Sequence[tuple[str, str]], clip: ClipPairs, batch: int, device: torch.device
) -> Figure:
    """Mean over all processes; batches are the same for any number of them."""

    def load(name: str) -> Image.Image:
        try:
            return to_gray_or_rgb(decode_image(archive.read(name))).convert("RGB")
        except (ValueError, OSError) as error:
            raise ValueError(f"{archive.path / name}: {error}") from error

    share = whole_batches(len(pairs), batch)
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    with (
        ThreadPoolExecutor(WORKERS) as pool,
        tqdm(desc="images", total=len(share), unit="img", disable=dist.get_rank() > 0 or None) as bar,
    ):
        for start in range(share.start, share.stop, batch):
            names, texts = zip(*pairs[start : min(start + batch, share.stop)], strict=True)
            scores = clip.scores(list(pool.map(load, names)), texts)
            sums += torch.stack([scores.sum(), scores.square().sum()])
            bar.update(len(names))
    n, (total, squares) = len(pairs), dist.all_reduce_sum(sums).tolist()
    variance = max(squares / n - (total / n) ** 2, 0.0) * n / max(n - 1, 1)
    half = Z * math.sqrt(variance / n) if n > 1 else None
    return Figure(total / n, half, "95% by the spread over images", math.sqrt(variance))

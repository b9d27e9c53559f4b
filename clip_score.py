"""CLIP score of images and the texts they were made of: `clip_score.py calc`.

The mean of 100 cos(image embedding, text embedding) (Radford et al. 2021, arXiv 2103.00020), not cut at 0. Image i
belongs to row i of the captions, i the number in its file name. Scores of different models do not compare, so the model
is printed with the score. See docs/evaluation.md.
"""

from __future__ import annotations

from torch_utils import process

if __name__ == "__main__":
    process.begin()  # before torch starts its threads

import math
import re
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import ClassVar

import click
import torch
from PIL import Image
from tqdm import tqdm

from networks.features.clip_pairs import ClipPairs, load_clip_pairs
from samplers.prompts import read_prompts
from torch_utils import distributed as dist
from torch_utils.cli import Group
from torch_utils.files import write_json
from torch_utils.metrics import Figure, Z
from torch_utils.options import OptionGroup, opt, options_of
from training.data.archive import ImageArchive
from training.data.decode import decode_image
from training.data.image_dataset import WORKERS, subset_indices
from training.measures import whole_batches

MODEL = "laion/CLIP-ViT-g-14-laion2B-s34B-b88K"

EXAMPLES = """\b
Examples:
  # Images 000000.png, 000001.png, ... of the captions in rows 0, 1, ... of the column `text`
  python clip_score.py calc --images=out --prompts=captions.csv --model=openai/clip-vit-large-patch14
\b
  # With open_clip, on 8 GPUs
  torchrun --standalone --nproc_per_node=8 clip_score.py calc --images=out --prompts=captions.csv \\
      --model=open_clip:ViT-g-14:laion2b_s34b_b88k"""

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 120, "show_default": True}


@dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """All options of `calc`."""

    group: ClassVar = OptionGroup("Images and texts", "What is measured, and by which model.")

    images: str = opt(None, "Images; the number at the end of a file name is its row", metavar="DIR|ZIP", required=True)
    prompts: str = opt(None, "Captions: a table with a column `text`", metavar="CSV", required=True)
    model: str = opt(
        MODEL, "CLIP: a folder or a name that the cache of transformers holds, or open_clip:NAME:TAG", metavar="NAME"
    )
    num: int | None = opt(None, "Images to use, chosen at random [default: all]", metavar="INT", at_least=1)
    seed: int = opt(0, "Seed of that choice", metavar="INT")
    batch: int = opt(64, "Images at once on one process", metavar="INT", at_least=1)
    device: str = opt("auto", "auto, cpu, cuda or cuda:N", metavar="NAME")
    json: str | None = opt(None, "Also write the result and what defines it to this file", metavar="FILE")


@click.group(cls=Group, context_settings=SETTINGS, epilog=EXAMPLES)
def main() -> None:
    """How well images fit the texts that they were made of."""


@main.command(context_settings=SETTINGS, epilog=EXAMPLES)
@options_of(ClipOptions)
def calc(options: ClipOptions) -> None:
    """Print the CLIP score of images and their captions."""
    with dist.process_group(options.device) as device:
        archive, captions = ImageArchive(options.images), read_prompts(options.prompts)
        pairs = _pairs(options, archive.image_names, captions)
        clip = dist.rank0_first(lambda: load_clip_pairs(options.model, device))
        figure = _score(archive, pairs, clip, options.batch, device)
        if dist.get_rank() == 0:
            click.echo(f"CLIP score {figure} of {len(pairs)} images, {figure.how}", err=True)
            click.echo(f"model {clip.name}, weights {clip.weights}; images: {clip.resize}", err=True)
            click.echo(f"{figure.value:g}")
            if options.json:
                protocol = {"model": clip.name, "weights": clip.weights, "resize": clip.resize, "cut_at_0": False}
                protocol |= {"images": options.images, "prompts": options.prompts, "seed": options.seed}
                protocol |= {"found": len(archive.image_names), "command": shlex.join(sys.argv)}
                Path(options.json).parent.mkdir(parents=True, exist_ok=True)
                report = {"clip_score": figure._asdict(), "num": len(pairs), "protocol": protocol}
                write_json(options.json, report)
        dist.barrier()


def _pairs(options: ClipOptions, names: Sequence[str], captions: Sequence[str]) -> list[tuple[str, str]]:
    """Image names and their captions, of the images that are used.

    Raises:
        ValueError: no images or too few, a name without a number, two of one number, a number without a caption.
    """
    if len(names) < (options.num or 1):
        raise ValueError(f"{options.images} holds {len(names)} images, {options.num or 1} are needed")
    found: dict[int, str] = {}
    for name in names:
        number = re.search(r"(\d+)$", PurePath(name).stem)
        if number is None:
            raise ValueError(f"{options.images}: {name} has no number that says which caption it was made of")
        index = int(number[1])
        if index in found:
            raise ValueError(f"{options.images}: {found[index]} and {name} are both number {index}")
        found[index] = name
    last = max(found)
    if last >= len(captions):
        raise ValueError(
            f"{found[last]} is number {last}, and {options.prompts} has captions 0 to {len(captions) - 1}: give a "
            "table with a row for every image"
        )
    rows = sorted(found)
    return [(found[rows[i]], captions[rows[i]]) for i in subset_indices(len(rows), options.num, options.seed)]


def _score(
    archive: ImageArchive, pairs: Sequence[tuple[str, str]], clip: ClipPairs, batch: int, device: torch.device
) -> Figure:
    """Mean over all processes; batches are the same for any number of them."""

    def load(name: str) -> Image.Image:
        try:
            return decode_image(archive.read(name)).convert("RGB")
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


if __name__ == "__main__":
    main()

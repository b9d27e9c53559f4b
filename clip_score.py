"""CLIP score of images and the texts they were made of: `clip_score.py calc`.

The mean of 100 cos(image embedding, text embedding) (Radford et al. 2021, arXiv 2103.00020), not cut at 0. Image i
belongs to row i of the captions, i the number in its file name. Scores of different models do not compare, so the model
is printed with the score. See docs/evaluation.md.
"""

from __future__ import annotations

from torch_utils import process

if __name__ == "__main__":
    process.begin()  # before torch starts its threads

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import click

from torch_utils.cli import Group
from torch_utils.files import check_target, write_json
from torch_utils.options import OptionGroup, opt, options_of

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
    with process.late_imports():
        from torch_utils import distributed as dist
        from training.text_score import text_score

    with dist.process_group(options.device) as device:
        if options.json:
            check_target(options.json, options.images, options.prompts)
        scored = text_score(
            options.images, options.prompts, options.model, num=options.num, seed=options.seed, batch=options.batch,
            device=device,
        )  # fmt: skip
        if dist.get_rank() == 0:
            figure, clip = scored.figure, scored.clip
            click.echo(f"CLIP score {figure} of {scored.num} images, {figure.how}", err=True)
            click.echo(f"model {clip.name}, weights {clip.weights}; images: {clip.resize}", err=True)
            click.echo(f"{figure.value:g}")
            if options.json:
                protocol = {"model": clip.name, "weights": clip.weights, "resize": clip.resize, "cut_at_0": False}
                protocol |= {"images": options.images, "prompts": options.prompts, "seed": options.seed}
                protocol |= {"found": scored.found, "command": shlex.join(sys.argv)}
                Path(options.json).parent.mkdir(parents=True, exist_ok=True)
                report = {"clip_score": figure._asdict(), "num": scored.num, "protocol": protocol}
                write_json(options.json, report)
        dist.barrier()


if __name__ == "__main__":
    main()

"""Texts for models of text: one for all images, or row i of a table for the image of seed i.

A table is a CSV file with a column `text`, as lists of captions are published (MS-COCO's 30,000 among them).
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from samplers.field import Field

COLUMN = "text"
MAX_ROWS = 10_000_000


def read_prompts(path: str | Path) -> list[str]:
    """The column `text` of a CSV file.

    Raises:
        ValueError: no such file or column, no rows, text that is not UTF-8; names the file.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if COLUMN not in (rows.fieldnames or ()):
                raise ValueError(
                    f"{path} has no column '{COLUMN}': its first line names {rows.fieldnames or 'nothing'}"
                )
            texts = [row[COLUMN] or "" for row, _ in zip(rows, range(MAX_ROWS), strict=False)]
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8 ({error})") from None
    if not texts:
        raise ValueError(f"{path} holds no rows under its header: give one text for every seed")
    return texts


@dataclass(frozen=True)
class Prompts:
    """Which text belongs to which seed.

    Attributes:
        texts: one for all seeds, or text i for seed i.
        shared: there is one for all.
        encode: texts -> conditions, `Facts.encode_text`.
    """

    texts: Sequence[str]
    shared: bool
    encode: Callable[[Sequence[str]], Tensor]

    @classmethod
    def of(cls, field: Field, prompt: str | None, table: str | Path | None, conditional: bool = True) -> Prompts | None:
        """The texts that were asked for; None for a model without text, or where the condition is left empty.

        Raises:
            ValueError: a text for a model that takes none, none for one that takes one, both a text and a table.
        """
        encode = field.facts.encode_text
        if encode is None:
            if prompt is not None or table is not None:
                raise ValueError(
                    f"this network takes no text ({field.facts.conditioning}): leave out "
                    + ("--prompt" if table is None else "--prompts")
                )
            return None
        if not conditional:
            if prompt is not None or table is not None:
                raise ValueError("--guidance-type=uncond samples without a text: leave the text out")
            return None
        if prompt is not None and table is not None:
            raise ValueError("--prompt is one text for all images and --prompts one for each seed: give one of them")
        if prompt is None and table is None:
            raise ValueError('this network makes images of a text: give --prompt="a text" or --prompts=FILE.csv')
        return cls([prompt], True, encode) if table is None else cls(read_prompts(table), False, encode)

    @property
    def digest(self) -> str:
        """A word that differs where any text does."""
        return hashlib.sha256(json.dumps([self.shared, list(self.texts)]).encode()).hexdigest()[:16]

    def check(self, seeds: Sequence[int]) -> None:
        """Raise ValueError for a seed without text, or where texts cannot be encoded at all."""
        if not self.shared and seeds and max(seeds) >= len(self.texts):
            raise ValueError(
                f"seed {max(seeds)} has no text: the table has {len(self.texts)} rows, for seeds 0 to "
                f"{len(self.texts) - 1}"
            )
        self.encode([""])

    def __call__(self, seeds: Sequence[int]) -> Tensor:
        """Conditions `[B, ...]` of seeds; of a shared text `[1, ...]`."""
        return self.encode([self.texts[0]] if self.shared else [self.texts[seed] for seed in seeds])

    def warm_up(self, count: int) -> Tensor:
        """Conditions of `count` samples to measure on: the texts from the first on, again and again."""
        if self.shared:
            return self(())
        rows = range(count)
        parts = [rows[i : i + 64] for i in range(0, count, 64)]
        return torch.cat([self([i % len(self.texts) for i in part]) for part in parts])

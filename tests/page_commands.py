"""Commands of our own programs in the code blocks of a page, and the tables beside them.

OPTIONS in a command stands for every cell of the column "options" of the next table; N in a cell, for the number of
levels of each column that is headed by a number of network evaluations and has a figure.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^ *```\w*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^ *(?:\w+=\S+ )*(python|torchrun) (.*)$", re.MULTILINE)
TABLE = re.compile(r"^\|.*\|\n\|[-|]+\|\n(?:\|.*\|\n)*", re.MULTILINE)
TWICE = ("--solver=heun ", "--solver=dpm ")  # solvers of two evaluations a step


class Command(NamedTuple):
    """`module` of the repository, its arguments, and the network evaluations that the table says, where it does."""

    module: str
    arguments: list[str]
    evaluations: int | None = None


def rows(table: str) -> list[dict[str, str]]:
    """Rows of a table in Markdown by the heads of its columns."""
    head, _, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines())
    return [dict(zip(head, cells, strict=True)) for cells in body]


def table_of(text: str, head: str) -> list[dict[str, str]]:
    """The one table of a page whose first column is headed so."""
    (found,) = (t for t in TABLE.findall(text) if t.startswith(f"| {head} |"))
    return rows(found)


def commands(text: str) -> Iterator[Command]:
    """Every command of a page, up to a comment or a pipe."""
    for block in BLOCK.finditer(text):
        for program, line in COMMAND.findall(re.sub(r"\\\n\s*", "", block[1])):
            line = re.split(r" #|[;|&]", line)[0]
            for options, evaluations in _options(text[block.end() :]) if "OPTIONS" in line else [("", None)]:
                words = shlex.split(line.replace("OPTIONS", options), comments=False)
                if program == "torchrun":
                    words = words[next(i for i, word in enumerate(words) if not word.startswith("-")) :]
                module = words.pop(1) if words[0] == "-m" else words[0].removesuffix(".py")
                for name in (module, f"{module}.__main__"):
                    if (ROOT / f"{name.replace('.', '/')}.py").exists():
                        yield Command(name, words[1:], evaluations)


def _options(after: str) -> Iterator[tuple[str, int | None]]:
    for row in rows(TABLE.search(after)[0]):
        if not (cell := row["options"]).startswith("`"):
            continue  # it says why there is none
        options = cell.strip("`")
        if not options.endswith(("=N", "=N --dp")):
            said = next((v for k, v in row.items() if k.startswith("evaluations")), "")
            yield options, int(said) if said else None
            continue
        for head, figure in row.items():
            if head.isdigit() and figure != "–":
                steps = int(head) // 2 if options.startswith(TWICE) else int(head)
                yield options.replace("=N", f"={steps + 1}"), int(head)

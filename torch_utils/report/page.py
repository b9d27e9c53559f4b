"""A folder's tables, charts and pictures on one page: index.html, one file that needs no other and no network.

    table = Table("Errors", ("steps", "a", "b"), (("3", "0.2", "-"),), note="lower is better")
    print(table.text())
    write_page("runs/demo", "Demo", tables=[table], captions={"loss.png": "Training loss"})

Tables can be sorted, charts zoomed, pictures enlarged; style and scripts lie in web/, with uPlot (MIT licence) for the
charts. Everything that came from outside (titles, captions, file names, cells) is escaped.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from torch_utils.files import atomic_write
from torch_utils.report.chart import Chart

WEB = Path(__file__).parent / "web"
SMALL = 480  # pixels; narrower pictures are enlarged by a whole factor, so that single pixels can be seen
WIDE = 900  # pixels; wider pictures take a row of their own


@dataclass(frozen=True)
class Table:
    """Cells as text, the first column naming the rows.

    Attributes:
        title: what the numbers are.
        columns: heads, one a column.
        rows: cells, as many a row as there are heads.
        best: (row, column) of the cells to mark.
        note: a sentence below the table.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: frozenset[tuple[int, int]] = field(default_factory=frozenset)
    note: str = ""

    def text(self) -> str:
        """Aligned for a terminal; marked cells carry a star."""
        rows = [
            # A blank in place of the star keeps the numbers aligned.
            [cell + ("*" if (r, c) in self.best else " ") for c, cell in enumerate(row)]
            for r, row in enumerate(self.rows)
        ]
        cells = [[c + " " for c in self.columns], *rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [" ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
        return "\n".join([self.title, *lines, *([self.note] if self.note else [])])

    def html(self) -> str:
        """A card of the page; everything in it is escaped."""
        head = "".join(f'<th scope="col"><button>{html.escape(c)}</button></th>' for c in self.columns)
        body = "".join(f"<tr>{self._row(r, row)}</tr>\n" for r, row in enumerate(self.rows))
        note = f'<p class="note">{html.escape(self.note)}</p>' if self.note else ""
        table = f'<table class="numbers"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'
        title = html.escape(self.title)
        return f'<section class="card wide"><h3>{title}</h3><div class="scroll">{table}</div>{note}</section>\n'

    def _row(self, r: int, row: Sequence[str]) -> str:
        first = f'<th scope="row">{html.escape(row[0])}</th>'
        marks = (' class="best"' if (r, c) in self.best else "" for c in range(1, len(row)))
        return first + "".join(f"<td{m}>{html.escape(cell)}</td>" for m, cell in zip(marks, row[1:], strict=True))


def write_page(
    folder: str | Path,
    title: str,
    *,
    tables: Sequence[Table] = (),
    charts: Sequence[Chart] = (),
    captions: Mapping[str, str] | None = None,
    first: Sequence[str] = (),
    without: Collection[str] = (),
) -> Path:
    """Write `folder/index.html`: the tables, the charts, every PNG of the folder, and the names of its JSON files.

    Args:
        captions: file name -> sentence below the picture; others are captioned by their names.
        first: names of pictures that come before the others, in this order; missing ones are left out.
        without: names of pictures that are not shown.

    Raises:
        ValueError: no such folder, nothing in it to show, or a PNG that is none.
    """
    folder, captions = Path(folder), captions or {}
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give one with pictures (.png) in it")
    pictures = (p.name for p in folder.iterdir() if p.suffix.lower() == ".png" and not p.name.startswith("."))
    names = sorted(name for name in pictures if name not in without)
    if not names and not tables and not charts:
        raise ValueError(f"{folder} holds no pictures (.png) and no tables to show: give another folder")
    names.sort(key=lambda name: (first.index(name) if name in first else len(first), name))
    sections = {
        "Pictures": [_figure(folder / name, captions.get(name)) for name in names],
        "Charts": [c.html() for c in charts],
        "Tables": [t.html() for t in tables],
    }
    numbers = ", ".join(html.escape(p.name) for p in sorted(folder.glob("[!.]*.json")))
    hint = {"Charts": "Drag, or pinch, to zoom; double-click for everything; a name in the legend hides its line."}
    parts = [
        f'<h2 id="{name}">{name}</h2>\n'
        + (f'<p class="note">{hint[name]}</p>\n' if name in hint else "")
        + f'<div class="cards">\n{"".join(cards)}</div>\n'
        for name, cards in sections.items()
        if cards
    ]
    parts += [f'<p class="note">The numbers lie beside this page: {numbers}</p>\n'] if numbers else []
    links = " ".join(f'<a href="#{name}">{name}</a>' for name, cards in sections.items() if cards)
    style, script = _web("page.css"), _web("page.js")
    if charts:
        style, script = _web("uPlot.min.css") + style, _web("uPlot.iife.min.js") + script
    text = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n<nav>{links}</nav>\n{''.join(parts)}<dialog></dialog>\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )
    with atomic_write(folder / "index.html", "w") as f:
        f.write(text)
    return folder / "index.html"


def _web(name: str) -> str:
    return (WEB / name).read_text(encoding="utf-8")


def _figure(path: Path, caption: str | None) -> str:
    try:
        with Image.open(path) as image:
            width, height = image.size
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is not a picture: make it again or delete it") from error
    scale = max(SMALL // width, 1)
    caption = html.escape(caption or path.stem.replace("_", " ").replace("-", " "))
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure class="card{" wide" if width > WIDE else ""}"><button aria-label="enlarge">'
        f'<img src="data:image/png;base64,{data}" alt="{caption}" width="{scale * width}" height="{scale * height}"'
        f"{' class=small' if scale > 1 else ''}></button><figcaption>{caption}</figcaption></figure>\n"
    )

"""A folder's pictures and tables on one page: index.html, self-contained, without scripts or external resources.

    table = Table("Errors", ("steps", "a", "b"), (("3", "0.2", "-"),), note="lower is better")
    print(table.text())
    write_page("runs/demo", "Demo", tables=[table], captions={"loss.png": "Training loss"})

Everything that came from outside (titles, captions, file names, cells) is escaped. Pictures and files are linked by
names relative to the folder, so that it can be moved or sent.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from PIL import Image, UnidentifiedImageError

from torch_utils.files import atomic_write

__all__ = ["Table", "write_page"]

SMALL = 480  # pixels; narrower pictures are enlarged by a whole factor, so that single pixels can be seen

STYLE = """
:root { color-scheme: light dark; --text: #1d2129; --soft: #5c6470; --ground: #fafafa; --card: #fff; --line: #dcdfe4;
  --mark: #e4f1e6; }
@media (prefers-color-scheme: dark) { :root { --text: #e2e4e8; --soft: #9aa2ad; --ground: #16181c; --card: #1f2227;
  --line: #363b43; --mark: #24402b; } }
body { margin: 0 auto; max-width: 64rem; padding: 2rem 1.2rem 4rem; background: var(--ground); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 1.5rem; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 0.6rem; }
figure { margin: 0 0 1.6rem; padding: 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; }
figure a { display: block; overflow-x: auto; }
img { display: block; margin: 0 auto; max-width: 100%; height: auto; background: #fff; }
img.small { image-rendering: pixelated; }
figcaption, .note { color: var(--soft); font-size: 0.92rem; margin-top: 0.7rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; background: var(--card); }
th, td { padding: 0.32rem 0.8rem; text-align: right; border: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; }
td.best { background: var(--mark); font-weight: 600; }
"""


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
        head = "".join(f'<th scope="col">{html.escape(c)}</th>' for c in self.columns)
        body = "".join(f"<tr>{self._row(r, row)}</tr>\n" for r, row in enumerate(self.rows))
        note = f'<p class="note">{html.escape(self.note)}</p>' if self.note else ""
        table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
        return f'<h2>{html.escape(self.title)}</h2>\n<div class="scroll">{table}</div>\n{note}'

    def _row(self, r: int, row: Sequence[str]) -> str:
        first = f'<th scope="row">{html.escape(row[0])}</th>'
        marks = (' class="best"' if (r, c) in self.best else "" for c in range(1, len(row)))
        return first + "".join(f"<td{m}>{html.escape(cell)}</td>" for m, cell in zip(marks, row[1:], strict=True))


def write_page(
    folder: str | Path,
    title: str,
    *,
    tables: Sequence[Table] = (),
    captions: Mapping[str, str] | None = None,
    first: Sequence[str] = (),
) -> Path:
    """Write `folder/index.html`, which shows the tables, then every PNG of the folder, then links to its JSON files.

    Args:
        captions: file name -> sentence below the picture; others are captioned by their names.
        first: names of pictures that come before the others, in this order; missing ones are left out.

    Raises:
        ValueError: no such folder, nothing in it to show, or a PNG that is none.
    """
    folder, captions = Path(folder), captions or {}
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give one with pictures (.png) in it")
    names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() == ".png" and not p.name.startswith("."))
    if not names and not tables:
        raise ValueError(f"{folder} holds no pictures (.png) and no tables to show: give another folder")
    names.sort(key=lambda name: (first.index(name) if name in first else len(first), name))
    figures = [_figure(folder / name, captions.get(name)) for name in names]
    numbers = sorted(p.name for p in folder.glob("[!.]*.json"))
    links = ", ".join(f'<a href="{quote(name)}">{html.escape(name)}</a>' for name in numbers)
    parts = [t.html() for t in tables] + ([f"<h2>Pictures</h2>\n{''.join(figures)}"] if figures else [])
    parts += [f'<p class="note">The numbers: {links}</p>'] if links else []
    text = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )
    with atomic_write(folder / "index.html", "w") as f:
        f.write(text)
    return folder / "index.html"


def _figure(path: Path, caption: str | None) -> str:
    try:
        with Image.open(path) as image:
            width, height = image.size
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is not a picture: make it again or delete it") from error
    scale = max(SMALL // width, 1)
    caption = html.escape(caption or path.stem.replace("_", " ").replace("-", " "))
    link = quote(path.name)
    return (
        f'<figure><a href="{link}"><img src="{link}" alt="{caption}" width="{scale * width}" '
        f'height="{scale * height}"{" class=small" if scale > 1 else ""} loading="lazy"></a>'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )

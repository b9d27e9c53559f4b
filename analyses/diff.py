"""`analyze.py diff`: where two training runs part, by their statistics and the hashes of their averaged weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from analyses.shared import make_folder
from torch_utils.cli import Command
from torch_utils.files import read_json, write_json
from training.runs.curve import read_stats
from training.runs.run_dir import FINISHED, OPTIONS

WALL = ("Timing/", "Resources/", "timestamp")  # what no two runs have in common
SHOWN = 12  # keys of a tick


@click.command("diff", cls=Command)
@click.argument("runs", metavar="RUN RUN", nargs=2)
@click.option("--outdir", metavar="DIR", help="Folder of diff.json [default: none is written]")
def command(runs: tuple[str, str], outdir: str | None) -> None:
    """Where two training runs part: the first tick that differs and in what, and the options that differ."""
    found = compare_runs(*runs)
    for name, (a, b) in found["options"].items():
        click.echo(f"option {name}: {a} | {b}")
    first = found["first"]
    if first is None:
        ended = found["ticks"]
        rest = "" if ended[0] == ended[1] else f"; then {runs[ended[0] < ended[1]]} goes on to tick {max(ended) - 1}"
        click.echo(f"the same in all {min(ended)} ticks that both have{rest}")
    else:
        click.echo(f"they part at tick {first['tick']}, {first['kimg']:g} kimg, in {len(first['keys'])} keys")
        for name, (a, b) in list(first["keys"].items())[:SHOWN]:
            click.echo(f"  {name}: {a} | {b}")
        if len(first["keys"]) > SHOWN:
            click.echo(f"  and {len(first['keys']) - SHOWN} more")
    if outdir is not None:
        write_json(make_folder(outdir) / "diff.json", found)


def compare_runs(a: str, b: str) -> dict[str, Any]:
    """What differs, as JSON: `options` and, of the `first` tick that differs, `keys`, each with both values; `ticks`.

    Times and memory are left out. None stands for what one run does not have.

    Raises:
        ValueError: not the directory of a run, or nothing in it yet.
    """
    stats = [read_stats(run) for run in (a, b)]
    options = [_options(Path(run)) for run in (a, b)]
    found = {"runs": [a, b], "options": _differences(*options), "ticks": [len(s) for s in stats], "first": None}
    for tick, pair in enumerate(zip(*stats, strict=False)):
        compared = [{k: _value(v) for k, v in record.items() if not k.startswith(WALL)} for record in pair]
        if keys := _differences(*compared):
            # the hash first: with other weights everything else may differ
            keys = dict(sorted(keys.items(), key=lambda item: item[0] != "weights"))
            kimg = max(_value(record.get("Progress/kimg", 0)) for record in pair)
            return found | {"first": {"tick": tick, "kimg": kimg, "keys": keys}}
    return found


def _options(run: Path) -> dict[str, Any]:
    path = run / OPTIONS
    found = dict(read_json(path, "the options of a training run")) if path.is_file() else {}
    return {name: value for name, value in found.items() if name != FINISHED}


def _value(entry: Any) -> Any:
    """The mean of a statistic; anything else as it is."""
    return entry["mean"] if isinstance(entry, dict) and "mean" in entry else entry


def _differences(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = list(dict.fromkeys([*a, *b]))
    pairs = {name: (a.get(name), b.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if json.dumps(pair[0]) != json.dumps(pair[1])}

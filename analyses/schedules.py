"""`analyze.py schedules`: noise levels of schedules, as numbers and a picture."""

from __future__ import annotations

from pathlib import Path

import click

from analyses.shared import OUTDIR, make_folder, write
from samplers.analysis import figures
from samplers.recipe import ScheduleFile
from samplers.schedules.formulas import SCHEDULES, get_schedule
from torch_utils.cli import Command, IntList


@click.command("schedules", cls=Command)
@click.argument("names", nargs=-1, required=True, metavar="NAME|FILE.json...")
@OUTDIR
@click.option("--num-steps", type=IntList(), metavar="LIST", help="Levels [default: 7 of a name, all of a file]")
def command(names: tuple[str, ...], outdir: str, num_steps: list[int] | None) -> None:
    """Noise levels of schedules: by name, or of files that a search wrote."""
    found: dict[str, list[float]] = {}
    for name in names:
        if name.endswith(".json"):
            entries = [e for e in ScheduleFile.load(name).entries if num_steps is None or e.num_steps in num_steps]
            if not entries:
                raise ValueError(f"{name} holds no schedule with the number of levels asked for: leave out --num-steps")
            for e in entries:
                label = Path(name).stem + ("" if e.coeff is None else f"#{e.coeff:g}") + (" AFS" if e.afs else "")
                if (label := f"{label}, {e.num_steps} levels") in found:
                    raise ValueError(f"two schedules are called '{label}': rename a file, or keep one in it")
                found[label] = list(e.sigmas)
        elif name in SCHEDULES:
            for n in num_steps or (7,):
                found[f"{name}, {n} levels"] = get_schedule(n, schedule_type=name).tolist()
        else:
            raise ValueError(f"there is no schedule '{name}': give a file (.json) or one of {', '.join(SCHEDULES)}")
    write(make_folder(outdir), "schedules", found, figures.draw_schedules)

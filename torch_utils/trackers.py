"""Experiment trackers besides stats.jsonl: Weights & Biases, trackio, TensorBoard; none needs a network.

A tracker is opened for a run directory and an id, continues the run of that id, and takes figures and pictures by step
(images seen). `TRACKERS` is the table.
"""

from __future__ import annotations

import importlib
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import click
import numpy as np
from PIL import Image


class Tracker(Protocol):
    """What takes the figures of a run; `run_id` continues it later."""

    run_id: str

    def log(self, values: Mapping[str, float], step: int, pictures: Mapping[str, Path]) -> None: ...

    def close(self) -> None: ...


class _Logged:
    """A tracker with wandb's calls: init, log, finish, Image."""

    def __init__(self, module: Any, run: Any, run_id: str) -> None:
        self._module, self._run, self.run_id = module, run, run_id

    def log(self, values: Mapping[str, float], step: int, pictures: Mapping[str, Path]) -> None:
        images = {name: self._module.Image(str(path)) for name, path in pictures.items()}
        self._run.log({**values, **images}, step=step)

    def close(self) -> None:
        self._run.finish()


def _wandb(run_dir: Path, config: Mapping[str, Any], run_id: str | None) -> Tracker:
    """A run of wandb; WANDB_MODE, WANDB_PROJECT and its other variables hold.

    So do those of the published SiT and ComboStoc programs, where their WANDB_KEY is set: ENTITY and PROJECT.
    """
    wandb = importlib.import_module("wandb")
    own = {}
    if key := os.environ.get("WANDB_KEY"):
        wandb.login(key=key)
        own = {name.lower(): os.environ[name] for name in ("ENTITY", "PROJECT") if os.environ.get(name)}
    # Without an account the run is kept on disk instead of asking for a key in the middle of a job.
    mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
    run = wandb.init(
        **{"project": os.environ.get("WANDB_PROJECT", "fewstep"), **own}, name=run_dir.name, dir=str(run_dir),
        config=dict(config), id=run_id, resume="allow", mode=mode,
    )  # fmt: skip
    return _Logged(wandb, run, run.id)


def _trackio(run_dir: Path, config: Mapping[str, Any], run_id: str | None) -> Tracker:
    """A run of trackio in its local database (TRACKIO_DIR), which knows runs by name."""
    trackio = importlib.import_module("trackio")
    run_id = run_id or f"{run_dir.name}-{secrets.token_hex(3)}"  # run directories of two folders may share a name
    project = os.environ.get("TRACKIO_PROJECT", "fewstep")
    run = trackio.init(project=project, name=run_id, config=dict(config), resume="allow", embed=False)
    return _Logged(trackio, run, run_id)


class _TensorBoard:
    """Event files in RUN/tensorboard, which is all that identifies the run."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], run_id: str | None) -> None:
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._open: Callable[[int], Any] = lambda step: writer(
            log_dir=str(run_dir / "tensorboard"), purge_step=step if run_id else None
        )
        self._writer: Any = None
        self._config, self.run_id = config, "tensorboard"

    def log(self, values: Mapping[str, float], step: int, pictures: Mapping[str, Path]) -> None:
        if self._writer is None:  # what an earlier process logged beyond the state it was continued from is hidden
            self._writer = self._open(step)
            self._writer.add_text("options", "\n".join(f"    {k}: {v}" for k, v in self._config.items()), step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        for name, path in pictures.items():
            with Image.open(path) as image:
                self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any], str | None], Tracker]] = {
    "wandb": _wandb,
    "trackio": _trackio,
    "tensorboard": _TensorBoard,
}


class TrackerList(click.ParamType):
    """`wandb,tensorboard` -> ("wandb", "tensorboard"); each known, installed and named once."""

    name = "list"

    def convert(
        self, value: str | Sequence[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        names = value.split(",") if isinstance(value, str) else value
        names = tuple(dict.fromkeys(name.strip() for name in names))
        for name in names:
            if name not in TRACKERS:
                self.fail(f"'{name}' is not a tracker: choose from {', '.join(TRACKERS)}", param, ctx)
            if find_spec(name) is None:  # their packages have their names
                self.fail(f"the tracker {name} needs a package of that name: pip install {name}", param, ctx)
        return names

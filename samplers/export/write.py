"""Writing a schedule file for other tools: a scheduler of diffusers, samplers of k-diffusion, nodes of ComfyUI, a list.

What is written needs torch and numpy and the tool itself, not this project: `samplers.export.bundle` puts the solver
arithmetic into it.
"""

from __future__ import annotations

import json
import os
import pprint
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from samplers.calibration.between import entries_of
from samplers.export.bundle import bundle
from samplers.export.core import FORMULAS
from samplers.export.lookup import levels_by_steps, time_at
from samplers.recipe import ScheduleFile
from torch_utils.files import atomic_write, check_target, read_json

__all__ = ["TARGETS", "export", "portable"]

_HEADER = """# Copyright the Fewstep authors. Licensed under the Apache License, Version 2.0 (the "License").
# You may not use this file except in compliance with it: http://www.apache.org/licenses/LICENSE-2.0
# Distributed "as is", without warranties or conditions of any kind. Written by `python -m samplers.export`.
"""
_MODULE = "fewstep_scheduler"
_PACK_INIT = '''"""Levels and sampler of one schedule file, for ComfyUI."""

try:
    import comfy_api.latest  # noqa: F401
except ImportError:  # before its current interface
    from .nodes_v1 import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS  # noqa: F401
else:
    from .nodes_v3 import comfy_entrypoint  # noqa: F401
'''


def portable(file: ScheduleFile, pixels: bool = False, coeff: float | None = None) -> dict[str, Any]:
    """What other tools need of a schedule file, as plain JSON values.

    Args:
        coeff: of files searched with several coefficients, the one to take.
        pixels: the model works on pixels, so that solvers which threshold by default do so.

    Raises:
        ValueError: a solver or path that cannot be taken elsewhere, or two schedules of one length.
    """
    if file.solver not in FORMULAS:
        raise ValueError(
            f"solver '{file.solver}' chooses its steps while it runs, which no other tool lets it: search or calibrate "
            "a schedule for a solver of fixed steps"
        )
    if file.path not in ("ve", "linear"):
        raise ValueError(
            f"the schedule file was made for a model on the path '{file.path}': schedules of noise-predicting models "
            "('ve') and of flow models ('linear') can be taken to other tools"
        )
    entries = [e for e in file.entries if e.fits(None, coeff)]
    if not entries or len({(e.num_steps - e.afs) for e in entries}) < len(entries):
        there = ", ".join(f"{c:g}" for c in sorted({e.coeff for e in file.entries if e.coeff is not None}))
        raise ValueError(
            f"the schedule file has {'no schedule' if not entries else 'several schedules of one length'}"
            f"{'' if coeff is None else f' with coeff={coeff:g}'}: say --coeff, one of {there or 'none'}"
        )
    content = json.loads(json.dumps(replace(file, entries=tuple(entries)).to_dict()))
    options = {k: v for k, v in content["options"].items() if v is not None and v != float("inf")}
    if file.solver in ("dpmpp", "unipc"):
        default = "dynamic" if pixels and options.get("predict_x0", True) else "none"
        options.setdefault("thresholding", default)
    entries = [
        {k: e[k] for k in ("sigmas", "afs", "coefficients") if e[k] not in (None, False)} for e in content["entries"]
    ]
    return {
        "solver": file.solver, "options": options, "path": file.path, "model_hash": file.model_hash,
        "entries": entries,
    }  # fmt: skip


def _filled(module: str, schedule: Mapping[str, Any]) -> str:
    """A self-contained module with the content of the file in it."""
    text = bundle(f"samplers.export.{module}")
    value = pprint.pformat(dict(schedule), width=110, compact=True, sort_dicts=False)
    found, count = re.subn(r"^SCHEDULE: dict.*$", lambda m: f"SCHEDULE = {value}", text, flags=re.MULTILINE)
    assert count == 1, module
    return _HEADER + found


def _diffusers(schedule: Mapping[str, Any], name: str, model: Mapping[str, Any]) -> dict[str, str]:
    flow = schedule["path"] == "linear"
    if schedule["options"].get("S_churn"):
        raise ValueError(
            "solver 'heun_churn' adds noise before the first evaluation, where a pipeline of diffusers lets no "
            "scheduler: export it for k-diffusion, or sample without S_churn"
        )
    if flow and any(entry.get("afs") for entry in schedule["entries"]):
        raise ValueError(
            "pipelines of flow models begin with noise alone, and the schedule file with the analytical first step: "
            "search or calibrate without --afs, with --start=exact"
        )
    if not flow and not model:
        raise ValueError(
            "a scheduler must know the noise levels that the model was trained on: add --model=DIR, a folder of "
            "diffusers, or its scheduler_config.json"
        )
    known = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
    config = {
        "_class_name": "FewstepScheduler", "use_flow_sigmas": True,
        **{key: model[key] for key in (known[:1] if flow else known) if key in model}, "schedule": schedule,
    }  # fmt: skip
    return {
        f"{_MODULE}.py": _filled("scheduler", schedule),
        "scheduler_config.json": json.dumps(config, indent=2) + "\n",
    }


def _kdiffusion(schedule: Mapping[str, Any], name: str, model: Mapping[str, Any]) -> dict[str, str]:
    return {"": _filled("kdiffusion", schedule)}


def _comfyui(schedule: Mapping[str, Any], name: str, model: Mapping[str, Any]) -> dict[str, str]:
    package = re.sub(r"\W+", "_", name)
    found = {"__init__.py": _HEADER + _PACK_INIT, "fewstep_solver.py": _filled("kdiffusion", schedule)}
    for version in ("nodes_v1", "nodes_v3"):
        text = (Path(__file__).parent / f"{version}.py").read_text(encoding="utf-8")
        text = text.replace("from samplers.export.kdiffusion import", "from .fewstep_solver import")
        found[f"{version}.py"] = _HEADER + re.sub(r"^NAME = .*$", f'NAME = "{package}"', text, flags=re.MULTILINE)
    project = re.sub("[^a-z0-9]+", "-", f"fewstep-{name.lower()}").strip("-")  # letters that a package may have
    found["pyproject.toml"] = (
        f'[project]\nname = "{project}"\nversion = "1.0.0"\n'
        'description = "Few-step levels and sampler of one schedule file"\nlicense = { text = "Apache-2.0" }\n\n'
        f'[tool.comfy]\nPublisherId = ""\nDisplayName = "Few-step sampler ({package})"\n'
    )
    return found


def _sigmas(schedule: Mapping[str, Any], name: str, model: Mapping[str, Any]) -> dict[str, str]:
    lists = list(levels_by_steps(schedule).values())
    if schedule["path"] == "linear":
        lists = [[time_at(s) for s in levels] for levels in lists]
    if name.endswith(".json"):
        return {"": json.dumps(lists[0] if len(lists) == 1 else lists) + "\n"}
    return {"": "".join(", ".join(f"{s:.8g}" for s in levels) + "\n" for levels in lists)}


# --to -> files by their name below OUT, "" for OUT itself
TARGETS: dict[str, Callable[..., dict[str, str]]] = {
    "diffusers": _diffusers,
    "kdiffusion": _kdiffusion,
    "comfyui": _comfyui,
    "sigmas": _sigmas,
}


def export(
    source: str | Path, to: str, out: str | Path, model: str | Path | None = None, coeff: float | None = None,
    nfe: Sequence[int] | None = None, tell: Callable[[str], Any] = print,
) -> list[Path]:  # fmt: skip
    """Write the schedule file `source` for another tool.

    Args:
        to: key of `TARGETS`.
        out: the folder (diffusers, ComfyUI) or file to write.
        model: the folder of diffusers that the schedule is for, or its scheduler_config.json.
        coeff: see `portable`.
        nfe: evaluations of the schedules to write; those of calibrated solvers that the file lacks are made. None: of
            all in the file.
        tell: called with one line where some were made.

    Returns:
        The files written, each whole or not at all.

    Raises:
        ValueError: one sentence about what does not fit.
    """
    file, out = ScheduleFile.load(source), Path(out)
    config, pixels = ({}, False) if model is None else _model(file, Path(model))
    if nfe:
        ahead = int(file.path == "linear" and not any(e.afs for e in file.entries))
        entries, notes = entries_of(file, sorted(set(nfe)), coeff, ahead)
        file = replace(file, entries=tuple(entries))
        for note in notes:
            tell(note)
    schedule = portable(file, pixels, coeff)
    files = TARGETS[to](schedule, Path(os.path.abspath(out)).name, config)  # `.` has no name
    found = []
    for name, text in files.items():
        path = out / name if name else out
        check_target(path, source, model)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, "w") as written:
            written.write(text)
        found.append(path)
    return found


def _model(file: ScheduleFile, folder: Path) -> tuple[dict[str, Any], bool]:
    """Configuration of a folder's own scheduler, and whether its model works on pixels."""
    path = folder / "scheduler" / "scheduler_config.json" if folder.is_dir() else folder
    if not path.is_file():
        raise ValueError(f"--model={folder} is no folder of diffusers: there is no {path}")
    config = read_json(path, "a scheduler's configuration")
    if not isinstance(config, dict) or "num_train_timesteps" not in config:
        raise ValueError(f"{path} is not a scheduler's configuration: it does not say num_train_timesteps")
    flow = (
        str(config.get("_class_name", "")).startswith("FlowMatch") or config.get("prediction_type") == "flow_prediction"
    )
    file.check_model("linear" if flow else "ve")
    index = folder / "model_index.json"
    parts = read_json(index, "a pipeline's index") if index.is_file() else {"vae": True}
    return config, not {"vae", "vqvae"} & set(parts)

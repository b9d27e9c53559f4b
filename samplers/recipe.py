"""Schedule files: noise levels that a search found, with the solver they are for and how they were found, as JSON.

    file = ScheduleFile(solver="ipndm", entries=(Entry(sigmas=sigmas),), options={"max_order": 4})
    file.save("cifar10.json")
    entry = ScheduleFile.load("cifar10.json").choose(num_steps=7)
    samplers.sample(field, noise, entry.sigmas, solver=file.solver, **file.options)

One file can hold every number of levels and every coefficient of one search (Chen et al. 2024, arXiv 2405.11326). The
levels are VE noise levels whatever the path of the model; `path` and `model_hash` say which model they were found on.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from samplers.path import PATHS
from samplers.path import Path as FlowPath
from samplers.schedules.explicit import validate_t_steps
from samplers.solvers.table import SOLVERS, solver_named
from torch_utils.files import read_json, write_json

FORMAT, VERSION = "fewstep-schedule", 1


def path_name(path: FlowPath) -> str:
    """Key of a flow path in `PATHS`."""
    return next(name for name, kind in PATHS.items() if type(path) is kind)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One schedule.

    Attributes:
        sigmas: noise levels, strictly falling and positive.
        coeff: the coefficient of the search it belongs to.
        indices: places of the levels in the grid of the search.
        cost: what the search minimised, at this schedule.
        afs: made for sampling with the analytical first step.
        coefficients: per-step coefficients of a calibrated solver, in that solver's own form.
    """

    sigmas: tuple[float, ...]
    coeff: float | None = None
    indices: tuple[int, ...] | None = None
    cost: float | None = None
    afs: bool = False
    coefficients: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigmas", tuple(validate_t_steps(self.sigmas).tolist()))
        if self.indices is not None:
            object.__setattr__(self, "indices", tuple(int(i) for i in self.indices))
            if len(self.indices) != len(self.sigmas):
                raise ValueError(
                    f"a schedule of {len(self.sigmas)} levels has {len(self.indices)} indices: give one each"
                )

    @property
    def num_steps(self) -> int:
        """Levels, one more than steps."""
        return len(self.sigmas)

    def fits(self, num_steps: int | None, coeff: float | None) -> bool:
        """Tell whether this is what is asked for; None: anything."""
        same = coeff is None or (self.coeff is not None and math.isclose(self.coeff, coeff))
        return same and num_steps in (None, self.num_steps)

    def __str__(self) -> str:
        return f"num_steps={self.num_steps}" + ("" if self.coeff is None else f" with coeff={self.coeff:g}")


@dataclass(frozen=True, kw_only=True)
class ScheduleFile:
    """What a schedule file holds.

    Attributes:
        solver: key of `SOLVERS`.
        entries: one or more schedules.
        options: the solver's options.
        path: key of `PATHS`, the path of the model.
        model_hash: of the weights the search was run on, or None.
        provenance: how the schedules were found: teacher, metric, seed, warm-up, grid, versions, ...; plain JSON.
    """

    solver: str
    entries: tuple[Entry, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    path: str = "ve"
    model_hash: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        solver_named(self.solver).resolve(self.options)
        if self.path not in PATHS:
            raise ValueError(f"there is no path '{self.path}': choose from {', '.join(PATHS)}")
        object.__setattr__(self, "entries", tuple(self.entries))
        if not self.entries:
            raise ValueError("a schedule file holds at least one schedule, this one none")

    def evaluations(self, entry: Entry, ahead: int = 0, solver: str | None = None) -> int:
        """Evaluations that a schedule takes with the file's solver or another, and those `ahead` of its first level."""
        return ahead + SOLVERS[solver or self.solver].nfe(entry.num_steps, afs=entry.afs)

    def choose(
        self,
        num_steps: int | None = None,
        coeff: float | None = None,
        nfe: int | None = None,
        solver: str | None = None,
        ahead: int = 0,
    ) -> Entry:
        """Find the one entry with `num_steps` levels, this coefficient and `nfe` evaluations by `solver`, or its own.

        Args:
            ahead: evaluations before the first level, 1 of an exact start.

        Raises:
            ValueError: none fits, or several do; the message lists what there is.
        """

        def evaluations(entry: Entry) -> int:
            return self.evaluations(entry, ahead, solver)

        found = [e for e in self.entries if e.fits(num_steps, coeff) and nfe in (None, evaluations(e))]
        if len(found) == 1:
            return found[0]
        asked = {"num_steps": num_steps, "coeff": coeff, "nfe": nfe}
        wish = ", ".join(f"{k}={v:g}" for k, v in asked.items() if v is not None) or "any schedule"
        there = "; ".join(f"{e} (nfe={evaluations(e)})" for e in found or self.entries)
        raise ValueError(f"{len(found) or 'none'} of the file's schedules fit {wish}: ask for one of {there}")

    def check_model(self, path: FlowPath | str, model_hash: str | None = None) -> str | None:
        """Whether the file fits a model.

        Returns:
            None, or a sentence to show where the model has other weights than the one searched on.

        Raises:
            ValueError: the model is on another path.
        """
        name = path if isinstance(path, str) else path_name(path)
        theirs, own = (f" (weights {h[:8]})" if h else "" for h in (self.model_hash, model_hash))
        if name != self.path:
            raise ValueError(
                f"the schedule file was made for a model on the path '{self.path}'{theirs}, this one is on "
                f"'{name}'{own}: search a schedule for it"
            )
        if None not in (model_hash, self.model_hash) and model_hash != self.model_hash:
            return f"The schedule was found on other weights{theirs} than these{own}; it may not be the best for them."
        return None

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        write_json(path, {"format": FORMAT, "version": VERSION, **self.to_dict()})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `num_steps` is repeated in every entry for readers of the file."""
        entries = [{"num_steps": e.num_steps, **asdict(e)} for e in self.entries]
        return {
            "solver": self.solver,
            "options": dict(self.options),
            "path": self.path,
            "model_hash": self.model_hash,
            "provenance": dict(self.provenance),
            "entries": entries,
        }

    @classmethod
    def from_dict(cls, obj: Mapping[str, Any]) -> ScheduleFile:
        """The inverse of `to_dict`."""
        known = {f.name for f in fields(cls)}
        wrong = sorted(set(obj) - known) or sorted({"solver", "entries"} - set(obj))
        if wrong:
            raise ValueError(f"{wrong[0]!r} is {'unknown' if wrong[0] in obj else 'missing'}")
        _check_types(obj, _FILE_TYPES)
        return cls(**{**obj, "entries": tuple(_entry(e) for e in obj["entries"])})

    @classmethod
    def load(cls, path: str | Path) -> ScheduleFile:
        """Read a file.

        Raises:
            ValueError: not a schedule file, of a later version, or with bad content; names the file.
        """
        obj = read_json(path, "a schedule file")
        if not isinstance(obj, dict) or obj.pop("format", None) != FORMAT:
            raise ValueError(f'{path} is not a schedule file: its JSON does not say "format": "{FORMAT}"')
        version = obj.pop("version", None)
        if type(version) is not int or version != VERSION:  # true and 1.0 are equal to 1
            raise ValueError(
                f"{path} has version {version!r} of the schedule format, this program reads version {VERSION}"
            )
        try:
            return cls.from_dict(obj)
        except ValueError as error:
            raise ValueError(f"{path} is not a valid schedule file: {error}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_count(value: Any) -> bool:
    return _is_number(value) and isinstance(value, int)


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


# key -> (check of its value, what it should be); null is as good as absent where the default is None
_FILE_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "solver": (lambda v: isinstance(v, str), "text"),
    "entries": (lambda v: isinstance(v, list), "a list"),
    "options": (lambda v: isinstance(v, dict), "an object"),
    "path": (lambda v: isinstance(v, str), "text"),
    "model_hash": (lambda v: v is None or isinstance(v, str), "text"),
    "provenance": (lambda v: isinstance(v, dict), "an object"),
}
_ENTRY_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "sigmas": (_list_of(_is_number), "a list of numbers"),
    "coeff": (lambda v: v is None or _is_number(v), "a number"),
    "indices": (lambda v: v is None or _list_of(_is_count)(v), "a list of whole numbers"),
    "cost": (lambda v: v is None or _is_number(v), "a number"),
    "afs": (lambda v: isinstance(v, bool), "true or false"),
    "coefficients": (lambda v: v is None or _list_of(_list_of(_is_number))(v), "lists of numbers, one a step"),
    "num_steps": (_is_count, "a whole number"),
}


def _check_types(obj: Mapping[str, Any], types: Mapping[str, tuple[Callable[[Any], bool], str]]) -> None:
    for key, (check, what) in types.items():
        if key in obj and not check(obj[key]):
            raise ValueError(f"'{key}' must be {what}")


def _entry(obj: Any) -> Entry:
    known = {f.name for f in fields(Entry)} | {"num_steps"}
    if not isinstance(obj, dict) or "sigmas" not in obj or set(obj) - known:
        raise ValueError(f"an entry needs 'sigmas' and may have {', '.join(sorted(known - {'sigmas'}))}")
    _check_types(obj, _ENTRY_TYPES)
    entry = Entry(**{k: v for k, v in obj.items() if k != "num_steps"})
    if obj.get("num_steps", entry.num_steps) != entry.num_steps:
        raise ValueError(f"an entry says num_steps={obj['num_steps']} but has {entry.num_steps} sigmas")
    return entry

"""Series from files: .npz and .npy arrays, and NetCDF by scipy (version 3) or h5py (version 4).

An npz holds `data` and, where they are known, `axes` (one letter each of N sequences, T frames, C channels, H rows,
W columns, D elements of a vector), `time` `[T]`, `month` `[T]` 1 to 12, and `angles` ("degrees"). One array without
`axes` is read as T, TD or NTCHW by its dimensions; others must say it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from torch_utils.arrays import opened_arrays
from torch_utils.errors import importing
from torch_utils.files import atomic_write
from training.data.series_sources import Recording

__all__ = ["FILES", "check_frames", "import_angles", "import_box", "read_series"]

Array = np.ndarray[Any, Any]
Attributes = dict[str, Any]
Variables = dict[str, tuple[Array, tuple[str, ...], Attributes]]

FILES = (".npz", ".npy", ".nc", ".nc4", ".h5", ".hdf5")
_AXES = {1: "T", 2: "TD", 5: "NTCHW"}
_LETTERS = "NTCHW"
_LAT, _LON = ("lat", "latitude"), ("lon", "longitude")
# what NetCDF writes where nothing is, unless the file says otherwise; of bytes nothing
_FILLS = {"f4": 9.969209968386869e36, "f8": 9.969209968386869e36, "i2": -32767, "i4": -2147483647}


def read_series(path: str | Path, axes: str | None = None, variable: str | None = None) -> Recording:
    """The series of a file.

    Args:
        axes: of the array, as above; None: those that the file says.
        variable: of NetCDF; None: the only one over time.

    Raises:
        ValueError: no such file, another kind, NaN or gaps (and where), times that do not rise.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no series {path}: give a file ({', '.join(FILES)}) or the name of a source")
    angles, time, month = False, None, None
    if path.suffix in (".npz", ".npy"):
        stored = _load_arrays(path)
        values, time, month = stored["data"], stored.get("time"), stored.get("month")
        axes = axes or (str(stored["axes"]) if "axes" in stored else None)
        angles = "angles" in stored
        if angles and str(stored["angles"]) != "degrees":
            raise ValueError(f"{path} holds angles in {stored['angles']}: convert it with dataset_tool.py")
    else:
        maps = read_netcdf(path, variable)
        values, time = maps.values, maps.time
        axes = axes or ("T" + "HW"[-(values.ndim - 1) :] if values.ndim > 1 else "T")
    frames = _arrange(path, values, axes)
    check_frames(path, frames, time)
    if month is not None and (month.shape != frames.shape[1:2] or not np.isin(month, range(1, 13)).all()):
        raise ValueError(f"{path}: month must say a number from 1 to 12 for each of {frames.shape[1]} frames")
    return Recording(
        path.stem, frames, phase=None if month is None else month.astype(np.int64) - 1,
        period=0 if month is None else 12, angles=angles, scale="circle" if angles else "standard",
    )  # fmt: skip


def _load_arrays(path: Path) -> dict[str, Array]:
    with opened_arrays(path, "a file of plain numpy arrays") as arrays:
        stored = {name or "data": arrays[name] for name in arrays}
    if "data" not in stored:
        raise ValueError(f"{path} has no array 'data', only {', '.join(stored)}: rename the one that is meant")
    return stored


def _arrange(path: Path, values: Array, axes: str | None) -> Array:
    """`[N, T, C, H, W]` float64."""
    if values.dtype.kind not in "iuf" or not values.size:
        raise ValueError(f"{path} holds {values.dtype} of shape {list(values.shape)}, and a series is of numbers")
    axes = axes or _AXES.get(values.ndim)
    if axes is None:
        raise ValueError(
            f"{path} has shape {list(values.shape)}: say what its axes are, for example axes=NTD (sequences of "
            "vectors) or axes=THW (maps)"
        )
    named = axes.replace("D", "C")
    if len(axes) != values.ndim or "T" not in axes or len(set(named)) < len(named) or set(named) - set(_LETTERS):
        raise ValueError(
            f"axes={axes} does not fit shape {list(values.shape)}: give one letter each, of N sequences, T frames, C "
            "channels, H rows, W columns or D elements of a vector, with T among them"
        )
    order = [named.index(a) for a in _LETTERS if a in named]
    return np.expand_dims(
        values.transpose(order).astype(np.float64), [i for i, a in enumerate(_LETTERS) if a not in named]
    )


def check_frames(path: Any, frames: Array, time: Array | None = None) -> None:
    """Refuse NaN and gaps in `[N, T, C, H, W]`, and maps that are not square; ValueError says where."""
    if not np.isfinite(frames).all():
        bad = np.argwhere(~np.isfinite(frames))
        n, t, c, h, w = bad[0].tolist()
        raise ValueError(
            f"{path}: {len(bad)} values are NaN or infinite, first in sequence {n}, frame {t}, channel {c}, row {h}, "
            f"column {w}: fill or cut them out"
        )
    if frames.shape[3] != frames.shape[4]:
        raise ValueError(f"{path}: maps of {frames.shape[3]}x{frames.shape[4]} are not square: cut out a square box")
    if time is None:
        return
    if time.shape != frames.shape[1:2] or time.dtype.kind not in "iufmM":
        raise ValueError(
            f"{path}: time must say a number for each of {frames.shape[1]} frames, and is {list(time.shape)} of "
            f"{time.dtype}"
        )
    steps = np.diff(time.astype(np.float64))
    if len(steps) and not (steps > 0).all():
        raise ValueError(f"{path}: times do not rise at frame {int(np.argmax(~(steps > 0))) + 1}")
    if len(steps) and steps.max() > 1.5 * np.median(steps):
        at = int(np.argmax(steps))
        raise ValueError(
            f"{path}: a gap of {steps[at]:g} between frames {at} and {at + 1}, where {np.median(steps):g} is usual: "
            "fill it, or cut the series there"
        )


class _Maps(NamedTuple):
    """A variable of NetCDF: its values, time first and latitudes before longitudes, NaN where they are missing."""

    values: Array
    dims: tuple[str, ...]
    coordinates: dict[str, Array]  # of those dims that have some
    calendar: Attributes  # of the times

    @property
    def time(self) -> Array | None:
        return self.coordinates.get("time")


def read_netcdf(path: Path, variable: str | None = None) -> _Maps:
    """A variable of time and places, without axes of one place that are no latitude or longitude.

    Raises:
        ValueError: not NetCDF, no such variable, h5py missing.
    """
    found = _variables(path)
    over_time = [name for name, (_, dims, _) in found.items() if dims and dims[0] == "time" and len(dims) > 1]
    over_time = over_time or [name for name, (_, dims, _) in found.items() if dims == ("time",) and name != "time"]
    if variable is None and len(over_time) != 1:
        raise ValueError(f"{path} has {len(over_time)} variables over time ({', '.join(over_time)}): name one")
    name = variable or over_time[0]
    if name not in found:
        raise ValueError(f"{path} has no variable '{name}', only {', '.join(found)}")
    values, dims, about = found[name]
    first = dims.index("time") if "time" in dims else 0
    places = {d: rank for rank, names in enumerate((_LAT, (), _LON), start=1) for d in names}
    order = sorted(range(len(dims)), key=lambda i: 0 if i == first else places.get(dims[i], 2))
    kept = [i for i in order if i == first or values.shape[i] > 1 or dims[i] in places]
    raw = _decoded(f"{path}: {name}", values, about).transpose(order)
    raw = raw.reshape([values.shape[i] for i in kept])
    dims = tuple(dims[i] for i in kept)
    coordinates = {d: found[d][0].astype(np.float64) for d in dims if d in found}
    return _Maps(raw, dims, coordinates, found.get("time", (None, None, {}))[2])


def _decoded(what: str, values: Array, about: Attributes) -> Array:
    """Stored numbers as float64, as their attributes say (CF conventions 1.11, 2.5.1 and 8.1), NaN where missing."""

    def attribute(key: str, default: Any = ()) -> Array:
        found = np.atleast_1d(about.get(key, default))
        if found.dtype.kind not in "iuf":
            raise ValueError(f"{what} has the attribute {key}={about[key]!r}, which is no number")
        return found

    if len(fills := np.concatenate([attribute("_FillValue"), attribute("missing_value")])) == 0:
        fills = np.array(_FILLS.get(values.dtype.str[1:], ()))
    missing = np.isin(values, fills.astype(values.dtype if values.dtype.kind == "f" else np.float64))
    if _text(about.get("_Unsigned", "")).lower() == "true" and values.dtype.kind == "i":
        values = values.astype(values.dtype.newbyteorder("=")).view(f"u{values.dtype.itemsize}")
    stored = values.astype(np.float64)
    scaled = stored * float(attribute("scale_factor", 1.0)[0]) + float(attribute("add_offset", 0.0)[0])
    valid = np.resize(attribute("valid_range", (-np.inf, np.inf)), 2)
    ends = attribute("valid_min", valid[0]), attribute("valid_max", valid[1])
    for end, beyond in zip(ends, (np.less, np.greater), strict=True):
        # limits of the kind of stored numbers are theirs, others those of what they stand for
        missing |= beyond(stored if end.dtype.kind in "iu" or values.dtype.kind == "f" else scaled, float(end[0]))
    scaled[missing] = np.nan
    return scaled


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _variables(path: Path) -> Variables:
    """Values, names of the axes and attributes of every variable."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    with path.open("rb") as file:
        old = file.read(3) == b"CDF"
    return _netcdf3(path) if old else _netcdf4(path)


def _netcdf3(path: Path) -> Variables:
    from scipy.io import netcdf_file

    try:
        with netcdf_file(str(path), "r", mmap=False) as file:
            return {n: (np.array(v[:]) if v.shape else np.array(v.getValue()), v.dimensions, dict(v._attributes))
                    for n, v in file.variables.items()}  # fmt: skip
    except (TypeError, ValueError, OSError, IndexError) as error:
        raise ValueError(f"{path} is a damaged NetCDF file: {error}") from error


def _netcdf4(path: Path) -> Variables:
    with importing(f"{path} is NetCDF version 4, which needs the package h5py: pip install h5py"):
        import h5py
    try:
        with h5py.File(path, "r") as file:
            found = {}
            for name, v in file.items():
                if isinstance(v, h5py.Dataset) and v.dtype.kind in "iuf":
                    dims = tuple(Path(d[0].name).name if len(d) else name for d in v.dims)
                    found[name] = (v[()], dims, {k: v.attrs[k] for k in v.attrs if k not in ("DIMENSION_LIST",)})
            return found
    except OSError as error:
        raise ValueError(f"{path} is no NetCDF file: {error}") from error


def import_box(
    source: str | Path, dest: str | Path, *, lat: tuple[float, float] | None = None,
    lon: tuple[float, float] | None = None, variable: str | None = None,
) -> str:  # fmt: skip
    """Cut a box of latitudes and longitudes out of NetCDF maps and write it as npz; says what was written.

    Args:
        lat, lon: both ends, in the file's own degrees; None: all.

    Raises:
        ValueError: no such coordinates, an empty box, NaN in it (land), gaps, a box that is not square.
    """
    maps = read_netcdf(Path(source), variable)
    values, time = maps.values, maps.time
    for names, ends in ((_LAT, lat), (_LON, lon)):
        if ends is None:
            continue
        axis = next((i for i, d in enumerate(maps.dims) if d in names and d in maps.coordinates), None)
        if axis is None or values.ndim != 3:
            raise ValueError(f"{source} has no maps over {names[1]}: its coordinates are {', '.join(maps.coordinates)}")
        at = maps.coordinates[maps.dims[axis]]
        inside = np.flatnonzero((at >= ends[0]) & (at <= ends[1]))
        if not len(inside):
            raise ValueError(
                f"--{names[0]}={ends[0]:g},{ends[1]:g} holds nothing: {source} has {at.min():g} to {at.max():g}"
            )
        values = np.take(values, inside, axis)
    if values.ndim > 3:
        raise ValueError(f"{source} is over {', '.join(maps.dims)}: cut all but time and two of them to one place")
    frames = _arrange(Path(source), values, "T" + "HW" * (values.ndim == 3) + "D" * (values.ndim == 2))
    check_frames(source, frames, time)
    month = _months(maps)
    _write(dest, data=values.astype(np.float32), axes="THW" if values.ndim == 3 else "TD"[: values.ndim],
           **({} if time is None else {"time": time}), **({} if month is None else {"month": month}))  # fmt: skip
    size = "x".join(map(str, values.shape[1:])) or "one number"
    return f"Wrote {values.shape[0]} frames of {size} to {dest}, {'without' if month is None else 'with their'} months"


def _months(maps: _Maps) -> Array | None:
    """Calendar months of times in "days (hours, ...) since YYYY-MM-DD"; None where the file says no such thing."""
    units, calendar = (_text(maps.calendar.get(key, "")).strip().lower() for key in ("units", "calendar"))
    match = re.match(r"(day|hour|minute|second)s? since (\d+)-(\d+)-(\d+)(?:[t ]\s*(\d+):(\d+))?", units)
    if maps.time is None or match is None or calendar not in ("", "standard", "gregorian", "proleptic_gregorian"):
        return None
    year, month, day, hour, minute = (int(n or 0) for n in match.groups()[1:])
    seconds = maps.time * {"day": 86400, "hour": 3600, "minute": 60, "second": 1}[match[1]] + 3600 * hour + 60 * minute
    if not (1 <= month <= 12 and np.abs(seconds).max() < 1e13):
        return None
    if calendar != "proleptic_gregorian" and (year, month, day) < (1582, 10, 15):  # a Julian date
        century = (year - (month < 3)) // 100
        day += century - century // 4 - 2
    start = np.datetime64(f"{year:04d}-{month:02d}-01", "s") + np.timedelta64(day - 1, "D")
    stamps = start + np.round(seconds).astype("timedelta64[s]")
    return stamps.astype("datetime64[M]").astype(np.int64) % 12 + 1


def import_angles(source: str | Path, dest: str | Path, units: str = "auto", axes: str | None = None) -> str:
    """Write an array of dihedral angles as npz in degrees; says what was written.

    Args:
        units: "degrees", "radians", or "auto": as the file says, else radians where nothing exceeds 2 pi and degrees
            where something does.

    Raises:
        ValueError: values beyond [-180, 360] degrees or [-pi, 2 pi], channels in different units, NaN.
    """
    stored = _load_arrays(Path(source))
    default = {2: "TD", 3: "NTD"}.get(stored["data"].ndim)
    frames = _arrange(Path(source), stored["data"], axes or (str(stored["axes"]) if "axes" in stored else default))
    check_frames(source, frames, stored.get("time"))
    if frames.shape[3:] != (1, 1):
        raise ValueError(f"{source} has shape {list(stored['data'].shape)}: angles are frames of vectors (TD or NTD)")
    reach = np.abs(frames).max(axis=(0, 1, 3, 4))  # of each angle
    small = reach <= 2 * np.pi + 1e-6
    if units == "auto" and (said := str(stored.get("angles", ""))) in ("degrees", "radians"):
        units = said
    if units == "auto":
        if small.any() and not small.all():
            a, b = int(np.argmax(small)), int(np.argmax(~small))
            raise ValueError(
                f"{source} mixes units: angle {a} stays within {reach[a]:.3g} like radians, angle {b} reaches "
                f"{reach[b]:.4g}: give --angles=degrees or radians, or convert them first"
            )
        units = "radians" if small.all() else "degrees"
    turn = 360.0 if units == "degrees" else 2 * np.pi
    low, high = float(frames.min()), float(frames.max())
    if low < -turn / 2 * (1 + 1e-6) or high > turn * (1 + 1e-6):
        raise ValueError(
            f"{source}: angles from {low:.4g} to {high:.4g} are out of range for {units}, which go from "
            f"{-turn / 2:.4g} to {turn:.4g}"
        )
    degrees = 180 - (180 - frames * (360 / turn)) % 360
    _write(dest, data=degrees[..., 0, 0], axes="NTD", angles="degrees")
    return f"Wrote {frames.shape[0]} trajectories of {frames.shape[1]} frames, {frames.shape[2]} angles, to {dest}"


def _write(dest: str | Path, **arrays: Any) -> None:
    if Path(dest).suffix != ".npz":
        raise ValueError(f"a series is written as .npz, and --dest={dest} ends otherwise")
    with atomic_write(dest) as file:
        np.savez_compressed(file, **arrays)

"""Schedule files: round trip, choice of an entry, and what is refused."""

import contextlib
import copy
import json

import pytest
import torch

from samplers import sample
from samplers.path import Linear
from samplers.recipe import Entry, ScheduleFile

ENTRIES = (
    Entry(sigmas=(80, 3, 0.002), coeff=1.1, indices=(0, 3, 9), cost=0.25),
    Entry(sigmas=(80, 2, 0.002), coeff=1.2, indices=(0, 4, 9), afs=True),
    Entry(sigmas=(80, 9, 1, 0.002), coeff=1.2, coefficients=[[1.0], [1.5, -0.5]]),
)
FILE = ScheduleFile(
    solver="ipndm",
    entries=ENTRIES,
    options={"max_order": 3},
    model_hash="ab12",
    provenance={"teacher": "ipndm", "num_steps_tea": 10, "seed": 0},
)


def test_round_trip(tmp_path):
    FILE.save(tmp_path / "s.json")
    assert ScheduleFile.load(tmp_path / "s.json") == FILE
    assert [e["num_steps"] for e in json.loads((tmp_path / "s.json").read_text())["entries"]] == [3, 3, 4]


def test_choice():
    assert FILE.choose(num_steps=4) == ENTRIES[2]
    assert FILE.choose(coeff=1.1) == ENTRIES[0]
    assert FILE.choose(num_steps=3, coeff=1.2) == ENTRIES[1]
    assert FILE.choose(nfe=3) == ENTRIES[2]
    assert FILE.choose(nfe=6, solver="heun") == ENTRIES[2]
    with pytest.raises(ValueError, match=r"2 of the file's schedules fit num_steps=3.*coeff=1.1 .*; .*coeff=1.2"):
        FILE.choose(num_steps=3)
    with pytest.raises(ValueError, match="none of the file's schedules fit num_steps=9: ask for one of num_steps=3"):
        FILE.choose(num_steps=9)
    with pytest.raises(ValueError, match="3 of the file's schedules fit any schedule"):
        FILE.choose()


def test_model():
    assert FILE.check_model("ve") is None
    assert FILE.check_model("ve", "ab12") is None
    assert "other weights (weights ab12) than these (weights cd34)" in FILE.check_model("ve", "cd34")
    with pytest.raises(
        ValueError, match=r"on the path 've' \(weights ab12\), this one is on 'linear' \(weights cd34\)"
    ):
        FILE.check_model(Linear(), "cd34")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "x"}, "is not a schedule file"),
        ({"version": 2}, "version 2 .* reads version 1"),
        ({"version": True}, "version True .* reads version 1"),
        ({"version": 1.0}, "version 1.0 .* reads version 1"),
        ({"solver": "rk9"}, "no solver 'rk9'"),
        ({"options": {"max_order": 7}}, "max_order=7"),
        ({"path": "ode"}, "no path 'ode'"),
        ({"entries": []}, "at least one schedule"),
        ({"entries": {}}, "'entries' must be a list"),
        ({"entries": [{}]}, "an entry needs 'sigmas'"),
        ({"entries": [{"sigmas": [1, 2]}]}, "1 is followed by 2"),
        ({"entries": [{"sigmas": [2, 1], "num_steps": 3}]}, "num_steps=3 but has 2"),
        ({"entries": [{"sigmas": [2, 1], "indices": [0]}]}, "2 levels has 1 indices"),
        ({"entries": [{"sigmas": ["a", "b"]}]}, "not a valid schedule file"),
        ({"extra": 1}, "'extra' is unknown"),
        ({"solver": None}, "'solver' is missing"),
    ],
)
def test_bad_files_are_named(tmp_path, change, words):
    path = tmp_path / "s.json"
    FILE.save(path)
    obj = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({k: v for k, v in obj.items() if v is not None}))
    with pytest.raises(ValueError, match=words) as error:
        ScheduleFile.load(path)
    assert str(path) in str(error.value)


def test_not_json(tmp_path):
    (tmp_path / "s.json").write_text("80, 0.002")
    with pytest.raises(ValueError, match="not JSON"):
        ScheduleFile.load(tmp_path / "s.json")


# --- files that others edited -----------------------------------------------------------------------------------------

WHOLE = {
    "format": "fewstep-schedule", "version": 1, "solver": "calibrated", "options": {"max_order": 2}, "path": "ve",
    "model_hash": "ab", "provenance": {"seed": 0},
    "entries": [
        {
            "sigmas": [80.0, 2.0, 0.1], "num_steps": 3, "coeff": 1.15, "indices": [0, 3, 9], "cost": 0.5, "afs": False,
            "coefficients": [[1.0], [1.5, -0.5]],
        }
    ],
}  # fmt: skip
STRANGE = [None, True, 3, -1, 1.5, 1e400, float("nan"), 10**400, "x", "", [], {}, [[]], ["x"], [None], {"a": []}]


def places(value, path=()):
    """Paths to every value inside of a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from places(part, (*path, key))


def put(value, path, new):
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return value


@pytest.mark.parametrize("place", [p for p in places(WHOLE) if p], ids=lambda p: ".".join(map(str, p)))
def test_values_of_another_kind(place, tmp_path):
    """Each is refused in one sentence when the file is read, or does no harm."""
    for strange in STRANGE:
        path = tmp_path / "s.json"
        path.write_text(json.dumps(put(WHOLE, place, strange)))
        with contextlib.suppress(ValueError):
            file = ScheduleFile.load(path)
            entry = file.choose()
            noise = torch.zeros(1, 1, dtype=torch.float64)
            more = {} if entry.coefficients is None else {"coefficients": entry.coefficients}
            sample(lambda x, s, y: x / 2, noise, entry.sigmas, solver=file.solver, **file.options, **more)


def test_the_whole_file_is_read(tmp_path):
    for start in (b"", b"\xef\xbb\xbf"):  # as editors on Windows begin a file
        (tmp_path / "s.json").write_bytes(start + json.dumps(WHOLE).encode())
        assert ScheduleFile.load(tmp_path / "s.json").choose().num_steps == 3


@pytest.mark.parametrize("text", ["[" * 200_000, '{"format": ' * 50_000, "\x00", "{", "nul", "\ud800"])
def test_no_json(text, tmp_path):
    (tmp_path / "s.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match="is not a schedule file"):
        ScheduleFile.load(tmp_path / "s.json")

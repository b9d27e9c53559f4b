"""Series from files: arrays, NetCDF of both kinds, boxes of maps, angles; and what is refused."""

import numpy as np
import pytest
from series_files import days, write_netcdf3

from training.data.series_files import import_angles, import_box, read_series


def write_netcdf4(path, values, time):
    import h5py

    with h5py.File(path, "w") as file:
        scales = {"time": time, "lat": np.linspace(-3, 3, values.shape[1]), "lon": np.linspace(190, 196, 7)}
        for name, at in scales.items():
            file[name] = at
            file[name].make_scale(name)
        file["time"].attrs["units"] = "days since 2000-01-01"
        file["sst"] = values
        for i, name in enumerate(scales):
            file["sst"].dims[i].attach_scale(file[name])


@pytest.fixture(scope="module")
def maps():
    return 20 + np.random.default_rng(0).integers(-300, 300, (60, 7, 7)) / 100


@pytest.mark.parametrize("version", [3, 4])
def test_a_box_of_netcdf(tmp_path, maps, version):
    source = tmp_path / "sst.nc"
    (write_netcdf3 if version == 3 else write_netcdf4)(source, maps, days(60))
    import_box(source, tmp_path / "box.npz", lat=(-1, 2), lon=(192, 195), variable="sst")
    box = read_series(tmp_path / "box.npz")
    np.testing.assert_allclose(box.values[0, :, 0], maps[:, 2:6, 2:6], atol=1e-5)
    assert box.period == 12
    assert box.phase.tolist() == [0] * 31 + [1] * 29  # January and February of 2000
    whole = read_series(source, variable="sst")
    np.testing.assert_allclose(whole.values[0, :, 0], maps, atol=1e-5)


def write_plain(path, values, time=None, dims=("time", "lat", "lon"), kind="f4", times=None, **attributes):
    """NetCDF of `values` over `dims`, whose places are 0, 1, ... degrees; attributes as given."""
    from scipy.io import netcdf_file

    with netcdf_file(str(path), "w") as file:
        for name, size in zip(dims, values.shape, strict=True):
            file.createDimension(name, size)
            at = file.createVariable(name, "f8", (name,))
            at[:] = time if time is not None and name == "time" else np.arange(size)
            for key, value in (times or {}).items() if name == "time" else ():
                setattr(at, key, value)
        sst = file.createVariable("sst", kind, dims)
        sst[:] = values
        for key, value in attributes.items():
            setattr(sst, key, value)


@pytest.mark.parametrize("dims", ["time lat lon", "time lon lat", "lat time lon", "longitude latitude time"])
def test_axes_go_by_their_names(tmp_path, dims):
    t, y, x = np.meshgrid(range(5), range(4), range(6), indexing="ij")
    where = [next(i for i, k in enumerate(("t", "la", "lo")) if d.startswith(k)) for d in dims.split()]
    write_plain(tmp_path / "a.nc", (100 * t + 10 * y + x).transpose(where), dims=dims.split())
    import_box(tmp_path / "a.nc", tmp_path / "a.npz", lat=(1, 2), lon=(4, 5), variable="sst")
    assert read_series(tmp_path / "a.npz").values[0, 3, 0].tolist() == [[314, 315], [324, 325]]


@pytest.mark.parametrize(
    ("kind", "missing", "attributes"),
    [
        ("f4", np.nan, {}), ("f4", 9.969209968386869e36, {}), ("i2", -32767, {}), ("i2", -99, {"_FillValue": -99}),
        ("f4", 1e20, {"missing_value": 1e20}), ("f4", -9, {"missing_value": np.array([-99.0, -9.0])}),
        ("i2", 90, {"valid_range": np.array([0, 50], "i2"), "scale_factor": 0.1}), ("f4", -1, {"valid_min": 0.0}),
        ("i2", 90, {"valid_max": 8.0, "scale_factor": 0.1}), ("i1", -2, {"_Unsigned": "true", "_FillValue": -2}),
    ],
)  # fmt: skip
def test_what_is_missing_is_no_number(tmp_path, kind, missing, attributes):
    values = np.arange(5.0).reshape(5, 1, 1)
    write_plain(tmp_path / "all.nc", values, kind=kind, **attributes)
    np.testing.assert_allclose(
        read_series(tmp_path / "all.nc").values.ravel(), values.ravel() * attributes.get("scale_factor", 1), rtol=1e-6
    )
    values[3] = missing
    write_plain(tmp_path / "hole.nc", values, kind=kind, **attributes)
    with pytest.raises(ValueError, match="1 values are NaN or infinite, first in sequence 0, frame 3"):
        read_series(tmp_path / "hole.nc")


def test_attributes_that_are_no_numbers_or_say_unsigned(tmp_path):
    write_plain(tmp_path / "a.nc", np.array([100, -56]).reshape(2, 1, 1), kind="i1", _Unsigned="true")
    assert read_series(tmp_path / "a.nc").values.ravel().tolist() == [100, 200]
    write_plain(tmp_path / "a.nc", np.zeros((2, 1, 1)), missing_value="none")
    with pytest.raises(ValueError, match=r"a\.nc: sst has the attribute missing_value=b'none', which is no number"):
        read_series(tmp_path / "a.nc")


@pytest.mark.parametrize(
    ("units", "calendar", "first", "months"),
    [
        ("days since 2000-01-31", None, 0, [1, 2, 2]), ("day since 2000-1-31T12:00:00Z", None, 0.5, [2, 2, 2]),
        ("hours since 1999-12-31 00:00:0.0", "proleptic_gregorian", 30 * 24, [1, 1, 1]),
        ("days since 1-1-1 00:00:00", "standard", 719164 + 30, [1, 2, 2]),  # of 1970, by Julian dates to 1582
        ("days since 0001-01-01", "proleptic_gregorian", 719162 + 30, [1, 2, 2]),
        ("days since 2000-01-01", "noleap", 0, None), ("days since 2000-01-01", "360_day", 0, None),
        ("months since 2000-01-01", None, 0, None), ("days since 2000-13-01", None, 0, None), ("", None, 0, None),
        ("days since 2000-01-01", None, 1e200, None),
    ],
)  # fmt: skip
def test_months(tmp_path, units, calendar, first, months):
    step = 1e199 if first > 1e99 else 1.0
    times = {"units": units} | ({"calendar": calendar} if calendar else {})
    write_plain(tmp_path / "a.nc", np.zeros((3, 2, 2)), first + step * np.arange(3), times=times)
    said = import_box(tmp_path / "a.nc", tmp_path / "a.npz")
    phase = read_series(tmp_path / "a.npz").phase
    assert (None if phase is None else (phase + 1).tolist()) == months
    assert said.endswith("without months" if months is None else "with their months")


def test_arrays(tmp_path):
    values = np.arange(24.0)
    np.save(tmp_path / "a.npy", values)
    assert read_series(tmp_path / "a.npy").values.shape == (1, 24, 1, 1, 1)
    np.save(tmp_path / "b.npy", values.reshape(12, 2))
    assert read_series(tmp_path / "b.npy").values.shape == (1, 12, 2, 1, 1)
    np.savez(tmp_path / "c.npz", data=values.reshape(2, 3, 4), axes="NTD", time=days(3))
    read = read_series(tmp_path / "c.npz").values
    assert read.shape == (2, 3, 4, 1, 1)
    assert read[1, 2, 3] == 23
    np.save(tmp_path / "d.npy", values.reshape(6, 2, 2))
    assert read_series(tmp_path / "d.npy", "THW").values.shape == (1, 6, 1, 2, 2)
    assert read_series(tmp_path / "d.npy", "TNC").values[1, 0, 0] == 2


@pytest.mark.parametrize(
    ("data", "more", "words"),
    [
        (np.zeros((4, 3, 2)), {}, "say what its axes are"),
        (np.zeros((4, 3)), {"axes": "TX"}, "give one letter each"),
        (np.zeros((4, 2, 3)), {"axes": "THW"}, "not square"),
        (np.array([1.0, np.nan, 2.0, np.inf]), {}, "2 values are NaN or infinite, first in sequence 0, frame 1"),
        (np.zeros(5), {"time": np.array([0, 1, 2, 9, 10])}, "a gap of 7 between frames 2 and 3, where 1 is usual"),
        (np.zeros(3), {"time": np.array([0, 2, 1])}, "times do not rise at frame 2"),
        (np.zeros(3), {"time": days(4)}, "time must say a number for each of 3 frames"),
        (np.zeros(3), {"month": np.array([1, 2, 13])}, "month must say a number from 1 to 12"),
        (np.zeros(3), {"month": np.array(3)}, "month must say a number"),
        (np.zeros(3), {"time": np.array(3)}, "time must"),
        (np.zeros(3), {"month": np.ones((3, 1))}, "month must"),
        (np.zeros(3), {"time": np.array(list("abc"))}, "time must"),
        (np.zeros(3), {"angles": "radians"}, "convert it with dataset_tool.py"),
        (np.array(["a"]), {}, "a series is of numbers"),
    ],
)
def test_refused_arrays(tmp_path, data, more, words):
    np.savez(tmp_path / "a.npz", data=data, **more)
    with pytest.raises(ValueError, match=words):
        read_series(tmp_path / "a.npz")


def test_refused_files(tmp_path, maps):
    (tmp_path / "a.npz").write_bytes(b"PK nothing")
    (tmp_path / "a.nc").write_bytes(b"CDF\x01 damaged")
    (tmp_path / "b.nc").write_bytes(b"neither")
    np.savez(tmp_path / "c.npz", x=1)
    for name, words in (
        ("a.npz", "plain numpy"), ("a.nc", "damaged NetCDF"), ("b.nc", "no NetCDF"), ("c.npz", "no array 'data'"),
        ("d.npz", "there is no series"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            read_series(tmp_path / name)
    land = maps.copy()
    land[3, 0, 6] = np.nan
    write_netcdf3(tmp_path / "land.nc", land, days(60))
    dest = tmp_path / "box.npz"
    for box, words in (
        ({}, "1 values are NaN or infinite, first in sequence 0, frame 3, channel 0, row 0, column 6"),
        ({"lat": (-2, 2)}, "not square"), ({"lon": (0, 10)}, "holds nothing: .* has 190 to 196"),
        ({"variable": "ice"}, "no variable 'ice'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            import_box(tmp_path / "land.nc", dest, **box)
    write_netcdf3(tmp_path / "gap.nc", maps, np.delete(days(62), [30, 31]))
    with pytest.raises(ValueError, match="a gap of 3 between frames 29 and 30"):
        import_box(tmp_path / "gap.nc", dest)
    assert not dest.exists()


@pytest.mark.parametrize("units", ["degrees", "radians"])
def test_angles_come_as_degrees(tmp_path, units):
    degrees = np.random.default_rng(0).uniform(-180, 180, (3, 20, 4))
    np.save(tmp_path / "a.npy", degrees if units == "degrees" else np.radians(degrees))
    for given in ("auto", units):
        import_angles(tmp_path / "a.npy", tmp_path / "a.npz", given)
        read = read_series(tmp_path / "a.npz")
        assert read.angles
        assert read.scale == "circle"
        np.testing.assert_allclose(read.values[..., 0, 0], degrees, atol=1e-9)


def test_a_file_says_the_unit_of_small_angles(tmp_path):
    np.savez(tmp_path / "a.npz", data=np.array([[1.0], [3.0]]), angles="degrees")
    import_angles(tmp_path / "a.npz", tmp_path / "b.npz")
    assert read_series(tmp_path / "b.npz").values.ravel().tolist() == [1, 3]


@pytest.mark.parametrize(
    ("values", "units", "words"),
    [
        (np.array([[0.1, 100.0], [0.2, -90.0]]), "auto", "mixes units: angle 0 .* angle 1"),
        (np.array([[0.1, 100.0]] * 2), "radians", "from 0.1 to 100 are out of range for radians"),
        (np.array([[-200.0], [10.0]]), "auto", "out of range for degrees"),
        (np.array([[400.0], [10.0]]), "degrees", "out of range for degrees"),
        (np.array([[np.nan], [10.0]]), "auto", "NaN"),
        (np.zeros((2, 2, 2, 2, 2)), "auto", "angles are frames of vectors"),
        (np.zeros((2, 0)), "auto", r"a.npy holds float64 of shape \[2, 0\]"),
    ],
)
def test_refused_angles(tmp_path, values, units, words):
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(ValueError, match=words):
        import_angles(tmp_path / "a.npy", tmp_path / "a.npz", units)
    assert not (tmp_path / "a.npz").exists()

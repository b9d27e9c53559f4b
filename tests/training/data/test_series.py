"""Windows of series: parts, labels, scales, and what is refused."""

import numpy as np
import pytest
import torch

from training.data.scaling import SCALINGS, Scaling
from training.data.series import SeriesDataset


@pytest.fixture
def file(tmp_path):
    """30 months of two numbers."""
    values = np.random.default_rng(0).normal(5, 2, (30, 2))
    np.savez(tmp_path / "a.npz", data=values, month=np.arange(30) % 12 + 1)
    return f"series:{tmp_path / 'a.npz'}", values


def test_windows_lie_in_their_part(file):
    text, values = file
    parts = {
        part: SeriesDataset(f"{text}:window=2:horizon=1:train=0.5:val=0.2", part) for part in ("train", "val", "test")
    }
    assert {k: d.starts[:, 1].tolist() for k, d in parts.items()} == {
        "train": list(range(2, 15)), "val": [17, 18, 19, 20], "test": [23, 24, 25, 26, 27, 28, 29],
    }  # fmt: skip
    train, test = parts["train"], parts["test"]
    mean, sd = values[:15].mean(0), values[:15].std(0)
    np.testing.assert_allclose(test.images()[0, :, 0, 0], (values[23] - mean) / sd, rtol=1e-5)
    image, label = train[3]
    np.testing.assert_allclose(image[:, 0, 0], (values[5] - mean) / sd, rtol=1e-5)
    np.testing.assert_allclose(label[:4].reshape(2, 2), (values[3:5] - mean) / sd, rtol=1e-5)
    assert label[4:].argmax() == 5  # the month of the first frame to come
    assert (train.label_dim, train.image_shape, train.label_kind) == (4 + 12, (2, 1, 1), "vector")


def test_frames_come_back_in_their_units(file):
    text, values = file
    data = SeriesDataset(f"{text}:window=3:horizon=4", "train")
    states = data.images().numpy().reshape(-1, 4, 2, 1, 1)
    back = data.to_frames(states, data.starts[:, 1])
    np.testing.assert_allclose(back[2, :, :, 0, 0], values[5:9], rtol=1e-5)


@pytest.mark.parametrize("kind", SCALINGS)
def test_scales_have_inverses_and_survive_the_snapshot(kind):
    rng = np.random.default_rng(0)
    values, phase = rng.uniform(-179, 180, (2, 24, 2, 3, 3)), np.arange(24) % 12
    scaling = Scaling.from_json(Scaling.fit(kind, values, phase, 12).to_json())
    states = scaling.states(values, phase)
    np.testing.assert_allclose(scaling.frames(states, phase), values, atol=1e-9)
    assert states.shape[2] == scaling.channels(2)
    ends = {"minmax": 1, "minmax10": 10, "turns": 1, "circle": 1}
    if kind in ends:
        assert np.abs(states).max() == pytest.approx(ends[kind], rel=0.02)
    if kind in ("standard", "pixel", "climatology"):
        assert states[:, phase == 3].std() == pytest.approx(1, abs=0.4)


def test_angles_go_back_to_the_torus():
    scaling = Scaling("circle")
    states = torch.tensor([3.0, 0.5, 4.0, 0.0]).reshape(1, 4, 1, 1)  # cosines of two angles, then sines
    assert scaling.on_manifold(states).flatten().tolist() == pytest.approx([0.6, 1, 0.8, 0])
    assert Scaling("turns").on_manifold(torch.tensor([1.25, -1.5, 0.5])).tolist() == [-0.75, 0.5, 0.5]


def test_a_snapshot_decides_the_windows(file):
    text, _ = file
    learnt = SeriesDataset(f"{text}:window=3:scale=climatology:train=0.9").facts()
    again = SeriesDataset(f"{text}:train=0.5", "test", learnt)
    assert again.window == 3
    assert again.scaling.to_json() == learnt["scaling"]
    with pytest.raises(ValueError, match="trained with its own"):
        SeriesDataset(f"{text}:window=2", "test", learnt)
    with pytest.raises(ValueError, match="the network was trained on"):
        SeriesDataset("series:elnino", "test", learnt)


def test_fewer_frames_before_leave_the_same_places():
    """A network that sees one month begins where one that sees twelve does."""
    one, twelve = (SeriesDataset(f"series:elnino:window={n}", "test") for n in (1, 12))
    assert len(one.starts_before(6)) == 90
    assert (one.starts_before(6, 12) == twelve.starts_before(6)).all()


def test_the_named_series():
    elnino = SeriesDataset("series:elnino", "test")
    assert (len(elnino), elnino.window, elnino.horizon, elnino.label_dim) == (79, 12, 6, 24)
    assert len(SeriesDataset("series:elnino")) == 45 * 12 - 17
    lorenz = SeriesDataset("series:lorenz:label=index")
    assert lorenz.period == 2000
    assert lorenz.targets().shape == (1599, 2)


def test_months_of_days_are_those_of_the_file(tmp_path):
    """Frames of one month follow each other: a frame is not a month later than the one before."""
    days = np.arange("2001-01-01", "2003-01-01", dtype="datetime64[D]")
    month = days.astype("datetime64[M]").astype(int) % 12 + 1
    np.savez(tmp_path / "days.npz", data=100.0 * month[:, None] + np.arange(len(days))[:, None] % 7, month=month)
    series = SeriesDataset(f"series:{tmp_path}/days.npz:window=2:horizon=3:scale=climatology:train=0.8")
    assert abs(series.frames).max() < 3  # anomalies of the month, not of another
    context, after, phases = series.windows(series.starts, series.horizon)
    at = series.starts[:, 1][:, None] + np.arange(-2, 3)
    np.testing.assert_array_equal(phases, month[at] - 1)
    label = series.encode_labels(series.targets())
    assert torch.equal(label, series.condition(context, phases[:, 2]))
    np.testing.assert_allclose(
        series.to_frames(after.numpy(), series.starts[:, 1])[..., 0, 0],
        series.recording.values[0, at[:, 2:], :, 0, 0], rtol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("window=25", "the train part has 24 frames, and a window takes 26"),
        ("window=0", "'window=0' .* is not understood"),
        ("size=3", "'size=3' .* is not understood"),
        ("train=0.8:val=0.4", "more than the whole"),
        ("train=1", "the test part has 0 frames"),
        ("scale=circle", "whose values are no angles"),
        ("scale=climatology:train=0.3", "number 9 has none"),
        ("label=phase:seed=1", "seed belongs to generated series"),
    ],
)
def test_refused_options(file, options, words):
    part = "test" if options == "train=1" else "train"
    with pytest.raises(ValueError, match=words):
        SeriesDataset(f"{file[0]}:{options}", part)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("series:nothing", "there is no series 'nothing': choose from elnino"),
        ("series:peptide:scale=standard", "whose values are angles"),
        ("series:advected:label=phase", "label=phase tells the month"),
        ("series:lorenz:axes=TD", "axes belongs to files"),
        ("series:missing.npz", "there is no series missing.npz"),
    ],
)
def test_refused_series(text, words):
    with pytest.raises(ValueError, match=words):
        SeriesDataset(text)


def test_numbers_that_do_not_vary(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(20))
    with pytest.raises(ValueError, match="do not vary"):
        SeriesDataset(f"series:{tmp_path / 'a.npy'}")

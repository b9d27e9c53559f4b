"""Label vectors from the data set over the snapshot to samples: never made up, the same per seed, or refused."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from dataset_files import pixels, write_dataset

import fid
import generate
import networks
import train
from training.data.image_dataset import ImageDataset
from training.pictures.preview import fixed_starts

TINY = [
    "--cbase=8", "--cres=1", "--num-blocks=1", "--augment=0", "--dropout=0", "--label-dropout=0.1", "--batch=4",
    "--duration=0.001", "--tick=1",
]  # fmt: skip
VALUES = {
    "vector": [[1.0 + 3 * i, 180.0 * i / 8] for i in range(8)],
    "multi-hot": [[i % 2, i // 4, 1] for i in range(8)],
    "classes": [i % 3 for i in range(8)],
}


def call(command, *args):
    return CliRunner().invoke(command, [str(a) for a in args])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A data set and a trained network of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    for kind, values in VALUES.items():
        files = {f"{i}.png": pixels(8, 1) for i in range(8)}
        names = {"class_names": ["a", "b", "c"]} if kind == "classes" else {}
        content = {"labels": [[f"{i}.png", value] for i, value in enumerate(values)], **names}
        data = write_dataset(folder / f"{kind}.zip", files | {"dataset.json": json.dumps(content).encode()})
        result = call(train.main, "edm", f"--data={data}", f"--outdir={folder / kind}", "--nosubdir", "--cond=1",
                      "--device=cpu", "--fid-every=1", "--fid-features=pixels", "--fid-num=4", "--fid-steps=2",
                      *TINY)  # fmt: skip
        assert result.exit_code == 0, result.output
        net = next((folder / kind).glob("network-snapshot-*.pkl"))
        net.rename(folder / f"{kind}.pkl")
    return folder


def sample(runs, kind, *args, command=generate.main):
    how = [f"--npz={runs / 'o.npz'}", "--seeds=0-5"] if command is generate.main else []
    how += ["calc", "--num=6", f"--ref={runs / kind}.zip", "--features=pixels"] if command is fid.main else []
    return call(command, *how, f"--network={runs / kind}.pkl", "--steps=2", "--device=cpu", *args)


def labels_of(runs):
    with np.load(runs / "o.npz") as file:
        return file.get("labels")


@pytest.mark.parametrize("kind", VALUES)
def test_snapshots_know_the_kind(runs, kind):
    net = networks.load_network(runs / f"{kind}.pkl")
    assert getattr(net, "conditioning", "classes") == kind
    assert net.info["dataset"]["label_kind"] == kind
    assert net.info["dataset"]["class_names"] == (["a", "b", "c"] if kind == "classes" else None)


@pytest.mark.parametrize("command", [generate.main, fid.main])
@pytest.mark.parametrize("kind", ["vector", "multi-hot"])
def test_labels_are_not_made_up(runs, kind, command):
    for args, match in (([], "cannot be made up"), (["--class=1"], "leave it out")):
        result = sample(runs, kind, *args, command=command)
        assert result.exit_code == 1, result.output
        assert match in result.output.replace("\n", " ")


@pytest.mark.parametrize("kind", ["vector", "multi-hot"])
@pytest.mark.parametrize("form", ["data", "npy", "npz", "json", "dataset.json"])
def test_labels_of_data_and_files(runs, kind, form):
    source = runs / f"{kind}.zip"
    if form != "data":
        source = runs / f"{kind}-labels.{form}"
        if form == "npz":
            np.savez(source, labels=np.array(VALUES[kind], np.float32))
        elif form == "npy":
            np.save(source, np.array(VALUES[kind], np.float32))
        else:
            own = VALUES[kind] if form == "json" else {"labels": [["x", v] for v in VALUES[kind]]}
            source.write_text(json.dumps(own))
    result = sample(runs, kind, f"--labels={source}", "--batch=4")
    assert result.exit_code == 0, result.output
    together = labels_of(runs)
    assert all(row in VALUES[kind] for row in together.tolist())
    assert len({tuple(row) for row in together.tolist()}) > 1
    sample(runs, kind, f"--labels={source}", "--seeds=2")
    np.testing.assert_array_equal(labels_of(runs)[0], together[2])  # one image per seed


@pytest.mark.parametrize("kind", VALUES)
def test_fid_draws_from_the_data(runs, kind):
    result = sample(runs, kind, f"--labels={runs / kind}.zip", command=fid.main)
    assert result.exit_code == 0, result.output


def test_classes_may_be_drawn_at_the_rates_of_the_data(runs):
    np.save(runs / "two.npy", np.full(5, 2))
    assert sample(runs, "classes", f"--labels={runs / 'two.npy'}").exit_code == 0
    assert labels_of(runs).tolist() == [2] * 6


@pytest.mark.parametrize(
    ("kind", "source", "match"),
    [
        ("vector", "multi-hot.zip", "multi-hot labels of 3 numbers"), ("vector", "classes.zip", "classes labels of 3"),
        ("multi-hot", "halves.json", "vector labels of 3 numbers"), ("classes", "vector.zip", "vector labels of 2"),
        ("classes", "four.json", "of 4 classes"), ("vector", "plain.zip", "has no labels"),
        ("vector", "text.json", "a text"), ("vector", "flat.npy", "row 0 the label 1.0, a fraction"),
        ("vector", "none.npz", "not a file of a plain array called labels"), ("vector", "bad.json", "neither a list"),
        ("vector", "empty.json", "no list of labels"), ("vector", "absent.zip", "does not exist"),
        ("vector", "scalar.npy", "no list of labels"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit(runs, kind, source, match):
    (runs / "halves.json").write_text("[[0.5, 0, 1]]")
    (runs / "four.json").write_text("[0, 3]")
    (runs / "text.json").write_text('["a"]')
    (runs / "bad.json").write_text("{")
    (runs / "empty.json").write_text("[]")
    np.save(runs / "flat.npy", np.ones(3))
    np.save(runs / "scalar.npy", np.array(1))
    np.savez(runs / "none.npz", x=np.ones(3))
    write_dataset(runs / "plain.zip", {"a.png": pixels(8, 1)})
    result = sample(runs, kind, f"--labels={runs / source}")
    assert result.exit_code == 1, result.output
    assert match in result.output.replace("\n", " "), result.output


def test_a_sampler_without_condition_has_no_labels(runs):
    for kind in VALUES:
        result = sample(runs, kind, "--guidance-type=uncond")
        assert result.exit_code == 0, result.output
        assert labels_of(runs) is None
    for option in ("--class=1", f"--labels={runs / 'classes.zip'}"):
        for command in (generate.main, fid.main):
            result = sample(runs, "classes", "--guidance-type=uncond", option, command=command)
            assert result.exit_code == 1, result.output
            assert "without a condition" in result.output.replace("\n", " ")
    result = sample(runs, "classes", "--class=1", f"--labels={runs / 'classes.zip'}")
    assert "leave one of them out" in result.output


def test_pictures_show_labels_of_the_data(runs):
    net = networks.load_network(runs / "vector.pkl")
    net.conditions = ImageDataset(runs / "vector.zip", use_labels=True).targets()
    labels = fixed_starts(net, 4, repeat=2)[1]
    assert labels.tolist() == [VALUES["vector"][0]] * 2 + [VALUES["vector"][1]] * 2


def test_weights_of_another_kind_are_not_transferred(runs):
    values = [[i / 8] for i in range(8)]
    files = {f"{i}.png": pixels(8, 1) for i in range(8)}
    flags = write_dataset(runs / "flags.zip", files, [[f"{i}.png", [0, i % 2, 1]] for i, v in enumerate(values)])
    vectors = write_dataset(runs / "v3.zip", files, [[f"{i}.png", [0.5, *v, 2]] for i, v in enumerate(values)])
    for data, code in ((flags, 0), (vectors, 1)):
        result = call(train.main, "edm", f"--data={data}", f"--outdir={runs / data.stem}", "--cond=1", "--device=cpu",
                      f"--transfer={runs / 'multi-hot.pkl'}", *TINY)  # fmt: skip
        assert result.exit_code == code, result.output
    assert "trained on multi-hot labels, 'net' takes vector labels" in result.output.replace("\n", " ")


def test_a_folder_of_other_labels_is_not_continued(runs, tmp_path):
    np.save(tmp_path / "one.npy", np.array(VALUES["vector"][:1]))
    outdir = f"--outdir={tmp_path / 'out'}"
    assert sample(runs, "vector", outdir, f"--labels={runs / 'vector.zip'}").exit_code == 0
    result = sample(runs, "vector", outdir, f"--labels={tmp_path / 'one.npy'}")
    assert result.exit_code == 1, result.output
    assert "labels" in result.output

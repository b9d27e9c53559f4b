"""The data set class: golden data, folder and zip, labels, damaged and mixed data sets."""

import hashlib
import json
import pickle

import numpy as np
import pytest
import torch
from dataset_files import pixels, png, write_dataset, write_ten
from golden_cases import cases

from training.data.image_dataset import ImageDataset, subset_indices


@pytest.fixture
def archive(tmp_path):
    return write_ten(tmp_path / "ten.zip")


# --- golden -----------------------------------------------------------------------------------------------------------


def archive_of(case, folder):
    """The data set that another golden case is expected to produce."""
    made = next(
        p.values[0] for p in cases("edm", "dataset_tool")
        if p.values[0].name == case.spec["archive_case"] and p.values[0].path.parent == case.path.parent
    )  # fmt: skip
    expect = made.spec["expect"]
    files = {entry["name"]: made[entry["array"]] for entry in expect["images"]}
    return write_dataset(folder / case.spec["archive_name"], files, json.loads(expect["dataset_json"])["labels"])


@pytest.mark.parametrize("case", cases("edm", "dataset_class"))
def test_golden_class(case, tmp_path):
    dataset, expect = ImageDataset(archive_of(case, tmp_path), **case.spec["kwargs"]), case.spec["expect"]
    assert len(dataset) == expect["length"]
    for name in ("name", "image_shape", "num_channels", "resolution"):
        assert getattr(dataset, name) == expect[name], name
    for name in ("label_dim", "has_labels", "has_onehot_labels"):
        assert getattr(dataset, name) == expect[name], name
    assert expect["label_shape"] == [dataset.label_dim]
    assert dataset.raw_idx.tolist() == expect["raw_idx"]
    assert dataset.xflip.astype(int).tolist() == expect["xflip"]
    images, labels = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    assert {str(i.dtype) for i in images} == {expect["image_dtype"]}
    assert {str(v.dtype) for v in labels} == {expect["label_dtype"]}
    assert [hashlib.sha256(i.tobytes()).hexdigest() for i in images] == expect["image_sha256"]
    np.testing.assert_array_equal(np.stack(labels), np.array(expect["labels"], np.float32).reshape(len(dataset), -1))
    tolerated = torch.stack([torch.from_numpy(i) for i in images[: dataset.num_images]])
    assert torch.equal(dataset.images(), tolerated)
    np.testing.assert_array_equal(dataset.labels().numpy(), np.stack(labels[: dataset.num_images]))


@pytest.mark.parametrize("case", cases("edm", "dataset_subset"))
def test_golden_subset(case):
    own = subset_indices(case.spec["n"], case.spec["max_size"], case.spec["random_seed"])
    assert own.tolist() == case.spec["expected_indices"]


# --- data set ---------------------------------------------------------------------------------------------------------


def test_folder_and_zip_are_alike(tmp_path):
    images = [pixels(4) for _ in range(5)]
    files = dict(zip(["b/2.png", "a/3.bmp", "a-b/1.PNG", "c.png", "B/1.png"], images, strict=False))
    files["c.png"] = png(images[3])
    labels = [[name, [i, 0.5]] for i, name in enumerate(files)]
    folder = ImageDataset(write_dataset(tmp_path / "set.v2", files, labels), use_labels=True)
    packed = ImageDataset(write_dataset(tmp_path / "set.zip", files, labels), use_labels=True)
    assert folder.name == packed.name == "set"
    assert torch.equal(folder.images(), packed.images())
    assert torch.equal(folder.labels(), packed.labels())
    order = sorted(files)  # as strings: 'B' < 'a-b' < 'a/'
    names = list(files)
    assert folder.labels()[:, 0].tolist() == [names.index(name) for name in order]
    assert not folder.has_onehot_labels


def test_items_are_copies_and_errors_are_index_errors(archive):
    dataset = ImageDataset(archive, use_labels=True, xflip=True)
    image, label = dataset[0]
    before = image.copy(), label.copy()
    image[:], label[:] = 0, 7
    np.testing.assert_array_equal(dataset[0][0], before[0])
    np.testing.assert_array_equal(dataset[0][1], before[1])
    np.testing.assert_array_equal(dataset[-1][0], dataset[19][0])
    with pytest.raises(IndexError):
        dataset[20]


def test_dataset_travels_to_another_process(archive):
    dataset = pickle.loads(pickle.dumps(ImageDataset(archive, use_labels=True)))
    assert dataset.images().shape == (10, 3, 4, 4)
    assert dataset.label_dim == 4


def test_without_labels(archive, tmp_path):
    assert ImageDataset(archive).label_dim == 0
    none = ImageDataset(write_dataset(tmp_path / "n.zip", {"a.png": pixels(4)}, None), use_labels=True)
    absent = ImageDataset(write_dataset(tmp_path / "a.zip", {"a.png": pixels(4)}), use_labels=True)
    for dataset in (none, absent):
        assert not dataset.has_labels
        assert dataset[0][1].shape == (0,)


def test_subset_keeps_the_classes_of_the_whole(archive):
    dataset = ImageDataset(archive, use_labels=True, max_size=2, random_seed=1)
    assert dataset.label_dim == 4
    assert dataset.labels().argmax(1).tolist() == (dataset.raw_idx % 4).tolist()


def test_bad_data_sets(tmp_path):
    image = pixels(4)
    folder = tmp_path / "empty"
    folder.mkdir()
    (tmp_path / "file.rar").write_bytes(b"x")
    whole = write_dataset(tmp_path / "whole.zip", {"a.png": image}).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:-40])
    for path, options, error, match in (
        (tmp_path / "missing.zip", {}, OSError, "does not exist"),
        (tmp_path / "file.rar", {}, OSError, "neither a folder nor a .zip"),
        (folder, {}, OSError, "holds no images"),
        (tmp_path / "cut.zip", {}, ValueError, "not a complete zip"),
        (tmp_path / "whole.zip", {"resolution": 8}, OSError, "4 pixels, 8 were asked for"),
        (tmp_path / "whole.zip", {"max_size": 0}, ValueError, "max_size=0"),
        (write_dataset(tmp_path / "wide.zip", {"w.png": np.zeros((4, 8), np.uint8)}), {}, ValueError, r"w\.png is 8x4"),
        (
            write_dataset(tmp_path / "bad.zip", {"x.png": png(image)[:-40]}),
            {},
            ValueError,
            r"x\.png: not a readable image",
        ),
        (
            write_dataset(tmp_path / "alpha.zip", {"x.png": np.zeros((4, 4, 4), np.uint8)}),
            {},
            ValueError,
            r"x\.png.*transparency",
        ),
        (write_dataset(tmp_path / "slip.zip", {"../x.png": image}), {}, ValueError, "leaves the archive"),
    ):
        with pytest.raises(error, match=match):
            ImageDataset(path, **options)


def test_damage_inside_of_a_zip_is_named(tmp_path):
    path = write_dataset(tmp_path / "a.zip", {f"{i}.png": p for i, p in enumerate([pixels(4) for _ in range(3)])})
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"2.png") + 60] ^= 0xFF
    path.write_bytes(raw)
    dataset = ImageDataset(path)
    with pytest.raises(ValueError, match=r"2\.png.*damaged"):
        dataset.images()


def test_mixed_images_are_named(tmp_path):
    path = write_dataset(tmp_path / "a.zip", {"a.png": pixels(4), "b.png": pixels(8), "c.png": pixels(4)})
    dataset = ImageDataset(path)
    assert dataset[2][0].shape == (3, 4, 4)
    for access in (lambda: dataset[1], dataset.images):
        with pytest.raises(ValueError, match=r"b\.png has shape \[3, 8, 8\]"):
            access()


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        ([["a.png", 1]], r"no label for b\.png"),
        ([["a.png", -1], ["b.png", 0]], "label -1, a class number out of range"),
        ([["a.png", 1 << 40], ["b.png", 0]], "1099511627776"),
        ([["a.png", 1], ["b.png", [1.0]]], "all class numbers or all vectors"),
        ([["a.png", [1, 2]], ["b.png", [1]]], "all class numbers or all vectors"),
        ([["a.png", "cat"], ["b.png", "dog"]], "all class numbers or all vectors"),
        ([["a.png", [float("nan")]], ["b.png", [0]]], "all class numbers or all vectors"),
        ([1, 2], "must be"),
        ({"a.png": 1}, "must be"),
    ],
)
def test_bad_labels(labels, match, tmp_path):
    path = write_dataset(tmp_path / "a.zip", {"a.png": pixels(4), "b.png": pixels(4)}, labels)
    dataset = ImageDataset(path, use_labels=True)
    with pytest.raises(ValueError, match=match):
        dataset.labels()

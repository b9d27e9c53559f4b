"""Labels of a data set: what dataset_tool.py refuses, finds, counts and stores, and what training reads of it."""

import json

import numpy as np
import pytest
from dataset_files import contents, convert, labels, pixels, refuse, write, write_dataset, write_zip

from training.data.image_dataset import ImageDataset

NAMES = ["a.png", "b.png", "c.png"]


def dataset(path, values, **more):
    files = {name: pixels(4) for name in NAMES}
    content = {"labels": [[name, value] for name, value in zip(NAMES, values, strict=False)], **more}
    return write_dataset(path, files | {"dataset.json": json.dumps(content).encode()})


def stored(path):
    return json.loads(contents(path)["dataset.json"])


BAD = {
    "text": ([0, "cat", 1], "b.png the label 'cat', a text"),
    "fraction": ([0, 1.5, 1], "b.png the label 1.5, a fraction"),
    "whole fraction": ([0.0, 1.0, 2.0], "a.png the label 0.0, a fraction"),
    "bool": ([True, False, True], "a.png the label True"),
    "negative": ([0, 1, -1], "c.png the label -1, a class number out of range"),
    "huge class": ([0, 1, 1 << 20], "c.png the label 1048576, a class number out of range"),
    "beyond 64 bits": ([0, 1, 1 << 80], "a class number out of range"),
    "ragged": ([[1, 2], [1, 2], [1]], "c.png the label [1], of length 1, and a.png one of length 2"),
    "mixed": ([0, [1.0], 1], "b.png the label [1.0], and a.png a class number"),
    "mixed back": ([[1.0], 0, [1.0]], "b.png the label 0, and a.png a vector"),
    "nested": ([[[1]], [[2]], [[3]]], "a.png the label [[1]], a vector that holds something else"),
    "text vector": ([["1"], ["2"], ["3"]], "a.png the label ['1'], a vector that holds something else"),
    "null in a vector": ([[1], [None], [3]], "b.png the label [None]"),
    "nan": ([[1.0], [2.0], [float("nan")]], "c.png the label [nan]"),
    "inf": ([[1.0], [2.0], [float("inf")]], "c.png the label [inf]"),
    "huge vector": ([[1.0], [2.0], [1e39]], "c.png the label [1e+39], a vector that holds a number beyond float32"),
    "huge integer": ([[1], [2], [10**400]], "a vector that holds a number beyond float32"),
    "empty vector": ([[], [], []], "a.png the label [], an empty vector"),
    "object": ([{"x": 1}, 0, 0], "a.png the label {'x': 1}"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_training_refuses_is_not_written(kind, tmp_path):
    values, sentence = BAD[kind]
    source = dataset(tmp_path / "in.zip", values)
    refuse(source, tmp_path / "x/o.zip", match=sentence)
    with pytest.raises(ValueError, match="gives"):
        ImageDataset(source, use_labels=True).labels()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"labels": 3}, "must be"), ({}, "must be"), ([], "must be"), ({"labels": [["a.png"]]}, "must be"),
        ({"labels": [[3, 1]]}, "must be"), ({"labels": [["a.png", 0], ["./a.png", 1]]}, "two labels, 0 and 1"),
        ({"labels": [["a.png", 0]], "label_kind": "text"}, "label_kind"),
        ({"labels": [["a.png", 0]], "label_kind": "vector"}, "are of kind vector, and they are classes"),
        ({"labels": [["a.png", [2]]], "label_kind": "multi-hot"}, "are of kind multi-hot, and they are vector"),
        ({"labels": [["a.png", [2]]], "label_kind": "classes"}, "are of kind classes, and they are vector"),
        ({"labels": [["a.png", 2]], "class_names": ["x", "y"]}, "2 class_names for classes 0..2"),
        ({"labels": [["a.png", [2]]], "class_names": ["x"]}, "for vector labels"),
        ({"labels": [["a.png", 0]], "class_names": "x"}, "must be a list of texts"),
    ],
)  # fmt: skip
def test_malformed_files(content, match, tmp_path):
    source = write_dataset(tmp_path / "in.zip", {"a.png": pixels(4), "dataset.json": json.dumps(content).encode()})
    refuse(source, tmp_path / "x/o.zip", match=match)
    with pytest.raises(ValueError, match=match):
        ImageDataset(source, use_labels=True).labels()


@pytest.mark.parametrize(
    ("values", "more", "kind"),
    [
        ([0, 2, 1], {}, "classes"), ([[1, 0], [1, 1], [0, 0]], {}, "multi-hot"),
        ([[1, 0], [0.5, 1], [0, 0]], {}, "vector"), ([[True], [False], [True]], {}, "multi-hot"),
        ([[1, 0], [1, 1], [0, 0]], {"label_kind": "vector"}, "vector"),
    ],
)  # fmt: skip
def test_the_kind_survives(values, more, kind, tmp_path):
    source = dataset(tmp_path / "in.zip", values, **more)
    convert(source, tmp_path / "o.zip")
    for path in (source, tmp_path / "o.zip"):
        read = ImageDataset(path, use_labels=True)
        assert read.label_kind == kind
        assert read.has_onehot_labels == (kind == "classes")
        assert read.class_names is None
    np.testing.assert_array_equal(labels(tmp_path / "o.zip"), values)
    assert stored(tmp_path / "o.zip").get("label_kind", "classes") == kind
    convert(source, tmp_path / "one.zip", "--max-images=1")  # [1, 0] alone looks multi-hot
    assert ImageDataset(tmp_path / "one.zip", use_labels=True).label_kind == kind
    assert ImageDataset(source).label_kind is None


def test_class_names_survive(tmp_path):
    source = dataset(tmp_path / "in.zip", [1, 0, 1], class_names=["no", "yes", "perhaps"])
    output = convert(source, tmp_path / "o.zip")
    assert "Classes without" not in output
    assert stored(tmp_path / "o.zip")["class_names"] == ["no", "yes", "perhaps"]
    assert ImageDataset(tmp_path / "o.zip", use_labels=True).class_names == ["no", "yes"]


def test_classes_without_images_are_said(tmp_path):
    output = convert(dataset(tmp_path / "in.zip", [1, 4, 2]), tmp_path / "o.zip")
    assert "Classes without an image: 2 of 5, first 0" in output


# --- labels that do not reach the images ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([["a.png", 0], ["b.png", 1]], "1 of 3 images has no label in dataset.json, first {}/c.png"),
        ([["a.png", 0], ["b.png", None], ["c.png", 1]], "1 of 3 images has no label in dataset.json, first {}/b.png"),
        ([[f"x/{name}", 0] for name in NAMES], "3 of 3 images have no label in dataset.json, first {}/a.png"),
        ([["A.PNG", 0], ["B.PNG", 1], ["c.png", 1]], "2 of 3 images have no label in dataset.json, first {}/a.png"),
        ([["a.png", None], ["b.png", None], ["c.png", None]], "3 of 3 images have no label"),
    ],
)
def test_unlabelled_images_are_counted_and_named(entries, sentence, tmp_path):
    source = write_dataset(tmp_path / "in.zip", {name: pixels(4) for name in NAMES}, entries)
    output = convert(source, tmp_path / "o.zip").replace("\n", " ")
    assert f"without labels ({sentence.format(source)}" in output
    assert stored(tmp_path / "o.zip") == {"labels": None}
    if entries[0][0] != "a.png":
        assert f"files that are not there, first {entries[0][0]}" in output
    with pytest.raises(ValueError, match="has no label for"):
        ImageDataset(source, use_labels=True).labels()


def test_only_written_images_count(tmp_path):
    source = write_dataset(tmp_path / "in.zip", {name: pixels(4) for name in NAMES}, [["a.png", 1], ["b.png", 0]])
    output = convert(source, tmp_path / "o.zip", "--max-images=2")
    assert "with labels" in output
    assert labels(tmp_path / "o.zip") == [1, 0]


@pytest.mark.parametrize("form", ["in.zip", "in"])
@pytest.mark.parametrize("prefix", ["", "set/"])
@pytest.mark.parametrize("slash", ["/", "\\"])
def test_a_nested_dataset_json_is_found(form, prefix, slash, tmp_path):
    names = [f"set/images/{c}/{i}.png" for c in "ab" for i in range(2)]
    entries = [[prefix + name.removeprefix("set/").replace("/", slash), i] for i, name in enumerate(names)]
    content = {"set/dataset.json": json.dumps({"labels": entries}).encode(), "README.txt": b"read me"}
    source = write_dataset(tmp_path / form, {name: pixels(4) for name in names} | content)
    convert(source, tmp_path / "o.zip")
    assert labels(tmp_path / "o.zip") == [0, 1, 2, 3]
    assert ImageDataset(source, use_labels=True).labels().argmax(1).tolist() == [0, 1, 2, 3]


def test_a_dataset_json_that_does_not_belong_to_all_is_said(tmp_path):
    files = {"x/a.png": pixels(4), "b.png": pixels(4), "x/dataset.json": b'{"labels": [["a.png", 0]]}'}
    output = convert(write_zip(tmp_path / "in.zip", files), tmp_path / "o.zip")
    assert "Not read: x/dataset.json" in output


def test_byte_order_mark(tmp_path):
    content = b"\xef\xbb\xbf" + json.dumps({"labels": [["a.png", 0]]}).encode()
    convert(write_dataset(tmp_path / "in.zip", {"a.png": pixels(4), "dataset.json": content}), tmp_path / "o.zip")
    assert labels(tmp_path / "o.zip") == [0]


# --- folders --------------------------------------------------------------------------------------------------------


def test_folder_classes_are_printed_and_stored(tmp_path):
    root = write(tmp_path / "in", {"dog/1.png": pixels(4), "cat/1.png": pixels(4), "emu/1.png": pixels(4)})
    output = convert(root, tmp_path / "o.zip")
    assert "Classes by folder: 0 = cat, 1 = dog, 2 = emu" in output
    assert stored(tmp_path / "o.zip")["class_names"] == ["cat", "dog", "emu"]
    assert ImageDataset(tmp_path / "o.zip", use_labels=True).class_names == ["cat", "dog", "emu"]
    assert "class_names" not in stored_without(root, tmp_path)


def stored_without(root, tmp_path):
    output = convert(root, tmp_path / "none.zip", "--labels=none")
    assert "Classes" not in output
    return stored(tmp_path / "none.zip")


def test_numbers_count_as_numbers(tmp_path):
    root = write(tmp_path / "in", {f"{n}/1.png": pixels(4) for n in ("10", "9", "2", "007")})
    output = convert(root, tmp_path / "o.zip")
    assert "in the order of their numbers: 0 = 2, 1 = 007, 2 = 9, 3 = 10" in output
    assert stored(tmp_path / "o.zip")["class_names"] == ["2", "007", "9", "10"]
    assert labels(tmp_path / "o.zip") == [1, 3, 0, 2]  # images in the order of their paths
    write(root, {"x1/1.png": pixels(4)})  # names that are not all numbers are sorted as text
    convert(root, tmp_path / "o.zip")
    assert stored(tmp_path / "o.zip")["class_names"] == ["007", "10", "2", "9", "x1"]


def test_many_classes_are_abridged(tmp_path):
    output = convert(write(tmp_path / "in", {f"{i:03}/1.png": pixels(4) for i in range(50)}), tmp_path / "o.zip")
    assert "9 = 009, ..., 49 = 049" in output
    assert len(stored(tmp_path / "o.zip")["class_names"]) == 50


def test_one_folder_around_all(tmp_path):
    root = write(tmp_path / "in", {"all/cat/1.png": pixels(4), "all/dog/1.png": pixels(4)})
    output = convert(root, tmp_path / "o.zip")
    assert labels(tmp_path / "o.zip") is None
    assert "--labels=folders takes the folders in it" in output
    convert(root, tmp_path / "o.zip", "--labels=folders")
    assert labels(tmp_path / "o.zip") == [0, 1]
    assert stored(tmp_path / "o.zip")["class_names"] == ["cat", "dog"]
    one = write(tmp_path / "one", {"cat/1.png": pixels(4), "cat/2.png": pixels(4)})
    refuse(one, tmp_path / "x/o.zip", "--labels=folders", match="one folder of images")


def test_fingerprint_knows_the_labels(tmp_path):
    files = {name: pixels(4) for name in NAMES}
    prints = set()
    for k, entries in enumerate(([[n, 0] for n in NAMES], [[n, 1] for n in NAMES])):
        path = write_dataset(tmp_path / f"{k}.zip", files, entries)
        prints |= {ImageDataset(path, use_labels=True).fingerprint(), ImageDataset(path).fingerprint()}
    assert len(prints) == 3

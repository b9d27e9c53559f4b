"""Shapes as data: names and files, units of networks, and one sentence for what are no shapes."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import dataset_tool
from torch_utils.parts import PartLayout
from training.data.opening import DataOptions, open_dataset
from training.data.shapes import ShapeDataset, Shapes, is_shapes, read_shapes, write_shapes


def test_boxes_by_name():
    dataset = ShapeDataset("shapes:boxes:size=60:seed=2", use_labels=True)
    assert (len(dataset), dataset.image_shape, dataset.label_dim, dataset.layout.groups) == (60, (12, 15), 5, (1, 6, 8))
    x, exists = dataset.images(), dataset.shapes.parts[..., 0] > 0.5
    assert set(x[..., 0].unique().tolist()) == {-1, 1}
    assert not x[~exists][:, 1:].any()
    torch.testing.assert_close(x[exists][:, 1:].mean(0), torch.zeros(14), atol=1e-3, rtol=0)
    torch.testing.assert_close(x[exists][:, 1:].std(0, correction=0), torch.ones(14), atol=1e-3, rtol=0)
    torch.testing.assert_close(dataset.layout.decode(x), dataset.shapes.parts, atol=1e-5, rtol=0)
    image, label = dataset[3]
    assert torch.equal(torch.from_numpy(image), x[3])
    assert label.tolist() == [0, 0, 0, 1, 0]
    assert ShapeDataset("shapes:boxes:size=60:seed=2").label_dim == 0
    assert dataset.fingerprint() != ShapeDataset("shapes:boxes:size=60:seed=3").fingerprint()


def test_files(tmp_path):
    path = str(tmp_path / "a.npz")
    shapes = read_shapes("shapes:boxes:size=20")
    write_shapes(path, shapes)
    again = read_shapes(path)
    assert is_shapes(path)
    assert torch.equal(again.parts, shapes.parts)
    assert (again.groups, again.labels.tolist(), again.class_names) == (
        shapes.groups, shapes.labels.tolist(), shapes.class_names
    )  # fmt: skip
    np.savez(path, parts=np.concatenate([np.full((4, 2, 1), 0.7), np.ones((4, 2, 6))], axis=2))
    plain = read_shapes(path)
    assert (plain.groups, plain.labels) == ((1, 6), None)
    assert ShapeDataset(path).layout.attributes.keys() == {"existence", "centre", "size", "box"}
    np.savez(path, images=np.zeros(3))
    assert not is_shapes(path)


def test_the_command_writes_them(tmp_path):
    path = tmp_path / "new" / "b.npz"
    run = CliRunner().invoke(dataset_tool.main, [
        "--source=shapes:boxes:size=30:seed=1", f"--dest={path}", "--max-images=7",
    ])  # fmt: skip
    assert run.exit_code == 0, run.output
    assert torch.equal(read_shapes(str(path)).parts, read_shapes("shapes:boxes:size=30:seed=1").parts[:7])
    for more, words in ((f"--dest={tmp_path}/b.zip", ".npz"), ("--resolution=8x8", "belongs to images")):
        run = CliRunner().invoke(dataset_tool.main, ["--source=shapes:boxes", f"--dest={path}", more])
        assert (run.exit_code, words in run.output) == (1, True), run.output


GOOD = np.concatenate([np.ones((4, 2, 1)), np.ones((4, 2, 7))], axis=2)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"parts": GOOD[0]}, "must hold numbers `parts`"), ({"other": GOOD}, "must hold numbers `parts`"),
        ({"parts": GOOD[..., :5]}, r"make 7"), ({"parts": GOOD, "groups": [1, 6, 2]}, "make 9"),
        ({"parts": GOOD, "groups": [8]}, "are no parts"), ({"parts": GOOD * np.nan}, "not finite"),
        ({"parts": 3 * GOOD}, "goes from 0 to 1"), ({"parts": 0 * GOOD}, "no part that exists"),
        ({"parts": GOOD, "labels": [0, 1]}, "each of 4 shapes"), ({"parts": GOOD, "labels": [0.5] * 4}, "one class"),
        ({"parts": GOOD, "groups": 7}, "list of whole numbers"), ({"parts": GOOD, "groups": [[1, 6]]}, "list of whole"),
        ({"parts": GOOD, "groups": [1.5, 6.0]}, "list of whole"), ({"parts": GOOD * 1j}, "must hold numbers"),
        ({"parts": GOOD, "labels": [0, 0, 0, 0], "class_names": "a"}, "list of texts"),
        ({"parts": GOOD, "labels": [0, 1, 2, 3], "class_names": ["a"]}, "has no name"),
        ({"parts": np.array([["a"]])}, "must hold numbers"),
        ({"parts": np.array([None])}, "cannot be read|can be read"),
    ],
)  # fmt: skip
def test_files_of_no_shapes(tmp_path, arrays, words):
    path = tmp_path / "x.npz"
    np.savez(path, **{name: np.asarray(values) for name, values in arrays.items()})
    with pytest.raises(ValueError, match=words) as error:
        read_shapes(str(path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("shapes:spheres", "there are no shapes 'spheres'"), ("shapes:boxes:n=3", "is not understood"),
        ("shapes:boxes:size=0", "must be 1 or more"), ("none.npz", "there is no file"),
    ],
)  # fmt: skip
def test_names_of_no_shapes(text, words):
    with pytest.raises(ValueError, match=words):
        read_shapes(text)


@pytest.mark.parametrize(
    ("cls", "more", "words"),
    [
        (DataOptions, {}, "train.py combostoc and sit learn"),
        (type("Learns", (DataOptions,), {"takes_shapes": True}), {"xflip": True}, "mirrors images"),
    ],
)
def test_options_that_do_not_fit(cls, more, words):
    with pytest.raises(ValueError, match=words):
        open_dataset(cls(data="shapes:boxes:size=4", **more))


@pytest.mark.parametrize(
    ("groups", "mean", "std"), [((1, 6), [0] * 6, [1] * 7), ((1, 6), [0] * 7, [0] * 7), ((6, 1), [0] * 7, [1] * 7)]
)
def test_layouts_that_are_none(groups, mean, std):
    with pytest.raises(ValueError, match="parts"):
        PartLayout(groups, tuple(mean), tuple(std))


def test_existence_is_decided_at_the_half():
    layout = PartLayout((1, 6), (0.5,) + (1.0,) * 6, (0.5,) + (2.0,) * 6)
    x = torch.tensor([[0.1] + [1.0] * 6, [-0.1] + [1.0] * 6])
    assert layout.snap(x)[:, 0].tolist() == [1, -1]
    assert torch.equal(layout.snap(x)[:, 1:], x[:, 1:])
    assert layout.decode(x).tolist() == [[1.0] + [3.0] * 6, [0.0] * 7]
    assert isinstance(Shapes(x[None], (1, 6)), tuple)

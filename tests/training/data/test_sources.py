"""Every layout of published data sets, built small, and damaged or hostile copies of them."""

import gzip
import pickle
import struct
from pathlib import Path

import lmdb
import numpy as np
import pytest
from dataset_files import (
    RANDOM,
    cifar_archive,
    contents,
    convert,
    labels,
    pictures,
    pixels,
    png,
    refuse,
    write,
    write_zip,
)
from PIL import Image
from sklearn.datasets import load_digits

from training.data.sources import open_source


def test_digits(tmp_path):
    convert("digits", tmp_path / "d.zip")
    own, reference = np.stack(pictures(tmp_path / "d.zip")), load_digits()
    assert own.shape == (1797, 8, 8)
    assert own.max() == 255
    assert np.abs(own - reference.images * 255 / 16).max() <= 0.5
    assert labels(tmp_path / "d.zip") == reference.target.tolist()


def test_imagenet_and_afhq(tmp_path):
    names = ["train/n02/a.JPEG", "train/n01/b.JPEG", "val/n03/c.JPEG"]
    root = tmp_path / "imagenet"
    for name in names:
        path = root / "ILSVRC/Data/CLS-LOC" / name.replace("n0", "n0000000")
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels(20, width=30)).save(path, "JPEG")
    crop = ("--resolution=8x8", "--transform=center-crop")
    convert(root, tmp_path / "o.zip", "--layout=imagenet", *crop)
    assert labels(tmp_path / "o.zip") == [0, 1]
    convert(root / "ILSVRC/Data/CLS-LOC/train", tmp_path / "p.zip", *crop)  # the plain folder rule gives the same
    assert (tmp_path / "o.zip").read_bytes() == (tmp_path / "p.zip").read_bytes()
    convert(root, tmp_path / "o.zip", "--layout=imagenet", "--split=val", *crop)
    assert labels(tmp_path / "o.zip") == [0]

    files = {f"afhq/{s}/{c}/x.png": pixels() for s in ("train", "test") for c in ("wild", "cat", "dog")}
    archive = write_zip(tmp_path / "afhq.zip", files)
    convert(archive, tmp_path / "o.zip", "--layout=afhqv2")
    assert labels(tmp_path / "o.zip") == [0, 1, 2]
    expected = [files[f"afhq/train/{c}/x.png"] for c in ("cat", "dog", "wild")]
    np.testing.assert_array_equal(pictures(tmp_path / "o.zip"), expected)
    convert(archive, tmp_path / "o.zip", "--layout=afhqv2", "--split=all")
    assert labels(tmp_path / "o.zip") == [0, 1, 2] * 2
    refuse(archive, tmp_path / "x/o.zip", "--layout=imagenet", match="n01440764")
    refuse(archive, tmp_path / "x/o.zip", "--layout=afhqv2", "--split=valid", match="train, test, val, all")
    refuse(archive, tmp_path / "x/o.zip", "--split=train", match="--split=train")


def test_celeba(tmp_path):
    root = tmp_path / "celeba"
    (root / "img_align_celeba").mkdir(parents=True)
    images = {f"{i:06d}.jpg": pixels(20, width=12) for i in range(1, 5)}
    for name, array in images.items():
        Image.fromarray(array).save(root / "img_align_celeba" / name, "JPEG")
    (root / "list_eval_partition.txt").write_text("000003.jpg 0\n000001.jpg 0\n000002.jpg 1\n000004.jpg 2\n")
    options = ("--layout=celeba", "--transform=resize-center-crop", "--resolution=8x8", "--resize-filter=bilinear")
    for split, count in (("train", 2), ("valid", 1), ("test", 1), ("all", 4)):
        convert(root, tmp_path / "o.zip", *options, f"--split={split}")
        assert len(pictures(tmp_path / "o.zip")) == count
    (root / "list_eval_partition.txt").rename(root / "list_eval_partition.csv")
    (root / "list_eval_partition.csv").write_text("image_id,partition\n000001.jpg,0\n000009.jpg,0\n")
    refuse(root, tmp_path / "x/o.zip", *options, match="1 of 2 train images")
    refuse(root / "img_align_celeba", tmp_path / "x/o.zip", *options, match="list_eval_partition.txt")


@pytest.mark.parametrize("layout", ["ffhq", "celebahq"])
def test_folders_of_numbers_are_no_classes(layout, tmp_path):
    root = write(tmp_path / "in", {"00000/1.png": pixels(), "01000/2.png": pixels()})
    convert(root, tmp_path / "o.zip", f"--layout={layout}")
    assert labels(tmp_path / "o.zip") is None
    refuse(root, tmp_path / "x/o.zip", f"--layout={layout}", "--labels=folders", match="auto, none")


def write_lmdb(path, records):
    with lmdb.open(str(path), map_size=1 << 24) as env, env.begin(write=True) as transaction:
        for key, value in records.items():
            transaction.put(key, value)
    return path


def test_lsun(tmp_path):
    gray = pixels(channels=1)
    good = [pixels(), pixels()]
    path = write_lmdb(
        tmp_path / "church_lmdb", {b"a": png(good[0]), b"b": b"broken", b"c": png(gray), b"d": png(good[1])}
    )
    output = convert(path, tmp_path / "o.zip")
    assert "Skipped entry 1" in output
    assert "1 was skipped" in output
    names = list(contents(tmp_path / "o.zip"))
    assert names[:-1] == [f"00000/img0000000{i}.png" for i in (0, 2, 3)]
    expected = [good[0], np.stack([gray] * 3, -1), good[1]]
    np.testing.assert_array_equal(pictures(tmp_path / "o.zip"), expected)
    convert(path, tmp_path / "o.zip", "--max-images=2")  # the broken entry counts
    assert len(pictures(tmp_path / "o.zip")) == 1
    bad = write_lmdb(tmp_path / "odd_lmdb", {b"a": png(pixels(8, width=16))})
    refuse(bad, tmp_path / "x/o.zip", match="16x8")


@pytest.mark.parametrize("raw", [True, False])
def test_lmdb_of_records_in_numeric_order(raw, tmp_path):
    images = [pixels() for _ in range(12)]
    records = {str(i).encode(): image.tobytes() if raw else png(image) for i, image in enumerate(images)}
    path = write_lmdb(tmp_path / "train.lmdb", records)
    convert(path, tmp_path / "o.zip", "--layout=celebahq")
    np.testing.assert_array_equal(pictures(tmp_path / "o.zip"), images)
    assert labels(tmp_path / "o.zip") is None


def mnist(folder, count=60000, prefix="train"):
    images = RANDOM.randint(0, 256, (16, 28, 28), dtype=np.uint8)
    images = np.concatenate([images, np.zeros((count - 16, 28, 28), np.uint8)])
    images[20] = 255
    for name, header, data in (("images-idx3", 16, images), ("labels-idx1", 8, np.arange(count, dtype=np.uint8) % 10)):
        with gzip.open(folder / f"{prefix}-{name}-ubyte.gz", "wb", compresslevel=1) as f:
            f.write(bytes(header) + data.tobytes())
    return folder / f"{prefix}-images-idx3-ubyte.gz", images


def test_mnist_test_set_and_own_size(tmp_path):
    path, images = mnist(tmp_path, 10000, "t10k")
    convert(path, tmp_path / "o.zip", "--max-images=5")
    np.testing.assert_array_equal(np.stack(pictures(tmp_path / "o.zip"))[:, 2:-2, 2:-2], images[:5])
    convert(path, tmp_path / "o.zip", "--layout=mnist28", "--any-size", "--max-images=5")
    np.testing.assert_array_equal(pictures(tmp_path / "o.zip"), images[:5])
    assert labels(tmp_path / "o.zip") == [0, 1, 2, 3, 4]


def test_mnist_refusals(tmp_path):
    path, _ = mnist(tmp_path)
    whole = path.read_bytes()
    with gzip.open(path, "wb") as f:
        f.write(bytes(50_000_000))
    refuse(path, tmp_path / "x/o.zip", match="got more")
    path.write_bytes(whole[:5000])
    refuse(path, tmp_path / "x/o.zip", match="incomplete")
    path.write_bytes(whole)
    path.with_name("train-labels-idx1-ubyte.gz").unlink()
    refuse(path, tmp_path / "x/o.zip", match="train-labels-idx1-ubyte.gz")


# --- CIFAR-10 ---------------------------------------------------------------------------------------------------------

BATCHES = [f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)]


def small_cifar(folder, **options):
    rows = RANDOM.randint(0, 256, (5, 3072), dtype=np.uint8)
    settings = {"members": BATCHES, "per_member": 10000, "other_value": 0, "other_label": 9, "row_of_255": 7}
    return cifar_archive(folder / "cifar-10-python.tar.gz", rows, [3, 1, 0, 4, 5], **settings | options), rows


def python2_pickle(batch):
    """What Python 2 and numpy 1 wrote, as the published files hold it: byte strings for text and pixels, numpy.core."""
    data = batch["data"]
    return b"".join([
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5U\x06labelsq\x03](",
        b"".join(b"K" + bytes([k]) for k in batch["labels"]),
        b"eU\x04datacnumpy.core.multiarray\n_reconstruct\nq\x04cnumpy\nndarray\nq\x05K\x00\x85U\x01b\x87R",
        b"(K\x01" + struct.pack("<cHcH", b"M", data.shape[0], b"M", data.shape[1]) + b"\x86",
        b"cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
        b"\x89T" + struct.pack("<I", data.size) + data.tobytes() + b"tbu.",
    ])  # fmt: skip


def protocol2_pickle(batch):
    """What Python 3 writes for Python 2, with the module name of numpy 1."""
    raw = pickle.dumps({key.encode(): value for key, value in batch.items()}, protocol=2)
    return raw.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def fortran_pickle(batch):
    return pickle.dumps({**batch, "data": np.asfortranarray(batch["data"])})


@pytest.mark.parametrize(
    "make", [python2_pickle, protocol2_pickle, fortran_pickle, lambda batch: pickle.dumps(batch, protocol=5)]
)
def test_cifar_pickles_of_any_age(make, tmp_path):
    path, rows = small_cifar(tmp_path, members=["cifar-10-batches-py/test_batch"], make=make)
    convert(path, tmp_path / "o.zip", "--split=test", "--max-images=5")
    np.testing.assert_array_equal(pictures(tmp_path / "o.zip"), rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    assert labels(tmp_path / "o.zip") == [3, 1, 0, 4, 5]


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_cifar_pickle_runs_nothing(tmp_path):
    mark = tmp_path / "mark"
    path, _ = small_cifar(tmp_path, members=BATCHES[:1] * 5, make=lambda batch: pickle.dumps({"data": Evil(mark)}))
    refuse(path, tmp_path / "x/o.zip", match="lacks data_batch_2")
    path, _ = small_cifar(tmp_path, make=lambda batch: pickle.dumps({"data": Evil(mark)}))
    refuse(path, tmp_path / "x/o.zip", match="pathlib")
    assert not mark.exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda batch: b"\x80\x04\x8e" + b"\xff" * 8,  # a byte string of 2**64 - 1 bytes
        lambda batch: b"\x80\x05\x96" + b"\xff" * 7 + b"\x00",  # a byte array of 2**56 bytes
        lambda batch: b"\x80\x02K\x01r\xff\xff\xff\x7f.",  # memo entry two billion
        lambda batch: b"\x80\x02cnumpy\ndtype\n}b.",  # state for a class
        lambda batch: python2_pickle(batch).replace(b"\x89T", b"\x89K\x07T", 1),  # a value too many
        lambda batch: python2_pickle(batch).replace(b"U\x02u1", b"U\x02i1"),  # not uint8
        lambda batch: pickle.dumps([1, 2]),
        lambda batch: pickle.dumps({"data": np.zeros((10, 3072)), "labels": [1] * 10}),
        lambda batch: pickle.dumps({"data": np.zeros(7, np.uint8), "labels": [1] * 10}),
        lambda batch: b"",
    ],
)
def test_cifar_pickle_damage(make, tmp_path):
    path, _ = small_cifar(tmp_path, make=make)
    refuse(path, tmp_path / "x/o.zip", match="data_batch_1")


def test_cifar_refusals(tmp_path):
    path, _ = small_cifar(tmp_path, per_member=100)
    refuse(path, tmp_path / "x/o.zip", match="50000 images")
    path.write_bytes(path.read_bytes()[:2000])
    refuse(path, tmp_path / "x/o.zip", match="incomplete")
    path.write_bytes(b"not a gzip file")
    refuse(path, tmp_path / "x/o.zip", match="download it again")


def test_cifar_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr("training.data.originals._CIFAR_UNPACKED", 1 << 20)
    path, _ = small_cifar(tmp_path, per_member=1000)
    refuse(path, tmp_path / "x/o.zip", match="far more")


def test_photos(tmp_path):
    for split, count in (("train", 9048), ("test", 1952)):
        convert("photos", tmp_path / f"{split}.zip", f"--split={split}", "--max-images=40")
        assert np.stack(pictures(tmp_path / f"{split}.zip")).shape == (40, 32, 32, 3)
        source = open_source("photos", split=split)
        assert source.size == count
        assert list(source.class_names) == ["palace", "flower", "portrait"]
    train, test = (
        {open_source("photos", split=s).read(i).tobytes() for i in range(0, 1000, 7)} for s in ("train", "test")
    )
    assert len(train) > 100
    assert not train & test
    convert("photos", tmp_path / "small.zip", "--resolution=16x16", "--max-images=3")
    assert pictures(tmp_path / "small.zip")[0].shape == (16, 16, 3)
    assert labels(tmp_path / "small.zip") == [0, 0, 0]


def test_large_photos_are_the_same_crops():
    small, large = open_source("photos"), open_source("photos64")
    assert (large.size, large.labels) == (small.size, small.labels)
    for i in range(0, small.size, 911):
        pairs = large.read(i).reshape(32, 2, 32, 2, 3).mean((1, 3), dtype=np.float64)
        assert np.abs(pairs - small.read(i)).max() <= 1  # each was rounded, where photographs are shrunk by 4 twice


def test_photos_that_are_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.get_data_path", lambda: str(tmp_path))
    refuse("photos", tmp_path / "x/o.zip", match="photograph portrait is not installed")

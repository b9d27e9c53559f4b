"""Readers of public image data sets: one function per layout, listed in `LAYOUTS`.

A reader returns a `Source`: how many images, how to read one of them (from any thread, in any order), their labels.
This file reads folders and zips of image files; containers of other kinds are read in `originals.py`. Adding a
layout is one function and one line in the table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.data.archive import ImageArchive
from training.data.labels import FILE, LabelFile, check_labels, read_labels
from training.data.originals import Source, open_cifar10, open_digits, open_lmdb, open_lsun, open_mnist
from training.data.photos import open_photos


@dataclass(frozen=True)
class Layout:
    """How a data set lies on disk.

    Attributes:
        open: function(path, split, labels) -> Source.
        help: one line for `--help`.
        splits: values of --split, the first is the default; empty if the path itself says which part it is.
        labels: values of --labels, the first is the default.
    """

    open: Callable[[Path, str | None, str], Source]
    help: str
    splits: tuple[str, ...] = ()
    labels: tuple[str, ...] = ("auto", "none")


def _archive_source(description: str, archive: ImageArchive, names: Sequence[str], **about: Any) -> Source:
    return Source(
        description=f"{description} {archive.path}: {len(names)} images",
        size=len(names),
        read=lambda i: archive.read(names[i]),
        name=lambda i: str(archive.path / names[i]),
        repeated=archive.repeated,
        close=archive.close,
        **about,
    )


def _open_folder(path: Path, split: str | None, labels: str) -> Source:
    return _open_files("image folder", path, labels, infer=labels in ("auto", "folders"))


def _open_zip(path: Path, split: str | None, labels: str) -> Source:
    return _open_files("zip file", path, labels, infer=labels == "folders")


def _open_files(description: str, path: Path, labels: str, infer: bool) -> Source:
    """Images in the order of EDM's tool: folders by path components, zips by name."""
    archive = ImageArchive(path)
    names = archive.image_names
    if path.is_dir():
        names = sorted(names, key=lambda name: name.split("/"))
    known = None if labels in ("none", "folders") else read_labels(archive)
    if known is not None and known.labels:
        return _archive_source(description, archive, names, **_from_file(known, names, archive))
    about = _from_folders(names, archive, labels == "folders") if infer else {}
    other = [name for name in archive.names if name.endswith(f"/{FILE}")] if known is None and labels == "auto" else []
    if other:
        about["notes"] = (*about.get("notes", ()), f"Not read: {other[0]}, because images lie outside of its folder")
    return _archive_source(description, archive, names, **about)


def _from_file(known: LabelFile, names: Sequence[str], archive: ImageArchive) -> dict[str, Any]:
    """Labels of a `dataset.json`, checked as training will check them."""
    values = [known.labels.get(name) for name in names]
    given = [i for i, value in enumerate(values) if value is not None]
    about: dict[str, Any] = {"labels": values, "label_file": known.where.split(" in ")[0]}
    lost = [name for name in known.labels if name not in archive]
    if len(given) < len(names) and lost:
        about["notes"] = (f"{known.where} names {len(lost)} files that are not there, first {lost[0]}",)
    if given:
        kind, array = check_labels([values[i] for i in given], lambda i: names[given[i]], known)
        about |= {"label_kind": None if kind == "classes" else kind, "class_names": known.class_names}
        empty = sorted(set(range(array.max() + 1)) - set(array.tolist())) if kind == "classes" else []
        if empty:
            note = f"Classes without an image: {len(empty)} of {array.max() + 1}, first {empty[0]}"
            about["notes"] = (*about.get("notes", ()), note)
    return about


def _from_folders(names: Sequence[str], archive: ImageArchive, asked: bool) -> dict[str, Any]:
    """Class = rank of the top-level folder, '' for files beside the folders; nothing where there is only one.

    If classes were `asked` for, a folder that holds all the others is passed over.

    Raises:
        ValueError: `asked`, and there is only one.
    """
    below = f"{archive.root}/" if asked and archive.root else ""
    inside = [name.removeprefix(below) for name in names]
    tops = [name.split("/")[0] if "/" in name else "" for name in inside]
    about = _ranked(tops)
    if len(about["class_names"]) > 1:
        return about
    if asked and names:
        raise ValueError(f"--labels=folders: {archive.path} has one folder of images, classes are two or more")
    deeper = {rest.split("/")[0] for name in names if "/" in (rest := name.removeprefix(f"{archive.root}/"))}
    if archive.root and len(deeper) > 1:
        return {"notes": (f"All images lie in {archive.root}: --labels=folders takes the folders in it for classes",)}
    return {}


def _ranked(folders: Sequence[str]) -> dict[str, Any]:
    """Labels, names of the classes and a note for images in these folders: names of digits alone count as numbers."""
    different = set(folders)
    numeric = all(re.fullmatch("[0-9]+", folder) for folder in different - {""})
    order = sorted(different, key=lambda folder: (int(folder or -1), folder)) if numeric else sorted(different)
    ranks = {folder: rank for rank, folder in enumerate(order)}
    shown = [f"{rank} = {folder or '(no folder)'}" for folder, rank in ranks.items()]
    if len(shown) > SHOWN:
        shown[SHOWN - 2 : -1] = ["..."]
    note = f"Classes by folder{', in the order of their numbers' if numeric else ''}: {', '.join(shown)}"
    return {"labels": [ranks[folder] for folder in folders], "class_names": order, "notes": (note,)}


def _open_unlabelled(path: Path, split: str | None, labels: str) -> Source:
    """FFHQ and CelebA-HQ: the folders that hold the files are ranges of numbers, not classes."""
    if path.suffix == ".lmdb":
        return open_lmdb(path, split, labels)
    return _open_files("images", path, "none", infer=False)


def _open_classes(pattern: str, expected: str) -> Callable[[Path, str | None, str], Source]:
    """Folders `<split>/<class>/<file>`; `pattern` has the groups split (optional) and class."""

    def open_classes(path: Path, split: str | None, labels: str) -> Source:
        archive = ImageArchive(path)
        ordered = sorted(archive.image_names, key=lambda name: name.split("/"))
        found = [(name, match) for name in ordered if (match := re.fullmatch(pattern, name))]
        found = [(name, match["cls"]) for name, match in found if match["split"] in (None, split) or split == "all"]
        if not found:
            raise ValueError(f"{path} does not hold {expected} for --split={split}")
        about = _ranked([cls for _, cls in found])
        description = f"{split} images of {len(about['class_names'])} classes in"
        return _archive_source(description, archive, [name for name, _ in found], **about)

    return open_classes


def _open_celeba(path: Path, split: str | None, labels: str) -> Source:
    """Aligned CelebA: `img_align_celeba/*.jpg` and `list_eval_partition.txt` (or .csv), anywhere below `path`."""
    archive = ImageArchive(path)
    inside = [name.split("/") for name in archive.image_names]
    images = {parts[-1]: "/".join(parts) for parts in inside if "img_align_celeba" in parts[:-1]}
    lists = [name for name in archive.names if re.fullmatch(r"(.*/)?list_eval_partition\.(txt|csv)", name)]
    if not images or not lists:
        raise ValueError(
            f"{path} must hold the folder img_align_celeba with the images and the file list_eval_partition.txt: "
            "unpack img_align_celeba.zip beside that list"
        )
    text = archive.read(lists[0]).decode("utf-8", "replace")
    parts = re.findall(r"^(\w+\.jpg)[ ,]+([012])\s*$", text, re.MULTILINE)
    wanted = {"train": "0", "valid": "1", "test": "2", "all": "012"}[split]
    chosen = sorted(name for name, part in parts if part in wanted)
    missing = [name for name in chosen if name not in images]
    if missing or not chosen:
        raise ValueError(f"{path}: {len(missing)} of {len(chosen)} {split} images that {lists[0]} names are missing")
    return _archive_source(f"CelebA ({split})", archive, [images[name] for name in chosen])


INSTALLED = ("digits", "photos", "photos64")  # sources without a path
SHOWN = 12  # classes in the note that lists them

_FILES = ("auto", "folders", "none")
_IMAGENET = r"(?:(?:.*/)?(?P<split>train|val)/)?(?P<cls>n\d{8})/[^/]+"
_AFHQ_SPLITS = ("train", "test", "val", "all")
_AFHQ = r"(?:(?:.*/)?(?P<split>train|test|val)/)?(?P<cls>cat|dog|wild)/[^/]+"

LAYOUTS: dict[str, Layout] = {
    "digits": Layout(open_digits, "scikit-learn's 1797 real 8x8 digits with labels; nothing to download"),
    "photos": Layout(open_photos(32), "32x32 crops of photographs that installed packages ship", ("train", "test")),
    "photos64": Layout(open_photos(64), "the same crops at 64x64", ("train", "test")),
    "folder": Layout(
        _open_folder, "any images, recursive; labels from dataset.json or top-level folders", labels=_FILES
    ),
    "zip": Layout(_open_zip, "any images; labels from dataset.json, from folders with --labels=folders", labels=_FILES),
    "cifar10": Layout(open_cifar10, "cifar-10-python.tar.gz", ("train", "test")),
    "mnist": Layout(open_mnist(2), "train- or t10k-images-idx3-ubyte.gz, labels file beside it; padded to 32x32"),
    "mnist28": Layout(open_mnist(0), "the same at its own 28x28; needs --any-size"),
    "lsun": Layout(open_lsun, "folder *_lmdb of image files; no labels, broken entries are skipped"),
    "lmdb": Layout(open_lmdb, "*.lmdb, decimal keys, image files or raw RGB squares (NVAE's CelebA-HQ, FFHQ)"),
    "celeba": Layout(_open_celeba, "img_align_celeba and list_eval_partition.txt", ("train", "valid", "test", "all")),
    "celebahq": Layout(_open_unlabelled, "folder, zip or .lmdb of CelebA-HQ; folders are not classes"),
    "ffhq": Layout(_open_unlabelled, "folder, zip or .lmdb of FFHQ; folders are not classes"),
    "afhqv2": Layout(_open_classes(_AFHQ, "folders cat, dog, wild"), "cat, dog, wild = classes 0, 1, 2", _AFHQ_SPLITS),
    "imagenet": Layout(_open_classes(_IMAGENET, "folders n01440764 ..."), "sorted folders nXXXXXXXX", ("train", "val")),
}


def detect_layout(source: str) -> str:
    """The layout that the name says.

    Raises:
        FileNotFoundError: nothing of this name.
        ValueError: a file of a type that is not known.
    """
    if source in INSTALLED:
        return source
    path = Path(source)
    if not source or not path.exists():
        raise FileNotFoundError(f"missing input file or directory: '{source}'")
    if path.suffix == ".lmdb":
        return "lmdb"
    if path.is_dir():
        return "lsun" if path.name.endswith("_lmdb") else "folder"
    if path.name == "cifar-10-python.tar.gz":
        return "cifar10"
    if re.fullmatch(r"(train|t10k)-images-idx3-ubyte\.gz", path.name):
        return "mnist"
    if path.suffix.lower() == ".zip":
        return "zip"
    raise ValueError(f"unknown archive type: {source}; name its --layout, one of {', '.join(LAYOUTS)}")


def open_source(source: str, *, layout: str = "auto", split: str | None = None, labels: str = "auto") -> Source:
    """Open `source` for reading.

    Args:
        source: a path, or one of `INSTALLED`.
        layout: a key of `LAYOUTS`, or "auto": by name.
        split: one of the layout's splits; None is its first.
        labels: "auto" (what the layout offers), "folders" (top-level folder = class) or "none".

    Raises:
        ValueError, OSError: not what it claims to be, or an option that the layout does not take.
    """
    name = detect_layout(source) if layout == "auto" else layout
    chosen = LAYOUTS[name]
    if split is not None and split not in chosen.splits:
        allowed = f"one of {', '.join(chosen.splits)}" if chosen.splits else "nothing: the path says which part it is"
        raise ValueError(f"--split={split} does not exist for the layout {name}; it takes {allowed}")
    if labels not in chosen.labels:
        raise ValueError(f"--labels={labels} does not exist for the layout {name}; it takes {', '.join(chosen.labels)}")
    opened = chosen.open(Path(source), split or (chosen.splits[0] if chosen.splits else None), labels)
    if opened.size == 0:
        opened.close()
        raise ValueError(f"{source} holds no images")
    return opened if labels != "none" else replace(opened, labels=None, class_names=None, notes=())

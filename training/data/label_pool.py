"""Labels for samples of a network that was trained on vectors or attributes: those of a data set, or of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samplers.field import Facts
from torch_utils.arrays import opened_arrays
from training.data.image_dataset import ImageDataset
from training.data.labels import LabelFile, check_labels

ARRAYS, TEXT = (".npy", ".npz"), ".json"


def read_pool(source: str) -> tuple[str, Tensor]:
    """The kind and the rows of the labels at `source`: int64 `[n]` of classes, or float32 `[n, L]`.

    Args:
        source: a data set, .npy, .npz with an array `labels`, or .json: a list of labels, or a dataset.json.

    Raises:
        ValueError, OSError: no labels there, or not all of one kind.
    """
    path = Path(source)
    suffix = path.suffix.lower()
    if suffix not in (*ARRAYS, TEXT) or path.is_dir():
        dataset = ImageDataset(source, use_labels=True)
        if not dataset.has_labels:
            raise ValueError(f"{source} has no labels: give the data set that the network was trained on")
        return dataset.label_kind, dataset.targets()
    kind, values, names = _json(path) if suffix == TEXT else (None, _array(path), None)
    if not isinstance(values, list) or not values:
        raise ValueError(f"{source} holds no list of labels: one class number or one vector per row is needed")
    kind, array = check_labels(values, lambda i: f"row {i}", LabelFile(source, None, kind, names))
    return kind, torch.from_numpy(array)


def _json(path: Path) -> tuple[str | None, Any, list[str] | None]:
    try:
        content = json.loads(path.read_bytes())
        if isinstance(content, dict):
            entries = content["labels"]
            return content.get("label_kind"), [label for _, label in entries], content.get("class_names")
        return None, content, None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} is neither a list of labels nor a dataset.json") from error


def _array(path: Path) -> Any:
    npz = path.suffix.lower() == ".npz"
    with opened_arrays(path, f"a file of a plain array{' called labels' * npz}") as arrays:
        return arrays["labels" if npz else ""].tolist()


def refuse_labels(source: str | None, class_idx: int | None, conditional: bool) -> None:
    """Refuse `--labels` where no label is drawn; ValueError."""
    if source is not None and class_idx is not None:
        raise ValueError("--labels draws labels from data and --class gives one to all images: leave one of them out")
    if source is not None and not conditional:
        raise ValueError("--guidance-type=uncond samples without a condition: leave --labels out")


def give_labels(net: Any, source: str | None) -> None:
    """Let samples of `net` draw their labels from `source` (see `read_pool`); None changes nothing.

    Raises:
        ValueError: an unconditional network, labels of another kind or length than it was trained on, or a network that
            is told what came before in a series.
    """
    if ((getattr(net, "info", None) or {}).get("dataset") or {}).get("series"):
        raise ValueError("this network continues a series, whose frames are its condition: use `analyze.py forecast`")
    if source is None:
        return
    facts = Facts.of(net)
    if not facts.label_dim:
        raise ValueError(f"--labels={source}: the network is unconditional: leave it out")
    kind, rows = read_pool(source)
    given = int(rows.max()) + 1 if rows.ndim == 1 else rows.shape[1]
    vectors = (rows.ndim == 2) == (facts.conditioning != "classes")
    fits = vectors and (given <= facts.label_dim if rows.ndim == 1 else given == facts.label_dim)
    if not fits or (facts.conditioning, kind) == ("multi-hot", "vector"):
        raise ValueError(
            f"--labels={source} has {kind} labels of {given} {'classes' if rows.ndim == 1 else 'numbers'}, the network "
            f"takes {facts.conditioning} labels of {facts.label_dim}: give the data it was trained on"
        )
    net.conditions = torch.nn.functional.one_hot(rows, facts.label_dim).float() if rows.ndim == 1 else rows

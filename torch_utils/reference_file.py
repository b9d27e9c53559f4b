"""Reference statistics as files: ours, and those of EDM, pytorch-fid and guided-diffusion.

An npz with `mu [D]` and `sigma [D, D]` (float64), and of ours `num`, `features`, `protocol` (JSON: feature network and
its hash, resize, images, command) and, where they were kept, the features themselves: `rows [N, D]` float32. Of several
kinds of features the arrays of all but the first have the name of the features in front: `dinov2/mu`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torch_utils.arrays import opened_arrays
from torch_utils.distributed import get_rank, rank0_first
from torch_utils.downloads import download
from torch_utils.files import atomic_write
from torch_utils.frechet import Extractor, Moments

# What is said of files that do not say it themselves, beside their figures.
_BARE = (
    "it holds mu and sigma alone, and not how they were made: EDM's files are made as here, pytorch-fid and clean-fid "
    "resize images in another way, which changes the second decimal and more"
)
_GUIDED_DIFFUSION = (
    "it is a reference batch of guided-diffusion, whose tables take 50000 samples, and precision and recall of 10000 "
    "reference images: other numbers of images give other figures; its spatial statistics (sFID) are not read"
)


def local_file(ref: str) -> str:
    """The file of a reference: downloaded, by one process for all, where it is an address."""
    if not ref.startswith(("https://", "http://")):
        return ref
    return str(rank0_first(lambda: download(ref, verbose=get_rank() == 0)))


def check_fits(ref: str, reference: Moments, features: str, dim: int, weights: str | None = None) -> None:
    """A ValueError unless the reference `ref` describes `dim` numbers an image of these features.

    Args:
        weights: hash of the weights that these features come from.
    """
    if reference.features not in (None, features):
        raise ValueError(
            f"{ref} describes the features '{reference.features}', these are '{features}': compare with the features "
            f"'{reference.features}', or make another reference with `fid.py ref`"
        )
    if len(reference.mu) != dim:
        raise ValueError(
            f"{ref} has {len(reference.mu)} features an image, '{features}' gives {dim} for these images: "
            "make a reference with the same features and image size with `fid.py ref`"
        )
    seen = reference.protocol.get("weights")
    if None not in (seen, weights) and seen != weights:
        raise ValueError(
            f"{ref} was made with a network '{features}' of other weights (hash {seen}, not {weights}): give those by "
            "--weights, or make another reference with `fid.py ref`"
        )


def save_moments(path: str | PathLike[str], *described: Moments) -> None:
    """Write statistics to an npz, several of different features; the folder is created."""
    arrays: dict[str, Any] = {}
    for i, moments in enumerate(described):
        prefix = f"{moments.features}/" if i else ""
        found = {"mu": moments.mu.numpy(), "sigma": moments.sigma.numpy(), "num": moments.num}
        found |= {"features": moments.features, "rows": moments.rows if moments.rows is None else moments.rows.numpy()}
        found |= {"protocol": json.dumps(dict(moments.protocol)) if moments.protocol else None}
        arrays |= {prefix + key: np.asarray(value) for key, value in found.items() if value is not None}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as f:
        np.savez(f, **arrays)


def load_reference(ref: str, extractor: Extractor, dim: int, name: str | None = None, rows: bool = False) -> Moments:
    """Reference statistics of a file or an address, refused where they do not fit features of `dim` numbers.

    Args:
        name: what the user calls it, for messages.
        rows: read the features themselves, on rank 0, where the file has them.
    """
    moments = load_moments(local_file(ref), extractor.name, rows)
    check_fits(name or ref, moments, extractor.name, dim, getattr(extractor, "weights", None))
    return moments


def load_moments(path: str | PathLike[str], features: str | None = None, rows: bool = False) -> Moments:
    """Read an npz with `mu [D]` and `sigma [D, D]`, this project's or anybody's; nothing in it is executed.

    Args:
        features: of a file of several, those wanted; default: the first.
        rows: read the features themselves, on rank 0, where the file has them.

    Raises:
        ValueError: not an npz, or one without these arrays.
    """
    with opened_arrays(path, "an npz file of feature statistics") as data:
        found = set(data)
        prefix = f"{features}/" if f"{features}/mu" in found else ""
        wanted = ("mu", "sigma", "num", "features", "protocol", *(["rows"] if rows and get_rank() == 0 else []))
        arrays = {key: data[prefix + key] for key in wanted if prefix + key in found}
    if not {"mu", "sigma"} <= arrays.keys():
        kind = "images" if {"arr_0", "images"} & found else "arrays"
        raise ValueError(
            f"{path} holds {kind} ({', '.join(sorted(found)[:5]) or 'none'}) and not mu and sigma, the statistics of "
            "their features: make those with `fid.py ref` of the same data, or give images (an array images or arr_0)"
        )
    numbers = ("mu", "sigma", "num")
    odd = [key for key in numbers if key in arrays and arrays[key].dtype.kind not in "fiu"]
    odd += [key for key in ("num", "features", "protocol") if key in arrays and arrays[key].ndim]
    if odd:
        found_there = f"{arrays[odd[0]].dtype} of shape {list(arrays[odd[0]].shape)}"
        raise ValueError(f"{path}: {odd[0]} is {found_there}, which no statistics have: make it anew with `fid.py ref`")
    mu, sigma = (torch.from_numpy(arrays[key].astype(np.float64)) for key in ("mu", "sigma"))
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f"{path}: mu of shape {list(mu.shape)} and sigma of shape {list(sigma.shape)} do not match")
    if sigma.isfinite().all() and not torch.allclose(sigma, sigma.T, rtol=1e-3, atol=1e-6 * float(sigma.abs().max())):
        raise ValueError(f"{path}: sigma is not symmetric, so it is no covariance: make it anew with `fid.py ref`")
    num, name, kept = (arrays.get(key) for key in ("num", "features", "rows"))
    if kept is not None and (kept.ndim != 2 or kept.shape[1] != len(mu) or kept.dtype != np.float32):
        raise ValueError(
            f"{path}: rows of {kept.dtype} and shape {list(kept.shape)} are no features of {len(mu)} numbers"
        )
    moments = Moments(mu, sigma, None if num is None else int(num), None if name is None else str(name))
    return replace(
        moments, rows=None if kept is None else torch.from_numpy(kept), protocol=_protocol(path, arrays, found)
    )


def _protocol(path: Any, arrays: dict[str, np.ndarray], found: set[str]) -> dict[str, Any]:
    """What the file says of its making; of files of others, what is to be said of them, under "differs"."""
    if "protocol" in arrays:
        try:
            protocol = json.loads(str(arrays["protocol"]))
        except (ValueError, RecursionError):
            protocol = None
        if not isinstance(protocol, dict):
            raise ValueError(f"{path}: its protocol is not a JSON object, it was not written by `fid.py ref`")
        return protocol
    if "features" in arrays:
        return {}
    return {"differs": _GUIDED_DIFFUSION if {"arr_0", "mu_s"} & found else _BARE}

"""Where samples go: one PNG per seed, all of them in one picture, or in array files.

Every file appears whole or not at all. Single files are written in background threads while sampling goes on; joint
files when all processes are done, by rank 0, in the order of the seeds. Folders of single files are continued when they
are found again, so they carry a record of what made them (`torch_utils.provenance`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samplers.field import Field, as_field
from samplers.run import Recorder, Samples
from torch_utils import distributed as dist
from torch_utils.files import atomic_write
from torch_utils.images import ImageWriter, enlarged, image_format, make_grid, save_image, to_uint8
from torch_utils.provenance import differences, read_record, write_record
from torch_utils.report.kinds import kind_of


def network_record(net: Field | Callable[..., Tensor]) -> dict[str, Any]:
    """Everything about a network that decides its images, as plain JSON."""
    field = as_field(net)
    facts = field.facts
    return {
        "weights": field.weights_hash(),
        "path": repr(facts.path),
        "predicts": facts.predicts,
        "shape": None if facts.shape is None else list(facts.shape),
        "sigma_range": [str(facts.sigma_min), str(facts.sigma_max)],
        **({} if facts.parts is None else {"groups": list(facts.parts.groups)}),
    }


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What is wanted; None = not.

    Attributes:
        outdir: folder of one PNG per seed, with `subdirs` in sub-folders of 1000 seeds.
        grid: one picture of all images, small ones enlarged by a whole factor (`torch_utils.images.enlarged`).
        npz: `images [N, H, W, C]` uint8, of points in the plane `points [N, 2]` float32, of shapes `parts [N, L, V]`
            float32 and `groups`; `seeds`, and `labels` where there are classes.
        npz_name: "arr_0" instead of "images", what suites for ADM, DiT and SiT read.
        traj: `x [N, T, ...]`, `drift [N, T-1, ...]`, `sigmas [N, T]`, `seeds`; the sampler must be a `Recorder`.
        noise: folder of the noise that each image was made from, SEED.npy float32 `[C, H, W]`.
        latents: folder of the latents that were decoded, of models of latents, SEED.npy float32 `[C, h, w]`.
        record: what makes these images, plain JSON.
    """

    outdir: Path | None = None
    subdirs: bool = False
    grid: Path | None = None
    npz: Path | None = None
    npz_name: str = "images"
    traj: Path | None = None
    noise: Path | None = None
    latents: Path | None = None
    record: Mapping[str, Any] = dataclass_field(default_factory=dict)

    @property
    def joint(self) -> list[Path]:
        return [p for p in (self.grid, self.npz, self.traj) if p is not None]

    def image(self, seed: int) -> Path:
        return self._of(seed, self.outdir, ".png")

    def _of(self, seed: int, root: Path, suffix: str) -> Path:
        folder = root / f"{seed - seed % 1000:06d}" if self.subdirs else root
        return folder / f"{seed:06d}{suffix}"

    def _complete(self, seed: int) -> bool:
        return self.image(seed).exists() and all(self._of(seed, p, ".npy").exists() for p in self._arrays)

    @property
    def _arrays(self) -> list[Path]:
        return [p for p in (self.noise, self.latents) if p is not None]

    @property
    def folders(self) -> list[Path]:
        return [*([] if self.outdir is None else [self.outdir]), *self._arrays]

    def prepare(self, seeds: Sequence[int], overwrite: bool = False) -> None:
        """Make the folders, so that a wrong path fails before the work, and refuse those that hold something else.

        Args:
            seeds: of the images that are wanted.
            overwrite: make the images of these seeds anew.

        Raises:
            ValueError: a folder holds files of another network or sampler that would stay.
            OSError: a folder cannot be made.
        """
        if self.subdirs and self.outdir is None:
            raise ValueError("--subdirs sorts the images of --outdir into folders: give --outdir as well")
        if len(set(self.folders)) < len(self.folders):
            raise ValueError(
                f"{self.folders[-1]} is given for two kinds of files, which would be mixed: give two folders"
            )
        if self.grid is not None:
            image_format(self.grid)
        for folder in (*self.folders, *(p.parent for p in self.joint)):
            folder.mkdir(parents=True, exist_ok=True)
        dist.from_rank0(lambda: self._claim(seeds, overwrite))

    def _claim(self, seeds: Sequence[int], overwrite: bool) -> None:
        """Check the record of every folder, and leave this one."""
        for folder in self.folders:
            suffix = ".png" if folder == self.outdir else ".npy"
            found = read_record(folder)
            differ = ["no record of what made them"] if found is None else differences(found, self.record)
            there = {p.stem for p in folder.rglob(f"*{suffix}") if p.stem.isdigit()} if differ else set()
            stay = there - {f"{seed:06d}" for seed in seeds} if overwrite else there
            if stay:
                why = differ[0] if found is None else f"other {', '.join(differ)}"
                raise ValueError(
                    f"{folder} holds {len(stay)} files of another network or sampler ({why}), which would be mixed "
                    "with these: give another folder, "
                    + ("or remove them" if overwrite else "remove them, or --overwrite to make them anew")
                )
            if differ:
                write_record(folder, self.record)

    def _check_claim(self) -> None:
        """Refuse to write where another command has left its record since, while there was no file of this one."""
        for folder in self.folders if dist.get_rank() == 0 else ():  # the one that wrote it sees it at once
            found = read_record(folder)
            if found is not None and (differ := differences(found, self.record)):
                raise ValueError(
                    f"another command has begun to fill {folder} with files of another network or sampler (other "
                    f"{', '.join(differ)}), which would be mixed with these: give each its own folder"
                )

    def missing(self, seeds: Sequence[int]) -> list[int]:
        """Seeds that have no file yet; all of them where a joint file is wanted. Rank 0 looks for every process."""
        if self.joint or self.outdir is None:
            return list(seeds)
        return dist.broadcast_object([s for s in seeds if not self._complete(s)] if dist.get_rank() == 0 else None)

    def write(self, batches: Iterable[Samples], sampler: Any = None, progress: Any = lambda _: None) -> None:
        """Write every batch as it comes; `progress(n)` is called after each n images of this process.

        Raises:
            OSError: a file that cannot be written.
            ValueError: images that are not finite; a folder that another command fills with other files.
        """
        kept: list[dict[str, np.ndarray]] = []
        with ImageWriter() as writer, ImageWriter(2, save=_save_array) as arrays:
            for batch in batches:
                self._check_claim()
                for folder, values in ((self.noise, batch.noise), (self.latents, batch.latents)):
                    for seed, value in zip(batch.seeds, () if folder is None else values.float().cpu(), strict=False):
                        arrays.put(value, self._of(seed, folder, ".npy"))
                if self.outdir is None and not self.joint:
                    progress(len(batch.seeds))
                    continue
                images = _quantise(batch)
                if self.outdir is not None:
                    for seed, image in zip(batch.seeds, images, strict=True):
                        writer.put(image, self.image(seed))
                if self.joint:
                    kept.append(_arrays(batch, images, sampler if self.traj is not None else None))
                progress(len(images))
        if self.joint:
            self._write_joint(_join(dist.all_gather_object(kept)))

    def _write_joint(self, arrays: dict[str, np.ndarray]) -> None:
        if dist.get_rank() > 0 or not arrays:
            return
        if self.grid is not None:
            if "images" in arrays:
                picture = enlarged(make_grid(torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2)))
            else:
                kind = kind_of(self.record["network"]["shape"])
                picture = kind.draw(torch.from_numpy(arrays[kind.array]))
            save_image(picture, self.grid)
        if "parts" in arrays:
            arrays["groups"] = np.array(self.record["network"]["groups"])
        of_npz = ("images", "points", "parts", "groups", "seeds", "labels")
        for path, keys in ((self.npz, of_npz), (self.traj, ("x", "drift", "sigmas", "seeds"))):
            if path is not None:
                with atomic_write(path) as f:
                    names = {"images": self.npz_name} if path == self.npz else {}
                    np.savez(f, **{names.get(key, key): arrays[key] for key in keys if key in arrays})


def _quantise(batch: Samples) -> Tensor:
    if not torch.isfinite(batch.images).all():
        raise ValueError(
            f"the images of seeds {batch.seeds[0]}, ... hold values that are not finite: "
            "the network is damaged, or its precision does not suffice (try --precision=fp32)"
        )
    return to_uint8(batch.images).cpu() if kind_of(batch.images.shape[1:]) is None else batch.images.float().cpu()


def _save_array(array: Tensor, path: Any) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as f:
        np.save(f, array.numpy())


def _arrays(batch: Samples, images: Tensor, recorder: Recorder | None) -> dict[str, np.ndarray]:
    """The part of a batch that goes into joint files, images along axis 0."""
    arrays = {"seeds": np.array(batch.seeds)}
    kind = kind_of(images.shape[1:])
    if kind is None:
        arrays["images"] = images.permute(0, 2, 3, 1).numpy()
    else:
        arrays[kind.array] = (images.flatten(1) if kind.array == "points" else images).numpy()
    if batch.labels is not None:
        arrays["labels"] = (batch.labels.argmax(1) if batch.classes else batch.labels).cpu().numpy()
    if recorder is not None:
        arrays |= {"x": recorder.x.numpy(), "drift": recorder.drift.numpy(), "sigmas": recorder.sigmas.numpy()}
    return arrays


def _join(parts: list[list[dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """Batches of all processes -> arrays in the order of the seeds given (batches were dealt round-robin)."""
    batches = [b for group in itertools.zip_longest(*parts) for b in group if b is not None]
    if len({b["x"].shape[1] for b in batches if "x" in b}) > 1:
        raise ValueError(
            "the batches took different numbers of steps, so their trajectories do not fit into one array: sample all "
            "seeds in one batch (raise --batch), or choose a solver of fixed steps"
        )
    return {key: np.concatenate([b[key] for b in batches]) for key in (batches[0] if batches else ())}

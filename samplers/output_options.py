"""What to make, as command lines ask for it; `samplers/wanted.py` reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch_utils.options import OptionGroup, opt


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    group: ClassVar = OptionGroup("What to make", "Which images, and the files they are written to.", rank=1)

    seeds: tuple[int, ...] | None = opt(None, "One image per seed, e.g. 1,2,5-10 [default: 0-63]", metavar="LIST")
    outdir: str | None = opt(
        None,
        "Folder of SEED.png; default without --grid=FILE or --npz: samples/NETWORK/SOLVER_nfeNFE[_GUIDANCE]-HASH, "
        "HASH of all that decides an image",
        metavar="DIR",
    )
    grid: str | None = opt(
        None, "All images in one, enlarged where they are small to 512 pixels of width or just above; alone: "
        "OUTDIR/grid.png, and nothing else", metavar="FILE", bare="True",
    )  # fmt: skip
    class_idx: int | None = opt(
        None, "One class for all images; default: drawn per seed", metavar="INT", names=("--class",)
    )
    labels: str | None = opt(
        None, "Draw labels per seed from a data set or file, for networks of label vectors", metavar="DATA|NPY|NPZ|JSON"
    )
    prompt: str | None = opt(None, "Models of text: one text for all images; may be empty", metavar="TEXT")
    prompts: str | None = opt(
        None, "Models of text: a CSV file whose column `text` has the text of seed i in row i", metavar="FILE.csv"
    )
    npz: str | None = opt(None, "All images in one array file: images [N,H,W,C] uint8, seeds, labels", metavar="FILE")
    npz_name: str = opt(
        "images", "Name of the images in --npz; arr_0: as evaluation suites for ADM, DiT and SiT read them",
        choices=["images", "arr_0"],
    )  # fmt: skip
    subdirs: bool | None = opt(None, "A sub-folder for every 1000 seeds", metavar="BOOL", bare=True)
    overwrite: bool = opt(False, "Also make images whose files exist", flag=True)
    save_schedule: str | None = opt(
        None, "Noise levels, solver and its options, as a file for --schedule", metavar="FILE.json"
    )
    nfe_convention: str = opt(
        "true", "Beside the true number of network evaluations, say the number of steps, which IDFF was published with",
        choices=["true", "steps"],
    )  # fmt: skip
    save_traj: str | None = opt(None, "States and drifts of every step, in one array file", metavar="FILE")
    save_noise: str | None = opt(
        None, "Folder of SEED.npy: the noise of every image, for train.py distill", metavar="DIR"
    )
    save_latents: str | None = opt(
        None, "Models of latents: folder of SEED.npy, the sampled latents before they are decoded", metavar="DIR"
    )

"""Options that every training method shares. Each is a command line option and a key of training_options.json.

Methods add theirs by subclassing (`training/methods/edm.py`). Names and defaults follow the published EDM command line
where it has the option; durations are in images (MIMG = million, KIMG = thousand), never in steps.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import click

from networks.features.table import FEATURES
from torch_utils.cli import NumberList
from torch_utils.options import opt

__all__ = ["CommonOptions"]


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    # Main
    outdir: str = opt(None, "Where to save the results", metavar="DIR", required=True)
    data: str = opt(
        None, "Data set made by dataset_tool.py, or points: toy:NAME[:size=N][:seed=S]", metavar="ZIP|DIR|TOY",
        required=True,
    )  # fmt: skip
    cond: bool = opt(False, "Train a class-conditional model; the data set must have labels", metavar="BOOL")
    duration: float = opt(200.0, "Training duration in million images", metavar="MIMG", above=0)
    batch: int = opt(512, "Total batch size over all processes", metavar="INT", at_least=1)
    batch_gpu: int | None = opt(
        None, "Limit per process and pass; smaller means accumulation", metavar="INT", at_least=1
    )
    seed: int | None = opt(None, "Random seed; default: drawn and recorded", metavar="INT", at_least=0)

    # Hyper-parameters
    lr: float = opt(1e-3, "Learning rate", metavar="FLOAT", above=0)
    lr_rampup: float = opt(10.0, "Linear learning-rate ramp-up in million images", metavar="MIMG", at_least=0)
    ema: float = opt(0.5, "EMA half-life in million images", metavar="MIMG", at_least=0)
    ema_rampup: float | None = opt(
        0.05, "EMA half-life is at most this share of the images seen; 0 = no ramp-up", metavar="RATIO", at_least=0
    )
    phema: tuple[float, ...] | None = opt(
        None, "Also keep power-function averages of these relative widths, e.g. 0.05,0.1 (docs/checkpoints.md)",
        metavar="LIST", type=NumberList(),
    )  # fmt: skip
    grad_clip: float | None = opt(None, "Clip the gradient to this L2 norm", metavar="NORM", above=0)
    xflip: bool = opt(False, "Double the data set with mirrored copies", metavar="BOOL")

    # Performance
    precision: str = opt("fp32", "Precision of the network's trunk", choices=["fp32", "fp16", "bf16"])
    fp16: bool = opt(False, "Same as --precision=fp16", metavar="BOOL")
    ls: float = opt(1.0, "Constant loss scaling", metavar="FLOAT", above=0)
    compile: bool = opt(False, "Compile the network with torch.compile", flag=True)
    bench: bool = opt(True, "Let cuDNN choose its algorithms by timing them", metavar="BOOL")
    tf32: bool = opt(False, "Allow TF32 in fp32 matrix products and convolutions", metavar="BOOL")
    cache: bool = opt(True, "Keep the decoded data set in memory, on the GPU if it fits", metavar="BOOL")
    workers: int = opt(1, "Threads that read and decode images", metavar="INT", at_least=1)
    device: str = opt("auto", "cpu, cuda or auto (a GPU when there is one)", metavar="DEVICE")

    # Files and reporting
    desc: str | None = opt(None, "Text to add to the run directory's name", metavar="STR")
    nosubdir: bool = opt(False, "Use --outdir itself as the run directory", flag=True)
    tick: float = opt(50.0, "Status line and statistics every KIMG", metavar="KIMG", above=0)
    snap: int | None = opt(50, "Network snapshot and sample grid every TICKS; 0 = none", metavar="TICKS", at_least=0)
    dump: int | None = opt(500, "Training state every TICKS; 0 = only by time", metavar="TICKS", at_least=0)
    checkpoint_mins: float = opt(
        10.0, "Training state also after this many minutes; 0 = never", metavar="MIN", at_least=0
    )
    keep: int = opt(2, "Training states to keep", metavar="INT", at_least=1)
    keep_snapshots: int | None = opt(None, "Snapshots to keep; default: all", metavar="INT", at_least=1)
    fid_every: int | None = opt(
        None,
        "Measure FID every TICKS, into stats.jsonl and the status line; default: never",
        metavar="TICKS",
        at_least=1,
    )
    fid_ref: str = opt("auto", "Reference statistics for FID; auto = of the training data", metavar="auto|NPZ|URL")
    fid_features: str = opt("inception", "Features for FID; pixels needs no weights", choices=list(FEATURES))
    fid_num: int = opt(10_000, "Samples per FID; published numbers use 50000", metavar="INT", at_least=2)
    fid_steps: int = opt(18, "Steps of EDM's sampler for FID", metavar="INT", at_least=2)
    nonfinite: str = opt(
        "stop", "On NaN or infinite gradients: stop before the update, or set them to zero", choices=["stop", "zero"]
    )
    wandb: bool = opt(False, "Also log to Weights & Biases (offline without an account)", flag=True)

    # Starting points
    resume: str | None = opt(None, "Continue from a run directory or a training state", metavar="DIR|FILE")
    new_run: bool = opt(False, "Start anew although the same command has an unfinished run", flag=True)
    transfer: str | None = opt(None, "Start from the weights of a snapshot", metavar="FILE|URL")
    dry_run: bool = opt(False, "Print what would be done, with costs, and exit", flag=True, names=("-n",))

    @property
    def total_kimg(self) -> int:
        return max(int(self.duration * 1000), 1)

    @property
    def trunk_precision(self) -> str:
        if self.fp16 and self.precision == "bf16":
            raise click.UsageError("--fp16=1 and --precision=bf16 contradict each other: give one of them")
        return "fp16" if self.fp16 else self.precision

    def description(self, dataset: str, world: int) -> str:
        """The part of the run directory's name that is common to all methods."""
        parts = [dataset, "cond" if self.cond else "uncond", *self.name_parts()]
        parts += [f"gpus{world}", f"batch{self.batch}", self.trunk_precision]
        if self.desc:
            parts.append(re.sub(r"[^\w.=+-]", "_", self.desc))
        return "-".join(parts)

    def name_parts(self) -> list[str]:
        """What a method adds to the run directory's name."""
        return []

"""LoopOptions: how long a run trains, in what batches, and what happens to its gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch_utils.options import OptionGroup, opt


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """Options of the training loop. Once a run has begun, `seed` is set."""

    group: ClassVar = OptionGroup("Length and batches", "How long it trains, and how much at once.", rank=2)

    duration: float = opt(200.0, "Training duration in million images", metavar="MIMG", above=0)
    batch: int = opt(512, "Total batch size over all processes", metavar="INT", at_least=1)
    batch_gpu: int | None = opt(
        None,
        "Most samples per process and pass; gradients of several passes are summed",
        metavar="INT",
        at_least=1,
        may_change=True,
    )
    seed: int | None = opt(None, "Random seed; default: drawn and recorded", metavar="INT", at_least=0)
    grad_clip: float | None = opt(None, "Clip the gradient to this L2 norm", metavar="NORM", above=0)
    ls: float = opt(1.0, "Constant loss scaling", metavar="FLOAT", above=0)
    nonfinite: str = opt(
        "stop", "On NaN or infinite gradients: stop before the update, or set them to zero", choices=["stop", "zero"]
    )

    @property
    def total_kimg(self) -> float:
        """Where training ends, in whole thousands of images; ValueError for less than one."""
        if self.duration < 0.001:
            raise ValueError(
                f"--duration={self.duration:g} million images is less than one thousand, by which training is counted: "
                "give 0.001 or more"
            )
        return int(self.duration * 1000)

    def rounds(self, world: int, batch_size: int | None = None, option: str = "--batch") -> int:
        """Accumulation rounds per step; ValueError when the batch cannot be split that way.

        Args:
            world: number of processes.
            batch_size, option: of a phase with a batch of its own, and what the user calls it.
        """
        batch_size = self.batch if batch_size is None else batch_size
        if batch_size % world:
            raise ValueError(
                f"{option}={batch_size} is not divisible by the {world} processes: choose a multiple of {world}"
            )
        per_process = batch_size // world
        per_round = min(self.batch_gpu or per_process, per_process)
        if per_process % per_round:
            raise ValueError(
                f"--batch-gpu={per_round} does not divide the {per_process} images each process handles per step: "
                "choose a divisor"
            )
        return per_process // per_round

"""Networks worth timing, by name: the published sizes and one for the 8x8 digits."""

from __future__ import annotations

import dataclasses

from training.methods.edm import EDMOptions

__all__ = ["PRESETS", "Preset"]


@dataclasses.dataclass(frozen=True)
class SyntheticDataset:
    """What a method's builder reads of a data set, without images."""

    resolution: int
    num_channels: int
    label_dim: int
    name: str = "synthetic"
    label_kind: str = "classes"
    std: float = 0.5
    latents: None = None

    @property
    def image_shape(self) -> list[int]:
        return [self.num_channels, self.resolution, self.resolution]

    def __len__(self) -> int:
        return 0


@dataclasses.dataclass(frozen=True)
class Preset:
    """Options of train.py plus the shape of the data set they were made for."""

    options: EDMOptions
    resolution: int
    channels: int
    classes: int

    def dataset(self) -> SyntheticDataset:
        return SyntheticDataset(self.resolution, self.channels, self.classes)


def _options(**kwargs: object) -> EDMOptions:
    return EDMOptions(outdir="", data="", **kwargs)


PRESETS: dict[str, Preset] = {
    "digits": Preset(
        _options(cond=True, cbase=32, cres=(1, 2), num_blocks=2, dropout=0.0, augment=0.0, batch=128, lr_rampup=0.01),
        8,
        1,
        10,
    ),
    "cifar10": Preset(_options(cond=True), 32, 3, 10),
    "cifar10-ncsnpp": Preset(_options(cond=True, arch="ncsnpp"), 32, 3, 10),
    "ffhq": Preset(_options(cres=(1, 2, 2, 2), dropout=0.05, augment=0.15, batch=256), 64, 3, 0),
    "imagenet64": Preset(_options(cond=True, arch="adm", dropout=0.1, augment=0.0, batch=64), 64, 3, 1000),
}

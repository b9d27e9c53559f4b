"""Diffusion transformers that predict velocity, noise, score or clean data at one time, or one per element.

SiT (Ma et al. 2024, arXiv 2401.08740) and ComboStoc (Xie et al. 2024, arXiv 2405.13729). Their files count time from
noise (0) to data (1); here time runs from data to noise as everywhere in this project, so the trunk is told 1 - t and
its velocity changes sign. What else is predicted does not depend on the direction. `InterpolantNetwork` is of images
and latents, `PartNetwork` of sets of parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from networks.models.base import Model, make_trunk
from networks.trunks.part_transformer import PartTransformer
from networks.trunks.transformer import SIZES, Transformer
from torch_utils.misc import expand_to
from torch_utils.parts import PartLayout

TRUNKS: dict[str, type[nn.Module]] = {"Transformer": Transformer}


def transformer_config(name: str, img_resolution: int, img_channels: int, label_dim: int, **others: Any) -> dict:
    """Arguments for `networks.build` of a model by its published name, `SiT-XL/2`, `ComboStoc-B/4`, ...

    Raises:
        ValueError: a name that is not `{SiT|ComboStoc}-{S|B|L|XL}/{patch size}`.
    """
    family, _, rest = name.partition("-")
    size, _, patch = rest.partition("/")
    if family not in ("SiT", "ComboStoc") or size not in SIZES or not patch.isdigit():
        raise ValueError(
            f"'{name}' is no transformer: give SiT or ComboStoc, a size ({', '.join(SIZES)}) and a patch size, "
            "for example ComboStoc-S/4"
        )
    depth, width, num_heads = SIZES[size]
    return {
        "class_name": "InterpolantNetwork", "img_resolution": img_resolution, "img_channels": img_channels,
        "label_dim": label_dim, "element_times": family == "ComboStoc", "patch_size": int(patch), "width": width,
        "depth": depth, "num_heads": num_heads, **others,
    }  # fmt: skip


def part_config(name: str, num_parts: int, layout: PartLayout, label_dim: int, **others: Any) -> dict:
    """Arguments for `networks.build` of a set transformer by its size: `Set-S` is the published one.

    Raises:
        ValueError: a name that is not `Set-{S|B|L|XL}`.
    """
    family, _, size = name.partition("-")
    if family != "Set" or size not in SIZES:
        raise ValueError(f"'{name}' is no transformer of parts: give Set and a size ({', '.join(SIZES)}), as Set-S")
    depth, width, num_heads = SIZES[size]
    return {
        "class_name": "PartNetwork", "num_parts": num_parts, "groups": list(layout.groups),
        "mean": list(layout.mean), "std": list(layout.std), "label_dim": label_dim, "width": width, "depth": depth,
        "num_heads": num_heads, **others,
    }  # fmt: skip


class _InNativeTime(Model):
    """A trunk as a model in native time; what kinds of samples share."""

    def __init__(
        self, path: str, predicts: str, compensated: bool, label_dim: int, img_resolution: int | None = None,
        img_channels: int | None = None,
    ) -> None:  # fmt: skip
        if path not in ("linear", "trig", "vp"):
            raise ValueError(f"a transformer lives on the path linear, trig or vp, not on '{path}'")
        if predicts not in ("velocity", "noise", "score", "data"):
            raise ValueError(f"a transformer predicts velocity, noise, score or data, not '{predicts}'")
        super().__init__(img_resolution, img_channels, label_dim)
        self.path, self.predicts, self.compensated = path, predicts, compensated
        self.start = "exact" if path != "vp" and predicts in ("velocity", "data") else "scaled"

    @property
    def element_times(self) -> bool:
        """Elements of a sample may be at times of their own."""
        return self.model.element_times

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the trunk, block by block."""
        self.model.compile(*args, **kwargs)

    def forward(self, x: Tensor, t: Tensor | float, class_labels: Tensor | None = None, synchronous: int = 0) -> Tensor:
        """The quantity `predicts` at x_t, float32.

        Args:
            x: `[N, ...]`, images `[N, C, H, W]` or sets of parts `[N, L, V]`.
            t: time in [0, 1]: one value, `[N]`, or a map that broadcasts to x.
            class_labels: one-hot `[N, label_dim]`; ignored by an unconditional network.
            synchronous: how many of the last rows have one time for all tokens, see `TokenTransformer`.
        """
        level = expand_to(torch.as_tensor(t, device=x.device), x)
        time = (1 - level).to(torch.float32).reshape(*level.shape, *[1] * (x.ndim - level.ndim))
        if len(time) not in (1, len(x)):
            raise ValueError(f"times of shape {list(level.shape)} do not fit {len(x)} samples: give one, or one each")
        out = self.model(x.to(self.trunk_dtype(x)), time, class_labels, synchronous).to(torch.float32)
        return -out if self.predicts == "velocity" else out


class InterpolantNetwork(_InNativeTime):
    """A transformer as a model in native time, t = 0 at the data.

    Args:
        img_resolution, img_channels: of the data or latents, `[B, C, H, W]` with H = W = img_resolution.
        label_dim: classes; 0 = unconditional.
        path: "linear", "trig" (the papers' GVP) or "vp".
        predicts: "velocity", "noise", "score" or "data".
        compensated: velocities are trained to be larger for elements that lag behind; changes nothing here.
        model_type: key of TRUNKS; `model_kwargs` are its further arguments. With `element_times` it is told a time for
            every element (ComboStoc); else one per sample, to which maps are averaged (SiT).

    Attributes:
        path, predicts, start: how samplers read this model. start = "exact": the state at infinite sigma is known.

    Raises:
        ValueError: arguments that do not fit, in one sentence.
    """

    models = TRUNKS

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        path: str = "linear",
        predicts: str = "velocity",
        compensated: bool = False,
        model_type: str = "Transformer",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(path, predicts, compensated, label_dim, img_resolution, img_channels)
        self.model = make_trunk(
            TRUNKS, model_type, img_resolution, img_channels, img_channels, label_dim, **model_kwargs
        )


class PartNetwork(_InNativeTime):
    """A transformer over sets of parts as a model in native time, t = 0 at the data.

    Args:
        num_parts: L, the most parts of a shape.
        groups: numbers of a part: existence, box, codes.
        mean, std: `[V]` the units of the data, see `PartLayout`.
        label_dim, path, predicts, compensated: as of `InterpolantNetwork`.
        model_kwargs: further arguments of `PartTransformer`.

    Attributes:
        layout: groups and units.
        sample_shape: (L, V).

    Raises:
        ValueError: arguments that do not fit, in one sentence.
    """

    models: ClassVar = {"PartTransformer": PartTransformer}

    def __init__(
        self,
        num_parts: int,
        groups: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        label_dim: int = 0,
        path: str = "linear",
        predicts: str = "data",
        compensated: bool = False,
        model_type: str = "PartTransformer",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(path, predicts, compensated, label_dim)
        self.layout = PartLayout(tuple(groups), tuple(mean), tuple(std))
        self.sample_shape = (num_parts, self.layout.size)
        self.model = make_trunk(self.models, model_type, num_parts, groups, label_dim, **model_kwargs)

    def decode(self, x: Tensor) -> Tensor:
        """Samples `[B, L, V]` -> parts in the units of the data."""
        return self.layout.decode(x)

"""Projected discriminator: random projections of the features of frozen backbones, judged by small trained heads.

Sauer et al. 2021 (Projected GANs, arXiv 2111.01007) and 2022 (StyleGAN-XL, arXiv 2202.00273), in the form that MAC
(Lee et al. 2024, arXiv 2404.14161) uses for its trajectory optimisation. Per backbone: augment with fresh draws,
backbone, cross-channel mixing (CCM, 1x1 convolutions), cross-scale mixing (CSM, from coarse to fine), one head a map.

Only the heads learn. Backbones and projections keep `requires_grad` False and eval mode whatever the module is told;
heads run in train mode, also in generator steps: batch statistics, and one power iteration per forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from networks.adversary.backbones import Backbone, build_backbone
from torch_utils.rng import TorchRNG

EMBEDDING_DIM = 320  # the reference starts from pooled features of tf_efficientnet_lite0
PROJECTED_LABEL_DIM = 64
PROJECTIONS = (0, 1, 2)


class ProjectedDiscriminator(nn.Module):
    """`disc(images, class_labels, rng) -> [logits of backbone 0, ...]`, each `[B, L]`.

    Args:
        backbones: names (`networks.adversary.backbones.BACKBONES`, with published weights) or modules, in order of
        evaluation.
        img_resolution, img_channels: of the images.
        label_dim: classes; 0 = unconditional.
        augment: `(images, rng) -> images`, called once per backbone; None = none. `training.diffaugment.diff_augment`.
        cout: channels of the finest projected map.
        expand: double the channels with every coarser map.
        proj_type: 0 = no projection, 1 = CCM, 2 = CCM and CSM.
        num_discs: heads, on the finest maps; at most one a map.
        embedding_rows: rows of the class table, None = label_dim.
        embedding_dim: columns of the class table.
    """

    def __init__(
        self,
        backbones: Sequence[str | Backbone],
        *,
        img_resolution: int,
        img_channels: int = 3,
        label_dim: int = 0,
        augment: Callable[[Tensor, TorchRNG | None], Tensor] | None = None,
        cout: int = 64,
        expand: bool = True,
        proj_type: int = 2,
        num_discs: int = 4,
        embedding_rows: int | None = None,
        embedding_dim: int = EMBEDDING_DIM,
    ) -> None:
        super().__init__()
        if not backbones:
            raise ValueError("a discriminator needs at least one backbone: name one, for example light")
        if embedding_rows is not None and embedding_rows < label_dim:
            raise ValueError(f"{label_dim} classes need a table of at least as many rows, got {embedding_rows}")
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.label_dim = label_dim
        self.augment = augment
        self.feature_networks = nn.ModuleDict()
        self.discriminators = nn.ModuleDict()
        rows = (embedding_rows or label_dim) if label_dim else 0
        for item in backbones:
            backbone = item
            if isinstance(item, str):
                backbone = build_backbone(item, img_resolution=img_resolution, img_channels=img_channels)
            if backbone.name in self.feature_networks:
                raise ValueError(f"the backbone {backbone.name} is given twice: name each once")
            features = FeatureNetwork(backbone, cout=cout, expand=expand, proj_type=proj_type)
            n = min(num_discs, len(features.channels))
            self.feature_networks[backbone.name] = features
            self.discriminators[backbone.name] = MultiScaleHeads(
                features.channels[:n], features.nominal_resolutions[:n], rows, embedding_dim
            )

    def forward(self, images: Tensor, class_labels: Tensor | None = None, rng: TorchRNG | None = None) -> list[Tensor]:
        """Judge images.

        Args:
            images: `[B, img_channels, img_resolution, img_resolution]` in [-1, 1].
            class_labels: one-hot `[B, label_dim]`; not read by an unconditional discriminator.
            rng: source of the draws of `augment`.

        Raises:
            ValueError: images or labels of another shape.
        """
        expected = (self.img_channels, self.img_resolution, self.img_resolution)
        if images.ndim != 4 or not len(images) or images.shape[1:] != expected:
            raise ValueError(
                f"the discriminator takes one or more images of shape {list(expected)}, got {list(images.shape)}"
            )
        if self.label_dim and (class_labels is None or class_labels.shape != (len(images), self.label_dim)):
            got = "none" if class_labels is None else f"labels of shape {list(class_labels.shape)}"
            raise ValueError(
                f"the discriminator needs one-hot labels of shape {[len(images), self.label_dim]}, got {got}"
            )
        logits = []
        for name, features in self.feature_networks.items():
            seen = images if self.augment is None else self.augment(images, rng)
            logits.append(self.discriminators[name](features(seen), class_labels))
        return logits

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Switch the gradients of the heads; those of the frozen parts stay off."""
        self.discriminators.requires_grad_(requires_grad)
        return self


class FeatureNetwork(nn.Module):
    """A frozen backbone and its frozen random projection. Attributes: `channels`, `nominal_resolutions` per map."""

    def __init__(self, backbone: Backbone, *, cout: int, expand: bool, proj_type: int) -> None:
        super().__init__()
        self.pretrained = backbone
        self.scratch = Projector(backbone.channels, cout, expand=expand, proj_type=proj_type)
        self.channels = self.scratch.channels
        sizes = backbone.map_sizes
        if proj_type == 2:  # every map doubles to the side of the next finer one
            sizes = [2 * sizes[0], *sizes[:-1]]
        self.nominal_resolutions = [1 << (size - 1).bit_length() for size in sizes]
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.scratch(self.pretrained(images))


class Projector(nn.Module):
    """Random mixing of feature maps across channels (CCM) and scales (CSM); attribute `channels`: of its results."""

    def __init__(self, in_channels: Sequence[int], cout: int, *, expand: bool = True, proj_type: int = 2) -> None:
        super().__init__()
        if proj_type not in PROJECTIONS:
            raise ValueError(
                f"there is no projection of type {proj_type}: use 0 (none), 1 (channels) or 2 (scales too)"
            )
        self.proj_type = proj_type
        self.maps = len(in_channels)
        mixed = [cout << i if expand else cout for i in range(self.maps)]
        results = [cout, *mixed[:-1]]  # a map becomes as wide as the finer one it is added to
        self.channels = [list(in_channels), mixed, results][proj_type]
        if proj_type >= 1:
            for i, (a, b) in enumerate(zip(in_channels, mixed, strict=True)):
                self.add_module(f"layer{i}_ccm", nn.Conv2d(a, b, 1))
        if proj_type == 2:
            for i in reversed(range(self.maps)):
                self.add_module(f"layer{i}_csm", nn.ModuleDict({"out_conv": nn.Conv2d(mixed[i], results[i], 1)}))

    def mix_channels(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [self.get_submodule(f"layer{i}_ccm")(x) for i, x in enumerate(features)]

    def mix_scales(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Mix from the coarsest map on: add what came before, double the side, 1x1 convolution; finest first."""
        results: list[Tensor] = []
        for i in reversed(range(self.maps)):
            x = maps[i] + results[-1] if results else maps[i]
            h, w = maps[i - 1].shape[2:] if i else (2 * side for side in x.shape[2:])
            x = F.interpolate(x, size=(h, w), mode="bilinear", align_corners=True)
            results.append(self.get_submodule(f"layer{i}_csm.out_conv")(x))
        return results[::-1]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        if self.proj_type == 0:
            return list(features)
        maps = self.mix_channels(features)
        return maps if self.proj_type == 1 else self.mix_scales(maps)


class MultiScaleHeads(nn.Module):
    """One head a map; logits of all heads side by side.

    Args:
        channels, nominal_resolutions: of the maps; the nominal side, a power of two, sets depth and widths of a head.
        embedding_rows: rows of the class table, 0 = unconditional.
    """

    def __init__(
        self, channels: Sequence[int], nominal_resolutions: Sequence[int], embedding_rows: int, embedding_dim: int
    ) -> None:
        super().__init__()
        heads = [
            Head(c, size, embedding_rows, embedding_dim) for c, size in zip(channels, nominal_resolutions, strict=True)
        ]
        self.mini_discs = nn.ModuleDict({str(i): head for i, head in enumerate(heads)})

    def forward(self, features: Sequence[Tensor], class_labels: Tensor | None = None) -> Tensor:
        """Maps, finest first (further ones are not used), and one-hot labels to `[B, L]`."""
        heads = self.mini_discs.values()
        maps = features[: len(self.mini_discs)]
        return torch.cat([head(x, class_labels).flatten(1) for head, x in zip(heads, maps, strict=True)], dim=1)


class Head(nn.Module):
    """Halve the map until its nominal side is 8, then a valid 4x4 convolution to the logits."""

    def __init__(self, channels: int, nominal_resolution: int, embedding_rows: int, embedding_dim: int) -> None:
        super().__init__()
        sizes = [nominal_resolution >> i for i in range(max(nominal_resolution.bit_length() - 3, 1))]
        widths = [channels, *(max(64, min(512, 4096 // size)) for size in sizes[1:])]
        blocks: list[nn.Module] = [DownBlock(a, b) for a, b in pairwise(widths)]
        self.conditional = embedding_rows > 0
        last = SpectralConv2d(widths[-1], PROJECTED_LABEL_DIM if self.conditional else 1, 4, bias=False)
        if self.conditional:
            self.main = nn.Sequential(*blocks)
            self.cls = last
            self.embed = nn.Embedding(embedding_rows, embedding_dim)
            self.embed_proj = nn.Linear(embedding_dim, PROJECTED_LABEL_DIM)
            nn.init.normal_(self.embed_proj.weight)
            nn.init.zeros_(self.embed_proj.bias)
        else:
            self.main = nn.Sequential(*blocks, last)

    def forward(self, x: Tensor, class_labels: Tensor | None) -> Tensor:
        """`[B, C, H, W]` to logits `[B, 1, h, w]`; conditional: inner product with the projected class."""
        x = self.main(x)
        if not self.conditional:
            return x
        x = self.cls(x)
        rows = self.embed(class_labels.argmax(dim=1))
        weight = self.embed_proj.weight * self.embed_proj.in_features**-0.5
        e = F.leaky_relu(F.linear(rows, weight, self.embed_proj.bias), 0.2) * 2**0.5
        return (x * e[:, :, None, None]).sum(dim=1, keepdim=True) * PROJECTED_LABEL_DIM**-0.5


class DownBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            SpectralConv2d(in_channels, out_channels, 4, stride=2, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.LeakyReLU(0.2, inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x)


class SpectralConv2d(nn.Module):
    """Convolution whose weight, as a matrix, is divided by an estimate of its largest singular value.

    Miyato et al. 2018, arXiv 1802.05957: one power iteration per forward in train mode, from vectors u and v kept in
    the state dict under the classic names `weight_orig`, `weight_u`, `weight_v`.
    """

    weight_u: Tensor
    weight_v: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, padding: int = 0, bias: bool = True
    ) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        start = nn.Conv2d(in_channels, out_channels, kernel, bias=bias)  # for its initialisation
        self.bias = start.bias
        self.weight_orig = start.weight
        self.register_buffer("weight_u", F.normalize(torch.randn(out_channels), dim=0, eps=1e-12))
        self.register_buffer("weight_v", F.normalize(torch.randn(start.weight[0].numel()), dim=0, eps=1e-12))

    def weight(self) -> Tensor:
        """The normalised weight; advances u and v in train mode."""
        matrix = self.weight_orig.flatten(1)
        if self.training:
            with torch.no_grad():
                self.weight_v.copy_(F.normalize(matrix.T @ self.weight_u, dim=0, eps=1e-12))
                self.weight_u.copy_(F.normalize(matrix @ self.weight_v, dim=0, eps=1e-12))
        # Copies: a second forward before the backward of this one changes the buffers.
        sigma = self.weight_u.clone() @ (matrix @ self.weight_v.clone())
        return self.weight_orig / sigma

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight(), self.bias, self.stride, self.padding)

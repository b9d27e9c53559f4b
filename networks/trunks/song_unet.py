"""SongUNet: the DDPM++ and NCSN++ networks of Song et al. 2021 (arXiv 2011.13456) as set up by Karras et al. 2022
(arXiv 2206.00364, appendix F).

DDPM++ is the default; NCSN++ is embedding_type="fourier", channel_mult_noise=2, encoder_type="residual",
resample_filter=[1, 3, 3, 1]. The network sees a scaled image and a noise label and returns an image-shaped tensor; what
these mean is the preconditioner's affair (networks/models/precond.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.trunks.layers import Conv2d, FourierEmbedding, GroupNorm, Init, Linear, PositionalEmbedding
from networks.trunks.unet_block import UNetBlock, condition_labels, level_resolutions

_INIT = Init("xavier_uniform")
_INIT_ZERO = Init("xavier_uniform", weight=1e-5)  # nearly zero, not zero
_INIT_ATTN = Init("xavier_uniform", weight=math.sqrt(0.2))
_EPS = 1e-6


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} '{value}' is unknown: choose one of {', '.join(choices)}")


class SongUNet(nn.Module):
    """U-Net with one attention head and additive noise embedding.

    Args:
        img_resolution: pixels along one side at the top level; must be divisible by 2^(len(channel_mult) - 1).
        in_channels, out_channels: image channels.
        label_dim: width of the one-hot class labels; 0: unconditional.
        augment_dim: width of the augmentation labels; 0: none.
        model_channels: base width; level i has model_channels * channel_mult[i] channels.
        channel_mult_emb, channel_mult_noise: width of the embedding and of the noise features, in model_channels.
        num_blocks: residual blocks per resolution.
        attn_resolutions: resolutions with attention; the bottleneck always has it.
        dropout: probability inside the blocks.
        label_dropout: probability of dropping a sample's label in training, for classifier-free guidance.
        embedding_type: "positional" or "fourier".
        encoder_type: "standard", "skip" or "residual"; decoder_type: "standard" or "skip".
        resample_filter: separable filter of even length.

    Raises:
        ValueError: choices or sizes that do not fit, in one sentence.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        _check_choice("embedding_type", embedding_type, ("positional", "fourier"))
        _check_choice("encoder_type", encoder_type, ("standard", "skip", "residual"))
        _check_choice("decoder_type", decoder_type, ("standard", "skip"))
        if len(resample_filter) % 2:
            raise ValueError(f"resample_filter has {len(resample_filter)} taps: give an even number, such as 1,3,3,1")
        super().__init__()
        self.label_dim, self.label_dropout = label_dim, label_dropout
        emb_channels = model_channels * channel_mult_emb
        noise_channels = model_channels * channel_mult_noise
        levels = [
            (f"{res}x{res}", model_channels * mult, res in attn_resolutions)
            for res, mult in zip(level_resolutions(img_resolution, len(channel_mult)), channel_mult, strict=True)
        ]
        last = len(levels) - 1
        conv3 = partial(Conv2d, kernel=3, init=_INIT)
        resize = partial(Conv2d, kernel=0, resample_filter=resample_filter)
        block = partial(
            UNetBlock,
            emb_channels=emb_channels,
            num_heads=1,
            dropout=dropout,
            skip_scale=math.sqrt(0.5),
            eps=_EPS,
            resample_filter=resample_filter,
            resample_proj=True,
            adaptive_scale=False,
            init=_INIT,
            init_zero=_INIT_ZERO,
            init_attn=_INIT_ATTN,
        )

        if embedding_type == "positional":
            self.map_noise = PositionalEmbedding(noise_channels, endpoint=True)
        else:
            self.map_noise = FourierEmbedding(noise_channels)
        self.map_label = Linear(label_dim, noise_channels, init=_INIT) if label_dim else None
        self.map_augment = Linear(augment_dim, noise_channels, bias=False, init=_INIT) if augment_dim else None
        self.map_layer0 = Linear(noise_channels, emb_channels, init=_INIT)
        self.map_layer1 = Linear(emb_channels, emb_channels, init=_INIT)

        self.enc = nn.ModuleDict()
        skips: list[int] = []  # channels of every encoder output that the decoder takes up again
        channels, aux_channels = model_channels, in_channels
        for i, (name, wide, attention) in enumerate(levels):
            if i == 0:
                self.enc[f"{name}_conv"] = conv3(in_channels, channels)
            else:
                self.enc[f"{name}_down"] = block(channels, channels, down=True)
                if encoder_type == "skip":
                    self.enc[f"{name}_aux_down"] = resize(aux_channels, aux_channels, down=True)
                    self.enc[f"{name}_aux_skip"] = Conv2d(aux_channels, channels, kernel=1, init=_INIT)
                elif encoder_type == "residual":
                    self.enc[f"{name}_aux_residual"] = conv3(
                        aux_channels, channels, down=True, resample_filter=resample_filter, fused_resample=True
                    )
                    aux_channels = channels
            skips.append(channels)
            for j in range(num_blocks):
                self.enc[f"{name}_block{j}"] = block(channels, wide, attention=attention)
                channels = wide
                skips.append(channels)

        self.dec = nn.ModuleDict()
        for i, (name, wide, attention) in reversed(list(enumerate(levels))):
            if i == last:
                self.dec[f"{name}_in0"] = block(channels, channels, attention=True)
                self.dec[f"{name}_in1"] = block(channels, channels)
            else:
                self.dec[f"{name}_up"] = block(channels, channels, up=True)
            for j in range(num_blocks + 1):
                self.dec[f"{name}_block{j}"] = block(
                    channels + skips.pop(), wide, attention=attention and j == num_blocks
                )
                channels = wide
            if decoder_type == "skip" and i != last:
                self.dec[f"{name}_aux_up"] = resize(out_channels, out_channels, up=True)
            if decoder_type == "skip" or i == 0:
                self.dec[f"{name}_aux_norm"] = GroupNorm(channels, eps=_EPS)
                self.dec[f"{name}_aux_conv"] = Conv2d(channels, out_channels, kernel=3, init=_INIT_ZERO)

    def embed(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        """Embedding of noise level and labels, `[N or 1, emb_channels]`; `x` supplies batch size and device only."""
        emb = self.map_noise(noise_labels)
        emb = emb.unflatten(1, (2, -1)).flip(1).flatten(1)  # [cos, sin] -> [sin, cos], the order of the checkpoints
        if self.map_label is not None:
            labels = condition_labels(class_labels, x, self.label_dim, self.label_dropout, self.training)
            emb = emb + self.map_label(labels * math.sqrt(self.label_dim))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels.to(emb.dtype))
        emb = F.silu(self.map_layer0(emb))
        return F.silu(self.map_layer1(emb))

    def forward(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """[N, in_channels, H, W], [N or 1], [N or 1, label_dim], [N, augment_dim] -> [N, out_channels, H, W]."""
        emb = self.embed(x, noise_labels, class_labels, augment_labels)

        skips: list[Tensor] = []
        aux = x
        for name, layer in self.enc.items():
            if name.endswith("aux_down"):
                aux = layer(aux)
            elif name.endswith("aux_skip"):
                x = skips[-1] = x + layer(aux)
            elif name.endswith("aux_residual"):
                x = skips[-1] = aux = (x + layer(aux)) / math.sqrt(2)
            else:
                x = layer(x, emb) if isinstance(layer, UNetBlock) else layer(x)
                skips.append(x)

        out = normed = None
        for name, layer in self.dec.items():
            if name.endswith("aux_up"):
                out = layer(out)
            elif name.endswith("aux_norm"):
                normed = layer(x)
            elif name.endswith("aux_conv"):
                image = layer(F.silu(normed))
                out = image if out is None else image + out
            else:
                if x.shape[1] != layer.in_channels:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = layer(x, emb)
        return out

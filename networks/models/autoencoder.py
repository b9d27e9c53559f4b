"""Autoencoders between images and latents: with a codebook (VQ) or with Gaussian moments (KL).

Esser et al. 2021 (arXiv 2012.09841), Rombach et al. 2022 (arXiv 2112.10752). State-dict keys are those of the published
latent diffusion checkpoints. Diffusion works on what `encode` gives: of VQ the latents before the codebook, which
`decode` then looks up; of KL a draw from the moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.trunks.layers import TORCH_INIT, Conv2d, GroupNorm
from torch_utils.dropout import Dropout


class _Autoencoder(nn.Module):
    """Encoder and decoder with a 1x1 convolution on either side of the latents.

    Args:
        embed_dim: channels of the latents.
        z_channels: channels between the convolutions and the encoder and decoder.
        resolution: of the images, by which `attn_resolutions` counts.
        in_channels, out_ch: of the images.
        ch: base width; level i has ch * ch_mult[i] channels.
        num_res_blocks: blocks per level of the encoder; the decoder has one more.
        double_z: the encoder gives twice as many channels (moments).
        dropout: probability inside the blocks.
    """

    def __init__(
        self,
        embed_dim: int,
        z_channels: int,
        resolution: int,
        in_channels: int,
        out_ch: int,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int] = (),
        double_z: bool = False,
        dropout: float = 0,
    ) -> None:
        super().__init__()
        self.embed_dim, self.channels, self.factor = embed_dim, out_ch, 2 ** (len(ch_mult) - 1)
        moments = 1 + double_z
        shape = (ch, tuple(ch_mult), num_res_blocks, tuple(attn_resolutions), dropout, resolution)
        self.encoder = _Encoder(in_channels, z_channels * moments, *shape)
        self.decoder = _Decoder(z_channels, out_ch, *shape)
        self._add_codebook()
        self.quant_conv = Conv2d(z_channels * moments, embed_dim * moments, kernel=1, init=TORCH_INIT)
        self.post_quant_conv = Conv2d(embed_dim, z_channels, kernel=1, init=TORCH_INIT)

    def _add_codebook(self) -> None:
        """Nothing between the convolutions; a codebook in VQ."""

    def _decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))


class VQAutoencoder(_Autoencoder):
    """Latents that are looked up in a codebook. Key of the codebook: quantize.embedding.weight [n_embed, embed_dim]."""

    def __init__(self, embed_dim: int, n_embed: int, *args: Any, **kwargs: Any) -> None:
        self.n_embed = n_embed
        super().__init__(embed_dim, *args, **kwargs)

    def _add_codebook(self) -> None:
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(self.n_embed, self.embed_dim)

    def encode(self, image: Tensor) -> Tensor:
        """Images in [-1, 1] `[N, C, H, W]` -> latents before the codebook `[N, embed_dim, H / f, W / f]`."""
        return self.quant_conv(self.encoder(image))

    def codes(self, z: Tensor) -> Tensor:
        """Index of the nearest entry of the codebook, the first of equally near ones: `[N, H, W]`."""
        book = self.quantize.embedding.weight.to(torch.float32)
        rows = z.movedim(1, -1).reshape(-1, self.embed_dim).to(torch.float32)
        # in parts: the distances of one 64x64 latent to 8192 entries are 134 MB
        parts = [(book.square().sum(1) - 2 * part @ book.T).argmin(1) for part in rows.split(4096)]
        return torch.cat(parts).reshape(z.shape[0], *z.shape[2:])

    def decode(self, z: Tensor, quantize: bool = True) -> Tensor:
        """Latents `[N, embed_dim, h, w]` -> images, about in [-1, 1] and not clamped.

        Args:
            quantize: replace each latent by the nearest entry of the codebook, as in training.
        """
        if quantize:
            z = F.embedding(self.codes(z), self.quantize.embedding.weight).movedim(-1, 1).to(z.dtype)
        return self._decode(z)


class KLAutoencoder(_Autoencoder):
    """Latents with a mean and a deviation per element."""

    def __init__(self, *args: Any, double_z: bool = True, **kwargs: Any) -> None:
        if not double_z:
            raise ValueError("an autoencoder with moments has double_z: its encoder gives mean and log variance")
        super().__init__(*args, double_z=double_z, **kwargs)

    def moments(self, image: Tensor) -> Tensor:
        """Images in [-1, 1] `[N, C, H, W]` -> mean and log variance `[N, 2 embed_dim, H / f, W / f]`."""
        return self.quant_conv(self.encoder(image))

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents `[N, embed_dim, H / f, W / f]`: the mean, or with unit noise of their shape a draw."""
        mean, std = mean_and_std(self.moments(image))
        return mean if noise is None else mean + std * noise

    def decode(self, z: Tensor) -> Tensor:
        """Latents `[N, embed_dim, h, w]` -> images, about in [-1, 1] and not clamped."""
        return self._decode(z)


def mean_and_std(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation out of `[N, 2 C, ...]`; the log variance is clamped to [-30, 20]."""
    mean, logvar = moments.chunk(2, dim=1)
    return mean, (logvar.clamp(-30, 20) / 2).exp()


AUTOENCODERS: dict[str, type[_Autoencoder]] = {"VQAutoencoder": VQAutoencoder, "KLAutoencoder": KLAutoencoder}


def build_autoencoder(class_name: str, **kwargs: object) -> _Autoencoder:
    """An autoencoder of AUTOENCODERS; ValueError for an unknown name."""
    if class_name not in AUTOENCODERS:
        raise ValueError(f"there is no autoencoder '{class_name}': choose from {', '.join(AUTOENCODERS)}")
    return AUTOENCODERS[class_name](**kwargs)


def decode_latents(net: Any, latent: Tensor) -> Tensor:
    """Latents `[B, C, h, w]` of a model with an autoencoder -> images in about [-1, 1], float32, not clamped."""
    dtype = torch.float32 if net.compute_dtype == torch.float16 else net.compute_dtype  # float16 may overflow
    return net.first_stage.decode((latent.float() / net.scale_factor).to(dtype)).float()


def encode_latents(net: Any, image: Tensor, noise: Tensor | None = None) -> Tensor:
    """Images `[B, 3, H, W]` in [-1, 1] -> latents in the scale of diffusion; `noise` draws from moments."""
    first = net.first_stage
    latent = first.encode(image, noise) if isinstance(first, KLAutoencoder) else first.encode(image)
    return latent * net.scale_factor


def _norm(channels: int) -> GroupNorm:
    return GroupNorm(channels, 32, min_channels_per_group=1, eps=1e-6)


def _conv(cin: int, cout: int, kernel: int = 3) -> Conv2d:
    return Conv2d(cin, cout, kernel=kernel, init=TORCH_INIT)


class _Block(nn.Module):
    """Keys: norm1, conv1, norm2, conv2, nin_shortcut where the channels change."""

    def __init__(self, cin: int, cout: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(cin), _conv(cin, cout)
        self.norm2, self.conv2 = _norm(cout), _conv(cout, cout)
        self.dropout = Dropout(dropout)
        self.nin_shortcut = _conv(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.nin_shortcut(x) + h


class _Attention(nn.Module):
    """One head over all pixels. Keys: norm, q, k, v, proj_out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (_conv(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2)[:, None] for f in (self.q, self.k, self.v))  # [N, 1, L, C]
        h = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.proj_out(h)


class _Down(nn.Module):
    """Half the size; padded on the right and below alone. Key: conv."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.conv.weight.to(x.dtype), self.conv.bias.to(x.dtype)
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias, stride=2)


class _Up(nn.Module):
    """Twice the size. Key: conv."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class _Level(nn.Module):
    """Keys: block.j, attn.j, and downsample or upsample."""

    def __init__(self, cin: int, cout: int, blocks: int, attends: bool, dropout: float) -> None:
        super().__init__()
        self.block = nn.ModuleList(_Block(cout if j else cin, cout, dropout) for j in range(blocks))
        self.attn = nn.ModuleList(_Attention(cout) for _ in range(blocks if attends else 0))

    def forward(self, x: Tensor) -> Tensor:
        for j, block in enumerate(self.block):
            x = block(x)
            x = self.attn[j](x) if self.attn else x
        return x


class _Middle(nn.Module):
    """Keys: block_1, attn_1, block_2."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = _Block(channels, channels, dropout)
        self.attn_1 = _Attention(channels)
        self.block_2 = _Block(channels, channels, dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class _Encoder(nn.Module):
    """Keys: conv_in, down.i, mid, norm_out, conv_out."""

    def __init__(
        self, cin: int, cout: int, ch: int, mult: Sequence[int], blocks: int, attn: Sequence[int], dropout: float,
        resolution: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv_in = _conv(cin, ch)
        widths = [ch, *(ch * m for m in mult)]
        self.down = nn.ModuleList()
        for i in range(len(mult)):
            level = _Level(widths[i], widths[i + 1], blocks, resolution >> i in attn, dropout)
            if i < len(mult) - 1:
                level.downsample = _Down(widths[i + 1])
            self.down.append(level)
        self.mid = _Middle(widths[-1], dropout)
        self.norm_out, self.conv_out = _norm(widths[-1]), _conv(widths[-1], cout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
            x = level.downsample(x) if hasattr(level, "downsample") else x
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class _Decoder(nn.Module):
    """Keys: conv_in, mid, up.i (0 is the full resolution), norm_out, conv_out."""

    def __init__(
        self, cin: int, cout: int, ch: int, mult: Sequence[int], blocks: int, attn: Sequence[int], dropout: float,
        resolution: int,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = [*(ch * m for m in mult), ch * mult[-1]]
        self.conv_in = _conv(cin, widths[-1])
        self.mid = _Middle(widths[-1], dropout)
        self.up = nn.ModuleList()
        for i in range(len(mult)):
            level = _Level(widths[i + 1], widths[i], blocks + 1, resolution >> i in attn, dropout)
            if i:
                level.upsample = _Up(widths[i])
            self.up.append(level)
        self.norm_out, self.conv_out = _norm(widths[0]), _conv(widths[0], cout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
            x = level.upsample(x) if hasattr(level, "upsample") else x
        return self.conv_out(F.silu(self.norm_out(x)))

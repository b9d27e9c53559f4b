"""Diffusion transformers whose blocks are modulated by the time: DiT, SiT and ComboStoc, with their published keys.

    tokens = patches(x) + positions, then the blocks of `networks/trunks/tokens.py`

- `TimeEmbedder` (Peebles and Xie 2023, arXiv 2212.09748; Ma et al. 2024, arXiv 2401.08740): one time a sample, so that
  c = time + label is one vector a sample.
- `ElementTimeEmbedder` (Xie et al. 2024, arXiv 2405.13729): every element has a time of its own, coded by 4 numbers
  that a patch embedding of their own turns into one vector a token. Times that do not vary over space give every token
  the same vector: then it is worked out once a sample, by the patch kernel summed over its taps, and the modulation of
  every block, a third of all arithmetic, is a map of one vector a sample. Both ways agree to rounding.

N batch, C channels, D width, T tokens, p patch size; D/2 of the positions tell the column, the others the row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.trunks.tokens import CODE, XAVIER, ElementCode, TimeEmbedder, TokenTransformer

__all__ = ["SIZES", "ElementTimeEmbedder", "Transformer", "position_table"]

# size of a published model -> depth, width, heads
SIZES: dict[str, tuple[int, int, int]] = {
    "S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16),
}  # fmt: skip


def position_table(dim: int, grid: int) -> Tensor:
    """Positions of a square grid, row by row: `[grid^2, dim]` float32, sine and cosine of the column, then of the row.

    Raises:
        ValueError: a width that is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"positions in the plane need a width that is a multiple of 4, not {dim}")
    omega = 10_000.0 ** (-torch.arange(dim // 4, dtype=torch.float64, device="cpu") / (dim // 4))
    phase = torch.arange(grid, dtype=torch.float64, device="cpu")[:, None] * omega
    axis = torch.cat([phase.sin(), phase.cos()], dim=1)  # [grid, dim / 2]
    column, row = axis.repeat(grid, 1), axis.repeat_interleave(grid, 0)
    return torch.cat([column, row], dim=1).to(torch.float32)


class _Patches(nn.Module):
    """A linear map of every p x p patch: `[N, in_channels, H, W]` -> `[N, T, D]`. Keys: proj.{weight, bias}."""

    def __init__(self, patch_size: int, in_channels: int, width: int) -> None:
        super().__init__()
        fan_in = in_channels * patch_size**2
        self.proj = nn.Module()
        weight = XAVIER.draw((width, in_channels, patch_size, patch_size), fan_in, width)
        self.proj.weight, self.proj.bias = nn.Parameter(weight), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.proj.weight.to(x.dtype), self.proj.bias.to(x.dtype)
        return F.conv2d(x, weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)


class ElementTimeEmbedder(nn.Module):
    """A time for every element -> one vector a token. Keys: mlp.{0, 2}.{weight, bias}, patchEmb.proj.{weight, bias}.

    Args:
        patch_size, in_channels, width: of the transformer.
    """

    def __init__(self, patch_size: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.mlp = ElementCode()
        self.patchEmb = _Patches(patch_size, CODE * in_channels, width)

    def forward(self, t: Tensor) -> Tensor:
        """Times `[N or 1, C or 1, H or 1, W or 1]`, H and W both or neither -> `[N or 1, T or 1, D]`.

        What is shared between elements is embedded once.
        """
        code = self.mlp(t)  # [N, C, H, W, code]
        weight, bias = self.patchEmb.proj.weight.to(code.dtype), self.patchEmb.proj.bias.to(code.dtype)
        weight = weight.unflatten(1, (self.in_channels, CODE))  # [D, C, code, p, p]
        if t.shape[1] == 1:
            weight = weight.sum(1, keepdim=True)
        if t.shape[2:] == (1, 1):
            return torch.einsum("nck,dck->nd", code[:, :, 0, 0], weight.sum((3, 4)))[:, None] + bias
        code = code.permute(0, 1, 4, 2, 3).flatten(1, 2)
        return F.conv2d(code, weight.flatten(1, 2), bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)


class Transformer(TokenTransformer):
    """A transformer over the patches of images or latents, with the keys of the published DiT, SiT and ComboStoc files.

    Args:
        img_resolution, in_channels, out_channels: of the data.
        label_dim: classes; 0 = no label embedding.
        label_dropout: share of the labels left out in training; above 0 the table has a row for no label.
        element_times: every element has a time of its own (ComboStoc); else one a sample (DiT, SiT).
        patch_size: side of a patch; divides img_resolution.
        width, depth, num_heads, mlp_ratio: D, blocks, heads, hidden width of the MLPs in units of D.
        learn_sigma: twice the output channels, as published files have them; the second half is not used.

    Attributes:
        checkpointing: recompute the blocks in the backward pass: less memory, a third more arithmetic.

    Raises:
        ValueError: sizes that do not divide each other.
    """

    pos_embed: Tensor

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        label_dropout: float = 0.1,
        element_times: bool = True,
        patch_size: int = 2,
        width: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        learn_sigma: bool = False,
    ) -> None:
        if patch_size < 1 or img_resolution % patch_size:
            raise ValueError(
                f"patches of {patch_size}x{patch_size} do not tile {img_resolution}x{img_resolution}: "
                "choose a patch size that divides the resolution"
            )
        x_embedder = _Patches(patch_size, in_channels, width)
        embedder = ElementTimeEmbedder(patch_size, in_channels, width) if element_times else TimeEmbedder(width)
        outputs = patch_size**2 * out_channels * (1 + learn_sigma)
        super().__init__(embedder, (2, 3), outputs, label_dim, label_dropout, width, depth, num_heads, mlp_ratio)
        self.patch_size, self.out_channels, self.element_times = patch_size, out_channels, element_times
        self.grid = img_resolution // patch_size
        self.x_embedder = x_embedder
        self.register_buffer("pos_embed", position_table(width, self.grid)[None])  # never trained

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None, synchronous: int = 0) -> Tensor:
        """`x [N, in_channels, H, W]` -> `[N, out_channels, H, W]`.

        Args:
            t: times `[N or 1, C or 1, H or 1, W or 1]` float32, as the file's training had them.
            labels: one-hot `[N or 1, label_dim]` or None.
            synchronous: how many of the last rows have times that do not vary over space. It changes the cost, not the
                result: that could only be seen in `t` itself by waiting for the device.
        """
        n = len(x)
        if self.varies(t):
            t = t.expand(-1, -1, *x.shape[2:])
        c = self.condition(t, labels, x, synchronous)
        out = self.through_blocks(self.x_embedder(x) + self.pos_embed.to(x.dtype), c)
        p, g = self.patch_size, self.grid
        out = out.reshape(n, g, g, p, p, -1)[..., : self.out_channels]
        return out.permute(0, 5, 1, 3, 2, 4).reshape(n, self.out_channels, g * p, g * p)

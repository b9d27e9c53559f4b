"""ADMUNet: the guided-diffusion network of Dhariwal and Nichol 2021 (arXiv 2105.05233) with its own state-dict keys.

DhariwalUNet is the same idea in the layout of EDM. Here the keys are those of checkpoints outside of EDM
(`input_blocks`, `middle_block`, `output_blocks`, `time_embed`, `label_emb`, `out`): guided diffusion, consistency
models, and with transformers in the place of attention latent diffusion (Rombach et al. 2022, arXiv 2112.10752). The
time enters as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.trunks.adm_blocks import Blocks, Stage, norm, time_mlp, widths_of
from networks.trunks.layers import ZERO_INIT, Conv2d, PositionalEmbedding


class ADMUNet(nn.Module):
    """U-Net with 32-group norms and multi-head attention on flattened pixels.

    Args:
        img_resolution: pixels along one side; a multiple of 2^(len(channel_mult) - 1).
        in_channels, out_channels: image channels.
        model_channels: base width; level i has model_channels * channel_mult[i] channels, multiples of 32.
        num_res_blocks: residual blocks per level; one more on the way up.
        attention_resolutions: levels with attention, as down-sampling factors (1 is the top level), not resolutions.
        no_time: feed ones instead of the time.
        label_dim: classes, each with an embedding of its own; 0: none.
        dropout, conv_resample, num_heads, num_head_channels, num_heads_upsample, use_scale_shift_norm,
            resblock_updown, use_new_attention_order, attention_axes, context_dim, transformer_depth: see `Blocks`.

    Raises:
        ValueError: sizes that do not fit, in one sentence.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        model_channels: int,
        num_res_blocks: int = 3,
        attention_resolutions: Sequence[int] = (4, 8),
        dropout: float = 0,
        channel_mult: Sequence[float] = (1, 2, 3, 4),
        conv_resample: bool = True,
        num_heads: int = 4,
        num_head_channels: int = -1,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        no_time: bool = False,
        num_heads_upsample: int = -1,
        label_dim: int = 0,
        attention_axes: int = 1,
        context_dim: int = 0,
        transformer_depth: int = 1,
    ) -> None:
        widths = widths_of(img_resolution, model_channels, channel_mult)
        super().__init__()
        self.no_time = no_time
        self.map_time = PositionalEmbedding(model_channels)
        self.time_embed = time_mlp(model_channels)
        self.label_emb = nn.Embedding(label_dim, 4 * model_channels) if label_dim else None
        blocks = Blocks(
            model_channels=model_channels, num_res_blocks=num_res_blocks, attention_resolutions=attention_resolutions,
            dropout=dropout, conv_resample=conv_resample, num_heads=num_heads, num_head_channels=num_head_channels,
            num_heads_upsample=num_heads_upsample, use_scale_shift_norm=use_scale_shift_norm,
            resblock_updown=resblock_updown, use_new_attention_order=use_new_attention_order,
            attention_axes=attention_axes, context_dim=context_dim, transformer_depth=transformer_depth,
        )  # fmt: skip
        self.input_blocks, skips = blocks.encoder(in_channels, widths)
        self.middle_block = blocks.middle(widths[-1])
        channels, stages = widths[-1], []
        for level, width in reversed(list(enumerate(widths))):
            for i in range(num_res_blocks + 1):
                layers = blocks.level(channels + skips.pop(), width, 2**level, up=True)
                channels = width
                if level and i == num_res_blocks:
                    layers.append(blocks.change(channels, "up"))
                stages.append(Stage(*layers))
        self.output_blocks = nn.ModuleList(stages)
        self.out = nn.Sequential(norm(channels), nn.SiLU(), Conv2d(channels, out_channels, kernel=3, init=ZERO_INIT))

    def forward(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        """Evaluate the network.

        Args:
            x: `[N, in_channels, H, W]`.
            noise_labels: time, `[N or 1]`.
            class_labels: of a network with classes, indices `[N]` or one-hot rows `[N, label_dim]`.
            context: of a network with transformers, tokens `[N or 1, T, context_dim]`.

        Returns:
            `[N, out_channels, H, W]`.
        """
        t = torch.ones_like(noise_labels) if self.no_time else noise_labels
        emb = self.time_embed(self.map_time(t))
        if self.label_emb is not None:
            emb = emb + self._embed_labels(class_labels)
        emb = F.silu(emb)
        skips: list[Tensor] = []
        for stage in self.input_blocks:
            x = stage(x, emb, context)
            skips.append(x)
        x = self.middle_block(x, emb, context)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, skips.pop()], dim=1), emb, context)
        return self.out(x)

    def _embed_labels(self, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise ValueError("this network was trained with classes and none was given: pass class_labels")
        return self.label_emb(labels) if labels.ndim == 1 else labels.to(self.label_emb.weight) @ self.label_emb.weight

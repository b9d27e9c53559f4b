"""Small networks for points and toy images: they see all elements of a sample at once, and the time beside them.

- `MLP`: three linear layers with tanh, the time as one more input. Keys: fc1, fc2, fc3.
- `FourierMLP`: features sin, cos of c_j t + p_j, c_j from 0.1 to 100, added to an embedding of the sample, then linear
  layers with GELU. Keys: timestep_coeff (buffer), timestep_phase, timestep_embed.{0,2}, input_embed, layers; with
  classes also label_embed.
- `SELUMLP`: four linear layers with SELU, time last, beside it a learnt vector of the label. Keys: net.{0,2,4,6}, with
  labels also time_index_embedding. Published with IDFF (arXiv 2409.14599), whose labels are frames of a series.
- `dense`: a plain stack of linear layers, for networks of points that are told nothing but a vector.

Both are the two-dimensional networks of Lee, Kim, Ye 2023 (arXiv 2301.12003), published with their code; classes are an
addition. As the trunk of a denoiser, FourierMLP is given ln(sigma) / 4 for the time.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from networks.trunks.layers import TORCH_INIT, Init, Linear
from networks.trunks.unet_block import condition_labels

DENSE_INIT = Init("kaiming_normal")


def _column(t: Tensor, x: Tensor) -> Tensor:
    """Times [N or 1] as [N, 1] in the dtype of x."""
    return t.reshape(-1, 1).to(x.dtype).expand(x.shape[0], 1)


class MLP(nn.Module):
    """tanh network on cat[x, t].

    Args:
        img_resolution, in_channels, out_channels: x is `[N, in_channels, img_resolution, img_resolution]`, or flat.
        hidden: width.
    """

    def __init__(self, img_resolution: int, in_channels: int, out_channels: int, hidden: int = 100) -> None:
        super().__init__()
        pixels = img_resolution**2
        self.fc1 = Linear(in_channels * pixels + 1, hidden, init=TORCH_INIT)
        self.fc2 = Linear(hidden, hidden, init=TORCH_INIT)
        self.fc3 = Linear(hidden, out_channels * pixels, init=TORCH_INIT)

    def forward(self, x: Tensor, noise_labels: Tensor) -> Tensor:
        """`[N, in_channels, ...]`, times [N or 1] -> `[N, out_channels, ...]`."""
        flat = x.flatten(1)
        h = torch.tanh(self.fc1(torch.cat([flat, _column(noise_labels, flat)], dim=1)))
        return self.fc3(torch.tanh(self.fc2(h))).reshape(x.shape[0], -1, *x.shape[2:])


class FourierMLP(nn.Module):
    """GELU network with sinusoidal features of the time; arguments as MLP, `num_layers` hidden layers of `channels`.

    label_dim, label_dropout: classes, and the share of them left out in training, as of `SongUNet`.
    """

    timestep_coeff: Tensor

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        channels: int = 128,
        num_layers: int = 3,
        label_dim: int = 0,
        label_dropout: float = 0,
    ) -> None:
        super().__init__()
        self.label_dim, self.label_dropout = label_dim, label_dropout
        pixels = img_resolution**2
        self.register_buffer("timestep_coeff", torch.linspace(0.1, 100, channels)[None])
        self.timestep_phase = nn.Parameter(torch.randn(1, channels))
        self.input_embed = Linear(in_channels * pixels, channels, init=TORCH_INIT)
        self.timestep_embed = nn.Sequential(
            Linear(2 * channels, channels, init=TORCH_INIT), nn.GELU(), Linear(channels, channels, init=TORCH_INIT)
        )
        hidden = [nn.Sequential(Linear(channels, channels, init=TORCH_INIT), nn.GELU()) for _ in range(num_layers)]
        self.layers = nn.Sequential(nn.GELU(), *hidden, Linear(channels, out_channels * pixels, init=TORCH_INIT))
        self.label_embed = Linear(label_dim, channels, bias=False, init=TORCH_INIT) if label_dim else None

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """`[N, in_channels, ...]`, times [N or 1], one-hot labels [N or 1, label_dim] -> `[N, out_channels, ...]`."""
        flat = x.flatten(1)
        phase = self.timestep_coeff.to(x.dtype) * _column(noise_labels, flat) + self.timestep_phase.to(x.dtype)
        time = self.timestep_embed(torch.cat([phase.sin(), phase.cos()], dim=1))
        if self.label_embed is not None:
            labels = condition_labels(class_labels, x, self.label_dim, self.label_dropout, self.training)
            time = time + self.label_embed(labels)
        return self.layers(self.input_embed(flat) + time).reshape(x.shape[0], -1, *x.shape[2:])


class SELUMLP(nn.Module):
    """SELU network on cat[x, t, embedding of the label].

    Args:
        img_resolution, in_channels, out_channels: as of MLP.
        width: of the hidden layers.
        label_dim: labels, each with an embedding of this width; 0: none.
        time_varying: whether it is told the time.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        width: int = 64,
        label_dim: int = 0,
        time_varying: bool = True,
    ) -> None:
        super().__init__()
        pixels = img_resolution**2
        self.label_dim, self.time_varying = label_dim, time_varying
        self.time_index_embedding = nn.Embedding(label_dim, width) if label_dim else None
        sizes = [in_channels * pixels + time_varying + (width if label_dim else 0), width, width, width]
        hidden = [[Linear(a, b, init=TORCH_INIT), nn.SELU()] for a, b in itertools.pairwise(sizes)]
        self.net = nn.Sequential(*itertools.chain(*hidden), Linear(width, out_channels * pixels, init=TORCH_INIT))

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """`[N, in_channels, ...]`, times [N or 1], labels one-hot [N or 1, label_dim] -> `[N, out_channels, ...]`.

        Raises:
            ValueError: no labels, of a network that has some.
        """
        flat = x.flatten(1)
        parts = [flat, _column(noise_labels, flat)] if self.time_varying else [flat]
        if self.time_index_embedding is not None:
            if class_labels is None:
                raise ValueError("this network was trained with labels and none was given: pass class_labels")
            embedded = class_labels.to(flat.dtype) @ self.time_index_embedding.weight.to(flat.dtype)
            parts.append(embedded.expand(len(flat), -1))
        return self.net(torch.cat(parts, dim=1)).reshape(x.shape[0], -1, *x.shape[2:])


def dense(inputs: int, width: int, layers: int, outputs: int, last: Init, activation: type[nn.Module]) -> nn.Sequential:
    """`layers` hidden linear layers of `width` between `inputs` and `outputs`; `last` initialises the final one."""
    sizes = [inputs, *[width] * layers]
    hidden = [[Linear(a, b, init=DENSE_INIT), activation()] for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*itertools.chain(*hidden), Linear(width, outputs, init=last))


def with_labels(x: Tensor, class_labels: Tensor | None, label_dim: int) -> Tensor:
    """Points `[B, D]` with their one-hot labels beside them, zeros where none are given."""
    if not label_dim:
        return x
    labels = x.new_zeros(len(x), label_dim) if class_labels is None else class_labels.to(x.dtype).expand(len(x), -1)
    return torch.cat([x, labels], dim=1)

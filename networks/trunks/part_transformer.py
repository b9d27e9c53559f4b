"""A transformer over the parts of a shape, an unordered set: without positions, parts in another order stay the same.

    token = sum over groups of linear(x[group])
    c = label + sum over groups of linear(code of the times of the group)      # per token, where parts differ in time

Groups are existence, box and codes (`torch_utils/parts.py`). The 3-D network of Xie et al. 2024 (arXiv 2405.13729),
whose details that the paper leaves open are chosen here: no position embedding, no weights between attributes. N batch,
L parts, V numbers of a part, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from networks.trunks.layers import Linear
from networks.trunks.tokens import CODE, XAVIER, ElementCode, TimeEmbedder, TokenTransformer


class PartTimeEmbedder(nn.Module):
    """A time for every number of every part -> one vector a token. Keys: mlp.{0, 2}, groups.G.{weight, bias}."""

    def __init__(self, groups: Sequence[int], width: int) -> None:
        super().__init__()
        self.sizes = tuple(groups)
        self.mlp = ElementCode()
        self.groups = nn.ModuleList(Linear(CODE * size, width, init=XAVIER) for size in groups)

    def forward(self, t: Tensor) -> Tensor:
        """Times `[N or 1, L or 1, V or 1]` -> `[N or 1, L or 1, D]`; what is shared is embedded once."""
        code = self.mlp(t)  # [N, L, V, CODE]
        bias = sum(layer.bias for layer in self.groups).to(code)
        weight = torch.cat([layer.weight for layer in self.groups], dim=1).to(code)  # [D, V * CODE]
        if t.shape[2] == 1:
            return code[:, :, 0] @ weight.unflatten(1, (-1, CODE)).sum(1).T + bias
        return code.flatten(2) @ weight.T + bias


class PartTransformer(TokenTransformer):
    """A transformer over sets of parts.

    Args:
        num_parts: L, the most parts of a shape; the weights do not depend on it.
        groups: numbers of a part by group.
        label_dim, label_dropout: as of `networks.trunks.transformer.Transformer`.
        element_times: every number of every part has a time of its own; else one a sample.
        width, depth, num_heads, mlp_ratio: D, blocks, heads, hidden width of the MLPs in units of D.

    Raises:
        ValueError: a width that heads do not divide.
    """

    def __init__(
        self,
        num_parts: int,
        groups: Sequence[int],
        label_dim: int = 0,
        label_dropout: float = 0.1,
        element_times: bool = True,
        width: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
    ) -> None:
        embedder = PartTimeEmbedder(groups, width) if element_times else TimeEmbedder(width)
        super().__init__(embedder, (1,), sum(groups), label_dim, label_dropout, width, depth, num_heads, mlp_ratio)
        self.num_parts, self.sizes, self.element_times = num_parts, tuple(groups), element_times
        self.x_embedder = nn.ModuleList(Linear(size, width, init=XAVIER) for size in groups)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None, synchronous: int = 0) -> Tensor:
        """`x [N, L, V]` -> `[N, L, V]`.

        Args:
            t: times `[N or 1, L or 1, V or 1]` float32, 1 at the data.
            labels: one-hot `[N or 1, label_dim]` or None.
            synchronous: how many of the last rows have times that parts share; it changes the cost alone.
        """
        if self.varies(t):
            t = t.expand(-1, x.shape[1], -1)
        h = sum(layer(part) for layer, part in zip(self.x_embedder, x.split(self.sizes, dim=2), strict=True))
        return self.through_blocks(h, self.condition(t, labels, x, synchronous))

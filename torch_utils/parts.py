"""PartLayout: what the numbers of a set of parts mean, and their way from the units of the data to those of a network.

A shape is a set of at most L parts, a row of V numbers each: existence (0 or 1), a box (centre x, y, z and size l, w,
h), then codes of the part's geometry. Networks see existence as -1 or 1, everything else of parts that exist in units
of its deviation, and zeros elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BOX = 6  # numbers of a box: centre and size


@dataclass(frozen=True)
class PartLayout:
    """Groups of the V numbers of a part, and their units.

    Attributes:
        groups: numbers in each group, in order: 1 of existence, BOX of the box, then any of codes.
        mean, std: `[V]` of what networks see, of existing parts; 0.5 for existence.

    Raises:
        ValueError: groups that do not begin with existence and box, units that do not fit.
    """

    groups: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        check_groups(self.groups)
        if len(self.mean) != self.size or len(self.std) != self.size or min(self.std) <= 0:
            raise ValueError(f"parts of {self.size} numbers need as many means and as many deviations above 0")

    @property
    def size(self) -> int:
        """V, numbers of a part."""
        return sum(self.groups)

    @property
    def attributes(self) -> dict[str, slice]:
        """The parts of a row by name: existence, centre, size, box (centre and size), code (what follows)."""
        named = {"existence": slice(0, 1), "centre": slice(1, 4), "size": slice(4, 7), "box": slice(1, 7)}
        return named | ({"code": slice(7, self.size)} if len(self.groups) > 2 else {})

    def _units(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_tensor(self.mean), like.new_tensor(self.std)

    def encode(self, parts: Tensor) -> Tensor:
        """Parts `[..., L, V]` in the units of the data -> as networks see them."""
        mean, std = self._units(parts)
        exists = parts[..., :1] > 0.5
        return torch.cat([2.0 * exists - 1, torch.where(exists, (parts - mean) / std, 0)[..., 1:]], dim=-1)

    def decode(self, x: Tensor) -> Tensor:
        """What networks make -> parts with existence 0 or 1, zeros where they do not exist."""
        mean, std = self._units(x)
        exists = x[..., :1] > 0
        return torch.cat([exists.to(x), torch.where(exists, x * std + mean, 0)[..., 1:]], dim=-1)

    def snap(self, data: Tensor) -> Tensor:
        """Clean estimates as networks see parts -> with existence -1 or 1, split at the half (paper: threshold 0.5)."""
        return torch.cat([torch.where(data[..., :1] > 0, 1.0, -1.0).to(data), data[..., 1:]], dim=-1)


def check_groups(groups: Sequence[int]) -> None:
    """Raise a ValueError for groups that do not begin with existence and box."""
    if len(groups) < 2 or groups[0] != 1 or groups[1] != BOX or min(groups) < 1:
        raise ValueError(
            f"groups {list(groups)} are no parts: the first is the existence (1 number), the second the box ({BOX}: "
            "centre and size), further ones are codes"
        )

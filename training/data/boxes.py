"""Furniture made of boxes: five families of shapes with rules that a sample keeps or breaks.

A part is a row of 15 numbers: existence, centre x, y, z, size l, w, h (z is up, the floor at 0), and a code of 8. A
shape has at most 12 parts in any order. All parts of a shape share a style, three angles, and a part's code is a smooth
function of style and role, plus noise of deviation NOISE:

    code = word of the role + map of the role @ (cos, sin of the angles)

Words are those of the extended Hamming code, +-1, so that a code tells its role whatever the style. So shapes have
relations between parts to be learnt, in boxes and in codes, and `rules` says of any sample which of them it keeps.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

PARTS, CODE = 12, 8
NOISE = 0.05  # of codes
TOLERANCE = 0.03  # of lengths; furniture is about 1 wide
STYLE_TOLERANCE = 2 * NOISE / TOLERANCE  # of codes, per tolerance of lengths
RULES = ("count", "floor", "contact", "place", "gaps", "style")

ROLES = (
    "table.top", "table.leg", "table.shelf", "chair.seat", "chair.back", "chair.leg", "chair.arm", "lamp.base",
    "lamp.pole", "lamp.shade", "bookcase.side", "bookcase.board", "monitor.base", "monitor.stand", "monitor.screen",
)  # fmt: skip
# how many parts of a role a family has
COUNTS = {
    "table.top": (1,), "table.leg": (4,), "table.shelf": (0, 1), "chair.seat": (1,), "chair.back": (1,),
    "chair.leg": (4,), "chair.arm": (0, 2), "lamp.base": (1,), "lamp.pole": (1,), "lamp.shade": (1,),
    "bookcase.side": (2,), "bookcase.board": (2, 3, 4, 5), "monitor.base": (1,), "monitor.stand": (1,),
    "monitor.screen": (1,),
}  # fmt: skip
# what stands on what, by role: the lower end of the first at the upper end of the second
STANDS_ON = (
    ("chair.back", "chair.seat"), ("chair.arm", "chair.seat"), ("lamp.pole", "lamp.base"), ("lamp.shade", "lamp.pole"),
    ("monitor.stand", "monitor.base"), ("monitor.screen", "monitor.stand"),
)  # fmt: skip
ON_FLOOR = ("table.leg", "chair.leg", "lamp.base", "bookcase.side", "monitor.base")


def _words() -> np.ndarray:
    """`[15, 8]` words of +-1, any two of which differ in 4 or 8 places."""
    bits = (np.arange(1, 16)[:, None] >> np.arange(4)) & 1
    parity = np.array([[0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]])
    return 2.0 * np.concatenate([bits, bits @ parity % 2], axis=1) - 1


WORDS = _words()
MAPS = 0.3 * np.random.default_rng(0).standard_normal((len(ROLES), CODE, 6))


class _Parts:
    """Boxes of `n` shapes of one family, collected part by part."""

    def __init__(self, n: int, random: np.random.Generator) -> None:
        self.n, self.random = n, random
        self.x, self.y = self.between(-0.2, 0.2), self.between(-0.2, 0.2)  # where the shape stands
        self.rows: list[np.ndarray] = []
        self.roles: list[int] = []

    def between(self, low: float, high: float) -> np.ndarray:
        return self.random.uniform(low, high, self.n)

    def chance(self, p: float) -> np.ndarray:
        return self.random.random(self.n) < p

    def add(self, role: str, at: tuple, size: tuple, exists: object = 1.0) -> None:
        """A box whose lower end is at height `at[2]`, its centre at `at[:2]` from that of the shape."""
        numbers = (exists, self.x + at[0], self.y + at[1], at[2] + size[2] / 2, *size)
        self.rows.append(np.stack([np.broadcast_to(v, self.n) for v in numbers], axis=1).astype(np.float64))
        self.roles.append(ROLES.index(role))

    def legs(self, role: str, w: np.ndarray, d: np.ndarray, leg: np.ndarray, height: np.ndarray) -> None:
        for sx in (-1, 1):
            for sy in (-1, 1):
                self.add(role, (sx * (w - leg) / 2, sy * (d - leg) / 2, 0), (leg, leg, height))

    def tower(self, *boxes: tuple[str, tuple]) -> None:
        """Boxes on top of each other, on one axis."""
        height = np.zeros(self.n)
        for role, size in boxes:
            self.add(role, (0, 0, height), size)
            height = height + size[2]


def _table(p: _Parts) -> None:
    w, d, t, top, leg = (p.between(*r) for r in ((0.8, 1.4), (0.5, 1.0), (0.05, 0.12), (0.4, 0.7), (0.06, 0.14)))
    p.add("table.top", (0, 0, top), (w, d, t))
    p.legs("table.leg", w, d, leg, top)
    p.add("table.shelf", (0, 0, p.between(0.25, 0.6) * top), (w - 2 * leg, d - 2 * leg, t), p.chance(0.3))


def _chair(p: _Parts) -> None:
    w, d, t, low, leg = (p.between(*r) for r in ((0.45, 0.65), (0.45, 0.65), (0.05, 0.1), (0.35, 0.5), (0.05, 0.09)))
    thick, back, arm, high = (p.between(*r) for r in ((0.05, 0.1), (0.4, 0.7), (0.05, 0.09), (0.15, 0.25)))
    p.add("chair.seat", (0, 0, low), (w, d, t))
    p.legs("chair.leg", w, d, leg, low)
    p.add("chair.back", (0, (d - thick) / 2, low + t), (w, thick, back))
    arms = p.chance(0.4)
    for side in (-1, 1):
        p.add("chair.arm", (side * (w - arm) / 2, -thick / 2, low + t), (arm, d - thick, high), arms)


def _lamp(p: _Parts) -> None:
    base, pole, shade = p.between(0.3, 0.5), p.between(0.04, 0.08), p.between(0.35, 0.6)
    p.tower(
        ("lamp.base", (base, base, p.between(0.05, 0.1))), ("lamp.pole", (pole, pole, p.between(0.6, 1.0))),
        ("lamp.shade", (shade, shade, p.between(0.2, 0.35))),
    )  # fmt: skip


def _bookcase(p: _Parts) -> None:
    w, d, h, t = p.between(0.6, 1.0), p.between(0.25, 0.4), p.between(0.9, 1.4), p.between(0.05, 0.08)
    boards = p.random.integers(2, 6, p.n)
    for side in (-1, 1):
        p.add("bookcase.side", (side * (w - t) / 2, 0, 0), (t, d, h))
    for k in range(5):
        p.add("bookcase.board", (0, 0, k * (h - t) / (boards - 1)), (w - 2 * t, d, t), k < boards)


def _monitor(p: _Parts) -> None:
    stand = p.between(0.06, 0.1)
    p.tower(
        ("monitor.base", (p.between(0.3, 0.5), p.between(0.2, 0.3), p.between(0.03, 0.06))),
        ("monitor.stand", (stand, stand, p.between(0.15, 0.3))),
        ("monitor.screen", (p.between(0.7, 1.1), p.between(0.05, 0.08), p.between(0.4, 0.6))),
    )


FAMILIES: dict[str, Callable[[_Parts], None]] = {
    "table": _table, "chair": _chair, "lamp": _lamp, "bookcase": _bookcase, "monitor": _monitor,
}  # fmt: skip


def draw_boxes(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`n` shapes, families in turn: parts float32 `[n, PARTS, 15]` and families int64 `[n]`."""
    random = np.random.default_rng(seed)
    families = np.arange(n) % len(FAMILIES)
    shapes = np.zeros((n, PARTS, 7 + CODE))
    for index, build in enumerate(FAMILIES.values()):
        own = np.flatnonzero(families == index)
        parts = _Parts(len(own), random)
        build(parts)
        boxes, roles = np.stack(parts.rows, axis=1), np.array(parts.roles)
        angles = random.uniform(0, 2 * np.pi, (len(own), 3))
        style = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
        codes = WORDS[roles] + np.einsum("rcf,nf->nrc", MAPS[roles], style)
        codes += NOISE * random.standard_normal(codes.shape)
        shapes[own, : len(roles)] = np.concatenate([boxes, codes], axis=2) * boxes[..., :1]
    order = random.permuted(np.tile(np.arange(PARTS), (n, 1)), axis=1)
    return np.take_along_axis(shapes, order[..., None], axis=1).astype(np.float32), families


def rules(parts: Tensor, tolerance: float = TOLERANCE) -> dict[str, Tensor]:
    """Which rules shapes keep.

    Roles are read from the codes; the family is that of most parts.

    Args:
        parts: `[N, L, 15]` in the units of the data.
        tolerance: of lengths; that of codes is 2 NOISE at the default, and changes in proportion.

    Returns:
        By name of RULES, `[N]` bool, "valid", all of them, and "family", `[N]` int64. count: parts of one family, as
        many as it has, of sizes above 0. floor: what stands on the floor does. contact: parts that carry each other
        touch. place: legs at the corners, one at each, parts on a common axis, in a common plane or inside, as the
        family has it. gaps: boards at equal distances from floor to top. style: codes of one style.
    """
    return _Rules(parts.double().cpu(), tolerance).all()


class _Rules:
    """Rules of shapes, worked out by role for all shapes at once."""

    def __init__(self, parts: Tensor, tolerance: float) -> None:
        self.tolerance = tolerance
        self.exists, self.code = parts[..., 0] > 0.5, parts[..., 7:]
        self.centre, self.size = parts[..., 1:4], parts[..., 4:7]
        self.low, self.high = self.centre - self.size / 2, self.centre + self.size / 2
        self.role = (self.code @ torch.from_numpy(WORDS.T)).argmax(-1)
        self.counts = torch.stack([self.of(name).sum(1) for name in ROLES], dim=1)
        totals = [self.counts[:, [r.startswith(own) for r in ROLES]].sum(1) for own in FAMILIES]
        self.family = torch.stack(totals, dim=1).argmax(1)

    def of(self, *names: str) -> Tensor:
        """`[N, L]`, parts of these roles."""
        chosen = torch.zeros_like(self.exists)
        for name in names:
            chosen = chosen | (self.exists & (self.role == ROLES.index(name)))
        return chosen

    def mean(self, values: Tensor, mask: Tensor) -> Tensor:
        """`[N, 1]`, of masked parts."""
        return (values * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)

    def near(self, values: Tensor, wanted: Tensor | float, mask: Tensor) -> Tensor:
        """`[N]`, whether all masked values are near the wanted ones."""
        return (((values - wanted).abs() <= self.tolerance) | ~mask).all(1)

    def all(self) -> dict[str, Tensor]:
        kept = {name: getattr(self, name)() for name in RULES}
        return {**kept, "valid": torch.stack(list(kept.values())).all(0), "family": self.family}

    def count(self) -> Tensor:
        fits = ((self.size > 0).all(-1) | ~self.exists).all(1)
        for index, (role, allowed) in enumerate(COUNTS.items()):
            own = self.family == list(FAMILIES).index(role.split(".")[0])
            possible = torch.where(own[:, None], torch.tensor(allowed)[None], 0)
            fits &= (self.counts[:, index, None] == possible).any(1)
        return fits

    def floor(self) -> Tensor:
        return self.near(self.low[..., 2], 0, self.of(*ON_FLOOR))

    def contact(self) -> Tensor:
        fits = torch.ones_like(self.exists[:, 0])
        for upper, lower in STANDS_ON:
            fits &= self.near(self.low[..., 2], self.mean(self.high[..., 2], self.of(lower)), self.of(upper))
        for plate, leg in (("table.top", "table.leg"), ("chair.seat", "chair.leg")):
            fits &= self.near(self.high[..., 2], self.mean(self.low[..., 2], self.of(plate)), self.of(leg))
        side, board = self.of("bookcase.side"), self.of("bookcase.board")
        left = self.high[..., 0].masked_fill(~side, torch.inf).amin(1, keepdim=True)
        right = self.low[..., 0].masked_fill(~side, -torch.inf).amax(1, keepdim=True)
        return fits & self.near(self.low[..., 0], left, board) & self.near(self.high[..., 0], right, board)

    def place(self) -> Tensor:
        fits = torch.ones_like(self.exists[:, 0])
        for plate, leg in (("table.top", "table.leg"), ("chair.seat", "chair.leg")):
            fits &= self._corners(self.of(plate), self.of(leg))
        seat, back, arm, shelf = (self.of(n) for n in ("chair.seat", "chair.back", "chair.arm", "table.shelf"))
        x, y = self.centre[..., 0], self.centre[..., 1]
        fits &= self.near(x, self.mean(x, seat), back)
        fits &= self.near(self.high[..., 1], self.mean(self.high[..., 1], seat), back)
        away = x - self.mean(x, seat)
        fits &= self.near(away.abs(), self.mean(self.size[..., 0], seat) / 2 - self.size[..., 0] / 2, arm)
        fits &= (away.sign() * arm).sum(1) == 0
        top = self.of("table.top")
        inside = [(self.low[..., i] >= self.mean(self.low[..., i], top) - self.tolerance) for i in (0, 1)]
        inside += [(self.high[..., i] <= self.mean(self.high[..., i], top) + self.tolerance) for i in (0, 1)]
        inside += [self.low[..., 2] > 0, self.high[..., 2] < self.mean(self.low[..., 2], top)]
        fits &= (torch.stack(inside).all(0) | ~shelf).all(1)
        tower = self.of(*(name for name in ROLES if name.startswith(("lamp", "monitor"))))
        fits &= self.near(x, self.mean(x, tower), tower) & self.near(y, self.mean(y, tower), tower)
        side, case = self.of("bookcase.side"), self.of("bookcase.side", "bookcase.board")
        for values, mask in ((y, case), (self.size[..., 1], case), (self.size[..., 2], side)):
            fits &= self.near(values, self.mean(values, mask), mask)
        return fits

    def _corners(self, plate: Tensor, leg: Tensor) -> Tensor:
        """Legs flush with the edges, one at each corner."""
        fits, corner = torch.ones_like(self.exists[:, 0]), torch.zeros_like(self.role)
        for i in (0, 1):
            away = self.centre[..., i] - self.mean(self.centre[..., i], plate)
            fits &= self.near(away.abs(), (self.mean(self.size[..., i], plate) - self.size[..., i]) / 2, leg)
            corner = 2 * corner + (away > 0)
        taken = torch.stack([((corner == k) & leg).sum(1) for k in range(4)], dim=1)
        return fits & ((taken == 1).all(1) | (leg.sum(1) == 0))

    def gaps(self) -> Tensor:
        side, board = self.of("bookcase.side"), self.of("bookcase.board")
        heights = self.low[..., 2].masked_fill(~board, torch.inf).sort(1).values
        count = board.sum(1, keepdim=True)
        top = self.mean(self.high[..., 2], side) - self.mean(self.size[..., 2], board)
        rank = torch.arange(heights.shape[1])[None]
        wanted = rank * top / (count - 1).clamp(min=1)
        return self.near(heights, wanted, rank < count)

    def style(self) -> Tensor:
        """Codes are near those of the one style that fits them best."""
        n, mask = len(self.code), self.exists[..., None].double()
        maps = torch.from_numpy(MAPS)[self.role] * mask[..., None]
        rest = (self.code - torch.from_numpy(WORDS)[self.role]) * mask
        maps, rest = maps.reshape(n, -1, 6), rest.reshape(n, -1, 1)
        normal = maps.mT @ maps + 1e-9 * torch.eye(6, dtype=maps.dtype)
        found = torch.linalg.solve(normal, maps.mT @ rest).reshape(n, 2, 3)
        found = found / found.norm(dim=1, keepdim=True).clamp(min=1e-9)
        error = (maps @ found.reshape(n, 6, 1) - rest).square().sum((1, 2)) / (CODE * mask.sum((1, 2))).clamp(min=1)
        return error.sqrt() <= STYLE_TOLERANCE * self.tolerance

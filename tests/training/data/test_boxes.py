"""Furniture made of boxes: every drawn shape keeps every rule, and each rule notices what breaks it."""

import pytest
import torch

from training.data.boxes import COUNTS, FAMILIES, MAPS, PARTS, ROLES, RULES, WORDS, draw_boxes, rules

N = 500


@pytest.fixture(scope="module")
def drawn():
    parts, families = draw_boxes(N, 3)
    return torch.from_numpy(parts), torch.from_numpy(families)


def roles(parts):
    """`[N, L]`, -1 where there is no part."""
    found = (parts[..., 7:].double() @ torch.from_numpy(WORDS.T)).argmax(-1)
    return torch.where(parts[..., 0] > 0.5, found, -1)


def test_every_shape_keeps_every_rule(drawn):
    parts, families = drawn
    kept = rules(parts)
    assert all(kept[name].all() for name in (*RULES, "valid"))
    assert torch.equal(kept["family"], families)
    assert parts.shape == (N, PARTS, 15)
    empty = parts[..., 0] == 0
    assert empty.any()
    assert not parts[empty].any()


def test_every_count_of_parts_occurs(drawn):
    parts, _ = drawn
    role = roles(parts)
    for index, (name, allowed) in enumerate(COUNTS.items()):
        family = list(FAMILIES).index(name.split(".")[0])
        counts = (role[drawn[1] == family] == index).sum(1)
        assert set(counts.tolist()) == set(allowed), name


def test_seeds_and_order(drawn):
    parts, _ = drawn
    assert torch.equal(torch.from_numpy(draw_boxes(N, 3)[0]), parts)
    assert not torch.equal(torch.from_numpy(draw_boxes(N, 4)[0]), parts)
    shuffled = parts[:, torch.randperm(PARTS)]
    assert rules(shuffled)["valid"].all()
    assert len({tuple(row) for row in (parts[..., 0] > 0.5).int().tolist()}) > N / 2  # slots in random order


def test_codes_are_smooth_in_the_style():
    """Words differ in half of their places at least, by more than any style can bridge."""
    distance = torch.pdist(torch.from_numpy(WORDS)).square() / 4
    assert distance.min() >= 4
    reach = torch.from_numpy(MAPS).reshape(len(ROLES), 8, 2, 3).norm(dim=2).sum(-1)  # of each number of a code
    assert (reach**2).sum(1).sqrt().max() < 3 * distance.min()


def moved(parts, name, column, by, index=0):
    """Shapes with one part of a role moved; only those that have it."""
    own = roles(parts) == ROLES.index(name)
    chosen = parts[own.sum(1) > index].clone()
    own = own[own.sum(1) > index]
    slot = own.int().cumsum(1).eq(index + 1).int().argmax(1)
    chosen[torch.arange(len(chosen)), slot, column] += by
    return chosen


@pytest.mark.parametrize(
    ("rule", "name", "column", "by"),
    [
        ("floor", "table.leg", 3, 0.05), ("floor", "lamp.base", 3, -0.04), ("floor", "monitor.base", 6, 0.1),
        ("contact", "table.top", 3, 0.05), ("contact", "chair.back", 3, 0.04), ("contact", "chair.arm", 3, -0.05),
        ("contact", "lamp.shade", 3, 0.05), ("contact", "monitor.stand", 3, 0.05),
        ("contact", "bookcase.board", 4, 0.1),
        ("place", "table.leg", 1, 0.05), ("place", "chair.leg", 2, -0.05), ("place", "chair.back", 2, -0.05),
        ("place", "chair.arm", 1, 0.05), ("place", "lamp.pole", 2, 0.1), ("place", "monitor.screen", 1, 0.1),
        ("place", "bookcase.side", 2, 0.1), ("place", "table.shelf", 4, 0.5), ("place", "table.shelf", 3, 0.9),
        ("style", "lamp.pole", 9, 0.9), ("count", "lamp.pole", 4, -0.2),
    ],
)  # fmt: skip
def test_what_breaks_a_rule(drawn, rule, name, column, by):
    broken = moved(drawn[0], name, column, by)
    assert len(broken) > 5
    kept = rules(broken)
    assert not kept[rule].any()
    assert not kept["valid"].any()


def test_gaps_between_boards(drawn):
    parts, _ = drawn
    three = (roles(parts) == ROLES.index("bookcase.board")).sum(1) >= 3
    parts = parts[three]
    board = roles(parts) == ROLES.index("bookcase.board")
    heights = parts[..., 3].masked_fill(~board, torch.inf)
    middle = heights.argsort(1)[:, 1]
    broken = parts.clone()
    broken[torch.arange(len(parts)), middle, 3] += 0.06
    assert not rules(broken)["gaps"].any()
    assert rules(broken, tolerance=0.1)["gaps"].all()


def test_parts_that_are_missing_or_too_many(drawn):
    parts, families = drawn
    for name in ("table.leg", "chair.seat", "lamp.shade", "bookcase.side", "monitor.base"):
        own = (roles(parts) == ROLES.index(name)).any(1)
        fewer = parts[own].clone()
        slot = (roles(fewer) == ROLES.index(name)).int().argmax(1)
        fewer[torch.arange(len(fewer)), slot, 0] = 0
        assert not rules(fewer)["count"].any(), name
    lamps = parts[families == 2].clone()
    free = (lamps[..., 0] == 0).int().argmax(1)
    lamps[torch.arange(len(lamps)), free] = parts[families == 0][: len(lamps)].amax(1)
    assert not rules(lamps)["valid"].any()
    assert not rules(torch.zeros(2, PARTS, 15))["valid"].any()

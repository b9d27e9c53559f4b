"""Conditions drawn per sample: classes at equal rates, everything else from labels of data."""

import dataclasses

import pytest
import torch

from samplers.conditions import check_class, draw_conditions
from samplers.field import Facts, Field
from samplers.gits.teacher import warmup_chunks
from samplers.run import generate
from torch_utils.rng import PerSampleRNG

POOL = torch.tensor([[1.5, 20.0], [2.5, 90.0], [3.5, 170.0]])
VECTOR = Facts(label_dim=2, conditioning="vector", conditions=POOL, shape=(1, 4, 4))


class Net(torch.nn.Module):
    label_dim, img_channels, img_resolution = 2, 1, 4
    conditioning = "vector"
    seen = ()

    def forward(self, x, sigma, class_labels=None):
        self.seen = (*self.seen, class_labels)
        return torch.zeros_like(x)


def sampler(field, noise, labels, rng):
    return field.net(noise, torch.ones(()), labels)


def test_vectors_are_those_of_the_data_whatever_the_batch():
    rows = draw_conditions(VECTOR, PerSampleRNG(range(30)), 30)
    assert {tuple(row) for row in rows.tolist()} == {tuple(row) for row in POOL.tolist()}
    for seed in (0, 7, 29):
        assert torch.equal(draw_conditions(VECTOR, PerSampleRNG([seed]), 1)[0], rows[seed])


def test_classes_are_one_hot_and_take_one_number_each():
    facts = Facts(label_dim=3, conditioning="classes")
    drawn, fixed = PerSampleRNG([5, 6]), PerSampleRNG([5, 6])
    assert draw_conditions(facts, drawn, 2).sum(1).tolist() == [1, 1]
    assert draw_conditions(facts, fixed, 2, class_idx=2).tolist() == [[0, 0, 1]] * 2
    assert torch.equal(drawn.randn([2, 3]), fixed.randn([2, 3]))
    assert draw_conditions(Facts(label_dim=0), drawn, 2) is None


@pytest.mark.parametrize("kind", ["vector", "multi-hot"])
def test_made_up_conditions_are_refused(kind):
    facts = dataclasses.replace(VECTOR, conditioning=kind, conditions=None)
    with pytest.raises(ValueError, match=f"trained on {kind} labels of 2 numbers, which cannot be made up"):
        check_class(facts, None)
    with pytest.raises(ValueError, match=f"the network takes {kind} labels"):
        check_class(dataclasses.replace(VECTOR, conditioning=kind), 1)
    check_class(dataclasses.replace(VECTOR, conditioning=kind), None)


def test_sampling_and_searching_draw_from_the_model_s_conditions():
    net = Net()
    with pytest.raises(ValueError, match="cannot be made up"):
        generate(net, [0], sampler)
    with pytest.raises(ValueError, match="cannot be made up"):
        warmup_chunks(Field(net), 4, (1, 4, 4))
    net.conditions = POOL
    batch = next(generate(net, [3, 4], sampler))
    assert not batch.classes
    assert torch.equal(net.seen[-1], batch.labels)
    assert all(row in POOL.tolist() for row in batch.labels.tolist())
    chunk = next(iter(warmup_chunks(Field(net), 4, (1, 4, 4))))
    assert all(row in POOL.tolist() for row in chunk.field.class_labels.tolist())


def test_a_sampler_without_conditions_needs_and_gives_none():
    net = Net()
    batch = next(generate(net, [3, 4], sampler, conditional=False))
    assert batch.labels is None
    assert net.seen == (None,)

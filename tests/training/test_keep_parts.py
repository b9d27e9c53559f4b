"""Completion and assembly: which numbers of which parts are kept, and of which references."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import networks
from samplers.field import Field
from samplers.planning.options import SamplerOptions
from samplers.planning.plan import build_plan
from samplers.run import generate
from training.data.shapes import ShapeDataset
from training.generation import plan_with_progress
from training.generation_options import Options
from training.graded import Graded, GradedOptions
from training.keep_parts import read_part_keep, read_part_references

DATA = "shapes:boxes:size=6:seed=1"
SHAPE = (12, 15)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    layout = ShapeDataset(DATA).layout
    net = networks.build(
        "PartNetwork", num_parts=12, groups=[1, 6, 8], mean=list(layout.mean), std=list(layout.std), label_dim=5,
        width=16, depth=1, num_heads=2,
    )  # fmt: skip
    torch.nn.init.normal_(net.model.final_layer.linear.weight, std=0.3)
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("0.3", {(5, 3): 0.3}), ("parts:0,2-3", {(0, 0): 0.9, (1, 5): 0, (3, 14): 0.9}),
        ("parts:1=0.5", {(1, 0): 0.5, (0, 0): 0}), ("assembly", {(4, 0): 0, (4, 2): 0, (4, 5): 0.9, (4, 9): 0.9}),
        ("assembly:1", {(0, 6): 1, (0, 3): 0}), ("attributes:box=1,code=0.2", {(7, 0): 0, (7, 1): 1, (7, 14): 0.2}),
    ],
)  # fmt: skip
def test_words(net, text, kept):
    keep = read_part_keep(text, net.layout, SHAPE).expand(1, *SHAPE)[0]
    assert {place: keep[place].item() for place in kept} == kept


def test_masks(net, tmp_path):
    np.save(tmp_path / "m.npy", np.linspace(0, 1, 12)[:, None])
    assert read_part_keep(str(tmp_path / "m.npy"), net.layout, SHAPE).shape == (1, 12, 1)
    np.save(tmp_path / "m.npy", np.ones((4, 15)))
    with pytest.raises(ValueError, match="is a mask of 4x15, and shapes are 12x15"):
        read_part_keep(str(tmp_path / "m.npy"), net.layout, SHAPE)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("parts:12", "names part 12"), ("parts:one", "no strengths of parts"), ("left:0.5", "no strengths of parts"),
        ("attributes:hue=1", "names hue"), ("1.2", "outside of 0"), ("parts:0=2", "outside of 0"),
        ("none.npy", "is not a file"), ("attributes:box=1,size=0.5", "names numbers of size twice"),
    ],
)  # fmt: skip
def test_words_that_say_nothing(net, text, words):
    with pytest.raises(ValueError, match=words):
        read_part_keep(text, net.layout, SHAPE)


def test_references(net, tmp_path):
    facts = Field(net).facts
    references, labels = read_part_references(DATA, facts)
    exists = references[..., 0] > 0
    assert (exists.int().diff(dim=1) <= 0).all()  # parts that exist are the first
    assert labels.argmax(1).tolist() == [0, 1, 2, 3, 4, 0]
    np.savez(tmp_path / "a.npz", parts=np.ones((2, 3, 7)))
    with pytest.raises(ValueError, match="give references like its data"):
        read_part_references(str(tmp_path / "a.npz"), facts)
    with pytest.raises(ValueError, match="this network has 2 classes"):
        read_part_references(DATA, replace(facts, label_dim=2))


@pytest.mark.parametrize("element_times", [True, False])
@pytest.mark.parametrize("given", [{"N": 4}, {"solver": "dpmpp", "num_steps": 5}, {"solver": "dopri5", "rtol": 0.1}])
def test_what_is_kept_stays(net, given, element_times):
    field = Field(net)
    field = replace(field, facts=replace(field.facts, element_times=element_times))
    graded = Graded.of(field, GradedOptions(reference=DATA, keep="parts:0-1=1"), "cpu")
    graded = graded.follow(build_plan(graded.model, SamplerOptions(**given)))
    (made,) = generate(field, range(3, 9), graded, labels_of=graded.labels_of)
    wanted = net.decode(graded.references[[3, 4, 5, 0, 1, 2]])
    torch.testing.assert_close(made.images[:, :2].float(), wanted[:, :2], rtol=0, atol=1e-5)
    assert not torch.isclose(made.images[:, 2:].float(), wanted[:, 2:]).all()
    assert made.labels.argmax(1).tolist() == [3, 4, 0, 0, 1, 2]


@pytest.mark.parametrize(("more", "wanted"), [({}, [0, 1, 2, 3, 4, 0, 0, 1]), ({"class_idx": 2}, [2] * 8)])
def test_a_search_is_told_the_classes_of_the_references(net, more, wanted, monkeypatch):
    seen = []
    monkeypatch.setattr(type(net), "forward", lambda self, x, t, labels: seen.append(labels) or torch.zeros_like(x))
    given = {"dp": True, "num_steps": 2, "num_steps_tea": 3, "num_warmup": 8, "network": "a.safetensors"}
    options = Options(**given, reference=DATA, keep="assembly", binarise=False, **more)
    graded = Graded.of(Field(net), options, "cpu")
    plan_with_progress(graded.model, options, torch.device("cpu"), graded=graded)
    assert all(labels.argmax(1).tolist() == wanted for labels in seen)


def test_decisions_need_the_linear_path(net):
    other = networks.build(**{**net.config, "path": "trig"}).eval().requires_grad_(False)
    graded = Graded.of(Field(other), GradedOptions(reference=DATA, keep="assembly"), "cpu")
    with pytest.raises(ValueError, match="--binarise=0"):
        graded.follow(build_plan(graded.model, SamplerOptions(N=4)))
    graded.follow(build_plan(graded.model, SamplerOptions(N=4, binarise=False)))

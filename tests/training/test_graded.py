"""References and strengths as they are given on the command line, and the sampler that keeps them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from samplers.field import Facts, Field, as_field
from samplers.gits.teacher import warmup_chunks
from samplers.path import Linear
from samplers.planning.options import SamplerOptions
from samplers.planning.plan import build_plan
from samplers.run import generate
from torch_utils.misc import expand_to
from training.graded import Graded, GradedOptions, read_keep, read_references

SHAPE = (2, 4, 6)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("0.7", torch.full(SHAPE, 0.7)),
        ("left:0.5", torch.tensor([0.5, 0.5, 0.5, 0, 0, 0]).expand(SHAPE)),
        ("bottom:1", torch.tensor([0, 0, 1.0, 1.0])[:, None].expand(SHAPE)),
        ("channels:1=0.9", torch.tensor([0, 0.9])[:, None, None].expand(SHAPE)),
        ("channels:0=0.2,1=1", torch.tensor([0.2, 1.0])[:, None, None].expand(SHAPE)),
    ],
)
def test_strengths_in_words(text, kept):
    keep = read_keep(text, SHAPE)
    torch.testing.assert_close(keep.expand(1, *SHAPE)[0], kept.double(), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("text", "values"), [("quadrants", (0, 0.25, 0.5, 0.75)), ("quadrants:1,0,0,0.1", (1, 0, 0, 0.1))]
)
def test_quadrants_in_reading_order(text, values):
    keep = read_keep(text, SHAPE)[0, 0]
    assert tuple(keep[i, j].item() for i in (0, -1) for j in (0, -1)) == values
    assert keep.mean() == pytest.approx(sum(values) / 4)


def test_masks_of_files(tmp_path):
    mask = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    Image.fromarray(mask).save(tmp_path / "mask.png")
    np.save(tmp_path / "mask.npy", mask / 255)
    np.save(tmp_path / "channels.npy", np.array([0.1, 0.9]).reshape(2, 1, 1))
    for name in ("mask.png", "mask.npy"):
        np.testing.assert_allclose(read_keep(str(tmp_path / name), SHAPE)[0, 0], mask / 255, atol=1e-12)
    assert read_keep(str(tmp_path / "channels.npy"), SHAPE).flatten().tolist() == [0.1, 0.9]
    with pytest.raises(ValueError, match="is a mask of 4x6, and samples are 2x8x8"):
        read_keep(str(tmp_path / "mask.png"), (2, 8, 8))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("left", "says no strengths"), ("most", "says no strengths"), ("quadrants:1,2", "says no strengths"),
        ("1.5", "strengths outside"), ("left:nan", "strengths outside"), ("channels:2=1", "names channel 2"),
        ("channels:one=1", "says no strengths"), ("missing.png", "is not a file"),
        ("channels:0=.5,00=.7", "names channel 0 twice"),
    ],
)  # fmt: skip
def test_strengths_that_are_none(text, message):
    with pytest.raises(ValueError, match=message):
        read_keep(text, SHAPE)


def test_references_of_files(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    np.save(tmp_path / "latents.npy", np.ones((5, *SHAPE), np.float32))
    np.save(tmp_path / "latent.npy", np.ones(SHAPE, np.float32))
    own = read_references(str(tmp_path / "image.png"), Facts(shape=(3, 4, 6)))
    np.testing.assert_allclose(own[0].permute(1, 2, 0), pixels / 127.5 - 1, atol=1e-6)
    assert read_references(str(tmp_path / "latents.npy"), Facts(shape=SHAPE)).shape == (5, *SHAPE)
    assert read_references(str(tmp_path / "latent.npy"), Facts(shape=SHAPE)).shape == (1, *SHAPE)
    with pytest.raises(ValueError, match=r"are 3x4x6 .* and samples of this network 3x8x8"):
        read_references(str(tmp_path / "image.png"), Facts(shape=(3, 8, 8)))
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="is not an image"):
        read_references(str(tmp_path / "text.png"), Facts(shape=SHAPE))
    with pytest.raises(ValueError, match="nothing at --reference"):
        read_references(str(tmp_path / "none.png"), Facts(shape=SHAPE))


def test_files_of_other_kinds_of_numbers(tmp_path):
    """16 bits are scaled and not cut off, either byte order is read, and what would be misread is refused."""
    deep = np.arange(24, dtype=np.uint16).reshape(4, 6) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for name, array in {"big": deep.astype(">f4") / 65535, "complex": np.ones(SHAPE, complex),
                        "bytes": np.ones(SHAPE, np.uint8), "nan": np.full(SHAPE, np.nan),
                        "none": np.ones((0, *SHAPE))}.items():  # fmt: skip
        np.save(tmp_path / f"{name}.npy", array)
    for name in ("deep.png", "big.npy"):
        np.testing.assert_allclose(read_keep(str(tmp_path / name), SHAPE)[0, 0], deep / 65535, atol=1e-7)
    own = read_references(str(tmp_path / "deep.png"), Facts(shape=(1, 4, 6)))
    np.testing.assert_allclose(own[0, 0], deep / 65535 * 2 - 1, atol=1e-6)
    clear = np.full((4, 6, 4), 100, np.uint8)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    for name, message in {"complex.npy": "holds complex128", "bytes.npy": "floats", "nan.npy": "not finite",
                          "none.npy": "no sample", "clear.png": "has transparency"}.items():  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read_references(str(tmp_path / name), Facts(shape=SHAPE))
    for name, message in {"complex.npy": "holds complex128", "clear.png": "has transparency"}.items():
        with pytest.raises(ValueError, match=message):
            read_keep(str(tmp_path / name), SHAPE)


def model(**facts):
    """Data at 0 with noise of every element for itself."""
    field = Field(lambda x, t, y=None: x / expand_to(t, x).clamp(min=1e-3), Linear(), "velocity")
    known = {"shape": SHAPE, "label_dim": 0, "element_times": True, "start": "exact", **facts}
    return replace(field, facts=replace(field.facts, **known))


def _three(tmp_path):
    np.save(tmp_path / "latents.npy", np.random.default_rng(0).standard_normal((3, *SHAPE)).astype(np.float32))
    return tmp_path / "latents.npy"


def sampler(tmp_path, field, given=None, **options):
    graded = Graded.of(field, GradedOptions(reference=str(_three(tmp_path)), **options), "cpu")
    return graded.follow(build_plan(graded.model, SamplerOptions(**(given or {"N": 4}))))


@pytest.mark.parametrize("facts", [{}, {"element_times": False}])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_every_seed_has_its_reference(tmp_path, facts, batch):
    """Whatever the batch: what is kept is the reference of the seed, what is not depends on the seed alone."""
    field = model(**facts)
    graded = sampler(tmp_path, field, keep="left:1")
    made = torch.cat([b.images for b in generate(field, range(4, 11), graded, batch=batch)])
    whole = torch.cat([b.images for b in generate(field, range(4, 11), graded)])
    torch.testing.assert_close(made, whole, rtol=0, atol=1e-12)
    kept = graded.references[[s % 3 for s in range(4, 11)]]
    assert torch.equal(made[..., :3].float(), kept[..., :3])
    assert not torch.isclose(made[..., 3:].float(), kept[..., 3:]).any()


@pytest.mark.parametrize(
    "given", [{"N": 5}, {"solver": "heun", "N": 5}, {"solver": "dopri5"}, {"solver": "dpmpp", "num_steps": 6},
              {"solver": "ipndm", "t_steps": (20.0, 1.0, 0.1)}, {"steps": 5},
              {"num_steps": 6, "last_step": "mean"}, {"num_steps": 6, "last_step": "none", "sde_order": 2}],
)  # fmt: skip
@pytest.mark.parametrize("elements", [True, False])
def test_any_sampler_follows(tmp_path, given, elements):
    field = model(element_times=elements)
    graded = sampler(tmp_path, field, given, keep="left:1")
    made = next(iter(generate(field, range(3), graded))).images
    assert made.isfinite().all()
    torch.testing.assert_close(made[..., :3].float(), graded.references[..., :3], rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_search_starts_from_every_reference_whatever_the_batch(tmp_path, batch):
    graded = Graded.of(model(), GradedOptions(reference=str(_three(tmp_path)), keep="0.5"), "cpu")
    starts = [c.noise for c in warmup_chunks(graded.model, 5, SHAPE, batch=batch)]
    whole = next(iter(warmup_chunks(graded.model, 5, SHAPE, batch=5))).noise
    assert torch.equal(torch.cat(starts), whole)


def test_a_search_is_of_the_progress(tmp_path):
    graded = sampler(tmp_path, model(), {"dp": True, "num_steps": 4, "num_warmup": 4, "num_steps_tea": 9}, keep="0.5")
    assert graded.plan.chosen.found is not None
    made = next(iter(generate(model(), range(3), graded))).images
    assert made.isfinite().all()


@pytest.mark.parametrize(
    ("facts", "given", "options", "message"),
    [
        ({}, {"steps": 4, "S_churn": 3.0}, {"keep": "0.5"}, "different amounts of noise"),
        ({}, {"sde_order": 1}, {"keep": "0.5", "graded_steps": "size"}, "solver of one step"),
        ({}, {"num_steps": 4}, {"keep": "0.5", "graded_steps": "size"}, "solver of one step"),
        ({"element_times": False}, None, {"keep": "0.5", "graded_steps": "size"}, "times of their own"),
        ({"element_times": False}, None, {"keep": "0.5", "compensation_inverse": True}, "times of their own"),
        ({}, None, {}, "give --keep"),
        ({"shape": (3,)}, None, {"keep": "0.5"}, "needs a network of images"),
    ],
)
def test_what_cannot_be(tmp_path, facts, given, options, message):
    with pytest.raises(ValueError, match=message):
        sampler(tmp_path, model(**facts), given, **options)


@pytest.mark.parametrize("options", [{"keep": "0.5"}, {"graded_steps": "size"}, {"compensation_inverse": False}])
def test_options_that_need_a_reference(options):
    with pytest.raises(ValueError, match="add --reference"):
        Graded.of(as_field(model()), GradedOptions(**options), "cpu")


def test_what_decides_an_image_is_recorded(tmp_path):
    records = [sampler(tmp_path, model(), **o).record for o in (
        {"keep": "0.5"}, {"keep": "0.6"}, {"keep": "0.5", "graded_steps": "size"},
        {"keep": "0.5", "compensation_inverse": True},
    )]  # fmt: skip
    assert len({str(r) for r in records}) == 4

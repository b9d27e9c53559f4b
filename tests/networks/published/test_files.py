"""Files of others in their own containers: same tensors, averages, what they need to be told, what is refused."""

import dataclasses
import json
import math
import socket
import zipfile

import published_files
import pytest
import torch
from published_files import FAMILIES, lightning, tokenizer, yaml_of

import generate
import networks
from networks.published import ldm, openai
from networks.published.families import read_tensors
from networks.published.table import DATASETS, PUBLISHED
from networks.published.unet_shapes import first_match, unet_config
from networks.trunks.adm_unet import ADMUNet
from training.trained import with_settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("published")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path_factory):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("FEWSTEP_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


def files(name, folder):
    if name == "sd":
        pytest.importorskip("transformers")
    place = folder / name
    place.mkdir(exist_ok=True)
    return FAMILIES[name](place)


def load(found, **options):
    return networks.load_network(found.path, config={**found.config, **options}, classifier=found.classifier)


@pytest.mark.parametrize("name", FAMILIES)
def test_loads_what_was_put_in(name, folder):
    found = files(name, folder)
    state, net = read_tensors(found.path), load(found)
    raw = {k: v for k, v in state.items() if k.startswith(("model.diffusion_model.", "input_blocks.", "middle"))}
    for key, value in raw.items():
        if name in ("ldm", "cin"):
            value = state["model_ema." + key.removeprefix("model.").replace(".", "")]
        own = net.model.state_dict()[key.removeprefix("model.diffusion_model.")]
        assert torch.equal(own.flatten(), value.flatten()), key
    for key, value in state.items():
        if key.startswith("first_stage_model.") and ".loss." not in key:
            assert torch.equal(net.first_stage.state_dict()[key.removeprefix("first_stage_model.")], value)
    assert net.info["source"] == found.path.name
    if name in ("ldm", "cin", "sd"):
        assert net.info["weights"] == ("as in the file" if name == "sd" else "average")
        assert torch.equal(net.alphas_cumprod, state["alphas_cumprod"].double())
        assert math.isclose(net.sigma_max, 83.82249, rel_tol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_snapshot_of_ours_holds_all_of_it(name, folder, tmp_path):
    net = load(files(name, folder))
    for suffix in (".pkl", ".safetensors"):
        networks.save_network(tmp_path / f"x{suffix}", net)
        again = networks.load_network(tmp_path / f"x{suffix}")
        assert type(again) is type(net)
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("name", FAMILIES)
def test_levels_of_any_shape_agree(name, folder):
    net = load(files(name, folder))
    x = torch.randn(
        3, net.img_channels, net.img_resolution, net.img_resolution, generator=torch.Generator().manual_seed(1)
    )
    labels = condition(net, 3)
    s = 0.75  # the same number in every dtype
    outs = [net(x, level, labels) for level in (s, torch.tensor(s), torch.tensor([s]), torch.full([3], s).double())]
    # One embedding is multiplied in another order than three: a rounding in each of up to some hundred operations.
    atol = 100 * 2**-24 * float(outs[0].abs().max())
    for out in outs:
        torch.testing.assert_close(out, outs[0], rtol=0, atol=atol)
    assert outs[0].shape == x.shape


def condition(net, n):
    kind = getattr(net, "conditioning", "none")
    if kind == "text":
        return torch.randn(n, 8, 64, generator=torch.Generator().manual_seed(2))
    return torch.eye(net.label_dim)[:n] if net.label_dim else None


def test_a_class_model_without_class_is_refused(folder):
    for name in ("adm", "cin"):
        net = load(files(name, folder))
        with pytest.raises(ValueError, match="10 classes and none was given"):
            net(torch.zeros(2, net.img_channels, net.img_resolution, net.img_resolution), 1.0)


def test_the_empty_class_is_the_row_after_the_last(folder):
    net = load(files("cin", folder))
    x = torch.randn(2, 4, 8, 8)
    empty = net(x, 1.0, torch.zeros(2, 10))
    net.class_embedding.weight[3] = net.class_embedding.weight[10]
    torch.testing.assert_close(net(x, 1.0, torch.eye(10)[[3, 3]]), empty)


def test_text_conditions(folder, tmp_path):
    pytest.importorskip("transformers")
    from transformers import CLIPTextConfig, CLIPTextModel

    net = load(files("sd", folder))
    net.tokenizer = tokenizer(tmp_path / "tokenizer")
    own = net.encode_text(["ab c", "", "a " * 30])
    assert own.shape == (3, 8, 64)
    ids = torch.tensor([[17, 16, 10, 18, 18, 18, 18, 18], [17] + [18] * 7, [17] + [8] * 6 + [18]])
    whole = CLIPTextModel(CLIPTextConfig(**published_files.TEXT, eos_token_id=18, bos_token_id=17)).eval()
    inner = getattr(whole, "text_model", whole)
    inner.load_state_dict(net.text_encoder.text_model.state_dict(), strict=False)
    torch.testing.assert_close(own, whole(ids).last_hidden_state)
    net.tokenizer = tmp_path
    with pytest.raises(ValueError, match="holds no tokenizer"):
        net.encode_text([""])
    with pytest.raises(ValueError, match="needs a text condition"):
        net(torch.zeros(1, 4, 8, 8), 1.0)


def test_decode_of_a_latent_divides_by_the_scale(folder):
    net = load(files("cin", folder))
    z = torch.randn(2, 4, 8, 8)
    assert net.scale_factor == 0.5
    torch.testing.assert_close(net.decode(z), net.first_stage.decode(z / 0.5))
    image = torch.rand(2, 3, 8, 8) * 2 - 1
    torch.testing.assert_close(net.encode(image), net.first_stage.encode(image) * 0.5)


# What the tensors do not show.


def test_heads_order_and_schedule_must_be_said(folder):
    for name, words in (("adm", "image_size, num_head_channels, attention_order, schedule"), ("cm", "image_size")):
        found = files(name, folder)
        with pytest.raises(ValueError, match=f"do not show {words}"):
            networks.load_network(found.path)
    found = files("ldm", folder)
    with pytest.raises(ValueError, match=r"ldm\.zip do not show image_size"):
        networks.load_network(found.path)


@pytest.mark.parametrize("name", FAMILIES)
def test_tensors_show_the_rest(name, folder):
    """Every option that the tensors show is the one that the file was made with."""
    found = files(name, folder)
    state = read_tensors(found.path)
    prefix = "model.diffusion_model."
    shown = unet_config(
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix) or name in "adm cm"}
    )
    assert (shown["model_channels"], shown["channel_mult"], shown["num_res_blocks"]) == (32, [1, 2], 1)
    assert shown["attention_resolutions"] == [2]
    assert shown["resblock_updown"] == (name in ("adm", "cm"))
    assert shown["use_scale_shift_norm"] == (name == "adm")
    assert shown["num_classes"] == (10 if name == "adm" else None)
    assert shown.get("context_dim") == {"cin": 24, "sd": 64}.get(name)


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("change", [{"resblock_updown": True}, {"conv_resample": True}, {"conv_resample": False}])
def test_shapes_of_a_unet(levels, blocks, change):
    options = {"channel_mult": [1, 2, 2][:levels], "num_res_blocks": blocks, "attention_resolutions": [1], **change}
    with torch.device("meta"):
        net = ADMUNet(img_resolution=16, in_channels=3, out_channels=6, model_channels=32, num_heads=2, **options)
    shown = unet_config(net.state_dict())
    assert {k: shown[k] for k in options if levels > 1 or k != "resblock_updown"} == {
        k: v for k, v in options.items() if levels > 1 or k != "resblock_updown"
    } or levels == 1


FULL = {
    "cm": ({"attention_axes": 2, "model_channels": 256, "channel_mult": [1, 1, 2, 2, 4, 4]}, openai),
    "adm": ({"attention_axes": 1, "model_channels": 256, "channel_mult": [1, 1, 2, 2, 4, 4]}, openai),
    "sd": ({"model_channels": 320, "channel_mult": [1, 2, 4, 4], "context_dim": 768}, ldm),
}


@pytest.mark.parametrize("name", FULL)
def test_published_shapes_are_known(name):
    shown, module = FULL[name]
    assert first_match(shown, module.CATALOGUE)["image_size"] == (64 if name == "sd" else 256)


# Refusals.


@pytest.mark.parametrize("kind", ["lacks", "unknown", "shape"])
@pytest.mark.parametrize("name", ["adm", "ldm"])
def test_a_tensor_that_does_not_fit_is_named(name, kind, folder, tmp_path):
    found = files(name, folder)
    state = dict(read_tensors(found.path))
    key = "middle_block.2.out_layers.3.bias" if name == "adm" else "first_stage_model.decoder.mid.block_1.conv1.bias"
    value = state.pop(key)
    if kind == "unknown":
        state |= {key: value, f"{key}2": value}
    elif kind == "shape":
        state[key] = value[:-1]
    torch.save(state, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=key.removeprefix("first_stage_model.").replace(".", r"\.")):
        networks.load_network(tmp_path / "x.ckpt", config=found.config, classifier=found.classifier)


def test_an_average_that_lacks_a_tensor_is_refused(folder, tmp_path):
    found = files("ldm", folder)
    with zipfile.ZipFile(found.path) as archive:
        archive.extract("model.ckpt", tmp_path)
    state = dict(read_tensors(tmp_path / "model.ckpt"))
    del state["model_ema.diffusion_modelmiddle_block0in_layers0weight"]
    torch.save(state, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"average lacks 1 tensors, first model_ema\.diffusion_modelmiddle_block0in"):
        networks.load_network(tmp_path / "x.ckpt", config=found.config)


def test_foreign_tensors_are_named(folder, tmp_path):
    found = files("cin", folder)
    state = dict(read_tensors(found.path)) | {"vision.weight": torch.zeros(2)}
    torch.save(state, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"unknown tensors vision\.weight"):
        networks.load_network(tmp_path / "x.ckpt", config=found.config)
    torch.save({"a.b": torch.zeros(2), "c": torch.zeros(1)}, tmp_path / "y.pt")
    with pytest.raises(ValueError, match=r"no known network.*latent diffusion.*first names are a\.b, c"):
        networks.load_network(tmp_path / "y.pt")


def test_distilled_models_and_classifiers_are_no_networks(folder, tmp_path):
    found = files("cm", folder)
    (tmp_path / "cd_tiny.pt").write_bytes(found.path.read_bytes())
    with pytest.raises(ValueError, match="distilled consistency model"):
        networks.load_network(tmp_path / "cd_tiny.pt", config=found.config)
    found = files("adm", folder)
    with pytest.raises(ValueError, match="holds a classifier of noisy images: give it with --classifier"):
        networks.load_network(found.classifier, config=found.config)
    with pytest.raises(ValueError, match="holds no classifier"):
        networks.load_network(found.path, config=found.config, classifier=found.path)
    with pytest.raises(ValueError, match="a classifier guides models of guided diffusion"):
        networks.load_network(files("ldm", folder).path, classifier=found.classifier)


def test_either_rank_of_attention_kernels(folder, tmp_path):
    found = files("cm", folder)
    state = {
        k: v.squeeze(-1) if k.endswith(("qkv.weight", "proj_out.weight")) else v
        for k, v in read_tensors(found.path).items()
    }
    torch.save(state, tmp_path / "edm_x.pt")
    net = networks.load_network(tmp_path / "edm_x.pt", config={**found.config, "type": "cm_unet"})
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(net(x, 1.0), load(found)(x, 1.0))


def test_the_table_convention(folder):
    found = files("adm", folder)
    net = load(found, time_convention="table", clip_denoised=False)
    assert math.isclose(net.sigma_min, 0.0100005, rel_tol=1e-5)
    assert math.isclose(net.sigma_max, 157.4073, rel_tol=1e-6)
    x = torch.randn(1, 3, 16, 16) * 3
    assert net(x, 1.0, torch.eye(10)[:1]).abs().max() > 1
    with pytest.raises(ValueError, match="time_convention is 'x'"):
        load(found, time_convention="x")


# The original's own configuration.


def test_yaml_of_the_original(folder, tmp_path):
    found = files("ldm", folder)
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(yaml_of()))  # JSON is YAML
    net, x = networks.load_network(found.path, config=path), torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(net(x, 1.0), load(found)(x, 1.0))


HOSTILE_YAML = {
    "os.system": json.dumps(yaml_of("os.system")),
    "object": "model: !!python/object/apply:os.system [touch marker]",
    "alias bomb": "a: &a [1,1]\n"
    + "\n".join(f"{chr(98 + i)}: &{chr(98 + i)} [{f'*{chr(97 + i)},' * 40}]" for i in range(9)),
    "not yaml": "a: [",
    "a list": "- 1",
}


@pytest.mark.parametrize("name", HOSTILE_YAML)
def test_hostile_yaml(name, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(HOSTILE_YAML[name])
    with pytest.raises(ValueError, match=r"config\.yaml"):
        networks.load_network(files("ldm", folder).path, config=path)
    assert not (tmp_path / "marker").exists()


def test_data_sets_have_settings():
    assert set(DATASETS) == {
        "cifar10", "ffhq", "afhqv2", "imagenet64", "lsun_bedroom", "imagenet256", "lsun_bedroom_ldm", "ffhq_ldm",
        "ms_coco",
    }  # fmt: skip
    for name in DATASETS.values():
        assert {"schedule_type", "solver"} <= set(PUBLISHED[name].settings)
    asked = generate.Options(dataset_name="ms_coco", dp=True, solver_tea="heun")
    used = with_settings(asked)
    assert (used.coeff, used.solver_tea, used.num_steps_tea) == ((1.2,), "heun", 61)
    assert with_settings(dataclasses.replace(asked, dp=None, solver_tea=None)).coeff is None


def test_training_checkpoints_are_read_without_their_program(folder, tmp_path):
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}
    own = read_tensors(lightning(state, tmp_path / "x.ckpt"))
    assert all(torch.equal(own[k], v) and own[k].dtype == v.dtype for k, v in state.items())

"""Folders of diffusers: our denoiser against the library's own conversion and step, on tiny random pipelines."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from published_files import tokenizer

import networks
from samplers import Field

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

BLOCKS = {"block_out_channels": (32, 32), "layers_per_block": 1, "norm_num_groups": 8}


def pixels(**options):
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=3, **{"out_channels": 3, **options}, down_block_types=down, up_block_types=up,
        **BLOCKS,
    )  # fmt: skip


def text_unet():
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, cross_attention_dim=64, attention_head_dim=8,
        down_block_types=down, up_block_types=up, **BLOCKS,
    )  # fmt: skip


def dit():
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        num_embeds_ada_norm=10,
    )  # fmt: skip


def vae():
    return diffusers.AutoencoderKL(
        block_out_channels=(32, 32), norm_num_groups=8, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.3,
    )  # fmt: skip


PIPELINES = {
    "pixels": (pixels, {"beta_schedule": "linear"}, "unet", False),
    "learned variance": (lambda: pixels(out_channels=6), {"beta_schedule": "squaredcos_cap_v2"}, "unet", False),
    "classes": (lambda: pixels(num_class_embeds=5), {"prediction_type": "v_prediction"}, "unet", False),
    "sample": (pixels, {"prediction_type": "sample", "num_train_timesteps": 300}, "unet", False),
    "text": (text_unet, {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, "unet", True),
    "dit": (dit, {"beta_schedule": "linear"}, "transformer", True),
}


def write(folder, name):
    """A pipeline's folder with random weights."""
    torch.manual_seed(0)
    make, scheduler, part, latent = PIPELINES[name]
    net = make()
    for p in net.parameters():  # zero-initialised layers would hide what they do
        torch.nn.init.normal_(p, std=0.05)
    index = {
        "_class_name": "Some",
        part: ["diffusers", type(net).__name__],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    net.save_pretrained(folder / part)
    diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **scheduler).save_pretrained(
        folder / "scheduler"
    )
    if latent:
        vae().save_pretrained(folder / "vae")
        index["vae"] = ["diffusers", "AutoencoderKL"]
    if name == "text":
        config = transformers.CLIPTextConfig(
            hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1, vocab_size=19,
            max_position_embeddings=8, bos_token_id=17, eos_token_id=18,
        )  # fmt: skip
        transformers.CLIPTextModel(config).save_pretrained(folder / "text_encoder")
        words = transformers.CLIPTokenizer.from_pretrained(str(tokenizer(folder / "words")), model_max_length=8)
        words.save_pretrained(folder / "tokenizer")
        index |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            made[name] = write(tmp_path_factory.mktemp("pipeline"), name)
        return made[name]

    return get


def conditions(net, n):
    """Ours, and the keyword arguments of the library's network."""
    if net.conditioning == "text":
        tokens = net.encode_text(["ab", "c"][:n])
        return tokens, {"encoder_hidden_states": tokens}
    if net.label_dim:
        return torch.eye(net.label_dim)[[1, 3]], {"class_labels": torch.tensor([1, 3])}
    return None, {}


@pytest.mark.parametrize("name", PIPELINES)
def test_the_librarys_own_conversion_and_step(name, folders):
    net = networks.load_network(f"diffusers:{folders(name)}")
    scheduler = diffusers.DDIMScheduler.from_pretrained(folders(name) / "scheduler")
    steps = scheduler.config.num_train_timesteps
    labels, more = conditions(net, 2)
    scheduler.set_timesteps(steps)  # a step goes to the entry before
    channels = net.img_channels
    for t in (1, steps // 3, steps - 1):
        now, then = scheduler.alphas_cumprod[t].double(), scheduler.alphas_cumprod[t - 1].double()
        x_in = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(t))
        out = net.model(x_in, torch.full([2], t), **more, return_dict=False)[0][:, :channels]
        step = scheduler.step(out, t, x_in)
        sigma = ((1 - now) / now).sqrt()
        x = x_in.double() / now.sqrt()
        scale = 1 + float(sigma)
        field = Field(net).bind(labels)
        torch.testing.assert_close(
            field.data(x, sigma) / scale, step.pred_original_sample.double() / scale, rtol=1e-3, atol=1e-3
        )
        if t > 1:
            further = ((1 - then) / then).sqrt()
            own = x + (further - sigma) * field.drift(x, sigma)
            expected = step.prev_sample.double() / then.sqrt()
            torch.testing.assert_close(own / scale, expected / scale, rtol=1e-3, atol=1e-3)
    for shape in (sigma, sigma[None], sigma.expand(2)):
        assert net(x, shape, labels).shape == x.shape


@pytest.mark.parametrize("name", ["text", "dit"])
def test_latents(name, folders):
    net = networks.load_network(f"diffusers:{folders(name)}")
    z = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(net.decode(z), net.first_stage.decode(z / 0.3).sample)


def test_the_row_of_zeros_is_the_class_after_the_last(folders):
    net = networks.load_network(f"diffusers:{folders('dit')}")
    x = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(net(x, 1.0, torch.zeros(1, 10)), net(x, 1.0, torch.tensor([10])))
    assert not torch.allclose(net(x, 1.0, torch.zeros(1, 10)), net(x, 1.0, torch.tensor([0])))


@pytest.mark.parametrize("name", PIPELINES)
def test_generate(name, folders, tmp_path, monkeypatch):
    import generate

    monkeypatch.chdir(tmp_path)
    more = {"text": ["--prompt=ab", "--guidance-type=cfg", "--guidance-rate=3"],
            "dit": ["--guidance-type=cfg", "--guidance-rate=2"]}.get(name, [])  # fmt: skip
    arguments = [f"--network=diffusers:{folders(name)}", "--seeds=0,1", "--solver=ipndm", "--num-steps=6"]
    done = CliRunner().invoke(generate.main, [*arguments, "--schedule-type=discrete", "--grid=x.png", *more])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "x.png").exists()


def changed(folder, path, **values):
    content = json.loads((folder / path).read_text()) | values
    (folder / path).write_text(json.dumps(content))


def test_latents_without_an_autoencoder_are_refused(folders, tmp_path):
    shutil.copytree(folders("dit"), tmp_path / "x")
    index = json.loads((tmp_path / "x/model_index.json").read_text())
    del index["vae"]
    (tmp_path / "x/model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="4 channels, and the folder has no autoencoder"):
        networks.load_network(f"diffusers:{tmp_path / 'x'}")


BAD = {
    "class": (lambda f: changed(f, "model_index.json", unet=["os", "system"]), "unet of class system"),
    "no part": (lambda f: changed(f, "model_index.json", unet=[None, None]), "no unet or transformer"),
    "schedule": (lambda f: changed(f, "scheduler/scheduler_config.json", beta_schedule="x"), "noise schedule x"),
    "prediction": (lambda f: changed(f, "scheduler/scheduler_config.json", prediction_type="x"), "predicts x"),
    "flow": (lambda f: changed(f, "scheduler/scheduler_config.json", _class_name="FlowMatchX"), "flow-matching"),
    "no index": (lambda f: (f / "model_index.json").unlink(), "no folder of diffusers"),
    "no weights": (lambda f: next((f / "unet").glob("*.safetensors")).unlink(), "cannot be loaded"),
    "damaged": (lambda f: (f / "model_index.json").write_text("["), "not a JSON object"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_folders(name, folders, tmp_path):
    damage, piece = BAD[name]
    folder = tmp_path / "x"
    shutil.copytree(folders("pixels"), folder)
    damage(folder)
    with pytest.raises(ValueError, match=piece) as caught:
        networks.load_network(f"diffusers:{folder}")
    assert str(folder) in str(caught.value)


def test_a_folder_says_itself_what_it_holds(folders):
    with pytest.raises(ValueError, match="leave out the configuration"):
        networks.load_network(f"diffusers:{folders('pixels')}", config={"image_size": 8})

"""Folders of diffusers: our denoiser against the library's own conversion and step, on tiny random pipelines."""

import json
import shutil

import hostile
import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from pipelines import FLOW, PIPELINES, TEXT, write

import networks
from networks.describe import describe
from networks.published.diffusers_text import pack, unpack
from samplers import Field, get_schedule, sample
from samplers.guidance import cfg

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")


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
        condition = net.encode_text(["ab", "c"][:n])
        tokens, pooled = unpack(condition, net.text.pooled)
        more = {"encoder_hidden_states": tokens}
        if pooled is not None:  # of Stable Diffusion XL
            ids = torch.tensor([[16.0, 16, 0, 0, 16, 16]] * n)
            more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": ids}
        return condition, more
    if net.label_dim:
        return torch.eye(net.label_dim)[[1, 3]], {"class_labels": torch.tensor([1, 3])}
    return None, {}


@pytest.mark.parametrize("name", [n for n in PIPELINES if n not in FLOW])
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


def parts(net):
    """The parts of a loaded folder as the library's pipelines name them."""
    found = {"vae": net.first_stage}
    for i, (encoder, words) in enumerate(zip(net.text.encoders, net.text.tokenizers, strict=True)):
        found |= {f"text_encoder{f'_{i + 1}' if i else ''}": encoder, f"tokenizer{f'_{i + 1}' if i else ''}": words}
    return found


@pytest.mark.parametrize("name", ["text", "xl"])
def test_the_librarys_own_pipeline_of_a_noise_model(name, folders):
    net = networks.load_network(f"diffusers:{folders(name)}")
    scheduler = diffusers.DDIMScheduler.from_pretrained(folders(name) / "scheduler", steps_offset=1)
    more = {"safety_checker": None, "feature_extractor": None} if name == "text" else {}
    kind = diffusers.StableDiffusionPipeline if name == "text" else diffusers.StableDiffusionXLPipeline
    pipeline = kind(unet=net.model, scheduler=scheduler, **parts(net), **more)
    pipeline.set_progress_bar_config(disable=True)
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    theirs = pipeline(
        "ab", latents=start, num_inference_steps=4, guidance_scale=3.0, output_type="latent", height=16, width=16
    ).images
    abar = scheduler.alphas_cumprod[[*scheduler.timesteps.tolist(), 0]].double()
    sigmas = ((1 - abar) / abar).sqrt()
    noise = start.double() / abar[0].sqrt() / sigmas[0]
    guided = cfg(net, 3.0, class_labels=net.encode_text(["ab"]))
    ours = sample(guided, noise, sigmas, solver="euler") * abar[-1].sqrt()
    torch.testing.assert_close(ours.float(), theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", FLOW)
def test_the_librarys_own_pipeline_of_a_flow_model(name, folders):
    net = networks.load_network(f"diffusers:{folders(name)}", config={"guidance": 2.5})
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(folders(name) / "scheduler")
    kind = diffusers.StableDiffusion3Pipeline if name == "sd3" else diffusers.FluxPipeline
    pipeline = kind(transformer=net.model, scheduler=scheduler, **parts(net))
    pipeline.set_progress_bar_config(disable=True)
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    packed = start if name == "sd3" else pipeline._pack_latents(start, 1, 4, 8, 8)
    times = np.linspace(1, 0.25, 4)
    theirs = pipeline(
        "ab", latents=packed, sigmas=times, num_inference_steps=4, output_type="latent", height=16, width=16,
        guidance_scale=1.0 if name == "sd3" else 2.5, max_sequence_length=6,
    ).images  # fmt: skip
    theirs = theirs if name == "sd3" else pipeline._unpack_latents(theirs, 16, 16, 2)
    sigmas = net.sigma(torch.from_numpy(times[1:]))  # the first is infinite: the exact start
    torch.testing.assert_close(
        sigmas.float(), scheduler.sigmas[1:4] / (1 - scheduler.sigmas[1:4]), rtol=1e-5, atol=1e-6
    )
    field = Field(net).bind(net.encode_text(["ab"]))
    ours = sample(field, start.double(), sigmas, solver="euler", denoise_to_zero=True)
    torch.testing.assert_close(ours.float(), theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", FLOW)
def test_drift_and_step_of_a_flow_model(name, folders):
    net = networks.load_network(f"diffusers:{folders(name)}")
    field, labels = Field(net), net.encode_text(["ab", "c"])
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(folders(name) / "scheduler")
    times = np.linspace(1, 0.1, 10)
    scheduler.set_timesteps(sigmas=times, mu=float(np.log(net.shift)) if name == "flux" else None)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    for i in (0, 4, 9):
        t, then = scheduler.sigmas[i].double(), scheduler.sigmas[i + 1].double()
        drift = field.bind(labels).drift(x, t)
        scheduler._step_index = i
        theirs = scheduler.step(drift.float(), scheduler.timesteps[i], x.float()).prev_sample
        torch.testing.assert_close((x + (then - t) * drift).float(), theirs, rtol=1e-4, atol=1e-5)
    for shape in (t, t[None], t.expand(2)):
        torch.testing.assert_close(net(x, shape, labels), net(x, t, labels))
    levels = get_schedule(5, sigma_max=20, schedule_type="discrete", schedule_rho=1, net=net)
    steps = net.sigma_inv(levels).diff()
    torch.testing.assert_close(steps, steps.mean().expand(4), rtol=1e-9, atol=1e-12)


def test_sizes_and_strength_that_the_folder_does_not_say(folders):
    small = networks.load_network(f"diffusers:{folders('flux')}", config={"image_size": 8, "guidance": 1.0})
    other = networks.load_network(f"diffusers:{folders('flux')}")
    assert (small.img_resolution, small.decoded_shape) == (4, (3, 8, 8))
    assert small.shift < other.shift, "fewer tokens are shifted less"
    x, condition = torch.randn(1, 4, 4, 4), small.encode_text(["ab"])
    assert not torch.allclose(small(x, 0.5, condition), other(x, 0.5, condition))
    for value, piece in (
        ({"image_size": 9}, "image_size of 9"), ({"guidance": "x"}, "guidance=x"), ({"seed": 1}, "not seed=1"),
        ({"image_size": 2}, "1 is odd"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=piece):
            networks.load_network(f"diffusers:{folders('flux')}", config=value)
    with pytest.raises(ValueError, match="image_size of 32 is not possible"):
        networks.load_network(f"diffusers:{folders('dit')}", config={"image_size": 32})


def test_the_last_encoder_of_stable_diffusion_3_may_be_left_out(folders, tmp_path):
    shutil.copytree(folders("sd3"), tmp_path / "x")
    changed(tmp_path / "x", "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
    net = networks.load_network(f"diffusers:{tmp_path / 'x'}")
    tokens, pooled = unpack(net.encode_text(["ab"]), net.text.pooled)
    assert tokens.shape == (1, 8 + 256, 80)
    assert pooled.shape == (1, 48)
    assert not tokens[:, 8:].any()


def test_half_precision_files_alone_are_read(folders, tmp_path):
    shutil.copytree(folders("pixels"), tmp_path / "x")
    file = next((tmp_path / "x/unet").glob("*.safetensors"))
    diffusers.UNet2DModel.from_pretrained(tmp_path / "x/unet").half().save_pretrained(
        tmp_path / "x/unet", variant="fp16"
    )
    file.unlink()
    net = networks.load_network(f"diffusers:{tmp_path / 'x'}")
    assert {p.dtype for p in net.parameters()} == {torch.float32}


@pytest.mark.parametrize("size", [0, 3, 5, 10, 11])
def test_one_tensor_holds_tokens_and_vector(size):
    tokens, pooled = torch.randn(2, 4, 5), torch.randn(2, size) if size else None
    back = unpack(pack(tokens, pooled), size)
    assert torch.equal(back[0], tokens)
    assert (back[1] is None) if pooled is None else torch.equal(back[1], pooled)


@pytest.mark.parametrize(("name", "shift", "scale"), [("text", 0, 0.3), ("dit", 0, 0.3), ("sd3", 0.12, 0.36)])
def test_latents(name, shift, scale, folders):
    net = networks.load_network(f"diffusers:{folders(name)}")
    z = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(net.decode(z), net.first_stage.decode(z / scale + shift).sample)


def test_the_row_of_zeros_is_the_class_after_the_last(folders):
    net = networks.load_network(f"diffusers:{folders('dit')}")
    x = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(net(x, 1.0, torch.zeros(1, 10)), net(x, 1.0, torch.tensor([10])))
    assert not torch.allclose(net(x, 1.0, torch.zeros(1, 10)), net(x, 1.0, torch.tensor([0])))


@pytest.mark.parametrize("name", PIPELINES)
def test_generate(name, folders, tmp_path, monkeypatch):
    import generate

    monkeypatch.chdir(tmp_path)
    more = ["--prompt=ab"] if name in TEXT else []
    more += ["--guidance-type=cfg", "--guidance-rate=2"] if name in (*TEXT, "dit") else []
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
    "schedule": (lambda f: changed(f, "scheduler/scheduler_config.json", beta_schedule="x"), "noise schedule 'x'"),
    "prediction": (lambda f: changed(f, "scheduler/scheduler_config.json", prediction_type="x"), "predicts x"),
    "zero": (lambda f: changed(f, "scheduler/scheduler_config.json", rescale_betas_zero_snr=True), "zero signal"),
    "flow": (lambda f: changed(f, "scheduler/scheduler_config.json", _class_name="FlowMatchX"), "does not go with"),
    "shards": (
        lambda f: (f / "unet/x.safetensors.index.json").write_text('{"weight_map": {"a": "../../x.bin"}}'),
        "no .safetensors of its folder",
    ),
    "no index": (lambda f: (f / "model_index.json").unlink(), "no folder of diffusers"),
    "no weights": (lambda f: next((f / "unet").glob("*.safetensors")).unlink(), "has no .safetensors"),
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


def without(folder, ending, other=None):
    """Leave out a tensor, or give it another name."""
    file = next(folder.glob("*.safetensors"))
    tensors = safetensors.torch.load_file(file)
    name = next(n for n in tensors if n.endswith(ending))
    value = tensors.pop(name)
    safetensors.torch.save_file(tensors if other is None else {**tensors, other: value}, file, {"format": "pt"})


BAD_TEXT = {
    "no encoder": (lambda f: changed(f, "model_index.json", text_encoder=None), "has none there"),
    "other encoder": (lambda f: changed(f, "model_index.json", text_encoder_2=["os", "system"]), "another class"),
    "further": (lambda f: changed(f, "unet/config.json", class_embed_type="identity"), "further conditions"),
    "lacks": (lambda f: changed(f, "unet/config.json", encoder_hid_dim_type="text_proj", encoder_hid_dim=8),
              "its unet lacks the tensor encoder_hid_proj.bias; its unet lacks the tensor encoder_hid_proj.weight"),
    "text lacks": (lambda f: without(f / "text_encoder_2", "final_layer_norm.weight"),
                   "text_encoder_2 lacks the tensor"),
    "unknown": (lambda f: without(f / "vae", "decoder.conv_out.bias", "decoder.evil"),
                "lacks the tensor decoder.conv_out.bias; its vae holds the unknown tensor decoder.evil"),
    "no words": (lambda f: shutil.rmtree(f / "tokenizer"), "cannot be loaded"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TEXT)
def test_bad_text_parts(name, folders, tmp_path):
    damage, piece = BAD_TEXT[name]
    folder = tmp_path / "x"
    shutil.copytree(folders("xl"), folder)
    damage(folder)
    with pytest.raises(ValueError, match=piece):
        networks.load_network(f"diffusers:{folder}")


def test_a_folder_says_itself_what_it_holds(folders):
    with pytest.raises(ValueError, match="leave out the classifier"):
        networks.load_network(f"diffusers:{folders('pixels')}", classifier="x")
    net = networks.load_network(f"diffusers:{folders('text')}")
    with pytest.raises(ValueError, match="leave out --tokenizer"):
        net.tokenizer = "x"


def poisoned(folder):
    """Code beside every part, named where programs of others look for it."""
    for part in [p for p in folder.iterdir() if p.is_dir()]:
        (part / "evil.py").write_text(hostile.CODE)
        for name in ("config.json", "tokenizer_config.json", "scheduler_config.json"):
            if (part / name).exists():
                changed(part, name, auto_map={"AutoModel": "evil.X", "AutoTokenizer": ["evil.X", "evil.X"]})
    changed(folder, "model_index.json", custom_pipeline="evil.py")


HOSTILE = {
    "pickled weights": lambda f: (
        next((f / "unet").glob("*.safetensors")).unlink(),
        (f / "unet/diffusion_pytorch_model.bin").write_bytes(hostile.BODIES["posix system"][0]),
    ),
    "pickled text model": lambda f: (
        (f / "text_encoder/model.safetensors").unlink(),
        (f / "text_encoder/pytorch_model.bin").write_bytes(hostile.BODIES["posix system"][0]),
    ),
    "wide": lambda f: changed(f, "unet/config.json", block_out_channels=[1 << 20, 1 << 20]),
    "deep": lambda f: changed(f, "unet/config.json", layers_per_block=1 << 30),
    "wide text": lambda f: changed(f, "text_encoder/config.json", hidden_size=1 << 20, intermediate_size=1 << 20),
    "nested": lambda f: (f / "model_index.json").write_text('{"a":' * 100_000),
    "nested scheduler": lambda f: (f / "scheduler/scheduler_config.json").write_text("[" * 100_000),
    "shards": lambda f: (f / "vae/x.safetensors.index.json").write_text('{"weight_map": {"a": "/etc/passwd"}}'),
    **{
        f"safetensors {name}": lambda f, content=hostile.SAFETENSORS[name]: next(
            (f / "unet").glob("*.safetensors")
        ).write_bytes(content)
        for name in ("header 2^63", "offsets overlap", "header not JSON", "data missing")
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_folders(name, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folders("text"), tmp_path / "x")
    HOSTILE[name](tmp_path / "x")
    with hostile.bounded(20, 2000), pytest.raises(ValueError, match=r"x") as caught:
        networks.load_network("diffusers:x")
    assert str(caught.value).isprintable()
    assert not (tmp_path / hostile.MARKER).exists()


def test_code_in_a_folder_is_not_run(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folders("text"), tmp_path / "x")
    poisoned(tmp_path / "x")
    net = networks.load_network("diffusers:x")
    assert net.encode_text(["ab"]).shape == (1, 8, 64)
    assert "unet: UNet2DConditionModel" in describe("diffusers:x")
    assert not (tmp_path / hostile.MARKER).exists()


def test_describe(folders):
    page = describe(f"diffusers:{folders('flux')}")
    for piece in ("folder of diffusers", "transformer: FluxTransformer2DModel", "text_encoder_2: T5EncoderModel",
                  "transformer.x_embedder.weight", "parameters: "):  # fmt: skip
        assert piece in page
    net = networks.load_network(f"diffusers:{folders('flux')}")
    parts = [net.model, net.first_stage, *net.text.encoders]
    assert f"parameters: {sum(p.numel() for m in parts for p in m.parameters()):,}" in page
    with pytest.raises(ValueError, match="no folder of diffusers"):
        describe(f"diffusers:{folders('flux')}/vae")

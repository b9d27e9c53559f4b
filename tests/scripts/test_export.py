"""From a folder of diffusers to a calibrated solver in a pipeline of diffusers, by the commands of docs/export.md."""

import functools
import importlib

import pytest
import torch
from click.testing import CliRunner

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from pipelines import write  # noqa: E402

import generate  # noqa: E402
import networks  # noqa: E402
from samplers import Field, sample  # noqa: E402
from samplers.export.__main__ import main  # noqa: E402
from samplers.guidance import guide  # noqa: E402
from samplers.planning import levels  # noqa: E402
from samplers.recipe import ScheduleFile  # noqa: E402


def ran(command, *arguments):
    done = CliRunner().invoke(command, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    return done.output


def test_a_folder_is_calibrated_and_sampled_by_its_pipeline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(levels, "calibrate", functools.partial(levels.calibrate, num_heldout=4, iterations=1))
    folder = write(tmp_path / "model", "text")
    ran(
        generate.main, f"--network=diffusers:{folder}", "--calibrate=3", "--prompt=ab", "--guidance-type=cfg",
        "--guidance-rate=2", "--num-warmup=4", "--num-steps-tea=10", "--save-schedule=found.json", "--seeds=0",
        "--grid=x.png",
    )  # fmt: skip
    ran(main, "found.json", "scheduler", "--to=diffusers", f"--model={folder}")
    monkeypatch.syspath_prepend(tmp_path / "scheduler")
    module = importlib.import_module("fewstep_scheduler")

    net = networks.load_network(f"diffusers:{folder}")
    parts = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipe = diffusers.StableDiffusionPipeline(
        unet=net.model, vae=net.first_stage, requires_safety_checker=False, **parts,
        scheduler=module.FewstepScheduler.from_pretrained("scheduler"),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    text, empty = net.encode_text(["ab"]), net.empty_condition()
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    field = guide(Field(net), guidance_type="cfg", guidance_rate=2.0).bind(text)
    entry = ScheduleFile.load("found.json").choose(nfe=3)
    with torch.no_grad():
        expected = sample(
            field, noise.double(), entry.sigmas, solver="calibrated", coefficients=entry.coefficients, afs=entry.afs
        )
    for scheduler in (pipe.scheduler, module.FewstepScheduler.from_config(pipe.scheduler.config)):
        pipe.scheduler = scheduler
        got = pipe(
            prompt_embeds=text, negative_prompt_embeds=empty, guidance_scale=2.0, latents=noise.clone(),
            num_inference_steps=3, output_type="latent",
        ).images  # fmt: skip
        error = (got.double() - expected).abs().max() / expected.std()
        assert error < 1e-4  # both in float32, with sums in another order

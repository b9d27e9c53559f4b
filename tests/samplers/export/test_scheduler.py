"""The scheduler in pipelines of diffusers against `samplers.sample`, and what pipelines ask of schedulers."""

import importlib
import inspect
import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps  # noqa: E402
from pipelines import write  # noqa: E402
from tiny_pipelines import KINDS, SD_NOISE, TABLE, make  # noqa: E402

import networks  # noqa: E402
from samplers import SOLVERS, Field, sample  # noqa: E402
from samplers.export.scheduler import FewstepScheduler  # noqa: E402
from samplers.export.write import export  # noqa: E402
from samplers.recipe import ScheduleFile  # noqa: E402
from torch_utils.rng import TorchRNG  # noqa: E402

LEVELS = [14.6, 5.0, 2.2, 0.9, 0.3, 0.05]
ROWS = [[1.0], [1.4, -0.3], [1.8, -1.1, 0.3], [1.1, -0.1], [2.2, -2.1, 1.2, -0.3]]
FILES = {
    "searched": {"solver": "ipndm", "options": {"max_order": 3}, "entries": [{"sigmas": LEVELS}]},
    "first": {"solver": "ab", "options": {}, "entries": [{"sigmas": LEVELS, "afs": True}]},
    "calibrated": {
        "solver": "calibrated", "options": {"max_order": 4}, "entries": [{"sigmas": LEVELS, "coefficients": ROWS}],
    },
    "unipc": {"solver": "unipc", "options": {"thresholding": "none"}, "entries": [{"sigmas": LEVELS}]},
    "heun": {"solver": "heun", "options": {}, "entries": [{"sigmas": LEVELS}]},
    "dpm": {"solver": "dpm", "options": {"r": 0.4}, "entries": [{"sigmas": LEVELS}]},
    "deis": {"solver": "deis", "options": {"deis_vp_sigma_range": [0.03, 14.0]}, "entries": [{"sigmas": LEVELS}]},
}  # fmt: skip


def schedule(name, flow=False):
    return {**FILES[name], "path": "linear" if flow else "ve", "model_hash": None}


def swapped(pipe, content):
    return FewstepScheduler.from_config(pipe.scheduler.config, schedule=content)


def unit(seed=5):
    return torch.randn(1, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ours(field, content, noise, levels=None, **more):
    entry = content["entries"][0]
    options = {**content["options"], **({"coefficients": entry["coefficients"]} if "coefficients" in entry else {})}
    how = {"afs": entry.get("afs", False), "start": "exact" if content["path"] == "linear" else None, **more}
    with torch.no_grad():
        return sample(field, noise, levels or entry["sigmas"], solver=content["solver"], **how, **options)


def same(got, expected):
    """Time steps are told in float32, which bounds what can be asked of states in float64."""
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


CASES = [*((kind, "calibrated") for kind in KINDS), *(("sd", name) for name in FILES if name != "calibrated")]
CASES += [("flow", "heun"), ("flow", "searched"), ("sdxl", "heun")]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_pipelines_sample_as_we_do(kind, name):
    pipe, call, field = make(kind)
    content = schedule(name, kind == "flow")
    pipe.scheduler = swapped(pipe, content)
    solver = SOLVERS[content["solver"]]
    evaluations = solver.nfe(len(LEVELS), afs=name == "first") + (kind == "flow")
    steps = -(-evaluations // solver.evaluations)
    got = pipe(latents=unit(), num_inference_steps=steps, **call).images
    assert len(pipe.scheduler.timesteps) == evaluations
    expected = ours(field, content, unit())
    assert expected.std() > 0.1
    same(got, expected)


@pytest.mark.parametrize(("kind", "name", "strength"), [
    ("sd", "calibrated", 0.6), ("sdxl", "searched", 0.4), ("sd", "heun", 0.6), ("flow", "searched", 0.5),
])  # fmt: skip
def test_image_to_image(kind, name, strength):
    pipe, call, field = make(kind, img2img=True)
    content = schedule(name, kind == "flow")
    pipe.scheduler = swapped(pipe, content)
    steps = len(LEVELS) - 1 + (kind == "flow")
    begin = steps - min(int(steps * strength), steps)
    image, generator = unit(6), torch.Generator().manual_seed(9)
    noise = torch.randn(1, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    if kind == "flow":  # its pipeline encodes whatever it is given
        pipe.prepare_latents = lambda image, t, *rest: pipe.scheduler.scale_noise(unit(6), t, noise)
        call["image"] = torch.zeros(1, 3, 64, 64)
    else:
        call["image"] = image
    got = pipe(strength=strength, num_inference_steps=steps, generator=generator, **call).images
    levels = LEVELS[begin - (kind == "flow") :]
    entry = content["entries"][0]
    options = dict(content["options"])
    if "coefficients" in entry:
        rows = entry["coefficients"][begin:]
        options["coefficients"] = [[*row[:n], sum(row[n:])] for n, row in enumerate(rows)]
    x = image + levels[0] * noise
    with torch.no_grad():
        same(got, SOLVERS[content["solver"]].fn(field.ve(), x, levels, **options))


def test_a_part_of_the_levels():
    pipe, call, field = make("sd")
    content = schedule("searched")
    pipe.scheduler = swapped(pipe, content)
    part = LEVELS[:3] + LEVELS[4:]
    same(pipe(latents=unit(), sigmas=part, **call).images, ours(field, content, unit(), part))
    ending = [*part, 0.0]
    same(pipe(latents=unit(), sigmas=ending, **call).images, ours(field, content, unit(), ending))
    times = [float(TABLE.network_time(s)) for s in LEVELS[:3]]
    got = pipe(latents=unit(), timesteps=times, **call).images
    same(got, ours(field, content, unit(), [*LEVELS[:3], LEVELS[-1]]))


def test_noise_comes_from_the_pipelines_generator():
    pipe, call, field = make("sd")
    content = schedule("searched") | {"solver": "sa", "options": {"tau": 0.8, "max_order": 2}}
    pipe.scheduler = swapped(pipe, content)

    def draws():
        return torch.Generator().manual_seed(3)

    got = pipe(latents=unit(), num_inference_steps=5, generator=draws(), **call).images
    expected = ours(field, content, unit(), rng=TorchRNG("cpu", draws()))
    same(got, expected)
    assert not torch.allclose(expected, ours(field, content, unit(), rng=TorchRNG("cpu", torch.Generator())), atol=1e-2)


def test_levels_of_a_flow_are_times():
    pipe, call, field = make("flow")
    content = schedule("searched", flow=True)
    pipe.scheduler = swapped(pipe, content)
    pipe.scheduler.set_timesteps(6)
    assert pipe.scheduler.sigmas[0] == 1
    assert pipe.scheduler.timesteps[0] == 1000
    part = [14.6, 2.2, 0.3]
    times = [1.0, *(s / (1 + s) for s in part)]
    same(pipe(latents=unit(), sigmas=times, **call).images, ours(field, content, unit(), part))


def test_levels_that_a_calibrated_file_does_not_know(caplog):
    pipe, call, field = make("sd")
    pipe.scheduler = swapped(pipe, schedule("calibrated"))
    levels = [10.0, 2.0, 0.5]
    caplog.clear()
    got = pipe(latents=unit(), sigmas=levels, **call).images
    assert len(caplog.records) == 1
    same(got, sample(field, unit(), levels, solver="ipndm"))


def test_an_expert_that_ends_early():
    """The second part goes on from where the first stopped, as an ensemble of SDXL does."""
    pipe, call, field = make("sdxl")
    content = {**schedule("searched"), "options": {"max_order": 1}}
    pipe.scheduler = swapped(pipe, content)
    middle = pipe(latents=unit(), num_inference_steps=5, denoising_end=0.3, **call).images
    rest, call, _ = make("sdxl", img2img=True)
    rest.scheduler = swapped(rest, content)
    end = rest(image=middle, num_inference_steps=5, denoising_start=0.3, **call).images
    same(end, ours(field, content, unit()))


def test_saving_and_loading(tmp_path):
    pipe, call, _ = make("sd-v")
    pipe.scheduler = swapped(pipe, schedule("calibrated"))
    pipe.scheduler.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert config["schedule"]["entries"][0]["coefficients"] == ROWS
    assert config["prediction_type"] == "v_prediction"
    again = FewstepScheduler.from_pretrained(tmp_path)
    expected = pipe(latents=unit(), num_inference_steps=5, **call).images
    pipe.scheduler = again
    assert torch.equal(pipe(latents=unit(), num_inference_steps=5, **call).images, expected)
    pipe.scheduler = FewstepScheduler.from_config(again.config)
    assert torch.equal(pipe(latents=unit(), num_inference_steps=5, **call).images, expected)
    back = diffusers.DDIMScheduler.from_config(again.config)
    assert back.config.beta_end == SD_NOISE["beta_end"]
    assert back.config.prediction_type == "v_prediction"


def test_what_pipelines_read():
    scheduler = FewstepScheduler(**SD_NOISE, schedule=schedule("searched"))
    assert {"timesteps", "sigmas", "mu"} <= set(inspect.signature(scheduler.set_timesteps).parameters)
    assert "generator" in inspect.signature(scheduler.step).parameters
    assert "eta" not in inspect.signature(scheduler.step).parameters
    assert retrieve_timesteps(scheduler, 5)[1] == 5
    assert retrieve_timesteps(scheduler, sigmas=LEVELS)[1] == 5
    assert scheduler.config.num_train_timesteps == len(scheduler) == 1000
    assert scheduler.config.get("base_image_seq_len", 256) == 256
    assert scheduler.config.use_flow_sigmas
    assert scheduler.step_index is None
    assert scheduler.begin_index is None
    x = unit()
    assert scheduler.scale_model_input(x, scheduler.timesteps[0]) is x
    out = scheduler.step(x, scheduler.timesteps[0], x, return_dict=False)
    assert isinstance(out, tuple)
    assert len(out) == 1
    assert scheduler.step_index == 1
    assert scheduler.num_inference_steps == len(scheduler.timesteps) == 5
    assert len(scheduler.sigmas) == 6
    assert (scheduler.order, FewstepScheduler(schedule=schedule("heun")).order) == (1, 2)
    assert FewstepScheduler._compatibles == []
    assert isinstance(scheduler, diffusers.SchedulerMixin)
    scheduler.set_begin_index(2)
    assert scheduler.begin_index == 2
    assert scheduler.init_noise_sigma == pytest.approx(14.6 / math.hypot(1, 14.6))
    half = x.half()
    scheduler.set_timesteps(5)
    assert scheduler.step(half, scheduler.timesteps[0], half).prev_sample.dtype == torch.float16


def test_adding_noise():
    scheduler = FewstepScheduler(**SD_NOISE, schedule=schedule("searched"))
    ddim = diffusers.DDIMScheduler(**SD_NOISE)
    data, noise, t = unit(1).expand(2, -1, -1, -1), unit(2), torch.tensor([3, 700])
    torch.testing.assert_close(
        scheduler.add_noise(data, noise, t), ddim.add_noise(data, noise, t), rtol=1e-5, atol=1e-5
    )
    flow = FewstepScheduler(schedule=schedule("searched", flow=True))
    stock = diffusers.FlowMatchEulerDiscreteScheduler()
    stock.set_timesteps(4)
    t = stock.timesteps[1:2]
    torch.testing.assert_close(
        flow.scale_noise(data, t, noise), stock.scale_noise(data, t, noise), rtol=1e-5, atol=1e-5
    )
    assert torch.equal(flow.scale_noise(data, torch.tensor([1000.0]), noise), noise.expand(2, -1, -1, -1))


def test_shift_is_never_applied_again():
    flow = FewstepScheduler.from_config(
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config, schedule=schedule("searched", flow=True)
    )
    flow.set_timesteps(6, mu=1.1)
    expected = [1.0, *(s / (1 + s) for s in LEVELS)]
    torch.testing.assert_close(flow.sigmas, torch.tensor(expected))


class TestStockSchedulers:
    """What those of the library do with custom levels: why this one is needed."""

    def test_euler_takes_the_terminal_level_too(self):
        euler = diffusers.EulerDiscreteScheduler(**SD_NOISE)
        euler.set_timesteps(sigmas=np.array([14.6, 1.0, 0.0]))
        assert euler.sigmas.tolist() == pytest.approx([14.6, 1.0, 0.0])
        assert len(euler.timesteps) == 2

    def test_flow_matching_appends_0_and_shifts_again(self):
        flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        flow.set_timesteps(sigmas=[1.0, 0.5])
        assert flow.sigmas.tolist() == pytest.approx([1.0, 0.75, 0.0])
        flow = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
        flow.set_timesteps(sigmas=[1.0, 0.5], mu=math.log(3))
        assert flow.sigmas.tolist() == pytest.approx([1.0, 0.75, 0.0])

    def test_unipc_takes_levels_of_flows_alone_and_whole_time_steps(self):
        unipc = diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
        unipc.set_timesteps(2, sigmas=np.array([0.9993, 0.5]))
        assert unipc.timesteps.dtype == torch.int64
        with pytest.raises(ValueError, match="use_flow_sigmas"):
            diffusers.UniPCMultistepScheduler().set_timesteps(2, sigmas=np.array([10.0, 1.0]))

    def test_dpm_solver_takes_no_levels_and_whole_time_steps(self):
        dpm = diffusers.DPMSolverMultistepScheduler()
        assert "sigmas" not in inspect.signature(dpm.set_timesteps).parameters
        dpm.set_timesteps(timesteps=[900, 500, 100])
        assert dpm.timesteps.dtype == torch.int64

    @pytest.mark.parametrize("name", ["DEISMultistep", "SASolver", "IPNDM", "LMSDiscrete"])
    def test_others_take_neither(self, name):
        parameters = inspect.signature(getattr(diffusers, f"{name}Scheduler").set_timesteps).parameters
        assert not {"sigmas", "timesteps"} & set(parameters)


BAD = {
    "prediction": (
        lambda: FewstepScheduler(prediction_type="flow_prediction", schedule=schedule("searched")),
        "on the path 've', which predicts epsilon or .* and this model predicts flow_prediction",
    ),
    "noise schedule": (
        lambda: FewstepScheduler(beta_schedule="x", schedule=schedule("searched")), "no noise schedule 'x'",
    ),
    "steps": (
        lambda: FewstepScheduler(schedule=schedule("searched")).set_timesteps(50), "schedules of 5 steps, not of 50",
    ),
    "both": (
        lambda: FewstepScheduler(schedule=schedule("searched")).set_timesteps(sigmas=[2, 1], timesteps=[3]),
        "give one of them",
    ),
    "rising": (
        lambda: FewstepScheduler(schedule=schedule("searched")).set_timesteps(sigmas=[1.0, 2.0]), "falling numbers",
    ),
    "none": (lambda: FewstepScheduler(schedule=schedule("searched")).set_timesteps(sigmas=[]), "falling numbers"),
    "infinite": (
        lambda: FewstepScheduler(schedule=schedule("searched")).set_timesteps(sigmas=[math.inf, 1.0]), "trained on",
    ),
    "beyond the table": (
        lambda: FewstepScheduler(schedule=schedule("searched")).set_timesteps(sigmas=[160.0, 1.0]), "up to 157.407",
    ),
    "before set_timesteps": (
        lambda: FewstepScheduler(schedule=schedule("searched")).step(unit(), 3.0, unit()), "call set_timesteps",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    make_bad, sentence = BAD[name]
    with pytest.raises(ValueError, match=sentence):
        make_bad()


def test_begin_within_a_step_and_steps_after_the_end():
    scheduler = FewstepScheduler(schedule=schedule("heun"))
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(3)
    with pytest.raises(ValueError, match="lies within a step"):
        scheduler.step(unit(), scheduler.timesteps[3], unit())
    scheduler.set_timesteps(5)
    for t in scheduler.timesteps:
        x = scheduler.step(unit(), t, unit()).prev_sample
    assert x.isfinite().all()
    with pytest.raises(ValueError, match="is over"):
        scheduler.step(unit(), t, unit())
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="time step 3 is not one"):
        scheduler.step(unit(), 3, unit())


def test_a_pipeline_without_custom_levels_names_what_to_do():
    with pytest.raises(ValueError, match="does not support custom sigmas"):
        retrieve_timesteps(diffusers.DDIMScheduler(), sigmas=[1.0, 0.5])


def test_flux(tmp_path):
    """Its pipeline passes levels of its own unless the scheduler says use_flow_sigmas, and a shift by image size."""
    net = networks.load_network(f"diffusers:{write(tmp_path / 'model', 'flux')}")
    field = Field(net).bind(net.encode_text(["ab"]))
    condition = net._condition(field.class_labels, torch.zeros(1, net.img_channels, 8, 8))
    parts = dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    stock = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    pipe = diffusers.FluxPipeline(transformer=net.model, scheduler=stock, **parts)
    pipe.set_progress_bar_config(disable=True)
    content = schedule("searched", flow=True)
    pipe.scheduler = swapped(pipe, content)
    noise = unit().float()[:, : net.img_channels]
    got = pipe(
        prompt_embeds=condition.tokens, pooled_prompt_embeds=condition.pooled, guidance_scale=net.guidance,
        latents=pipe._pack_latents(noise, 1, net.img_channels, 8, 8), num_inference_steps=6, output_type="latent",
        height=64, width=64,
    ).images  # fmt: skip
    expected = ours(field, content, noise.double())
    expected = pipe._pack_latents(expected, 1, net.img_channels, 8, 8)
    assert (got - expected).abs().max() < 1e-4 * expected.std()


@pytest.mark.parametrize("carried", [False, True])
def test_a_folder_that_names_the_module(tmp_path, monkeypatch, carried):
    """`model_index.json` may say which module the scheduler is in."""
    folder = write(tmp_path / "model", "pixels")
    content = schedule("searched")
    content["entries"] = [{"sigmas": [100.0, 10.0, 1.0, 0.1]}]
    ScheduleFile.from_dict(content).save(tmp_path / "three.json")
    export(tmp_path / "three.json", "diffusers", tmp_path / "lib", folder)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "DDPMPipeline", "scheduler": ["fewstep_scheduler", "FewstepScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    if carried:  # with the model, for who trusts it
        shutil.copytree(tmp_path / "lib", folder / "scheduler", dirs_exist_ok=True)
    else:
        shutil.copy(tmp_path / "lib" / "scheduler_config.json", folder / "scheduler")
        monkeypatch.syspath_prepend(tmp_path / "lib")
        monkeypatch.delitem(sys.modules, "fewstep_scheduler", raising=False)
        importlib.import_module("fewstep_scheduler")
    pipe = diffusers.DDPMPipeline.from_pretrained(folder, local_files_only=True, trust_remote_code=carried)
    assert "fewstep_scheduler" in type(pipe.scheduler).__module__
    pipe.set_progress_bar_config(disable=True)
    assert pipe(num_inference_steps=3, output_type="np").images.shape == (1, 8, 8, 3)


def test_export_runs_without_this_project(tmp_path):
    pipe, _, _ = make("sd")
    content = schedule("calibrated")
    pipe.scheduler.save_pretrained(tmp_path / "model")
    ScheduleFile.from_dict(content).save(tmp_path / "five.json")
    export(tmp_path / "five.json", "diffusers", tmp_path / "out", tmp_path / "model" / "scheduler_config.json")
    code = (
        "import sys, torch; sys.path.insert(0, 'out'); from fewstep_scheduler import FewstepScheduler\n"
        "s = FewstepScheduler.from_pretrained('out'); s.set_timesteps(5); x = torch.ones(1, 4, 2, 2).double()\n"
        "for t in s.timesteps: x = s.step(0.5 * x, t, x).prev_sample\n"
        "print(x.mean().item(), {'samplers', 'torch_utils', 'networks'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    value, rest = done.stdout.split(" ", 1)
    scheduler = swapped(pipe, content)
    scheduler.set_timesteps(5)
    x = torch.ones(1, 4, 2, 2).double()
    for t in scheduler.timesteps:
        x = scheduler.step(0.5 * x, t, x).prev_sample
    assert float(value) == pytest.approx(x.mean().item(), rel=1e-12)
    assert rest.strip() == "set()"

"""Files for k-diffusion and ComfyUI against `samplers.sample`; ComfyUI itself is a stand-in with its interface."""

import asyncio
import importlib.util
import json
import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from solver_variants import curved

from samplers import Field, sample
from samplers.calibration.between import between
from samplers.export.__main__ import main
from samplers.export.write import TARGETS, export
from samplers.recipe import ScheduleFile

LEVELS = [14.6, 5.0, 2.2, 0.9, 0.3, 0.05]
ROWS = [[1.0], [1.4, -0.3], [1.8, -1.1, 0.3], [1.1, -0.1], [2.2, -2.1, 1.2, -0.3]]


def schedule_file(folder, solver="calibrated", path="ve", **more):
    entry = {"sigmas": LEVELS, **({"coefficients": ROWS} if solver == "calibrated" else {})}
    content = {"solver": solver, "path": path, "entries": [entry], **more}
    ScheduleFile.from_dict(content).save(folder / "five.json")
    return folder / "five.json"


def load(path, name):
    """A Python file, or a package, from where it lies."""
    init = path / "__init__.py" if path.is_dir() else path
    spec = importlib.util.spec_from_file_location(
        name, init, submodule_search_locations=[str(path)] if path.is_dir() else None
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def noise():
    return torch.randn(2, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def velocity(x, t, class_labels=None):
    return torch.tanh(x + t)


FLOW = Field(velocity, "linear", "velocity")


def flow_denoiser(x, t, **more):
    t = t.reshape(-1, 1, 1, 1)
    return x - t * velocity(x, t)


@pytest.fixture
def kdiffusion(tmp_path):
    return lambda **how: load(export(schedule_file(tmp_path, **how), "kdiffusion", tmp_path / "k.py")[0], "k")


def test_the_files_own_schedule(kdiffusion):
    module, seen = kdiffusion(), []
    sigmas = module.get_sigmas(5)
    assert sigmas.dtype == torch.float32
    got = module.sample_schedule(curved, noise() * LEVELS[0], sigmas, callback=seen.append, disable=True)
    torch.testing.assert_close(got, sample(curved, noise(), LEVELS, solver="calibrated", coefficients=ROWS))
    assert [s["i"] for s in seen] == [0, 1, 2, 3, 4]
    assert set(seen[0]) == {"x", "i", "sigma", "sigma_hat", "denoised"}
    assert [float(s["sigma"]) for s in seen] == pytest.approx(LEVELS[:5])


def test_disable_switches_the_progress_bar_off(kdiffusion, capsys):
    module = kdiffusion()
    for disable in (True, False):
        module.sample_schedule(curved, noise(), module.get_sigmas(5), disable=disable)
        assert ("5/5" in capsys.readouterr().err) == (not disable)


def test_every_solver_on_any_levels(kdiffusion):
    module, levels = kdiffusion(), [10.0, 3.0, 1.0, 0.2, 0.0]
    sigmas, asked = torch.tensor(levels, dtype=torch.float64), []

    def model(x, sigma, shift):
        asked.append(sigma.shape)
        return curved(x, sigma) + shift

    for name in sorted(set(module.SAMPLERS) - {"sample_renoise"}):
        seen, more = [], {"tau": 0.0} if name == "sample_sa" else {}
        function = getattr(module, name)
        got = function(model, noise() * 10, sigmas, {"shift": 0.0}, seen.append, True, **more)
        off = {"thresholding": "none"} if name in ("sample_dpmpp", "sample_unipc") else more
        expected = sample(curved, noise(), levels, solver=name.removeprefix("sample_"), **off)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
        assert [s["i"] for s in seen] == [0, 1, 2, 3]
    assert set(asked) == {(2,)}
    got = module.sample_dpmpp(curved, noise() * 10, sigmas, disable=True, max_order=2)
    torch.testing.assert_close(got, sample(curved, noise(), levels, solver="dpmpp", max_order=2, thresholding="none"))


@pytest.mark.parametrize("solver", ["ipndm", "heun"])
def test_flows_in_their_own_times(kdiffusion, solver):
    module = kdiffusion(solver=solver, path="linear")
    (steps,) = module.STEPS
    sigmas, seen = module.get_sigmas(steps), []
    assert sigmas[0] == 1
    got = module.sample_schedule(flow_denoiser, noise(), sigmas, callback=seen.append, disable=True)
    expected = sample(FLOW, noise(), LEVELS, solver=solver, start="exact")
    torch.testing.assert_close(got / (1 - sigmas[-1].double()), expected, rtol=1e-6, atol=1e-6)
    assert [s["i"] for s in seen] == list(range(6))
    ending = torch.cat([sigmas, torch.zeros(1)])
    clean = module.sample_schedule(flow_denoiser, noise(), ending, disable=True)
    torch.testing.assert_close(
        clean, sample(FLOW, noise(), [*LEVELS, 0], solver=solver, start="exact"), rtol=1e-6, atol=1e-6
    )
    with pytest.raises(ValueError, match=r"made for a flow model, .* begins at 14\.6"):
        module.sample_schedule(flow_denoiser, noise(), torch.tensor(LEVELS))


def test_lists(tmp_path):
    (text,) = export(schedule_file(tmp_path), "sigmas", tmp_path / "five.txt")
    assert text.read_text() == "14.6, 5, 2.2, 0.9, 0.3, 0.05\n"
    (found,) = export(schedule_file(tmp_path, solver="ab", path="linear"), "sigmas", tmp_path / "list.json")
    assert json.loads(found.read_text()) == pytest.approx([1.0, *(s / (1 + s) for s in LEVELS)])


def test_one_coefficient_of_a_search(tmp_path):
    entries = [{"sigmas": levels, "coeff": c} for c in (1.1, 1.2) for levels in ([9 * c, 1.0], [9 * c, 2.0, 0.5])]
    ScheduleFile.from_dict({"solver": "ab", "entries": entries}).save(tmp_path / "found.json")
    (text,) = export(tmp_path / "found.json", "sigmas", tmp_path / "x.txt", coeff=1.2)
    assert text.read_text() == "10.8, 1\n10.8, 2, 0.5\n"
    for coeff, sentence in (
        (None, "several schedules of one length: say --coeff, one of 1.1, 1.2"),
        (3.0, "no schedule"),
    ):
        with pytest.raises(ValueError, match=sentence):
            export(tmp_path / "found.json", "sigmas", tmp_path / "y.txt", coeff=coeff)
    module = load(export(tmp_path / "found.json", "kdiffusion", tmp_path / "k.py", coeff=1.1)[0], "k")
    assert module.STEPS == [1, 2]
    with pytest.raises(ValueError, match="schedules of 1, 2 steps, not of None"):
        module.get_sigmas()


@pytest.mark.parametrize("path", ["ve", "linear"])
def test_evaluations_that_a_file_lacks(tmp_path, path, comfy):
    """Every target gets the solver that `generate.py --nfe` makes, and one line says so."""
    comfy()
    entries = [
        {"sigmas": np.geomspace(14.6, 0.05, n + 1).tolist(), "coefficients": [([0.2, -0.2, 0.0, 1.0][-k:]) for k in
         (min(i + 1, 4) for i in range(n))]} for n in (4, 6)
    ]  # fmt: skip
    content = {"solver": "calibrated", "path": path, "entries": entries}
    ScheduleFile.from_dict(content).save(tmp_path / "two.json")
    ahead = int(path == "linear")  # an exact start is an evaluation, and so a step of theirs
    made = between(ScheduleFile.from_dict(content), 5 + ahead, ahead)
    assert made.num_steps == 6
    own = {"coefficients": made.coefficients, "solver": "calibrated"}
    expected = sample(*((FLOW, noise()) if ahead else (curved, noise())), made.sigmas, **own,
                      **({"start": "exact"} if ahead else {}))  # fmt: skip
    model, scale = (flow_denoiser, 1) if ahead else (curved, made.sigmas[0])

    def same(function, sigmas):
        assert len(sigmas) == 6 + ahead
        got = function(model, noise() * scale, sigmas, disable=True)
        got = got / (1 - sigmas[-1].double()) if ahead else got
        torch.testing.assert_close(got, expected, rtol=2e-6, atol=2e-6)

    config(tmp_path, num_train_timesteps=1000, **({"prediction_type": "flow_prediction"} if ahead else {}))
    for to in TARGETS:
        out, model_option = tmp_path / f"{to}.py", [f"--model={tmp_path / 'scheduler_config.json'}"]
        arguments = [str(tmp_path / "two.json"), str(out), f"--to={to}", f"--nfe={4 + ahead}-{5 + ahead}"]
        done = CliRunner().invoke(main, arguments + model_option * (to == "diffusers"))
        assert done.exit_code == 0, done.output
        assert done.stderr == (
            f"Made for {5 + ahead} evaluations from those calibrated for {4 + ahead}, {6 + ahead}; calibrated for the "
            "number it would be nearer.\n"
        )
        assert all(Path(line).is_file() for line in done.stdout.splitlines())
        if to == "sigmas":
            last = [float(v) for v in out.read_text().splitlines()[1].split(",")]
            assert last[ahead:] == pytest.approx([s / (1 + s) if ahead else s for s in made.sigmas], rel=1e-6)
        elif to == "kdiffusion":
            module = load(out, "k")
            assert list(module.STEPS) == [4 + ahead, 5 + ahead]
            same(module.sample_schedule, module.get_sigmas(5 + ahead))
        elif to == "comfyui":
            get_sigmas, get_sampler = nodes_of(load(out, f"pack of {path}"))
            same(get_sampler()[0].function, get_sigmas(5 + ahead)[0])
        else:
            kept = json.loads((out / "scheduler_config.json").read_text())["schedule"]["entries"]
            assert [e["sigmas"] for e in kept[1:]] == [pytest.approx(made.sigmas)]
            assert [[pytest.approx(row) for row in made.coefficients]] == [e["coefficients"] for e in kept[1:]]
    done = CliRunner().invoke(main, [*arguments[:3], "--nfe=40"])
    assert done.exit_code == 1
    assert f"nfe=40 is too far from what the file holds, {4 + ahead}, {6 + ahead}" in done.output


class Ksampler:
    """What ComfyUI's does around a sampler function."""

    def __init__(self, sampler_function, extra_options, inpaint_options):
        self.function, self.options = sampler_function, extra_options

    def sample(self, model, sigmas, unit, latent=0.0, flow=False, whole=True):
        if flow:
            x = sigmas[0].double() * unit + (1 - sigmas[0].double()) * latent
        else:
            scale = torch.sqrt(1 + sigmas[0].double() ** 2) if whole else sigmas[0].double()
            x = scale * unit + latent
        x = self.function(model, x, sigmas, extra_args={}, callback=None, disable=True, **self.options)
        return x / (1 - sigmas[-1].double()) if flow else x


class Kind:
    """An input or output of a node."""

    def __init__(self, name):
        self.Input = lambda id, **more: (name, id, more)
        self.Output = lambda: name


@pytest.fixture
def comfy(monkeypatch):
    """Makes the stand-in, of the current or the first interface."""

    def stand_in(current=True):
        samplers = types.ModuleType("comfy.samplers")
        samplers.KSAMPLER = Ksampler
        root = types.ModuleType("comfy")
        root.samplers = samplers
        monkeypatch.setitem(sys.modules, "comfy", root)
        monkeypatch.setitem(sys.modules, "comfy.samplers", samplers)
        api = types.ModuleType("comfy_api")
        monkeypatch.setitem(sys.modules, "comfy_api", api if current else None)
        latest = types.ModuleType("comfy_api.latest")
        api.latest = latest
        latest.ComfyExtension = type("ComfyExtension", (), {})
        latest.io = types.SimpleNamespace(
            ComfyNode=type("ComfyNode", (), {}), NodeOutput=lambda *values: values,
            Schema=lambda **more: types.SimpleNamespace(**more), Int=Kind("INT"), Sigmas=Kind("SIGMAS"),
            Sampler=Kind("SAMPLER"),
        )  # fmt: skip
        monkeypatch.setitem(sys.modules, "comfy_api.latest", latest if current else None)

    return stand_in


def nodes(pack, current):
    """The two nodes as functions."""
    if not current:
        assert not hasattr(pack, "comfy_entrypoint")
        (sigmas, sampler) = (cls() for cls in pack.NODE_CLASS_MAPPINGS.values())
        assert (sigmas.RETURN_TYPES, sampler.RETURN_TYPES) == (("SIGMAS",), ("SAMPLER",))
        assert set(pack.NODE_CLASS_MAPPINGS) == set(pack.NODE_DISPLAY_NAME_MAPPINGS)
        assert sigmas.INPUT_TYPES()["required"]["steps"][1]["default"] == 5
        assert sampler.INPUT_TYPES() == {"required": {}}
        return [getattr(node, node.FUNCTION) for node in (sigmas, sampler)]
    assert not hasattr(pack, "NODE_CLASS_MAPPINGS")
    sigmas, sampler = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
    assert sigmas.define_schema().outputs == ["SIGMAS"]
    assert sigmas.define_schema().inputs[0][:2] == ("INT", "steps")
    assert sampler.define_schema().outputs == ["SAMPLER"]
    return [sigmas.execute, sampler.execute]


@pytest.mark.parametrize("current", [True, False])
def test_nodes_of_comfyui(tmp_path, comfy, current, capsys):
    comfy(current)
    out = tmp_path / "my pack"
    export(schedule_file(tmp_path), "comfyui", out)
    assert 'license = { text = "Apache-2.0" }' in (out / "pyproject.toml").read_text()
    assert "[tool.comfy]" in (out / "pyproject.toml").read_text()
    assert "comfy" not in (out / "fewstep_solver.py").read_text()
    get_sigmas, get_sampler = nodes(load(out, f"pack{current}"), current)
    (sigmas,), (sampler,) = get_sigmas(5), get_sampler()
    assert (sigmas.device.type, sigmas.dtype, len(sigmas)) == ("cpu", torch.float32, 6)
    unit = noise() * LEVELS[0] / math.hypot(1, LEVELS[0])  # its noise at full strength is scaled a little more
    expected = sample(curved, noise(), LEVELS, solver="calibrated", coefficients=ROWS)
    torch.testing.assert_close(sampler.sample(curved, sigmas, unit), expected, rtol=1e-6, atol=1e-6)
    high = sampler.sample(curved, sigmas[:3], unit)
    first = sample(curved, noise(), LEVELS[:3], solver="calibrated", coefficients=ROWS[:2])
    torch.testing.assert_close(high, first, rtol=1e-6, atol=1e-6)
    # a later part, as SplitSigmas and a denoise below 1 give it
    part = sampler.sample(curved, sigmas[2:], noise(), latent=0.5, whole=False)
    rows = [[sum(ROWS[2])], [1.1, -0.1], [2.2, -2.1, 0.9]]
    x = noise() + 0.5 / LEVELS[2]
    torch.testing.assert_close(
        part, sample(curved, x, LEVELS[2:], solver="calibrated", coefficients=rows), rtol=1e-6, atol=1e-6
    )
    assert capsys.readouterr().out == ""
    other = torch.tensor([9.0, 2.0, 0.5])
    got = sampler.sample(curved, other, noise(), whole=False)
    torch.testing.assert_close(got, sample(curved, noise(), other.tolist(), solver="ipndm"), rtol=1e-6, atol=1e-6)
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize(("out", "project"), [(".", "fewstep-a-pack"), ("../é_", "fewstep"), ("1+_x", "fewstep-1-x")])
def test_a_pack_has_a_name_that_packages_may_have(tmp_path, monkeypatch, out, project):
    (tmp_path / "A Pack").mkdir()
    monkeypatch.chdir(tmp_path / "A Pack")
    export(schedule_file(tmp_path), "comfyui", out)
    assert f'name = "{project}"' in Path(out, "pyproject.toml").read_text(encoding="utf-8").splitlines()
    assert 'NAME = ""' not in Path(out, "nodes_v3.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("to", ["kdiffusion", "sigmas"])
def test_a_schedule_file_is_not_replaced_by_its_export(tmp_path, to):
    source = schedule_file(tmp_path)
    before = Path(source).read_bytes()
    with pytest.raises(ValueError, match="is read, and would be replaced"):
        export(source, to, source)
    assert Path(source).read_bytes() == before


def test_a_flow_in_comfyui_ends_with_numbers(tmp_path, comfy):
    comfy()
    export(schedule_file(tmp_path, solver="ab", path="linear"), "comfyui", tmp_path / "flow")
    get_sigmas, get_sampler = nodes_of(load(tmp_path / "flow", "flow"))
    (sigmas,), (sampler,) = get_sigmas(6), get_sampler()
    assert 0 < sigmas[-1] < sigmas[0] == 1  # what is divided by 1 minus the last is a number
    got = sampler.sample(flow_denoiser, sigmas, noise(), flow=True)
    torch.testing.assert_close(got, sample(FLOW, noise(), LEVELS, solver="ab", start="exact"), rtol=1e-6, atol=1e-6)
    ending = torch.cat([sigmas, torch.zeros(1)])
    assert sampler.sample(flow_denoiser, ending, noise(), flow=True).isfinite().all()
    # in two parts, the second on the first's result with no noise added: with no history to lose, the same
    export(schedule_file(tmp_path, solver="euler", path="linear"), "comfyui", tmp_path / "flow")
    (sampler,) = nodes_of(load(tmp_path / "flow", "flow one"))[1]()
    whole = sampler.sample(flow_denoiser, sigmas, noise(), flow=True)
    middle = sampler.sample(flow_denoiser, sigmas[:4], noise(), flow=True)
    torch.testing.assert_close(sampler.sample(flow_denoiser, sigmas[3:], 0 * noise(), middle, flow=True), whole)


def nodes_of(pack):
    return [node.execute for node in asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())]


def config(folder, **values):
    path = folder / "scheduler_config.json"
    path.write_text(json.dumps(values))
    return path


BAD = {
    "adaptive": (lambda f: ({"solver": "rk45"}, "kdiffusion", None), "chooses its steps while it runs"),
    "path": (lambda f: ({"solver": "ab", "path": "trig"}, "comfyui", None), "on the path 'trig'"),
    "no model": (lambda f: ({}, "diffusers", None), "add --model=DIR"),
    "another path": (
        lambda f: ({}, "diffusers", config(f, _class_name="FlowMatchEuler", num_train_timesteps=9)),
        "on the path 've', this one is on 'linear'",
    ),
    "no configuration": (lambda f: ({}, "diffusers", config(f, x=1)), "does not say num_train_timesteps"),
    "churn": (
        lambda f: ({"solver": "heun_churn", "options": {"S_churn": 5}}, "diffusers", config(f, num_train_timesteps=9)),
        "adds noise before the first evaluation",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, tmp_path):
    make, sentence = BAD[name]
    how, to, model = make(tmp_path)
    arguments = [str(schedule_file(tmp_path, **how)), str(tmp_path / "out"), f"--to={to}"]
    done = CliRunner().invoke(main, [*arguments, *([f"--model={model}"] if model else [])])
    assert done.exit_code == 1
    assert sentence in done.output
    assert done.output.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_first_step_of_a_flow_cannot_be_analytical_in_a_pipeline(tmp_path):
    path = schedule_file(tmp_path, solver="ab", path="linear")
    path.write_text(path.read_text().replace('"afs": false', '"afs": true'))
    done = CliRunner().invoke(main, [str(path), str(tmp_path / "out"), "--to=diffusers"])
    assert done.exit_code == 1
    assert "without --afs, with --start=exact" in done.output
    done = CliRunner().invoke(main, [str(path), str(tmp_path / "k.py"), "--to=kdiffusion"])
    assert done.output.strip() == str(tmp_path / "k.py")
    module = load(tmp_path / "k.py", "k")
    sigmas = module.get_sigmas(4)
    got = module.sample_schedule(flow_denoiser, noise() * sigmas[0].double(), sigmas, disable=True)
    expected = sample(FLOW, noise(), LEVELS, solver="ab", afs=True, start="scaled")
    torch.testing.assert_close(got / (1 - sigmas[-1].double()), expected, rtol=1e-5, atol=1e-5)

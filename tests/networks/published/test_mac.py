"""Published MAC snapshots: files in that shape, made from the golden generators, and contradictory ones."""

import math
import pickle

import hostile
import pytest
import torch
from click.testing import CliRunner
from golden_cases import cases
from live_pickles import live_class, live_tree, persistent_tree
from mac_golden import coefficient_config, expect, fill, inputs, precond_config

import generate
import networks
from networks.describe import describe
from networks.models.coefficients import filter_size, gaussian_kernel
from networks.models.mac import MACNetwork
from networks.published.edm import read_edm_pickle
from networks.published.mac import mac_spec
from samplers.schedules.edm import general_levels
from samplers.solvers.elementwise import sample_mac
from torch_utils.pickles.machine import Record

# A small generator of this file's own: what a test says of one file must not depend on the golden files. Its denoiser
# is told one level per image, its coefficient network has a low-pass of 19 x 19 taps at resolution 32.
UNET = {"model_channels": 16, "channel_mult": [1, 2], "channel_mult_emb": 4, "num_blocks": 1, "attn_resolutions": []}
OWN = {
    "V": {"precond": "edm_alpha", "sigma_data": 0.5, "img_channels": 3, "label_dim": 0,
          "network": {"type": "SongUNet", "img_resolution": 32, "in_channels": 3, "out_channels": 3, "label_dim": 0}
          | UNET},
    "C": {"resolution": 32, "multidimensionality": "111", "scale": 0.05, "M": 5, "lpf": True, "gauss_kernel_sigma": 4.0,
          "label_dim": 0, "x_0_conditioning": True, "unet": UNET},
    "mac": {"M": 5, "rho": 7, "k": 0, "t_max": 80.0}, "coefficient_conditioning": False,
    "num_steps": 4, "rho": 6, "sigma_min": 0.002, "sigma_max": 80.0,
}  # fmt: skip
RENAMED = {"CoefficientUNet": "SongUNetModified"}


def network(p):
    """The network that these parameters describe, which knows how its V is built, and its levels."""
    levels = general_levels(None, p["num_steps"], p["sigma_min"], p["sigma_max"], p["rho"])
    mac = {k: p["mac"][k] for k in ("M", "rho", "k", "t_max")}
    net = MACNetwork(networks.build(**precond_config(p["V"])), coefficient_config(p["C"]), levels[:-1].tolist(), **mac)
    net.V.config = precond_config(p["V"])
    return net, levels


def kernel(spec):
    """`[6M, 1, K, K]`, every one of sum 1 / 6M."""
    res, maps = spec["resolution"], 6 * spec["M"]
    line = gaussian_kernel(filter_size(res), spec["gauss_kernel_sigma"] * (res // 32)).float()
    square = line.outer(line).expand(maps, 1, -1, -1)
    return square / square.sum()


def calculator(spec, monkeypatch, module):
    calc = live_class(monkeypatch, "SinusoidalMacCalculator", module, object)()
    m = torch.arange(1, spec["M"] + 1)
    calc.M, calc.t_max, calc.rho = spec["M"], spec["t_max"], spec["rho"]
    calc.m_term_0, calc.m_term_1 = (math.pi * m).reshape(1, 1, -1, 1, 1), (m ** spec["k"]).reshape(1, 1, -1, 1, 1)
    return calc


def generator(p, net, levels, monkeypatch, persistence, module="published.networks", name=None):
    """The live object that the original program pickles."""
    config = dict(net.V.config)
    class_name = config.pop("class_name")
    v = persistent_tree(net.V, persistence, config, sigma_data=net.V.sigma_data, label_dim=net.label_dim,
                        sigma_min=0, sigma_max=math.inf, use_fp16=False)  # fmt: skip
    v.meta["class_name"] = name or {"EDMGammaPrecond": "EDMPrecond_gamma"}.get(class_name, class_name)
    c = live_class(monkeypatch, "CoefficientGenerator", module)()
    c._modules["UNet"] = live_tree(net.C.UNet, monkeypatch, RENAMED)
    spec = p["C"]
    for key in ("resolution", "scale", "M", "lpf", "label_dim", "x_0_conditioning"):
        setattr(c, key, spec[key])
    c.multidimensionality = [d == "1" for d in spec["multidimensionality"]]
    c.pad, c.gauss_kernel = (filter_size(spec["resolution"]) + 1) // 2, kernel(spec)
    g = live_class(monkeypatch, "Generator", module)()
    g._modules |= {"V": v, "C": c}
    g.coefficient_conditioning, g.num_steps, g.rho = p["coefficient_conditioning"], p["num_steps"], p["rho"]
    g.S_churn, g.S_min, g.S_max, g.S_noise = 0, 0, 0, 1
    g.sigma_min, g.sigma_max, g.precision = p["sigma_min"], p["sigma_max"], torch.float32
    g.t_steps, g.mac_calculator = levels.float(), calculator(p["mac"], monkeypatch, module)
    return g


def write_own(path, monkeypatch, persistence, **kwargs):
    """A file with the generator of `OWN`; the live object, its network."""
    net, levels = network(OWN)
    g = generator(OWN, net, levels, monkeypatch, persistence, **kwargs)
    path.write_bytes(pickle.dumps({"G_ema": g}))
    return g, net


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("case", cases("mac", "generator_sample"))
def test_live_object_samples_as_the_original(case, protocol, tmp_path, monkeypatch, persistence):
    p = case.spec["params"]
    net, levels = network(p)
    fill(net, case.spec["state_dict"], case)
    path = tmp_path / "network-snapshot-002000.pkl"
    path.write_bytes(pickle.dumps({"G_ema": generator(p, net, levels, monkeypatch, persistence)}, protocol))
    state = torch.get_rng_state()
    loaded = networks.load_network(path)
    assert torch.equal(state, torch.get_rng_state())
    assert isinstance(loaded, MACNetwork)
    assert list(loaded.state_dict()) == list(net.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), net.state_dict().values(), strict=True))
    assert loaded.family == net.family
    assert (loaded.C.scale, loaded.C.flags, loaded.C.lpf) == (net.C.scale, net.C.flags, net.C.lpf)
    assert loaded.C.filter == pytest.approx(net.C.filter)
    assert loaded.schedule == pytest.approx(net.schedule, rel=1e-6)
    given = inputs(case)
    with torch.no_grad():
        expect(case, "c", loaded.coefficients(given["z"], given["labels"]))
        expect(case, "pred", sample_mac(loaded, given["z"], [*loaded.schedule, 0.0], class_labels=given["labels"]))
    assert loaded.info["source"] == "MAC pickle"
    assert loaded.info["S_churn"] == 0
    assert "Generator" in describe(path)


def test_generate_and_save_again(tmp_path, monkeypatch, persistence):
    path = tmp_path / "net.pkl"
    write_own(path, monkeypatch, persistence)
    result = CliRunner().invoke(generate.main, [f"--network={path}", f"--grid={tmp_path}/g.png", "--seeds=0-1"])
    assert result.exit_code == 0, result.output
    assert f"{OWN['num_steps']} + " in result.output, "the cost of the coefficient network is said"
    networks.save_network(tmp_path / "own.pkl", networks.load_network(path))
    again = networks.load_network(tmp_path / "own.pkl")
    assert again.schedule == networks.load_network(path).schedule


def test_schedule_from_settings_and_defaults(monkeypatch, persistence, tmp_path):
    path = tmp_path / "net.pkl"
    g, _ = write_own(path, monkeypatch, persistence)
    del g.t_steps
    published = (5, 7)  # steps and rho of the published command
    for drop, (steps, rho) in (((), (OWN["num_steps"], OWN["rho"])), (("num_steps", "rho"), published)):
        for name in drop:
            delattr(g, name)
        path.write_bytes(pickle.dumps({"G_ema": g}))
        levels = general_levels(None, steps, OWN["sigma_min"], OWN["sigma_max"], rho)
        assert networks.load_network(path).schedule == pytest.approx(levels[:-1].tolist())


def test_module_names_do_not_matter_but_those_of_python_do(tmp_path, monkeypatch, persistence):
    path = tmp_path / "net.pkl"
    _, net = write_own(path, monkeypatch, persistence, module="a.b.c")
    assert networks.load_network(path).family == net.family
    for module in ("os", "numpy.random", "torch.nn.modules", "subprocess", "dill._dill", "__builtin__"):
        path.write_bytes(hostile.p2(hostile.items(G_ema=hostile.glob(f"{module} Generator") + b")\x81}b")))
        with pytest.raises(ValueError, match=f"asks for {module}.Generator"):
            read_edm_pickle(path)


def break_part(name):
    def broken(g):
        v, c, calc = g.state["_modules"]["V"], g.state["_modules"]["C"], g.state["mac_calculator"]
        {
            "no V": lambda: g.state["_modules"].pop("V"),
            "no calculator": lambda: g.state.pop("mac_calculator"),
            "other class": lambda: None,
            "conditioning": lambda: g.state.update(coefficient_conditioning=True),
            "rising": lambda: g.state.update(t_steps=torch.tensor([1.0, 2.0, 0.0])),
            "nan levels": lambda: g.state.update(t_steps=torch.tensor([math.nan, 2.0, 0.0])),
            "no scale": lambda: c.state.pop("scale"),
            "resolution": lambda: c.state.update(resolution=64),
            "labels": lambda: c.state.update(label_dim=7),
            "M": lambda: c.state.update(M=1000),
            "flags": lambda: c.state.update(multidimensionality=[1, 2, 3]),
            "kernel": lambda: c.state.update(gauss_kernel=torch.rand(1, 1, 19, 19)),
            "kernel size": lambda: c.state.update(gauss_kernel=torch.rand(1, 1, 3, 3)),
            "k": lambda: calc.state.update(m_term_1=torch.tensor([1.0, 3.0, 5.0, 1.0, 2.0])),
            "t_max": lambda: calc.state.update(t_max="80"),
            "classifier": lambda: v.__dict__.update(class_name="Classifier"),
            "no unet": lambda: c.state.update(_modules={}),
            "flag tensor": lambda: g.state.update(coefficient_conditioning=torch.ones(2)),
            "lpf text": lambda: c.state.update(lpf="yes"),
            "flag tensors": lambda: c.state.update(multidimensionality=[torch.ones(2)] * 3),
            "tiny rho": lambda: g.state.update(t_steps=None, rho=1e-9),
            "many steps": lambda: g.state.update(t_steps=None, num_steps=10**9),
            "nan k": lambda: calc.state.update(m_term_1=torch.full([5], math.nan)),
            "zero k": lambda: calc.state.update(m_term_1=torch.zeros(5)),
            "empty kernel": lambda: c.state.update(gauss_kernel=torch.zeros(0, 1, 19, 19)),
        }[name]()
        return Record("GeneratorEMA", g.state) if name == "other class" else g

    return broken


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no V", "no network V"), ("no calculator", "SinusoidalMacCalculator"), ("other class", "a GeneratorEMA"),
        ("conditioning", "coefficient_conditioning=True"), ("rising", "do not fall"), ("nan levels", "do not fall"),
        ("no scale", "its scale as a number"), ("resolution", "resolution 64"), ("labels", "label_dim 7"),
        ("M", "M=1000"), ("flags", "three axes"), ("kernel", "not a Gaussian"), ("kernel size", "19 x 19"),
        ("k", "smoothness k"), ("t_max", "its t_max as a number"), ("classifier", "class Classifier"),
        ("no unet", "no SongUNetModified"), ("flag tensor", "conditioning holds"), ("lpf text", "lpf holds"),
        ("flag tensors", "three axes"), ("tiny rho", "impossible"), ("many steps", "impossible"),
        ("nan k", "smoothness"), ("zero k", "smoothness"), ("empty kernel", "19 x 19"),
    ],
)  # fmt: skip
def test_contradictions_are_one_sentence(what, words, tmp_path, monkeypatch, persistence):
    path = tmp_path / "net.pkl"
    write_own(path, monkeypatch, persistence)
    record = break_part(what)(read_edm_pickle(path)["G_ema"])
    with pytest.raises(ValueError, match=words) as caught:
        mac_spec(record)
    assert str(caught.value).isprintable()

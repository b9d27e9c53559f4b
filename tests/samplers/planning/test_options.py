"""Every option is read or refused, for every model and every kind of sampler; enumerated from the option dataclasses.

An option that is accepted must change what is run (`Plan.record`, or what a search was asked). At most one of the
values tried may leave it as it is: the default spelled out.
"""

import atexit
import dataclasses
import functools
import itertools
import json
import math
import shutil
import tempfile
import typing
from pathlib import Path

import pytest
import torch
from stand_ins import MODELS

from samplers import SOLVERS
from samplers.field import Facts
from samplers.planning import elementwise, levels
from samplers.planning.loss_table import LossTable
from samplers.planning.model_options import FIELDS as FIELDS_OF_HEADS
from samplers.planning.model_options import GuidanceOptions, PartOptions
from samplers.planning.options import FAMILY, SamplerOptions, SearchOptions, flag
from samplers.planning.plan import KINDS, build_plan
from samplers.run import generate
from torch_utils.rng import TorchRNG

HINTS = typing.get_type_hints(SamplerOptions)
FIELDS = {f.name: f for f in dataclasses.fields(SamplerOptions)}
WORDS = {  # options of words that are not listed where they are declared
    "solver": ["euler", "heun", "ipndm", "dopri5", "heun_churn"],
    "schedule": ["vp", "ve", "gits_cifar10"],
    "solver_tea": ["euler", "heun"],
    "objective": ["self", "efficientnet-lite0+0.1*pixels"],
    "starts": ["logsnr", "gits,polynomial"],
}
PAIRS = {"guidance_interval": [(0.2, 5.0), (1.0, 40.0)]}
LISTS = {float: [(20.0, 1.0, 0.1), (10.0, 2.0, 0.5)], int: [(2,), (3,)]}


@functools.cache
def loss_tables():
    """Files of `analyze.py losses`."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    for i in range(2):
        LossTable(path="linear", pairs=((1.0, 0.3 + i), (0.0, 0.1))).save(folder / f"{i}.json", {})
    return [str(folder / f"{i}.json") for i in range(2)]


def values(name):
    """Some values of an option, by its type and bounds."""
    meta, hint = FIELDS[name].metadata, HINTS[name]
    kind = next(a for a in typing.get_args(hint) if a is not type(None))
    if meta["choices"]:
        return meta["choices"]
    if kind is bool:
        return [True, False]
    if name in PAIRS:
        return PAIRS[name]
    if name == "diffusion_losses":
        return loss_tables()
    if typing.get_origin(kind) is tuple:
        return LISTS[typing.get_args(kind)[0]]
    if kind is int:
        return [1, 2] if meta["at_most"] in (2, 4) else [3, 5]
    if kind is float:
        return [0.5, 1.5]
    assert name in WORDS, f"a new option of words: name some values of --{name} in WORDS"
    return WORDS[name]


SEARCH = {"dp": True, "num_steps": 4, "num_steps_tea": 7, "num_warmup": 2}
BASES = [
    {}, {"steps": 3}, {"num_steps": 4}, {"N": 3}, {"coordinates": "sigma"}, {"S_churn": 2.0}, SEARCH,
    {"guidance_type": "cfg", "guidance_rate": 2.0},
    {"steps": 3, "disc": "vp"},
    {"sde_order": 1, "num_steps": 4},
    {"sde_order": 2, "nfe": 5},
    {"last_step": "none"},
    {"solver": "heun", "num_steps": 4},
    *({"solver": name} for name in SOLVERS),
    *({"field": name} for name in FIELDS_OF_HEADS),
    {"field": "pf", "num_steps": 4},
]  # fmt: skip


@functools.cache
def network(name):
    return MODELS[name]()


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Searches and calibrations of few samples, where the options do not say how many; no count of FLOPs."""
    for name, how in (("search_schedule", {}), ("calibrate", {"num_heldout": 2, "iterations": 0})):
        whole, few = getattr(levels, name), {"num_steps_tea": 9, "num_warmup": 2, **how}
        monkeypatch.setattr(levels, name, lambda field, *a, _f=whole, _d=few, **k: _f(field, *a, **(_d | k)))
    monkeypatch.setattr(elementwise, "coefficient_cost", lambda net: (1.0, 0.1))


@functools.cache
def plain_outcome(model, base):
    return outcome(network(model), BASES[base])


def outcome(net, given):
    """What a plan would run, or the sentence that refuses it."""
    try:
        plan = build_plan(net, SamplerOptions(**given), batch=4)
    except ValueError as error:
        return str(error)
    found = plan.chosen.found if plan.chosen is not None else None
    return {**plan.record(), "search": None if found is None else [found.settings, len(found.schedule_file().entries)]}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", FIELDS)
def test_every_option_is_read_or_refused(model, name):
    net = network(model)
    searches = FAMILY[name] is SearchOptions or name in ("calibrate", "afs")
    if model == "latents" and FAMILY[name] is not GuidanceOptions:
        pytest.skip("the number of channels makes no difference")
    if model == "shapes" and FAMILY[name] is not PartOptions:
        pytest.skip("parts make no difference")
    if model == "table" and name not in ("schedule_type", "guidance_type", "guidance_rate"):
        pytest.skip("the table makes no difference")
    for i, base in enumerate(BASES):
        if name in base or (base is SEARCH and not searches):
            continue
        plain = plain_outcome(model, i)
        if isinstance(plain, str):
            continue
        unchanged = []
        for value in values(name):
            result = outcome(net, {**base, name: value})
            if isinstance(result, str):
                assert len(result.split()) > 4, result
            elif result == plain:
                unchanged.append(value)
        assert len(unchanged) <= 1, f"{flag(name)} of {unchanged} changes nothing of {base} for the model {model}"


@pytest.mark.parametrize("name", [n for n in FIELDS if FAMILY[n] is not SearchOptions])
def test_what_is_recorded_is_what_runs(name):
    """Some value of every option changes the images that are made, for some model and some kind of sampler."""
    bases = [{}, {"S_churn": 3.0, "steps": 4}, {"guidance_type": "cfg", "guidance_rate": 3.0}]
    bases += [{"solver": s, "num_steps": 5} for s in ("ipndm", "dpmpp", "unipc", "deis")]
    bases += [{"solver": "sa", "num_steps": 8}]
    bases += [{"solver": "dopri5", "rtol": 1e-2}, {"solver": "dopri5"}, {"num_steps": 5, "start": "scaled"}]
    bases += [{"field": "pf", "N": 6}, {"field": "legacy_2024"}, {"field": "legacy_2024", "solver": "ssprk3", "N": 6}]

    def images(net, given):
        try:
            plan = build_plan(net, SamplerOptions(**given), batch=4)
        except ValueError:
            return None
        made = list(generate(net, range(6), plan, prior=plan.prior))
        return torch.cat([batch.images for batch in made])

    bases += [{"field": "bridge_sde", "N": 7}, {"num_steps": 5, "diffusion_losses": loss_tables()[0]}]
    if name == "cfg_batch":
        pytest.skip("two calls instead of one: the images are the same")
    others = ("denoiser", "table", "flow", "coupled", "fusion")
    models = {"guidance_channels": ("latents",), "binarise": ("shapes",)}.get(name, others)
    if name in ("nfe", "coeff", "objective", "starts"):
        pytest.skip("shapes or chooses from a schedule file: tests/samplers/planning/test_levels.py")
    for model, base in itertools.product(models, bases):
        if (plain := images(network(model), base)) is None:
            continue
        for value in values(name):
            other = images(network(model), {**base, name: value})
            if other is not None and not torch.equal(other, plain):
                return
    pytest.fail(f"no value of {flag(name)} changed any image")


@pytest.mark.parametrize("name", ["metric", "coeff", "num_warmup", "solver_tea", "num_steps_tea", "search_seed"])
def test_a_network_that_chooses_levels_takes_every_option_of_the_search(name):
    value = {"metric": "l2", "coeff": (1.3,), "num_warmup": 3, "solver_tea": "heun", "num_steps_tea": 8}.get(name, 5)
    plan = build_plan(network("mac"), SamplerOptions(**{**SEARCH, name: value}))
    settings = plan.chosen.found.settings | {"coeff": next(iter(plan.chosen.found.table))}
    assert settings["seed" if name == "search_seed" else name] == (value[0] if name == "coeff" else value)
    assert plan(network("mac"), torch.randn(1, 1, 8, 8)).isfinite().all()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"variant": "bh1"}, "no option variant"), ({"S_churn": 2.0}, "solvers of one step"),
     ({"prior": "matched"}, "--prior")],
)  # fmt: skip
def test_nothing_is_searched_in_vain(monkeypatch, options, words):
    monkeypatch.setattr("samplers.planning.levels.search_schedule", lambda *a, **k: pytest.fail("searched"))
    with pytest.raises(ValueError, match=words):
        build_plan(network("mac"), SamplerOptions(**SEARCH, **options))


CHURN = {"S_churn": 0.0, "S_min": 0.0, "S_max": math.inf, "S_noise": 1.0}


@pytest.mark.parametrize(
    "base", [{}, {"steps": 4}, {"solver": "heun", "disc": "edm"}, {"solver": "heun_churn", "num_steps": 4}]
)
@pytest.mark.parametrize("more", [{}, {"S_min": 0.05, "S_max": 50.0, "S_noise": 1.003}])
def test_defaults_of_added_noise_may_be_spelled_out(base, more):
    noise, net = torch.randn(2, 1, 2, 2), network("denoiser")
    plain = build_plan(net, SamplerOptions(**base))(net, noise)
    spelled = build_plan(net, SamplerOptions(**base, **{**CHURN, **more}))(net, noise, rng=TorchRNG())
    assert torch.equal(spelled, plain)


def test_every_family_is_read_by_some_kind():
    read = {family for kind in KINDS.values() for family in kind.reads}
    everywhere = {"PriorOptions", "GuidanceOptions", "FusionOptions", "PartOptions"}  # decided before the kind
    assert {f.__name__ for f in set(FAMILY.values()) - read} == everywhere
    assert all(hasattr(f, "group") and f.whose for f in FAMILY.values())


def test_records_are_plain():
    for base in BASES:
        if isinstance(outcome(network("flow"), base), str):
            continue
        record = build_plan(network("flow"), SamplerOptions(**base), batch=4).record()
        assert json.loads(json.dumps(record, allow_nan=False)) == record


SPELLED = [
    *({"solver": name, "num_steps": 4} for name in SOLVERS if not SOLVERS[name].adaptive and name != "calibrated"),
    *({"solver": name} for name in SOLVERS if SOLVERS[name].adaptive),
]


@pytest.mark.parametrize("base", SPELLED, ids=lambda base: base["solver"])
def test_a_default_spelled_out_is_the_same_record(base):
    """Else a folder of images is refused to the command that made it."""
    record = build_plan(network("denoiser"), SamplerOptions(**base), batch=4).record()
    own = {k: v for k, v in SOLVERS[base["solver"]].options.items() if k in FIELDS and v is not None}
    for name, value in own.items():
        given = {**base, name: value, **({"S_churn": 0.0} if name in ("S_min", "S_max", "S_noise") else {})}
        assert build_plan(network("denoiser"), SamplerOptions(**given), batch=4).record() == record, name


@pytest.mark.parametrize("base", [{}, {"disc": "ve"}, {"S_churn": 2.0}], ids=str)
def test_defaults_of_edm_spelled_out_are_the_same_record(base):
    record = build_plan(network("denoiser"), SamplerOptions(steps=3, **base)).record()
    low, high = (0.02, 100.0) if "disc" in base else (0.002, 80.0)
    churn = {"S_churn": 0.0, "S_min": 0.0, "S_max": math.inf, "S_noise": 1.0}
    shaped = {"rho": 7.0} if "disc" not in base else {}
    spelled = {"solver": "heun", "disc": "edm", "scaling": "none", "sigma_min": low, "sigma_max": high}
    for name, value in {**spelled, **churn, **shaped}.items():
        given = {**({"S_churn": 0.0} if name in churn else {}), name: value, **base}
        assert json.dumps(build_plan(network("denoiser"), SamplerOptions(steps=3, **given)).record()) == json.dumps(
            record
        )


def test_facts_of_the_models():
    facts = {name: Facts.of(make()) for name, make in MODELS.items()}
    assert [name for name, f in facts.items() if f.chooses_levels] == ["mac"]
    assert facts["coupled"].priors == ("standard", "matched")
    assert facts["denoiser"].shape == (1, 2, 2)
    assert facts["denoiser"].conditioning == "classes"

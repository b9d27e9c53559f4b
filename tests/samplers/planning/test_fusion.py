"""Fields of models of two heads by options: what runs, at what true cost, and what is refused."""

import pytest
import torch

import networks
from samplers.planning.levels import schedule_file
from samplers.planning.model_options import FIELDS
from samplers.planning.options import SamplerOptions
from samplers.planning.plan import build_plan
from samplers.run import generate


def network(**more):
    torch.manual_seed(0)
    kwargs = {"img_resolution": 1, "img_channels": 2, "model_type": "SELUMLP", "width": 16, "sigma": 0.4, **more}
    return networks.build("FusionNetwork", **kwargs).eval().requires_grad_(False)


def counted(net):
    """The network, and the list that grows by one at every call of its trunk."""
    calls = []
    net.model.register_forward_hook(lambda *_: calls.append(1))
    return net, calls


def images(net, seeds=range(3), **options):
    plan = build_plan(net, SamplerOptions(**options), batch=4)
    return plan, torch.cat([batch.images for batch in generate(net, seeds, plan)])


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(
    "more",
    [{}, {"N": 7}, {"N": 6}, {"solver": "ipndm", "num_steps": 4}, {"solver": "ssprk3", "coordinates": "native"},
     {"steps": 4}, {"noise_scale": 1.0}, {"gammas": (0.5, 0.2, -0.1)}, {"score_source": "jacobian"}],
)  # fmt: skip
def test_evaluations_are_calls_of_the_network(field, more):
    net, calls = counted(network())
    try:
        plan = build_plan(net, SamplerOptions(field=field, **more), batch=4)
    except ValueError:
        pytest.skip("refused")
    (batch,) = generate(net, range(3), plan)
    assert batch.images.isfinite().all()
    assert len(calls) == plan.nfe


def test_published_steps_cost_three_calls():
    """10 steps were published as 10 evaluations."""
    net, calls = counted(network())
    plan, _ = images(net, field="legacy_2024", solver="ssprk3", N=30)
    assert (plan.steps, plan.nfe, len(calls)) == (10, 30, 30)


@pytest.mark.parametrize("field", FIELDS)
def test_an_image_is_that_of_its_seed(field):
    """Also where noise is added: alone or in a batch."""
    net = network()
    _, together = images(net, field=field)
    _, alone = images(net, [2], field=field)
    torch.testing.assert_close(together[2:], alone, rtol=0, atol=1e-5)


def test_fields_with_noise_add_some():
    net = network()
    plain, sde = images(net, field="pf", N=28)[1], images(net, field="langevin", N=28)[1]
    assert (plain - sde).abs().max() > 1e-3
    noisy = build_plan(net, SamplerOptions(field="legacy_2024", noise_scale=1.0))
    assert (noisy.solver, noisy.stochastic, noisy.nfe) == ("srid2", True, 30)


def test_labels_reach_both_heads_under_derivatives():
    """Samples are made in inference mode, and their labels too."""
    net = network(label_dim=3)
    with torch.no_grad():
        net.model.time_index_embedding.weight.mul_(10)
    plan, _ = images(net, field="pf", gammas=(0.5, 0.2), N=4)
    one, other = (next(generate(net, range(3), plan, class_idx=k)).images for k in (0, 1))
    assert (one - other).abs().max() > 1e-3


def test_schedule_files_know_the_field(tmp_path):
    """Levels of one view are levels of another: a file of the flow is refused for the denoiser."""
    net, path = network(), tmp_path / "s.json"
    plan = build_plan(net, SamplerOptions(field="pf", solver="ipndm", num_steps=4))
    schedule_file(plan.chosen, plan.model(net)).save(path)
    again = build_plan(net, SamplerOptions(field="pf", schedule=str(path)))
    assert torch.equal(again.sigmas, plan.sigmas)
    with pytest.raises(ValueError, match="path 'linear'"):
        build_plan(net, SamplerOptions(schedule=str(path)))


COUPLED = {"gaussian_noise": False}


@pytest.mark.parametrize(
    ("network_has", "asked", "words"),
    [
        ({}, {"field": "pf", "delta": 0.1}, "--delta belongs to --field=legacy_2024, legacy_2025"),
        ({}, {"gammas": (1.0,)}, "and the field here is x1"),
        ({}, {"field": "pf", "damping": True, "gammas": (60.0,)}, "imaginary"),
        ({}, {"field": "legacy_2025", "gammas": (60.0, 60.0)}, "imaginary"),
        ({"heads": 1, **COUPLED}, {"field": "pf"}, "not trained"),
        ({"heads": 1}, {"field": "legacy_2024"}, "one head"),
        ({"score_target": "noise"}, {"field": "pf", "score_source": "head"}, "no score"),
        (COUPLED, {"field": "pf", "score_source": "tweedie"}, "coupled to them"),
        ({}, {"field": "langevin", "solver": "euler"}, "which --solver=euler adds none of"),
        ({}, {"field": "langevin", "N": 9}, "give 7 or 10"),
        ({}, {"field": "langevin", "N": 0}, "N=0 does not suit"),
        ({}, {"field": "langevin", "steps": 5}, "--steps belongs to EDM's samplers"),
        ({}, {"field": "langevin", "coordinates": "sigma"}, "in its own time"),
        ({}, {"field": "pf", "steps": 5, "S_churn": 3.0}, "coupled to the data"),
    ],
)
def test_what_is_refused(network_has, asked, words):
    with pytest.raises(ValueError, match=words):
        build_plan(network(**network_has), SamplerOptions(**asked))


def test_guided_models_have_no_heads():
    net = network(label_dim=2)
    net.model.label_dropout = 0.1  # else nothing can guide
    with pytest.raises(ValueError, match="without guidance"):
        build_plan(net, SamplerOptions(field="pf", guidance_type="cfg", guidance_rate=2.0))


def test_a_model_of_one_head_takes_its_score_from_the_clean_estimate():
    plan, made = images(network(heads=1), field="pf", N=5)
    assert plan.drift.score_source == "tweedie"
    assert made.isfinite().all()

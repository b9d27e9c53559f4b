"""Times of elements, compensated velocities and losses of interpolant transformers."""

import numpy as np
import pytest
import torch
from golden_cases import cases

from samplers.path import PATHS, VP, Linear, Trig
from training.losses.interpolant import (
    COMPENSATION,
    WEIGHTS,
    InterpolantLoss,
    compensated,
    make_times,
    split_shape,
)


def path_of(params):
    """The path of a golden case; the files count time the other way."""
    if params["path"] == "VP":
        return VP(beta_d=params["beta_max"] - params["beta_min"], beta_min=params["beta_min"])
    return {"Linear": Linear, "GVP": Trig}[params["path"]]()


def drawn(params):
    streams, values = {}, {}
    for draw in params["draws"]:
        g = streams.setdefault(draw["stream"], np.random.RandomState(draw["stream"]))
        fill = g.standard_normal if draw["distribution"] == "standard_normal" else g.random_sample
        values[draw["name"]] = torch.from_numpy(np.asarray(fill(draw["shape"]), dtype=np.float32))
    return values


def interval(params):
    """Lowest and highest time of training, as the files count it."""
    eps = params["train_eps"]
    if params["path"] == "VP":
        return 0.0, 1 - eps
    return (0.0, 1.0) if params["prediction"] == "velocity" else (eps, 1 - eps)


@pytest.mark.parametrize("case", cases("combostoc", "training_target"))
def test_training_target(case):
    params = case.spec["params"]
    d = drawn(params)
    for name, value in d.items():
        if (stored := case.input(name)) is not None:
            assert torch.equal(value.reshape(stored.shape), stored)
    n = params["shape"][0]
    rows = torch.arange(n)
    assert split_shape(params["unsync_type"], params["shape"]) == d["u_async"].shape
    t = make_times(
        d["u_sync"], d["u_async"], float(d.get("u_progress", 1)), rows < params["async_rows"],
        halves=params["use_halfmixing"], blend=params["use_blend"], interval=interval(params),
    ).expand(params["shape"])  # fmt: skip
    # the rest in float64: weights of likelihood and score losses reach 1e6 near the ends
    data, noise, ours = d["x1"].double(), d["x0"].double(), 1 - t.double()
    loss = InterpolantLoss(path_of(params), params["prediction"], None, params["compensate"])
    target = loss.target(data, noise, ours, rows < params["compensated_rows"])
    f = params["network"]
    assert f["formula"] == "a*sin(x)+b*x*t+c*cos(3*t+d)"
    a, b, c, e = (f[k] for k in "abcd")
    out = a * target.x_t.sin() + b * target.x_t * t.double() + c * (3 * t.double() + e).cos()
    weight = params["loss_weight"] if params["prediction"] != "velocity" else None  # which the original ignores
    loss = InterpolantLoss(path_of(params), params["prediction"], weight, params["compensate"])
    own = {
        "t": t, "xt": target.x_t, "out": out, "ut_raw": -target.raw,
        "ut": -compensated(target.raw, data, target.x_t, rows < params["compensated_rows"]),
        "loss": loss(-out if params["prediction"] == "velocity" else out, target, noise, ours),
    }  # fmt: skip
    for role in case.roles:
        case.check(role, own[role])


@pytest.mark.parametrize("case", cases("combostoc", "compensation"))
def test_compensation(case):
    params = case.spec["params"]
    data, noise, t = (case.input(name).double() for name in ("x1", "x0", "t"))
    rows = torch.arange(len(data)) < params["compensated_rows"]
    rows = rows if params["batch_order"] == "as stored" else rows.flip(0)
    target = InterpolantLoss(path_of(params), compensation=params["compensate"]).target(data, noise, 1 - t, rows)
    own = {"xt": target.x_t, "ut_raw": -target.raw, "ut": -target.velocity}
    for role in case.roles:
        case.check(role, own[role])


@pytest.mark.parametrize("case", cases("combostoc", "seeded_draw"))
def test_seeded_draw(case):
    params = case.spec["params"]
    shape = params["shape"]
    torch.manual_seed(params["torch_seed"])
    noise = torch.randn(shape)
    shared, own = torch.rand(shape[0], 1, 1, 1), torch.rand(split_shape(params["unsync_type"], shape))
    progress = torch.rand(1) if params["use_blend"] else 1.0
    t = make_times(
        shared, own, progress, torch.arange(shape[0]) < shape[0] // 2, halves=params["use_halfmixing"],
        blend=params["use_blend"], interval=interval(params),
    )  # fmt: skip
    case.check("x0", noise, drawn=True)
    case.check("t", t)


def batch(seed=0, n=6):
    g = torch.Generator().manual_seed(seed)
    data, noise = (torch.randn(n, 3, 4, 4, generator=g, dtype=torch.float64) for _ in range(2))
    return data, noise, torch.rand(n, 3, 4, 4, generator=g, dtype=torch.float64)


def test_compensation_hurries_elements_that_lag():
    """On the linear path u becomes u (1 + mean time - t), the mean weighted by u^2, in the papers' time."""
    data, noise, t = batch()
    target = InterpolantLoss(Linear()).target(data, noise, t, torch.ones(6, dtype=torch.bool))
    theirs, energy = 1 - t, target.raw.square()
    mean = (theirs * energy).sum((1, 2, 3), keepdim=True) / energy.sum((1, 2, 3), keepdim=True)
    torch.testing.assert_close(target.velocity, target.raw * (1 + mean - theirs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", COMPENSATION)
def test_equal_times_need_no_compensation(mode):
    data, noise, t = batch()
    t, rows = t[:, :1, :1, :1], torch.ones(6, dtype=torch.bool)
    linear = InterpolantLoss(Linear(), compensation=mode).target(data, noise, t, rows)
    torch.testing.assert_close(linear.velocity, linear.raw, rtol=1e-12, atol=1e-12)
    for path in (Trig(), VP()):
        curved = InterpolantLoss(path, compensation=mode).target(data, noise, t, rows)
        changed = float((curved.velocity - curved.raw).norm() / curved.raw.norm())
        assert changed > 0.01 if mode == "reference" else changed == 0


def test_only_asynchronous_rows_are_compensated():
    data, noise, t = batch()
    rows = torch.tensor([True, False] * 3)
    target = InterpolantLoss(Linear()).target(data, noise, t, rows)
    changed = (target.velocity != target.raw).flatten(1).any(1)
    assert torch.equal(changed, rows)


@pytest.mark.parametrize("path", [p for p in PATHS if p != "ve"])
def test_weighted_noise_and_score_losses_equal_the_velocity_loss(path):
    """v is affine in the noise, with slope q / sigma, and in the score, with slope -q."""
    path = PATHS[path]()
    data, noise, t = batch()
    t = 0.05 + 0.9 * t
    none = torch.zeros(6, dtype=torch.bool)
    guess = torch.randn(data.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    losses = {}
    for kind, weight in (("velocity", None), ("noise", "velocity"), ("score", "velocity")):
        loss = InterpolantLoss(path, kind, weight)
        target = loss.target(data, noise, t, none)
        velocity = path.d_alpha(t) / path.alpha(t) * target.x_t + path.score_gain(t) / path.sigma(t) * guess
        said = {"velocity": velocity, "noise": guess, "score": -guess / path.sigma(t)}[kind]
        losses[kind] = loss(said, target, noise, t)
    torch.testing.assert_close(losses["noise"], losses["velocity"], rtol=1e-9, atol=0)
    torch.testing.assert_close(losses["score"], losses["velocity"], rtol=1e-9, atol=0)


def test_time_law():
    """Half of the samples have one time; elements of the others have variance 2/3 of it and a correlation of 1/2.

    With t = (1 - p) s + p a: variance E[(1 - p)^2 + p^2] / 12 = (2/3) / 12, covariance E[(1 - p)^2] / 12 = (1/3) / 12.
    """
    g = torch.Generator().manual_seed(0)
    own_times, one_time = [], []
    for _ in range(4000):
        shared, own = torch.rand(16, 1, 1, 1, generator=g), torch.rand(16, 2, 1, 1, generator=g)
        t = make_times(shared, own, float(torch.rand((), generator=g)), torch.arange(16) % 2 == 1)
        own_times.append(t[1::2, :, 0, 0])
        one_time.append(t[::2, :, 0, 0])
    first, second = torch.cat(own_times), torch.cat(one_time)
    assert (second[:, 0] - second[:, 1]).abs().max() < 1e-6  # the blend of a time with itself rounds
    # standard errors over 4000 values of p: 0.001 and 0.007
    assert abs(float(first.std()) - (1 / 18) ** 0.5) < 0.004
    assert abs(float(second.std()) - (1 / 12) ** 0.5) < 0.004
    assert abs(float(torch.corrcoef(first.T)[0, 1]) - 0.5) < 0.03


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"predicts": "image"}, "prediction 'image'"), ({"predicts": "noise", "weight": "snr"}, "loss weight 'snr'"),
        ({"weight": "velocity"}, "has none"), ({"compensation": "on"}, "compensation 'on'"),
    ],
)  # fmt: skip
def test_words_that_do_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        InterpolantLoss(Linear(), **given)


def test_unknown_split():
    with pytest.raises(ValueError, match="no time split 'UNSYNC_SOME'"):
        split_shape("UNSYNC_SOME", (1, 1, 1, 1))


def test_weights_are_positive():
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    for path in (Linear(), Trig(), VP()):
        assert all((w(path, t) > 0).all() for w in WEIGHTS.values())

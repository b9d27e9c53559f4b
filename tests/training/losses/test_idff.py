"""Bridges and two-headed losses of IDFF."""

import pytest
import torch
from golden_cases import cases

from training.losses.idff import BRIDGES, Bridge, FusionLoss, State, order1_target

WEIGHTING = {"none": "none", "inv_t": "early", "inv_1mt_sq": "late"}


def ends(case):
    """Noise, data, deviations and our time: the files count from noise to data."""
    noise, data, eps, t = (case.input(name).double() for name in ("x0", "x1", "eps", "t"))
    return noise, data, eps, 1 - t


@pytest.mark.parametrize("case", cases("idff", "path"))
def test_bridge(case):
    noise, data, eps, t = ends(case)
    state = Bridge(case.spec["params"]["path"], case.spec["params"]["sigma"]).state(data, noise, eps, t)
    own = {"mu": state.mean, "sigma_t": state.std, "xt": state.x, "ut": -state.velocity}
    for role in case.roles:
        value, shape = own[role], case.reference(role).shape
        if shape == ():  # a deviation that does not change
            assert (value == value.flatten()[0]).all()
            value = value.flatten()[:1]
        case.check(role, value.reshape(shape) if role == "sigma_t" else value)


@pytest.mark.parametrize("case", cases("idff", "path_lambda"))
def test_lambdas(case):
    sigma, t = case.spec["params"]["sigma"], 1 - case.input("t").double()
    one, zero = torch.ones(len(t), 1, dtype=torch.float64), torch.zeros(len(t), 1, dtype=torch.float64)
    for role, scale in (("lambda1", "deviation"), ("lambda2", "variance")):
        squared = FusionLoss(sigma, score_scale=scale).score(one, zero, zero, t)  # of a head that says 1
        case.check(role, squared.sqrt().reshape(case.reference(role).shape))


@pytest.mark.parametrize("case", cases("idff", "path_rng"))
def test_draws(case):
    params = case.spec["params"]
    torch.manual_seed(params["torch_seed"])
    t, eps = torch.rand(params["shape"][0]), torch.randn(params["shape"])
    noise, data = (torch.full(params["shape"], params[f"{name}_fill"]) for name in ("x0", "x1"))
    state = Bridge(params["path"], params["sigma"]).state(data, noise, eps, 1 - t)
    own = {"t": t, "eps": eps, "xt": state.x, "ut": -state.velocity}
    for role in case.roles:
        case.check(role, own[role])


@pytest.mark.parametrize("case", cases("idff", "loss_state"))
def test_loss_state(case):
    noise, data, eps, t = ends(case)
    case.check("xt", Bridge(case.spec["params"]["path"], case.spec["params"]["sigma"]).state(data, noise, eps, t).x)


@pytest.mark.parametrize("case", cases("idff", "loss"))
def test_loss(case):
    params = case.spec["params"]
    noise, data, eps, t = ends(case)
    shifts = params["flow_shifts"]
    loss = FusionLoss(
        params["sigma"], params["flow_weight"], params["score_weight"], WEIGHTING[params["flow_weighting"]],
        {"eps": "eps", "x0": "noise", None: "none"}[params["score_target"]],
        "variance" if params["score_lambda"] == "lambda2" else "deviation",
        "shifted" if set(shifts) == {0.0, 360.0, -360.0} else None,
    )  # fmt: skip
    assert loss.angles or shifts == [0.0]
    estimate, second = case.input("out").double().chunk(2, dim=1)
    case.check("loss", loss(estimate, second, data, noise, eps, t).mean())


@pytest.mark.parametrize("case", cases("idff", "loss_order1_target", "loss_order1"))
def test_order1(case):
    params = case.spec["params"]
    noise, data, eps, t = ends(case)
    state = Bridge("idff", params["path_sigma"]).state(data, noise, eps, t)
    target = order1_target(state, t, params["s0"], published=True, floor=params["q_epsilon"])
    if case.kind == "loss_order1_target":
        case.check("target", target)
        return
    flow = FusionLoss(time_weight=WEIGHTING[params["flow_weighting"]])
    estimate, second = case.input("out").double().chunk(2, dim=1)
    own = params["flow_weight"] * flow.flow(estimate, data, t).mean() + (second - target).square().mean()
    case.check("loss", own)


def random_ends(batch=20_000, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = [torch.randn(batch, 1, generator=g, dtype=torch.float64) for _ in range(3)]
    return (*draw, torch.rand(batch, generator=g, dtype=torch.float64))


@pytest.mark.parametrize("name", BRIDGES)
def test_velocity_is_the_derivative_of_the_mean(name):
    """Of the mean at fixed ends; bridges whose deviation changes have it in their velocity, but for `idff`."""
    data, noise, eps, t = random_ends(50)
    t, h = 0.1 + 0.8 * t, 1e-6
    bridge = Bridge(name, 0.3)
    later, earlier, now = (bridge.state(data, noise, eps, t + s) for s in (h, -h, 0))
    moved = "mean" if name in ("idff", "independent", "variance_preserving") else "x"
    slope = (getattr(later, moved) - getattr(earlier, moved)) / (2 * h)
    torch.testing.assert_close(now.velocity, slope, rtol=0, atol=1e-6)  # h^2 of the difference, 1e-16 / h of rounding


def test_second_head_learns_the_score():
    """For data N(0, 1) and independent noise the best second head is sigma^2 / 2 times the score of x_t."""
    data, noise, eps, _ = random_ends()
    for sigma, time in ((0.5, 0.3), (1.0, 0.7)):
        t = torch.full([len(data)], time, dtype=torch.float64)
        x = Bridge("idff", sigma).state(data, noise, eps, t).x
        score = -x / ((1 - time) ** 2 + time**2 + sigma**2 * time * (1 - time))
        best = FusionLoss(sigma).score(0.5 * sigma**2 * score, noise, eps, t).mean()
        for factor in (0.8, 1.2):
            assert best < FusionLoss(sigma).score(factor * 0.5 * sigma**2 * score, noise, eps, t).mean()


def test_angles_wrap_to_the_nearest_turn():
    data, estimate = torch.tensor([[170.0, -170.0]]), torch.tensor([[-175.0, 200.0]])
    t = torch.zeros(1)
    wrapped = FusionLoss(angles="wrapped").flow(estimate, data, t)
    assert wrapped.item() == pytest.approx((15**2 + 10**2) / 2)
    plain, shifted = (FusionLoss(angles=a).flow(estimate, data, t).item() for a in (None, "shifted"))
    assert shifted == pytest.approx(3 * plain + 2 * 360**2)  # the same minimum as without


def test_corrected_order1_target_is_the_conditional_score():
    data, noise, eps, t = random_ends(100)
    state = Bridge("idff", 0.5).state(data, noise, eps, t)
    target = order1_target(state, t, 0.5, floor=0)
    torch.testing.assert_close(target * state.std, -eps, rtol=1e-6, atol=1e-9)  # x - mean cancels near the ends


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bridge("straight"), "no bridge 'straight'"), (lambda: Bridge(sigma=-1.0), "0 or more"),
        (lambda: Bridge("schrodinger_bridge", 0.0), "above 0"), (lambda: Bridge(sigma=float("nan")), "0 or more"),
        (lambda: FusionLoss(time_weight="mid"), "time weight 'mid'"),
        (lambda: FusionLoss(score_target="x"), "score target 'x'"),
        (lambda: FusionLoss(score_scale="x"), "score scale 'x'"), (lambda: FusionLoss(angles="x"), "angles 'x'"),
    ],
)  # fmt: skip
def test_words_that_do_not_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_state_has_the_shapes_it_says():
    data, noise, eps, t = random_ends(7)
    state = Bridge().state(data, noise, eps, t)
    assert isinstance(state, State)
    assert state.x.shape == state.mean.shape == state.velocity.shape == (7, 1)
    assert state.std.shape == (7, 1)

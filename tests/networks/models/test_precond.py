"""Preconditioners and `build`: golden networks with gradients, noise-level rule, precision, errors."""

import json
import math

import numpy as np
import pytest
import torch
from golden_cases import cases, fill_weights

from networks.models.baselines import VEPrecond, VPPrecond, iDDPMPrecond
from networks.models.precond import EDMPrecond, Precond
from networks.table import NETWORKS, build

PRECONDS = [name for name, cls in NETWORKS.items() if issubclass(cls, Precond)]

pytestmark = pytest.mark.filterwarnings("ignore:no attention in")

UNET = {
    "model_type": "SongUNet",
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}
ADM = {
    "model_type": "DhariwalUNet",
    "model_channels": 64,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [8],
}
GUIDED_UNET = {"model_channels": 32, "channel_mult": [1, 2], "num_res_blocks": 1, "attention_resolutions": [2]}


def make(name="EDMPrecond", **kwargs):
    unet = {"network": GUIDED_UNET} if name == "CMPrecond" else UNET
    net = build(name, **({"img_resolution": 8, "img_channels": 3} | unet | kwargs))
    return fill_weights(net, [key for key in net.state_dict() if key == "u" or key.endswith("filter")]).eval()


@pytest.mark.parametrize("case", cases("edm", "network"))
def test_golden_network(case):
    spec = case.spec
    net = build(spec["precond"], **spec["kwargs"])
    parameters = dict(net.named_parameters())
    layout = [[k, list(v.shape), "param" if k in parameters else "buffer"] for k, v in net.state_dict().items()]
    assert layout == spec["state_dict"]
    assert sum(p.numel() for p in parameters.values()) == spec["num_params"]
    assert (net.sigma_min, net.sigma_max) == (spec["sigma_min"], spec["sigma_max"])

    fill_weights(net, spec["constant_keys"]).train(spec["mode"] != "eval")
    x, sigma = case.tensor("x"), case.tensor("sigma")
    labels = case.tensor("class_labels") if spec["has_class_labels"] else None
    augment = case.tensor("augment_labels") if spec["has_augment_labels"] else None
    noisy = x * (1 + sigma).reshape(-1, 1, 1, 1)
    with torch.no_grad():
        case.expect("D", net(noisy, sigma, labels, augment_labels=augment))
        scalar = torch.tensor(spec["scalar_sigma"], dtype=getattr(torch, spec["scalar_sigma_dtype"]))
        case.expect("D_scalar_sigma", net(x, scalar, labels))
        if spec["nolabel_sigma"] is not None:
            case.expect("D_nolabel", net(x, torch.full([len(x)], spec["nolabel_sigma"])))

    x.requires_grad_()
    out = net.model(x, torch.full([len(x)], spec["F_noise_label"]), labels, augment_labels=augment)
    case.expect("F", out)
    wanted = [parameters[name] for name in spec["param_order"]]
    grad_x, *grads = torch.autograd.grad((out * case.tensor("r")).sum(), [x, *wanted], allow_unused=True)
    case.expect("grad_x", grad_x)
    norms = [0.0 if g is None else g.double().norm().item() for g in grads]
    case.expect("grad_norms", np.array(norms))


@pytest.mark.parametrize("case", cases("edm", "iddpm_table"))
def test_golden_iddpm_table(case):
    spec = case.spec
    net = build(spec["precond"], **spec["network_kwargs"], **{name: spec[name] for name in ("M", "C_1", "C_2")})
    sigma = case.tensor("sigma")
    case.expect("u", net.u)
    case.expect("rounded", net.round_sigma(sigma))
    case.expect("index", net.round_sigma(sigma, return_index=True))
    case.expect("sigma_min_max", np.array([net.sigma_min, net.sigma_max]))


@pytest.mark.parametrize("case", cases("edm", "vp_sigma"))
def test_golden_vp_sigma(case):
    spec = case.spec
    names = ("beta_d", "beta_min", "epsilon_t", "M")
    net = build(spec["precond"], **spec["network_kwargs"], **{name: spec[name] for name in names})
    sigma = net.sigma(case.tensor("t"))
    case.expect("sigma_of_t", sigma)
    case.expect("t_of_sigma", net.sigma_inv(sigma))
    case.expect("sigma_min_max", np.array([net.sigma_min, net.sigma_max]))


def test_published_ranges():
    vp, ve, iddpm, edm = (make(name) for name in ("VPPrecond", "VEPrecond", "iDDPMPrecond", "EDMPrecond"))
    assert (vp.sigma_min, vp.sigma_max) == (0.0009765625, 152.16697692871094)
    assert (ve.sigma_min, ve.sigma_max) == (0.02, 100)
    assert (iddpm.sigma_min, iddpm.sigma_max) == pytest.approx((0.006422337, 20291.17), rel=1e-6)
    assert (edm.sigma_min, edm.sigma_max) == (0, math.inf)
    for net in (vp, ve, edm):
        assert net.round_sigma(0.7) == torch.tensor(0.7)


def test_scalings_at_known_levels():
    for net, s, expected in [
        (EDMPrecond(8, 3, sigma_data=2, **UNET), 1.5, (4 / 6.25, 3 / 2.5, 0.4, math.log(1.5) / 4)),
        (VEPrecond(8, 3, **UNET), 4.0, (1, 4, 1, math.log(2))),
        (
            VPPrecond(8, 3, **UNET),
            0.75,
            (1, -0.75, 0.8, 999 * (math.sqrt(0.01 + 39.8 * math.log(1.5625)) - 0.1) / 19.9),
        ),
        (iDDPMPrecond(8, 3, M=4, **UNET), 0.0, (1, 0, 1, -1)),
    ]:
        own = net.scalings(torch.full((1, 1, 1, 1), s))
        assert [float(v) for v in own] == pytest.approx(expected, rel=1e-5), type(net).__name__


@pytest.mark.parametrize("name", PRECONDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_shape_of_a_noise_level(name, dtype):
    net = make(name)
    x = torch.randn(3, 3, 8, 8)
    for value in (0.02, 0.9, 40.0):
        expected = net(x, torch.full([3], value, dtype=dtype))
        assert expected.dtype == torch.float32
        for shape in ([], [1], [1, 1, 1, 1], [3, 1, 1, 1], [3, 3, 1, 1], [3, 1, 8, 8], [3, 3, 8, 8], [1, 1, 8, 8]):
            own = net(x, torch.full(shape, value, dtype=dtype))
            torch.testing.assert_close(own, expected, rtol=1e-6, atol=2e-5 * value + 1e-5, msg=str(shape))
    torch.testing.assert_close(net(x, 0.9), net(x, torch.tensor(0.9)), rtol=0, atol=0)
    torch.testing.assert_close(net(x.double(), torch.tensor(0.9)), net(x, torch.tensor(0.9)), rtol=0, atol=0)


@pytest.mark.parametrize("name", [n for n in PRECONDS if n != "EDMGammaPrecond"])
def test_a_map_counts_by_the_mean_of_each_sample(name):
    net = make(name)
    x, noise_map = (
        torch.randn(2, 3, 8, 8),
        torch.rand(2, 3, 8, 8, dtype=torch.float64) * torch.tensor([0.5, 8]).reshape(2, 1, 1, 1),
    )
    torch.testing.assert_close(net(x, noise_map), net(x, noise_map.mean((1, 2, 3))), rtol=0, atol=1e-5)


def test_samples_are_independent_even_where_batch_equals_width():
    net = make()
    x, sigma = torch.randn(8, 3, 8, 8), torch.logspace(-1, 1, 8)
    together = net(x, sigma)
    alone = torch.cat([net(x[i : i + 1], sigma[i]) for i in range(8)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [[2], [3, 1], [2, 1, 1, 1], [3, 3, 8, 4], [1, 3, 1, 1, 1]])
def test_noise_level_that_does_not_fit(shape):
    with pytest.raises(ValueError, match="does not fit x of shape"):
        make()(torch.zeros(3, 3, 8, 8), torch.ones(shape))


@pytest.mark.parametrize("name", PRECONDS)
def test_at_zero_noise_the_denoiser_is_the_identity(name):
    net = make(name)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(net(x, torch.zeros(2)), x, rtol=0, atol=0)
    mixed = net(x, torch.tensor([0.0, 0.9]))
    torch.testing.assert_close(mixed[1:], net(x[1:], torch.tensor(0.9)), rtol=0, atol=1e-5)
    sigma = torch.tensor([1e-37, 1e-8, 0.3]).reshape(3, 1, 1, 1)
    if name == "EDMPrecond":  # the guard changes nothing above zero
        assert torch.equal(net.scalings(sigma)[3], sigma.log() / 4)


def test_labels():
    net = make(label_dim=5)
    x, sigma, labels = torch.randn(2, 3, 8, 8), torch.tensor([0.4, 2.0]), torch.eye(5)[[1, 4]]
    expected = net(x, sigma, labels)
    assert torch.equal(net(x, sigma, labels.double()), expected)
    assert torch.equal(net(x, sigma), net(x, sigma, torch.zeros(2, 5)))
    torch.testing.assert_close(net(x, sigma, labels[0]), net(x, sigma, labels[[0, 0]]))
    assert not torch.allclose(net(x, sigma), expected)
    plain = make()
    assert torch.equal(plain(x, sigma, labels), plain(x, sigma))
    for bad in (torch.tensor([1, 4]), torch.zeros(2, 4), torch.zeros(3, 5), torch.zeros(1, 2, 5)):
        with pytest.raises(ValueError, match=r"one-hot rows \[2, 5\]"):
            net(x, sigma, bad)


def test_compute_dtype():
    net = make()
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor([0.4, 2.0])
    trunk = []
    net.model.enc["8x8_conv"].register_forward_hook(lambda _m, _i, out: trunk.append(out.dtype))
    expected = net(x, sigma)
    net.use_fp16 = True
    assert net.compute_dtype == torch.float16
    assert torch.equal(net(x, sigma), expected)  # a CPU never computes in float16
    net.compute_dtype = torch.bfloat16
    assert not net.use_fp16
    low = net(x, sigma)
    assert low.dtype == torch.float32
    assert 0 < (low - expected).norm() < 0.02 * expected.norm()
    assert torch.equal(net(x, sigma, force_fp32=True), expected)
    assert trunk == [torch.float32, torch.float32, torch.bfloat16, torch.float32]
    assert make(use_fp16=True).use_fp16


@pytest.mark.parametrize("kwargs", [UNET, ADM], ids=["song", "adm"])
@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_trains_under_autocast(kwargs, compute_dtype):
    net = make(**kwargs, dropout=0).train()
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor([0.4, 2.0])
    net(x, sigma).square().mean().backward()
    expected = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    net.compute_dtype = compute_dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        data = net(x, sigma)
        data.square().mean().backward()
    assert data.dtype == torch.float32
    total = math.sqrt(sum(g.square().sum().item() for g in expected.values()))
    error = math.sqrt(sum((p.grad - expected[n]).square().sum().item() for n, p in net.named_parameters()))
    assert all(p.grad.dtype == torch.float32 for p in net.parameters())
    assert 0 < error < 0.1 * total


@pytest.mark.gpu
@pytest.mark.parametrize("kwargs", [UNET, ADM], ids=["song", "adm"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-3), (torch.float16, 1e-2), (torch.bfloat16, 4e-2)])
def test_cuda_agrees_with_cpu(kwargs, dtype, limit):
    net = make(**kwargs)
    x, sigma = torch.randn(4, 3, 8, 8), torch.logspace(-2, 1, 4)
    expected = net(x, sigma)
    net.cuda().compute_dtype = dtype
    own = net(x.cuda(), sigma.cuda())
    assert own.dtype == torch.float32
    assert (own.cpu() - expected).norm() < limit * expected.norm()
    own.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("name", PRECONDS)
def test_compiles_without_graph_breaks(name):
    torch.compiler.reset()  # the networks of this file share code, whose recompilations are counted
    small = {"network": GUIDED_UNET | {"channel_mult": [1]}} if name == "CMPrecond" else {"channel_mult": [1]}
    net = make(name, label_dim=2, **small)
    x, labels = torch.randn(2, 3, 8, 8), torch.eye(2)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    for sigma in (torch.tensor([0.4, 2.0]), torch.rand(2, 3, 8, 8, dtype=torch.float64)):
        torch.testing.assert_close(compiled(x, sigma, labels), net(x, sigma, labels))


@pytest.mark.parametrize(("M", "C_2"), [(50, 0.008), (1000, 0.008), (20000, 0.0)])
def test_iddpm_rounding_is_exact_and_takes_the_first_of_ties(M, C_2):
    net = iDDPMPrecond(8, 3, M=M, C_2=C_2, **UNET)
    u = net.u.double()
    midpoints = (u[1:20] + u[:19]) / 2
    query = torch.cat([u[:20], u[-40:], midpoints, torch.tensor([0.0, 1e-9, 1e9, math.inf]), torch.logspace(-4, 4, 40)])
    first = (query[:, None] - u).abs().nan_to_num(posinf=1e300).argmin(1)
    index = net.round_sigma(query, return_index=True)
    torch.testing.assert_close(u[index], u[first], rtol=0, atol=0)
    assert torch.equal(index[:-41], first[:-41])
    assert index[len(query) - 41] == 0
    rounded = net.round_sigma(query.float())
    assert rounded.dtype == torch.float32
    assert net.round_sigma(80).dtype == torch.float32
    assert net.round_sigma(torch.rand(2, 1, 1, 1)).shape == (2, 1, 1, 1)


def test_config_rebuilds_the_network():
    kwargs = {"img_resolution": 8, "img_channels": 3, "label_dim": 2, "sigma_data": 0.7} | UNET
    net = build("EDMPrecond", **kwargs)
    kwargs["channel_mult"].append(4)  # the caller's list is not ours
    config = json.loads(json.dumps(net.config))
    kwargs["channel_mult"].pop()
    again = build(**config)
    assert again.config == net.config == {"class_name": "EDMPrecond", **kwargs}
    again.load_state_dict(net.state_dict())
    assert again.sigma_data == 0.7


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("EDM", {}, "unknown network class 'EDM': choose one of EDMPrecond, VPPrecond, VEPrecond, iDDPMPrecond"),
        ("EDMPrecond", {"model_type": "UNet"}, "model_type 'UNet' is unknown: choose one of SongUNet, DhariwalUNet"),
        ("EDMPrecond", {"sigma_dat": 1}, "EDMPrecond has no argument 'sigma_dat': it takes .*sigma_data"),
        ("VEPrecond", {"sigma_data": 1, "width": 3}, "VEPrecond has no argument 'sigma_data', 'width'"),
        ("EDMPrecond", {"in_channels": 3}, "EDMPrecond has no argument 'in_channels'"),
        ("EDMPrecond", ADM | {"encoder_type": "skip"}, "EDMPrecond has no argument 'encoder_type'"),
        ("EDMPrecond", {"channel_mult": [1] * 5}, "resolution 8 cannot be halved 4 times"),
        ("EDMPrecond", {"model_channels": 144}, "cannot split 144 channels"),
        ("iDDPMPrecond", {"M": 0}, "M=0"),
    ],
)
def test_build_errors_are_one_sentence(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(name, **({"img_resolution": 8, "img_channels": 3} | UNET | kwargs))


def test_build_names_missing_arguments():
    with pytest.raises(ValueError, match="EDMPrecond needs img_resolution, img_channels"):
        build("EDMPrecond", **UNET)

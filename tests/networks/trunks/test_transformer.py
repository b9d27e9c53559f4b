"""Diffusion transformers: golden numbers, the published parameter counts, and cheap ways that equal the dear ones."""

import copy
import itertools

import pytest
import torch
from golden_cases import cases, fill_weights
from transformer_golden import network_of, one_hot, path_of, velocity

import networks
from networks.models.interpolant import transformer_config
from networks.trunks.tokens import LabelEmbedder, time_features
from networks.trunks.transformer import position_table


@pytest.mark.parametrize("case", cases("combostoc", "timestep_embedding"))
def test_time_features(case):
    params = case.spec["params"]
    case.check("embedding", time_features(case.input("t"), params["dim"], params["max_period"]))


@pytest.mark.parametrize("case", cases("combostoc", "position_embedding_2d"))
def test_position_table(case):
    case.check("embedding", position_table(case.spec["params"]["dim"], case.spec["params"]["grid"]))


@pytest.mark.parametrize("case", cases("combostoc", "model_forward"))
def test_forward(case):
    x, t, y = map(case.input, ("x", "t", "y"))
    case.check("out", velocity(network_of(case), x, t, y))


@pytest.mark.parametrize("case", cases("combostoc", "model_components"))
def test_components(case):
    net = network_of(case).model
    x, t = case.input("x"), case.input("t")
    t = t if t.ndim > 1 else t[:, None, None, None]
    own = {
        "t_embedder": net.t_embedder(t), "pos_embed": net.pos_embed,
        "x_embedder_plus_pos": net.x_embedder(x) + net.pos_embed,
    }  # fmt: skip
    for role in case.roles:
        case.check(role, own[role])


@pytest.mark.parametrize("case", cases("combostoc", "label_embedding"))
def test_labels(case):
    net = network_of(case)
    labels = one_hot(case.input("y"), net)
    drop = case.spec["params"]["force_drop_ids"]
    if drop is not None:
        labels = labels * (1 - torch.tensor(drop)[:, None])
    case.check("embedding", net.model.y_embedder(labels))


@pytest.mark.parametrize("case", cases("combostoc", "model_gradient"))
def test_gradient(case):
    params = case.spec["params"]
    net = network_of(case)
    x1, x0, t, y = map(case.input, ("x1", "x0", "t", "y"))
    path, rows = path_of(params), (torch.arange(len(x1)) < params["compensated_rows"])[:, None, None, None]
    xt, u = path.mix(x1, x0, 1 - t), -path.target(x1, x0, 1 - t, "velocity")
    d = x1 - xt
    share = (d * u).flatten(1).sum(1) / u.square().flatten(1).sum(1)
    target = u + rows * (d - share[:, None, None, None] * u)
    loss = (velocity(net, xt, t, y) - target).square().mean()
    loss.backward()
    case.check("loss", loss)
    named = dict(net.model.named_parameters())
    assert set(params["parameters"]) - named.keys() == set(params["no_gradient"])
    norms = [named[n].grad.norm() if n in named else torch.zeros(()) for n in params["parameters"]]
    case.check("grad_norms", torch.stack(norms))


# parameters of a 32x32x4 latent model with 1000 classes and learn_sigma, by patch size (the papers' tables)
COUNTS = {
    "ComboStoc-S": (32_742_840, 32_798_232, 33_296_280), "SiT-S": (32_963_360, 32_945_024, 33_148_160),
    "ComboStoc-B": (129_775_416, 129_886_104, 130_881_816), "SiT-B": (130_512_416, 130_475_648, 130_881_536),
    "ComboStoc-L": (456_857_656, 457_005_208, 458_332_696), "SiT-L": (458_102_816, 458_053_760, 458_594_816),
    "ComboStoc-XL": (673_581_240, 673_747_224, 675_240_600), "SiT-XL": (675_129_632, 675_074_432, 675_683_072),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes(name):
    for patch, count in zip((2, 4, 8), COUNTS[name], strict=True):
        with torch.device("meta"):
            net = networks.build(**transformer_config(f"{name}/{patch}", 32, 4, 1000, learn_sigma=True))
        assert sum(p.numel() for p in net.state_dict().values()) == count


def test_larger_images_only_have_more_positions():
    with torch.device("meta"):
        small, large = (networks.build(**transformer_config("SiT-S/2", size, 4, 10)) for size in (32, 64))
    changed = {k for k, v in small.state_dict().items() if v.shape != large.state_dict()[k].shape}
    assert changed == {"model.pos_embed"}


def small(element_times=True, **kwargs):
    torch.manual_seed(0)
    net = networks.build(
        "InterpolantNetwork", img_resolution=8, img_channels=3, label_dim=5, element_times=element_times, patch_size=2,
        width=32, depth=2, num_heads=4, **kwargs,
    )  # fmt: skip
    fill_weights(net.model)
    return net.eval()


def data(rows=4):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 3, 8, 8, generator=g, dtype=torch.float64)
    labels = torch.nn.functional.one_hot(torch.arange(rows) % 5, 5).double()
    return x, labels, g


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (4, 1, 1, 1), (4, 3, 1, 1), (4, 1, 8, 8), (1, 3, 1, 1)])
def test_shared_times_equal_spelled_out_ones(shape):
    """Embedded once per sample, channel or position, or for every element: the same."""
    x, labels, g = data()
    t = torch.rand(shape, generator=g, dtype=torch.float64)
    net = small().model.double()
    cheap, dear = net(x, t, labels), net(x, t.expand(x.shape).contiguous(), labels)
    torch.testing.assert_close(cheap, dear, rtol=0, atol=1e-12 * float(dear.abs().max()))
    assert not torch.allclose(cheap, net(x, torch.rand(shape, generator=g, dtype=torch.float64), labels))


def test_mixed_batches_are_split():
    x, labels, g = data(6)
    t = torch.rand(6, 3, 8, 8, generator=g, dtype=torch.float64)
    t[2:] = t[2:, :, :1, :1]
    net = small().model.double()
    dear = net(x, t, labels)
    for n in (0, 1, 4):
        torch.testing.assert_close(net(x, t, labels, synchronous=n), dear, rtol=0, atol=1e-12 * float(dear.abs().max()))


def test_scalar_times_average_maps():
    x, labels, g = data()
    t = torch.rand(4, 3, 8, 8, generator=g, dtype=torch.float64)
    net = small(element_times=False)
    maps, means = net(x, t, labels), net(x, t.mean((1, 2, 3)), labels)
    torch.testing.assert_close(maps, means, rtol=0, atol=1e-5 * float(maps.abs().max()))  # times rounded to float32


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_no_label(dropout):
    embed = LabelEmbedder(5, 4, dropout)
    empty = embed(torch.zeros(2, 5))
    expected = embed.embedding_table.weight[5] if dropout else torch.zeros(4)
    assert torch.equal(empty, expected.expand(2, 4))


def test_fresh_networks_predict_nothing():
    for element_times in (True, False):
        net = networks.build("InterpolantNetwork", img_resolution=8, img_channels=3, element_times=element_times)
        assert not net(torch.randn(2, 3, 8, 8), torch.rand(2)).any()


def test_checkpointing_changes_memory_only():
    x, labels, g = data()
    t = torch.rand(4, 3, 8, 8, generator=g, dtype=torch.float64)
    plain = small().model.double().train()
    plain.label_dropout = 0
    other = copy.deepcopy(plain)
    other.checkpointing = True
    for net in (plain, other):
        net(x, t, labels).square().mean().backward()
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)


def test_bf16_times_stay_float32():
    x, labels, _ = data()
    net = small().float()
    full = net(x, torch.full([4], 1e-3), labels)
    net.compute_dtype = torch.bfloat16
    assert net(x, torch.full([4], 1e-3), labels).dtype == torch.float32
    # 8 bits of mantissa, some ten roundings in a row
    assert (net(x, torch.full([4], 1e-3), labels) - full).abs().max() < 10 * 2**-8 * full.abs().max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 3}, "do not tile"), ({"num_heads": 5}, "cannot be split"),
        ({"path": "ve"}, "linear, trig or vp"), ({"predicts": "image"}, "velocity, noise, score or data"),
        ({"width": 6, "num_heads": 2}, "multiple of 4"), ({"model_type": "MLP"}, "is unknown"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit(change, message):
    given = {"img_resolution": 8, "img_channels": 3, "width": 32, "depth": 1, "num_heads": 4, **change}
    with pytest.raises(ValueError, match=message):
        networks.build("InterpolantNetwork", **given)


@pytest.mark.parametrize("name", ["SiT", "DiT-S/2", "SiT-M/2", "ComboStoc-S/x"])
def test_names_that_are_no_model(name):
    with pytest.raises(ValueError, match="is no transformer"):
        transformer_config(name, 32, 4, 0)


def test_times_of_another_batch_are_refused():
    net = small().float()
    with pytest.raises(ValueError, match="does not fit"):
        net(torch.randn(4, 3, 8, 8), torch.rand(3))


def test_all_published_names_have_counts():
    assert set(COUNTS) == {f"{a}-{b}" for a, b in itertools.product(("SiT", "ComboStoc"), ("S", "B", "L", "XL"))}


def test_blocks_compile_without_graph_breaks():
    """One by one, for times of a sample and of elements."""
    net = small().double()
    x, labels, g = data()
    times = [torch.rand(shape, generator=g, dtype=torch.float64) for shape in ((4, 1, 1, 1), (4, 3, 8, 8))]
    with torch.no_grad():
        expected = [net.model(x, t, labels) for t in times]
        torch.compiler.reset()
        net.compile(backend="eager", fullgraph=True)
        for t, wanted in zip(times, expected, strict=True):
            torch.testing.assert_close(net.model(x, t, labels), wanted, rtol=0, atol=1e-12 * float(wanted.abs().max()))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0

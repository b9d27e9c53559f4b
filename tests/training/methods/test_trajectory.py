"""Adversarial optimisation of the inference trajectory: phases, level draws, whole iterations."""

import copy
import functools

import numpy as np
import pytest
import torch
from golden_cases import cases
from mac_golden import Draws, as_logged, coefficient_config, expect, fill, grad_norms, inputs, precond_config, value
from torch import nn

import networks
from networks.adversary.backbones import Pyramid
from networks.adversary.discriminator import ProjectedDiscriminator
from networks.models.mac import MACNetwork
from samplers.schedules.edm import general_levels
from training.data.batches import Batches
from training.diffaugment import diff_augment
from training.loop.ema import halflife_beta, update_ema
from training.loop.step import sanitize_gradients
from training.losses.adversarial import fake_loss, generator_loss, real_loss
from training.methods.trajectory import draw_levels, generate, noised_levels, single_step


def mac_network(p):
    levels = general_levels(None, p["num_steps"], p["sigma_min"], p["sigma_max"], p["rho"])[:-1].tolist()
    mac = {k: p["mac"][k] for k in ("M", "rho", "k", "t_max")}
    net = MACNetwork(networks.build(**precond_config(p["V"])), coefficient_config(p["C"]), levels, **mac)
    net.V.train(p["V"]["train"])
    net.C.train(p["C"]["train"])
    return net


def v_estimate(net, p, img, z, labels, rng):
    schedule = torch.tensor(net.schedule, dtype=torch.float64)
    t = draw_levels(rng, len(img), schedule, p["P_mean"], p["P_std"])
    return single_step(net, img, z, labels, t, noised_levels(net, t, img, labels, rng))


@pytest.mark.parametrize("case", cases("mac", "generator_single_step"))
def test_golden_single_step(case):
    p, given, seed = case.spec["params"], inputs(case), case.spec["draws"]["seed"]
    net = fill(mac_network(p), case.spec["state_dict"], case)
    rng = Draws(seed)
    expect(case, "draw_t", Draws(seed).randn([len(given["img"])]))
    pred = v_estimate(net, p, given["img"], given["z"], given["labels"], rng)
    assert rng.log == as_logged(case.spec["draws"]["order"])
    expect(case, "pred", pred)
    (pred * given["R"]).mean().backward()
    expect(case, "gradnorm_V", grad_norms(net.V.parameters()))
    expect(case, "gradnorm_C", grad_norms(net.C.parameters()))


def stand_in(spec, resize):
    layers, channels = [], 3
    for conv in spec["layers"]:
        layers.append(
            nn.Sequential(
                nn.Conv2d(channels, conv["out_channels"], conv["kernel"], conv["stride"], conv["padding"]), nn.ReLU()
            )
        )
        channels = conv["out_channels"]
    return Pyramid(
        spec["name"], layers, channels=[c["out_channels"] for c in spec["layers"]], map_sizes=[56, 28, 14, 7],
        mean=spec["mean"], std=spec["std"], resize=resize,
    )  # fmt: skip


def discriminator(spec):
    return ProjectedDiscriminator(
        [stand_in(b, spec["resize"] if spec["interp224"] else None) for b in spec["backbones"]],
        img_resolution=spec["img_resolution"],
        img_channels=spec["img_channels"],
        label_dim=spec["c_dim"] if spec["cond"] else 0,
        augment=functools.partial(diff_augment, policy=spec["diffaugment"]) if spec["diffaugment"] else None,
        cout=spec["cout"],
        expand=spec["expand"],
        proj_type=spec["proj_type"],
        num_discs=spec["num_discs"],
        embedding_rows=spec["embedding_rows"],
        embedding_dim=spec["embedding_dim"],
    ).train(spec["train"])


def norm(parameters):
    return torch.stack([p.detach().double().norm() for p in parameters]).norm()


@pytest.mark.parametrize("case", cases("mac", "trajectory_training"))
def test_golden_training(case):
    p, g = case.spec["params"], case.spec["params"]["generator"]
    net = fill(mac_network(g), case.spec["state_dicts"]["generator"], case)
    disc = fill(discriminator(p["discriminator"]), case.spec["state_dicts"]["discriminator"], case)
    ema = copy.deepcopy(net)
    trained = {
        "V": list(net.V.parameters()),
        "C": list(net.C.parameters()),
        "D": list(disc.discriminators.parameters()),
    }
    adam = {
        name: torch.optim.Adam(trained[name], lr=o["lr"], betas=tuple(o["betas"]), eps=o["eps"])
        for name, o in p["optimizers"].items()
    }
    source, rng = np.random.RandomState(case.spec["data"]["seed"]), Draws(case.spec["draws"]["seed"])

    def batch(n):
        _, low, high, shape = case.spec["data"]["images"]
        images = source.randint(low, high, (n, *shape)).astype(np.uint8)
        labels = source.randint(*case.spec["data"]["labels"][1:], n)
        onehot = torch.eye(p["label_dim"])[labels] if p["label_dim"] else None
        return torch.from_numpy(images).float() / 127.5 - 1, onehot

    def step(name, *losses):
        """Gradients of the sum, then one update; returns their norm."""
        for others, parameters in trained.items():
            for q in parameters:
                q.requires_grad_(others == name)
        adam[name].zero_grad()
        values = [loss() for loss in losses]
        for v in values:
            v.backward()
        sanitize_gradients(trained[name])
        size = grad_norms(trained[name]).double().norm()
        adam[name].step()
        return [v.item() for v in values], size.item()

    rows = []
    for i in range(p["iterations"]):
        data = {name: batch(p[f"batch_{name[0]}"]) for name in case.spec["data"]["order"]}

        def v_loss(data=data["V"]):
            z = rng.randn_like(data[0])
            return generator_loss(disc(v_estimate(net, g, data[0], z, data[1], rng), data[1], rng)).sum()

        def c_loss(data=data["C"]):
            fakes = generate(net, rng.randn_like(data[0]), data[1], checkpointing=True)
            return generator_loss(disc(fakes, data[1], rng)).sum()

        def fake(data=data["D_labels_only"]):
            with torch.no_grad():
                fakes = generate(net, rng.randn_like(data[0]), data[1])
            return fake_loss(disc(fakes, data[1], rng)).sum()

        def real(data=data["D"]):
            return real_loss(disc(*data, rng)).sum()

        (lv,), gv = step("V", v_loss)
        (lc,), gc = step("C", c_loss)
        (lf, lr), gd = step("D", fake, real)
        size = p["batch_" + p["ema"]["counts"][-1]]
        beta = halflife_beta(i * size, size, p["ema"]["halflife_max"], p["ema"]["rampup"])
        update_ema(ema, net, beta)
        values = {
            "loss_V": lv, "loss_C": lc, "loss_Dgen": lf, "loss_Dreal": lr, "gradnorm_V": gv, "gradnorm_C": gc,
            "gradnorm_D": gd, "ema_beta": beta, "norm_V": norm(net.V.parameters()), "norm_C": norm(net.C.parameters()),
            "norm_D": norm(disc.parameters()), "norm_emaV": norm(ema.V.parameters()),
            "norm_emaC": norm(ema.C.parameters()),
        }  # fmt: skip
        rows.append([float(values[c]) for c in case.spec["expect"]["rows"]["columns"]])
    assert rng.log == as_logged(case.spec["draws"]["order_per_iteration"]) * p["iterations"]
    expect(case, "rows", torch.tensor(rows, dtype=torch.float64))
    z, labels = inputs(case)["z"], inputs(case)["labels"]
    with torch.no_grad():
        expect(case, "sample_ema", generate(ema, z, labels))
        expect(case, "sample_raw", generate(net, z, labels))
    assert value(case, None) is None


def tiny(class_name="EDMPrecond", **kwargs):
    v = {"class_name": class_name, "img_resolution": 8, "img_channels": 1, "model_type": "SongUNet",
         "model_channels": 16, "channel_mult": [1], "num_blocks": 1, "dropout": 0} | kwargs  # fmt: skip
    c = {"model_channels": 16, "channel_mult": [1], "num_blocks": 1}
    return networks.build("MACNetwork", network=v, coefficients=c, schedule=[80.0, 2.5, 0.17, 0.002], M=2).eval()


@pytest.mark.parametrize("class_name", ["EDMPrecond", "EDMGammaPrecond"])
def test_checkpointing_changes_memory_not_gradients(class_name):
    net, z = tiny(class_name), torch.randn(2, 1, 8, 8)
    grads = []
    for checkpointing in (False, True):
        net.zero_grad()
        generate(net, z, None, checkpointing).square().mean().backward()
        grads.append(grad_norms(net.parameters()))
    assert (grads[0] > 0).any()
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.parametrize("class_name", ["EDMPrecond", "EDMGammaPrecond"])
def test_every_parameter_of_an_augmented_denoiser_gets_a_gradient(class_name):
    """Averaging gradients over processes silently stops where a parameter has none."""
    net, x = tiny(class_name, augment_dim=9), torch.randn(2, 1, 8, 8)
    t = torch.tensor([0.17, 2.5], dtype=torch.float64)
    gamma = noised_levels(net, t, x, None, Draws(0))
    estimate = single_step(net, x, torch.randn_like(x), None, t, gamma)
    estimate.square().mean().backward()
    assert all(p.grad is not None for p in net.V.parameters())


def test_level_draws():
    schedule, rng = torch.tensor([80.0, 17.5, 2.5, 0.17, 0.002], dtype=torch.float64), Draws(0)
    shares = {
        how: (draw_levels(rng, 200_000, schedule, how=how)[:, None] == schedule).double().mean(0)
        for how in ("nearest", "log", "uniform")
    }
    # Probabilities that a log-normal draw (-1.2, 1.2) falls between the middles of neighbouring levels.
    expected = torch.tensor([1.1e-5, 0.0017, 0.105, 0.746, 0.148], dtype=torch.float64)
    torch.testing.assert_close(shares["nearest"], expected, rtol=0.02, atol=2e-3)
    torch.testing.assert_close(shares["uniform"], torch.full_like(expected, 0.2), rtol=0, atol=5e-3)
    assert shares["log"][2] > shares["nearest"][2]


def test_losses_per_image_are_summed_over_backbones():
    logits = [torch.tensor([[1.0, 3.0], [-2.0, 0.0]]), torch.tensor([[0.5], [4.0]])]
    assert generator_loss(logits).tolist() == [-2.5, -3.0]
    assert fake_loss(logits).tolist() == [4.5, 5.5]
    assert real_loss(logits).tolist() == [0.5, 2.0]


class Squares(torch.utils.data.Dataset):
    """What `Batches` reads of a data set: 10 images whose pixels are their index."""

    num_images, image_shape, latents = 10, [1, 2, 2], None

    def __len__(self):
        return self.num_images

    def targets(self):
        return torch.arange(10)

    def images(self):
        return torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 1, 2, 2).contiguous()

    def encode_labels(self, targets):
        return targets[:, None].float()

    def drop_images(self):
        pass


def test_twin_batches_have_the_same_order_in_another_size():
    batches = Batches(Squares(), 2, seed=3)
    twin = batches.twin(6)
    small = torch.cat([batches.next()[1] for _ in range(6)]).flatten().tolist()
    assert torch.cat([twin.next()[1] for _ in range(2)]).flatten().tolist() == small
    state, expected = twin.state_dict(), twin.next()[1]
    again = batches.twin(6)
    again.load_state_dict(state)
    assert torch.equal(again.next()[1], expected)
    with pytest.raises(ValueError, match="shared equally"):
        Batches(Squares(), 4, world=2).twin(3)

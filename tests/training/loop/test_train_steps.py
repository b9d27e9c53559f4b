"""Whole training steps from known weights: loss, accumulation, sanitised gradients, learning rate, Adam, averaging."""

import copy

import numpy as np
import pytest
import torch
from golden_cases import cases, fill_weights

import networks
from torch_utils.images import from_uint8
from training.augment import AugmentPipe
from training.loop.ema import halflife_beta, update_ema
from training.loop.step import lr_rampup, nonfinite_count, sanitize_gradients, set_lr
from training.losses.denoising import loss_for


def norms(module, order):
    named = dict(module.named_parameters())
    return np.array([named[name].detach().double().norm().item() for name in order])


def still_keys(params):
    """Set the gradients of the biases of keys, which no output depends on, to 0: what is computed of them is rounding,
    of which Adam makes whole steps, in other directions on another processor. The reference has its own."""
    for name, p in params.items():
        if name.endswith("qkv.bias"):
            keys, rest = p.grad.view(-1, 3)[:, 1], p.grad.view(-1, 3)[:, ::2]
            assert keys.norm() < 1e-4 * rest.norm(), name
            keys.zero_()


@pytest.mark.parametrize("case", cases("edm", "train_steps"))
def test_golden(case):
    spec = case.spec
    net = networks.build(spec["precond"], **spec["kwargs"])
    fill_weights(net, spec["constant_keys"]).train().requires_grad_(True)
    ema = copy.deepcopy(net).eval().requires_grad_(False)
    params = dict(net.named_parameters())
    loss_fn = loss_for(net, spec["loss"], **spec["loss_kwargs"])
    pipe = None if spec["augment_kwargs"] is None else AugmentPipe(**spec["augment_kwargs"])
    optimizer = torch.optim.Adam(net.parameters(), lr=spec["lr"], foreach=True, **spec["adam"])
    rounds, batch_size = spec["accumulation_rounds"], spec["batch_size"]
    images, bad = case.tensor("images_u8"), spec["nonfinite_grad"]
    log = []
    torch.manual_seed(spec["torch_seed"])
    for step in range(spec["steps"]):
        nimg = step * batch_size
        optimizer.zero_grad(set_to_none=True)
        means = []
        for r in range(rounds):
            labels = None
            if spec["label_dim"]:
                labels = torch.eye(spec["label_dim"])[case.tensor("label_idx")[step, r]]
            loss = loss_fn(net, from_uint8(images[step, r]), labels, pipe)
            (loss.sum() * (spec["loss_scaling"] / batch_size)).backward()
            means.append(loss.detach().double().mean())
        still_keys(params)
        poisoned = bad is not None and bad["step"] == step
        if poisoned:
            params[bad["param"]].grad.view(-1)[bad["entries"]] = torch.tensor(bad["values"])
        assert nonfinite_count(net.parameters()).item() == poisoned
        squares = [p.grad.double().nan_to_num(0, 0, 0).square().sum() for p in params.values() if p.grad is not None]
        sanitize_gradients(net.parameters())
        lr = lr_rampup(nimg, spec["lr"], spec["lr_rampup_kimg"] * 1000)
        set_lr(optimizer, lr)
        optimizer.step()
        beta = halflife_beta(nimg, batch_size, spec["ema_halflife_kimg"] * 1000, spec["ema_rampup_ratio"])
        update_ema(ema, net, beta)
        row = {"mean_loss": sum(means) / rounds, "grad_norm": sum(squares).sqrt(), "lr": lr, "ema_beta": beta}
        log.append([float(row[column]) for column in spec["log_columns"]])
    own = {
        "log": log,
        "param_norms_net": norms(net, spec["param_order"]),
        "param_norms_ema": norms(ema, spec["param_order"]),
    }
    for name, module in (("net", net), ("ema", ema)):
        state = module.state_dict()
        own |= {f"{name}/{key}": state[key].flatten()[: spec["probe_count"]] for key in spec["probes"]}
    assert list(params) == spec["param_order"]
    for role in case.outputs:
        case.expect(role, own[role])

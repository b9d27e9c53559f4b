"""Training steps and sampling of denoisers, against the network, loss, step and sampler written plainly.

Both networks hold the same weights; their outputs are compared before anything is timed. Training draws its own random
numbers on either side, so that only the work is the same.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from bench.presets import PRESETS, Preset
from bench.reference import denoiser as reference
from bench.rows.row import Row, Work
from bench.train import SyntheticBatches
from samplers.run import prepare
from samplers.solvers.churn import edm_sampler
from training.loop.loop import Loop
from training.loop.settings import LoopOptions
from training.methods.edm import build_network
from training.methods.table import METHODS

__all__ = ["ROWS", "wake"]

CPU = torch.device("cpu")


@torch.no_grad()
def wake(net: nn.Module) -> None:
    """Give weights to the last layers that start at nearly zero, so that outputs depend on the whole network."""
    for name, parameter in net.named_parameters():
        if name.endswith(("conv1.weight", "proj.weight", "aux_conv.weight")):
            parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)


def _pair(preset: str, dropout: float) -> tuple[Preset, nn.Module, reference.Denoiser]:
    """The preset without augmentation, our network and the plain one with its weights (last layers not nearly zero)."""
    entry = PRESETS[preset]
    entry = dataclasses.replace(entry, options=dataclasses.replace(entry.options, augment=0.0, dropout=dropout))
    torch.manual_seed(0)
    ours = build_network(entry.options, entry.dataset())
    wake(ours)
    kwargs = entry.options.network_kwargs()
    plain = reference.Denoiser(
        resolution=entry.resolution, channels=entry.channels, classes=entry.classes, width=kwargs["model_channels"],
        multipliers=list(kwargs["channel_mult"]), blocks=kwargs.get("num_blocks", 4), attend=[16], dropout=dropout,
    )  # fmt: skip
    plain.load_state_dict(ours.state_dict())
    return entry, ours, plain


def _training(preset: str, batch: int, dropout: float) -> Work:
    entry, ours, plain = _pair(preset, dropout)
    x, sigma = torch.randn(2, entry.channels, entry.resolution, entry.resolution), torch.tensor([0.2, 3.0])
    labels = torch.eye(entry.classes)[:2]
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x, sigma, labels), plain.eval()(x, sigma, labels), rtol=0, atol=1e-3)
    options = dataclasses.replace(entry.options, batch=batch)
    batches = SyntheticBatches(batch, entry.dataset().image_shape, entry.classes, CPU)
    method = METHODS["edm"].build(options, entry.dataset(), CPU)
    loop = Loop(method, batches, LoopOptions(seed=0, batch=batch), CPU)
    step = reference.training_step(plain.train(), *batches.next())

    def theirs() -> None:
        step()

    def own() -> None:
        loop.step()

    return Work(theirs, own)


def _sampling(preset: str, batch: int, steps: int) -> Work:
    entry, ours, plain = _pair(preset, 0.0)
    prepare(ours, CPU)
    plain.eval()
    torch.manual_seed(1)
    noise = torch.randn(batch, entry.channels, entry.resolution, entry.resolution)
    labels = torch.eye(entry.classes)[torch.arange(batch) % entry.classes]

    @torch.inference_mode()
    def own() -> torch.Tensor:
        return edm_sampler(ours, noise, labels, num_steps=steps)

    return Work(lambda: reference.heun(plain, noise, labels, steps), own)


ROWS = [
    Row("training step, DDPM++ 55.7M, batch 4", lambda: _training("cifar10", 4, 0.13), 1.3, agree=None, repeats=3),
    Row("training step, DDPM++ 55.7M, batch 2", lambda: _training("cifar10", 2, 0.13), 1.3, agree=None, repeats=3),
    Row("training step, digits net, batch 128", lambda: _training("digits", 128, 0.0), 1.3, agree=None),
    Row("sampling, DDPM++ 55.7M, batch 4", lambda: _sampling("cifar10", 4, 2), 1.3, agree=1e-3, repeats=3),
    Row("sampling, digits net, batch 64", lambda: _sampling("digits", 64, 6), 1.3, agree=1e-3),
]

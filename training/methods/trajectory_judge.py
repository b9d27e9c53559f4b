"""What judges samples in trajectory optimisation: a projected discriminator, of points a small one.

Of latents it sees the images that their autoencoder makes of them, and gradients go through that. Where all backbones
are `light`, whose random features are of no images in particular, it sees the latents themselves, at less cost.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from networks.adversary.backbones import build_backbone
from networks.adversary.discriminator import ProjectedDiscriminator
from networks.adversary.points import PointDiscriminator
from torch_utils.options import refuse
from training.data.batches import ImageDataset
from training.data.toys import ToyDataset
from training.diffaugment import diff_augment, parse_policy
from training.methods.trajectory_options import TrajectoryOptions

OF_IMAGES = ("backbones", "diffaugment", "coef_mult", "coef_downsample", "lpf", "gauss_kernel_sigma")

Judge = Callable[..., list[Tensor]]  # samples, labels, rng -> logits of every head


def judge_of(
    options: TrajectoryOptions, dataset: ImageDataset | ToyDataset, device: torch.device
) -> tuple[nn.Module, Judge]:
    """The discriminator, in train mode on the device, and its call for samples of the data set's shape.

    Raises:
        ValueError: options that do not go with the data, missing weights, latents that cannot be decoded.
    """
    label_dim = dataset.label_dim if options.cond else 0
    if isinstance(dataset, ToyDataset):
        refuse(options, OF_IMAGES, f"is for images, {options.data} holds points")
        disc = PointDiscriminator(dataset.num_channels, label_dim, std=dataset.std).to(device).train()
        return disc, disc
    names = [item.strip().partition("=")[::2] for item in options.backbones.split(",")]
    decoded = dataset.latents is not None and any(name != "light" for name, _ in names)
    if decoded and dataset.autoencoder is None:
        raise ValueError(
            f"--backbones={options.backbones} are features of images, and the autoencoder of the latents is not at "
            "hand: give it with --decoder, or --backbones=light, which looks at the latents themselves"
        )
    if options.diffaugment:
        parse_policy(options.diffaugment)
    augment = functools.partial(diff_augment, policy=options.diffaugment) if options.diffaugment else None
    channels, _, resolution = dataset.shown_shape if decoded else dataset.image_shape
    shape = {"img_resolution": resolution, "img_channels": channels}
    backbones = [build_backbone(name, weights=weights or None, **shape) for name, weights in names]
    disc = ProjectedDiscriminator(backbones, label_dim=label_dim, augment=augment, **shape).to(device).train()
    if not decoded:
        return disc, disc
    decode = dataset.autoencoder.decode
    return disc, lambda x, labels, rng: disc(decode(x), labels, rng)

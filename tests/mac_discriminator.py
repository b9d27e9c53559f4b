"""The discriminator of a golden case of area "mac", with its small stand-ins for pretrained backbones."""

from functools import partial

from torch import nn

from networks.adversary.backbones import Pyramid
from networks.adversary.discriminator import ProjectedDiscriminator
from training.diffaugment import diff_augment


def stand_in(spec, resolution, resize):
    """Convolution and ReLU per layer."""
    layers, channels, sizes = [], [], []
    width, size = len(spec["mean"]), resize or resolution
    for layer in spec["layers"]:
        conv = nn.Conv2d(width, layer["out_channels"], layer["kernel"], layer["stride"], layer["padding"])
        layers.append(nn.Sequential(conv, nn.ReLU()))
        width, size = layer["out_channels"], (size + 2 * layer["padding"] - layer["kernel"]) // layer["stride"] + 1
        channels.append(width)
        sizes.append(size)
    facts = {"channels": channels, "map_sizes": sizes, "mean": spec["mean"], "std": spec["std"], "resize": resize}
    return Pyramid(spec["name"], layers, **facts)


def golden_discriminator(params):
    """`params` of a projected_discriminator case, or `params["discriminator"]` of a trajectory_training case."""
    resolution = params["img_resolution"]
    resize = params["resize"] if params["interp224"] else None
    policy = params["diffaugment"]
    disc = ProjectedDiscriminator(
        [stand_in(spec, resolution, resize) for spec in params["backbones"]],
        img_resolution=resolution,
        img_channels=params["img_channels"],
        label_dim=params["c_dim"] if params["cond"] else 0,
        augment=partial(diff_augment, policy=policy) if policy else None,
        cout=params["cout"],
        expand=params["expand"],
        proj_type=params["proj_type"],
        num_discs=params["num_discs"],
        embedding_rows=params["embedding_rows"],
        embedding_dim=params["embedding_dim"],
    )
    for features in disc.feature_networks.values():
        assert features.nominal_resolutions == params["nominal_resolutions"]
    return disc

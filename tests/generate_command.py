"""What tests of generate.py share: reading what it wrote, and what it said."""

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import networks
from torch_utils.provenance import MADE_BY


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def files(folder):
    """Without the record of what made them."""
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file() and p.name != MADE_BY)


def bare(name):
    """The name of a default folder's file without the hash."""
    return re.sub(r"-[0-9a-f]{8}/", "/", name)


def check_refused(result, message):
    assert result.exit_code not in (0, None)
    assert isinstance(result.exception, SystemExit), result.exception
    error = result.output[result.output.index("Error: ") :]
    assert message in error
    assert len(error.strip().splitlines()) == 1


def toy_network(path):
    torch.manual_seed(0)
    net = networks.build(
        "VelocityNetwork", img_resolution=1, img_channels=2, model_type="MLP", prior_std=[6.0, 1.0], gaussian_noise=True
    )
    networks.save_network(path, net)
    return net

"""The layout of a network follows its width and its device."""

import torch
from torch import nn

from torch_utils.layout import memory_format


def test_narrow_networks_keep_pytorchs_layout_on_a_cpu():
    narrow, wide = nn.Conv2d(3, 64, 3), nn.Sequential(nn.Conv2d(3, 128, 3), nn.Conv2d(128, 128, 3))
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [memory_format(net, cpu) for net in (narrow, wide)] == [torch.contiguous_format, torch.channels_last]
    assert memory_format(narrow, gpu) == torch.channels_last
    assert memory_format(nn.Linear(3, 3), cpu) == torch.contiguous_format

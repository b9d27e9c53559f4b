"""What a network is: U-Nets, preconditioners, and how to build, load and save them by name."""

from typing import TYPE_CHECKING

from torch_utils.lazy import lent

if TYPE_CHECKING:
    from networks.load import load_encoder, load_network, save_network
    from networks.table import NETWORKS, build

__all__ = ["NETWORKS", "build", "load_encoder", "load_network", "save_network"]

__getattr__, __dir__ = lent(
    __name__,
    {"networks.load": ("load_encoder", "load_network", "save_network"), "networks.table": ("NETWORKS", "build")},
)

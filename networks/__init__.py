"""What a network is: U-Nets, preconditioners, and how to build, load and save them by name."""

from networks.load import load_encoder, load_network, save_network
from networks.table import NETWORKS, build

__all__ = ["NETWORKS", "build", "load_encoder", "load_network", "save_network"]

"""A corpus of files that try to run code, exhaust memory or hang, and the bounds on reading them."""

from hostile.assemble import CODE, MARKER, glob, items, module_state, p2, persistent, text
from hostile.bounds import bounded, watched
from hostile.containers import ARCHIVES, CONTAINERS, OTHERS, SAFETENSORS, ZIPS
from hostile.pickles import BODIES, networks

__all__ = [
    "ARCHIVES", "BODIES", "CODE", "CONTAINERS", "MARKER", "OTHERS", "SAFETENSORS", "ZIPS", "bounded", "glob", "items",
    "module_state", "networks", "p2", "persistent", "text", "watched",
]  # fmt: skip

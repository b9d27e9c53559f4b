"""Training states of published EDM code (Karras et al. 2022, arXiv 2206.00364) as a starting point.

Such a `training-state-NNNNNN.pt` holds the network in training and Adam's moments; the average is in the
`network-snapshot-NNNNNN.pkl` beside it, and NNNNNN is thousands of images. There is neither a data position nor an
exact image count: a run that continues from one begins a new pass over the data. Nothing in the files is executed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import networks
from networks.published.edm import EDM, read_training_state
from torch_utils.pickles.foreign import named_tensors, naming, read_foreign
from training.loop.loop import Loop


def is_published(path: Path) -> bool:
    """Whether the file is a training state of published EDM code; ValueError if it is no checkpoint at all."""
    value = read_foreign(path, EDM).value
    return isinstance(value, dict) and "optimizer_state" in value


def read_published(path: Path, loop: Loop) -> dict[str, Any]:
    """The file as a state of `loop`, of its first phase's network: what `Loop.load_state_dict` takes.

    Raises:
        ValueError: damaged, the snapshot beside it is missing, or its name has no number.
    """
    if list(loop.optimizers) != ["net"]:
        raise ValueError(f"{path} is a state of EDM training: continue it with `train.py edm`")
    match = re.fullmatch(r"training-state-(\d+)\.pt", path.name)
    if match is None:
        raise ValueError(f"{path} must be called training-state-NNNNNN.pt: the number says how far training had come")
    snapshot = path.with_name(f"network-snapshot-{match[1]}.pkl")
    if not snapshot.is_file():
        raise ValueError(f"{snapshot} is missing: it holds the average that goes with {path.name}")
    published = read_training_state(path)
    with naming(path):
        tensors = named_tensors(published["net"])
        order = list(named_tensors(published["net"], buffers=False))
        slots = published["optimizer_state"]["state"]
        if not all(type(i) is int and 0 <= i < len(order) for i in slots):
            raise ValueError("its optimizer counts more parameters than its network has")
    moments = {order[i]: values for i, values in slots.items()}
    own = loop.optimizers["net"].state_dict()  # its settings come from the options
    names = [name for name, _ in loop.method.modules["net"].named_parameters()]
    return {
        "nimg": int(match[1]) * 1000,
        "modules": {"net": tensors},
        "averages": {"ema": networks.load_network(snapshot).state_dict()},
        "optimizers": {"net": {**own, "state": {i: moments[n] for i, n in enumerate(names) if n in moments}}},
        "data": loop.batches.state_dict(),
        "stats": [],
    }

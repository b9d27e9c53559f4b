"""A network out of its class name, plain arguments and tensors: strictly, and without trusting any of the three.

It is first built on the meta device, without memory, under a limit on its size, so that a file can not ask for more
than it contains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from networks.table import NETWORKS, build
from torch_utils.errors import reason
from torch_utils.pickles.machine import shown

MOST_DIFFERENCES = 5  # named, of a file that does not fit its network
MAX_NUMBER = 1 << 20  # largest integer in a constructor argument
MAX_LIST = 256


def rebuild(config: dict[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """A network of `config` that holds the tensors of `state`.

    Raises:
        ValueError: an unknown class or impossible arguments, or tensors that differ from the network's; the first five
            differences are named.
    """
    class_name = config.get("class_name")
    if not isinstance(class_name, str) or class_name not in NETWORKS:
        raise ValueError(
            f"it holds a network of class {shown(class_name)}, which is not part of this project "
            f"({', '.join(NETWORKS)}); classes stored by value would execute code and are not loaded"
        )
    for name, value in config.items():
        _check_argument(name, value)
    with limited(2 * len(state) + 64), torch.device("meta"):
        net = build(**config)
    expected = net.state_dict()
    problems = [f"it lacks the tensor {name}" for name in expected if name not in state]
    problems += [f"it holds the unknown tensor {shown(name)}" for name in state if name not in expected]
    problems += [
        f"its tensor {name} has shape {list(state[name].shape)}, the network needs {list(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    problems += [
        f"its tensor {name} has the element type {state[name].dtype}, the network needs {value.dtype}"
        for name, value in expected.items()
        if name in state and state[name].is_floating_point() != value.is_floating_point()
    ]
    refuse_differences(problems)
    tensors = {name: _own(state[name].to(value.dtype)) for name, value in expected.items()}
    net.load_state_dict(tensors, strict=True, assign=True)
    if not _has_meta(net):
        return net
    with torch.random.fork_rng(devices=[]):  # tensors outside of the state dict: only the constructor knows them
        net = build(**config)
    net.load_state_dict(tensors, strict=True)
    return net


def refuse_differences(problems: list[str]) -> None:
    """Raise a ValueError with the first five of what differs between a file and its network, where anything does."""
    if problems:
        rest = len(problems) - MOST_DIFFERENCES
        more = f" ({rest} further differences)" if rest > 0 else ""
        raise ValueError("; ".join(problems[:MOST_DIFFERENCES]) + more)


def _own(tensor: Tensor) -> Tensor:
    """The same values, contiguous and alone in their storage."""
    tensor = tensor.contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _has_meta(net: nn.Module) -> bool:
    values = [v for m in net.modules() for v in (*vars(m).values(), *m._buffers.values(), *m._parameters.values())]
    return any(isinstance(v, Tensor) and v.is_meta for v in values)


def _check_argument(name: str, value: Any) -> None:
    """Constructor arguments out of a file: numbers and lists of sizes that a network can have."""
    if isinstance(value, list | tuple) and len(value) <= MAX_LIST:
        for item in value:
            _check_argument(name, item)
    elif isinstance(value, dict) and len(value) <= MAX_LIST:
        for key, item in value.items():
            _check_argument(f"{name}.{key}", item)
    elif not isinstance(value, bool | str | int | float | None) or (isinstance(value, int) and abs(value) > MAX_NUMBER):
        raise ValueError(f"its network has the impossible argument {shown(name)}={shown(value)}")


@contextmanager
def limited(count: int) -> Iterator[None]:
    """Stop a constructor that makes more than `count` parameters, and turn what it raises into a ValueError."""
    made = 0

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal made
        made += parameter is not None
        if made > count:
            raise ValueError(f"its network has more than {count} parameters, many more than there are in the file")

    with register_module_parameter_registration_hook(register):
        try:
            yield
        except ValueError:
            raise
        except Exception as error:  # arguments of a file reach a constructor: anything may go wrong there
            raise ValueError(f"its network cannot be built ({reason(error)})") from error

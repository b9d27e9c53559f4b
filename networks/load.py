"""Save and load networks: our snapshots, .safetensors files, pickles and archives of others, web addresses, names.

Whatever the file, the result is one of our own classes, built from a class name and plain arguments, with tensors
loaded strictly: nothing missing, nothing left over, every shape equal. The network is first built on the meta device,
without memory, under a limit on its size, so that a file can not ask for more than it contains; constructors of
NETWORKS must therefore work on the meta device. Nothing in a file is executed (see `torch_utils.pickles.foreign`).
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from networks.published.diffusers import PREFIX, load_folder
from networks.published.edm import read_edm_pickle
from networks.published.families import Config, Parts, is_state, read_parts, read_tensors
from networks.published.mac import denoiser_spec, mac_spec
from networks.published.table import DATASETS, PUBLISHED, named
from networks.table import NETWORKS, build
from torch_utils import checkpoint
from torch_utils.downloads import download
from torch_utils.files import map_file
from torch_utils.hub import hub_file
from torch_utils.pickles.foreign import naming
from torch_utils.pickles.machine import Record, shown
from torch_utils.pickles.torch_files import is_legacy

__all__ = ["load_encoder", "load_network", "save_network", "unfinished_note"]

TENSORS_ONLY = (".pth", ".pt", ".ckpt", ".bin", ".zip")  # files of others around torch.save
MOST_DIFFERENCES = 5  # named, of a file that does not fit its network

MAX_NUMBER = 1 << 20  # largest integer in a constructor argument
MAX_LIST = 256

# Attributes that samplers read and that the arguments do not determine to the last digit, or that a user may have set.
_FACTS: dict[str, Any] = {
    "path": str, "predicts": str, "sigma_min": int | float, "sigma_max": int | float, "conditioning": str,
}  # fmt: skip


def save_network(
    path: str | Path, net: nn.Module, info: dict[str, Any] | None = None, extra: dict[str, Any] | None = None
) -> str:
    """Write a snapshot of `net`, atomically; returns the SHA-256 of its tensors.

    Args:
        path: a name that ends in .safetensors gives that format.
        net: a bare network made by `networks.build` (no DDP or compile wrapper: their prefix must not enter the keys).
        info: JSON-able facts to keep: method, data set, training options, images seen.
        extra: further parts of the payload beside "ema", for example {"encoder": state_dict}.

    Raises:
        ValueError: a network without `config`, or values that are not data.
        OSError: the file cannot be written; one of that name is as it was.
    """
    config = getattr(net, "config", None)
    if not isinstance(config, dict) or config.get("class_name") not in NETWORKS:
        raise ValueError(
            f"a {type(net).__name__} cannot be saved as a snapshot: it was not made by networks.build, "
            "so its file could not say how to rebuild it"
        )
    facts = {name: getattr(net, name) for name in _FACTS if isinstance(getattr(net, name, None), str | int | float)}
    facts = {"config": config, "path": "ve", "predicts": "data", **facts, **(info or {})}
    if Path(path).suffix == ".safetensors":
        if extra:
            raise ValueError("a .safetensors file holds the network alone: give a name that ends in .pkl to save more")
        return checkpoint.save_safetensors(path, facts, net.state_dict())
    return checkpoint.save(path, "snapshot", facts, {"ema": net.state_dict(), **(extra or {})})


def load_network(
    source: str | Path,
    device: str | torch.device = "cpu",
    verbose: bool = False,
    sha256: str | None = None,
    config: Config | None = None,
    classifier: str | Path | None = None,
    vae: str | Path | None = None,
) -> nn.Module:
    """Load a network in eval mode, with `requires_grad` off and the facts of its file in `net.info`.

    Args:
        source: a snapshot of ours (.pkl or .safetensors), an EDM-style .pkl, a file of guided diffusion, consistency
            models, latent diffusion or Stable Diffusion (.pt, .pth, .ckpt, .safetensors, or the .zip around one), the
            address of one (https://..., kept in $FEWSTEP_CACHE_DIR or ~/.cache/fewstep), a name on the hub
            (hf:OWNER/NAME[/FILE][@REVISION]), a folder of diffusers (diffusers:DIR), or a name of PUBLISHED or
            DATASETS.
        device: where the network goes.
        verbose: print what is loaded and show the progress of a download.
        sha256: expected hash of a downloaded file.
        config: of a file that holds tensors alone: a preset's name, a JSON or YAML file or a mapping with what the
            tensors do not show; None: known by the tensors' shapes.
        classifier: file or address of a classifier for guidance, of guided diffusion; default: the published one of a
            published name.
        vae: file or address of the autoencoder, of transformers on latents.

    Raises:
        ValueError: no such file or alias, no connection, a damaged or hostile file, an unknown class; one sentence.
    """
    if str(source).startswith(PREFIX):
        if classifier is not None or vae is not None:
            raise ValueError(f"{source} says itself what it holds: leave out the classifier and the autoencoder")
        return load_folder(str(source).removeprefix(PREFIX), config).eval().requires_grad_(False).to(device)
    path = _locate(str(source), verbose, sha256)
    published = None if Path(source).exists() else named(str(source))
    if classifier is None and published is not None:
        classifier = published.classifier
    guide = None if classifier is None else _locate(str(classifier), verbose, None)
    if verbose:
        print(f"Loading network from {path}", flush=True)
    autoencoder = None if vae is None else _locate(str(vae), verbose, None)
    kwargs, info, state = _read(path, config, guide, autoencoder)
    with naming(path):
        net = _build(kwargs, state)
    for name, kind in _FACTS.items():
        fixed = isinstance(getattr(type(net), name, None), property)  # a class that knows it better than its file
        if isinstance(info.get(name), kind) and getattr(net, name, None) != info[name] and not fixed:
            setattr(net, name, info[name])
    net.info = info
    _warn_if_not_finite(path, net)
    return net.eval().requires_grad_(False).to(device)


def unfinished_note(net: nn.Module) -> str | None:
    """One line about a network that `load_network` read from the middle of a training run; None of other networks."""
    seen, total = (getattr(net, "info", {}).get(key) for key in ("nimg", "total_nimg"))
    if not (isinstance(seen, int) and isinstance(total, int | float) and seen < total):
        return None
    return f"Note: the network was saved after {seen / 1000:g} of {total / 1000:g} kimg: its training run goes on"


def _locate(source: str, verbose: bool, sha256: str | None) -> Path:
    """The file of a path, an address or a published name; of several addresses, the first that answers."""
    if Path(source).exists():
        return Path(source)
    if source.startswith("hf:"):
        return hub_file(source)
    published = named(source)
    urls = published.urls if published else (source,)
    if not urls[0].startswith(("http://", "https://")):
        names = [*PUBLISHED, *DATASETS]
        near = difflib.get_close_matches(Path(source).stem, names, n=3) or list(DATASETS)[:3]
        raise ValueError(
            f"'{source}' is neither a file nor a known checkpoint: give the path of a .pkl or .safetensors file, "
            f"an address that begins with https://, or one of {len(names)} names as {', '.join(near)} (docs/models.md)"
        )
    sha256 = sha256 or (published.sha256 if published else None)
    for url in urls[:-1]:
        try:
            return download(url, sha256=sha256, verbose=verbose)
        except ValueError as error:
            warnings.warn(f"{error}; trying the next address", stacklevel=3)
    return download(urls[-1], sha256=sha256, verbose=verbose)


def load_encoder(source: str | Path, device: str | torch.device = "cpu", config: Config | None = None) -> nn.Module:
    """The coupling encoder in a snapshot of `train.py curvature` or in a published forward_model_*.pth, in eval mode.

    It says which noise goes with which data; sampling does not need it.

    Raises:
        ValueError: as `load_network`, and for a file without an encoder.
    """
    path = _locate(str(source), False, None)
    if path.suffix in TENSORS_ONLY or config is not None:
        kwargs, info, state = _read(path, config)
    else:
        contents = checkpoint.load(path, "snapshot")
        kwargs, info, state = contents.info.get("encoder_config"), contents.info, contents.payload.get("encoder")
    if not isinstance(kwargs, dict) or kwargs.get("class_name") != "CouplingEncoder" or not is_state(state):
        raise ValueError(f"{path} holds no encoder: it was trained with --independent, or by another method")
    with naming(path):
        net = _build(kwargs, state)
    net.info = info
    return net.eval().requires_grad_(False).to(device)


def _read(
    path: Path, config: Config | None = None, classifier: Path | None = None, vae: Path | None = None
) -> Parts:  # fmt: skip
    """Class and arguments, facts, and state dict, from any of the formats."""
    view = map_file(path)
    if checkpoint.is_safetensors(view):
        contents = checkpoint.load_safetensors(path)
        if not contents.info:
            return read_parts(path, checkpoint.unwrapped(path, contents.payload), config, classifier, vae)
    elif path.suffix in TENSORS_ONLY or config is not None or is_legacy(view):
        value = read_tensors(path)
        if is_state(value):
            return read_parts(path, checkpoint.unwrapped(path, value), config, classifier, vae)
        with naming(path):
            contents = checkpoint.from_value(value)
        if contents.kind != "snapshot":
            raise ValueError(f"{path} is a {contents.kind}, but a snapshot is needed here")
    elif view[0] == 0x80:
        contents = None
    else:
        contents = checkpoint.load(path, "snapshot")
    if config is not None or classifier is not None or vae is not None:
        raise ValueError(f"{path} says itself which network it holds: leave out the configuration and the classifier")
    return _read_edm(path) if contents is None else _of_snapshot(path, contents)


def _of_snapshot(path: Path, contents: checkpoint.Contents) -> Parts:
    payload = contents.payload
    state = payload if path.suffix == ".safetensors" else payload.get("ema") if isinstance(payload, dict) else None
    config = contents.info.get("config")
    if not isinstance(config, dict) or not is_state(state):
        raise ValueError(
            f"{path} does not say how to rebuild its network: only files written by save_network can be loaded"
        )
    return config, contents.info, state


def _read_edm(path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    content = read_edm_pickle(path)
    with naming(path):
        if "ema" not in content:
            return mac_spec(content["G_ema"])
        class_name, kwargs, state = denoiser_spec(content["ema"])
    config = {"class_name": class_name, **kwargs}
    parts = {key: content.get(key) for key in ("loss_fn", "augment_pipe", "dataset_kwargs")}
    info = {"config": config, "path": "ve", "predicts": "data", "method": "edm", "source": "EDM-style pickle"}
    info |= {name: value for name, value in content["ema"].state.items() if name in ("sigma_min", "sigma_max")}
    return config, {**info, **{key: _facts(part) for key, part in parts.items()}}, state


def _facts(value: Any) -> Any:
    """JSON-able version of a part of a foreign file; what is not plain data becomes its type's name."""
    if isinstance(value, Record):
        plain = {k: v for k, v in value.state.items() if k[:1] != "_"}
        return {"class_name": value.class_name, **_facts(plain)}
    if isinstance(value, dict):
        return {str(k): _facts(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_facts(v) for v in value]
    return value if isinstance(value, str | int | float | None) else type(value).__name__


def _build(config: dict[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """A network of `config` that holds the tensors of `state`."""
    class_name = config.get("class_name")
    if not isinstance(class_name, str) or class_name not in NETWORKS:
        raise ValueError(
            f"it holds a network of class {shown(class_name)}, which is not part of this project "
            f"({', '.join(NETWORKS)}); classes stored by value would execute code and are not loaded"
        )
    for name, value in config.items():
        _check_argument(name, value)
    with _limited(2 * len(state) + 64), torch.device("meta"):
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
    if problems:
        rest = len(problems) - MOST_DIFFERENCES
        more = f" ({rest} further differences)" if rest > 0 else ""
        raise ValueError("; ".join(problems[:MOST_DIFFERENCES]) + more)
    tensors = {name: _own(state[name].to(value.dtype)) for name, value in expected.items()}
    net.load_state_dict(tensors, strict=True, assign=True)
    if not _has_meta(net):
        return net
    with torch.random.fork_rng(devices=[]):  # tensors outside of the state dict: only the constructor knows them
        net = build(**config)
    net.load_state_dict(tensors, strict=True)
    return net


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
def _limited(count: int) -> Iterator[None]:
    """Stop a constructor that makes more than `count` parameters, and turn what it raises into a ValueError."""
    made = 0

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal made
        made += parameter is not None
        if made > count:
            raise ValueError(f"its network has more than {count} parameters, many more than there are in the file")

    handle = register_module_parameter_registration_hook(register)
    try:
        yield
    except ValueError:
        raise
    except Exception as error:  # arguments of a file reach a constructor: anything may go wrong there
        text = " ".join(str(error).split())[:200]
        raise ValueError(f"its network cannot be built ({type(error).__name__}: {text})") from error
    finally:
        handle.remove()


def _warn_if_not_finite(path: Path, net: nn.Module) -> None:
    bad = [name for name, p in net.named_parameters() if not torch.isfinite(p).all()]
    if bad:
        warnings.warn(f"{path} holds values that are not finite, first in {bad[0]}", stacklevel=3)

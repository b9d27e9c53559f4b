"""Save and load networks: our snapshots, .safetensors files, pickles and archives of others, web addresses, names.

Whatever the file, the result is one of our own classes, built from a class name and plain arguments, with tensors
loaded strictly: nothing missing, nothing left over, every shape equal. The network is first built on the meta device,
without memory, under a limit on its size, so that a file can not ask for more than it contains; constructors of
NETWORKS must therefore work on the meta device. Nothing in a file is executed (see `torch_utils.pickles.foreign`).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from networks.models.autoencoder import AUTOENCODERS
from networks.models.decoder import Autoencoder, LatentFacts, give_decoder
from networks.published.configs import read_any
from networks.published.diffusers import PREFIX, load_folder
from networks.published.diffusers_vae import load_folder_autoencoder
from networks.published.edm import read_edm_pickle
from networks.published.families import Config, Parts, bare_autoencoder, is_state, read_parts, read_tensors
from networks.published.mac import denoiser_spec, mac_spec
from networks.published.table import DATASETS, PUBLISHED, Checkpoint, named
from networks.published.transformers import scale_of
from networks.published.unet_shapes import autoencoder_config
from networks.rebuild import rebuild
from networks.table import NETWORKS
from torch_utils import checkpoint
from torch_utils.downloads import cached, download_first
from torch_utils.files import map_file
from torch_utils.hub import hub_file
from torch_utils.pickles.foreign import naming
from torch_utils.pickles.machine import Record
from torch_utils.pickles.torch_files import is_legacy

Find = Callable[[], Path]  # of a file that is fetched only where it is needed
TENSORS_ONLY = (".pth", ".pt", ".ckpt", ".bin", ".zip")  # files of others around torch.save
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
        extra: further parts of the payload besides "ema", for example {"encoder": state_dict}.

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
        vae: file or address of the autoencoder, of networks of latents that bring none, see `load_autoencoder`;
            default: for snapshots, the one that made their training data, where it is at hand.

    Raises:
        ValueError: no such file or alias, no connection, a damaged or hostile file, an unknown class; one sentence.
    """
    if str(source).startswith(PREFIX):
        if classifier is not None or vae is not None:
            raise ValueError(f"{source} says itself what it holds: leave out the classifier and the autoencoder")
        return load_folder(str(source).removeprefix(PREFIX), config).eval().requires_grad_(False).to(device)
    published = None if Path(source).exists() else named(str(source))
    if published is not None:
        _check_given(str(source), published, config, classifier, vae)
        classifier = published.classifier if classifier is None else classifier
    path = _locate(str(source), verbose, sha256)
    if verbose:
        print(f"Loading network from {path}", flush=True)
    guide = None if classifier is None else functools.partial(_locate, str(classifier), verbose, None)
    folder = vae is not None and str(vae).startswith(PREFIX)
    given = str(vae) if folder else None if vae is None else functools.partial(_locate, str(vae), verbose, None)
    kwargs, info, state = _read(path, config, guide, given)
    with naming(path):
        net = rebuild(kwargs, state)
        latents = latents_of(info)
    for name, kind in _FACTS.items():
        fixed = isinstance(getattr(type(net), name, None), property)  # a class that knows it better than its file
        if isinstance(info.get(name), kind) and getattr(net, name, None) != info[name] and not fixed:
            setattr(net, name, info[name])
    net.info = info
    if latents is not None:
        give_decoder(net, autoencoder_of(latents, vae, verbose))
    elif folder:
        give_decoder(net, load_autoencoder(vae, verbose))
    _warn_if_not_finite(path, net)
    return net.eval().requires_grad_(False).to(device)


def latents_of(info: Mapping[str, Any]) -> LatentFacts | None:
    """What a snapshot says of the latents that its network was trained on; None for other networks."""
    data = info.get("dataset")
    record = data.get("latents") if isinstance(data, dict) else None
    return None if record is None else LatentFacts.of(record)


def load_autoencoder(source: str | Path, verbose: bool = False, config: Config | None = None) -> Autoencoder:
    """The autoencoder in a file of its own, in a model of latents, or in a folder of diffusers.

    Args:
        source: as in `load_network`; of latent diffusion also a file with the autoencoder alone.
        config: what the file does not say: `scale_factor` of an autoencoder alone.

    Raises:
        ValueError: as `load_network`, and for a file without an autoencoder.
    """
    if str(source).startswith(PREFIX):
        return load_folder_autoencoder(str(source).removeprefix(PREFIX))
    path = _locate(str(source), verbose, None)
    state = bare_autoencoder(path)
    if state is None:
        net = load_network(path, verbose=verbose, config=config)
        stage = net if isinstance(net, tuple(AUTOENCODERS.values())) else getattr(net, "first_stage", None)
        if stage is None:
            raise ValueError(f"{path} brings no autoencoder: it works on pixels, or on latents of another file")
        scale = getattr(net, "scale_factor", None)
    else:
        with naming(path):
            stage = rebuild(autoencoder_config(state), state).eval().requires_grad_(False)
        scale = None
    if scale is None:
        scale = scale_of(stage, {} if config is None else read_any(config), path)
    return Autoencoder(stage, scale, str(source))


def autoencoder_of(latents: LatentFacts, given: str | Path | None = None, verbose: bool = False) -> Autoencoder | None:
    """The autoencoder that made these latents: the one given, else the one named, where its file is at hand.

    Raises:
        ValueError: the one given cannot be read, or is another.
    """
    if given is None:
        source = latents.network
        if source is None or not (source.startswith(PREFIX) or Path(source).exists() or at_hand(source)):
            return None
        try:
            found = load_autoencoder(source)
        except ValueError:
            return None
        return _scaled(found, latents) if _made(found, latents) else None
    found = load_autoencoder(given, verbose)
    if not _made(found, latents):
        raise ValueError(
            f"{given} is not the autoencoder of these latents, which are of "
            f"{latents.network or 'another'} ({(latents.autoencoder or '')[:16]}): give that one"
        )
    return _scaled(found, latents)


def _made(found: Autoencoder, latents: LatentFacts) -> bool:
    fits = found.stage.embed_dim == latents.latent_shape[0]
    return fits and latents.autoencoder in (None, found.sha256)


def _scaled(found: Autoencoder, latents: LatentFacts) -> Autoencoder:
    return dataclasses.replace(found, scale_factor=latents.scale_factor)


def at_hand(source: str) -> bool:
    """Whether a published name or an address leads to a file that was downloaded before."""
    published = named(source)
    return any(cached(url) is not None for url in (published.urls if published else (source,)))


def unfinished_note(net: nn.Module) -> str | None:
    """One line about a network that `load_network` read from the middle of a training run; None for other networks."""
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
    known = published.sha256 if published else {}
    return download_first(urls, sha256=dict.fromkeys(urls, sha256) if sha256 else known, verbose=verbose)


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
        net = rebuild(kwargs, state)
    net.info = info
    return net.eval().requires_grad_(False).to(device)


def _check_given(source: str, published: Checkpoint, config: Any, classifier: Any, vae: Any) -> None:
    """Refuse what a published checkpoint has no use for before it is fetched; ValueError."""
    refused = {"autoencoder": vae}
    refused |= {} if published.family == "adm" else {"classifier": classifier}
    refused |= {"configuration": config} if published.family == "edm" else {}
    if given := [name for name, value in refused.items() if value is not None]:
        raise ValueError(f"{source} needs no {given[0]}, which its file brings or its family has none of: leave it out")


def _read(
    path: Path, config: Config | None = None, classifier: Find | None = None, vae: Find | str | None = None
) -> Parts:
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
    latent = contents is not None and latents_of(contents.info) is not None
    if config is not None or classifier is not None or (vae is not None and not latent):
        raise ValueError(
            f"{path} says itself which network it holds: leave out the configuration, the classifier and the vae"
        )
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


def _warn_if_not_finite(path: Path, net: nn.Module) -> None:
    bad = [name for name, p in net.named_parameters() if not torch.isfinite(p).all()]
    if bad:
        warnings.warn(f"{path} holds values that are not finite, first in {bad[0]}", stacklevel=3)

"""Which adapter reads a file that holds tensors and does not say which network they fit.

An adapter turns tensors, and where they do not suffice a configuration, into arguments of `networks.build`, facts, and
a state dict under our names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from networks.published import flow, ldm, openai, transformers
from networks.published.configs import read_any
from networks.published.flow_configs import PRESETS
from networks.published.unet_shapes import unet_config
from torch_utils.checkpoint import is_safetensors, load_safetensors
from torch_utils.errors import reason
from torch_utils.files import map_file
from torch_utils.pickles.archives import opened, read_archive
from torch_utils.pickles.machine import shown

__all__ = ["Parts", "bare_autoencoder", "is_state", "read_parts", "read_tensors", "summary"]

Parts = tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]  # build arguments, facts, state dict
Config = flow.Config

_LOOKED_FOR = (
    "joint coupling / velocity models (enc.*, dec.*), diffusion transformers (x_embedder.*, blocks.*), "
    "guided diffusion and consistency models (input_blocks.*), latent "
    "diffusion and Stable Diffusion 1 (model.diffusion_model.*)"
)


def summary(value: Any) -> dict[str, Any]:
    """Family of a file's value, and what its tensors show of the network, for a person; {} of an unknown family."""
    state = _state_dict(value)
    if not is_state(state):
        return {}
    if openai.is_guided_diffusion(state):
        return {"family": "guided diffusion", "shown by the tensors": unet_config(state)}
    if ldm.is_latent_diffusion(state):
        unet = {k.removeprefix(ldm.UNET): v for k, v in state.items() if k.startswith(ldm.UNET)}
        return {"family": "latent diffusion", "shown by the tensors": unet_config(unet)}
    if transformers.is_transformer(state):
        return {"family": "diffusion transformer"}
    preset = flow.match_preset(state)
    return {"family": "joint coupling / velocity models", "preset": preset} if preset else {}


def is_state(value: Any) -> bool:
    """Whether a value is a flat dict of named tensors."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def read_tensors(path: str | Path) -> Any:
    """The value of a file of `torch.save`, also inside a distribution archive; of Lightning, its state dict."""
    with opened(path) as file:
        return _state_dict(read_archive(file))


def _state_dict(value: Any) -> Any:
    """The state dict inside of a training checkpoint; other values as they are."""
    for name in ("state_dict", "ema", "model") if isinstance(value, Mapping) else ():
        if isinstance(value.get(name), Mapping):
            value = value[name]
            break
    return {k: v for k, v in value.items() if isinstance(v, Tensor)} if _mostly_tensors(value) else value


def _mostly_tensors(value: Any) -> bool:
    """A state dict, in which single numbers (counters, a scale) may be among the tensors."""
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        return False
    return any(isinstance(v, Tensor) for v in value.values()) and all(
        isinstance(v, Tensor | int | float | None) for v in value.values()
    )


def bare_autoencoder(path: str | Path) -> dict[str, Tensor] | None:
    """Tensors of an autoencoder that lies in a file alone; None for other files."""
    if is_safetensors(map_file(path)):
        contents = load_safetensors(path)
        value = None if contents.info else contents.payload
    else:
        try:
            value = read_tensors(path)
        except ValueError:  # a pickle of objects, which `load_network` reads
            return None
    alone = is_state(value) and "encoder.conv_in.weight" in value
    return transformers.first_stage_of(path, value) if alone else None


def _found(find: Callable[[], Path]) -> tuple[Path, Mapping[str, Tensor]]:
    """The file that is found, and its flat tensors: .safetensors or of `torch.save`."""
    path = find()
    value = load_safetensors(path).payload if is_safetensors(map_file(path)) else read_tensors(path)
    if not is_state(value):
        raise ValueError(f"{path} holds no flat dict of tensors")
    return path, value


_DAMAGED = (  # what an adapter meets in tensors that are missing or of shapes that no network has
    KeyError, IndexError, TypeError, AttributeError, ArithmeticError, RuntimeError, StopIteration,
)  # fmt: skip


def read_parts(
    path: str | Path,
    state: Mapping[str, Tensor],
    config: Config | None = None,
    classifier: Callable[[], Path] | None = None,
    vae: Callable[[], Path] | str | None = None,
) -> Parts:
    """Arguments of `networks.build`, facts, and tensors under our names.

    Args:
        path: of the file, for messages.
        state: flat dict of tensors.
        config: preset name, JSON or YAML file, or mapping: what the tensors do not show.
        classifier: finds the file of a classifier for guidance, of guided diffusion alone; called where it is needed.
        vae: finds that of the autoencoder, of transformers on latents alone; text: it is a folder, read by the caller.

    Raises:
        ValueError: tensors of no known family, or what the family's adapter says.
    """
    try:
        return _adapted(path, state, config, classifier, vae)
    except _DAMAGED as error:
        raise ValueError(
            f"{path} holds a network whose tensors are missing or do not fit together ({reason(error)}), or its "
            "configuration is wrong"
        ) from error


def _adapted(
    path: str | Path,
    state: Mapping[str, Tensor],
    config: Config | None,
    classifier: Callable[[], Path] | None,
    vae: Callable[[], Path] | str | None,
) -> Parts:
    if not (isinstance(config, str | Path) and str(config) in PRESETS) and config is not None:
        config = read_any(config)
    transformer, guided = transformers.is_transformer(state), openai.is_guided_diffusion(state)
    velocity = not transformer and flow.is_flow(state, config) and not (guided and config is None)
    if classifier is not None and (transformer or velocity or not guided):
        raise ValueError(f"a classifier guides models of guided diffusion, and {path} is none: leave it out")
    if vae is not None and not transformer:
        raise ValueError(f"an autoencoder is given to transformers on latents, and {path} is none: leave it out")
    if transformer:
        outside = isinstance(vae, str)  # no file of tensors: whoever loads gives the network its decoder
        stage = None if vae is None or outside else lambda: transformers.first_stage_of(*_found(vae))
        return transformers.to_checkpoint(path, state, config, stage, outside)
    if velocity:
        return flow.to_checkpoint(path, state, config)
    if guided:
        found = None if classifier is None else lambda: (_found(classifier)[1], (config or {}).get("classifier"))
        return openai.to_checkpoint(path, state, config, found)
    if ldm.is_latent_diffusion(state):
        return ldm.to_checkpoint(path, state, config)
    if config is not None:
        return flow.to_checkpoint(path, state, config)
    first = ", ".join(shown(k) for k in list(state)[:5])
    raise ValueError(
        f"{path} holds tensors alone, and no known network has them: looked for {_LOOKED_FOR}; the first names are "
        f"{first}. Give its configuration, a JSON or YAML file or one of {', '.join(PRESETS)}"
    )

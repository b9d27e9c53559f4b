"""Text encoders in folders of diffusers, and how each kind of pipeline makes one condition of what they say.

A condition is one tensor `[B, T, W]`, as samplers hand it on: tokens, and where the network also takes a pooled vector,
that in further rows at the end, filled up with zeros (`pack`, `unpack`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.rebuild import limited, refuse_differences
from torch_utils.errors import importing
from torch_utils.pickles.machine import shown

__all__ = ["RECIPES", "Recipe", "TextParts", "check_part", "check_shards", "pack", "unpack"]

_MISSING = "text encoders need the package transformers: pip install 'fewstep[text]'"
_CLIP, _PROJECTED, _T5 = "CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"

_MOST_PARAMETERS = 20_000

Outputs = list[Any]  # what every encoder returned, with its hidden states; None for one that the folder leaves out


@dataclass(frozen=True)
class Recipe:
    """How a pipeline's texts become a condition.

    Attributes:
        encoders: class of `text_encoder`, `text_encoder_2`, ...
        join: outputs, width and length of the last encoder's tokens -> tokens `[B, T, W]` and pooled `[B, P]` or None.
        sizes: configurations of the encoders, width that the network takes -> width of the tokens, length of pooled.
        longest: most tokens of the last encoder.
        optional: the last encoder may be left out.
        zeros: the empty text may stand for zeros (`force_zeros_for_empty_prompt` of the pipeline, true by default).
    """

    encoders: tuple[str, ...]
    join: Callable[[Outputs, int, int], tuple[Tensor, Tensor | None]]
    sizes: Callable[[list[Any], int], tuple[int, int]]
    longest: int = 1 << 20
    optional: bool = False
    zeros: bool = False


def _clip(outputs: Outputs, width: int, length: int) -> tuple[Tensor, None]:
    return outputs[0][0], None


def _both(outputs: Outputs) -> Tensor:
    """Tokens of two CLIP models side by side, before their last layer."""
    return torch.cat([output.hidden_states[-2] for output in outputs[:2]], dim=-1)


def _xl(outputs: Outputs, width: int, length: int) -> tuple[Tensor, Tensor]:
    return _both(outputs), outputs[1][0]


def _sd3(outputs: Outputs, width: int, length: int) -> tuple[Tensor, Tensor]:
    clip = _both(outputs)
    clip = F.pad(clip, (0, width - clip.shape[-1]))
    t5 = clip.new_zeros(len(clip), length, width) if outputs[2] is None else outputs[2][0]
    return torch.cat([clip, t5], dim=1), torch.cat([outputs[0][0], outputs[1][0]], dim=-1)


def _flux(outputs: Outputs, width: int, length: int) -> tuple[Tensor, Tensor]:
    return outputs[1][0], outputs[0].pooler_output


def _sd3_sizes(c: list[Any], width: int) -> tuple[int, int]:
    fits = c[0].hidden_size + c[1].hidden_size <= width and (c[2] is None or c[2].d_model == width)
    return width if fits else 0, c[0].projection_dim + c[1].projection_dim


RECIPES: dict[str, Recipe] = {
    # Stable Diffusion 1 and 2
    "clip": Recipe((_CLIP,), _clip, lambda c, width: (c[0].hidden_size, 0)),
    # Stable Diffusion XL (Podell et al. 2023, arXiv 2307.01952)
    "xl": Recipe(
        (_CLIP, _PROJECTED), _xl, lambda c, width: (c[0].hidden_size + c[1].hidden_size, c[1].projection_dim),
        zeros=True,
    ),
    # Stable Diffusion 3 (Esser et al. 2024, arXiv 2403.03206)
    "sd3": Recipe((_PROJECTED, _PROJECTED, _T5), _sd3, _sd3_sizes, longest=256, optional=True),
    "flux": Recipe((_CLIP, _T5), _flux, lambda c, width: (c[1].d_model, c[0].hidden_size), longest=512),
}  # fmt: skip


def pack(tokens: Tensor, pooled: Tensor | None) -> Tensor:
    """Tokens `[B, T, W]` and a vector `[B, P]` in one tensor `[B, T + ceil(P / W), W]`."""
    if pooled is None:
        return tokens
    width = tokens.shape[-1]
    rows = F.pad(pooled, (0, -pooled.shape[-1] % width)).reshape(len(pooled), -1, width)
    return torch.cat([tokens, rows.to(tokens.dtype)], dim=1)


def unpack(condition: Tensor, size: int) -> tuple[Tensor, Tensor | None]:
    """The tokens and the vector of `size` numbers that `pack` joined; None where that is 0."""
    if not size:
        return condition, None
    rows = -(-size // condition.shape[-1])
    return condition[:, :-rows], condition[:, -rows:].flatten(1)[:, :size]


def check_shards(folder: Path) -> None:
    """Raise ValueError where weights are said to lie in files that are no .safetensors of this folder."""
    for index in folder.glob("*.index.json"):
        value = json.loads(index.read_text(encoding="utf-8"))
        names = value.get("weight_map") if isinstance(value, dict) else None
        names = set(names.values()) if isinstance(names, dict) else {None}
        if not all(isinstance(n, str) and PurePosixPath(n).name == n and n.endswith(".safetensors") for n in names):
            raise ValueError(f"{index.name} names files that are no .safetensors of its folder")


def check_part(folder: Path, make: Callable[[], nn.Module]) -> None:
    """Refuse a part whose weights lie elsewhere, or whose configuration asks for more than they hold; ValueError.

    Args:
        make: builds the part out of its configuration, here without memory.
    """
    check_shards(folder)
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if not stored:
        raise ValueError(f"its {folder.name} has no .safetensors, and pickled weights are not read")
    with limited(_MOST_PARAMETERS), torch.device("meta"):
        wanted = sum(p.numel() for p in make().parameters())
    if wanted > stored:
        raise ValueError(f"the configuration of {folder.name} asks for {wanted} numbers, and its files hold fewer")


def check_loaded(folder: Path, found: Mapping[str, Any]) -> None:
    """Refuse a part whose tensors are not those of its configuration, which libraries fill up at random; ValueError.

    Args:
        found: what `from_pretrained` says of its loading.
    """
    problems = [f"its {folder.name} lacks the tensor {name}" for name in sorted(found["missing_keys"])]
    problems += [
        f"tensor {name} of its {folder.name} has shape {list(there)}, the configuration says {list(wanted)}"
        for name, there, wanted in sorted(found["mismatched_keys"])
    ]
    unknown = (name for name in sorted(found["unexpected_keys"]) if not name.endswith("position_ids"))
    refuse_differences(problems + [f"its {folder.name} holds the unknown tensor {shown(name)}" for name in unknown])


class TextParts(nn.Module):
    """The encoders and tokenizers of a folder.

    Args:
        folder, index: the pipeline and its `model_index.json`.
        recipe: how its texts become a condition.
        width: of the tokens that the network takes.
        pooled: length of the vector that it takes besides them, 0: none.

    Raises:
        ValueError: transformers is missing, a part is missing or of another class, sizes that do not fit the network.
    """

    def __init__(self, folder: Path, index: Mapping[str, Any], recipe: Recipe, width: int, pooled: int) -> None:
        super().__init__()
        with importing(_MISSING):
            import transformers
        transformers.utils.logging.set_verbosity_error()
        self.recipe, self.width, self.pooled = recipe, width, pooled
        self.encoders = nn.ModuleList()
        self.tokenizers: list[Any] = []
        for i, kind in enumerate(recipe.encoders):
            suffix = f"_{i + 1}" if i else ""
            found = (index.get(f"text_encoder{suffix}") or [None, None])[1]
            if found is None and recipe.optional and i == len(recipe.encoders) - 1:
                break
            if found != kind:
                raise ValueError(
                    f"its network takes text of a {kind} in text_encoder{suffix}, and the folder has "
                    f"{'none' if found is None else 'one of another class'} there"
                )
            path = folder / f"text_encoder{suffix}"
            made = getattr(transformers, kind)
            check_part(path, lambda m=made, p=path: m(m.config_class.from_pretrained(p, local_files_only=True)))
            how = {"local_files_only": True, "use_safetensors": True, "ignore_mismatched_sizes": True}
            encoder, loaded = made.from_pretrained(path, **how, output_loading_info=True)
            check_loaded(path, loaded)
            self.encoders.append(encoder.float())
            words = transformers.T5Tokenizer if kind == _T5 else transformers.CLIPTokenizer
            self.tokenizers.append(words.from_pretrained(str(folder / f"tokenizer{suffix}"), local_files_only=True))
        configs = [e.config for e in self.encoders]
        configs += [None] * (len(recipe.encoders) - len(configs))
        if recipe.sizes(configs, width) != (width, pooled):
            raise ValueError(f"its text encoders do not fit its network, which takes tokens of {width} numbers")
        self.force_zeros = recipe.zeros and index.get("force_zeros_for_empty_prompt", True) is not False

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Texts -> conditions `[B, T, W]`, float32; long ones are cut, short ones filled."""
        outputs: Outputs = [None] * len(self.recipe.encoders)
        for i, (encoder, words) in enumerate(zip(self.encoders, self.tokenizers, strict=True)):
            ids = words(
                list(prompts), padding="max_length", truncation=True, max_length=self._length(i), return_tensors="pt"
            )["input_ids"]  # fmt: skip
            outputs[i] = encoder(ids.to(next(encoder.parameters()).device), output_hidden_states=True)
        tokens, pooled = self.recipe.join(outputs, self.width, self._length(len(self.recipe.encoders) - 1))
        return pack(tokens.float(), pooled)

    def _length(self, i: int) -> int:
        limit = self.recipe.longest if i == len(self.recipe.encoders) - 1 else 1 << 20
        return min(self.tokenizers[i].model_max_length if i < len(self.tokenizers) else limit, limit)

    def empty(self) -> Tensor:
        """The condition `[1, T, W]` from which guidance moves away: of the empty text, or zeros."""
        condition = self.encode([""])
        return torch.zeros_like(condition) if self.force_zeros else condition

"""The text model of CLIP as the condition of a text-to-image model (Radford et al. 2021, arXiv 2103.00020).

The network and the tokenizer are those of transformers (extra `text`), imported where they are used. Weights come with
the text-to-image checkpoint; the files of the tokenizer do not and are read from a folder, or from the hub's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from networks.published.table import TOKENIZER
from torch_utils.downloads import offline
from torch_utils.errors import importing, reason

_MISSING = "text conditions need the package transformers: pip install 'fewstep[text]'"


class CLIPText(nn.Module):
    """Token ids to one vector per token: the last hidden state after the final layer norm, causal, without a mask.

    Args:
        hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, max_position_embeddings, vocab_size,
            hidden_act: of the CLIP text model; the defaults are ViT-L/14.

    Raises:
        ValueError: transformers is not installed.
    """

    def __init__(
        self,
        hidden_size: int = 768,
        intermediate_size: int = 3072,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        max_position_embeddings: int = 77,
        vocab_size: int = 49408,
        hidden_act: str = "quick_gelu",
    ) -> None:
        with importing(_MISSING):
            from transformers import CLIPTextConfig, CLIPTextModel
        super().__init__()
        self.length, self.vocab_size = max_position_embeddings, vocab_size
        model = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=hidden_size, intermediate_size=intermediate_size, num_hidden_layers=num_hidden_layers,
                num_attention_heads=num_attention_heads, max_position_embeddings=max_position_embeddings,
                vocab_size=vocab_size, hidden_act=hidden_act,
            )
        )  # fmt: skip
        self.text_model = getattr(model, "text_model", model)  # transformers 5 has one module less
        self.text_model.embeddings.position_ids = None  # a constant that would hold up building without memory

    def forward(self, tokens: Tensor) -> Tensor:
        """Ids `[B, T]` -> `[B, T, hidden_size]` float32."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        return self.text_model(input_ids=tokens, position_ids=positions).last_hidden_state

    def encode(self, prompts: Sequence[str], tokenizer: Any) -> Tensor:
        """Texts -> `[B, max_position_embeddings, hidden_size]`; long ones are cut, short ones filled.

        Raises:
            ValueError: a tokenizer of another vocabulary.
        """
        if len(tokenizer) != self.vocab_size:  # transformers makes an empty one where it finds no files
            raise ValueError(
                f"the tokenizer '{tokenizer.name_or_path}' knows {len(tokenizer)} words and this model "
                f"{self.vocab_size}: give the folder of the right one with --tokenizer"
            )
        ids = tokenizer(list(prompts), padding="max_length", truncation=True, max_length=self.length)["input_ids"]
        tokens = torch.tensor(ids, dtype=torch.int64, device=self.text_model.final_layer_norm.weight.device)
        return self(tokens)


def load_tokenizer(source: str | Path = TOKENIZER, *, option: str = "--tokenizer", local: bool = False) -> Any:
    """CLIP's tokenizer from a folder (tokenizer.json, or vocab.json and merges.txt) or by a name on the hub.

    Args:
        option: of the command, that names another source.
        local: do not ask the hub.

    Raises:
        ValueError: transformers is missing, or there is no tokenizer of this name and no connection; one sentence.
    """
    with importing(_MISSING):
        from transformers import CLIPTokenizer
    folder = Path(source).is_dir()
    if folder and not any(Path(source, name).exists() for name in ("tokenizer.json", "vocab.json")):
        raise ValueError(
            f"{source} holds no tokenizer: a folder with tokenizer.json, or vocab.json and merges.txt, does"
        )
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(source), local_files_only=local or folder or offline())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the tokenizer '{source}' cannot be loaded ({reason(error)}): give a folder that holds tokenizer.json or "
            f"vocab.json and merges.txt with {option}"
        ) from None
    tokenizer.pad_token = tokenizer.eos_token  # Stable Diffusion fills with the end token
    return tokenizer

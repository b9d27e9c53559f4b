"""Folders of diffusers (`diffusers:DIR`): noise models on a table, with the autoencoder and text model of the folder.

The installed diffusers (extra `diffusers`) builds the parts, always from the local folder and from safetensors; class
names in `model_index.json` are looked up in a table, never imported. What the network predicts and its noise levels
come from the scheduler's configuration. Our denoiser lives in x = data + sigma * noise; the network is told the
fractional index of sigma in its own table and sees x / sqrt(1 + sigma^2):

    epsilon:       D = x - sigma eps
    v_prediction:  D = x / (1 + sigma^2) - sigma / sqrt(1 + sigma^2) v       (Salimans and Ho 2022, arXiv 2202.00512)
    sample:        D = the prediction
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from networks.models.noise_precond import OnLevels, denoise
from torch_utils.noise_table import NoiseTable, alphas_cumprod, betas_of
from torch_utils.pickles.machine import shown

__all__ = ["PREFIX", "DiffusersModel", "load_folder"]

PREFIX = "diffusers:"
_NETWORKS = ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel")
_AUTOENCODERS = ("AutoencoderKL", "VQModel")
_KINDS = {"linear": "linear", "scaled_linear": "sqrt_linear_squared", "squaredcos_cap_v2": "cosine"}
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_MISSING = "folders of diffusers need that package: pip install 'fewstep[diffusers]'"


class DiffusersModel(OnLevels, nn.Module):
    """D(x; sigma) of a folder's network, `decode` where it works on latents, `encode_text` where it takes text.

    Args:
        network: an instance of one of `_NETWORKS`.
        table: alphas_cumprod `[M]`.
        prediction: "epsilon", "v_prediction" or "sample".
        autoencoder, text_encoder, tokenizer: of the folder, or None.
    """

    def __init__(
        self,
        network: nn.Module,
        table: Tensor,
        prediction: str = "epsilon",
        autoencoder: nn.Module | None = None,
        text_encoder: nn.Module | None = None,
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        config, self.kind = network.config, type(network).__name__
        if not isinstance(config.sample_size, int):
            raise ValueError(f"its network is made for samples of {config.sample_size}, and only square ones are read")
        if getattr(config, "addition_embed_type", None) is not None:
            raise ValueError("its network takes further conditions (Stable Diffusion XL), which are not read")
        if autoencoder is None and config.in_channels not in (1, 3):
            raise ValueError(f"its samples have {config.in_channels} channels, and the folder has no autoencoder")
        self.model, self.prediction = network, prediction
        self.first_stage, self.text_encoder, self.tokenizer = autoencoder, text_encoder, tokenizer
        self.img_channels, self.img_resolution = config.in_channels, config.sample_size
        self.label_dim = self._classes(config)
        self.takes_text = self.kind == "UNet2DConditionModel"
        if self.takes_text and (text_encoder is None or tokenizer is None):
            raise ValueError("its network takes text, and the folder has no text_encoder and tokenizer")
        self.latent = autoencoder is not None
        self.decoded_shape: tuple[int, int, int] | None = None
        if autoencoder is not None:
            side = config.sample_size * 2 ** (len(autoencoder.config.block_out_channels) - 1)
            self.decoded_shape = (autoencoder.config.out_channels, side, side)
        self.compute_dtype = torch.float32
        self.register_buffer("alphas_cumprod", table.double())
        self._empty: Tensor | None = None

    def _classes(self, config: Any) -> int:
        if self.kind == "DiTTransformer2DModel":
            return config.num_embeds_ada_norm
        return (config.num_class_embeds or 0) if self.kind == "UNet2DModel" else 0

    @property
    def levels(self) -> NoiseTable:
        return NoiseTable(self.alphas_cumprod)

    @property
    def conditioning(self) -> str:
        """What the third argument of a call is: "none", "classes" or "text"."""
        return "text" if self.takes_text else "classes" if self.label_dim else "none"

    @property
    def label_dropout(self) -> float:
        """Above 0 where the network knows an empty condition."""
        return 0.1 if self.takes_text or self.kind == "DiTTransformer2DModel" else 0.0

    def forward(self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        """The clean estimate of x `[B, C, H, W]`, in its dtype.

        Args:
            sigma: one value or one per sample.
            class_labels: one-hot rows (zeros: no class, of DiT) or indices; of text, tokens `[B or 1, T, width]`.
        """
        condition = self._condition(class_labels, x)
        sigma = torch.as_tensor(sigma, dtype=torch.float64, device=x.device)
        level = sigma.reshape(-1, *[1] * (x.ndim - 1)) if sigma.ndim == 1 else sigma
        abar = 1 / (1 + level.square())

        def predict(x_in: Tensor, time: Tensor) -> Tensor:
            half = self.compute_dtype == torch.float16 and x.device.type != "cuda"
            dtype = torch.float32 if half else self.compute_dtype
            with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
                out = self.model(x_in, time, **condition, return_dict=False)[0].to(torch.float32)[:, : x.shape[1]]
            return self._noise(out, x_in, abar)

        return denoise(predict, self.levels, x, sigma)

    def _noise(self, out: Tensor, x_in: Tensor, abar: Tensor) -> Tensor:
        """The noise that a prediction means, at x_in = sqrt(abar) data + sqrt(1 - abar) noise."""
        if self.prediction == "epsilon":
            return out
        alpha, sigma = abar.sqrt().float(), (1 - abar).sqrt().float()
        return sigma * x_in + alpha * out if self.prediction == "v_prediction" else (x_in - alpha * out) / sigma

    def _condition(self, labels: Tensor | None, x: Tensor) -> dict[str, Tensor]:
        if self.conditioning == "none":
            return {}
        if labels is None:
            raise ValueError(f"this network takes {self.conditioning} and none was given: pass class_labels")
        if self.takes_text:
            return {"encoder_hidden_states": labels.to(x.device, torch.float32).expand(len(x), -1, -1)}
        index = labels
        if labels.ndim == 2:
            index = torch.where(labels.sum(1) == 0, self.label_dim, labels.argmax(1))
            if self.label_dropout == 0:
                index = labels.argmax(1)
        return {"class_labels": index.to(torch.int64).expand(len(x))}

    @property
    def decode(self) -> Callable[[Tensor], Tensor] | None:
        """Latents -> images in about [-1, 1]; None of a model of pixels."""
        return None if self.first_stage is None else self._decode

    def _decode(self, latent: Tensor) -> Tensor:
        config = self.first_stage.config
        z = latent.float() / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
        return self.first_stage.decode(z, return_dict=False)[0].float()

    @property
    def encode_text(self) -> Callable[[Sequence[str]], Tensor] | None:
        """Texts -> conditions `[B, T, width]`; None of a network without text."""
        return self._encode_text if self.takes_text else None

    @torch.no_grad()
    def _encode_text(self, prompts: Sequence[str]) -> Tensor:
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )["input_ids"]  # fmt: skip
        return self.text_encoder(tokens.to(self.alphas_cumprod.device))[0].float()

    @property
    def empty_condition(self) -> Callable[[], Tensor] | None:
        """() -> the condition of the empty text; None of a network without text."""
        return self._empty_text if self.takes_text else None

    def _empty_text(self) -> Tensor:
        if self._empty is None or self._empty.device != self.alphas_cumprod.device:
            self._empty = self._encode_text([""])
        return self._empty


def load_folder(folder: str | Path) -> DiffusersModel:
    """The model in a folder of diffusers.

    Raises:
        ValueError: diffusers is missing, or a folder, class or scheduler that is not read; names the folder.
    """
    try:
        import diffusers
    except ImportError:
        raise ValueError(_MISSING) from None
    folder = Path(folder)
    index = _json(folder / "model_index.json")
    name, kind = _part(folder, index, ("unet", "transformer"), _NETWORKS)
    stage = _part(folder, index, ("vae", "vqvae"), _AUTOENCODERS, optional=True)
    table, prediction = _levels(folder, _json(folder / "scheduler" / "scheduler_config.json"))
    try:
        network = _load(getattr(diffusers, kind), folder / name)
        autoencoder = None if stage is None else _load(getattr(diffusers, stage[1]), folder / stage[0])
        text, tokenizer = _text(folder, index)
        net = DiffusersModel(network, table, prediction, autoencoder, text, tokenizer)
    except ValueError as error:
        raise ValueError(f"{folder} is refused: {error}") from None
    except Exception as error:  # what a library says of a damaged folder has no common class
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{folder} cannot be loaded ({type(error).__name__}: {reason})") from None
    net.info = {"method": "diffusers", "source": folder.name, "class": kind}
    return net


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(f"{path.parent} is no folder of diffusers: it has no {path.name}") from None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it is not a JSON object")
    return value


def _part(
    folder: Path, index: Mapping[str, Any], names: Sequence[str], known: Sequence[str], optional: bool = False
) -> tuple[str, str] | None:
    """Sub-folder and class of one part of a pipeline."""
    for name in names:
        entry = index.get(name)
        if isinstance(entry, list) and len(entry) == 2 and entry[1] is not None:
            if entry[1] not in known:
                raise ValueError(f"{folder} has a {name} of class {shown(entry[1])}: {', '.join(known)} are read")
            return name, entry[1]
    if optional:
        return None
    raise ValueError(f"{folder} has no {' or '.join(names)}: it is no pipeline of diffusers that is read here")


def _levels(folder: Path, config: Mapping[str, Any]) -> tuple[Tensor, str]:
    """alphas_cumprod as the scheduler makes it, and what the network predicts."""
    if str(config.get("_class_name", "")).startswith("FlowMatch") or config.get("rescale_betas_zero_snr"):
        raise ValueError(f"{folder} has a flow-matching or zero-SNR scheduler, whose models are not read")
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        raise ValueError(f"{folder} predicts {shown(prediction)}: {', '.join(_PREDICTIONS)} are read")
    if config.get("trained_betas") is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float64)
    else:
        name = config.get("beta_schedule", "linear")
        if name not in _KINDS:
            raise ValueError(f"{folder} has the noise schedule {shown(name)}: {', '.join(_KINDS)} are read")
        ends = {} if name == "squaredcos_cap_v2" else {
            "beta_start": config.get("beta_start", 1e-4), "beta_end": config.get("beta_end", 0.02),
        }  # fmt: skip
        betas = betas_of(_KINDS[name], config.get("num_train_timesteps", 1000), **ends)
    return alphas_cumprod(betas, torch.float32), prediction


def _load(cls: Any, path: Path) -> nn.Module:
    return cls.from_pretrained(path, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False)


def _text(folder: Path, index: Mapping[str, Any]) -> tuple[nn.Module | None, Any]:
    """CLIP's text model and tokenizer, where the pipeline has them."""
    if _part(folder, index, ("text_encoder",), ("CLIPTextModel",), optional=True) is None:
        return None, None
    from transformers import CLIPTextModel, CLIPTokenizer

    model = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True, use_safetensors=True)
    return model, CLIPTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)

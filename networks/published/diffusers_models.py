"""Networks of diffusers' folders as models: denoisers on a table of noise levels, and velocities of the linear path.

A noise model lives in x = data + sigma * noise; the network is told the fractional index of sigma in its own table and
sees x / sqrt(1 + sigma^2):

    epsilon:       D = x - sigma eps
    v_prediction:  D = x / (1 + sigma^2) - sigma / sqrt(1 + sigma^2) v       (Salimans and Ho 2022, arXiv 2202.00512)
    sample:        D = the prediction

A flow model predicts noise - data at x = (1 - t) data + t noise, whatever the shift of its scheduler: that moves the
times of a schedule, t' = shift t / (1 + (shift - 1) t), which is the schedule `discrete` of such a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from networks.models.noise_precond import OnLevels, denoise
from networks.models.precond import per_sample_level
from networks.published.diffusers_calls import Call, Condition
from networks.published.diffusers_text import TextParts, unpack
from torch_utils.noise_table import NoiseTable

__all__ = ["FlowFolder", "FolderModel", "NoiseFolder"]


class FolderModel(nn.Module):
    """What models of folders have in common: the call, conditions, text, and `decode` where samples are latents.

    Args:
        network: of a class in CALLS; call: its entry.
        size: side of a sample; None: what the folder says.
        autoencoder, text: parts of the folder, or None.
        guidance: strength that a distilled network is told.

    Raises:
        ValueError: parts that are missing or do not fit.
    """

    def __init__(
        self,
        network: nn.Module,
        call: Call,
        size: int | None = None,
        autoencoder: nn.Module | None = None,
        text: TextParts | None = None,
        guidance: float = 3.5,
    ) -> None:
        super().__init__()
        config = network.config
        factor = 1 if autoencoder is None else 2 ** (len(autoencoder.config.block_out_channels) - 1)
        said = getattr(config, "sample_size", None)
        if said is None and autoencoder is not None:
            said = autoencoder.config.sample_size // factor
        if not isinstance(said, int):
            raise ValueError(f"its network is made for samples of {said}, and only square ones are read")
        if size is not None and (size % factor or not (call.resizable or size == said * factor)):
            raise ValueError(f"it makes images of {said * factor} pixels: an image_size of {size} is not possible")
        self.model, self.call, self.guidance = network, call, guidance
        self.first_stage, self.text = autoencoder, text
        self.img_channels = config.in_channels // (4 if call.packed else 1)
        self.img_resolution = said if size is None else size // factor
        if call.packed and self.img_resolution % 2:
            raise ValueError(f"its network joins 2x2 samples, and {self.img_resolution} is odd: change image_size")
        self.latent = autoencoder is not None
        self.decoded_shape: tuple[int, int, int] | None = None
        if autoencoder is None and self.img_channels not in (1, 3):
            raise ValueError(f"its samples have {self.img_channels} channels, and the folder has no autoencoder")
        if autoencoder is not None:
            if autoencoder.config.latent_channels != self.img_channels:
                raise ValueError(
                    f"its network takes {self.img_channels} channels, and its autoencoder makes latents of "
                    f"{autoencoder.config.latent_channels}: models that take a picture as well are not read"
                )
            side = self.img_resolution * factor
            self.decoded_shape = (autoencoder.config.out_channels, side, side)
        self.label_dim = (getattr(config, call.classes) or 0) if call.classes else 0
        self.compute_dtype = torch.float32
        self._empty: Tensor | None = None

    @property
    def conditioning(self) -> str:
        """What the third argument of a call is: "none", "classes" or "text"."""
        return "text" if self.call.text else "classes" if self.label_dim else "none"

    @property
    def label_dropout(self) -> float:
        """Above 0 where the network knows an empty condition."""
        return 0.1 if self.call.text or self.call.empty_class else 0.0

    def predict(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        """The network's output for samples `[B, C, H, W]` at times `[B]`, float32."""
        half = self.compute_dtype == torch.float16 and x.device.type != "cuda"
        dtype = torch.float32 if half else self.compute_dtype
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            out = self.call.run(self.model, x, time, self._condition(labels, x))
        return out.to(torch.float32)[:, : x.shape[1]]

    def _condition(self, labels: Tensor | None, x: Tensor) -> Condition:
        if self.conditioning == "none":
            return Condition()
        if labels is None:
            raise ValueError(f"this network takes {self.conditioning} and none was given: pass class_labels")
        if self.text is not None:
            condition = labels.to(x.device, torch.float32).expand(len(x), -1, -1)
            tokens, pooled = unpack(condition, self.text.pooled)
            side = self.decoded_shape[1] if self.decoded_shape else self.img_resolution
            return Condition(tokens=tokens, pooled=pooled, side=side, guidance=self.guidance)
        index = labels
        if labels.ndim == 2:
            index = labels.argmax(1)
            if self.call.empty_class:
                index = torch.where(labels.sum(1) == 0, self.label_dim, index)
        return Condition(classes=index.to(torch.int64).expand(len(x)))

    @property
    def decode(self) -> Callable[[Tensor], Tensor] | None:
        """Latents -> images in about [-1, 1]; None for a model of pixels."""
        return None if self.first_stage is None else self._decode

    def _decode(self, latent: Tensor) -> Tensor:
        config, z = self.first_stage.config, latent.float()
        mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
        if mean is not None and std is not None:
            mean, std = (z.new_tensor(v).reshape(1, -1, 1, 1) for v in (mean, std))
            z = z * std / config.scaling_factor + mean
        else:
            z = z / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
        return self.first_stage.decode(z, return_dict=False)[0].float()

    @property
    def encode_text(self) -> Callable[[Sequence[str]], Tensor] | None:
        """Texts -> conditions `[B, T, width]`; None for a network without text."""
        return None if self.text is None else self.text.encode

    @property
    def empty_condition(self) -> Callable[[], Tensor] | None:
        """() -> the condition of the empty text; None for a network without text."""
        return None if self.text is None else self._empty_text

    def _empty_text(self) -> Tensor:
        device = next(self.model.parameters()).device
        if self._empty is None or self._empty.device != device:
            self._empty = self.text.empty()
        return self._empty

    @property
    def tokenizer(self) -> Any:
        """Those of the folder, which no other can stand for."""
        return None if self.text is None else self.text.tokenizers

    @tokenizer.setter
    def tokenizer(self, value: Any) -> None:
        raise ValueError("a folder of diffusers brings its own tokenizers: leave out --tokenizer")


class NoiseFolder(OnLevels, FolderModel):
    """D(x; sigma) of a network trained on a table of noise levels.

    Args:
        table: alphas_cumprod `[M]`.
        prediction: "epsilon", "v_prediction" or "sample".
        network, call, others: of `FolderModel`.
    """

    def __init__(self, network: nn.Module, call: Call, table: Tensor, prediction: str, **others: Any) -> None:
        super().__init__(network, call, **others)
        self.prediction = prediction
        self.register_buffer("alphas_cumprod", table.double())

    @property
    def levels(self) -> NoiseTable:
        return NoiseTable(self.alphas_cumprod)

    def forward(self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        """The clean estimate of x `[B, C, H, W]`, in its dtype.

        Args:
            sigma: one value or one per sample.
            class_labels: one-hot rows (zeros: no class, of DiT) or indices; of text, `[B or 1, T, width]`.
        """
        sigma = torch.as_tensor(sigma, dtype=torch.float64, device=x.device)
        level = sigma.reshape(-1, *[1] * (x.ndim - 1)) if sigma.ndim == 1 else sigma
        abar = 1 / (1 + level.square())

        def predict(x_in: Tensor, time: Tensor) -> Tensor:
            return self._noise(self.predict(x_in, time, class_labels), x_in, abar)

        return denoise(predict, self.levels, x, sigma)

    def _noise(self, out: Tensor, x_in: Tensor, abar: Tensor) -> Tensor:
        """The noise that a prediction means, at x_in = sqrt(abar) data + sqrt(1 - abar) noise."""
        if self.prediction == "epsilon":
            return out
        alpha, sigma = abar.sqrt().float(), (1 - abar).sqrt().float()
        return sigma * x_in + alpha * out if self.prediction == "v_prediction" else (x_in - alpha * out) / sigma


class FlowFolder(FolderModel):
    """Velocity of the linear path, t = 0 at the data.

    Args:
        shift: of the schedule `discrete`, in which sigma = shift t / (1 - t).
        network, call, others: of `FolderModel`.
    """

    path, predicts, start = "linear", "velocity", "exact"
    sigma_min, sigma_max = 0.0, math.inf

    def __init__(self, network: nn.Module, call: Call, shift: Callable[[int], float], **others: Any) -> None:
        super().__init__(network, call, **others)
        self.shift = shift((self.img_resolution // (2 if call.packed else network.config.patch_size)) ** 2)

    def sigma(self, t: Tensor | float) -> Tensor:
        """Noise level at time `t` in [0, 1) before the shift, any shape."""
        t = torch.as_tensor(t, dtype=torch.float64)
        return self.shift * t / (1 - t)

    def sigma_inv(self, sigma: Tensor | float) -> Tensor:
        """Time before the shift of a noise level, any shape."""
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        return sigma / (self.shift + sigma)

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """The nearest noise level that the network supports: every one."""
        return torch.as_tensor(sigma)

    def forward(self, x: Tensor, t: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        """Velocity at x_t `[B, C, H, W]`, float32.

        Args:
            t: time in [0, 1]: one value or one per sample.
            class_labels: text `[B or 1, T, width]`.
        """
        x = x.to(torch.float32)
        return self.predict(x, per_sample_level(t, x).flatten().expand(len(x)), class_labels)

"""FusionNetwork: the network of IDFF, which predicts clean data and, from a second head, a scaled score of its state.

The state lives on a Brownian bridge of deviation sigma sqrt(t (1 - t)) between data (t = 0) and noise (t = 1), or on
another path of BRIDGES. The trunk sees the state, once for each head, and the time from noise to data, as published
(arXiv 2409.14599). Samplers may take it for what its first head is, a denoiser on that path; `samplers.fusion` makes
the published drifts of both heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from networks.models.base import Model, make_trunk
from networks.models.precond import per_sample_level
from networks.trunks.adm_unet import ADMUNet
from networks.trunks.context import ContextTrunk
from networks.trunks.mlp import SELUMLP

# what a second head may be: sigma^2 / 2 times the score, a share of the noise at the end of the path, the score itself,
# or a log density, which programs of 2025 took for it
SCORE_TARGETS = ("eps", "noise", "score", "log_density", "none")
BEGINS = ("noise", "frame")
# bridge -> path of its states, and the parameter of that path which sigma is
BRIDGES = {
    "idff": ("bridge", "bridge"), "schrodinger_bridge": ("bridge", "bridge"), "independent": ("noisy", "floor"),
    "variance_preserving": ("noisy_trig", "floor"), "target": ("target", "floor"),
}  # fmt: skip
TRUNKS: dict[str, type[nn.Module]] = {"ADMUNet": ADMUNet, "SELUMLP": SELUMLP, "ContextTrunk": ContextTrunk}


class FusionNetwork(Model):
    """One or two heads at a time of its own, t = 0 at the data.

    Args:
        img_resolution, img_channels: of the data, `[B, C, H, W]` with H = W = img_resolution.
        label_dim: classes, or frames of a series.
        model_type: key of TRUNKS; `model_kwargs` are its further arguments.
        sigma: path noise of training.
        bridge_type: key of BRIDGES; but for the first two, noise of deviation sigma remains at the data.
        residual: the trunk says what is left of the way, in units of its size, and the clean estimate is the state and
            that: an error of the trunk vanishes towards the data, and drifts, which divide by the time left, stay
            right. Of Brownian bridges.
        heads: 2, or 1 without a score head.
        score_target: key of SCORE_TARGETS, what the second head was trained on; "none" of one head.
        begins: what lies at t = 1: noise, or of a series the frame before.
        gaussian_noise: the noise of training was Gaussian and independent of the data, so that scores can be had.

    Attributes:
        path, path_options, predicts, start: how samplers read this model.

    Raises:
        ValueError: arguments that do not fit, in one sentence.
    """

    models = TRUNKS
    predicts = "data"
    start = "exact"

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        model_type: str = "ADMUNet",
        sigma: float = 0.2,
        heads: int = 2,
        score_target: str = "eps",
        gaussian_noise: bool = True,
        begins: str = "noise",
        bridge_type: str = "idff",
        residual: bool = False,
        **model_kwargs: Any,
    ) -> None:
        if heads not in (1, 2):
            raise ValueError(f"heads={heads}: give 2, clean data and score, or 1, clean data alone")
        if score_target not in SCORE_TARGETS:
            raise ValueError(f"score target '{score_target}' is unknown: choose from {', '.join(SCORE_TARGETS)}")
        if begins not in BEGINS:
            raise ValueError(f"begins '{begins}' is unknown: choose from {', '.join(BEGINS)}")
        if bridge_type not in BRIDGES:
            raise ValueError(f"there is no bridge '{bridge_type}': choose from {', '.join(BRIDGES)}")
        if residual and BRIDGES[bridge_type][0] != "bridge":
            raise ValueError(f"residual is of Brownian bridges, and the bridge {bridge_type} is another path")
        if not 0 <= sigma < math.inf:
            raise ValueError(f"sigma={sigma:g} is the noise of the path: give 0 or more")
        super().__init__(img_resolution, img_channels, label_dim)
        self.bridge, self.num_heads, self.score_target = sigma, heads, score_target if heads == 2 else "none"
        self.gaussian_noise, self.begins, self.bridge_type = gaussian_noise, begins, bridge_type
        self.residual = residual
        self.path, self._parameter = BRIDGES[bridge_type]
        self.sigma_min = sigma if self._parameter == "floor" else 0.0
        channels = img_channels * heads
        self.model = make_trunk(
            TRUNKS, model_type, img_resolution, channels, channels, label_dim=label_dim, **model_kwargs
        )

    @property
    def path_options(self) -> dict[str, float]:
        """Parameters of the path."""
        return {self._parameter: self.bridge}

    @property
    def start_noise(self) -> Callable[..., Tensor] | None:
        """Unit noise as the state at t = 1, where a path has noise of its own; None: unit noise."""
        if not self.path.startswith("noisy"):
            return None
        return lambda noise, prior=None: noise * math.hypot(1, self.bridge)

    def heads(self, x: Tensor, t: Tensor | float, class_labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Clean estimate and second head (None without one) at x_t, each `[N, C, H, W]` float32; as `forward`."""
        x = x.to(torch.float32)
        dtype = self.trunk_dtype(x)
        level = per_sample_level(t, x)
        labels = (class_labels,) if self.label_dim else ()
        out = self.model(torch.cat([x] * self.num_heads, dim=1).to(dtype), 1 - level.flatten(), *labels)
        estimate, second = (*out.to(torch.float32).chunk(self.num_heads, dim=1), None)[:2]
        if self.residual:
            left = (level.square() + self.bridge**2 * level * (1 - level)).sqrt()
            estimate = x + left * estimate
        return estimate, second

    def forward(self, x: Tensor, t: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        """Clean estimate at x_t, float32.

        Args:
            x: `[N, C, H, W]`.
            t: time in [0, 1]: one value, `[N]`, or a map that broadcasts to x (its mean per sample counts).
            class_labels: one-hot `[N, label_dim]`; ignored by an unconditional network.
        """
        return self.heads(x, t, class_labels)[0]

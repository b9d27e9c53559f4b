"""The golden denoiser of a Gaussian mixture, in float64 or float32 as the case says."""

import torch


def mixture(pi, mu, std):
    """D(x; sigma) of sum_k pi_k N(mu_k, diag(std_k^2)); any shape [B, ...] flattened in C order; sigma one value."""

    def denoise(x, sigma, class_labels=None):
        sigma = torch.as_tensor(sigma, dtype=pi.dtype, device=x.device)
        y = x.reshape(x.shape[0], 1, -1).to(pi.dtype)
        variance = std**2 + sigma**2  # [K, 1] or [K, D]
        variance = variance.expand(mu.shape)
        log_w = pi.log() - 0.5 * ((y - mu) ** 2 / variance + variance.log()).sum(-1)
        w = log_w.softmax(-1)  # [B, K]
        means = (std**2 * y + sigma**2 * mu) / variance  # [B, K, D]
        return (w[..., None] * means).sum(1).reshape(x.shape)

    return denoise


def denoiser_of(case):
    """The mixture a case (or its file) describes."""
    spec = case.spec.get("denoiser") or case.file["denoiser"]
    assert spec["type"] == "gaussian_mixture"
    dtype = getattr(torch, spec["dtype"])
    return mixture(*(case.tensor(spec[key]).to(dtype) for key in ("pi", "mu", "std")))

"""Solvers with options that cover every branch, and denoisers to run them on."""

import itertools

import pytest
import torch


def counted(denoise):
    """A denoiser that counts its calls in `.calls`."""

    def call(x, sigma, class_labels=None):
        call.calls += 1
        return denoise(x, sigma, class_labels)

    call.calls = 0
    return call


def curved(x, sigma, class_labels=None):
    """A smooth denoiser without symmetry, of any data; labels shift it."""
    sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    sigma = sigma.reshape(-1, *[1] * (x.ndim - 1)) if sigma.ndim == 1 else sigma
    shift = 0 if class_labels is None else class_labels.sum(-1).reshape(-1, *[1] * (x.ndim - 1))
    return torch.tanh(1.5 * x / (1 + sigma**2).sqrt() + 0.2) + shift


def variants():
    """Solver names with options that cover every branch of every solver."""
    for name in ("euler", "heun", "dpm", "heun_churn"):
        yield name, {}
    for name, order in itertools.product(("ipndm", "ipndm_v", "ab"), (1, 2, 3, 4)):
        yield name, {"max_order": order}
    for order in (1, 2, 3):
        yield "res", {"max_order": order}
        for corrector in (0, 3):
            yield "sa", {"max_order": order, "corrector_order": corrector, "tau": 0.0}
    for mode, order in itertools.product(("tab", "rhoab"), (1, 2, 3, 4)):
        yield "deis", {"deis_mode": mode, "max_order": order}
    for order, x0, low in itertools.product((1, 2, 3), (True, False), (True, False)):
        options = {"max_order": order, "predict_x0": x0, "lower_order_final": low}
        yield "dpmpp", options
        for variant in ("bh1", "bh2"):
            yield "unipc", {**options, "variant": variant}


VARIANTS = [pytest.param(n, o, id="-".join([n, *(f"{k}={v}" for k, v in o.items())])) for n, o in variants()]

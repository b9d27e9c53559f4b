"""Published MAC snapshots: the generator of `{"G_ema": Generator}` as class and arguments of `MACNetwork`.

Only the denoiser says with which arguments it was made. The coefficient network is recognised by the names and shapes
of its tensors; the schedule, the family and the low-pass by the attributes of the live objects (Lee et al. 2024,
arXiv 2404.14161). Weights are under `V.*` and `C.UNet.*` in the file as in ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from networks.models.coefficients import filter_size, gaussian_kernel
from networks.published.edm import ATTRIBUTES, to_network_spec
from torch_utils.pickles.foreign import named_tensors
from torch_utils.pickles.machine import Record, shown

__all__ = ["denoiser_spec", "mac_spec"]

# What the published command trained with, where a file does not say it itself.
NUM_STEPS, RHO, SIGMA_MIN, SIGMA_MAX = 5, 7.0, 0.002, 80.0

CHURN = ("S_churn", "S_min", "S_max", "S_noise")


def denoiser_spec(record: Record) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Class, arguments and state dict as `to_network_spec` gives them, also of MAC's own preconditioner classes.

    Those are EDM's under another name; one that is told the level of every element has twice the input channels.
    """
    name = record.class_name
    if name not in ATTRIBUTES and "edm" in name.lower() and "precond" in name.lower():
        record = Record("EDMPrecond", record.state)
    class_name, kwargs, state = to_network_spec(record)
    first = next((v for k, v in state.items() if re.fullmatch(r"model\.enc\.\d+x\d+_conv\.weight", k)), None)
    channels = kwargs.get("img_channels")
    wide = first is not None and first.ndim == 4 and isinstance(channels, int) and first.shape[1] == 2 * channels
    if class_name == "EDMPrecond" and wide:
        class_name = "EDMGammaPrecond"
    return class_name, kwargs, state


def mac_spec(generator: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """Class and arguments, facts, and state dict of the Record under "G_ema".

    Raises:
        ValueError: an object of another class, or parts that are missing or contradict each other.
    """
    if not isinstance(generator, Record) or generator.class_name != "Generator":
        kind = generator.class_name if isinstance(generator, Record) else type(generator).__name__
        raise ValueError(f"its G_ema is a {shown(kind)}, not MAC's Generator")
    modules = generator.state.get("_modules")
    parts = {**generator.state, **(modules if isinstance(modules, dict) else {})}
    v, c = (_part(parts, name) for name in ("V", "C"))
    calculator = next((p for p in parts.values() if _is(p, "SinusoidalMacCalculator")), None)
    if calculator is None:
        calculator = next((p for p in c.state.values() if _is(p, "SinusoidalMacCalculator")), None)
    if calculator is None:
        raise ValueError("its Generator has no SinusoidalMacCalculator")
    v_class, v_kwargs, v_state = denoiser_spec(v)
    c_state = named_tensors(c)
    _check_conditioning(generator, v_class)
    M = _number(calculator, "M", int)
    config = {
        "class_name": "MACNetwork",
        "network": {"class_name": v_class, **v_kwargs},
        "coefficients": _coefficients(c, c_state, M, v_kwargs),
        "schedule": _schedule(generator, v),
        "M": M,
        "rho": _number(calculator, "rho"),
        "k": _smoothness(calculator, M),
        "t_max": _number(calculator, "t_max"),
    }
    facts = {name: generator.state[name] for name in CHURN if isinstance(generator.state.get(name), int | float)}
    info = {"config": config, "path": "ve", "predicts": "data", "method": "trajectory", "source": "MAC pickle", **facts}
    state = {f"V.{k}": t for k, t in v_state.items()} | {f"C.{k}": t for k, t in c_state.items()}
    return config, info, state


def _is(value: Any, class_name: str) -> bool:
    return isinstance(value, Record) and value.class_name == class_name


def _part(parts: Mapping[str, Any], name: str) -> Record:
    part = parts.get(name)
    if not isinstance(part, Record):
        raise ValueError(f"its Generator has no network {name}")
    return part


def _number(record: Record, name: str, kind: type = float) -> Any:
    """An attribute that is a number, also out of a tensor of one element."""
    value = record.state.get(name)
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.tolist() if value.ndim == 0 else value.flatten()[0].tolist()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"its {record.class_name} does not say its {name} as a number")
    return kind(value)


def _flag(record: Record, name: str, default: bool) -> bool:
    value = record.state.get(name, default)
    if not isinstance(value, int) or value not in (0, 1):
        raise ValueError(f"its {record.class_name} does not say whether {name} holds")
    return bool(value)


def _check_conditioning(generator: Record, v_class: str) -> None:
    takes = v_class == "EDMGammaPrecond"
    said = _flag(generator, "coefficient_conditioning", takes)
    if said != takes:
        raise ValueError(
            f"it says coefficient_conditioning={said}, but its denoiser "
            + ("is told the level of every element" if takes else "is told one level per image")
        )


def _schedule(generator: Record, v: Record) -> list[float]:
    """The levels without the final 0: as stored, else by EDM's formula from the stored settings."""
    levels = generator.state.get("t_steps")
    if isinstance(levels, Tensor) and levels.ndim == 1 and 0 < len(levels) <= 256:
        values = [float(t) for t in levels.double().tolist()]
        values = values[:-1] if values[-1] == 0 else values
    else:
        given = {k: _number(generator, k) for k in ("num_steps", "rho") if k in generator.state}
        n, rho = int(given.get("num_steps", NUM_STEPS)), given.get("rho", RHO)
        if not 1 <= n <= 256 or not 0.01 <= rho <= 1000:
            raise ValueError(f"its Generator has the impossible num_steps={n}, rho={rho:g}")
        ends = min(SIGMA_MAX, _limit(v, "sigma_max", SIGMA_MAX)), max(SIGMA_MIN, _limit(v, "sigma_min", SIGMA_MIN))
        top, bottom = (e ** (1 / rho) for e in ends)
        values = [(top + i / max(n - 1, 1) * (bottom - top)) ** rho for i in range(n)]
    falling = all(a > b for a, b in pairwise(values))
    if not values or not falling or not all(0 < t < math.inf for t in values):
        raise ValueError(f"its noise levels {shown(str(values))} do not fall to 0")
    return values


def _limit(v: Record, name: str, default: float) -> float:
    value = v.state.get(name)
    return value if isinstance(value, int | float) and 0 < value < math.inf else default


def _smoothness(calculator: Record, M: int) -> float:
    """k of the weights 1 / m^k, out of m_term_1, which holds m^k or 1 / m^k."""
    terms = calculator.state.get("m_term_1")
    if terms is None or M == 1:  # with one basis function k has no effect
        return 0.0
    if not isinstance(terms, Tensor) or terms.numel() != M:
        raise ValueError(f"its SinusoidalMacCalculator has no m_term_1 of {M} elements, which hold the smoothness k")
    values = terms.flatten().double()
    m = torch.arange(1, M + 1, dtype=torch.float64)
    k = abs(float(values[1].abs().log2()))
    if math.isfinite(k) and abs(k - round(k)) < 1e-4:
        k = float(round(k))
    if not math.isfinite(k) or not any(torch.allclose(values, m**p, rtol=1e-4, atol=0) for p in (k, -k)):
        raise ValueError("its m_term_1 is not a power of 1, 2, ..., M: the smoothness k cannot be read")
    return k


def _coefficients(c: Record, state: Mapping[str, Tensor], M: int, v_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `CoefficientNet` besides those it shares with the denoiser."""
    if c.class_name != "CoefficientGenerator":
        raise ValueError(f"its coefficient network is a {shown(c.class_name)}, not MAC's CoefficientGenerator")
    for name, ours in (("resolution", v_kwargs.get("img_resolution")), ("label_dim", v_kwargs.get("label_dim", 0))):
        if _number(c, name, int) != ours:
            raise ValueError(
                f"its coefficient network has {name} {_number(c, name, int)}, its denoiser {shown(ours)}: such a pair "
                "cannot be sampled here"
            )
    if _number(c, "M", int) != M:
        raise ValueError(f"its coefficient network has M={_number(c, 'M', int)}, its calculator M={M}")
    flags = c.state.get("multidimensionality")
    flags = list(flags) if isinstance(flags, list | tuple | str) else []
    if len(flags) != 3 or not all(isinstance(f, int | str) and f in (True, False, "0", "1") for f in flags):
        raise ValueError("its coefficient network does not say along which three axes coefficients differ")
    filtered: dict[str, Any] = {"lpf": _flag(c, "lpf", True)}
    if filtered["lpf"]:
        filtered["gauss_kernel_sigma"] = _kernel_sigma(c, _number(c, "resolution", int))
    return {
        "scale": _number(c, "scale"),
        "multidimensionality": "".join(str(int(f)) for f in flags),
        "x_0_conditioning": _flag(c, "x_0_conditioning", True),
        **filtered,
        **_unet(state),
    }


def _kernel_sigma(c: Record, resolution: int) -> float:
    """Width of the stored low-pass, in pixels of a 32-pixel image; the stored values must be that Gaussian."""
    kernel, size = c.state.get("gauss_kernel"), filter_size(resolution)
    fits = isinstance(kernel, Tensor) and kernel.ndim >= 2 and tuple(kernel.shape[-2:]) == (size, size)
    if not fits or not kernel.numel():
        raise ValueError(f"its coefficient network has no gauss_kernel of {size} x {size} values")
    line = kernel.double().reshape(-1, size, size)[0].sum(0)
    line, middle = line / line.sum(), (size - 1) // 2
    ratio = line[middle:] / line[middle]
    far = int((ratio > 1e-3).sum()) - 1  # the farthest tap that float32 still resolves
    if far < 1 or not torch.isfinite(ratio).all() or not 0 < ratio[far] < 1:
        raise ValueError("its gauss_kernel is not a Gaussian: the width of the low-pass cannot be read")
    sigma = math.sqrt(far**2 / (-2 * math.log(float(ratio[far]))))
    if not torch.allclose(line, gaussian_kernel(size, sigma), rtol=1e-3, atol=1e-6):
        raise ValueError("its gauss_kernel is not a Gaussian: the width of the low-pass cannot be read")
    return float(f"{sigma / (resolution // 32 if resolution >= 32 else resolution / 32):.5g}")


def _unet(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Width, multipliers, blocks and attention of `SongUNetModified`, from the names and shapes of its tensors."""
    name = re.compile(r"UNet\.enc\.(\d+)x\1_(conv|block(\d+)\.(conv1|qkv))\.weight")
    found = [(int(m[1]), m[2], int(m[3] or 0), m[4], t) for k, t in state.items() if (m := name.fullmatch(k))]
    base = [t.shape[0] for _, what, _, _, t in found if what == "conv" and t.ndim == 4]
    emb = state.get("UNet.map_layer1.weight")
    if len(base) != 1 or base[0] < 1 or emb is None or emb.ndim != 2 or emb.shape[0] % base[0]:
        raise ValueError("its coefficient network has no SongUNetModified that could be recognised by its tensors")
    widths = {r: t.shape[0] for r, _, _, part, t in found if part == "conv1" and t.ndim == 4}
    blocks = {r: 1 + max(i for q, _, i, part, _ in found if q == r and part == "conv1") for r in widths}
    if not widths or len(set(blocks.values())) != 1 or any(w % base[0] for w in widths.values()):
        raise ValueError("the levels of its coefficient network do not have equal blocks and multiples of one width")
    return {
        "model_channels": base[0],
        "channel_mult": [widths[r] // base[0] for r in sorted(widths, reverse=True)],
        "num_blocks": next(iter(blocks.values())),
        "attn_resolutions": sorted({r for r, _, _, part, _ in found if part == "qkv"}, reverse=True),
        "channel_mult_emb": emb.shape[0] // base[0],
    }

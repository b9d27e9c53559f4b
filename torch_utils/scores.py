"""Scores of ensemble forecasts, of generated trajectories against a recorded one, and of two sets of samples.

All in float64 numpy. Names are those of the forecasting and molecular literature; where programs of others compute
something else under the same name, that is a separate key that says so.

- CRPS: E|f - y| - E|f - f'| / 2 over the M members (Gneiting and Raftery 2007), with 1 / M^2 for the second mean, or
  the fair 1 / (M (M - 1)), which does not punish small ensembles.
- SSR: spread over skill, sqrt(mean variance of members) / sqrt(mean square error of the ensemble mean); 1 = calibrated.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def crps(ensemble: Array, observed: Array, fair: bool = False) -> Array:
    """Continuous ranked probability score of every observation.

    Args:
        ensemble: `[..., M]`, members last.
        observed: `[...]`.
        fair: unbiased in the number of members; needs two or more.

    Raises:
        ValueError: shapes that do not fit, or one member where `fair` is asked for.
    """
    members = ensemble.shape[-1]
    if ensemble.shape[:-1] != observed.shape:
        raise ValueError(f"an ensemble of shape {list(ensemble.shape)} is no forecast of {list(observed.shape)}")
    if fair and members < 2:
        raise ValueError("the fair CRPS needs 2 members or more, this ensemble has 1")
    f, y = np.sort(ensemble.astype(np.float64), axis=-1), observed.astype(np.float64)[..., None]
    # sum over pairs of |f_i - f_j| is 2 sum (2 i - M - 1) f_(i) of the sorted members
    pairs = (f * (2 * np.arange(1, members + 1) - members - 1)).sum(-1)
    return np.abs(f - y).mean(-1) - pairs / (members * (members - 1) if fair else members**2)


def ensemble_scores(ensemble: Array, observed: Array) -> dict[str, float]:
    """`crps`, `crps_fair` (NaN of one member), `mse` of the ensemble mean, `ssr`, and `ssr_repo`.

    `ssr_repo` is what one published program calls SSR, the deviation of ensemble means over samples (first axis) in
    units of the error: no spread of any ensemble is in it.

    Args:
        ensemble: `[N, ..., M]`. observed: `[N, ...]`.
    """
    f, y = ensemble.astype(np.float64), observed.astype(np.float64)
    mean = f.mean(-1)
    rmse = float(np.sqrt(np.square(mean - y).mean()))
    members = f.shape[-1]
    return {
        "crps": float(crps(f, y).mean()),
        "crps_fair": float(crps(f, y, fair=True).mean()) if members > 1 else float("nan"),
        "mse": rmse**2,
        "ssr": float(np.sqrt(f.var(-1).mean())) / rmse,
        "ssr_repo": float(np.sqrt(mean.var(0).mean())) / rmse,
    }


def wrapped(difference: Array, period: float = 360.0) -> Array:
    """Differences of angles, brought to `[-period / 2, period / 2)`."""
    return (difference + period / 2) % period - period / 2


def trajectory_scores(generated: Array, data: Array, period: float | None = None) -> dict[str, float]:
    """Correlation `CC`, `RMSE` and `MAE` over time: mean and population deviation over trajectories and dimensions.

    Args:
        generated: `[T, K, D]`, K trajectories.
        data: `[T, D]`.
        period: of angles, whose differences wrap; the correlation is then that of the angles as they are.
    """
    g, d = generated.astype(np.float64), data.astype(np.float64)[:, None]
    difference = g - d if period is None else wrapped(g - d, period)
    per = {
        "CC": _correlation(g, np.broadcast_to(d, g.shape)),
        "RMSE": np.sqrt(np.nanmean(np.square(difference), axis=0)),
        "MAE": np.nanmean(np.abs(difference), axis=0),
    }
    return {f"{k}_{s}": float(getattr(v, s)()) for k, v in per.items() for s in ("mean", "std")}


def regression_scores(generated: Array, data: Array) -> dict[str, Array]:
    """Per dimension of one trajectory `[T, D]`: `r2`, `rmse`, `pearson` (0 where constant), `rho`, `mae_signed`.

    `mae_signed` is the mean difference: what one published program calls its mean absolute error.
    """
    g, d = generated.astype(np.float64), data.astype(np.float64)
    difference = g - d
    rho = _correlation(g, d)
    return {
        "r2": 1 - np.square(difference).sum(0) / np.square(d - d.mean(0)).sum(0),
        "mae_signed": difference.mean(0),
        "rmse": np.sqrt(np.square(difference).mean(0)),
        "pearson": np.nan_to_num(rho),
        "rho": rho,
    }


def _correlation(a: Array, b: Array) -> Array:
    """Pearson correlation along the first axis."""
    a, b = a - a.mean(0), b - b.mean(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(0) / np.sqrt(np.square(a).sum(0) * np.square(b).sum(0))


def _squares(x: Array, y: Array) -> Array:
    """Squared distances `[N, M]` of rows."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    return np.maximum(np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * x @ y.T, 0)


def _discrepancy(x: Array, y: Array, kernel: Any) -> float:
    return float(kernel(_squares(x, x)).mean() + kernel(_squares(y, y)).mean() - 2 * kernel(_squares(x, y)).mean())


def mmd(x: Array, y: Array, sigma: float | None = None) -> float:
    """Squared maximum mean discrepancy of rows `[N, D]` and `[M, D]`, kernel exp(-d^2 / (2 sigma^2)), biased.

    Args:
        sigma: bandwidth; None: the median distance between rows of both sets. A bandwidth far below it measures
            nothing: each row then is near itself alone.
    """
    if sigma is None:
        both = np.concatenate([x, y])
        distances = _squares(both, both)[np.triu_indices(len(both), 1)]
        sigma = float(np.sqrt(np.median(distances))) or 1.0
    return _discrepancy(x, y, lambda d: np.exp(-d / (2 * sigma**2)))


def mmd_multiscale(x: Array, y: Array, scales: tuple[float, ...], kernel: str = "rational") -> float:
    """Discrepancy with a sum of kernels: a^2 / (a^2 + d^2) ("rational"), or exp(-d^2 / (2 a)) ("rbf")."""
    one = {"rational": lambda d, a: a**2 / (a**2 + d), "rbf": lambda d, a: np.exp(-d / (2 * a))}[kernel]
    return _discrepancy(x, y, lambda d: sum(one(d, a) for a in scales))


def kl_of_kernel_densities(x: Array, y: Array, bandwidth: float, floor: float = 1e-10) -> float:
    """Divergence of Gaussian kernel densities of `x` from those of `y`, both on the union of the rows, normalised.

    With many dimensions and a narrow kernel every density is its floor, and the divergence 0: choose the bandwidth by
    the data, or compare histograms of few dimensions.
    """
    both = np.concatenate([x, y])
    dim = both.shape[1]
    norm = (2 * np.pi * bandwidth**2) ** (-dim / 2)
    p, q = (norm * np.exp(-_squares(both, s) / (2 * bandwidth**2)).mean(1) + floor for s in (x, y))
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())

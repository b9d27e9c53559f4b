"""Series that are generated or come with a package: `--data=series:NAME`.

- elnino: sea-surface temperature off Peru, 61 years by month (statsmodels, public domain), one number.
- advected: a field on a torus that drifts and forgets, whose best possible forecast is known (`AdvectedField`).
- peptide: angles of a chain of residues under overdamped Langevin dynamics, with wells where those of peptides are.
- doublewell: one coordinate in U = 2 (x^2 - 1)^2, the same integrator.
- lorenz, rossler: the two chaotic systems, one long trajectory each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from torch_utils.errors import importing

__all__ = ["RESIDUE_WELLS", "SOURCES", "AdvectedField", "Recording", "langevin"]

Array = np.ndarray[Any, Any]
Force = Callable[[Array], Array]

RESIDUE_WELLS = {"alpha R": (-63.0, -42.0), "beta": (-130.0, 150.0), "alpha L": (57.0, 40.0)}  # phi, psi in degrees
_WEIGHTS = np.array([1.0, 1.0, 0.3])
_STIFFNESS = np.array([[2.5, 2.5], [2.0, 2.5], [3.5, 3.5]])
_NEIGHBOURS = 0.5  # coupling of the angles of residues side by side


@dataclass(frozen=True, eq=False)
class Recording:
    """Sequences of frames at equal distances in time, and what is known of them.

    Attributes:
        name: for run directories.
        values: `[N, T, C, H, W]` float64: N sequences of T frames; vectors have H = W = 1.
        phase, period: of each frame of the time axis, its place `[T]` in a cycle of `period`, as months in a year.
        angles: values are angles in degrees, `(phi, psi)` of one residue after the other where there are pairs.
        wraps: frames are maps whose opposite borders touch.
        parts: frames, or sequences (`by_sequence`), of training, validation and test; None: by shares.
        scale: key of `training.data.scaling.SCALINGS` that suits, by default.
        window, horizon: frames that are known and that follow, by default.
        unit: of the values; "" where nothing says it.
    """

    name: str
    values: Array
    phase: Array | None = None
    period: int = 0
    angles: bool = False
    wraps: bool = False
    parts: tuple[int, int, int] | None = None
    by_sequence: bool = False
    scale: str = "standard"
    window: int = 1
    horizon: int = 1
    unit: str = ""


def _elnino(seed: int) -> Recording:
    with importing("series:elnino comes with the package statsmodels: pip install statsmodels"):
        from statsmodels.datasets import elnino
    table = elnino.load_pandas().data.to_numpy(np.float64)
    values = table[:, 1:].reshape(1, -1, 1, 1, 1)
    return Recording(
        "elnino", values, phase=np.arange(values.shape[1]) % 12, period=12, parts=(45 * 12, 8 * 12, 8 * 12),
        scale="climatology", window=12, horizon=6, unit="°C",
    )  # fmt: skip


@dataclass(frozen=True)
class AdvectedField:
    """An Ornstein-Uhlenbeck process for each wave of a torus of `size` x `size` pixels, turned on its way.

        z <- lambda z + A sqrt(1 - |lambda|^2) FFT2(noise),    field = Re IFFT2(z) / c,    A = 1 / (1 + |k|^2)

    lambda = exp(-(1 + |k|^2 / 4) / 6) exp(-2 pi i (0.6 kx + 0.2 ky) / size); c gives every pixel unit variance. `size`
    is odd, so that no wave is its own conjugate.
    """

    size: int = 15

    @property
    def waves(self) -> tuple[Array, Array]:
        """Amplitudes and decay factors, `[size, size]`."""
        k = np.fft.fftfreq(self.size, 1 / self.size)
        ky, kx = np.meshgrid(k, k, indexing="ij")
        square = kx**2 + ky**2
        decay = np.exp(-(1 + 0.25 * square) / 6) * np.exp(-2j * np.pi * (0.6 * kx + 0.2 * ky) / self.size)
        return 1 / (1 + square), decay

    def draw(self, frames: int, rng: np.random.Generator, burn_in: int = 200) -> Array:
        """`[frames, size, size]`, stationary."""
        amplitude, decay = self.waves
        kick = amplitude * np.sqrt(1 - np.abs(decay) ** 2)
        noise = np.fft.fft2(rng.standard_normal((burn_in + frames, self.size, self.size)))
        scale = np.sqrt((amplitude**2).sum()) / self.size
        z, states = np.zeros_like(decay), np.empty((frames, self.size, self.size), complex)
        for i, one in enumerate(noise):
            z = decay * z + kick * one
            states[i - burn_in] = z  # the first ones are written over
        return np.fft.ifft2(states).real / scale

    def best(self, frames: Array, leads: int) -> tuple[Array, Array]:
        """Mean `[n, leads, size, size]` and variance `[leads]` of what follows `frames [n, size, size]`."""
        amplitude, decay = self.waves
        h = np.arange(1, leads + 1)[:, None, None]
        mean = np.fft.ifft2(decay**h * np.fft.fft2(frames)[:, None]).real
        return mean, (amplitude**2 * (1 - np.abs(decay) ** (2 * h))).sum((1, 2)) / (amplitude**2).sum()


def _advected(seed: int) -> Recording:
    parts = (2000, 300, 1000)
    values = AdvectedField().draw(sum(parts), np.random.default_rng(seed))
    return Recording("advected", values[None, :, None], wraps=True, parts=parts, scale="minmax")


def langevin(
    force: Force, start: Array, frames: int, rng: np.random.Generator, *, dt: float = 2e-3, every: int = 100
) -> Array:
    """Overdamped dynamics dx = force dt + sqrt(2 dt) noise, all trajectories at once: `[frames, *start.shape]`.

    Args:
        start: `[N, ...]`, not recorded.
        every: steps between frames.
    """
    x, out = start, np.empty((frames, *start.shape))
    for i in range(frames):
        for noise in rng.standard_normal((every, *start.shape)):
            x = x + dt * force(x) + math.sqrt(2 * dt) * noise
        out[i] = x
    return out


def _residue_force(angles: Array) -> Array:
    """-dU/d(angles), `[N, residues, 2]` in radians, of three von Mises wells a residue and a coupling in the chain."""
    centres = np.radians(list(RESIDUE_WELLS.values()))
    away = angles[..., None, :] - centres  # [N, residues, wells, 2]
    height = _WEIGHTS * np.sqrt(_STIFFNESS.prod(1)) * np.exp((_STIFFNESS * (np.cos(away) - 1)).sum(-1))
    share = height / height.sum(-1, keepdims=True)
    force = -(share[..., None] * _STIFFNESS * np.sin(away)).sum(-2)
    pull = _NEIGHBOURS * np.sin(np.diff(angles, axis=1))
    force[:, :-1] += pull
    force[:, 1:] -= pull
    return force


def _peptide(seed: int) -> Recording:
    sequences, residues, frames = 10, 4, 600
    rng = np.random.default_rng(seed)
    start = np.radians(RESIDUE_WELLS["beta"]) + 0.1 * rng.standard_normal((sequences, residues, 2))
    x = np.degrees(langevin(_residue_force, start, frames, rng)).swapaxes(0, 1)
    values = (180 - (180 - x) % 360).reshape(sequences, frames, 2 * residues, 1, 1)
    return Recording("peptide", values, angles=True, parts=(8, 0, 2), by_sequence=True, scale="circle")


def _double_well(seed: int) -> Recording:
    rng = np.random.default_rng(seed)
    x = langevin(lambda x: -8 * x * (x**2 - 1), -np.ones(10), 600, rng).T
    return Recording("doublewell", x[..., None, None, None], parts=(8, 0, 2), by_sequence=True)


def _chaos(name: str, values: Array) -> Recording:
    return Recording(name, values.reshape(1, -1, 3, 1, 1), scale="minmax10")


def _lorenz(seed: int) -> Recording:
    """sigma 10, rho 28, beta 8/3 from (1, 0, 0), 2000 points in 70 units of time."""
    from scipy.integrate import solve_ivp

    def rate(t: float, s: Array) -> list[float]:
        x, y, z = s
        return [10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z]

    return _chaos("lorenz", solve_ivp(rate, (0, 70), (1, 0, 0), t_eval=np.linspace(0, 70, 2000)).y.T)


def _rossler(seed: int) -> Recording:
    """a = b = 0.2, c = 5.7 from (0.1, 0, 0), 2000 Euler steps of 0.05, as published."""
    states = np.empty((2000, 3))
    x, y, z = 0.1, 0.0, 0.0
    for i in range(len(states)):
        states[i] = x, y, z
        x, y, z = x + 0.05 * (-y - z), y + 0.05 * (x + 0.2 * y), z + 0.05 * (0.2 + z * (x - 5.7))
    return _chaos("rossler", states)


SOURCES: dict[str, Callable[[int], Recording]] = {
    "elnino": _elnino,
    "advected": _advected,
    "peptide": _peptide,
    "doublewell": _double_well,
    "lorenz": _lorenz,
    "rossler": _rossler,
}

"""Noise levels in formulas: numbers, or maps of one level per sample or element."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["Scalar", "expm1", "log"]

Scalar = float | Tensor  # a number for the whole batch, or a float64 map that broadcasts against the state


def log(s: Scalar) -> Scalar:
    return s.log() if isinstance(s, Tensor) else math.log(s)


def expm1(s: Scalar) -> Scalar:
    return s.expm1() if isinstance(s, Tensor) else math.expm1(s)

"""The polynomial schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from unmask.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Polynomial(Schedule):
    """alpha(t) = 1 - t^power; power 1 is linear.

    Args:
        power: a positive number.

    References:
        Shi et al., "Simplified and generalized masked diffusion for discrete data", 2024, arXiv:2406.04329, Table 4.
    """

    power: float = 2.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.power) and self.power > 0):
            raise ValueError(f"Polynomial: power={self.power}, wanted a positive finite number such as 2.0")

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - t**self.power

    def noise(self, t: Tensor) -> Tensor:
        return t**self.power

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -self.power * t ** (self.power - 1.0)

    def inverse(self, a: Tensor) -> Tensor:
        return (1.0 - a) ** (1.0 / self.power)

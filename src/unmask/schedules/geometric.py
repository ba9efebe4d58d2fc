"""The geometric schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Geometric(Schedule):
    """alpha(t) proportional to exp(-sigma(t)) with total noise sigma(t) = sigma_min^(1-t) sigma_max^t.

    The published form leaves exp(-sigma_min) < 1 at t = 0 and exp(-sigma_max) > 0 at t = 1; here alpha is mapped
    affinely
    onto [0, 1], alpha(t) = (e^-sigma(t) - e^-sigma(1)) / (e^-sigma(0) - e^-sigma(1)), so that a bound computed with
    it is a bound without end-point corrections (they are of order 1e-5 and 1e-9 at the defaults).

    Args:
        sigma_min, sigma_max: total noise at t = 0 and t = 1, 0 < sigma_min < sigma_max.

    References:
        Lou, Meng, Ermon, "Discrete diffusion modeling by estimating the ratios of the data distribution", 2024,
        arXiv:2310.16834; Shi et al., 2024, arXiv:2406.04329, Table 4.
    """

    sigma_min: float = 1e-5
    sigma_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"Geometric: sigma_min={self.sigma_min}, sigma_max={self.sigma_max}; wanted 0 < sigma_min < sigma_max"
            )

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(t * math.log(self.sigma_max / self.sigma_min))

    @property
    def _span(self) -> float:
        return -math.expm1(self.sigma_min - self.sigma_max)

    def alpha(self, t: Tensor) -> Tensor:
        remaining = self.sigma_max - self._sigma(t)
        return torch.expm1(remaining) * math.exp(self.sigma_min - self.sigma_max) / self._span

    def noise(self, t: Tensor) -> Tensor:
        grown = self.sigma_min * torch.expm1(t * math.log(self.sigma_max / self.sigma_min))
        return -torch.expm1(-grown) / self._span

    def alpha_dot(self, t: Tensor) -> Tensor:
        sigma = self._sigma(t)
        rate = sigma * math.log(self.sigma_max / self.sigma_min)
        return -rate * torch.exp(self.sigma_min - sigma) / self._span

    def inverse(self, a: Tensor) -> Tensor:
        total = self.sigma_min - torch.log1p(-(1.0 - a) * self._span)
        return torch.log(total / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)

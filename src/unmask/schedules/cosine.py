"""The cosine schedule for masking."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """alpha(t) = 1 - cos(pi (1 - t) / 2): few tokens are decided per step at first, many towards the data.

    References:
        Chang et al., "MaskGIT: masked generative image transformer", 2022, arXiv:2202.04200;
        Shi et al., "Simplified and generalized masked diffusion for discrete data", 2024, arXiv:2406.04329, Table 4.
    """

    def alpha(self, t: Tensor) -> Tensor:
        # 1 - cos(x) = 2 sin^2(x / 2) keeps its digits as t -> 1
        return 2.0 * torch.sin(math.pi / 4 * (1.0 - t)).square()

    def noise(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * t)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * torch.cos(math.pi / 2 * t)

    def inverse(self, a: Tensor) -> Tensor:
        return 1.0 - 4 / math.pi * torch.asin((a / 2).clamp(0.0, 0.5).sqrt())

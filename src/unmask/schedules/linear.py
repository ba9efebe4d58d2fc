"""The linear schedule."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """alpha(t) = 1 - t.

    In terms of the total noise of a masked process, sigma(t) = -log alpha(t) = -log(1 - t): this is the "log-linear"
    schedule of SEDD and MDLM with their end-point offset taken to zero, so that x_1 is all noise.

    References:
        Austin et al., "Structured denoising diffusion models in discrete state-spaces", 2021, arXiv:2107.03006;
        Lou, Meng, Ermon, "Discrete diffusion modeling by estimating the ratios of the data distribution", 2024,
        arXiv:2310.16834 (log-linear noise).
    """

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - t

    def noise(self, t: Tensor) -> Tensor:
        return t

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def inverse(self, a: Tensor) -> Tensor:
        return 1.0 - a

"""The uniform noise that the argmax of Gaussian noise makes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float64
from torch import Tensor

_NODES = torch.linspace(-40.0, 12.0, 1041, dtype=torch.float64)  # the trapezoidal rule is spectrally accurate here
_NEWTON_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class ArgmaxTransform:
    """The map between the signal-to-noise ratio r of w = r x + eps, x one-hot in v dimensions, and uniform noise.

    argmax w is x with probability P and any other state with equal ones, so that it is uniform noise with

        alpha = (v P - 1) / (v - 1) = v / (v - 1) int phi(u) [ Phi(u + r)^(v-1) - Phi(u)^(v-1) ] du,
        1 - alpha = v / (v - 1) int phi(u) [ 1 - Phi(u + r)^(v-1) ] du,

    phi and Phi the density and the distribution function of a standard normal. Each is computed without cancellation
    where it is the smaller one.

    Args:
        vocab_size: v >= 2.

    Raises:
        ValueError: for fewer than two states.

    References:
        Sahoo et al., "The diffusion duality", 2025, arXiv:2506.10892.
    """

    vocab_size: int

    def __post_init__(self) -> None:
        if self.vocab_size < 2:
            raise ValueError(f"ArgmaxTransform: vocab_size={self.vocab_size}, wanted at least 2 states")

    def alpha(self, ratio: Float64[Tensor, "*s"]) -> Float64[Tensor, "*s"]:
        """The signal level of the uniform noise at ratios r >= 0."""
        noise, signal, _ = self._integrals(ratio)
        return torch.where(noise < 0.5, 1 - noise, signal)

    def noise(self, ratio: Float64[Tensor, "*s"]) -> Float64[Tensor, "*s"]:
        """1 - alpha at ratios r >= 0."""
        noise, signal, _ = self._integrals(ratio)
        return torch.where(noise < 0.5, noise, 1 - signal)

    def ratio(self, alpha: Float64[Tensor, "*s"], noise: Float64[Tensor, "*s"]) -> Float64[Tensor, "*s"]:
        """The r in [0, 75] at which the argmax keeps `alpha` of the data (noise = 1 - alpha).

        Newton's steps on log(1 - alpha), or on alpha where that is the smaller, from the bracket of a table.
        """
        grid, table = (column.to(alpha.device) for column in self._table)
        above = torch.searchsorted(table, noise.contiguous()).clamp(1, len(grid) - 1)
        high, low = grid[above - 1], grid[above]  # the table ascends in noise, hence descends in r
        ratio = (low + high) / 2
        for _ in range(_NEWTON_STEPS):
            found_noise, found_signal, slope = self._integrals(ratio)
            by_noise = ratio + found_noise / slope * torch.log(found_noise / noise)
            step = torch.where(noise < 0.5, by_noise, ratio + (alpha - found_signal) / slope)
            ratio = step.clamp(min=low, max=high)
        return ratio

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor]:
        """Ratios from 75 down to 0, and their noise."""
        grid = torch.linspace(75.0**0.5, 0.0, 400, dtype=torch.float64) ** 2
        return grid, self.noise(grid)

    def _integrals(self, ratio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """1 - alpha, alpha and d alpha / d r."""
        u, others = _NODES.to(ratio.device), self.vocab_size - 1
        scale = self.vocab_size / others * (u[1] - u[0]) / (2 * torch.pi) ** 0.5
        at = u + ratio[..., None]
        below = torch.special.log_ndtr(at)
        weight, shifted = scale * torch.exp(-(u**2) / 2), others * below
        noise = -(torch.expm1(shifted) @ weight)
        signal = (shifted.exp() - (others * torch.special.log_ndtr(u)).exp()) @ weight
        density = torch.exp(shifted - below - (u**2 + at**2) / 2) / (2 * torch.pi) ** 0.5
        return noise, signal, others * scale * density.sum(-1)

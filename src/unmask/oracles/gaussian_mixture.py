"""A mixture of Gaussians, with exact denoising under any affine Gaussian path."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.law import Law, State
from unmask.ops import draw_categorical
from unmask.rng import Rng

_COMPONENT, _NOISE = 1, 2


@dataclass(frozen=True, eq=False)
class MixtureLaw(Law):
    """A per-row mixture of isotropic Gaussians: sum_k softmax(log_weights)_k N(means_k, variance I).

    Args:
        log_weights: (b, k), unnormalised.
        means: (b, k, d).
        variance: scalar or (b,), > 0.
    """

    log_weights: Float[Tensor, "b k"]
    means: Float[Tensor, "b k d"]
    variance: Tensor

    def sample(self, rng: Rng) -> Tensor:
        pick = draw_categorical(self.log_weights, rng.fold(_COMPONENT).uniform((len(self.means),)))
        centre = self.means[torch.arange(len(pick)), pick]
        spread = self.variance.sqrt().reshape(-1, 1)
        return centre + spread * rng.fold(_NOISE).normal(centre.shape).to(centre.dtype)

    def log_prob(self, x: State) -> Tensor:
        if isinstance(x, dict):
            raise TypeError(f"MixtureLaw: met columns {sorted(x)}, wanted one tensor (b, d)")
        d = self.means.shape[-1]
        variance = self.variance.reshape(-1, 1)
        square = (x[:, None] - self.means).square().sum(-1) / variance
        density = -0.5 * (square + d * torch.log(2 * math.pi * variance))
        return torch.logsumexp(torch.log_softmax(self.log_weights, 1) + density, 1)

    @property
    def mean(self) -> Tensor:
        return (self.log_weights.softmax(1)[..., None] * self.means).sum(1)


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """Data x_0 ~ sum_k w_k N(m_k, std^2 I) in d dimensions.

    Under x_t = alpha x_0 + sigma eps all of denoising is closed form: x_t is again a mixture, with means alpha m_k
    and variance alpha^2 std^2 + sigma^2, and x_0 given x_t is a mixture as well.

    Args:
        means: (k, d).
        std: within-component standard deviation, >= 0.
        weights: (k,), positive, normalised here; equal if None.

    References:
        Karras et al., "Elucidating the design space of diffusion-based generative models", 2022, arXiv:2206.00364,
        appendix B.
    """

    means: Float[Tensor, "k d"]
    std: float
    weights: Float[Tensor, " k"] | None = None

    def __post_init__(self) -> None:
        if not self.std >= 0:
            raise ValueError(f"GaussianMixture: std={self.std}, wanted a number >= 0")

    @property
    def _log_weights(self) -> Tensor:
        weights = torch.ones(len(self.means), dtype=self.means.dtype) if self.weights is None else self.weights
        return (weights / weights.sum()).log()

    def sample(self, num_samples: int, rng: Rng) -> Float[Tensor, "n d"]:
        """Independent draws of the data."""
        return self._mixture(num_samples, self.means, torch.as_tensor(self.std**2)).sample(rng)

    def noised(self, batch: int, alpha: Tensor, sigma: Tensor) -> MixtureLaw:
        """The law of x_t, once per batch row; alpha and sigma are scalars or (b,)."""
        return self._mixture(batch, alpha.reshape(-1, 1, 1) * self.means, self._total(alpha, sigma))

    def posterior(self, xt: Float[Tensor, "b d"], alpha: Tensor, sigma: Tensor) -> MixtureLaw:
        """The law of x_0 given x_t."""
        total = self._total(alpha, sigma).reshape(-1, 1)
        a = alpha.reshape(-1, 1, 1)
        residual = xt[:, None] - a * self.means
        log_weights = self._log_weights - 0.5 * residual.square().sum(-1) / total
        gain = a * self.std**2 / total[..., None]
        variance = self.std**2 * sigma.square() / total.squeeze(1)
        return MixtureLaw(log_weights, self.means + gain * residual, variance)

    def posterior_mean(self, xt: Float[Tensor, "b d"], alpha: Tensor, sigma: Tensor) -> Float[Tensor, "b d"]:
        """E[x_0 | x_t], the ideal denoiser's output."""
        return self.posterior(xt, alpha, sigma).mean

    def score(self, xt: Float[Tensor, "b d"], alpha: Tensor, sigma: Tensor) -> Float[Tensor, "b d"]:
        """grad log p_t(x_t) = (alpha E[x_0 | x_t] - x_t) / sigma^2 in the form that survives sigma = 0."""
        total = self._total(alpha, sigma).reshape(-1, 1)
        a = alpha.reshape(-1, 1, 1)
        residual = a * self.means - xt[:, None]
        weights = (self._log_weights - 0.5 * residual.square().sum(-1) / total).softmax(1)
        return (weights[..., None] * residual).sum(1) / total

    def _total(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha * self.std).square() + sigma.square()

    def _mixture(self, batch: int, means: Tensor, variance: Tensor) -> MixtureLaw:
        return MixtureLaw(self._log_weights.expand(batch, -1), means.expand(batch, -1, -1), variance)

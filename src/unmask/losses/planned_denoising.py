"""Planned denoising: one cross-entropy for the planner, one for the denoiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unmask.denoiser import Denoiser
from unmask.law import SiteLaw, State
from unmask.loss import Loss, require, row_positions, sum_sites
from unmask.ops import expand_time, low_discrepancy_uniforms
from unmask.process import Interpolating
from unmask.rng import Rng

_TIME, _NOISE, _VALUES = 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class PlannerLoss(Loss):
    """-log p(z | x_t) over all sites, z_i telling whether site i was drawn from the noise: E over t ~ U(0, 1).

    Its minimum is at the true chance that a site is corrupted. No bound, and none with `GivenNoiseLoss` added. With the
    paper's weight w = -alpha' / (1 - alpha) on both, their sum is one of -log p(x_0), as

        -z log P - (1 - z) log(1 - P) - z log p   >=   P - z - z log(P p),

    with P = p(z = 1 | x_t) and p = p(x_0 | x_t, z = 1). The right is the bound's integrand for jumps at rate w P p. It
    is not tight, the exact model's being above the entropy by E of -w (1 - P) log(1 - P) at least, and infinite for a
    planner that does not trust every token at t = 0.
    The minimum is the same for any weight; 1 keeps the variance finite.

    Args:
        process: noise that mixes the data with a law.

    References:
        Liu, Nam, Campbell, Staerk, Xu, Jaakkola, Gomez-Bombarelli, "Think while you generate: discrete diffusion with
        planned denoising", 2024, arXiv:2410.06264.
    """

    process: Interpolating

    def __post_init__(self) -> None:
        require(self, self.process, Interpolating, "a site is either data or drawn from the noise")

    def __call__(
        self,
        denoiser: Denoiser,
        x0: State,
        rng: Rng,
        *,
        attention_mask: Bool[Tensor, "b l"] | None = None,
        **cond: Any,
    ) -> Float[Tensor, " b"]:
        """Nats per example; `denoiser` is the planner, a law over two classes (1: noise) at each site."""
        _, xt, t, z, real = _corrupted(self.process, x0, rng, attention_mask)
        law = _law(denoiser, xt, t, attention_mask, cond)
        return sum_sites(-law.token_log_prob(z.long(), real), real)


@dataclass(frozen=True, kw_only=True)
class GivenNoiseLoss(Loss):
    """-log p(x_0^i | x_t, z_i = 1) over the sites drawn from the noise: E over t ~ U(0, 1).

    Its minimum is at the true law of a corrupted site's clean value. Not a bound; with masks and the weight of
    `MaskedNELBO` it would be that one.

    Args:
        process: as for `PlannerLoss`; both losses see the same x_t for the same rng.

    References:
        Liu et al., 2024, arXiv:2410.06264.
    """

    process: Interpolating

    def __post_init__(self) -> None:
        require(self, self.process, Interpolating, "a site is either data or drawn from the noise")

    def __call__(
        self,
        denoiser: Denoiser,
        x0: State,
        rng: Rng,
        *,
        attention_mask: Bool[Tensor, "b l"] | None = None,
        **cond: Any,
    ) -> Float[Tensor, " b"]:
        tokens, xt, t, z, _ = _corrupted(self.process, x0, rng, attention_mask)
        return sum_sites(-_law(denoiser, xt, t, attention_mask, cond).token_log_prob(tokens, z), z)


def _corrupted(
    process: Interpolating, x0: State, rng: Rng, attention_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x_0, x_t, t, which sites were drawn from the noise, and which are no padding."""
    tokens = process._tokens(x0, "planned denoising")
    t = low_discrepancy_uniforms(rng.fold(_TIME).scalar(), rng.row_indices(len(tokens)).to(tokens.device))
    keyed = row_positions(attention_mask, rng)
    real = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask
    times = expand_time(t, tokens)
    z = real & (keyed.fold(_NOISE).uniform(tokens.shape, tokens.device) < process.schedule.noise(times))
    drawn = process.draw_mixing(times, keyed.fold(_VALUES).uniform(tokens.shape, tokens.device))
    return tokens, torch.where(z, drawn, tokens), t, z, real


def _law(denoiser: Denoiser, xt: Tensor, t: Tensor, attention_mask: Tensor | None, cond: dict[str, Any]) -> SiteLaw:
    law = denoiser(xt, t, attention_mask=attention_mask, **cond)
    if not isinstance(law, SiteLaw):
        raise TypeError(f"planned denoising met a {type(law).__name__}, wanted a discrete law of sites")
    return law

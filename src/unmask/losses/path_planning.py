"""The training loss of a planner that tells right tokens of a draft from wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unmask.denoiser import Denoiser
from unmask.law import SiteLaw, State
from unmask.loss import Loss, require, row_positions, sum_sites
from unmask.ops import low_discrepancy_uniforms
from unmask.processes.masked import Masked
from unmask.rng import Rng

_TIME, _MASKS, _VALUES = 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class PathPlannerLoss(Loss):
    """-log p( 1[z_i != x_0^i] | z ) over all sites, where z completes x_t with the denoiser's draws; t ~ U(0, 1).

    Its minimum is the true chance that a token of the draft z is wrong. z is drawn as `PathPlanning` draws it, every
    mask by itself, so that the planner learns to see which draws do not fit each other. The tokens that x_t had are
    right, and count as well: the planner sees z alone, and is to judge every token of it. Not a bound.

    Args:
        process: the masked process.
        model: the denoiser whose draws are judged; it is not trained.

    References:
        Peng, Bezemek, Patel, Rector-Brooks, Yao, Bose, Tong, Chatterjee, "Path planning for masked diffusion model
        sampling", 2025, arXiv:2502.03540.
    """

    process: Masked
    model: Callable[..., SiteLaw]

    def __post_init__(self) -> None:
        require(self, self.process, Masked, "drafts are drawn from masks")

    def __call__(
        self,
        denoiser: Denoiser,
        x0: State,
        rng: Rng,
        *,
        attention_mask: Bool[Tensor, "b l"] | None = None,
        **cond: Any,
    ) -> Float[Tensor, " b"]:
        """Nats per example; `denoiser` is the planner, a law of two classes (0: right, 1: wrong) at each site."""
        tokens = self.process._tokens(x0, "PathPlannerLoss")
        t = low_discrepancy_uniforms(rng.fold(_TIME).scalar(), rng.row_indices(len(tokens)).to(tokens.device))
        keyed = row_positions(attention_mask, rng)
        real = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask
        padding = {} if attention_mask is None else {"attention_mask": attention_mask}
        xt = torch.where(real, self.process.corrupt(tokens, t, keyed.fold(_MASKS)), tokens)
        masks, z = real & (xt == self.process.mask_id), xt
        if bool(masks.any()):
            with torch.no_grad():
                drawn, _ = self.model(xt, t, **padding, **cond).sample_at(masks, keyed.fold(_VALUES))
            z = xt.masked_scatter(masks, drawn)
        law = denoiser(z, t, **padding)
        if not isinstance(law, SiteLaw):
            raise TypeError(f"PathPlannerLoss: met a {type(law).__name__}, wanted a law of two classes a site")
        return sum_sites(-law.token_log_prob((z != tokens).long(), real), real)

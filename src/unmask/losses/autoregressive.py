"""The left-to-right negative log-likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unmask.denoiser import Denoiser
from unmask.law import SiteLaw, State
from unmask.loss import Loss, sum_sites
from unmask.rng import Rng


@dataclass(frozen=True, kw_only=True)
class AutoregressiveNLL(Loss):
    """-log p(x) = -sum_i log p(x_i | x_<i), exact and without randomness, for an `AutoregressiveDenoiser`.

    References:
        Radford et al., "Language models are unsupervised multitask learners", OpenAI technical report 2019.
    """

    bound: ClassVar[bool] = True

    def __call__(
        self,
        denoiser: Denoiser,
        x0: State,
        rng: Rng,
        *,
        attention_mask: Bool[Tensor, "b l"] | None = None,
        **cond: Any,
    ) -> Float[Tensor, " b"]:
        if isinstance(x0, dict):
            raise TypeError(f"AutoregressiveNLL: met columns {sorted(x0)}, wanted one tensor of tokens (b, l)")
        law = denoiser(
            x0, torch.zeros(len(x0), dtype=torch.float64, device=x0.device), attention_mask=attention_mask, **cond
        )
        if not isinstance(law, SiteLaw):
            raise TypeError(f"AutoregressiveNLL: met a {type(law).__name__}, wanted a discrete law of sites")
        where = torch.ones_like(x0, dtype=torch.bool) if attention_mask is None else attention_mask
        return sum_sites(-law.token_log_prob(x0, where), where)

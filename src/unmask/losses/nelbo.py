"""The generic continuous-time bound of any discrete process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unmask.denoiser import Denoiser
from unmask.law import State
from unmask.loss import Loss, require, row_positions
from unmask.ops import expand_time, low_discrepancy_uniforms
from unmask.process import DiscreteProcess
from unmask.rng import Rng

_TIME, _NOISE, _SITES = 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class NELBO(Loss):
    """The negative evidence lower bound of any discrete process, from its two vectors alone:

        -log p(x_0) <= KL( q(x_1 | x_0) || prior ) + E_t sum_i sum_y [ r - r* + r* log(r* / r) ]  (see `nelbo_rate`),

    one uniform low-discrepancy time per example. Processes with closed forms of `nelbo_rate` make it cheap.

    Noise that may put any token anywhere has to be paid for at every site, x_t = x_0 or not; the head then dominates if
    the vocabulary is large. `kept_share` < 1 evaluates only that share of a row's sites with x_t = x_0, rounded up and
    drawn without replacement, and gives their mean to all of them: the expectation is the same, and the variance grows
    by what these sites differ from each other.

    Args:
        process: any `DiscreteProcess`.
        kept_share: share of the unchanged sites to evaluate, in (0, 1].

    Raises:
        TypeError, ValueError: for another kind of process, or a share outside (0, 1].

    References:
        Campbell et al., "A continuous time framework for discrete denoising models", 2022, arXiv:2205.14987.
    """

    process: DiscreteProcess
    kept_share: float = 1.0
    bound: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self, self.process, DiscreteProcess, "the bound needs its two vectors, marginal and likelihood")
        if not 0 < self.kept_share <= 1:
            raise ValueError(f"NELBO: kept_share={self.kept_share}, wanted a share in (0, 1]")

    def __call__(
        self,
        denoiser: Denoiser,
        x0: State,
        rng: Rng,
        *,
        attention_mask: Bool[Tensor, "b l"] | None = None,
        **cond: Any,
    ) -> Float[Tensor, " b"]:
        tokens = self.process._tokens(x0, "NELBO")
        rows = rng.row_indices(len(tokens)).to(tokens.device)
        t = low_discrepancy_uniforms(rng.fold(_TIME).scalar(), rows)
        sited = row_positions(attention_mask, rng)
        xt = self.process.corrupt(tokens, t, sited.fold(_NOISE))
        if attention_mask is not None:
            xt = xt.where(attention_mask, tokens)
        law = denoiser(xt, t, attention_mask=attention_mask, **cond)
        if self.kept_share < 1:
            real = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask
            kept = (xt == tokens) & real
            chosen, weight = self._some_of(kept, sited.fold(_SITES))
            rate = self.process.nelbo_rate(law, tokens, xt, t, (real & ~kept) | chosen)
            rate = torch.where(kept, rate * expand_time(weight, rate), rate)
        else:
            rate = self.process.nelbo_rate(law, tokens, xt, t, attention_mask)
        per_site = rate + self.process.prior_kl(tokens)
        if attention_mask is not None:
            per_site = per_site.where(attention_mask, 0.0)
        return per_site.flatten(1).sum(1)

    def _some_of(self, kept: Bool[Tensor, "b *s"], rng: Rng) -> tuple[Bool[Tensor, "b *s"], Float[Tensor, " b"]]:
        """Some of each row's kept sites, each as likely as any other, and how many each of them stands for."""
        counts = kept.flatten(1).sum(1)
        number = (self.kept_share * counts).ceil()
        order = rng.uniform(kept.shape, kept.device).where(kept, 2.0).flatten(1).argsort(1)
        chosen = (order.argsort(1) < number[:, None]).reshape(kept.shape)
        return chosen, counts.double() / number.clamp(min=1.0)

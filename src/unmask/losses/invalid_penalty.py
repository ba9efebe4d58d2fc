"""A penalty for most probable completions that break the rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unmask.denoiser import Denoiser, Forwarding
from unmask.law import Law, SiteLaw, State
from unmask.loss import Loss, sum_sites
from unmask.rng import Rng


@dataclass(frozen=True, kw_only=True)
class InvalidPenalty(Loss):
    """Another loss, and how sure the model is of completions that are invalid:

        loss + weight 1[y is invalid] sum_i p_i(y_i),   y_i = argmax p_i at the masks i of x_t, and x_t elsewhere,

    with p the law that the loss itself asked for, so that the network is not called again (its head is, at the masks).
    Of several laws, those count that a row has masks for, and their mean is taken; laws asked for without gradients,
    as by networks that look twice, do not count.

    **Heuristic**, no bound: where several completions are possible, the most probable tokens of the exact model may
    not go together either, and are paid for as well. What is gained in validity is paid in likelihood.

    Args:
        loss: of a denoiser of masks.
        mask_id: which token is the mask.
        is_valid: maps completed tokens (b, l) to booleans (b,); padding is as it came.
        weight: > 0 and finite, nats per unit of probability.

    Raises:
        ValueError: for another weight.
        TypeError: if the model's law is not one of independent sites, the loss asks for none, or `is_valid` returns
            something else.

    References:
        Tang, Zhang, Chatterjee, "PepTune: de novo generation of therapeutic peptides with multi-objective-guided
        discrete diffusion", 2024, arXiv:2412.17780 (invalid loss).
    """

    loss: Loss
    mask_id: int
    is_valid: Callable[[Int64[Tensor, "b l"]], Bool[Tensor, " b"]]
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"InvalidPenalty: weight={self.weight}, wanted a positive, finite number")

    def __call__(
        self,
        denoiser: Denoiser,
        x0: State,
        rng: Rng,
        *,
        attention_mask: Bool[Tensor, "b l"] | None = None,
        **cond: Any,
    ) -> Float[Tensor, " b"]:
        heard = _Overheard(denoiser)
        value = self.loss(heard, x0, rng, attention_mask=attention_mask, **cond)
        if not heard.laws:
            raise TypeError(f"InvalidPenalty: {type(self.loss).__name__} asked the denoiser for no law")
        found = [self._penalty(xt, law, attention_mask) for xt, law in heard.laws]
        penalties, counted = (torch.stack(part) for part in zip(*found, strict=True))
        return value + self.weight * penalties.sum(0) / counted.sum(0).clamp(min=1)

    def _penalty(self, xt: State, law: Law, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """(the sum of each row (b,), whether it has a mask (b,))."""
        if not isinstance(law, SiteLaw) or not isinstance(xt, Tensor):
            raise TypeError(f"InvalidPenalty: met a {type(law).__name__}, wanted a discrete law of sites")
        where = xt == self.mask_id
        if attention_mask is not None:
            where = where & attention_mask
        best, tokens = law.log_probs(where).max(-1)
        valid = self.is_valid(xt.masked_scatter(where, tokens))
        if valid.dtype != torch.bool or valid.shape != (len(xt),):
            raise TypeError(
                f"InvalidPenalty: is_valid returned {valid.dtype} {tuple(valid.shape)}, wanted torch.bool ({len(xt)},)"
            )
        return sum_sites(best.exp(), where, (~valid).to(best.dtype)), where.any(1)


class _Overheard(Forwarding):
    """Keeps what was asked and answered."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.laws: list[tuple[State, Law]] = []
        self.with_gradients = torch.is_grad_enabled()

    def forward(self, xt: State, t: Tensor, **cond: Any) -> Law:
        law: Law = self.inner(xt, t, **cond)
        if torch.is_grad_enabled() == self.with_gradients:
            self.laws.append((xt, law))
        return law

"""A penalty for most probable completions that break the rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unmask.denoiser import Denoiser
from unmask.law import Law, SiteLaw, State
from unmask.loss import Loss, sum_sites
from unmask.rng import Rng


@dataclass(frozen=True, kw_only=True)
class InvalidPenalty(Loss):
    """Another loss, and how sure the model is of completions that are invalid:

        loss + weight 1[y is invalid] sum_i p_i(y_i),   y_i = argmax p_i at the masks i of x_t, and x_t elsewhere,

    with p the law that the loss itself asked for, so that the network is not called again (its head is, at the masks).
    If the loss asks for several laws, the mean over them counts.

    **Heuristic**, no bound: where several completions are possible, the most probable tokens of the exact model may
    not go together either, and are paid for as well. What is gained in validity is paid in likelihood.

    Args:
        loss: of a denoiser of masks.
        mask_id: which token is the mask.
        is_valid: maps completed tokens (b, l) to booleans (b,); padding is as it came.
        weight: > 0, nats per unit of probability.

    Raises:
        ValueError: for another weight.
        TypeError: if the model's law is not one of independent sites.

    References:
        Tang, Zhang, Chatterjee, "PepTune: de novo generation of therapeutic peptides with multi-objective-guided
        discrete diffusion", 2024, arXiv:2412.17780 (invalid loss).
    """

    loss: Loss
    mask_id: int
    is_valid: Callable[[Int64[Tensor, "b l"]], Bool[Tensor, " b"]]
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"InvalidPenalty: weight={self.weight}, wanted a positive number")

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
        for xt, law in heard.laws:
            value = value + self.weight / len(heard.laws) * self._penalty(xt, law, attention_mask)
        return value

    def _penalty(self, xt: State, law: Law, attention_mask: Tensor | None) -> Float[Tensor, " b"]:
        if not isinstance(law, SiteLaw) or not isinstance(xt, Tensor):
            raise TypeError(f"InvalidPenalty: met a {type(law).__name__}, wanted a discrete law of sites")
        where = xt == self.mask_id
        if attention_mask is not None:
            where = where & attention_mask
        best, tokens = law.log_probs(where).max(-1)
        invalid = ~self.is_valid(xt.masked_scatter(where, tokens))
        return sum_sites(best.exp(), where, invalid.to(best.dtype))


class _Overheard(Denoiser):
    """Keeps what was asked and answered."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner = inner
        self.laws: list[tuple[State, Law]] = []

    def forward(self, xt: State, t: Tensor, **cond: Any) -> Law:
        law: Law = self.inner(xt, t, **cond)
        self.laws.append((xt, law))
        return law
